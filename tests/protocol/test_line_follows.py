"""Rosters that follow each other: what a site writes before it joins, and when it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError
from fedshield.ledger.entries import Recovered
from fedshield.ledger.file import Ledger
from fedshield.ledger.history import History, Statement, goes, in_order
from fedshield.ledger.rows import Version, record_hash
from fedshield.ledger.rules import Approval
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.line import Line, Records, roster_digest, tallies
from fedshield.protocol.roster import Roster

#: Who was there from the beginning, and who comes.
FOUR, COMES = ("bank", "clinic", "hospital", "lab"), "ward"
KEYS = {site: SigningKey() for site in (*FOUR, COMES)}
IDS = {site: key.public.hex() for site, key in KEYS.items()}
START = "5" * 64


def roster_of(
    names: Sequence[str], before: Sequence[Sequence[str]] = (), *exposed: str, unit: str = "none"
) -> tuple[Roster, Plan]:
    """A countersigned roster of these sites that follows the ones `before`, and a plan for it."""
    sites = {site: {"source": "sample:finance"} for site in names}
    raw: dict[str, Any] = {"name": "-".join(names), "rounds": 2, "data": {"sites": sites}}
    if unit == "example":
        raw["privacy"] = {"unit": "example", "epsilon": 8.0, "delta": 1e-5}
        raw["scheme"] = {"name": "rlwe"}
    plan = parse_plan(raw, base_dir=Path())
    lineage = History(
        tuple(in_order([[IDS[site] for site in cut]]) for cut in before),
        {len(before) - 1: frozenset(IDS[site] for site in exposed)},
        names={IDS[site]: site for cut in before for site in cut},
    )
    keys = {site: KEYS[site].public for site in names}
    chains = {site: (key,) for site, key in keys.items()}
    charter = f"{names}{before}".encode().ljust(32)[:32]
    made = Roster(*(keys, bytes(32), plan.rules(), False, charter, chains), lineage=lineage)
    return made, plan


class Site:
    """A site's ledger; its line under any roster."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.path = name, folder / f"{name}.jsonl"
        self.ledger = Ledger.create(self.path)
        hashes = frozenset({record_hash(self.ledger.record_key, b"record")})
        self.records = Records(hashes, 40, b"s" * 32, b"r" * 32)

    def line(self, made: tuple[Roster, Plan], *, approved: bool = True) -> Line:
        roster, plan = made
        if approved:
            about = (roster_digest(roster), "0" * 64, plan.rounds, tallies(plan))
            self.ledger.approve(Approval(plan.sha256(), *about, exposed=True))
        return Line(self.ledger, self.name, plan, roster, "run", self.records)

    def enter(self, line: Line, names: Sequence[str]) -> None:
        versions = {site: Version(site, site) for site in names} | {self.name: line.version}
        line.enter(ROUND, 1, START, "c" * 64, versions, 1, START, None)

    def lines(self) -> list[str]:
        return [line for line in self.path.read_text().splitlines() if '"entered"' in line]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[dict[str, Site]]:
    made = {name: Site(tmp_path, name) for name in KEYS}
    yield made
    for one in made.values():
        one.ledger.close()


def summed(sites: dict[str, Site], names: Sequence[str], made: tuple[Roster, Plan]) -> None:
    """All join, see that a quorum goes on, and enter round 1."""
    lines = {name: sites[name].line(made) for name in names}
    places = {name: line.follow() for name, line in lines.items()}
    for name, line in lines.items():
        line.check_followed(places)
        sites[name].enter(line, names)


