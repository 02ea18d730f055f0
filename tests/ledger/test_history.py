"""Rosters that follow each other: who stays hidden over all of their sums (rule R1).

Stories are told twice, to sites with the rule and to sites without it; `span.isolated` is the
oracle of what the opened sums show. What an exposed site puts in is struck out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from fedshield.ledger import rules
from fedshield.ledger.history import (
    Cut,
    Entered,
    History,
    atoms,
    chain,
    first_place,
    named_in,
    parting,
    seen_up_to,
    short_atoms,
    unsupported,
)
from fedshield.ledger.rows import (
    Consent,
    Membership,
    Row,
    Scale,
    Unit,
    Version,
)
from reference.span import isolated

#: Who seven sites are.
SEVEN = tuple("1234567")
YES, NO = Consent(exposed=True), Consent()


@dataclass(frozen=True)
class Roster:
    """`follows`: the rosters before it, the oldest first; `signed`, `named`: whose exposure it
    holds, and whom every policy exposes; `bound`: who signed that it goes to this one."""

    name: str
    cut: Cut
    follows: tuple[Roster, ...] = ()
    signed: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    membership: Membership = "fixed"

    def history(self) -> History:
        cuts, places = chain(
            one.cut if one.membership != "open" else () for one in (*self.follows, self)
        )
        signed: dict[int, frozenset[str]] = {}
        for roster, place in zip((*self.follows, self), places, strict=True):
            new = frozenset(roster.signed).difference(*signed.values())
            signed[place - 1] = signed.get(place - 1, frozenset()) | new
        return History(
            cuts,
            signed,
            {len(cuts) - 2: frozenset(self.bound)},
            named=frozenset(self.named),
            names={site: f"site-{site}" for site in SEVEN},
        )


def of(*cells: str) -> Cut:
    return tuple(tuple(cell) for cell in cells)


def entering(
    history: History, records: bytes, asked_from: int | None = None, colluding: int = 1
) -> Entered:
    about = (frozenset({records}), history.cuts, asked_from, history.names, history.open())
    return Entered(*about, colluding=colluding)


@dataclass
class Sites:
    """Honest sites' ledgers; the coordinator asks for sums. `c` sites may collude: those in
    `liars` say that they follow from the beginning, and refuse nothing."""

    c: int = 1
    liars: str = ""
    ledgers: dict[str, list[Row]] = field(default_factory=dict)
    entered: dict[str, list[Entered]] = field(default_factory=dict)
    opened: list[tuple[str, ...]] = field(default_factory=list)

    def ask(
        self,
        roster: Roster,
        cells: str = "",
        unit: Unit = "none",
        records: bytes = b"old",
        consent: Consent = YES,
        session: str = "",
    ) -> str:
        """One sum over all sites of the roster, or over those in `cells`; the first refusal. It is
        opened if nobody refuses, and in any case a row of those who did not. `session`: who joined,
        those of the sum if left out."""
        history, said = roster.history(), ""
        sites = tuple(cells) or tuple(site for cell in roster.cut for site in cell)
        places: dict[str, int] = {}
        asked: dict[str, int] = {}
        for site in session or sites:
            if site in self.liars:
                places[site] = 0
                continue
            rows, entered = self._known(site, records)
            refusal = rules.whole_batch(
                rows, self._row(roster, sites, site, unit, records), consent, history, entered
            )
            said = said or refusal
            if not refusal:
                one = entering(history, records)
                self.entered.setdefault(site, []).append(one)
                places[site] = parting(self.entered[site], history.cuts)
        for site in places:
            rows, entered = self._known(site, records)
            bare = {row.unit for row in rows} | {unit} != {"example"}
            if site in self.liars or not bare:
                continue
            first = first_place(rows, entered, history.cuts)
            seen = seen_up_to(entered, first, self.c)
            asked[site] = first
            missing = unsupported(history, first, places, self.c, seen)
            said = said or rules.followed(history, missing)
        if said:
            return said
        for site in places:
            one = entering(history, records, asked.get(site, 0), self.c)
            self.entered.setdefault(site, []).append(one)
        for site in sites:
            row = self._row(roster, sites, site, unit, records)
            self.ledgers.setdefault(site, []).append(row)
        self.opened.append(sites)
        return ""

    def _known(self, site: str, records: bytes) -> tuple[list[Row], list[Entered]]:
        rows, entered = self.ledgers.get(site, []), self.entered.get(site, [])
        return (
            [row for row in rows if records in row.records],
            [one for one in entered if records in one.records],
        )

    def _row(
        self, roster: Roster, sites: tuple[str, ...], site: str, unit: Unit, records: bytes
    ) -> Row:
        return Row(
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
        )

    def alone(self, known: Collection[str] = ()) -> str | None:
        rows = [{(site, ""): 1 for site in sites if site not in known} for sites in self.opened]
        return isolated([row for row in rows if row])


@pytest.fixture
def without_the_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    with monkeypatch.context() as patch:
        patch.setattr(rules, "_together", lambda *_: "")
        patch.setattr(rules, "followed", lambda *_: "")
        yield Sites()


FOUR = Roster("four", of("1234"))
THREE = Roster("three", of("123"))
LEFT = Roster("left", of("123"), (FOUR,))
BATCHES = Roster("batches", of("123", "456"))
ALL = Roster("all", of("1234567"), (BATCHES,))
STORIES: dict[str, tuple[list[tuple[Roster, str]], str]] = {
    "one leaves": ([(FOUR, ""), (LEFT, "")], "4"),
    "one joins": ([(THREE, ""), (replace(FOUR, follows=(THREE,)), "")], "4"),
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
    ten, seven = Roster("10", of("0123456789")), of("1234567")
    sites = Sites()
    assert sites.ask(ten) == ""
    assert sites.ask(Roster("7", seven, (ten,))) == ""
    assert sites.alone() is None
    others = Sites()
    four = Roster("4", of("1234"))
    assert others.ask(four) == ""
    assert others.ask(Roster("7", seven, (four,))) == ""
    assert others.alone() is None
    # With c = 2 three are not enough.
    more = Sites(c=2)
    assert more.ask(four) == ""
    assert "c + 1" in more.ask(Roster("7", seven, (four,)))


LARGE = Roster("large", of("1234567"))
#: Both follow it, four and three go together, and 7 colludes.
FORKS = Roster("a", of("237"), (LARGE,)), Roster("b", of("4567"), (LARGE,))


def test_two_rosters_that_follow_one_leave_a_site_alone(without_the_rule: Sites) -> None:
    """So it is not enough that c + 2 go together: nobody knows of all three sums."""
    for roster in (LARGE, *FORKS):
        assert without_the_rule.ask(roster) == ""
    assert without_the_rule.alone() is None
    assert without_the_rule.alone(known="7") == "1"


def test_only_one_roster_can_follow_another() -> None:
    sites = Sites(liars="7")
    assert sites.ask(LARGE) == ""
    assert all("expected at least 5 of the 7 sites" in sites.ask(fork) for fork in FORKS)
    # Those who go sign, once each: a quorum then goes to the one, and to the other none can.
    assert sites.ask(replace(FORKS[1], bound=("3",))) == ""
    said = sites.ask(replace(FORKS[0], bound=("1", "7")))
    assert "expected at least 5 of the 7 sites of the roster before to go on under this one" in said
    assert sites.alone(known="7") is None


@pytest.mark.parametrize("quorum", [4, 5, 6])
def test_the_quorum_is_what_two_rosters_cannot_both_have(quorum: int) -> None:
    """Seven sites, one liar in both camps: with one site fewer than the quorum both go on."""
    sites = Sites(liars="7")
    assert sites.ask(LARGE) == ""
    one = Roster("one", of("1237"), (LARGE,), bound=tuple("456"[: quorum - 4]))
    said = sites.ask(one)
    assert (said == "") == (quorum >= 5)


def test_a_site_counts_once_whatever_records_it_uses() -> None:
    """Sites that went on elsewhere with other records count there. Else 3 to 6 are in the quorums
    of both."""
    sites = Sites(liars="7")
    assert sites.ask(LARGE) == ""
    wide = Roster("wide", of("12389", "4567"), (LARGE,), ("8", "9"))
    assert sites.ask(LARGE, records=b"new") == ""
    assert sites.ask(wide, records=b"new") == ""
    other = Roster("other", of("1237", "456"), (LARGE,))
    assert "expected at least 5 of the 7 sites" in sites.ask(other)
    assert "got 1" in sites.ask(other)


def test_a_fork_under_unit_example_counts_as_one() -> None:
    """There a site may be summed with anybody, and is still in one quorum only."""
    sites = Sites(liars="7")
    assert sites.ask(LARGE) == ""
    assert sites.ask(replace(FORKS[1], bound=("3",)), records=b"new", unit="example") == ""
    assert "got 2" in sites.ask(Roster("c", of("12456"), (LARGE,), signed=("3", "7")))


def test_a_quorum_that_other_records_saw_is_asked_again() -> None:
    """Records that were in no sum ask for none. Those that were do, also together with such."""
    sites = Sites(liars="7")
    assert sites.ask(LARGE) == ""
    assert sites.ask(replace(FORKS[0], bound=tuple("16"))) == ""
    other, old = FORKS[1], frozenset({b"old"})
    assert sites.ask(other, records=b"new") == ""
    for site in "456":
        # What was under the first roster, and what was not, are one line from now on.
        rows, entered = sites.ledgers[site], sites.entered[site]
        sites.ledgers[site] = [replace(row, records=old) for row in rows]
        sites.entered[site] = [one._replace(records=old) for one in entered]
    assert "expected at least 5 of the 7 sites" in sites.ask(other)


def test_an_exposure_that_comes_late_is_refused() -> None:
    """Who has a key that a site had then could sign it at any time."""
    sites = Sites()
    ten = Roster("ten", of("0123456789"))
    seven = Roster("seven", of("3456789"), (ten,))
    assert sites.ask(ten) == ""
    assert sites.ask(seven) == ""
    later = Roster("later", of("3456789x"), (ten, seven), signed=("x",)).history()
    late = replace(later, signed={0: frozenset("0"), 1: frozenset("x")})
    rows, entered = sites._known("5", b"old")
    eight = Roster("later", of("3456789x"), (ten, seven))
    request = sites._row(eight, tuple("3456789x"), "5", "none", b"old")
    assert rules.whole_batch(rows, request, YES, later, entered) == ""
    said = rules.whole_batch(rows, request, YES, late, entered)
    assert "expected no exposure of 0 for rosters that these records went on after" in said


def test_a_quorum_is_seen_once() -> None:
    """Later sessions may be without those who were it: with batches, for one."""
    cut = Roster("cut", of("123", "456"))
    wide = Roster("wide", of("123", "456", "789"), (cut,))
    sites = Sites()
    assert sites.ask(cut) == ""
    assert "got 3" in sites.ask(wide, "123")
    assert sites.ask(wide) == ""
    assert sites.ask(wide, "123") == ""
    assert sites.alone() is None


def test_a_site_that_was_away_for_a_roster_sees_that_a_quorum_went_on() -> None:
    first = Roster("first", of("0123456789"))
    second = Roster("second", of("12345678"), (first,), signed=("9", "0"))
    third = Roster("third", of("123456789"), (first, second), signed=("9", "0"))
    sites = Sites()
    for roster in (first, second, third):
        assert sites.ask(roster) == ""
    assert sites.alone(known="90") is None


def test_a_middle_roster_that_is_left_out_is_missed() -> None:
    """Without it no two sites would have been told apart."""
    first = Roster("first", of("0123456789"))
    second = Roster("second", of("1234567"), (first,))
    sites = Sites()
    assert sites.ask(first) == ""
    assert sites.ask(second) == ""
    for follows in ((first,), (second,), ()):
        said = sites.ask(Roster("third", of("123456789"), follows, signed=("8", "9")))
        assert "follows the" in said or "got one that differs" in said
    assert sites.alone() is None


def test_all_rosters_before_count_for_who_came_late() -> None:
    """Who joined the last roster knows none of the sums before, and judges them all the same."""
    one, two = Roster("one", of("4567")), Roster("two", of("1234567"), (Roster("one", of("4567")),))
    sites = Sites()
    assert sites.ask(one) == ""
    assert sites.ask(two) == ""
    assert "got fewer for" in sites.ask(Roster("three", of("237"), (one, two), bound=tuple("1456")))
    assert sites.alone(known="7") is None


def test_a_roster_made_anew_of_the_same_sites_is_no_change() -> None:
    sites = Sites()
    assert sites.ask(FOUR) == ""
    assert sites.ask(replace(FOUR, name="anew")) == ""
    assert sites.ask(replace(LEFT, signed=("4",))) == ""
    # One that leaves out what went before is one.
    assert "or a roster that lists it" in sites.ask(Roster("anew", of("123")))


def test_records_that_were_in_no_sum_begin_anew_under_a_first_roster() -> None:
    sites = Sites()
    assert sites.ask(FOUR) == ""
    assert "got fewer for site-4" in sites.ask(LEFT, records=b"new")
    assert sites.ask(Roster("first", of("123")), records=b"new") == ""


def test_policies_expose_only_where_all_of_them_do() -> None:
    sites = Sites()
    sites.ask(FOUR)
    assert "got fewer for site-4" in sites.ask(LEFT)
    assert sites.ask(replace(LEFT, named=("4",))) == ""
    assert named_in(LEFT.history(), ["site-4"]).named == {"4"}
    twice = replace(LEFT.history(), names={"1": "west", "2": "west", "3": "east"})
    for name in ("west", "north"):
        with pytest.raises(LookupError):
            named_in(twice, [name])
    assert named_in(replace(twice, names={"11": "west", "12": "west"}), ["west@12"]).named == {"12"}


def test_a_roster_cannot_change_whom_a_policy_exposes() -> None:
    """The policy exposes site-4; the coordinator's next roster calls another site so."""
    sites = Sites()
    assert sites.ask(FOUR) == ""
    history = replace(LEFT, named=("3",)).history()
    swapped = replace(history, names={**history.names, "3": "site-4", "4": "site-3"})
    rows, entered = sites._known("1", b"old")
    request = sites._row(LEFT, tuple("123"), "1", "none", b"old")
    said = rules.whole_batch(rows, request, YES, swapped, entered)
    assert "expected the site that was called site-3" in said
    assert "got site-4" in said


