"""A run that is asked to stop, at exact moments: it says so, and goes on to the same adapter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedshield import cli
from fedshield.cli import run as run_command
from fedshield.cli.watch import Watch
from fedshield.run import folder, local
from fedshield.run import state as run_state

pytestmark = pytest.mark.usefixtures("signals_heeded")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": 2, "evaluation": {"prompts": []}}
    raw["data"] |= {"heldout_rows": 4, "min_examples": 4}
    for site in raw["data"]["sites"].values():
        site["rows"] = 16
    raw["training"] |= {"steps": 2, "batch_size": 4, "max_length": 64}
    path = tmp_path_factory.mktemp("plans") / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit status of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["fedshield", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def state_of(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((out / "run.json").read_text())
    return state


def adapter_of(out: Path) -> str:
    return str(json.loads((out / "summary.json").read_text())["adapter_sha256"])


class Observer(Watch):
    """Calls `reached` with the number of each thing that a run tells of."""

    reached: Callable[[int], None]

    def __init__(self, console: Any) -> None:
        super().__init__(console)
        self._number = 0

    def _tell(self) -> None:
        self._number += 1
        type(self).reached(self._number)

    def note(self, text: str) -> None:
        self._tell()
        super().note(text)

    def phase(self, *args: Any) -> None:
        self._tell()
        super().phase(*args)

    def step(self, *args: Any) -> None:
        self._tell()
        super().step(*args)

    def round_done(self, *args: Any) -> None:
        self._tell()
        super().round_done(*args)


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    def observe(reached: Callable[[int], None]) -> None:
        monkeypatch.setattr(Observer, "reached", staticmethod(reached), raising=False)
        monkeypatch.setattr(run_command, "Watch", Observer)

    return observe


@pytest.fixture(scope="module")
def whole(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """The adapter of a run that nobody stops, and how many things it tells of."""
    numbers: list[int] = []
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Observer, "reached", staticmethod(numbers.append), raising=False)
        patched.setattr(run_command, "Watch", Observer)
        assert status_of(patched, "run", plan, "--out", out) == 0
    return adapter_of(out), len(numbers)


def plainly(number: signal.Signals) -> None:
    signal.raise_signal(number)


def in_a_finaliser(number: signal.Signals) -> None:
    class Resource:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Resource()


def in_a_bare_except(number: signal.Signals) -> None:
    try:
        signal.raise_signal(number)
    except:  # noqa: E722 - as libraries have it
        return


def as_another_error(number: signal.Signals) -> None:
    """As libraries do that wrap whatever comes."""
    try:
        signal.raise_signal(number)
    except BaseException as error:
        raise ValueError("the library's own") from error


WAYS = (plainly, in_a_finaliser, in_a_bare_except, as_another_error)
MOMENTS = 8


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_run_stops_at_any_moment_and_goes_on_to_the_same_adapter(
    plan: Path,
    whole: tuple[str, int],
    observed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    moment: int,
) -> None:
    """From the first thing that a run tells of to the last, in turn by each way to swallow it."""
    adapter, things = whole
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[moment % 3]
    at = 1 + (things - 1) * moment // (MOMENTS - 1)
    way = WAYS[moment % len(WAYS)]
    observed(lambda thing: way(number) if thing == at else None)
    out = tmp_path / "run"
    assert status_of(monkeypatch, "run", plan, "--out", out) == 128 + number
    text = capsys.readouterr().err
    by = "the user" if number == signal.SIGINT else number.name
    assert f"fedshield: stopped by {by}\n" in text
    assert "Traceback" not in text
    assert list(tmp_path.rglob("*.part")) == []
    if not out.exists():
        assert moment < 2  # in what is done before there is a folder
        return
    state = state_of(out)
    assert state["status"] == "interrupted"
    assert state["reason"].startswith(f"stopped by {by}")
    assert f"To go on: fedshield run --resume {out}" in text.replace("\n", " ")
    local.resume(out)
    assert (state_of(out)["status"], adapter_of(out)) == ("finished", adapter)


def test_a_file_that_is_being_written_is_whole_before_a_run_stops(
    plan: Path,
    whole: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A signal within fsync, of a journal, a log and an adapter."""
    adapter, _ = whole
    out, fsync, synced = tmp_path / "run", os.fsync, 0

    def asked(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced in (2, 9, 26, 60):
            signal.raise_signal(signal.SIGINT)
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", asked)
        assert status_of(patched, "run", plan, "--out", out) == 130
        assert status_of(patched, "run", "--resume", out) == 130
        assert status_of(patched, "run", "--resume", out) == 130
        assert status_of(patched, "run", "--resume", out) == 130
    assert synced > 60
    assert list(tmp_path.rglob("*.part")) == []
    local.resume(out)
    assert adapter_of(out) == adapter
    for log in [*out.rglob("*.audit.jsonl"), *out.rglob("audit.jsonl")]:
        entries = [json.loads(line) for line in log.read_bytes().splitlines()]
        assert entries


def test_a_stop_after_the_last_file_says_that_the_run_is_finished(
    plan: Path,
    whole: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write = folder.RunFolder.write_state

    def stopped(self: folder.RunFolder, state: dict[str, Any]) -> None:
        write(self, state)
        if state["status"] == "finished":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(folder.RunFolder, "write_state", stopped)
    out = tmp_path / "run"
    assert status_of(monkeypatch, "run", plan, "--out", out) == 143
    assert (state_of(out)["status"], adapter_of(out)) == ("finished", whole[0])
    text = " ".join(capsys.readouterr().err.split())
    assert f"finished before it could be stopped: {out} is complete" in text
    assert text.endswith("fedshield: stopped by SIGTERM")


def test_a_stop_just_before_a_run_would_be_finished_is_not_lost(
    plan: Path,
    whole: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    finish = local.finish

    def stopped(*args: Any) -> None:
        finish(*args)
        in_a_bare_except(signal.SIGINT)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(local, "finish", stopped)
        assert status_of(patched, "run", plan, "--out", out) == 130
    assert state_of(out)["status"] == "interrupted"
    local.resume(out)
    assert adapter_of(out) == whole[0]


def test_what_a_library_made_of_a_stop_is_no_failure() -> None:
    assert run_state.ending(ValueError("why"))[0] == "failed"
    assert run_state.ending(KeyboardInterrupt()) == ("interrupted", "stopped by the user")


# The command line in a process of its own. When the first round's rows are told it says so, and
# waits for a line: the gate.
GATED = """
import sys
from fedshield import cli
from fedshield.cli import run
class Gated(run.Watch):
    def round_done(self, number, rows):
        super().round_done(number, rows)
        print("gate", flush=True)
        sys.stdin.readline()
run.Watch = Gated
cli.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_from_outside_stops_a_run(
    plan: Path, whole: tuple[str, int], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", GATED, "run", str(plan), "--out", str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "gate\n"
        process.send_signal(signal.Signals[name])
        _, text = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.Signals[name], text
    assert f"To go on: fedshield run --resume {out}" in text
    assert "Traceback" not in text
    assert state_of(out)["status"] == "interrupted"
    local.resume(out)
    assert adapter_of(out) == whole[0]
