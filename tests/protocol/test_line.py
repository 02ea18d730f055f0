"""What a site asks its ledger, signs of it, and compares of the others' ledgers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError
from fedshield.ledger import heads as ledger_heads
from fedshield.ledger.file import Head, Ledger
from fedshield.ledger.heads import MAX_LINES
from fedshield.ledger.rows import Version, record_hash
from fedshield.ledger.rules import MAX_TRIES, Approval
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.line import Line, Records, roster_digest, tallies
from fedshield.protocol.roster import Roster
from fedshield.protocol.statements import HEAD_LABEL
from fedshield.protocol.wire import codec
from fedshield.protocol.wire.envelope import Binding

SITES = ("bank", "clinic", "hospital")
#: The key of the first card, the one in between, and today's.
KEYS = {site: tuple(SigningKey() for _ in range(3)) for site in SITES}
PART = b"rows of today".ljust(32, b"\0")
START = "5" * 64


class Site:
    """A site's line of three records, with its plan approved."""

    def __init__(self, folder: Path, name: str, plan: Plan) -> None:
        self.name, self.plan, self.path = name, plan, folder / f"{name}.jsonl"
        self.ledger = Ledger.create(self.path)
        self.roster = roster_of(plan)
        self.identity = self.roster.identity(name)
        self.approve()
        self.line = self.with_part(PART)

    def approve(self) -> None:
        about = (roster_digest(self.roster), "0" * 64, self.plan.rounds, tallies(self.plan))
        self.ledger.approve(Approval(self.plan.sha256(), *about))

    def with_part(self, part: bytes) -> Line:
        hashes = {record_hash(self.ledger.record_key, bytes([k])) for k in range(3)}
        self.records = Records(frozenset(hashes), 40, part, part)
        return Line(self.ledger, self.name, self.plan, self.roster, "run", self.records)

    def enter(self, content: str = "c" * 64, line: Line | None = None, **changes: Any) -> None:
        mine = line or self.line
        others = {site: Version(site, site) for site in SITES if site != self.name}
        asked: dict[str, Any] = {
            "phase": ROUND,
            "round_number": 1,
            "base": START,
            "content": content,
            "versions": {**others, self.name: mine.version},
            "count": 1,
            "first": START,
            "terms": None,
        }
        mine.enter(**asked | changes)

    def signed(self, key: SigningKey | None = None) -> bytes:
        return self.line.heads.statement((key or KEYS[self.name][-1]).sign)


def roster_of(plan: Plan) -> Roster:
    chains = {site: tuple(key.public for key in keys) for site, keys in KEYS.items()}
    now = {site: chain[-1] for site, chain in chains.items()}
    return Roster(now, bytes(32), plan.rules(), demo=False, charter=b"c" * 32, chains=chains)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    sites = {site: {"source": "sample:finance"} for site in SITES}
    return parse_plan({"rounds": 2, "data": {"sites": sites}}, base_dir=tmp_path)


@pytest.fixture
def sites(tmp_path: Path, plan: Plan) -> Iterator[dict[str, Site]]:
    made = {name: Site(tmp_path, name, plan) for name in SITES}
    yield made
    for one in made.values():
        one.ledger.close()


def code_of(act: Any, *args: Any) -> tuple[str, str]:
    with pytest.raises(ProtocolError) as refused:
        act(*args)
    return refused.value.code, str(refused.value)


# -- heads ------------------------------------------------------------------------------------


def heads(sites: dict[str, Site]) -> dict[str, bytes]:
    return {name: one.signed() for name, one in sites.items()}


def told(sites: dict[str, Site]) -> dict[str, dict[str, bytes]]:
    return {name: one.line.heads.statements() for name, one in sites.items()}


def met(sites: dict[str, Site]) -> None:
    """A session begins: everyone compares what everyone says."""
    own, known = heads(sites), told(sites)
    for one in sites.values():
        one.line.heads.compare(own, known)


def test_ledgers_that_grow_are_in_order(sites: dict[str, Site]) -> None:
    met(sites)
    for one in sites.values():
        one.enter()
    met(sites)
    assert set(sites["bank"].line.heads.statements()) == {"clinic", "hospital"}


