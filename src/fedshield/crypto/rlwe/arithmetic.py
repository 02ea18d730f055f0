"""The choice between the two arithmetics of the ring."""

from __future__ import annotations

from types import ModuleType


def arithmetic(fast: bool) -> ModuleType:
    """kernels.py, compiled by numba at the first call, or reference.py, numpy alone: the same
    functions with the same results."""
    if fast:
        from fedshield.crypto.rlwe import kernels

        return kernels
    from fedshield.crypto.rlwe import reference

    return reference
