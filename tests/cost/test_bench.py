"""The benchmark measures every scheme on the same work and says whether the sum is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedshield.cost import bench
from fedshield.cost.bench import CASES, chosen_cases, crypto_rows, missing_peers
from fedshield.errors import UserError

KEYS = {
    "scheme", "parameters", "security_bits", "bits", "bytes_per_value", "expansion_vs_float32",
    "encode_encrypt_values_per_s", "add_values_per_s", "open_values_per_s", "max_abs_error",
    "exact", "peak_rss_bytes",
}  # fmt: skip


def test_rows_of_every_scheme() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedshield.cli", "bench", "crypto", "--values", "50000",
         "--sites", "3", "--threads", "1", "--json"],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    left_out = {"bfv"} if missing_peers() else set()
    assert [row["scheme"] for row in rows] == [c[0] for c in CASES if c[0] not in left_out]
    assert ("seal-python" in done.stderr) == bool(left_out)
    for row in rows:
        assert row.keys() >= KEYS
        assert row["expansion_vs_float32"] == pytest.approx(row["bytes_per_value"] / 4)
        # float32 sums are rounded; every encrypting scheme is exact.
        assert row["exact"] == (row["scheme"] != "plain")
        assert row["encode_encrypt_values_per_s"] > 0
        assert row["peak_rss_bytes"] > 10**7
        # One step up or down for each site at the most.
        steps = {"plain": 1e-6, "ckks": 1e-6}.get(row["scheme"], 0.07 / 2 ** (row["bits"] - 1))
        assert row["max_abs_error"] < 3 * (1 if row["bits"] == 4 else 3) * 1.2 * steps
    sizes = {(row["scheme"], row["bits"]): row["bytes_per_value"] for row in rows}
    assert sizes["plain", 32] == 4
    assert sizes["rlwe", 4] < sizes["rlwe", 8] < sizes["rlwe", 12] < sizes["rlwe", 16] < 4


@pytest.mark.parametrize(("values", "sites"), [(0, 3), (10, 1), (10, 65)])
def test_impossible_work_is_refused(values: int, sites: int) -> None:
    with pytest.raises(UserError, match="bench"):
        next(crypto_rows(values, sites))


def test_rows_can_be_chosen() -> None:
    assert chosen_cases() == list(range(len(CASES)))
    assert [CASES[i].bits for i in chosen_cases(["rlwe"])] == [16, 12, 8, 4]
    assert [CASES[i].scheme for i in chosen_cases(["rlwe", "plain"])] == ["plain"] + ["rlwe"] * 4
    assert [CASES[i] for i in chosen_cases(["rlwe"], 12)] == [("rlwe", "", 12)]
    for schemes, bits in (
        (["paillier"], None),
        (["rlwe", "paillier"], None),
        (["plain"], 8),
        ([], None),
        (None, 5),
    ):
        with pytest.raises(UserError, match="plain, ckks, bfv, rlwe"):
            chosen_cases(schemes, bits)


def test_more_updates_than_are_kept_are_the_same_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = bench._Updates(1000, 3)
    first = kept.of(1)
    assert kept.of(1) is first
    monkeypatch.setattr(bench, "KEPT_VALUES", 2999)
    made = bench._Updates(1000, 3)
    assert made.of(1) is not made.of(1)
    np.testing.assert_array_equal(made.of(1), first)


def test_a_row_of_many_chunks_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MEASURE_S", 0.0)
    row = bench.measure(chosen_cases(["rlwe"], 16)[0], 4_000_000, 2)
    assert row["exact"]
    assert row["rounds"] == 1


def test_the_servers_memory_does_not_grow_with_the_sites() -> None:
    """benchmarks/server_memory.py, small: the adding process at 2 and at 12 sites."""
    script = Path(__file__).parents[2] / "benchmarks" / "server_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--values", "2000000", "--sites", "2", "12", "--json"],
        capture_output=True, text=True, check=True, timeout=600, env=dict(os.environ),
    )  # fmt: skip
    few, many = json.loads(done.stdout)
    assert (few["sites"], many["sites"]) == (2, 12)
    assert many["received_bytes"] > 5 * few["received_bytes"]
    assert many["peak_rss_bytes"] < 1.15 * few["peak_rss_bytes"] + 4e6