def test_a_row_was_over_whole_batches_of_a_listed_roster() -> None:
    sites = Sites()
    sites.ask(FOUR)
    sites.entered.clear()  # as a ledger of an earlier version, or a rebuilt one
    forged = Roster("four", of("123"))
    assert "got one that differs by 1 sites" in sites.ask(replace(LEFT, follows=(forged,)))
    assert sites.ask(replace(LEFT, signed=("4",))) == ""


def test_a_roster_with_membership_open_breaks_the_chain() -> None:
    sites = Sites()
    opened = Roster("open", of("1234"), (FOUR,), membership="open")
    assert sites.ask(FOUR) == ""
    said = sites.ask(Roster("again", of("1234"), (FOUR, opened)))
    assert "expected no roster with membership open" in said


def test_who_signed_may_leave_and_is_known_to_all() -> None:
    sites = Sites()
    assert sites.ask(FOUR) == ""
    assert sites.ask(replace(LEFT, signed=("4",))) == ""
    assert sites.alone() == "4"
    assert sites.alone(known=("4",)) is None


def test_who_joins_signed_and_says_so_for_each_plan() -> None:
    sites = Sites()
    sites.ask(THREE)
    joined = replace(FOUR, follows=(THREE,), signed=("4",))
    assert "expected this site's consent" in sites.ask(joined, consent=NO)
    assert sites.ask(joined) == ""
    assert sites.alone(known=("4",)) is None


