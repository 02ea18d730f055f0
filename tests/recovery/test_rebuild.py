"""What comes back of a lost ledger, and that a lie in an answer lets nothing through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedshield.ledger import entries, rules
from fedshield.ledger.entries import Attested, OpenedRound, Receipt, Recovered, Total
from fedshield.ledger.file import Head, Ledger, LedgerError
from fedshield.ledger.heads import place_beside
from fedshield.ledger.rows import (
    LOST,
    UNKNOWN,
    Consent,
    Row,
    Scale,
    Version,
    line_curve,
    line_of,
)
from fedshield.ledger.rules import Approval
from fedshield.recovery.letters import Answer, RecoveryError, ToldRow
from fedshield.recovery.rebuild import OwnPart, Rebuilt, ended, is_shown
from fedshield.recovery.rebuild import rebuilt as rebuilt_by
from fedshield.recovery.tellers import Doubtful

A, B, C, D = (letter * 64 for letter in "abcd")
PLAN, ROSTER = "1" * 64, "9" * 64
MINE = Version("a" * 64, "0" * 64)
RECORDS = frozenset({b"01234567"})
ROW = Row(
    plan=PLAN,
    run="trial",
    phase="round",
    round_number=1,
    base="2" * 64,
    own=A,
    batch=(A, B, C),
    sites=(A, B, C),
    colluding=1,
    membership="fixed",
    scale=Scale("private", 40, 4),
    versions={A: MINE, B: Version(B, B), C: Version(C, C)},
    content="3" * 64,
    unit="example",
    curve=(1.0, 2.0),
    distance=0.25,
    records=RECORDS,
    roster=ROSTER,
)
TOLD = ToldRow.of(ROW, A)
#: What A still has of the plan, and of the records as they were.
PART = OwnPart(
    rounds=5,
    unit="example",
    weights="private",
    steps=4,
    version=MINE,
    records=RECORDS,
    count=40,
    roster=ROSTER,
    curve=(1.0, 2.0),
    distance=0.25,
)
RESULT = Receipt(PLAN, "round", 1, "8" * 64)
#: As A asks for a sum of the next plan.
LATER = replace(ROW, plan="5" * 64, content="7" * 64)


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Ledger]:
    """A copy of the first day."""
    with Ledger.create(tmp_path / "older") as ledger:
        yield ledger


def rebuilt(
    older: Ledger, answers: list[Answer], parts: dict[str, OwnPart], colluding: int
) -> Rebuilt:
    names = {B: "beta", C: "gamma"} | {answer.teller: answer.teller for answer in answers}
    return rebuilt_by(older, answers, parts, colluding, names | {B: "beta", C: "gamma"})


def told(teller: str, *rows: ToldRow, results: tuple[Receipt, ...] = ()) -> Answer:
    return Answer(bytes(32), teller, A, b"", {}, rows, results)


def test_a_sum_comes_back_as_the_site_itself_knows_it(older: Ledger) -> None:
    """Its plan and its records say what it counted for and what it spent."""
    answers = [told(B, TOLD, results=(RESULT,)), told(C, TOLD, results=(RESULT,))]
    found = rebuilt(older, answers, {PLAN: PART}, 1)
    row, lost = found.rows
    assert row == replace(ROW, content="", recovered=True)
    assert lost.phase == LOST
    assert found == Rebuilt(found.rows, (RESULT,), (), (), (), ())
    # Epsilon at the plan's full rounds.
    assert line_curve(found.rows, "example") == ((5.0, 10.0), 1.25)
    assert line_curve(found.rows, "site") is None
    assert line_of(found.rows, RECORDS) == found.rows
    assert line_of(found.rows, {b"another"}) == ()


def test_a_sum_that_the_copy_holds_is_not_added(older: Ledger) -> None:
    older.approve(Approval(PLAN, ROSTER, "6" * 64, 5, (), unit="example"))
    older.add_row(ROW)
    older.add_receipt(RESULT)
    second = replace(TOLD, round_number=2)
    found = rebuilt(older, [told(B, TOLD, second), told(C, TOLD, second)], {}, 1)
    # The plan is not at hand: the copy says what a round of it spends, and how much it counts.
    assert [(row.phase, row.round_number) for row in found.rows] == [("round", 2), (LOST, 0)]
    assert found.rows[0].curve == ROW.curve
    assert found.rows[0].scale == ROW.scale
    assert found.rows[0].records == RECORDS
    assert line_curve([*older.rows, *found.rows], "example") == ((5.0, 10.0), 1.25)
    assert found.unbounded == found.uncounted == ()


def test_a_sum_without_its_receipt_is_not_signed_for_again(older: Ledger) -> None:
    """The copy is of between row and receipt: what this site signed for then is lost."""
    older.approve(Approval(PLAN, ROSTER, "6" * 64, 5, (), unit="example"))
    older.add_row(ROW)
    rows = rebuilt(older, [told(B, TOLD), told(C, TOLD)], {}, 1).rows
    again = replace(ROW, recovered=False)
    assert rules.once(older.rows, again) == ""
    assert "not to be repeated" in rules.once([*older.rows, *rows], again)
    assert line_curve([*older.rows, *rows], "example") == ((5.0, 10.0), 1.25)
    # What nobody tells of was not opened.
    assert [row.phase for row in rebuilt(older, [told(B), told(C)], {}, 1).rows] == [LOST]


def test_a_plan_with_a_tally_cannot_go_on(older: Ledger) -> None:
    """Every session of it begins with the total of the counts."""
    tally = replace(TOLD, phase="weights", round_number=0, base="")
    result = RESULT._replace(phase="weights", round_number=0)
    answers = [told(one, tally, results=(result,)) for one in (B, C)]
    found = rebuilt(older, answers, {PLAN: PART}, 1)
    assert (found.results, found.stopped) == ((result,), (PLAN,))
    assert found.unbounded == ()
    assert found.rows[0].curve == ()


def test_what_nothing_here_says_is_on_the_safe_side(older: Ledger) -> None:
    """Of which records it was: of all, so that all is one line. What was spent: infinity. What it
    counted for: nothing more is summed."""
    other = replace(ROW, plan="4" * 64, records=frozenset({b"89abcdef"}))
    for parts in ({}, {PLAN: replace(PART, version=Version("f" * 64, "f" * 64))}):
        found = rebuilt(older, [told(B, TOLD), told(C, TOLD)], parts, 1)
        (row,) = found.rows
        assert (row.unit, row.curve, row.records) == ("none", (), frozenset())
        assert found.unbounded == found.uncounted == found.stopped == (PLAN,)
        assert line_of([other, row], RECORDS) == (other, row)
        assert line_curve(found.rows, "example") is None
        for scale in (Scale("private", 40, 4), Scale("equal", 0, 4)):
            said = rules.one_scale(found.rows, replace(LATER, scale=scale))
            assert "was lost with its ledger" in said
    # Where weights were equal there is nothing to count, and the plan says which they were.
    equal = replace(PART, version=None, weights="equal", unit="none")
    found = rebuilt(older, [told(B, TOLD)], {PLAN: equal}, 1)
    assert found.rows[0].scale == Scale("equal", 0, 4)
    assert found.unbounded == found.uncounted == ()


def test_a_whole_site_is_protected_whatever_its_records_were(older: Ledger) -> None:
    part = replace(PART, unit="site", version=None)
    found = rebuilt(older, [told(B, TOLD), told(C, TOLD)], {PLAN: part}, 1)
    assert line_curve(found.rows, "site") == ((5.0, 10.0), 1.25)


def test_under_another_roster_it_is_not_known_what_it_counted_for(older: Ledger) -> None:
    """The roster caps it."""
    past = replace(TOLD, roster="7" * 64)
    for row in (past, replace(TOLD, roster="")):
        found = rebuilt(older, [told(B, row)], {PLAN: PART}, 1)
        assert found.rows[0].scale.count == UNKNOWN


def test_a_row_that_one_leaves_out_comes_from_another(older: Ledger) -> None:
    """With one liar among the others the honest one has every sum that was opened."""
    found = rebuilt(older, [told(B, TOLD, results=(RESULT,)), told(C)], {PLAN: PART}, 1)
    assert [row.key for row in found.rows] == [ROW.key, (PLAN, LOST, 0)]
    assert found.results == ()  # the one that tells it could lie too
    assert found.stopped == (PLAN,)
    assert found.doubtful == (Doubtful(TOLD, (B,), (), (C,)),)


def test_a_sum_that_liars_alone_can_have_made_up_is_named(older: Ledger) -> None:
    """Also where nobody in it keeps silent: it is over too few, or no more tell of it than can
    lie."""
    two = replace(TOLD, batch=(A, C), sites=(A, C), versions=(TOLD.versions[0], TOLD.versions[2]))
    honest = [told(B, TOLD), told(C, TOLD, two)]
    assert rebuilt(older, [*honest[:1], told(C, TOLD)], {}, 1).doubtful == ()
    assert rebuilt(older, honest, {}, 1).doubtful == (Doubtful(two, (C,), (), ()),)
    # Whoever tells of it, such a sum no honest site enters.
    honest[0] = told(B, TOLD, two)
    assert rebuilt(older, honest, {}, 1).doubtful == (Doubtful(two, (B, C), (), ()),)
    # Two liars of four, and three sites where two may lie.
    both = [told(one, TOLD) for one in (B, C)]
    for colluding, row in ((2, TOLD), (1, replace(TOLD, colluding=2))):
        answers = [replace(one, rows=(row,)) for one in both]
        found = rebuilt(older, answers, {}, colluding)
        assert found.doubtful == (Doubtful(row, (B, C), (), ()),)
    four = replace(TOLD, sites=(A, B, C, D), versions=(*TOLD.versions, (D, Version(D, D))))
    answers = [told(one, replace(four, batch=four.sites)) for one in (B, C, D)]
    assert rebuilt(older, answers, {}, 2).doubtful == ()
    # Sites of other batches have no row of it to tell.
    apart = replace(four, membership="batches")
    assert rebuilt(older, [told(B, apart), told(C, apart), told(D)], {}, 1).doubtful == ()
    apart = replace(four, membership="open", batch=(A,))
    (open_one,) = rebuilt(older, [told(B, apart), told(C, apart), told(D)], {}, 1).doubtful
    assert open_one.silent == (D,)


def test_what_was_heard_in_a_recovery_counts_and_is_no_second_word(older: Ledger) -> None:
    """A lie that an honest site heard in its own recovery is still that one liar's."""
    heard = replace(TOLD, recovered=True)
    found = rebuilt(older, [told(B, heard), told(C, TOLD)], {PLAN: PART}, 1)
    assert [row.phase for row in found.rows] == ["round", LOST]
    assert found.doubtful == (Doubtful(TOLD, (C,), (B,), ()),)
    # Its own row of before its loss is its own.
    found = rebuilt(older, [told(B, heard, TOLD), told(C, TOLD)], {PLAN: PART}, 1)
    assert (len(found.rows), found.doubtful) == (2, ())
    (alone,) = rebuilt(older, [told(B, heard), told(C, heard)], {PLAN: PART}, 1).doubtful
    assert (alone.own, alone.heard) == ((), (B, C))


