"""A site that lost its key comes back as another one, with its ledger and its records. To the
others two sites changed, and they count it as one that hides whoever goes at the same step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.coming import exposure_of, following, joined, without
from fedshield.enrolment.exposure import Exposure
from fedshield.enrolment.files import RosterError
from fedshield.enrolment.lineage import Lineage
from fedshield.enrolment.terms import Asked
from fedshield.errors import ProtocolError
from fedshield.ledger import rules
from fedshield.ledger.file import Ledger
from fedshield.ledger.history import Entered, signed_late
from fedshield.ledger.rows import record_hash
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.line import Line, Records, roster_digest, tallies
from reference.span import isolated

NAMES = ("annex", "bank", "clinic", "hospital", "lab", "museum", "school", "ward")
START = "5" * 64
SAME, CHANGED = b"s" * 32, b"x" * 32


def signed(roster: SignedRoster, keys: dict[str, KeyFile]) -> SignedRoster:
    for name in roster.names():
        others = [other for other in roster.names() if other != name]
        roster = roster.countersigned(keys[name], others)
    return roster


class Consortium:
    """Sites with their keys and ledgers, c = 1; mole alone colludes, with the coordinator."""

    def __init__(self, folder: Path) -> None:
        self.keys = {name: KeyFile.make(name) for name in (*NAMES, "mole")}
        self.ledgers = {name: Ledger.create(folder / f"{name}.jsonl") for name in self.keys}
        cards = tuple(self.keys[name].card() for name in NAMES)
        first = SignedRoster(
            KeyFile.make("coordinator").card(), cards, Asked(max_colluding=1), lineage=Lineage()
        )
        self.roster = signed(first, self.keys)
        self.opened: list[dict[tuple[str, bytes], int]] = []
        #: Whose ledger is asked before the others'.
        self.asked_first = ""

    def lose_keys(self, roster: SignedRoster, *names: str) -> SignedRoster:
        for name in names:
            self.keys[name] = KeyFile.make(name)
            roster = roster.with_replacement(self.keys[name].card(), key_lost=True)
        return roster

    def replace_keys(self, roster: SignedRoster, *names: str) -> SignedRoster:
        for name in names:
            self.keys[name] = KeyFile.make(name, self.keys[name])
            roster = roster.with_replacement(self.keys[name].card())
        return roster

    def sum_under(
        self,
        roster: SignedRoster,
        contents: Callable[[str], bytes] = lambda _: SAME,
        exposes: Mapping[str, tuple[str, ...]] | None = None,
        records: bytes = b"record",
        more: bytes = b"",
    ) -> None:
        """Every honest site goes on under the roster and enters a sum, which is opened. `exposes`:
        what the policy of each says; `records`, `more`: which records enter."""
        following = signed(roster, self.keys)
        plan = self._plan(following, len(self.opened))
        lines = {}
        names = sorted(following.names(), key=lambda name: (name != self.asked_first, name))
        for name in names:
            known = following.to_roster().exposing((exposes or {}).get(name, ()))
            ledger = self.ledgers[name]
            about = (roster_digest(known), "0" * 64, plan.rounds, tallies(plan))
            ledger.approve(rules.Approval(plan.sha256(), *about, exposed=True))
            raw = [one for one in (records, more) if one]
            hashes = frozenset(record_hash(ledger.record_key, one) for one in raw)
            part = contents(name) if not more else b"m" * 32
            entering = Records(hashes, 40, part, part)
            lines[name] = Line(ledger, name, plan, known, "run", entering)
        honest = {name: line for name, line in lines.items() if name != "mole"}
        places = dict.fromkeys(lines, 0) | {name: line.follow() for name, line in honest.items()}
        versions = {name: line.version for name, line in lines.items()}
        for line in honest.values():
            line.check_followed(places)
        for line in honest.values():
            line.enter(ROUND, 1, START, "c" * 64, versions, 1, START, None)
        self.roster = following
        self.opened.append({(name, contents(name)): 1 for name in honest})

    def name_of(self, name: str) -> str:
        """A site by its key of today, as a policy names it."""
        return f"{name}@{self.keys[name].card().first_public().hex()[:16]}"

    def both_keys(self, name: str, before: SignedRoster) -> tuple[str, str]:
        """The same, with its key of the roster before."""
        old = before.card(name).first_public().hex()
        return f"{name}@{old[:16]}", self.name_of(name)

    def _plan(self, roster: SignedRoster, number: int) -> Plan:
        sites = {name: {"source": "sample:finance"} for name in roster.names()}
        scheme = {"name": "rlwe", "max_colluding": 1}
        raw = {"name": f"plan-{number}", "rounds": 2, "scheme": scheme, "data": {"sites": sites}}
        return parse_plan(raw, base_dir=Path())

    def close(self) -> None:
        for ledger in self.ledgers.values():
            ledger.close()


@pytest.fixture
def eight(tmp_path: Path) -> Iterator[Consortium]:
    consortium = Consortium(tmp_path)
    consortium.sum_under(consortium.roster)
    yield consortium
    consortium.close()


def annex_goes(eight: Consortium, *, lost: bool) -> SignedRoster:
    """At one step lab and school come with new keys, annex goes and mole comes: by first keys three
    go and three come. annex, who is told that it is hidden, signs where it goes."""
    before = eight.roster
    after = following(before)
    change = eight.lose_keys if lost else eight.replace_keys
    after = change(after, "lab", "school")
    after = joined(without(after, ["annex"]), [eight.keys["mole"].card()])
    if not lost:
        return after
    statement = exposure_of(before, after, eight.keys["annex"], bound=True)
    assert statement.kind == "leaving"
    return dataclasses.replace(after, lineage=after.lineage.with_exposures([statement]))


def test_without_the_rule_who_goes_with_lost_keys_is_seen(
    eight: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = annex_goes(eight, lost=True)
    monkeypatch.setattr(rules, "_lost_key", lambda *_: "")
    eight.sum_under(after)
    assert isolated(eight.opened) == "annex"


LOST = (
    r"R1: expected every key of (lab|school|ward) to count as exposed, since a site that lost its"
)


def test_a_site_that_lost_its_key_hides_nobody(eight: Consortium) -> None:
    """As every site sees it: those that stay refuse, and not only those that lost a key."""
    after = annex_goes(eight, lost=True)
    for site in ("bank", "lab"):
        eight.asked_first = site
        with pytest.raises(ProtocolError, match=LOST) as caught:
            eight.sum_under(after)
        assert re.search(r"expose (\w+)@[0-9a-f]{16} and \1@[0-9a-f]{16}, or", str(caught.value))
    assert isolated(eight.opened) is None


def test_policies_that_name_each_its_own_site_are_not_enough(eight: Consortium) -> None:
    """Each would discount itself, and count the others as two that hide annex."""
    before = eight.roster
    after = eight.lose_keys(following(before), "lab", "school", "ward")
    after = joined(without(after, ["annex"]), [eight.keys["mole"].card()])
    own = {name: eight.both_keys(name, before) for name in ("lab", "school", "ward")}
    with pytest.raises(ProtocolError, match=LOST):
        eight.sum_under(after, exposes=own)
    assert isolated(eight.opened) is None


def test_with_replaced_keys_the_others_see_who_goes_alone(eight: Consortium) -> None:
    with pytest.raises(ProtocolError, match=r"got fewer for (annex|mole)"):
        eight.sum_under(annex_goes(eight, lost=False))


def test_nobody_comes_and_two_sign_that_they_joined(eight: Consortium) -> None:
    """What they sign is that they are exposed as who they are today, and not as who they were."""
    before = eight.roster
    after = without(eight.lose_keys(following(before), "lab", "school"), ["annex"])
    statements: list[Exposure] = [
        exposure_of(before, after, eight.keys["annex"], bound=True),
        *(exposure_of(before, after, eight.keys[name]) for name in ("lab", "school")),
    ]
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures(statements))
    own = {name: eight.both_keys(name, before) for name in ("lab", "school")}
    for exposes in ({}, own):
        with pytest.raises(ProtocolError, match=LOST):
            eight.sum_under(after, exposes=exposes)


def changed_at_lab(name: str) -> bytes:
    return CHANGED if name == "lab" else SAME


def test_a_change_of_one_site_is_not_hidden_by_lost_keys(
    eight: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three come with new keys and nobody signs; lab's records changed and nobody else's. First
    without either rule."""
    after = eight.lose_keys(following(eight.roster), "lab", "school", "annex")
    with pytest.raises(ProtocolError, match="to count as exposed"):
        eight.sum_under(after, changed_at_lab)
    with monkeypatch.context() as patch:
        patch.setattr(rules, "_lost_key", lambda *_: "")
        with pytest.raises(ProtocolError, match="R3: expected this site's records as in"):
            eight.sum_under(after, changed_at_lab)
        patch.setattr(rules, "own_part", lambda *_: "")
        eight.sum_under(after, changed_at_lab)
    assert isolated(eight.opened) == "lab"