def test_exposures_do_not_make_those_who_stay_too_few() -> None:
    """Four sites, two of whom are exposed: the other two are not three."""
    sites = Sites()
    sites.ask(FOUR)
    five = Roster("five", of("12345"), (FOUR,), signed=("4", "5"))
    assert sites.ask(replace(five, signed=("5",))) == ""
    others = Sites()
    others.ask(FOUR)
    assert "got fewer for site-1, site-2:" in others.ask(replace(five, named=("3",)))


def test_who_comes_back_needs_no_second_signature() -> None:
    sites = Sites()
    sites.ask(FOUR)
    left = replace(LEFT, signed=("4",))
    assert sites.ask(left) == ""
    back = Roster("back", of("1234"), (FOUR, left), signed=("4",))
    assert sites.ask(back) == ""
    assert sites.alone(known=("4",)) is None


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


def test_atoms_of_cuts_where_some_are_in_none() -> None:
    assert atoms([]) == ()
    cuts: Sequence[Cut] = [of("12", "34"), of(), of("1345")]
    assert atoms(cuts) == (("1",), ("2",), ("3", "4"), ("5",))
    assert short_atoms(cuts, (), 0) == (("1",), ("2",), ("5",))
    assert short_atoms(cuts, "125", 0) == ()
    assert short_atoms(cuts, "1235", 0) == (("4",),)