def test_what_is_told_apart_is_kept_side_by_side(older: Ledger) -> None:
    """A row too many refuses more, and of two results that enough tell neither is taken."""
    changed = {A: MINE, B: Version("e" * 64, B), C: Version(C, C)}
    other = replace(TOLD, versions=tuple(changed.items()))
    found = rebuilt(older, [told(B, TOLD), told(C, other)], {PLAN: PART}, 1)
    rows = [row for row in found.rows if row.phase == "round"]
    assert [row.versions[B] for row in rows] == [Version(B, B), changed[B]]
    # B kept its part in one of the two, so A's change alone is refused, whoever lies.
    new = {**ROW.versions, A: Version("d" * 64, "d" * 64)}
    for said in ({}, {C: Version("d" * 64, C)}):
        assert rules.own_part(rows, replace(LATER, versions=new | said), Consent())
    assert len(found.doubtful) == 2
    # Each sum is counted once, whatever is told of it.
    assert line_curve(found.rows, "example") == ((5.0, 10.0), 1.25)
    lie = RESULT._replace(result="e" * 64)
    four = [told(one, TOLD, results=(which,)) for one, which in zip("bcde", [RESULT, RESULT, lie, lie], strict=True)]  # fmt: skip  # noqa: E501
    assert rebuilt(older, four, {}, 1).results == ()
    # Nor is one counted twice that answers about two of a site's kits.
    assert rebuilt(older, [told(B, TOLD, results=(RESULT,))] * 2, {}, 1).results == ()
    # A plan of a roster that held against more takes more.
    wider = replace(TOLD, colluding=2)
    answers = [told(one, wider, results=(RESULT,)) for one in (B, C)]
    assert rebuilt(older, answers, {}, 1).results == ()


