"""What `submit` and `status` take, and how `status` says where a run stands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fedshield.cli import submit as commands
from fedshield.errors import UserError
from fedshield.run import presence, progress
from fedshield.run.flare import status as looking
from fedshield.run.flare import submit as submitting
from fedshield.run.flare.provision import ProvisionError
from fedshield.run.progress import Progress


@pytest.mark.parametrize("more", [{}, {"plan": Path("p"), "resume": Path("r")}])
def test_a_submission_is_of_a_plan_or_of_a_run(more: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="--resume"):
        commands.submit(**more, kit=Path("kit"))


def test_only_the_kit_that_submits_submits(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="the kit that submits runs"):
        commands.submit(resume=tmp_path, kit=tmp_path)


def site_kit(folder: Path, status: str) -> Path:
    """A site's kit with one run in it; its run's folder."""
    (folder / "flare" / "startup").mkdir(parents=True)
    (folder / "flare" / "startup" / "fed_client.json").write_text("{}")
    (folder / "north.key").write_text("")
    run = folder / "runs" / "a-run"
    run.mkdir(parents=True)
    state = {"status": status, "plan_sha256": "", "started": "2026-01-01"}
    (run / "run.json").write_text(json.dumps(state))
    return run


def test_a_site_sees_its_round_what_it_does_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = site_kit(tmp_path, "running")
    now_s = time.time()
    progress.write(run, Progress(3, 20, "evaluating", now_s, heard=now_s - 7000, left_s=600))
    with presence.hold(run):
        commands.status(kit=tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "north: not running" in said
    assert "running; round 3 of 20; evaluating since" in said
    assert "last message 116 min ago" in said
    assert "about 10 min left" in said


def test_a_run_whose_process_is_gone_does_not_stay_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = site_kit(tmp_path, "running")
    commands.status(kit=tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "a-run interrupted; its process was killed or its machine went down" in said
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


def test_runs_that_are_not_listed_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = json.loads((site_kit(tmp_path, "finished") / "run.json").read_text())
    for day in range(2, 9):
        run = tmp_path / "runs" / f"run-{day}"
        run.mkdir()
        (run / "run.json").write_text(json.dumps(state | {"started": f"2026-01-0{day}"}))
    commands.status(kit=tmp_path)
    out = capsys.readouterr().out
    assert "run-8" in out
    assert "run-3" not in out
    assert "and 3 earlier runs that are over, under runs/" in out


def test_a_roster_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    problems: list[str] = []
    assert looking._roster_sites(tmp_path / "roster.json", problems) == ()
    assert problems == []
    (tmp_path / "roster.json").write_text("{")
    assert looking._roster_sites(tmp_path / "roster.json", problems) == ()
    assert "damaged JSON" in problems[0]


def test_a_submitted_run_goes_where_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places: list[Path] = []
    monkeypatch.setattr(
        submitting, "submit", lambda plan, kit, out, watch, wait_s: places.append(out)
    )
    path = tmp_path / "plan.yaml"
    sites = "{a: {source: a.jsonl}, b: {source: a.jsonl}, c: {source: a.jsonl}}"
    path.write_text(f"data: {{sites: {sites}}}\noutput: {{dir: kept}}\nspeed: {{device: cuda}}\n")
    commands.submit(plan=path, kit=tmp_path)
    commands.submit(plan=path, kit=tmp_path, out=tmp_path / "other")
    assert places == [tmp_path / "kept", tmp_path / "other"]
    assert "note: speed.device has no effect at the sites" in capsys.readouterr().err