def for_all(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys((*NAMES, "mole"), names)


def test_who_lost_its_key_goes_on_where_all_expose_it(eight: Consortium) -> None:
    """One of eight: by subtraction its own part is nothing."""
    before = eight.roster
    after = eight.lose_keys(following(before), "lab")
    both = eight.both_keys("lab", before)
    with pytest.raises(ProtocolError, match="every key of lab to count as exposed"):
        eight.sum_under(after, exposes=for_all(both[1:]))
    eight.sum_under(after, exposes=for_all(both))
    assert isolated(eight.opened) is None


def test_a_key_that_was_lost_twice_is_exposed_three_times(eight: Consortium) -> None:
    before = eight.roster
    after = eight.lose_keys(following(before), "lab")
    first = eight.both_keys("lab", before)
    eight.sum_under(after, exposes=for_all(first))
    again = eight.roster
    after = eight.lose_keys(following(again), "lab")
    last = eight.both_keys("lab", again)[1]
    with pytest.raises(ProtocolError, match=r"expose lab@\w+ and lab@\w+ and lab@\w+, or"):
        eight.sum_under(after, exposes=for_all((first[0], last)))
    eight.sum_under(after, exposes=for_all((*first, last)))


def test_a_site_that_lost_its_key_keeps_its_name(eight: Consortium) -> None:
    """Under another the others would take it for another site."""
    after = without(following(eight.roster), ["lab"])
    eight.keys["newlab"], eight.ledgers["newlab"] = KeyFile.make("newlab"), eight.ledgers["lab"]
    after = joined(after, [eight.keys["newlab"].card()])
    lab = (eight.name_of("lab"), eight.name_of("newlab"))
    eight.asked_first = "newlab"
    with pytest.raises(ProtocolError, match="expected the name that this site had when its record"):
        eight.sum_under(after, exposes=for_all(lab) | {"newlab": lab})


def test_a_lost_key_is_asked_of_the_steps_that_it_went_on_after(eight: Consortium) -> None:
    """Three go hidden. Then somebody signs, with their keys of then, that they are exposed: a site
    that lost its key in between refuses that like the others, who know when it was signed."""
    first = eight.roster
    going = ("annex", "museum", "school")
    stay = without(following(first), going)
    eight.sum_under(stay)
    before = eight.roster
    after = eight.lose_keys(following(before), "lab")
    hidden = [exposure_of(first, stay, eight.keys[name], bound=True) for name in going]
    assert {one.kind for one in hidden} == {"leaving"}
    late = [
        Exposure.sign(
            eight.keys[name],
            "going",
            *(one.consortium, one.roster, one.before, one.after, one.following),
        )
        for name, one in zip(going, hidden, strict=True)
    ]
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures(late))
    known = signed(after, eight.keys).to_roster().exposing(eight.both_keys("lab", before))
    history, own = known.history(), eight.keys["lab"].card().first_public().hex()
    assert {history.names[site] for site in signed_late(entered(eight), history, own)} == {*going}
    eight.asked_first = "lab"
    with pytest.raises(ProtocolError, match="expected no exposure of annex, museum, school"):
        eight.sum_under(after, exposes=dict.fromkeys(NAMES, eight.both_keys("lab", before)))