@pytest.mark.parametrize(("num_sites", "colluding"), [(3, 1), (4, 1), (5, 1), (6, 1), (7, 2)])
def test_a_result_counts_where_no_other_one_can_have_a_certificate(
    older: Ledger, num_sites: int, colluding: int
) -> None:
    """One honest word is not enough: an honest site signs for what it opened, and where a liar had
    others open another sum, those may have the certificate."""
    sites = tuple(f"{number:064x}" for number in range(num_sites))
    versions = tuple((site, Version(site, site)) for site in sites)
    row = replace(TOLD, batch=sites, sites=sites, versions=versions, colluding=colluding)
    certificate = (num_sites + colluding) // 2 + 1
    for number in range(num_sites):
        answers = [
            replace(told(site, row, results=(RESULT,) if at < number else ()), about=sites[0])
            for at, site in enumerate(sites[1:])
        ]
        # Others sign for another one: those that do not tell of this, the liars, and this site.
        other = num_sites - 1 - number + min(colluding, number) + 1
        is_taken = bool(rebuilt(older, answers, {}, colluding).results)
        assert is_taken == (other < certificate)
        # Membership open says nothing of how many sites the roster has.
        wider = [replace(one, rows=(replace(row, membership="open"),)) for one in answers]
        strangers = [replace(told(str(at) * 64), about=sites[0]) for at in range(1, 3)]
        open_taken = rebuilt(older, [*wider, *strangers], {}, colluding).results
        assert bool(open_taken) == (number >= (num_sites + 2 + colluding) / 2)
    # Whoever was not in the sum has no result of it; nor has a sum that nobody was in.
    outside = [replace(one, rows=(replace(row, sites=sites[:1]),)) for one in answers]
    assert rebuilt(older, outside, {}, colluding).results == ()
    assert rebuilt(older, [replace(one, rows=()) for one in answers], {}, 0).results == ()


