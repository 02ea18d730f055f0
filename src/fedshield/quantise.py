"""Float values to small integers, rounded up or down at random so that the mean is right.

Rounding takes its uniform numbers from a counter-based generator (splitmix64, Steele et al.,
OOPSLA 2014) keyed by a derived seed: not a secret, repeatable, and independent of order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedshield.types import Float32

Int64 = NDArray[np.int64]

_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_kernel: Any = None


def quantise(
    values: Float32, clip: float, limit: int, seed: int, fast: bool = True
) -> tuple[Int64, int]:
    """Integers in [-limit, limit] for values in [-clip, clip], stochastically rounded.

    `values`: float32, (n,). Returns int64 (n,) and how many values lay beyond the clip.
    """
    if not (clip > 0 and limit >= 1):
        raise ValueError(f"expected a positive clip and limit, got {clip} and {limit}")
    scale = limit / clip
    if fast:
        out = np.empty(values.size, dtype=np.int64)
        clipped = _compiled()(values, scale, limit, np.uint64(seed), out)
        return out, int(clipped)
    with np.errstate(over="ignore"):
        index = np.arange(1, values.size + 1, dtype=np.uint64)
        z = np.uint64(seed) + index * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    steps = values.astype(np.float64) * scale
    rounded = np.floor(steps + uniform)
    clipped = int(np.count_nonzero(np.abs(steps) > limit))
    return np.clip(rounded, -limit, limit).astype(np.int64), clipped


def _compiled() -> Any:
    global _kernel
    if _kernel is None:
        import numba

        _kernel = numba.njit(cache=True, error_model="numpy", nogil=True)(_quantise)
    return _kernel


def _quantise(values: Any, scale: float, limit: int, seed: Any, out: Any) -> Any:
    clipped = np.int64(0)
    top = np.float64(limit)
    for j in range(out.shape[0]):
        z = seed + np.uint64(j + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        uniform = np.float64(z >> np.uint64(11)) * 2.0**-53
        steps = np.float64(values[j]) * scale
        clipped += np.int64(abs(steps) > top)
        out[j] = np.int64(min(max(np.floor(steps + uniform), -top), top))
    return clipped
