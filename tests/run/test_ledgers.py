"""Where a site's ledger lies, and when one may be made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from consortium import Consortium, raw_plan

from fakes import Notes
from fedshield.errors import RoundFailed, UserError
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import Roster
from fedshield.run import local
from fedshield.run.flare import simulate
from fedshield.run.folder import RunFolder
from fedshield.run.log_file import keep_roster
from fedshield.run.parties import Enrolment

NAMES = ("alpha", "beta", "victim")


@pytest.fixture
def enrolment(tmp_path: Path) -> Iterator[Enrolment]:
    """An enrolled roster, and the key files of all parties in one folder."""
    made = Consortium(tmp_path / "kits", NAMES)
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in (*NAMES, "coordinator"):
        shutil.copy(made.root / name / f"{name}.key", keys / f"{name}.key")
    yield Enrolment(made.root / "alpha" / "roster.json", keys)
    made.close()


def plan(tmp_path: Path, name: str) -> Plan:
    return parse_plan(raw_plan(NAMES, name=name, rounds=1), base_dir=tmp_path)


def test_a_lost_ledger_beside_the_keys_is_not_made_anew(
    tmp_path: Path, enrolment: Enrolment
) -> None:
    """All runs by these keys are remembered there. Without it, another run could be another set."""
    said = Notes()
    first = local.run(plan(tmp_path, "one"), tmp_path / "runs" / "one", said, enrolment)
    path = enrolment.keys / "victim.ledger.jsonl"
    made = [note for note in said.notes if "ledger" in note]
    assert made == [
        f"{name}: made its ledger, {enrolment.keys / name}.ledger.jsonl; keep it with its records"
        for name in NAMES
    ]
    kept = path.read_bytes()
    with Ledger.open(path) as ledger:
        assert len(ledger.rows) > 0
    path.unlink()
    out = tmp_path / "runs" / "two"
    with pytest.raises(LedgerError) as refused:
        local.run(plan(tmp_path, "two"), out, None, enrolment)
    assert f"{path}: expected the ledger of victim, found none though it has been in" in str(
        refused.value
    )
    assert str(first.path) in str(refused.value)
    assert not path.exists()
    assert not out.exists()
    # Also of the run itself, where its folder was moved away from others.
    alone = tmp_path / "alone"
    shutil.move(first.path, alone)
    moved = RunFolder.open(alone)
    moved.write_state(moved.state() | {"status": "interrupted"})
    with pytest.raises(UserError, match=r"expected the ledger of victim, found none"):
        local.resume(alone, None, enrolment)
    path.write_bytes(kept)
    said = Notes()
    local.run(plan(tmp_path, "two"), out, said, enrolment)
    assert not any("made its ledger" in note for note in said.notes)


def test_what_a_rule_refuses_is_no_run_to_go_on_with(tmp_path: Path, enrolment: Enrolment) -> None:
    """Another number of steps is another scale (R2), and a plan has one run (R4): neither is mended
    by going on."""
    local.run(plan(tmp_path, "one"), tmp_path / "runs" / "one", None, enrolment)
    raw = raw_plan(NAMES, name="two", rounds=1)
    raw["training"]["steps"] += 1
    with pytest.raises(RoundFailed, match="R2: expected steps") as refused:
        local.run(parse_plan(raw, base_dir=tmp_path), tmp_path / "runs" / "two", None, enrolment)
    assert not refused.value.resumable
    again = tmp_path / "runs" / "again"
    with pytest.raises(UserError, match=r"R4: .*one run; --resume that one if it is not finished"):
        local.run(plan(tmp_path, "one"), again, None, enrolment)
    assert not again.exists()


@pytest.mark.timeout(1800)
def test_both_engines_remember_in_one_place(tmp_path: Path, enrolment: Enrolment) -> None:
    """Else a plan of one engine could be another set, or another scale, than one of the other's."""
    said = Notes()
    one, two = (plan(tmp_path, name) for name in ("one", "two"))
    apart = simulate.run(one, tmp_path / "runs" / "one", said, enrolment)
    path = enrolment.keys / "victim.ledger.jsonl"
    assert f"victim: made its ledger, {path}; keep it with its records" in said.notes
    assert not list(apart.path.rglob("ledger.jsonl"))
    assert plans_in(path) == {one.sha256()}
    local.run(two, tmp_path / "runs" / "two", None, enrolment)
    assert plans_in(path) == {one.sha256(), two.sha256()}
    # R4: the plan of the other engine's run has had its one run.
    with pytest.raises(UserError, match=r"R4: expected the run two of this plan, got again"):
        simulate.run(two, tmp_path / "runs" / "again", None, enrolment)
    raw = raw_plan(NAMES, name="three", rounds=1)
    raw["training"]["steps"] += 1
    faster = parse_plan(raw, base_dir=tmp_path)
    with pytest.raises(RoundFailed, match="rule"):
        simulate.run(faster, tmp_path / "runs" / "three", None, enrolment)
    assert plans_in(path) == {one.sha256(), two.sha256()}
    errors = tmp_path / "runs" / "three" / "sites" / "victim" / "error.log"
    assert "R2: expected steps 2" in errors.read_text()
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(LedgerError, match="expected the ledger of victim, found none though"):
        simulate.run(plan(tmp_path, "four"), tmp_path / "runs" / "four", None, enrolment)
    assert not (tmp_path / "runs" / "four").exists()
    path.write_bytes(kept)


def plans_in(path: Path) -> set[str]:
    """Plans whose sums a ledger holds."""
    with Ledger.open(path) as ledger:
        return {row.plan for row in ledger.rows}


def test_runs_of_other_keys_do_not_stand_in_the_way(tmp_path: Path, enrolment: Enrolment) -> None:
    """A site of another consortium, or of a demonstration, may have the same name."""
    other = Consortium(tmp_path / "others", NAMES).kit("alpha")
    rosters: list[Roster] = [
        other.admit(plan(tmp_path, "one"), None).roster,
        local.demonstration(plan(tmp_path, "one")).roster,
    ]
    for number, roster in enumerate(rosters):
        folder = tmp_path / "runs" / f"other-{number}"
        keep_roster(folder, roster)
        (folder / "journal").mkdir()
        (folder / "journal" / "victim.jsonl").write_text("a line\n")
    local.run(plan(tmp_path, "one"), tmp_path / "runs" / "one", None, enrolment)
    assert (enrolment.keys / "victim.ledger.jsonl").exists()
