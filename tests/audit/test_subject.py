"""What is known here of a run that is audited: what its training drew from."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedshield.audit.subject import Subject
from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import KeyFile
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import Roster
from fedshield.run.folder import RunFolder
from fedshield.run.log_file import keep_roster
from fedshield.seeds import SiteRandomness

SITES = {name: {"source": "sample:finance"} for name in ("bank", "clinic", "hospital")}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return parse_plan({"data": {"sites": SITES}}, base_dir=tmp_path)


def _roster(plan: Plan, bank: bytes, demo: bool) -> Roster:
    sites = {name: SiteKey().public for name in SITES} | {"bank": bank}
    return Roster(sites, SiteKey().public, plan.rules(), demo)


def _run(kit: Path, plan: Plan, *rosters: Roster) -> RunFolder:
    (kit / "runs").mkdir(parents=True)
    state = {"status": "finished", "plan_sha256": plan.sha256(), "base_dir": str(kit)}
    folder = RunFolder.create(kit / "runs" / "one", plan, state)
    for roster in rosters:
        keep_roster(folder.path, roster)
    return folder


def _kit(kit: Path) -> KeyFile:
    key = KeyFile.make("bank")
    (kit / "bank.key").touch(mode=0o600)
    (kit / "bank.key").write_text(key.to_text())
    return key


def test_a_demonstration_drew_from_the_plans_seed(tmp_path: Path, plan: Plan) -> None:
    rosters = [_roster(plan, SiteKey().public, True) for _ in range(2)]  # one a session
    subject = Subject(plan, _run(tmp_path / "kit", plan, *rosters))
    assert subject.drew() == {
        name: SiteRandomness.of_demonstration(plan.seed, name) for name in SITES
    }


def test_a_site_knows_its_own_by_its_key(tmp_path: Path, plan: Plan) -> None:
    kit = tmp_path / "kit"
    kit.mkdir()
    key = _kit(kit)
    folder = _run(kit, plan, _roster(plan, key.key.public, False))
    # The plan that it is read by has the site's own places in it.
    here = plan.model_copy(update={"model": plan.model.model_copy(update={"name": "/x"})})
    subject = Subject(here, folder, site="bank")
    assert subject.drew() == {"bank": SiteRandomness.of_site(key.key.secret, plan.sha256())}
    # Not after it took another key, and not of a run whose keys are elsewhere.
    assert Subject(plan, folder).drew() == {}
    _kit(kit)
    assert subject.drew() == {}


def test_nothing_is_known_of_a_plan_or_of_a_run_without_a_roster(
    tmp_path: Path, plan: Plan
) -> None:
    assert Subject(plan, None).drew() == {}
    assert Subject(plan, _run(tmp_path / "kit", plan)).drew() == {}
