"""Peak memory of the coordinator's adding, by number of sites: it must not grow with them.

    python benchmarks/server_memory.py [--values 4000000] [--sites 4 16 64] [--bits 16] [--json]

For each number of sites a process of its own adds the chunks of all sites, one site after the
other as they would arrive, and holds one running total. Chunks are random bytes of the right
lengths: to the adder, which knows no key, that is what ciphertexts are.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=4_000_000, help="values of a site")
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.values, given.sites[0], given.bits)))
        return
    rows = []
    for sites in given.sites:
        work = ["--values", given.values, "--sites", sites, "--bits", given.bits, "--one"]
        done = subprocess.run(
            [sys.executable, __file__, *map(str, work)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout))
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{given.values:,} values of {given.bits} bits")
    print("sites   upload of a site   received    one total   peak memory     seconds")
    for row in rows:
        mb = [row[name] / 1e6 for name in ("upload_bytes", "received_bytes", "total_bytes")]
        print(
            f"{row['sites']:>5} {mb[0]:>15.1f} MB {mb[1]:>7.0f} MB {mb[2]:>9.1f} MB "
            f"{row['peak_rss_bytes'] / 1e6:>10.1f} MB {row['add_s']:>11.2f}"
        )


def measured(num_values: int, num_sites: int, bits: int) -> dict[str, float]:
    """One row, of this process."""
    import numpy as np

    from fedshield.crypto.rlwe.adder import RlweAdder
    from fedshield.crypto.rlwe.layout import RlweLayout
    from fedshield.crypto.rlwe.params import choose

    # The same packing for every number of sites, as one that grows would hide what is measured.
    layout = RlweLayout(choose(64, bits, num_values), num_values, (1, 31, 31))
    adder = RlweAdder(layout.parameters)
    totals: list[object | None] = [None] * layout.num_chunks
    rng, received, add_s = np.random.default_rng(1), 0, 0.0
    for _ in range(num_sites):
        for index in range(layout.num_chunks):
            chunk = rng.bytes(layout.chunk_bytes(index))
            started = time.perf_counter()
            totals[index] = adder.add(totals[index], chunk)
            add_s += time.perf_counter() - started
            received += len(chunk)
    total_bytes = 0
    for index in range(layout.num_chunks):
        total, totals[index] = totals[index], None
        total_bytes += len(adder.result(total))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "sites": num_sites,
        "values": num_values,
        "upload_bytes": layout.upload_bytes,
        "received_bytes": received,
        "total_bytes": total_bytes,
        "add_s": add_s,
        "peak_rss_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }


if __name__ == "__main__":
    main()
