"""Seconds of a round: a live federation against one process, the same plan, in one run.

    python benchmarks/live_round.py [--cores 1] [--repeats 3] [--set KEY=VALUE ...]

A server and three sites as processes of their own on loopback, with mutual TLS and kits made by
the commands of docs/deploy.md (the consortium of tests/e2e), and the in-process engine, in turn,
both on the same cores. The first round of each run, which warms up, is left out. `adapters` says
whether both made the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])

    # After the affinity: threads and processes inherit it.
    from live_consortium import SITES, federation

    from fedshield.plan.load import load_plan
    from fedshield.run import local

    raw = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
    sites = {site: {"source": f"sample:{sample}", "rows": 200} for site, sample in SITES.items()}
    raw["data"]["sites"], raw["evaluation"], raw["speed"] = sites, {"prompts": []}, {"threads": 1}
    live: list[float] = []
    alone: list[float] = []
    same = True
    with tempfile.TemporaryDirectory(prefix="fedshield-live-") as name:
        folder = Path(name)
        path = folder / "plan.yaml"
        path.write_text(yaml.safe_dump(raw))
        plan = load_plan(path, options.set)[0]
        path.write_text(plan.to_yaml())
        (folder / "consortium").mkdir()
        with federation(folder / "consortium", model=plan.model.name) as made:
            for number in range(options.repeats):
                run = made.begin(path)
                status, said = run.end()
                if status:
                    raise SystemExit(said)
                rounds = [entry["round_s"] for entry in run.log() if "aggregate_s" in entry]
                live += rounds[1:]
                # With the same keys, from which sites draw what training leaves to chance.
                enrolment = made.enrolment(folder / f"keys-{number}")
                finished = local.run(plan, folder / f"alone-{number}", enrolment=enrolment)
                seen = {row["round"]: row["round_s"] for row in finished.metrics()}
                alone += [seen[at] for at in sorted(seen)][1:]
                digest = finished.read_json("summary.json")["adapter_sha256"]
                same &= set(run.adapters().values()) == {digest}
    row = {
        "cores": options.cores,
        "rounds": len(live),
        "live_round_s": statistics.median(live),
        "in_process_round_s": statistics.median(alone),
        "ratio": statistics.median(live) / statistics.median(alone),
        "adapters": "the same" if same else "different",
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