def entered(eight: Consortium) -> tuple[Entered, ...]:
    return tuple(eight.ledgers["lab"].entered)


def test_who_left_and_lost_its_key_comes_back_by_its_name(eight: Consortium) -> None:
    first, old = eight.roster, eight.keys["lab"]
    after = without(following(first), ["lab"])
    statement = exposure_of(first, after, old)
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures([statement]))
    eight.sum_under(after)
    before = eight.roster
    eight.keys["lab"] = new = KeyFile.make("lab")
    with pytest.raises(RosterError, match="run roster join --key-lost"):
        joined(following(before), [new.card()])
    back = joined(following(before), [new.card()], key_lost=True)
    statement = exposure_of(before, back, new)
    back = dataclasses.replace(back, lineage=back.lineage.with_exposures([statement]))
    # Each of its keys is exposed by what it signed, when it left and now.
    eight.sum_under(back)
    assert isolated(eight.opened) == "lab"
    assert isolated(eight.opened, [("lab", SAME)]) is None


@pytest.mark.parametrize("replaced", [False, True])
def test_a_key_replaced_before_the_first_sum_stops_no_later_one(
    tmp_path: Path, replaced: bool
) -> None:
    """ward goes and comes back, each time with its signature, before any sum. Its two rosters have
    the same cut, and records that begin under the second were not there for the first."""
    five = Consortium(tmp_path)
    first = five.roster
    gone = without(following(first), ["ward"])
    statement = exposure_of(first, gone, five.keys["ward"])
    gone = dataclasses.replace(gone, lineage=gone.lineage.with_exposures([statement]))
    gone = signed(gone, five.keys)
    back = signed(joined(following(gone), [five.keys["ward"].card()]), five.keys)
    assert back.cut() == first.cut()
    if replaced:
        back = five.replace_keys(following(back), "ward")
    five.sum_under(back)
    five.sum_under(back)
    assert len(five.opened) == 2
    five.close()


def came_back(eight: Consortium) -> SignedRoster:
    """ward goes and comes back, each time with its signature, and replaces its key."""
    first = eight.roster
    gone = without(following(first), ["ward"])
    statement = exposure_of(first, gone, eight.keys["ward"])
    gone = dataclasses.replace(gone, lineage=gone.lineage.with_exposures([statement]))
    gone = signed(gone, eight.keys)
    back = joined(following(gone), [eight.keys["ward"].card()])
    statement = exposure_of(gone, back, eight.keys["ward"])
    back = dataclasses.replace(back, lineage=back.lineage.with_exposures([statement]))
    back = signed(back, eight.keys)
    return eight.replace_keys(following(back), "ward")


def test_records_that_are_added_to_do_not_bring_an_old_statement_up_again(tmp_path: Path) -> None:
    eight = Consortium(tmp_path)
    back = came_back(eight)
    eight.sum_under(back, records=b"one")
    eight.sum_under(back, records=b"one", more=b"two")
    eight.sum_under(back, records=b"one")
    eight.sum_under(back, records=b"one", more=b"two")
    assert len(eight.opened) == 4
    eight.close()
