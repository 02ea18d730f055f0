"""How a session of a run ends is in run.json, whatever ended it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshield.errors import RunFolderError
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder
from fedshield.run.state import check_charter, session, unfinished


@pytest.fixture
def folder(tmp_path: Path, make_plan: Callable[..., Plan]) -> RunFolder:
    plan = make_plan()
    state = {"status": "failed", "reason": "before", "plan_sha256": plan.sha256()}
    state |= {"charter": "ab", "sessions": 1, "wall_s": 100.0}
    return RunFolder.create(tmp_path / "run", plan, state)


def test_a_session_that_ends_well(folder: RunFolder) -> None:
    with session(folder) as (state, elapsed):
        assert folder.state()["status"] == "running"
        state["found"] = 1
        assert elapsed() >= 100
    ended = folder.state()
    assert (ended["status"], ended["sessions"], ended["found"]) == ("finished", 2, 1)
    assert "reason" not in ended
    assert 100 <= ended["wall_s"] < 160
    with pytest.raises(RunFolderError, match="finished; there is nothing to go on with"):
        unfinished(folder)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "stopped by the user"),
        (GeneratorExit(), "interrupted", "stopped by the user"),
        (ValueError("why " * 400), "failed", ("why " * 400)[:500]),
    ],
)
def test_what_stops_a_session_is_kept(
    folder: RunFolder, error: BaseException, status: str, reason: str
) -> None:
    with pytest.raises(type(error)), session(folder):
        raise error
    ended = unfinished(folder)
    assert (ended["status"], ended["reason"]) == (status, reason)
    (entry,) = ended["sessions_log"]
    assert (entry["how"], entry["reason"]) == (status, reason)
    assert entry["started"] <= entry["ended"]


def test_a_session_that_was_killed_has_no_end(folder: RunFolder) -> None:
    killed = session(folder)
    killed.__enter__()
    assert folder.state()["sessions_log"][-1]["ended"] == ""
    with session(folder):
        pass
    first, second = folder.state()["sessions_log"]
    assert (first["ended"], first["how"]) == ("", "")
    assert second["how"] == "finished"


def test_ctrl_c_between_the_first_state_and_the_body(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = RunFolder.write_state, iter(range(2))

    def stopped(self: RunFolder, state: dict[str, Any]) -> None:
        write(self, state)
        if next(calls) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_state", stopped)
    with pytest.raises(KeyboardInterrupt), session(folder):
        pass
    assert folder.state()["status"] == "interrupted"


def test_another_roster_is_refused(folder: RunFolder) -> None:
    check_charter(folder, folder.state(), "ab")
    with pytest.raises(RunFolderError, match="expected the roster that the run began with"):
        check_charter(folder, folder.state(), "cd")