def refused(line: Line, *args: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        line.check_followed(*args) if args else line.follow()
    assert caught.value.code == "rule"
    assert "\n" not in str(caught.value)
    return str(caught.value)


FIRST = roster_of(FOUR)
MORE = roster_of((*FOUR, COMES), [FOUR], COMES)
LESS = roster_of(FOUR[:3], [FOUR], "lab")


def test_a_site_writes_once_under_which_roster_its_records_go_on(sites: dict[str, Site]) -> None:
    bank = sites["bank"]
    assert bank.line(FIRST).follow() == 0
    assert len(bank.lines()) == 1
    assert bank.line(FIRST).follow() == 0
    assert len(bank.lines()) == 1
    # It is in the file before the join leaves.
    with Ledger.open(bank.path, look_only=True) as read:
        assert read.entered == bank.ledger.entered
    bank.enter(bank.line(FIRST), FOUR)
    assert bank.line(MORE).follow() == 0
    assert [len(one.cuts) for one in bank.ledger.entered] == [1, 2]


def test_nothing_is_written_for_a_plan_that_is_not_approved(sites: dict[str, Site]) -> None:
    before = sites["bank"].path.read_bytes()
    assert "R8: expected an approval" in refused(sites["bank"].line(FIRST, approved=False))
    assert sites["bank"].path.read_bytes() == before


def test_nothing_is_written_for_a_roster_that_the_rules_refuse(sites: dict[str, Site]) -> None:
    summed(sites, FOUR, FIRST)
    bare = roster_of(FOUR[:3], [FOUR])
    line = sites["bank"].line(bare)
    before = sites["bank"].path.read_bytes()
    assert "R1: expected every site to be in the same sums as 2 others" in refused(line)
    assert sites["bank"].path.read_bytes() == before


def test_a_demonstration_writes_none(sites: dict[str, Site]) -> None:
    roster, plan = FIRST
    line = sites["bank"].line((replace(roster, demo=True, charter=b"", chains={}), plan))
    assert line.follow() == 0
    assert sites["bank"].lines() == []


def test_who_goes_on_sees_a_quorum_of_those_before(sites: dict[str, Site]) -> None:
    summed(sites, FOUR, FIRST)
    line = sites["bank"].line(MORE)
    assert line.follow() == 0
    # Sites whose ledgers went on elsewhere count there.
    few = {"bank": 0, "clinic": 0, "hospital": 1, "lab": 1, COMES: 1}
    said = refused(line, few)
    assert "R1: expected at least 3 of the 4 sites of the roster before to go on" in said
    assert "got 2: have more of them in one session" in said
    assert sites["bank"].ledger.entered[-1].asked_from is None
    line.check_followed(few | {"hospital": 0})
    # It is seen once for ever.
    assert sites["bank"].ledger.entered[-1].asked_from == 0
    count = len(sites["bank"].lines())
    line.check_followed({"bank": 0})
    assert len(sites["bank"].lines()) == count


def test_who_was_in_no_sum_asks_for_no_quorum(sites: dict[str, Site]) -> None:
    line = sites[COMES].line(MORE)
    assert line.follow() == 0
    line.check_followed({COMES: 0})


def test_a_ledger_goes_on_under_one_roster_for_ever(sites: dict[str, Site]) -> None:
    summed(sites, FOUR, FIRST)
    bank = sites["bank"]
    bank.line(MORE).follow()
    # No sum was made under it, and still: others may have counted this site.
    said = refused(bank.line(LESS))
    assert "R1: expected a roster that follows the 2 different ones that these records" in said
    # A roster that follows that one is the way on.
    everyone = (*FOUR, COMES)
    assert bank.line(roster_of(FOUR[:3], [FOUR, everyone], COMES, "lab")).follow() == 0
    # And the old one is of the past.
    assert "follows the 2 different ones" in refused(bank.line(FIRST))


def test_what_a_rebuilt_ledger_was_bound_to_counts_for_nothing(sites: dict[str, Site]) -> None:
    """It may have gone on under another roster, of which it does not know any more."""
    summed(sites, FOUR, FIRST)
    bank = sites["bank"]
    place = bank.path.with_name("rebuilt.jsonl")
    lines, after = bank.path.read_bytes(), len(bank.path.read_text().splitlines())
    recovered = Recovered(after + 2**20, after, "0" * 32, {}, (), "2026-01-01")
    bank.ledger.close()
    bank.ledger = Ledger.rebuild(place, lines, recovered, (), (), {}, {}, lambda: None)
    assert bank.ledger.entered
    for _ in range(2):
        assert bank.line(MORE).follow() == 2
    # It asks for a quorum all the same.
    assert "got 2" in refused(bank.line(MORE), {"bank": 2, "clinic": 0, "lab": 0})


def test_records_of_one_line_go_on_together(sites: dict[str, Site]) -> None:
    """A plan that reads other records besides is on the line, and so are they from then on."""
    bank = sites["bank"]
    first, other = bank.records, frozenset({record_hash(bank.ledger.record_key, b"other")})
    bank.records = replace(first, hashes=first.hashes | other)
    summed(sites, FOUR, FIRST)
    bank.line(MORE).follow()
    bank.records = replace(first, hashes=other)
    assert "follows the 2 different ones" in refused(bank.line(LESS))
    # Records that were never with them are free; the site counts once all the same.
    new = frozenset({record_hash(bank.ledger.record_key, b"new")})
    bank.records = replace(first, hashes=new)
    assert bank.line(LESS).follow() == 1


def test_a_row_of_unknown_records_is_of_every_line(sites: dict[str, Site]) -> None:
    """A rebuilt ledger may hold one: then all that went on under rosters counts for all records."""
    bank = sites["bank"]
    bank.line(MORE).follow()
    new = frozenset({record_hash(bank.ledger.record_key, b"new")})
    bank.records = replace(bank.records, hashes=new)
    assert bank.line(LESS).entered() == ()
    names = (*FOUR, COMES)
    lost = bank.line(MORE)._request(ROUND, 1, "", "", dict.fromkeys(names, lost_version()), 1, None)
    bank.ledger.rows.append(replace(lost, recovered=True, records=frozenset()))
    assert len(bank.line(LESS).entered()) == 1


def lost_version() -> Version:
    return Version("a", "b")


def test_c_is_the_largest_of_the_line(sites: dict[str, Site]) -> None:
    summed(sites, FOUR, FIRST)
    bank = sites["bank"]
    line = bank.line(MORE)
    line.follow()
    assert line._colluding(line.rows()) == 1
    bank.ledger.rows.append(replace(bank.ledger.rows[-1], colluding=2))
    assert "expected at least 4 of the 4 sites" in refused(
        line, {"bank": 0, "clinic": 0, "lab": 0, "hospital": 1}
    )


def test_an_approval_is_for_the_roster_too(sites: dict[str, Site]) -> None:
    bank = sites["bank"]
    _, plan = FIRST
    bank.line(FIRST)
    other = (replace(FIRST[0], charter=b"x" * 32), plan)
    assert "R8: expected the roster that the plan was approved under" in refused(
        bank.line(other, approved=False)
    )
    assert bank.lines() == []


def signing(
    made: tuple[Roster, Plan], *statements: Statement, bound: str = ""
) -> tuple[Roster, Plan]:
    """With what sites signed of its first step; `bound`: who says that it goes there."""
    roster, plan = made
    lineage = replace(roster.lineage, statements={0: statements})
    if bound:
        lineage = replace(lineage, bound={0: frozenset({IDS[bound]})})
    return replace(roster, lineage=lineage), plan


def said(*keys: bytes, what: bytes = b"exposed") -> Statement:
    return Statement(keys, hashlib.sha256(b"".join(keys) + what).hexdigest())


OLD, NEW = KEYS["lab"].public, SigningKey().public
NOT_THE_LAST = "expected the keys of lab to begin with the 2"


def test_a_stolen_key_that_was_replaced_signs_for_no_new_step(sites: dict[str, Site]) -> None:
    """The roster that lab replaced its key in is left out; no cut tells. The ledgers know it."""
    bank = sites["bank"]
    bank.ledger.see_keys({"lab": (OLD, NEW)})
    summed(sites, FOUR, FIRST)
    with pytest.raises(ProtocolError, match=NOT_THE_LAST):
        bank.line(signing(LESS, said(OLD))).follow()
    assert len(bank.lines()) == 1
    assert bank.line(signing(LESS, said(OLD, NEW))).follow() == 0
    # The ledger took that; a signature by another key for the same step is looked at again.
    with pytest.raises(ProtocolError, match=NOT_THE_LAST):
        bank.line(signing(LESS, said(OLD))).follow()
    # What it took once it takes again, whatever keys came since.
    bank.ledger.see_keys({"lab": (OLD, NEW, SigningKey().public)})
    longer = (*FOUR[:3], COMES)
    roster, plan = signing(roster_of(longer, [FOUR, FOUR[:3]], "lab", COMES), said(OLD, NEW))
    signed = {0: frozenset({IDS["lab"]}), 1: frozenset({IDS[COMES]})}
    lineage = replace(roster.lineage, signed=signed)
    assert bank.line((replace(roster, lineage=lineage), plan)).follow() == 0


def test_a_stolen_key_says_no_more_than_what_was_taken_of_it(sites: dict[str, Site]) -> None:
    """The exposure that lab announced with a key was taken. The key is replaced and stolen, and the
    thief signs with it where lab goes: lab would count in two quorums."""
    bank = sites["bank"]
    summed(sites, FOUR, FIRST)
    few = {"bank": 0, "clinic": 0, "hospital": 1}
    line = bank.line(signing(LESS, said(OLD)))
    line.follow()
    assert "expected at least 3 of the 4" in refused(line, few)
    bank.ledger.see_keys({"lab": (OLD, NEW)})
    roster, plan = signing(LESS, said(OLD, what=b"goes there"), bound="lab")
    with pytest.raises(ProtocolError, match=NOT_THE_LAST):
        bank.line((replace(roster, charter=b"forged".ljust(32)), plan)).follow()


def test_what_other_records_were_asked_of_serves_none_that_were_there(
    sites: dict[str, Site],
) -> None:
    """A stolen key signs a step that fresh records were not there for, and nobody asks. Once that
    key is replaced it signs nothing for old ones."""
    summed(sites, FOUR, FIRST)
    bank = sites["bank"]
    bank.ledger.see_keys({"lab": (OLD,)})
    old, fresh = bank.records, frozenset({record_hash(bank.ledger.record_key, b"fresh")})
    bank.records = replace(old, hashes=fresh)
    assert bank.line(signing(LESS, said(OLD))).follow() == 0
    bank.ledger.see_keys({"lab": (OLD, NEW)})
    bank.records = old
    with pytest.raises(ProtocolError, match=NOT_THE_LAST):
        bank.line(signing(LESS, said(OLD))).follow()


def test_an_exposure_is_late_though_no_session_began(sites: dict[str, Site]) -> None:
    """The coordinator has the sites join, and lets no session begin: what was not signed then is
    not taken later."""
    summed(sites, FOUR, FIRST)
    bank, everyone = sites["bank"], (*FOUR, COMES)
    hidden = roster_of(everyone, [FOUR], COMES)
    assert bank.line(hidden).follow() == 0
    forged = roster_of(everyone, [FOUR], COMES, "lab")
    lineage = replace(forged[0].lineage, signed={0: frozenset({IDS[COMES], IDS["lab"]})})
    forged = replace(forged[0], lineage=lineage, charter=b"f" * 32), forged[1]
    assert "R1: expected no exposure of lab" in refused(bank.line(forged))


def test_who_went_signs_after_the_others_came(sites: dict[str, Site]) -> None:
    """Their policies expose it, and they are too few: it signs where it goes, as they are told."""
    summed(sites, FOUR, FIRST)
    bank, few = sites["bank"], {"bank": 0, "clinic": 0, "hospital": 1}
    roster, plan = roster_of(FOUR[:3], [FOUR])
    line = bank.line((roster.exposing(["lab"]), plan))
    assert line.follow() == 0
    assert "or have who went sign it" in refused(line, few)
    roster, plan = signing(LESS, said(OLD), bound="lab")
    line = bank.line((replace(roster, charter=b"2" * 32).exposing(["lab"]), plan))
    assert line.follow() == 0
    line.check_followed(few)


def test_who_signs_where_it_goes_comes_back(sites: dict[str, Site]) -> None:
    """Others sign for that step after it; it was in no sum after it."""
    summed(sites, FOUR, FIRST)
    lab, (gone, _) = sites["lab"], LESS
    before = replace(gone.history(), signed={})
    lab.ledger.add_entered(goes(lab.ledger.entered, lab.ledger.rows, before))
    summed(sites, FOUR[:3], LESS)
    again = roster_of(FOUR, [FOUR, FOUR[:3]], "lab")
    lineage = replace(again[0].lineage, signed={0: frozenset({IDS["lab"]})})
    again = replace(again[0], lineage=lineage), again[1]
    summed(sites, FOUR, again)
    # Who was in sums after a step takes no exposure of it that was not there then.
    late = {0: frozenset({IDS["lab"], IDS["clinic"]})}
    forged = replace(again[0], lineage=replace(lineage, signed=late)), again[1]
    assert "R1: expected no exposure of clinic" in refused(sites["bank"].line(forged))


def test_a_quorum_is_seen_anew_for_a_larger_c(sites: dict[str, Site]) -> None:
    summed(sites, FOUR, FIRST)
    bank = sites["bank"]
    line = bank.line(MORE)
    line.follow()
    line.check_followed({"bank": 0, "clinic": 0, "lab": 0, "hospital": 1})
    line.check_followed({"bank": 0})
    bank.ledger.rows.append(replace(bank.ledger.rows[-1], colluding=2))
    assert "expected at least 4 of the 4" in refused(line, {"bank": 0})
    line.check_followed(dict.fromkeys(FOUR, 0))
    line.check_followed({"bank": 0})