def test_a_restored_ledger_is_known_to_its_own_site_and_to_each_other(
    sites: dict[str, Site], tmp_path: Path, plan: Plan
) -> None:
    bank = sites["bank"]
    backup = bank.path.read_bytes()
    bank.enter()
    met(sites)
    bank.ledger.close()
    bank.path.write_bytes(backup)
    bank.ledger = Ledger.open(bank.path)
    bank.line = bank.with_part(PART)
    own, known = heads(sites), told(sites)
    code, why = code_of(bank.line.heads.compare, own, known)
    assert (code, "does not hold what it signed before" in why) == ("ledger", True)
    # The others see it by their own memory, also where nobody hands anything back.
    for name in ("clinic", "hospital"):
        code, why = code_of(sites[name].line.heads.compare, own, {site: {} for site in SITES})
        assert (code, "bank's ledger is not the one" in why) == ("ledger", True)
        assert code_of(sites[name].line.heads.see_all, {"bank": own["bank"]})[0] == "ledger"


@pytest.mark.parametrize("place", [0, 1], ids=["first key", "a key in between"])
def test_a_replaced_key_does_not_hide_a_restored_ledger(sites: dict[str, Site], place: int) -> None:
    """Whoever saw what the site signed with a key of its card's chain still remembers it."""
    bank, hospital = sites["bank"], sites["hospital"]
    backup = bank.path.read_bytes()
    bank.enter()
    before = bank.ledger.head
    hospital.ledger.see_peers({bank.identity: (before, bank.signed(KEYS["bank"][place]))})
    bank.ledger.close()
    bank.path.write_bytes(backup)
    bank.ledger = Ledger.open(bank.path)
    bank.line = bank.with_part(PART)
    code, why = code_of(hospital.line.heads.compare, heads(sites), told(sites))
    assert (code, "bank's ledger is not the one that it signed before" in why) == ("ledger", True)
    assert f"(line {before.length}, remembered by this site; now {before.length - 2})" in why


def head_of(key: SigningKey, length: int) -> bytes:
    """A head of this length that no ledger has, signed as `Line.statement` does."""
    digest = b"d" * 32
    signed = key.sign(codec.encode([HEAD_LABEL, length, digest]))
    return codec.encode([length, digest, signed])


@pytest.mark.parametrize("place", [0, 1], ids=["first key", "a key in between"])
@pytest.mark.parametrize("length", [3, 10**9])
def test_a_stolen_key_that_was_replaced_locks_nobody(
    sites: dict[str, Site], place: int, length: int
) -> None:
    """A colluder would hand back what it signed with that key for ever."""
    met(sites)
    handed = told(sites)
    handed["clinic"]["bank"] = head_of(KEYS["bank"][place], length)
    for one in sites.values():
        one.line.heads.compare(heads(sites), handed)
        one.line.heads.compare(heads(sites), told(sites))


def test_who_told_a_head_is_named(sites: dict[str, Site]) -> None:
    met(sites)
    handed = told(sites)
    handed["clinic"]["bank"] = head_of(KEYS["bank"][-1], 1000)
    code, why = code_of(sites["bank"].line.heads.compare, heads(sites), handed)
    assert (code, "(line 1000, remembered by clinic)" in why) == ("ledger", True)
    code, why = code_of(sites["hospital"].line.heads.compare, heads(sites), handed)
    assert (code, "(line 1000, remembered by clinic; now 2)" in why) == ("ledger", True)


@pytest.mark.parametrize("length", [MAX_LINES + 1, 2**62])
def test_a_head_that_no_ledger_reaches_counts_for_nothing(
    sites: dict[str, Site], length: int
) -> None:
    far = head_of(KEYS["bank"][-1], length)
    handed = {"clinic": {"bank": far}, "hospital": {}, "bank": {}}
    for one in sites.values():
        one.line.heads.compare(heads(sites), handed)
    code, why = code_of(sites["clinic"].line.heads.see_all, {"bank": far})
    assert (code, "bank did not sign its ledger's head" in why) == ("ledger", True)
    assert sites["clinic"].ledger.peers[sites["bank"].identity][0] == sites["bank"].ledger.head


