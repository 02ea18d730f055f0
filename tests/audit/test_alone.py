"""An audit at one organisation after a run: its own data, the released adapter, nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from audit_kit import make

from fedshield.audit import replay
from fedshield.audit.effort import Effort
from fedshield.audit.subject import from_path
from fedshield.audit.suite import audit
from fedshield.errors import PlanError
from fedshield.run.folder import RunFolder
from fedshield.types import SiteMemory

POLICY = "data_path: sample:finance\nledger_path: ledger\nmodel_path: tiny-llama\ndevice: cpu\n"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of `bank` with a finished run in it; the other sites' data are nowhere."""
    plan = make()
    scene = replay.prepare(plan)
    recording = replay.record(plan, scene)
    sources = {
        name: source if name == "bank" else source.model_copy(update={"source": f"{name}.jsonl"})
        for name, source in plan.data.sites.items()
    }
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"sites": sources})})
    folder = tmp_path_factory.mktemp("kits") / "bank"
    folder.mkdir()
    (folder / "bank.key").write_text("")
    (folder / "bank.policy.yaml").write_text(POLICY)
    state = {
        "status": "interrupted",
        "engine": "flare",
        "plan_sha256": plan.sha256(),
        "base_dir": "/gone",
    }
    run = RunFolder.create(folder / "runs" / "audited-1", plan, state)
    released = recording.released.state
    residual = np.zeros(released.spec.num_values, dtype=np.float32)
    clip = np.ones(len(released.spec.tensors), dtype=np.float32)
    memory = SiteMemory(residual, {"clip": clip})
    run.site_store("bank").save(2, released, memory)
    run.append_metrics([{"round": 2, "site": "bank"}])
    return folder


def test_a_site_audits_its_run_with_its_own_data_alone(kit: Path, tmp_path: Path) -> None:
    """Moved since the run. The attack is on the run's own adapter, on the site's own rows."""
    moved = tmp_path / "moved"
    shutil.copytree(kit, moved)
    subject = from_path(moved / "runs" / "audited-1")
    assert (subject.site, subject.completed) == ("bank", 2)
    report = audit(
        subject.plan,
        effort=Effort(),
        released=subject.released,
        rounds=subject.completed,
        site=subject.site,
    )
    assert {finding.attack for finding in report.findings} == {"membership"}
    assert [row.split()[0] for row in report.settings["rows"]] == ["bank"]
    for name in ("tokens", "properties", "canaries", "membership by shadow adapters"):
        assert "needs all sites' data; here are bank's only" in report.skipped[name]
    signals = {finding.what.rpartition(", ")[2] for finding in report.findings}
    assert signals == {"loss", "base", "min-k", "zlib"}


def test_a_model_is_given_for_runs_only(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"--model: expected none with a plan; use --set"):
        from_path(tmp_path / "plan.yaml", (), "house/model")
