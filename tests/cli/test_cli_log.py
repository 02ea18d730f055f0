"""`fedshield log verify` and `export`, on what a run left."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedshield import cli
from fedshield.errors import RoundFailed
from fedshield.protocol.log.entries import read_entry
from fedshield.run import local, log_file
from fedshield.site.train import LocalTrainer


class Done(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def start(*args: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedshield", "log", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(stopped.value.code, out, err)

    return start


@pytest.fixture(scope="module")
def finished(make_plan: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in its second round, and gone on with: two sessions, two sets of keys."""
    out = tmp_path_factory.mktemp("runs") / "run"
    plan = make_plan({"rounds": 2, "training.steps": 1, "data.heldout_rows": 2})
    with pytest.MonkeyPatch.context() as patch:
        whole = LocalTrainer.train

        def failing(self: Any, state: Any, round_number: int, *more: Any) -> Any:
            if round_number == 2:
                raise RoundFailed("stopped here")
            return whole(self, state, round_number, *more)

        patch.setattr(LocalTrainer, "train", failing)
        with pytest.raises(RoundFailed):
            local.run(plan, out)
    local.resume(out)
    return out


@pytest.fixture
def logs(finished: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_sound_logs_of_both_sessions_and_no_private_key(
    run: Run, finished: Path
) -> None:
    done = run("verify", finished)
    assert done.code == 0, done
    assert "3 logs, whole, signed, and in agreement" in done.out
    assert done.out.count("2 sessions") == 3
    assert done.out.count("signed with 2 keys of the roster") == 3
    assert "one operator made every key" in done.out
    files = [finished / "coordinator.audit.jsonl", *finished.glob("sites/*/audit.jsonl")]
    assert log_file.logs_of(finished) == files[:1] + sorted(files[1:])
    acts = [read_entry(line).fact.act for line in files[0].read_bytes().splitlines()]
    assert acts.count("failed") == acts.count("closed") == 1
    assert len(log_file.read_rosters(finished / "rosters.json")) == 2


def test_single_files_with_and_without_a_roster(run: Run, finished: Path) -> None:
    bank = finished / "sites" / "bank" / "audit.jsonl"
    done = run("verify", bank)
    assert done.code == 0
    assert "one log alone" in done.out
    assert "no roster was given" in done.out
    done = run("verify", bank, "--roster", finished / "rosters.json", "--json")
    found = json.loads(done.out)
    assert (done.code, found["sound"]) == (0, True)
    assert found["logs"][0]["keys_checked"]
    assert found["logs"][0]["party"] == "bank"


@pytest.mark.parametrize("party", ["coordinator", "bank", "hospital"])
@pytest.mark.parametrize("harm", ["cut", "removed", "swapped", "changed"])
def test_harm_is_found_named_and_ends_with_status_1(
    run: Run, logs: Path, party: str, harm: str
) -> None:
    path = logs / "sites" / party / "audit.jsonl"
    if party == "coordinator":
        path = logs / "coordinator.audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    if harm == "cut":
        lines.pop()
    elif harm == "removed":
        lines.pop(middle)
    elif harm == "swapped":
        lines[middle : middle + 2] = lines[middle : middle + 2][::-1]
    else:
        lines[middle] = re.sub(rb'"time":"20', b'"time":"21', lines[middle])
    path.write_bytes(b"".join(lines))
    done = run("verify", logs)
    assert done.code == 1
    assert "PROBLEM" in done.out
    (line,) = done.err.splitlines()
    assert str(path) in line
    assert "keep these files" in line
    found = json.loads(run("verify", logs, "--json").out)
    assert not found["sound"]
    assert str(path) in found["problems"][0]


def test_export_prints_the_entries(run: Run, logs: Path) -> None:
    path = logs / "sites" / "bank" / "audit.jsonl"
    done = run("export", path)
    rows = json.loads(done.out)
    assert done.code == 0
    assert [row["number"] for row in rows] == list(range(len(path.read_bytes().splitlines())))
    assert rows[0]["details"]["demonstration"] == 1
    path.write_bytes(path.read_bytes() + b"{}\n")
    done = run("export", path)
    assert done.code == 1
    assert json.loads(done.out) == rows
    assert "printed are the" in done.err


def test_what_is_no_log_is_one_line(run: Run, tmp_path: Path) -> None:
    assert "expected an audit log, but No such file" in run("verify", tmp_path / "none").err
    assert "expected a run folder with audit logs" in run("verify", tmp_path).err
    (tmp_path / "empty").touch()
    assert "got an empty file" in run("verify", tmp_path / "empty").err
    assert run("verify", tmp_path / "empty", "--roster", tmp_path / "empty").code == 2


def test_the_page_shows_an_entry_with_the_keys_that_entries_have(finished: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "auditlog.md").read_text()
    shown = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    line = (finished / "coordinator.audit.jsonl").read_bytes().splitlines()[0]
    acts = {"opened", "answered", "refused", "session", "asked", "received", "lost", "summed"}
    assert shown == {*json.loads(line)} | acts | {"closed", "failed", "stopped"}