def test_of_rows_of_one_sum_the_largest_curve_counts() -> None:
    """Whichever was written first."""
    small = replace(ROW, curve=(0.0, 3.0), distance=0.0)
    for rows in ([small, ROW], [ROW, small]):
        assert line_curve(rows, "example") == ((1.0, 3.0), 0.25)
    assert line_curve([ROW, replace(ROW, unit="none", curve=())], "example") is None


def test_two_versions_of_one_part_are_refused_by_name(older: Ledger) -> None:
    other = replace(TOLD, versions=((A, Version("a" * 64, "f" * 64)), *TOLD.versions[1:]))
    with pytest.raises(RecoveryError, match="two, of beta and of gamma"):
        rebuilt(older, [told(B, TOLD), told(C, other)], {}, 1)
    older.add_row(ROW)
    with pytest.raises(RecoveryError, match="two, of the older copy and of gamma"):
        rebuilt(older, [told(B, TOLD), told(C, other)], {}, 1)


def test_a_try_after_the_file_was_rewritten_is_no_other_version(older: Ledger) -> None:
    """The same rows of other bytes: an honest repetition, of which one peer saw each. Both rows
    stand, and what the site changes later is held against each of them (R3)."""
    again = Version("f" * 64, MINE.rows)
    second = replace(TOLD, versions=((A, again), *TOLD.versions[1:]))
    answers = [told(B, TOLD), told(C, second)]
    found = rebuilt(older, answers, {PLAN: PART}, 1)
    rows = [row for row in found.rows if row.phase == "round"]
    assert [row.versions[A] for row in rows] == [MINE, again]
    # As many rows: what it counted for and spent is known. Of which records is not, for the second.
    assert [(row.scale.count, row.curve) for row in rows] == [(40, (1.0, 2.0))] * 2
    assert [row.records for row in rows] == [RECORDS, frozenset()]
    assert found.unbounded == found.uncounted == ()
    assert line_curve(found.rows, "example") == ((5.0, 10.0), 1.25)
    assert rules.own_part(rows, LATER, Consent()) == ""
    changed = replace(LATER, versions={**ROW.versions, A: Version("d" * 64, "d" * 64)})
    for row in rows:
        assert "this site's records" in rules.own_part([row], changed, Consent())
    # So with a copy that has the first try, and where today's file is a third one.
    assert is_shown(older, answers, {PLAN: replace(PART, version=Version(D, MINE.rows))}, False)
    older.add_row(ROW)
    found = rebuilt(older, [told(B, second), told(C, second)], {}, 1)
    assert (found.rows[0].scale.count, found.rows[0].curve) == (40, (1.0, 2.0))
    assert is_shown(older, [told(B, second)], {}, False)


