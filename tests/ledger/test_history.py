"""Rosters that follow each other: who stays hidden over all of their sums (rule R1).

Stories are told twice, to sites with the rule and to sites without it; `span.isolated` is the
oracle of what the opened sums show. What an exposed site puts in is struck out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from span import isolated

from fedshield.ledger import rules
from fedshield.ledger.history import Cut, History, Past, atoms, named_in, short_atoms
from fedshield.ledger.rows import Consent, Membership, Row, Scale, Unit, Version

#: Who seven sites are.
SEVEN = tuple("1234567")
YES, NO = Consent(exposed=True), Consent()


@dataclass(frozen=True)
class Roster:
    """`follows`: what it lists of those before; `signed`, `named`: whose exposure it holds, and
    whom every policy exposes."""

    name: str
    cut: Cut
    follows: tuple[Roster, ...] = ()
    signed: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    consortium: str = "one"
    membership: Membership = "fixed"

    def history(self) -> History:
        return History(
            Past(self.name, self.cut if self.membership != "open" else ()),
            tuple(Past(one.name, one.cut) for one in self.follows),
            self.consortium,
            frozenset(self.signed),
            frozenset(self.named),
            {site: f"site-{site}" for site in SEVEN},
        )


def of(*cells: str) -> Cut:
    return tuple(tuple(cell) for cell in cells)


@dataclass
class Sites:
    """Honest sites' ledgers; the coordinator asks for sums. `c` sites may collude."""

    c: int = 1
    ledgers: dict[str, list[Row]] = field(default_factory=dict)
    opened: list[tuple[str, ...]] = field(default_factory=list)

    def ask(
        self,
        roster: Roster,
        cells: str = "",
        unit: Unit = "none",
        records: bytes = b"old",
        consent: Consent = YES,
    ) -> str:
        """One sum over all sites of the roster, or over those in `cells`; the first refusal. It is
        opened if nobody refuses, and in any case a row of those who did not."""
        sites = tuple(cells) or tuple(site for cell in roster.cut for site in cell)
        said = ""
        for site in sites:
            rows = [row for row in self.ledgers.get(site, []) if records in row.records]
            request = Row(
                plan=roster.name,
                run="run",
                phase="round",
                round_number=1,
                base="start",
                own=site,
                batch=(site,)
                if roster.membership == "open"
                else next(cell for cell in roster.cut if site in cell),
                sites=sites,
                colluding=self.c,
                membership=roster.membership
                if roster.membership == "open"
                else "batches"
                if len(roster.cut) > 1
                else "fixed",
                scale=Scale("equal", 0, 1),
                versions={one: Version(records.decode(), records.decode()) for one in sites},
                content=site,
                unit=unit,
                records=frozenset({records}),
                roster=roster.name,
                consortium=roster.consortium,
                exposed=tuple(sorted(roster.history().exposed(rows))),
            )
            refusal = rules.whole_batch(rows, request, consent, roster.history())
            if not refusal:
                self.ledgers.setdefault(site, []).append(request)
            said = said or refusal
        if not said:
            self.opened.append(sites)
        return said

    def alone(self, known: Collection[str] = ()) -> str | None:
        rows = [{(site, ""): 1 for site in sites if site not in known} for sites in self.opened]
        return isolated([row for row in rows if row])


@pytest.fixture
def without_the_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    with monkeypatch.context() as patch:
        patch.setattr(rules, "_together", lambda *_: "")
        yield Sites()


