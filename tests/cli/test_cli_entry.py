"""What the entry point sees to before anything else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# The version is printed before torch is loaded; then its OpenMP says what it goes by.
VERSION = """
import sys
from fedshield.cli import main
sys.argv = ["fedshield", "--version"]
try:
    main()
except SystemExit:
    assert "torch" not in sys.modules
import torch
"""


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000"),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_has_said_otherwise(
    given: dict[str, str], spins: str
) -> None:
    """Asked of the OpenMP library itself: it reads its environment once, when torch is loaded."""
    neither = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {key: value for key, value in os.environ.items() if key not in neither}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "OMP_NUM_THREADS": "2"} | given
    done = subprocess.run(
        [sys.executable, "-c", VERSION],
        env=environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert said, done.stderr
    assert all(f"'{spins}'" in line for line in said), said
