"""Each rule alone: what it lets through, what it refuses, in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedshield.ledger import rules
from fedshield.ledger.rows import (
    Consent,
    Row,
    Scale,
    Version,
    line_curve,
    line_of,
    part_version,
    record_hash,
)
from fedshield.ledger.rules import Approval, Terms

A, B, C, D, E, F = (letter * 64 for letter in "abcdef")


def part(rows: str, sources: str = "") -> Version:
    """Other records, where not said otherwise."""
    return Version(sources or f"records of {rows}", rows)


ROW = Row(
    plan="1" * 64,
    run="trial",
    phase="round",
    round_number=1,
    base="2" * 64,
    own=A,
    batch=(A, B, C),
    sites=(A, B, C),
    colluding=1,
    membership="fixed",
    scale=Scale("equal", 40, 4),
    versions={A: part("a"), B: part("b"), C: part("c")},
    content="3" * 64,
    records=frozenset({b"record 1"}),
)
LATER = replace(ROW, plan="5" * 64, run="second", base="6" * 64, content="7" * 64)
APPROVAL = Approval(ROW.plan, "9" * 64, "8" * 64, rounds=3, tallies=("weights",))
TERMS = Terms(min_examples=8, examples=40, starts=frozenset({ROW.base}))
NO = Consent()


def test_a_sound_request_is_let_through() -> None:
    assert rules.first_refusal([], ROW, TERMS, APPROVAL, "9" * 64, 0) is None
    again = rules.first_refusal([ROW], ROW, TERMS, APPROVAL, "9" * 64, 1)
    assert again is None


def test_r1_every_set_but_the_whole_batch_is_refused() -> None:
    assert rules.whole_batch([], ROW, NO) == ""
    without = replace(ROW, sites=(A, B))
    assert "without 1 of them" in rules.whole_batch([], without, NO)
    assert "one without it" in rules.whole_batch([], replace(ROW, sites=(B, C)), NO)
    assert "one batch with membership fixed" in rules.whole_batch(
        [], replace(ROW, sites=(A, B, C, D)), NO
    )


def test_r1_a_batch_is_large_enough_for_the_largest_c_of_the_line() -> None:
    assert "at least 4 sites" in rules.whole_batch([], replace(ROW, colluding=2), NO)


def test_r1_a_line_holds_against_as_many_colluders_as_it_ever_did() -> None:
    """Fewer answers open a sum under a smaller c: those whom the earlier sums hold against could
    open this one's updates by themselves. Nor may a plan without secrecy follow."""
    before = replace(ROW, colluding=2)
    said = rules.whole_batch([before], LATER, NO)
    assert "hold against 2 colluding sites" in said
    assert "got 1" in said
    assert "got 0" in rules.whole_batch([ROW], replace(LATER, colluding=0), NO)
    opened = replace(LATER, membership="open", unit="example", curve=(1.0,))
    assert "got 1" in rules.whole_batch([replace(opened, colluding=2)], opened, NO)
    assert rules.whole_batch([replace(ROW, colluding=0)], LATER, NO) == ""


def test_r1_a_batch_never_changes_on_a_line_but_by_consent() -> None:
    joined = replace(LATER, batch=(A, B, C, D), sites=(A, B, C, D), versions={})
    assert "differs by 1" in rules.whole_batch([ROW], joined, NO)


def test_r1_whole_batches_may_be_away() -> None:
    first = replace(ROW, membership="batches", sites=(A, B, C, D, E, F))
    alone = replace(LATER, membership="batches")
    assert rules.whole_batch([first], alone, NO) == ""


def test_r1_open_membership_needs_protected_rows_in_every_sum() -> None:
    opened = replace(LATER, membership="open", sites=(A, B), unit="example", curve=(1.0,))
    assert rules.whole_batch([replace(opened, sites=(A, B, C))], opened, NO) == ""
    assert "got none in round 1 of plan 111111111111" in rules.whole_batch([ROW], opened, NO)
    assert "expected privacy.unit example" in rules.whole_batch(
        [], replace(opened, unit="site"), NO
    )


def test_r1_after_open_membership_every_later_sum_needs_protected_rows() -> None:
    """Open sums show single sites' updates; a bare sum less those would show who is left."""
    opened = replace(ROW, membership="open", sites=(A, B), unit="example", curve=(1.0,))
    said = rules.whole_batch([opened], LATER, NO)
    assert "since round 1 of plan 111111111111 was with membership open, got none" in said
    assert rules.whole_batch([opened], replace(LATER, unit="example", curve=(1.0,)), NO) == ""


def test_r2_is_about_every_row_of_a_line() -> None:
    """Also where new records made one line of two."""
    later = replace(ROW, plan="4" * 64, scale=Scale("equal", 41, 4))
    assert "got 40" in rules.one_scale([ROW, later], LATER)