def test_a_head_that_was_seen_is_forgotten_by_hand_only(sites: dict[str, Site]) -> None:
    """The thief came as the bank before the key was replaced. The bank with its new key is refused,
    until an operator forgets it; what that old key signed does not come back then."""
    bank, clinic = sites["bank"], sites["clinic"]
    far = head_of(KEYS["bank"][1], 10**6)
    clinic.ledger.see_peers({bank.identity: (Head(10**6, (b"d" * 32).hex()), far)})
    code, why = code_of(clinic.line.heads.compare, heads(sites), told(sites))
    assert (code, "line 1000000, remembered by this site" in why) == ("ledger", True)
    clinic.ledger.forget_peer(bank.identity, "today")
    handed = {"hospital": {"bank": far}, "clinic": {}, "bank": {}}
    clinic.line.heads.compare(heads(sites), handed)
    assert clinic.ledger.peers[bank.identity][0] == bank.ledger.head
    assert code_of(clinic.line.heads.see_all, {"bank": far})[0] == "ledger"


def test_two_ledgers_are_two_across_a_replaced_key(sites: dict[str, Site]) -> None:
    """What this site saw under the old key and what another was told under the new one."""
    bank, clinic = sites["bank"], sites["clinic"]
    bank.enter()
    clinic.ledger.see_peers({bank.identity: (Head(3, "e" * 64), b"signed by an old key")})
    handed = {"hospital": {"bank": head_of(KEYS["bank"][-1], 3)}, "clinic": {}, "bank": {}}
    code, why = code_of(clinic.line.heads.compare, heads(sites), handed)
    assert (code, "(line 3, remembered by this site and hospital)" in why) == ("ledger", True)


def test_a_head_is_told_under_the_key_that_came_last(sites: dict[str, Site]) -> None:
    """Though the ledger did not grow since the key was replaced."""
    bank, clinic = sites["bank"], sites["clinic"]
    clinic.ledger.see_peers({bank.identity: (bank.ledger.head, bank.signed(KEYS["bank"][1]))})
    clinic.line.heads.see_all({"bank": bank.signed()})
    assert clinic.line.heads.statements()["bank"] == bank.signed()


# -- keys -------------------------------------------------------------------------------------


def with_keys(site: Site, keys: dict[str, tuple[SigningKey, ...]]) -> Line:
    """The site's line under a roster in which sites have these keys."""
    chains = {name: tuple(key.public for key in some) for name, some in (KEYS | keys).items()}
    now = {name: chain[-1] for name, chain in chains.items()}
    roster = replace(site.roster, sites=now, chains=chains)
    return Line(site.ledger, site.name, site.plan, roster, "run", site.records)


@pytest.mark.parametrize("how", ["fork of the first", "fork of the second", "older"])
def test_keys_that_do_not_go_on_from_those_remembered_are_refused(
    sites: dict[str, Site], how: str
) -> None:
    """Whoever has an old key of the bank can sign a successor with it, and its first key is the
    bank's."""
    met(sites)
    first, second, last = KEYS["bank"]
    forged = {
        "fork of the first": (first, SigningKey()),
        "fork of the second": (first, second, SigningKey(), SigningKey()),
        "older": (first, second),
    }[how]
    hospital = sites["hospital"]
    line = with_keys(hospital, {"bank": forged})
    own = heads(sites) | {"bank": sites["bank"].signed(forged[-1])}
    code, why = code_of(line.heads.compare, own, {site: {} for site in SITES})
    assert code == "ledger"
    for part in (
        "expected the keys of bank to begin with the 3 that this ledger remembers, up to "
        f"{last.public.hex()[:16]}, got {len(forged)} up to {forged[-1].public.hex()[:16]}",
        "ask bank's operator",
    ):
        assert part in why
    # Nothing of it is remembered, also after a restart.
    hospital.ledger.close()
    with Ledger.open(hospital.path) as ledger:
        assert ledger.chains[first.public.hex()][-1] == last.public.hex()
        assert ledger.peers[first.public.hex()][0] == sites["bank"].ledger.head


def test_keys_that_go_on_are_remembered(sites: dict[str, Site]) -> None:
    met(sites)
    longer = (*KEYS["bank"], SigningKey())
    line = with_keys(sites["hospital"], {"bank": longer})
    own = heads(sites) | {"bank": sites["bank"].signed(longer[-1])}
    line.heads.compare(own, {site: {} for site in SITES})
    # The key of before is an old one from now on.
    assert code_of(sites["hospital"].line.heads.compare, heads(sites), told(sites))[0] == "ledger"


def test_a_new_first_key_is_another_site(sites: dict[str, Site]) -> None:
    """It inherits no head, and no batch (R1)."""
    met(sites)
    sites["hospital"].enter()
    new = SigningKey()
    line = with_keys(sites["hospital"], {"bank": (new,)})
    own = heads(sites) | {"bank": head_of(new, 1)}
    line.heads.compare(own, {site: {} for site in SITES})
    assert "bank" in line.heads.statements()
    (why,) = line.refusals_now(1)
    assert why.startswith("R1: expected the batch that these records were summed in before")


