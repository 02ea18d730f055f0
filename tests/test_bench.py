"""The benchmark measures every scheme on the same work and says whether the sum is exact."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fedshield.bench import CASES, crypto_rows, missing_peers
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
        capture_output=True, text=True, check=True, timeout=280,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    left_out = {"bfv"} if missing_peers() else set()
    assert [row["scheme"] for row in rows] == [c[0] for c in CASES if c[0] not in left_out]
    assert ("seal-python" in done.stderr) == bool(left_out)
    for row in rows:
        assert row.keys() >= KEYS
        assert row["expansion_vs_float32"] == pytest.approx(row["bytes_per_value"] / 4)
        # float32 sums are rounded; every encrypting scheme is exact.
        assert row["exact"] or row["scheme"] == "plain"
        assert row["encode_encrypt_values_per_s"] > 0
        assert row["peak_rss_bytes"] > 10**7
        assert row["max_abs_error"] < {"plain": 1e-6, "ckks": 1e-6}.get(row["scheme"], 5e-3)
    sizes = {(row["scheme"], row["bits"]): row["bytes_per_value"] for row in rows}
    assert sizes["plain", 32] == 4
    assert sizes["rlwe", 8] < sizes["rlwe", 12] < sizes["rlwe", 16] < 4


@pytest.mark.parametrize(("values", "sites"), [(0, 3), (10, 1), (10, 65)])
def test_impossible_work_is_refused(values: int, sites: int) -> None:
    with pytest.raises(UserError, match="bench"):
        next(crypto_rows(values, sites))
