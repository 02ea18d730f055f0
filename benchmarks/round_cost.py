"""Bytes and seconds of a round at 3, 8 and 16 sites; with --before, against another tree.

    python benchmarks/round_cost.py [--before TREE] [--sites 3 8 16] [--repeats 3]

Runs of the in-process engine on examples/tiny.yaml with one step a round, each in a process of its
own on one thread, the two trees in turn. The first round of each run, which warms up, is left out.
`upload`, `download`: bytes of a site in a round, the median over sites and rounds. `round_s`: the
whole round, all sites in turn; `protocol_s`: what is left of it without the sites' training,
pruning, encoding and evaluation, so encryption, sums, ledgers and messages, of all sites together.
Seconds are medians over rounds and repeats; `ratio` is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ROUNDS = 6
KEYS = ("upload", "download", "round_s", "protocol_s")
TRAINING = ("train", "prune", "encode", "evaluate")


def plan_of(num_sites: int) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "tiny.yaml").read_text())
    samples = ("sample:medical", "sample:finance", "sample:maths")
    raw["data"] = {
        "heldout_rows": 8,
        "sites": {
            f"site-{number:02d}": {"source": samples[number % 3], "rows": 60}
            for number in range(1, num_sites + 1)
        },
    }
    raw["training"] |= {"steps": 1}
    raw |= {"rounds": ROUNDS, "speed": {"threads": 1}, "evaluation": {"prompts": []}}
    return raw


def measured(tree: Path, num_sites: int, folder: Path) -> list[dict[str, float]]:
    """One run; what each of its rounds but the first cost."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan_of(num_sites)))
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    done = subprocess.run(
        [sys.executable, "-m", "fedshield.cli", "run", str(path), "--out", str(out)],
        env=os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip()}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = []
    for number in range(2, ROUNDS + 1):
        sites = [row for row in rows if row.get("round") == number and "wall_s" in row]
        seconds = sites[0]["round_s"]
        training = sum(site["wall_s"].get(part, 0) for site in sites for part in TRAINING)
        found.append(
            {
                "upload": statistics.median(site["upload_bytes"] for site in sites),
                "download": statistics.median(site["download_bytes"] for site in sites),
                "round_s": seconds,
                "protocol_s": seconds - training,
            }
        )
    return found


def middle(rounds: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    trees = {"before": options.before, "now": ROOT} if options.before else {"now": ROOT}
    with tempfile.TemporaryDirectory(prefix="fedshield-rounds-") as name:
        for num_sites in options.sites:
            runs: dict[str, list[list[dict[str, float]]]] = {label: [] for label in trees}
            for _ in range(options.repeats):
                for label, tree in trees.items():
                    runs[label].append(measured(tree.resolve(), num_sites, Path(name)))
            result: dict[str, Any] = {"sites": num_sites}
            for label, found in runs.items():
                every = [one for run in found for one in run]
                result[label] = {key: round(middle(every, key), 4) for key in KEYS}
            if options.before:
                pairs = list(zip(runs["before"], runs["now"], strict=True))
                ratios = {
                    key: [middle(now, key) / middle(old, key) for old, now in pairs] for key in KEYS
                }
                result["ratio"] = {
                    key: round(statistics.median(found), 3) for key, found in ratios.items()
                }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