@pytest.mark.parametrize(
    ("scale", "word"),
    [
        (Scale("private", 40, 4), "weights equal"),
        (Scale("equal", 41, 4), "count 40"),
        (Scale("equal", 40, 5), "steps 4"),
    ],
)
def test_r2_the_scale_of_a_line_never_changes(scale: Scale, word: str) -> None:
    assert rules.one_scale([ROW], LATER) == ""
    assert f"expected {word}" in rules.one_scale([ROW], replace(LATER, scale=scale))


def changed(**versions: Version) -> Row:
    """A later row, in which these sites put in something else."""
    sites = {"A": A, "B": B, "C": C}
    return replace(LATER, versions={**ROW.versions, **{sites[k]: v for k, v in versions.items()}})


def test_r3_nobody_changes_its_part_alone() -> None:
    assert rules.own_part([ROW], LATER, NO) == ""
    alone = changed(A=part("a2"))
    assert "this site's records as in" in rules.own_part([ROW], alone, NO)
    assert "2 of the batch kept theirs" in rules.own_part([ROW], alone, NO)
    nearly = changed(A=part("a2"), B=part("b2"))
    assert "1 of the batch kept theirs" in rules.own_part([ROW], nearly, NO)
    everyone = changed(A=part("a2"), B=part("b2"), C=part("c2"))
    assert rules.own_part([ROW], everyone, NO) == ""


def test_r3_a_plan_that_changes_everyones_rows_hides_nobodys_change_of_records() -> None:
    """A word more in the template changes the rows of all; only A has other records."""
    worded = {site: part(f"{site} again", ROW.versions[site].sources) for site in (A, B, C)}
    everyone = replace(LATER, versions=worded)
    assert rules.own_part([ROW], everyone, NO) == ""
    attacked = replace(everyone, versions={**worded, A: part("a2")})
    said = rules.own_part([ROW], attacked, NO)
    assert "records as in" in said
    assert "2 of the batch kept theirs" in said
    # Nor does a change of files at everyone hide that only A's rows changed.
    files = {site: part(ROW.versions[site].rows, f"file of {site}") for site in (B, C)}
    attacked = replace(LATER, versions={**files, A: part("a2")})
    assert "rows as the model reads them as in" in rules.own_part([ROW], attacked, NO)


def test_r3_other_bytes_of_a_file_that_enter_nothing_are_no_change() -> None:
    assert rules.own_part([ROW], changed(A=part("a", "the file written anew")), NO) == ""


def test_r3_consent_is_to_what_enters_and_to_nothing_else() -> None:
    alone = changed(A=part("a2"))
    assert rules.own_part([ROW], alone, Consent(part=part("a2"))) == ""
    assert "records as in" in rules.own_part([ROW], alone, Consent(part=part("a3")))
    # The day in a template changes everyone's rows after the consent, and not the records.
    dated = {site: part(f"{site} today", ROW.versions[site].sources) for site in (B, C)}
    dated[A] = part("a2 today", "records of a2")
    assert rules.own_part([ROW], replace(LATER, versions=dated), Consent(part=part("a2"))) == ""
    mine = {A: dated[A], B: ROW.versions[B], C: ROW.versions[C]}
    said = rules.own_part([ROW], replace(LATER, versions=mine), Consent(part=part("a2")))
    assert "rows as the model reads them as in" in said


def test_r3_compares_with_every_row_and_not_only_the_last() -> None:
    everyone = changed(A=part("a2"), B=part("b2"), C=part("c2"))
    back = replace(changed(A=part("a2")), round_number=2)
    assert rules.own_part([ROW, everyone], back, NO) != ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"base": "8" * 64}, "base model"),
        ({"sites": (A, B, C, D)}, "set of sites"),
        ({"content": "8" * 64}, "encoded update"),
        ({"run": "another"}, "a plan has one run"),
    ],
)
def test_r4_a_sum_is_repeated_only_as_it_was(change: dict[str, object], word: str) -> None:
    assert rules.once([ROW], ROW) == ""
    assert word in rules.once([ROW], replace(ROW, **change))  # type: ignore[arg-type]


def test_r4_with_membership_open_another_set_may_repeat_the_same_update() -> None:
    open_ = replace(ROW, membership="open", unit="example")
    assert rules.once([open_], replace(open_, sites=(A, B))) == ""
    assert rules.once([open_], replace(open_, sites=(A, B), content="8" * 64)) != ""


def test_r4_asks_nothing_of_other_rounds_and_plans() -> None:
    assert rules.once([ROW], replace(ROW, round_number=2, base="8" * 64, content="8" * 64)) == ""
    assert rules.once([ROW], LATER) == ""


def test_r5_the_budget_is_the_lines() -> None:
    assert rules.within_budget(None, None) == ""
    assert rules.within_budget(3.9, 4.0) == ""
    assert "got 4.94" in rules.within_budget(4.94, 4.0)
    assert "infinity" in rules.within_budget(None, 4.0)


