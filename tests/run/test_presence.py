"""A run that nobody works on does not stay `running`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedshield.errors import UserError
from fedshield.run import presence
from fedshield.run.folder import RunFolder

HOLDER = """
import sys
from pathlib import Path
from fedshield.run import presence
lock = presence.hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def run_folder(runs: Path, name: str, status: str) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status, "plan_sha256": ""}))
    return folder


def status(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["status"])


def test_no_process_takes_a_run_up_while_it_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what that process writes into run.json would be overwritten."""
    folder = run_folder(tmp_path, "live", "running")
    write = RunFolder.write_state
    marked: list[str] = []

    def write_state(run: RunFolder, state: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="expected no other process at work"):
            presence.hold(folder, patience_s=0)
        marked.append(state["status"])
        write(run, state)

    monkeypatch.setattr(RunFolder, "write_state", write_state)
    assert presence.settle(tmp_path) == ["live"]
    assert marked == ["interrupted"]


def test_only_runs_whose_process_is_gone_are_settled(tmp_path: Path) -> None:
    live = run_folder(tmp_path, "live", "running")
    finished = run_folder(tmp_path, "done", "finished")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("not JSON")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(live)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert presence.is_held(live)
        assert presence.settle(tmp_path) == []
        with pytest.raises(UserError, match="expected no other process at work on this run"):
            presence.hold(live, patience_s=0)
        holder.kill()
        holder.wait()
    assert not presence.is_held(live)
    assert presence.settle(tmp_path) == ["live"]
    assert [status(live), status(finished)] == ["interrupted", "finished"]
    assert "killed" in json.loads((live / "run.json").read_text())["reason"]
    with presence.hold(live, patience_s=0):
        assert presence.is_held(live)
