"""Signals at many moments of a run: is any of them lost?

    python benchmarks/interrupts.py --moments 300                   # at calls of Python functions
    python benchmarks/interrupts.py --moments 40 --by time --signal TERM

`call`: one run, which at each moment makes a copy of its process (fork) and of its folder; the copy
sends itself the signal just before the call of a Python function, or before a generator goes on.
Moments are drawn evenly among all calls, but for those with such a file open. `time`: a
new interpreter for each moment, from its first instruction to its last, evenly over its life.

A moment is `lost` where the run went on to its end or ended as failed, `left running` where
run.json says that it is still under way, `wordless` where it did not end with the signal's status
and a line.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMALL = [
    *("rounds=2", "evaluation.prompts=[]", "training.steps=2", "training.batch_size=4"),
    *("training.max_length=64", "data.heldout_rows=4", "data.min_examples=8"),
    *(f"data.sites.{site}.rows=24" for site in ("bank", "hospital", "school")),
]


@dataclass(frozen=True)
class Moment:
    """What became of a command that was sent a signal, and where it was then."""

    place: str
    status: int  # negative: killed by that signal
    state: str  # of run.json in the end; '' if there was none
    was_over: bool  # it had ended, or run.json said finished, before the signal
    text: str


def arguments(out: Path) -> list[str]:
    overrides = [word for value in SMALL for word in ("--set", value)]
    return ["run", str(ROOT / "examples" / "tiny.yaml"), "--out", str(out), *overrides]


def state_of(out: Path) -> str:
    try:
        return str(json.loads((out / "run.json").read_text())["status"])
    except (OSError, ValueError):
        return ""


def kind(moment: Moment, name: str) -> str:
    number = int(signal.Signals[f"SIG{name}"])
    if moment.was_over:
        return "over before"
    if moment.state == "running":
        return "left running"
    if moment.status in (0, 1, 2):
        return "lost"
    if moment.status == -number and not moment.text.strip():
        return "killed before the first line"
    words = moment.text.strip().splitlines()
    if moment.status != 128 + number or not words or "Traceback" in moment.text:
        return "wordless"
    return f"stopped ({moment.state or 'no folder yet'})"


# -- at calls, by copies of one process ----------------------------------------------------------


class Forking:
    """A profile function that makes a copy of the process at some of the calls, sends the copy a
    signal and waits for its end. `calls`: their numbers, ascending; none: count only."""

    def __init__(self, out: Path, name: str, calls: Sequence[int]) -> None:
        self.count = 0
        self.moments: list[Moment] = []
        self._out = out
        self._name = name
        self._left = list(reversed(calls))

    def __call__(self, frame: Any, event: str, _: object) -> None:
        if event != "call":
            return
        self.count += 1
        if self._left and self.count >= self._left[-1] and not self._writing():
            self._left.pop()
            self._copy(frame)

    def _writing(self) -> bool:
        """Whether a file of the run is open for writing, or its folder being made: copies would
        both write to it. Or a data file for reading: copies share the place in it."""
        if self._out.with_name(f".{self._out.name}.part").exists():
            return True
        for handle in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{handle}")
            except OSError:
                continue
            own = path.startswith(str(self._out)) and not path.endswith("lock")
            if own or path.endswith(".gz"):
                return True
        return False

    def _copy(self, frame: Any) -> None:
        log, aside = self._out.with_suffix(".log"), self._out.with_suffix(".aside")
        was_over = state_of(self._out) == "finished"
        if self._out.exists():
            os.rename(self._out, aside)
            shutil.copytree(aside, self._out)
        pid = os.fork()
        if pid == 0:
            sys.setprofile(None)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            signal.raise_signal(signal.Signals[f"SIG{self._name}"])
            return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = frame.f_code
        place = f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_qualname}"
        text = log.read_text(errors="replace") if log.exists() else ""
        self.moments.append(Moment(place, status, state_of(self._out), was_over, text))
        keep = self._out.with_name(f"stopped-{len(self.moments)}")
        if self._out.exists():
            os.rename(self._out, keep)
        if aside.exists():
            os.rename(aside, self._out)


def in_one_process(out: Path, name: str, calls: Sequence[int]) -> Forking:
    """One run of the command in this process, which goes on to its end by itself."""
    from fedshield.cli import main

    forking = Forking(out, name, calls)
    here = os.getpid()
    sys.argv = ["fedshield", *arguments(out)]
    heed_signals()
    sys.setprofile(forking)
    try:
        main()
    except SystemExit as stop:
        if os.getpid() != here:  # a copy, which ends as the command does
            raise
        if stop.code:
            raise SystemExit(f"the run itself ended with {stop.code}") from None
    sys.setprofile(None)
    return forking


def heed_signals() -> None:
    """A shell has its background jobs ignore SIGINT, and what they start inherits it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)