def test_two_ledgers_of_one_site_are_two(sites: dict[str, Site], tmp_path: Path) -> None:
    twin_folder, fresh_folder = tmp_path / "twin", tmp_path / "fresh"
    twin_folder.mkdir()
    fresh_folder.mkdir()
    bank = sites["bank"]
    twin = Site(twin_folder, "bank", bank.plan)
    handed = {"clinic": {"bank": bank.signed()}, "hospital": {"bank": twin.signed()}}
    bank.enter()
    # Each was told to another site, and a third has seen neither.
    fresh = Site(fresh_folder, "clinic", bank.plan)
    code, why = code_of(fresh.line.heads.compare, {"bank": bank.signed()}, handed)
    assert (code, "two of bank" in why) == ("ledger", True)
    met(sites)
    own = heads(sites) | {"bank": twin.signed()}
    assert code_of(sites["clinic"].line.heads.compare, own, told(sites))[0] == "ledger"
    twin.ledger.close()
    fresh.ledger.close()


def test_what_a_site_did_not_sign_counts_for_nothing(sites: dict[str, Site]) -> None:
    bank = sites["bank"]
    bank.enter()
    junk = [b"", b"junk", sites["clinic"].signed(), bank.signed(SigningKey())]
    for one in junk:
        handed: dict[str, dict[str, bytes]] = {"clinic": {"bank": one}, "hospital": {}, "bank": {}}
        bank.line.heads.compare(heads(sites), handed)
        own = heads(sites) | {"bank": one}
        code, why = code_of(sites["hospital"].line.heads.compare, own, told(sites))
        assert (code, "bank did not sign its ledger's head" in why) == ("ledger", True)
    # A head is signed with today's key; an old one is good for the past only.
    stale = heads(sites) | {"bank": bank.signed(KEYS["bank"][0])}
    assert code_of(sites["hospital"].line.heads.compare, stale, told(sites))[0] == "ledger"


# -- rows -------------------------------------------------------------------------------------


def test_the_row_is_on_disk_when_entering_returns(sites: dict[str, Site]) -> None:
    bank = sites["bank"]
    lines = len(bank.path.read_bytes().splitlines())
    bank.enter()
    found = bank.path.read_bytes().splitlines()[lines:]
    assert any(b'"kind":"row"' in line for line in found)
    assert bank.line.has_entered(Binding(bytes(32), 1, ROUND))
    assert not bank.line.has_entered(Binding(bytes(32), 2, ROUND))


def test_what_was_opened_is_repeated_without_a_line_or_a_try(sites: dict[str, Site]) -> None:
    """So that neither sessions that go on use up the tries, nor the file grows at the
    coordinator's will."""
    bank = sites["bank"]
    bank.enter()
    bank.line.sign_receipt(ROUND, 1, "d" * 64)
    size = bank.path.stat().st_size
    for _ in range(2 * MAX_TRIES):
        bank.enter()
        bank.line.sign_receipt(ROUND, 1, "d" * 64)
    assert bank.path.stat().st_size == size
    # Nothing else passes for the same.
    assert code_of(bank.enter, "e" * 64)[0] == "rule"


def test_what_was_not_opened_is_tried_so_often_and_no_more(sites: dict[str, Site]) -> None:
    bank = sites["bank"]
    for _ in range(MAX_TRIES):
        bank.enter()
    code, why = code_of(bank.enter)
    assert (code, "R8: expected at most 8 tries" in why) == ("rule", True)
    bank.approve()
    bank.enter()


def test_of_two_results_of_one_sum_one_is_signed(sites: dict[str, Site]) -> None:
    bank = sites["bank"]
    bank.enter()
    bank.line.sign_receipt(ROUND, 1, "d" * 64)
    assert code_of(bank.line.sign_receipt, ROUND, 1, "e" * 64)[0] == "disagree"


