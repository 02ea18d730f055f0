"""FLARE's simulator, each site in a process of its own, makes what one process makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from fedshield.enrolment import SignedRoster
from fedshield.errors import RunFolderError
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.log.verify import cross_check
from fedshield.run import local
from fedshield.run.flare import simulate
from fedshield.run.flare.kit import KITS
from fedshield.run.log_file import logs_of, read_known_keys, read_log
from fedshield.run.parties import check_roster

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny.yaml"
#: What differs between engines: times, and memory of another process.
MEASURED = {"started", "finished", "wall_s", "rounds_s", "phase_s", "protection_share"} | {
    *("peak_memory_bytes", "engine", "sessions")
}


def short_plan() -> Plan:
    raw = yaml.safe_load(EXAMPLE.read_text())
    raw |= {"rounds": 2, "evaluation": {"prompts": []}, "speed": {"threads": 1}}
    raw["data"] |= {"heldout_rows": 6, "min_examples": 14}
    for site in raw["data"]["sites"].values():
        site["rows"] = 40
    raw["training"] |= {"steps": 2, "batch_size": 4, "max_length": 96}
    return parse_plan(raw, base_dir=EXAMPLE.parent)


@pytest.mark.timeout(1800)
def test_both_engines_make_the_same(tmp_path: Path) -> None:
    plan = short_plan()
    alone = local.run(plan, tmp_path / "alone")
    apart = simulate.run(plan, tmp_path / "apart")
    one, other = (folder.read_json("summary.json") for folder in (alone, apart))
    # A message carries lengths of names and numbers, so set-up differs by a few bytes.
    sizes = {"download_bytes", "setup_upload_bytes", "setup_download_bytes", "upload_bytes"}
    for key in one.keys() - MEASURED - sizes:
        assert other[key] == one[key], key
    for key in sizes:
        # Between processes what comes before a session is sent too: `stand` and `restart`.
        assert other[key] == pytest.approx(one[key], rel=0.05), key
    for mine, theirs in zip(alone.metrics(), apart.metrics(), strict=True):
        for key in mine.keys() - {"wall_s", "round_s", "upload_bytes", "download_bytes"}:
            assert theirs[key] == mine[key], key
    assert (apart.path / "report.html").exists()
    known = read_known_keys(apart.path / "rosters.json")
    chains = [read_log(path, known) for path in logs_of(apart.path)]
    assert len(chains) == 4
    assert [chain.problems for chain in chains] == [()] * 4
    assert cross_check(chains) == ()
    # No key is left: kits were for the session.
    assert not list(apart.path.rglob("*.key"))
    assert "private_key" not in (apart.path / "flare.log").read_text()
    with pytest.raises(RunFolderError, match="finished"):
        simulate.resume(apart.path)


@pytest.mark.parametrize("membership", ["fixed", "open"])
def test_the_kits_roster_has_the_plans_quorums(membership: str) -> None:
    """Membership too: a plan that says open was refused by a roster that said fixed."""
    raw = short_plan().model_dump(mode="json")
    raw["privacy"] |= {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0}
    raw["adapter"]["dropout"] = 0.0
    raw["scheme"]["membership"] = membership
    plan = parse_plan(raw, base_dir=EXAMPLE.parent)
    with simulate._kits(plan, None) as kits:
        for name in plan.data.site_names():
            roster = SignedRoster.read(kits / name / "roster.json")
            assert roster.rules() == plan.rules()
            check_roster(plan, roster, None, kits)


def test_a_run_of_the_other_engine_is_not_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "failed", "plan_sha256": "0"}))
    (folder / "plan.yaml").write_text(short_plan().to_yaml())
    with pytest.raises(RunFolderError, match="in-process engine"):
        simulate.resume(folder)


def test_what_a_session_started_has_ended_before_the_next(tmp_path: Path) -> None:
    """FLARE gives each site a process group of its own. One that lived on would hold its ledger."""
    kits, said = tmp_path / "kits", tmp_path / "site"
    deaf = (
        "import os, pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    )
    start = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], "
        "start_new_session=True); time.sleep(600)"
    )
    simulator = subprocess.Popen(
        [sys.executable, "-c", start, deaf, str(said)],
        env=os.environ | {KITS: str(kits)},
        start_new_session=True,
    )
    while not (said.exists() and said.read_text()):
        assert simulator.poll() is None
        time.sleep(0.02)
    site = psutil.Process(int(said.read_text()))
    simulate._end(simulator, tmp_path / "of another session")
    assert site.is_running()
    assert site.status() != psutil.STATUS_ZOMBIE
    simulate._end(simulator, kits)
    assert not site.is_running() or site.status() == psutil.STATUS_ZOMBIE
