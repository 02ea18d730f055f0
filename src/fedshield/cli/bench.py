"""`fedshield bench crypto`: every scheme on the same work, on this machine."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fedshield.cli.console import JsonOption, human_bytes, out_console, print_notes
from fedshield.errors import UserError


def crypto(
    values: Annotated[int, typer.Option(help="Values of a site's update.")] = 1_000_000,
    sites: Annotated[int, typer.Option(help="Sites whose updates are summed.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads; one is what is measured.")] = 1,
    schemes: Annotated[str | None, typer.Option(help="Only these: plain,ckks,bfv,rlwe")] = None,
    bits: Annotated[int | None, typer.Option(help="Only rows of so many bits.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Bytes, speed and exactness of every scheme on the same work, one thread each."""
    from fedshield.cost import bench

    if threads != 1:
        raise UserError(f"--threads: expected 1, got {threads}; every scheme is measured on one")
    chosen = schemes.split(",") if schemes else None
    if chosen is None or "bfv" in chosen:
        print_notes(bench.missing_peers())
    rows = []
    for row in bench.crypto_rows(values, sites, schemes=chosen, bits=bits):
        rows.append(row)
        if not as_json:
            _print_bench_row(row, first=len(rows) == 1)
    if as_json:
        print(json.dumps(rows, indent=1))


def crypto_row(index: int, values: int, sites: int) -> None:
    """One row, in this process: what `bench crypto` starts for each scheme."""
    from fedshield.cost import bench

    print(json.dumps(bench.measure(index, values, sites)))


def _print_bench_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        out_console.print(
            f"{row['values']:,} values, {row['sites']} sites, one thread; million values a second",
            markup=False,
        )
        out_console.print(
            "scheme  parameters                        bits  bytes/value  x float32  "
            "encrypt      add     open  exact  peak memory"
        )
    speeds = (row[f"{what}_values_per_s"] / 1e6 for what in ("encode_encrypt", "add", "open"))
    columns = [
        f"{row['scheme']:<7} {row['parameters']:<33} {row['bits']:>4}",
        f"{row['bytes_per_value']:>12.3f} {row['expansion_vs_float32']:>10.3f}",
        *(f"{speed:>8.2f}" for speed in speeds),
        f" {'yes' if row['exact'] else 'no':<5}  {human_bytes(row['peak_rss_bytes'])}",
    ]
    out_console.print(" ".join(columns), markup=False)
