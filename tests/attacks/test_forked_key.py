"""Whoever holds an old key of a site signs another successor with it, and comes as that site: the
ledgers know a site by its first key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from consortium import Consortium, raw_plan

from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.files import RosterError
from fedshield.enrolment.seen import FILE
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.run.approval import propose

NAMES = ("alpha", "mallory", "victim")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", NAMES)
    yield made
    made.close()


def keys_of(ours: Consortium) -> dict[str, KeyFile]:
    return {
        name: KeyFile.read(ours.root / name / f"{name}.key") for name in (*NAMES, "coordinator")
    }


def enrol(ours: Consortium, keys: Mapping[str, KeyFile], *, new_kits: bool = False) -> None:
    """A roster of these keys, signed by all, in every kit. `new_kits`: made anew on the same
    records, so that they remember no roster."""
    roster = SignedRoster(keys["coordinator"].card(), tuple(keys[name].card() for name in NAMES))
    for name in NAMES:
        roster = roster.countersigned(keys[name], [other for other in NAMES if other != name])
    for name, key in keys.items():
        folder = ours.root / name
        (folder / f"{name}.key").write_text(key.to_text())
        (folder / "roster.json").write_text(roster.to_text())
        if new_kits:
            (folder / FILE).unlink(missing_ok=True)


def replaced(ours: Consortium) -> tuple[KeyFile, dict[str, KeyFile]]:
    """Alpha replaced its key, and all ran a plan under the new roster: the old key, and the keys
    of today."""
    keys = keys_of(ours)
    old = keys["alpha"]
    keys["alpha"] = KeyFile.make("alpha", old)
    enrol(ours, keys)
    raw = raw_plan(NAMES, rounds=1)
    ours.approve(raw)
    ours.session(raw, "first").run(1, 1)
    ours.close()
    return old, keys


def test_a_fork_of_a_stolen_key_is_not_the_site(three: Consortium) -> None:
    """The roster is whole and signed by all, and R1 would find the same three sites."""
    old, keys = replaced(three)
    kit, raw = three.kit("victim"), raw_plan(NAMES, rounds=1, name="second", seed=8)
    path, kept = kit.ledger_path(), (kit.path / FILE).read_bytes()
    with Ledger.open(path) as ledger:
        rows = len(ledger.rows)

    fork = keys | {"alpha": KeyFile.make("alpha", old)}
    enrol(three, fork)
    with pytest.raises(RosterError, match="expected the card of alpha to go on from the keys"):
        three.approve(raw, "victim")
    assert (kit.path / FILE).read_bytes() == kept
    # A kit that never saw that party; the records' ledger did.
    enrol(three, fork, new_kits=True)
    with pytest.raises(LedgerError, match="expected the keys of alpha to begin with the 2 that"):
        three.approve(raw, "victim")

    # What `--key-lost` gives is another site, which inherits nothing.
    enrol(three, keys | {"alpha": KeyFile.make("alpha")}, new_kits=True)
    with Ledger.open(path) as ledger:
        (why,) = propose(kit, three.plan(raw, "victim"), ledger).refusals
        assert len(ledger.rows) == rows
    assert why.startswith("R1: expected the batch that these records were summed in before")

    # And one that the key of today signed goes on.
    enrol(three, keys | {"alpha": KeyFile.make("alpha", keys["alpha"])}, new_kits=True)
    three.approve(raw)
    three.session(raw, "second").run(1, 1)
