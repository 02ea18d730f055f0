"""A site that lost its key comes back as another one, with its ledger and its records. To the
others two sites changed, and they count it as one that hides whoever goes at the same step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from span import isolated

from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.coming import exposure_of, following, joined, without
from fedshield.enrolment.exposure import Exposure
from fedshield.enrolment.lineage import Lineage
from fedshield.enrolment.terms import Asked
from fedshield.errors import ProtocolError
from fedshield.ledger import rules
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import record_hash
from fedshield.plan import Plan
from fedshield.planfile import parse_plan
from fedshield.protocol.line import Line, Records, roster_digest, tallies
from fedshield.protocol.session import ROUND

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
        exposes: tuple[str, ...] = (),
    ) -> None:
        """Every honest site goes on under the roster and enters a sum, which is opened."""
        self.roster = signed(roster, self.keys)
        known = self.roster.to_roster().exposing(exposes)
        plan = self._plan(len(self.opened))
        lines = {}
        for name in known.names():
            ledger = self.ledgers[name]
            about = (roster_digest(known), "0" * 64, plan.rounds, tallies(plan))
            ledger.approve(rules.Approval(plan.sha256(), *about, exposed=True))
            hashes = frozenset({record_hash(ledger.record_key, b"record")})
            records = Records(hashes, 40, contents(name), contents(name))
            lines[name] = Line(ledger, name, plan, known, "run", records)
        honest = {name: line for name, line in lines.items() if name != "mole"}
        places = dict.fromkeys(lines, 0) | {name: line.follow() for name, line in honest.items()}
        versions = {name: line.version for name, line in lines.items()}
        for line in honest.values():
            line.check_followed(places)
        for line in honest.values():
            line.enter(ROUND, 1, START, "c" * 64, versions, 1, START, None)
        self.opened.append({(name, contents(name)): 1 for name in honest})

    def _plan(self, number: int) -> Plan:
        sites = {name: {"source": "sample:finance"} for name in self.roster.names()}
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


def test_a_site_that_lost_its_key_hides_nobody(eight: Consortium) -> None:
    after = annex_goes(eight, lost=True)
    with pytest.raises(
        ProtocolError,
        match=r"R1: expected that this site counts as exposed under the key that it lost and under "
        r"that of today.* expose lab@[0-9a-f]{16} and lab@[0-9a-f]{16}, or use records",
    ):
        eight.sum_under(after)
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
    with pytest.raises(ProtocolError, match="under the key that it lost"):
        eight.sum_under(after)


def changed_at_lab(name: str) -> bytes:
    return CHANGED if name == "lab" else SAME


def test_a_change_of_one_site_is_not_hidden_by_lost_keys(
    eight: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three come with new keys and nobody signs; lab's records changed and nobody else's. First
    without either rule."""
    after = eight.lose_keys(following(eight.roster), "lab", "school", "annex")
    with pytest.raises(ProtocolError, match="under the key that it lost"):
        eight.sum_under(after, changed_at_lab)
    with monkeypatch.context() as patch:
        patch.setattr(rules, "_lost_key", lambda *_: "")
        with pytest.raises(ProtocolError, match="R3: expected this site's records as in"):
            eight.sum_under(after, changed_at_lab)
        patch.setattr(rules, "own_part", lambda *_: "")
        eight.sum_under(after, changed_at_lab)
    assert isolated(eight.opened) == "lab"


def test_who_lost_its_key_goes_on_where_it_is_exposed_under_both(eight: Consortium) -> None:
    """One of eight: the policies of all expose it, and by subtraction its own part is nothing."""
    old = eight.keys["lab"].card().first_public().hex()
    after = eight.lose_keys(following(eight.roster), "lab")
    new = eight.keys["lab"].card().first_public().hex()
    with pytest.raises(ProtocolError, match=r"under the key that it lost|got fewer for lab"):
        eight.sum_under(after, exposes=(f"lab@{new[:16]}",))
    eight.sum_under(after, exposes=(f"lab@{old[:16]}", f"lab@{new[:16]}"))
    assert isolated(eight.opened) is None
