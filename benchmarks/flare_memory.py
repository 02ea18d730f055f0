"""Peak memory of the coordinator's process under FLARE's simulator, at 4, 8 and 16 sites.

    python benchmarks/flare_memory.py [--sites 4,8,16] [--rank 210] [--rounds 2]

A process for each site (0.6 GB each, most of it PyTorch), the tiny model, scheme rlwe. The
coordinator's own peak is in the last line of coordinator.jsonl. Prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from fedshield.engines.flare import simulate
from fedshield.engines.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.planfile import parse_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="4,8,16")
    parser.add_argument("--rank", type=int, default=210)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print("| sites | values | up per site and round | coordinator's peak | round |")
    print("|---|---|---|---|---|")
    for number in map(int, args.sites.split(",")):
        raw = {
            "name": f"memory-{number}",
            "rounds": args.rounds,
            "model": {"name": "tiny-llama"},
            "adapter": {"rank": args.rank, "alpha": 8, "dropout": 0.0, "targets": "all-linear"},
            "data": {
                "split": "iid",
                "num_sites": number,
                "heldout_rows": 2,
                "pool": [{"source": "sample:code", "rows": 20 * number}],
            },
            "training": {"steps": 1, "batch_size": 1, "max_length": 192, "precision": "fp32"},
            "pruning": {"method": "none"},
            "speed": {"threads": 1},
        }
        plan = parse_plan(raw, base_dir=Path())
        with tempfile.TemporaryDirectory() as found:
            folder = simulate.run(plan, Path(found) / "run")
            log = read_log(folder.path / COORDINATOR_FILE)
            rows = [row for row in folder.metrics() if row["round"] == args.rounds]
            values = folder.read_json("summary.json")["trainable_values"]
        (seconds,) = (entry["round_s"] for entry in log if entry.get("round") == args.rounds)
        up = sum(row["upload_bytes"] for row in rows) / len(rows)
        peak = log[-1]["peak_memory_bytes"]
        sizes = f"{up / 1e6:.2f} MB | {peak / 1e6:.1f} MB"
        print(f"| {number} | {values:,} | {sizes} | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