def test_a_rebuilt_row_is_not_repeated_and_its_batch_stays(older: Ledger) -> None:
    rows = rebuilt(older, [told(B, TOLD)], {PLAN: PART}, 1).rows
    assert rules.whole_batch(rows, LATER, Consent()) == ""
    assert rules.one_scale(rows, LATER) == ""
    assert rules.own_part(rows, LATER, Consent()) == ""
    joined = replace(LATER, batch=(A, B, D), sites=(A, B, D), unit="none")
    assert "differs by 2 sites" in rules.whole_batch(rows, joined, Consent())
    assert "not to be repeated" in rules.once(rows, replace(LATER, plan=PLAN))
    assert "a plan has one run" in rules.once(rows, replace(LATER, plan=PLAN, run="x"))


def test_rounds_that_were_counted_after_a_loss_are_not_counted_again(older: Ledger) -> None:
    """Nor told on (`rows_about`): a copy of a rebuilt ledger has them."""
    first = rebuilt(older, [told(B, TOLD)], {PLAN: PART}, 1)
    for row in first.rows:
        older.add_row(row)
    second = rebuilt(older, [told(B, TOLD)], {PLAN: PART}, 1)
    assert second.rows == ()
    assert line_curve(older.rows, "example") == ((5.0, 10.0), 1.25)


def test_a_plan_of_batches_ends_where_lines_of_it_can_be_lost(older: Ledger) -> None:
    """Neither its total nor what this site took by the word of others has a place in an answer."""
    four = (A, B, C, D)
    batches = replace(ROW, membership="batches", sites=four)
    older.add_row(batches)
    older.add_row(replace(ROW, plan="5" * 64))
    older.add_total(Total("6" * 64, 1000))
    older.add_attested(Attested("7" * 64, 1, (OpenedRound("8" * 64, four),), (B, C)))
    last = older.head.length

    def found(*rows: ToldRow, **lines: int) -> tuple[str, ...]:
        of_site = {A: lines.get("a", 0), B: lines.get("b", 0)}
        new = rebuilt(older, [told(B, *rows), told(C, *rows)], {}, 1).rows
        return ended(older, new, of_site, ["9" * 64])

    everything = (PLAN, *(number * 64 for number in "679"))
    assert found(a=last, b=last - 1) == ()  # a whole one, as where what lay beside it was damaged
    assert found(ToldRow.of(batches, A), a=last) == ()
    assert found(a=last, b=last + 1) == everything
    assert found(replace(TOLD, plan="5" * 64, round_number=2)) == everything
    other = ToldRow.of(replace(batches, plan="4" * 64), A)
    assert found(other) == tuple(sorted((*everything, "4" * 64)))


def test_a_copy_must_be_shown_to_be_of_the_lost_ledger(older: Ledger) -> None:
    """With another record key this site looks changed to all, and another's change passes."""
    answers = [told(B, TOLD)]
    stranger = replace(PART, version=Version("0" * 64, "f" * 64))
    assert not is_shown(older, answers, {}, False)
    assert not is_shown(older, answers, {PLAN: stranger}, False)
    assert is_shown(older, answers, {}, True)
    assert is_shown(older, answers, {PLAN: PART}, False)
    assert is_shown(older, [told(B)], {}, False)  # nothing was ever put in
    older.add_row(ROW)
    assert is_shown(older, answers, {}, False)