def test_r5_a_plan_with_an_epsilon_knows_what_its_own_rounds_spent() -> None:
    """Whatever its limit, for its report says what it spent."""
    lost = replace(ROW, round_number=2, content="", recovered=True, unit="none", curve=())
    request = replace(ROW, round_number=3, unit="example", curve=(1.0, 2.0))
    assert "round 2 of plan" in rules.known_rounds([ROW, lost], request)
    for rows, asked in (
        ([replace(lost, unit="example", curve=(1.0,))], request),
        ([replace(lost, plan="f" * 64)], request),
        ([replace(lost, phase="weights", round_number=0)], request),
        ([lost], replace(request, unit="none", curve=())),
    ):
        assert rules.known_rounds(rows, asked) == ""
    terms = rules.Terms(1, 40, frozenset({request.base}))
    approval = rules.Approval(request.plan, "", "", 3, ())
    refusal = rules.first_refusal([lost], request, terms, approval, "", 0)
    assert refusal is not None
    assert str(refusal).startswith("R5: expected what round 2 of plan")


def test_r5_curves_add_up_over_plans_and_repetitions_cost_nothing() -> None:
    private = replace(ROW, unit="example", curve=(0.5, 1.0))
    other = replace(LATER, unit="example", curve=(0.25, 2.0))
    assert line_curve([private, private, other], "example") == ((0.75, 3.0), 0.0)
    assert line_curve([private, LATER], "example") is None
    assert line_curve([], "example") == ((), 0.0)


def test_r5_what_protects_a_site_protects_its_rows_and_not_the_other_way_round() -> None:
    example = replace(ROW, unit="example", curve=(0.5, 1.0), distance=1e-9)
    site = replace(LATER, unit="site", curve=(0.25, 2.0), distance=1e-9)
    assert line_curve([example, site], "example") == ((0.75, 3.0), 2e-9)
    assert line_curve([example, site], "site") is None
    assert line_curve([site], "site") == ((0.25, 2.0), 1e-9)


def test_r5_a_tally_is_no_release_of_a_row() -> None:
    tally = replace(ROW, phase="weights", round_number=0)
    assert line_curve([tally], "example") == ((), 0.0)


def test_r6_floors() -> None:
    assert rules.enough_examples(8, 8) == ""
    assert "got 7" in rules.enough_examples(7, 8)
    # Three sites, one colluder, the other honest one at its floor of 10: 30 of 40 is 0.75.
    assert rules.largest_count(3, 1, 10) == 30
    assert rules.largest_count(8, 2, 10) == 150


def test_r7_a_start_is_the_plans_or_a_known_result() -> None:
    starts = frozenset({ROW.base})
    assert rules.known_start(ROW, starts) == ""
    assert "got 888888" in rules.known_start(replace(ROW, base="8" * 64), starts)


def test_r8_only_what_was_approved_and_not_too_often() -> None:
    roster = APPROVAL.roster
    assert rules.approved(ROW, APPROVAL, roster, 7) == ""
    assert "at most 8 tries" in rules.approved(ROW, APPROVAL, roster, 8)
    assert "got none" in rules.approved(ROW, None, roster, 0)
    assert "got none" in rules.approved(LATER, APPROVAL, roster, 0)
    assert "another" in rules.approved(ROW, APPROVAL, "8" * 64, 0)
    assert "approved 3, got 4" in rules.approved(replace(ROW, round_number=4), APPROVAL, roster, 0)
    assert rules.approved(replace(ROW, phase="weights", round_number=0), APPROVAL, roster, 0) == ""
    assert "got probe" in rules.approved(replace(ROW, phase="probe"), APPROVAL, roster, 0)


def test_every_refusal_is_one_line_that_names_its_rule() -> None:
    refusal = rules.first_refusal([], replace(ROW, sites=(A, B)), TERMS, APPROVAL, "9" * 64, 0)
    assert str(refusal).startswith("R1: expected ")
    assert "\n" not in str(refusal)


def test_a_line_is_what_shares_a_record_however_far_round() -> None:
    one = replace(ROW, records=frozenset({b"1", b"2"}))
    two = replace(LATER, records=frozenset({b"2", b"3"}))
    apart = replace(LATER, round_number=9, records=frozenset({b"9"}))
    assert line_of([apart, one, two], {b"3"}) == (one, two)
    assert line_of([apart, one, two], {b"4"}) == ()


def test_versions_and_hashes_tell_nothing_without_the_secret() -> None:
    hashes = [record_hash(b"k" * 32, text) for text in (b"one", b"two")]
    assert len({*hashes, record_hash(b"x" * 32, b"one")}) == 3
    version = part_version(b"s" * 32, b"records", b"rows")
    assert version == part_version(b"s" * 32, b"records", b"rows")
    rest = [
        part_version(b"s" * 32, b"recordt", b"rows"),
        part_version(b"s" * 32, b"records", b"rowt"),
        part_version(b"t" * 32, b"records", b"rows"),
    ]
    assert [one.sources == version.sources for one in rest] == [False, True, False]
    assert [one.rows == version.rows for one in rest] == [True, False, False]
    assert part_version(b"s" * 32, b"x", b"x").sources != part_version(b"s" * 32, b"x", b"x").rows
    assert Version.from_bytes(version.to_bytes()) == version