def load_everything() -> None:
    """So that a run has nothing left to import or to compile, and copies share it."""
    import torch

    torch.set_num_threads(1)
    import fedshield.cli.entry
    import fedshield.report
    import fedshield.run.local
    import fedshield.site.train  # noqa: F401
    from fedshield.plan.load import load_plan
    from fedshield.run.events import Quiet
    from fedshield.run.prepare import prepare

    prepare(load_plan(ROOT / "examples" / "tiny.yaml")[0], Quiet())
    gc.collect()
    gc.freeze()


# -- at times, each in a new interpreter ---------------------------------------------------------


def at_time(out: Path, name: str, delay_s: float) -> Moment:
    log = out.with_suffix(".log")
    with log.open("wb") as file:
        command = [sys.executable, "-m", "fedshield.cli", *arguments(out)]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        was_over = state_of(out) == "finished"
        process.send_signal(signal.Signals[f"SIG{name}"])
        process.wait()
    else:
        was_over = True
    text = log.read_text(errors="replace")
    return Moment(f"{delay_s:.3f} s", process.returncode, state_of(out), was_over, text)


# -- all moments --------------------------------------------------------------------------------


def resumed(out: Path, whole: Path) -> str:
    command = [sys.executable, "-m", "fedshield.cli", "run", "--resume", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        return f"cannot be resumed: {done.stderr[-300:]}"
    ours, theirs = (
        json.loads((path / "summary.json").read_text())["adapter_sha256"] for path in (out, whole)
    )
    return "resumed to the same adapter" if ours == theirs else "resumed to ANOTHER adapter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--by", choices=("call", "time"), default="call")
    parser.add_argument("--signal", choices=("INT", "TERM", "HUP"), default="INT")
    parser.add_argument("--busy", type=int, default=1, help="processes that keep a core busy")
    parser.add_argument("--resume", type=int, default=0, help="resume so many of the stopped runs")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    heed_signals()
    folder = Path(tempfile.mkdtemp(prefix="fedshield-interrupts-"))
    begin = os.getpid()
    spin = "import os\nwhile os.getppid() == %d: pass" % begin  # noqa: UP031
    for _ in range(asked.busy):
        subprocess.Popen([sys.executable, "-c", spin])
    draw = random.Random(asked.seed)
    whole = folder / "whole"
    if asked.by == "time":
        started = time.monotonic()
        at_time(whole, asked.signal, 1e6)
        length = time.monotonic() - started
        print(f"a whole run takes {length:.1f} s", flush=True)
        moments = []
        for number in range(asked.moments):
            delay = length * (number + draw.random()) / asked.moments
            moments.append(at_time(folder / f"stopped-{number + 1}", asked.signal, delay))
    else:
        load_everything()
        # The first loads what is left to load: the second has the calls that others will have.
        in_one_process(folder / "first", asked.signal, ())
        calls = in_one_process(whole, asked.signal, ()).count
        print(f"{calls} calls in a whole run", flush=True)
        chosen = sorted(draw.randint(1, calls) for _ in range(asked.moments))
        moments = in_one_process(folder / "run", asked.signal, chosen).moments
    kinds = [kind(moment, asked.signal) for moment in moments]
    for what, moment in zip(kinds, moments, strict=True):
        if what in ("lost", "left running", "wordless"):
            words = " | ".join(moment.text.strip().splitlines())[-400:]
            print(f"{what}: exit {moment.status}, {moment.state!r}, {moment.place}: {words}")
    print(f"SIG{asked.signal} at {len(moments)} moments by {asked.by}:")
    for word, count in sorted(collections.Counter(kinds).items()):
        print(f"{count:6}  {word}")
    numbers = [at for at, what in enumerate(kinds, 1) if what == "stopped (interrupted)"]
    endings = [
        resumed(folder / f"stopped-{number}", whole)
        for number in draw.sample(numbers, min(asked.resume, len(numbers)))
    ]
    for word, count in sorted(collections.Counter(endings).items()):
        print(f"{count:6}  {word}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