FOUR = Roster("four", of("1234"))
LEFT = Roster("left", of("123"), (FOUR,))
BATCHES = Roster("batches", of("123", "456"))
ALL = Roster("all", of("1234567"), (BATCHES,))
STORIES: dict[str, tuple[list[tuple[Roster, str]], str]] = {
    "one leaves": ([(FOUR, ""), (LEFT, "")], "4"),
    "one joins": ([(LEFT, ""), (replace(FOUR, follows=(LEFT,)), "")], "4"),
    # Any two of these three sums differ by three sites or four, at every ledger.
    "two batches, then all": ([(BATCHES, "123"), (BATCHES, "456"), (ALL, "")], "7"),
    "one leaves, one joins": (
        [(Roster("a", of("1234")), ""), (Roster("b", of("1235"), (Roster("a", of("1234")),)), "")],
        "",
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_each_story_ends_in_a_refusal_and_succeeds_without_the_rule(
    story: str, without_the_rule: Sites
) -> None:
    sums, alone = STORIES[story]
    for roster, cells in sums:
        assert without_the_rule.ask(roster, cells) == ""
    if alone:
        assert without_the_rule.alone() == alone


@pytest.mark.parametrize("story", STORIES)
def test_each_story_is_refused_at_its_last_sum(story: str) -> None:
    sites, (sums, _) = Sites(), STORIES[story]
    for roster, cells in sums[:-1]:
        assert sites.ask(roster, cells) == ""
    said = sites.ask(*sums[-1])
    assert "expected every site to be in the same sums as 2 others (c + 1)" in said
    assert "\n" not in said
    assert sites.alone() is None


def test_the_reason_names_who_would_be_seen() -> None:
    sites = Sites()
    sites.ask(FOUR)
    assert "got fewer for site-4:" in sites.ask(LEFT)


def test_any_two_of_three_sums_show_nobody_and_all_three_do() -> None:
    """So a rule for pairs of sets, or of rosters, is not enough."""
    sums = [tuple("123"), tuple("456"), SEVEN]
    for left_out in range(3):
        pair = [one for at, one in enumerate(sums) if at != left_out]
        assert Sites(opened=pair).alone() is None
    assert Sites(opened=sums).alone() == "7"


def test_c_plus_2_may_leave_or_join_together() -> None:
    seven, four = Roster("7", of("1234567")), Roster("4", of("1234"))
    sites = Sites()
    assert sites.ask(seven) == ""
    assert sites.ask(replace(four, follows=(seven,))) == ""
    assert sites.alone() is None
    others = Sites()
    assert others.ask(four) == ""
    assert others.ask(replace(seven, follows=(four,))) == ""
    assert others.alone() is None
    # With c = 2 three are not enough.
    more = Sites(c=2)
    assert more.ask(four) == ""
    assert "c + 1" in more.ask(replace(seven, follows=(four,)))


def test_who_signed_may_leave_and_is_known_to_all() -> None:
    sites = Sites()
    assert sites.ask(FOUR) == ""
    assert sites.ask(replace(LEFT, signed=("4",))) == ""
    assert sites.alone() == "4"
    assert sites.alone(known=("4",)) is None


def test_who_joins_signed_and_says_so_for_each_plan() -> None:
    sites = Sites()
    sites.ask(LEFT)
    joined = replace(FOUR, follows=(LEFT,), signed=("4",))
    assert "expected this site's consent" in sites.ask(joined, consent=NO)
    assert sites.ask(joined) == ""
    assert sites.alone(known=("4",)) is None


def test_exposures_do_not_make_those_who_stay_too_few() -> None:
    """Four sites, two of whom are exposed: the other two are not three."""
    sites = Sites()
    sites.ask(FOUR)
    five = Roster("five", of("12345"), (FOUR,), signed=("4", "5"))
    assert sites.ask(five) == ""
    assert "got fewer for site-1, site-2:" in sites.ask(
        replace(five, name="less", follows=(FOUR, five), signed=("3", "4", "5"))
    )


def test_who_was_exposed_once_stays_so() -> None:
    """Whatever later rosters and policies say: else one after the other could be struck out."""
    sites = Sites()
    assert sites.ask(replace(FOUR, named=("1",))) == ""
    again = replace(FOUR, name="again", follows=(FOUR,))
    assert "got fewer for site-3, site-4:" in sites.ask(replace(again, named=("2",)))
    assert sites.ask(again) == ""
    assert all("1" in rows[-1].exposed for rows in sites.ledgers.values())


def test_who_comes_back_needs_no_second_signature() -> None:
    sites = Sites()
    sites.ask(FOUR)
    left = replace(LEFT, signed=("4",))
    assert sites.ask(left) == ""
    back = Roster("back", of("1234"), (FOUR, left), signed=("4",))
    assert sites.ask(back) == ""
    assert sites.alone(known=("4",)) is None


def test_policies_expose_only_where_all_of_them_do() -> None:
    sites = Sites()
    sites.ask(FOUR)
    assert "got fewer for site-4" in sites.ask(LEFT)
    assert sites.ask(replace(LEFT, named=("4",))) == ""
    assert named_in(LEFT.history(), ["site-4", "unknown"]).named == {"4"}


def test_a_roster_that_is_left_out_is_missed_by_who_was_in_its_sums() -> None:
    """The coordinator lists the first roster as if the second had never been."""
    sites = Sites()
    first = Roster("first", of("1234567"))
    second = Roster("second", of("1234"), (first,))
    assert sites.ask(first) == ""
    assert sites.ask(second) == ""
    third = Roster("third", of("1237", "456"), (first,))
    said = sites.ask(third)
    assert "or a roster that lists it among those it follows" in said
    assert sites.alone() is None


def test_a_listed_roster_has_the_batches_that_its_rows_were_over() -> None:
    sites = Sites()
    sites.ask(FOUR)
    forged = Roster("four", of("123"))
    assert "got one that differs by 1 sites" in sites.ask(replace(LEFT, follows=(forged,)))
    # Whole batches together are no lie: such is a sum of a scheme that knows no batches.
    whole = Sites()
    assert whole.ask(Roster("six", of("123456"))) == ""
    cut = Roster("cut", of("123", "456"), (Roster("six", of("123", "456")),))
    assert whole.ask(cut, "123") == ""
    assert whole.alone() is None


def test_an_exposure_of_another_consortium_counts_for_nothing() -> None:
    sites = Sites()
    sites.ask(FOUR)
    said = sites.ask(replace(LEFT, signed=("4",), consortium="two"))
    assert "got fewer for site-4" in said


def test_records_that_were_in_no_sum_begin_anew() -> None:
    """At all sites: and the roster's past does not bear on them later either."""
    sites = Sites()
    sites.ask(FOUR)
    assert sites.ask(LEFT, records=b"new") == ""
    again = Roster("again", of("123"), (FOUR, LEFT))
    assert sites.ask(again, records=b"new") == ""
    assert "got fewer for site-4" in sites.ask(again)
    # One roster on, what changes then counts.
    less = Roster("less", of("12"), (FOUR, LEFT, again))
    assert "at least 3 sites" in sites.ask(less, records=b"new")


def test_one_site_with_new_records_does_not_free_the_others() -> None:
    sites = Sites()
    sites.ask(LEFT)
    joined = replace(FOUR, follows=(LEFT,))
    # The one that joins has no row; the others have.
    assert "got fewer for site-4" in sites.ask(joined)
    assert len(sites.ledgers["4"]) == 1
    assert sites.alone() is None


def test_where_each_row_is_protected_others_may_be_summed() -> None:
    sites = Sites()
    assert sites.ask(FOUR, unit="example") == ""
    assert sites.ask(LEFT, unit="example") == ""
    # A later sum that is not is refused.
    assert "got fewer for site-4" in sites.ask(Roster("b", of("123"), (FOUR, LEFT)))
    bare = Sites()
    bare.ask(FOUR)
    assert "got fewer for site-4" in bare.ask(LEFT, unit="example")
    # What hides a whole site in a sum hides none that is taken out of it.
    whole = Sites()
    whole.ask(FOUR, unit="site")
    assert "got fewer for site-4" in whole.ask(LEFT, unit="site")


def test_a_roster_made_anew_with_the_same_batch_is_no_change() -> None:
    sites = Sites()
    sites.ask(FOUR)
    assert sites.ask(replace(FOUR, name="anew", consortium="anew")) == ""
    # What it follows then counts from its beginning, and nobody's signature does.
    left = Roster("left", of("123"), (replace(FOUR, name="anew"),), ("4",), consortium="anew")
    assert "or a roster that lists it" in sites.ask(left)


def test_atoms_of_cuts_where_some_are_in_none() -> None:
    assert atoms([]) == ()
    cuts: Sequence[Cut] = [of("12", "34"), of(), of("1345")]
    assert atoms(cuts) == (("1",), ("2",), ("3", "4"), ("5",))
    assert short_atoms(cuts, (), 0) == (("1",), ("2",), ("5",))
    assert short_atoms(cuts, "125", 0) == ()
    assert short_atoms(cuts, "1235", 0) == (("4",),)
