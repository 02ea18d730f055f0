"""Peak memory of the coordinator's process under FLARE, at 4, 8 and 16 sites.

    python benchmarks/flare_memory.py [--live] [--sites 4,8,16] [--rank 210] [--rounds 2]

A process for each site (0.6 GB each, most of it PyTorch), the tiny model, scheme rlwe. Under
FLARE's simulator, whose one process holds a client for each site beside the server; with `--live`
a server and sites as on machines of their own, on loopback, with mutual TLS and kits made by the
commands of docs/deploy.md. `coordinator` is the process that adds ciphertexts, by its own last word
in coordinator.jsonl; `server`, live, FLARE's process that accepts connections. Prints a table.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedshield.plan.load import parse_plan
from fedshield.run.flare import simulate
from fedshield.run.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.run.folder import RunFolder

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))


def plan_of(number: int, rank: int, rounds: int, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": f"memory-{number}",
        "rounds": rounds,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": rank, "alpha": 8, "dropout": 0.0, "targets": "all-linear"},
        "data": {"heldout_rows": 2, **data},
        "training": {"steps": 1, "batch_size": 1, "max_length": 192, "precision": "fp32"},
        "pruning": {"method": "none"},
        "speed": {"threads": 1},
    }


def simulated(number: int, rank: int, rounds: int) -> tuple[list[dict[str, Any]], float]:
    """The coordinator's log, and the megabytes that a site sent in the last round."""
    pool = [{"source": "sample:code", "rows": 20 * number}]
    data = {"split": "iid", "num_sites": number, "pool": pool}
    plan = parse_plan(plan_of(number, rank, rounds, data), base_dir=Path())
    with tempfile.TemporaryDirectory() as found:
        folder = simulate.run(plan, Path(found) / "run")
        rows = [row for row in folder.metrics() if row["round"] == rounds]
        up = sum(row["upload_bytes"] for row in rows) / len(rows)
        return read_log(folder.path / COORDINATOR_FILE), up / 1e6


def live(number: int, rank: int, rounds: int) -> tuple[list[dict[str, Any]], float, float]:
    """And the peak of FLARE's server process, in megabytes."""
    import yaml
    from live_consortium import federation

    sites = {f"site-{at:02d}": "code" for at in range(number)}
    source = {name: {"source": "sample:code", "rows": 20} for name in sites}
    with tempfile.TemporaryDirectory() as found:
        path = Path(found) / "plan.yaml"
        path.write_text(yaml.safe_dump(plan_of(number, rank, rounds, {"sites": source})))
        with federation(Path(found), sites) as made:
            run = made.begin(path)
            status, said = run.end()
            if status:
                raise SystemExit(said)
            server = max(map(peak, made.processes("coordinator")))
            log = run.log()
            rows = [row for site in sites for row in RunFolder(run.folder(site)).metrics()]
        sent = [row["upload_bytes"] for row in rows if row["round"] == rounds]
        return log, sum(sent) / len(sent) / 1e6, server


def peak(pid: int) -> float:
    """Megabytes, at the most so far."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--sites", default="4,8,16")
    parser.add_argument("--rank", type=int, default=210)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print("| sites | up per site and round | coordinator | server | round |")
    print("|---|---|---|---|---|")
    for number in map(int, args.sites.split(",")):
        server = 0.0
        if args.live:
            log, up, server = live(number, args.rank, args.rounds)
        else:
            log, up = simulated(number, args.rank, args.rounds)
        (seconds,) = (one["round_s"] for one in log if one.get("round") == args.rounds)
        sizes = f"{up:.2f} MB | {log[-1]['peak_memory_bytes'] / 1e6:.1f} MB"
        shown = f"{server:.1f} MB" if server else "as coordinator"
        print(f"| {number} | {sizes} | {shown} | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