@pytest.mark.parametrize("unit", ["site", "example"])
def test_a_site_as_a_unit_adds_up_over_all_its_records(
    sites: dict[str, Site], unit: Literal["site", "example"]
) -> None:
    """R5: with other records it is the same site; an example is of its own line only."""
    bank = sites["bank"]
    bank.enter()
    spent = replace(bank.ledger.rows[0], plan="7" * 64, unit=unit, curve=(1.0, 2.0), distance=0.5)
    others = {record_hash(bank.ledger.record_key, b"another record")}
    with Ledger.create(bank.path.with_name("other.jsonl")) as ledger:
        ledger.add_row(spent)
        records = Records(frozenset(others), 40, PART, PART)
        elsewhere = Line(ledger, "bank", bank.plan, bank.roster, "run", records)
        assert elsewhere.rows() == ()
        counted = ((1.0, 2.0), 0.5) if unit == "site" else ((), 0.0)
        assert astuple(elsewhere.earlier(unit)) == counted


@pytest.mark.parametrize("unit", ["site", "example"])
def test_a_rebuilt_round_of_this_plan_that_nobody_knows_the_cost_of_is_infinite(
    sites: dict[str, Site], unit: Literal["site", "example"]
) -> None:
    """R5: it was made from rows that may be fewer than today's, so at more than a round costs."""
    bank = sites["bank"]
    bank.enter()
    row = replace(bank.ledger.rows[0], content="", recovered=True)
    for known, earlier in (
        (replace(row, unit=unit, curve=(1.0, 2.0)), ((), 0.0)),
        (row, (None, 0.0)),
        (replace(row, records=frozenset()), (None, 0.0)),
    ):
        with Ledger.create(bank.path.with_name(f"{earlier[0]}{len(known.records)}")) as ledger:
            ledger.add_row(known)
            again = Line(ledger, "bank", bank.plan, bank.roster, "run", bank.records)
            assert astuple(again.earlier(unit)) == earlier


def test_a_plan_that_a_rebuilt_ledger_ended_does_not_go_on(sites: dict[str, Site]) -> None:
    """Neither sum nor total, approved again or not; the operator reads why before."""
    bank = sites["bank"]
    bank.ledger.ended.add("7" * 64)
    assert bank.line.refusals_now(40) == ()
    bank.ledger.ended.add(bank.plan.sha256())
    for act in (bank.enter, lambda: bank.line.fix_total(3)):
        code, why = code_of(act)
        assert (code, "R4: expected a plan of which this ledger holds all" in why) == ("rule", True)
    assert bank.line.refusals_now(40)[0].startswith("R4: expected a plan of which this ledger")
    assert bank.ledger.rows == []
    assert bank.ledger.totals == {}


# -- this site's own part -----------------------------------------------------------------------


def test_a_version_is_of_what_enters_and_keyed(sites: dict[str, Site]) -> None:
    parts = [bytes([k]) * 32 for k in range(3)]
    found = {one.with_part(part).version for one, part in itertools.product(sites.values(), parts)}
    assert len(found) == 9
    bank = sites["bank"]
    assert bank.with_part(PART).version == bank.line.version


def test_a_part_that_changed_alone_is_refused_in_any_plan(
    sites: dict[str, Site], tmp_path: Path
) -> None:
    """Whatever changed it: records, columns, or a length that cuts this site's rows only."""
    bank = sites["bank"]
    bank.enter()
    bank.plan = parse_plan(
        {
            "name": "another",
            "data": {"sites": {site: {"source": "sample:finance"} for site in SITES}},
        },
        base_dir=tmp_path,
    )
    bank.approve()
    changed = bank.with_part(b"cut".ljust(32, b"\0"))
    code, why = code_of(lambda: bank.enter(line=changed))
    assert (code, "R3: expected this site's records" in why) == ("rule", True)
    bank.enter(line=bank.with_part(PART))


def test_heads_of_a_command_are_synced_once_or_none_is_kept(
    sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command brings one of each site: a file written for each would be K^2 in a round."""
    met(sites)
    for one in sites.values():
        one.enter()
    clinic, now = sites["clinic"], heads(sites)
    before, written = dict(clinic.ledger.peers), []
    write = ledger_heads.write
    monkeypatch.setattr(
        ledger_heads, "write", lambda *given: (written.append(given[0]), write(*given))
    )
    with pytest.raises(ProtocolError, match="hospital did not sign"):
        clinic.line.heads.see_all(now | {"hospital": b"forged"})
    assert (clinic.ledger.peers, written) == (before, [])
    clinic.line.heads.see_all(now)
    assert len(written) == 1
    assert clinic.ledger.peers != before
    clinic.line.heads.see_all(now)
    assert len(written) == 1
