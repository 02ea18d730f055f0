"""What `fedshield plan` says of a run's time, against the time that the run then takes.

    python benchmarks/plan_time.py examples/quickstart.yaml            # an idle machine
    python benchmarks/plan_time.py examples/quickstart.yaml --busy 1   # one core busy all along

Prints a table in Markdown: seconds of CPU and of the clock of `plan`, of `plan --measure` and of
the run; what each `plan` predicted, with `--like` of this very run; and the ratios. `--set
KEY=VALUE`, as often as needed, shortens the plan. The run is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def spin() -> None:
    while True:
        pass


def timed(*words: str) -> tuple[float, float, str]:
    """Seconds of the clock and of CPU of a `fedshield` command, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fedshield.cli", *words], stdout=subprocess.PIPE, text=True
    )
    took = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"fedshield {' '.join(words)}: exit status {done.returncode}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return took, cpu, done.stdout


def predicted(*words: str) -> tuple[float, float, float]:
    """Seconds of the clock, of CPU, and those that the plan predicts."""
    took, cpu, out = timed("plan", *words, "--json")
    cost: dict[str, Any] = json.loads(out)
    return took, cpu, float(cost["estimated_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan")
    parser.add_argument("--busy", type=int, default=0, help="cores kept busy by other processes")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    chosen = parser.parse_args()
    common = [chosen.plan, *(word for item in chosen.overrides for word in ("--set", item))]
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(chosen.busy)]
    for other in others:
        other.start()
    try:
        timed("plan", *common)  # the disk's cache is warm
        text_s, text_cpu, _ = timed("plan", *common)
        rough = predicted(*common)
        measured = predicted(*common, "--measure")
        with tempfile.TemporaryDirectory(prefix="plan-time-") as parent:
            folder = str(Path(parent) / "run")
            run_s, run_cpu, _ = timed("run", *common, "--out", folder)
            like = predicted(*common, "--like", folder)
    finally:
        for other in others:
            other.terminate()
    print(f"{chosen.plan}, {os.cpu_count()} cores ({platform.machine()}), {chosen.busy} busy")
    print("\n| command | clock s | CPU s | predicted s | predicted / real |\n|---|---|---|---|---|")
    print(f"| plan | {text_s:.2f} | {text_cpu:.2f} | | |")
    for name, (took, cpu, said) in (
        ("plan --json", rough),
        ("plan --measure", measured),
        ("plan --like that run", like),
    ):
        print(f"| {name} | {took:.2f} | {cpu:.2f} | {said:.1f} | {said / run_s:.2f} |")
    print(f"| run | {run_s:.1f} | {run_cpu:.1f} | | |")


if __name__ == "__main__":
    main()
