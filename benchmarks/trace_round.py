"""How far one site's data travels through the code in one round: files, functions, changes of file.

    python benchmarks/trace_round.py [--site hospital] [--round 2]

Runs examples/tiny.yaml in this process. Every call of a function of FedShield is counted that is
made while the site answers a message of that round: the distinct files and functions, the calls,
and how often a call goes from one file to another. It works on any tree that has the command line,
so two trees can be compared: PYTHONPATH=OTHER/src python benchmarks/trace_round.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import fedshield
from fedshield.cli import app
from fedshield.protocol.participant import Participant

ROOT = str(Path(fedshield.__file__).parent)
TINY = Path(__file__).parents[1] / "examples" / "tiny.yaml"


class Trace:
    """Counts calls while `site` answers in round `number`."""

    def __init__(self, site: str, number: int) -> None:
        self.site, self.number = site, number
        self.files: set[str] = set()
        self.functions: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        self.messages: list[str] = []

    def handle(self, participant: Participant, method: str, data: bytes) -> bytes:
        if participant.name != self.site or participant.completed_rounds != self.number - 1:
            return HANDLE(participant, method, data)
        if method in ("invite", "begin", "make-key", "take-key"):
            return HANDLE(participant, method, data)
        self.messages.append(method)
        sys.setprofile(self.watch)
        try:
            return HANDLE(participant, method, data)
        finally:
            sys.setprofile(None)

    def watch(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        file = code.co_filename.removeprefix(ROOT + "/")
        self.files.add(file)
        self.functions[f"{file}:{code.co_qualname}"] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(ROOT):
            caller = caller.f_back
        if caller is not None:
            before = caller.f_code.co_filename.removeprefix(ROOT + "/")
            if before != file:
                self.changes[f"{before} -> {file}"] += 1


HANDLE = Participant.handle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", default="hospital")
    parser.add_argument("--round", type=int, default=2)
    parser.add_argument("--most", type=int, default=10, help="changes of file to list")
    given = parser.parse_args()
    trace = Trace(given.site, given.round)
    Participant.handle = lambda self, method, data: trace.handle(self, method, data)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        app(["run", str(TINY), "--out", f"{folder}/run"], standalone_mode=False)
    print(f"messages {len(trace.messages)}: {', '.join(trace.messages)}")
    print(
        f"files {len(trace.files)}, functions {len(trace.functions)}, calls "
        f"{trace.functions.total()}, changes of file {trace.changes.total()} (distinct "
        f"{len(trace.changes)})"
    )
    for change, count in trace.changes.most_common(given.most):
        print(f"{count:>6} {change}")


if __name__ == "__main__":
    main()