# -- the new file --------------------------------------------------------------------------


@pytest.fixture
def lost(tmp_path: Path) -> dict[str, Any]:
    """What `Ledger.rebuild` is given, of a ledger that is gone."""
    path = tmp_path / "lost"
    with Ledger.create(path) as ledger:
        ledger.approve(Approval(PLAN, ROSTER, "6" * 64, 5, ()))
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes() + b'{"cut')
    path.unlink()
    older, lines = Ledger.prefix(copy)
    recovered = Recovered(1000, older.head.length, "ab", {B: 7, C: 0}, ("4" * 64,), "2026-11-28")
    older.close()
    return {
        "path": path,
        "lines": lines,
        "recovered": recovered,
        "rows": [replace(ROW, content="", recovered=True)],
        "results": [RESULT],
        "peers": {B: (Head(3, "e" * 64), b"signed")},
        "chains": {B: (B,)},
        "last": lambda: None,
    }


def test_a_rebuilt_ledger_goes_on_beyond_the_lost_lines(lost: dict[str, Any]) -> None:
    path: Path = lost["path"]
    Ledger.rebuild(**lost).close()
    with Ledger.open(path) as ledger:
        assert ledger.head.length == 1000 + 3
        assert ledger.rows == lost["rows"]
        assert ledger.results(PLAN) == {RESULT.result}
        assert ledger.receipts == {}  # what this site signed for is not known
        assert (ledger.peers, ledger.chains) == (lost["peers"], lost["chains"])
        assert ledger.ended == {"4" * 64}
        # The lost lines can hold a later one, with less consent.
        assert ledger.approvals == {}
        assert ledger.past_approvals.keys() == {PLAN}
        second = Head(2, list(ledger._digests.values())[1])
        assert ledger.holds(second)
        assert not ledger.holds(Head(3, second.digest))
        # What B told of is known to be lost; a later one is another copy's.
        assert [ledger.was_lost(Head(line, "f" * 64), B) for line in (2, 3, 7, 8)] == [
            *(False, True, True, False)
        ]
        assert not ledger.was_lost(Head(3, "f" * 64), C)
        assert not ledger.was_lost(Head(3, "f" * 64), D)
        ledger.add_receipt(RESULT._replace(round_number=2))
        assert ledger.head.length == 1004
    with Ledger.prefix(path)[0] as again:  # of a copy that was rebuilt itself
        (unseen,) = rebuilt(again, [told(B)], {}, 1).rows
        assert (unseen.phase, unseen.curve) == (LOST, (4.0, 8.0))  # of 5 rounds, by the approval
    with Ledger.open(path) as ledger:
        ledger.approve(replace(again.past_approvals[PLAN], rounds=6))
        assert [one.rounds for one in ledger.approvals.values()] == [6]
        assert ledger.past_approvals == ledger.approvals
    data = path.read_bytes()
    for line in (2, 0):
        moved = data.replace(b'"line":1000', f'"line":{line}'.encode())
        path.write_bytes(moved)
        with pytest.raises(LedgerError, match="line 3 does not follow"):
            Ledger.open(path)


def test_nothing_is_there_before_the_question_is_gone(lost: dict[str, Any]) -> None:
    path: Path = lost["path"]

    def last() -> None:
        assert place_beside(path).exists()
        assert not path.exists()
        raise LedgerError("not now")

    with pytest.raises(LedgerError, match="not now"):
        Ledger.rebuild(**lost | {"last": last})
    assert sorted(one.name for one in path.parent.iterdir()) == ["copy", "lost.peers"]
    Ledger.rebuild(**lost).close()
    beside = place_beside(path).read_bytes()
    with pytest.raises(LedgerError, match="expected no ledger yet"):
        Ledger.rebuild(**lost)
    assert place_beside(path).read_bytes() == beside


def test_a_row_of_an_earlier_version_is_read() -> None:
    old = replace(ROW, roster="", recovered=False)
    line = entries.of_row(old, "x")
    del line["roster"], line["recovered"]
    assert entries.to_row(line, {"x": RECORDS}) == old
