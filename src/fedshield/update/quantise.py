"""Float values to small integers, rounded up or down at random so that the mean is right.

Rounding takes its uniform numbers from a counter-based generator (splitmix64, Steele et al.,
OOPSLA 2014) keyed by a derived seed: repeatable, and independent of order, so that a vector can be
quantised tensor by tensor. The generator is fast and no cipher: nothing may rest on its numbers
being unknown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedshield.errors import CryptoError
from fedshield.types import Float32

Digits = NDArray[np.int16] | NDArray[np.int32]

_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_kernel: Any = None


def quantise(
    values: Float32,
    scale: float,
    limit: int,
    seed: int,
    *,
    start: int = 0,
    out: Digits | None = None,
    residual: Float32 | None = None,
    fast: bool = True,
) -> tuple[Digits, int]:
    """clip(floor(value * scale + u), -limit, limit), u uniform in [0, 1).

    `values`: float32, (n,). `start`: the place of values[0] in a longer vector that shares the
    seed (0 to 2^64 - 1). `out`: int16 or int32, (n,), made here if not given: int16 where
    `limit` fits. `residual`: float32, (n,), filled with value - digit / scale; may be `values`.

    Returns the digits and how many values were clipped, |value * scale| > limit. Raises
    `CryptoError` for NaN or infinity (what was written to `out` and `residual` is then of no
    use), `ValueError` for arguments that fit no vector.
    """
    if not (0 < scale < float("inf") and 1 <= limit < 2**31 and start >= 0):
        raise ValueError(
            f"quantise: expected a positive scale and limit and a start from 0, got {scale}, "
            f"{limit} and {start}"
        )
    if out is None:
        out = np.empty(values.shape, dtype=np.int16 if limit < 2**15 else np.int32)
    arrays = [values, out] if residual is None else [values, out, residual]
    if (
        any(one.shape != (values.size,) for one in arrays)
        or any(one.dtype != np.float32 for one in (arrays[0], *arrays[2:]))
        or out.dtype not in (np.int16, np.int32)
        or limit > np.iinfo(out.dtype).max
    ):
        raise ValueError(
            "quantise: expected float32 (n,) and digits int16 or int32 (n,) that hold the limit, "
            f"got {[(one.dtype.name, one.shape) for one in arrays]} and limit {limit}"
        )
    work = _compiled() if fast else _reference
    counter = np.uint64((seed + start * _GAMMA) % 2**64)
    none = np.empty(0, np.float32)
    outside = int(work(values, scale, limit, counter, out, none if residual is None else residual))
    # NaN and infinity count as outside: where nothing does, there is no second pass.
    if outside:
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise CryptoError(f"quantise: expected finite values, got {bad} NaN or infinite ones")
    return out, outside


def _reference(values: Any, scale: float, limit: int, counter: Any, out: Any, residual: Any) -> int:
    with np.errstate(over="ignore"):
        z = counter + np.arange(1, values.size + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    steps = finite * scale
    outside = ~np.isfinite(values) | (np.abs(steps) > limit)
    rounded = np.clip(np.floor(steps + uniform), -limit, limit)
    out[:] = rounded.astype(out.dtype)
    if residual.size:
        residual[:] = np.where(np.isfinite(values), finite - rounded * (1.0 / scale), values)
    return int(np.count_nonzero(outside))


def _compiled() -> Any:
    global _kernel
    if _kernel is None:
        import numba

        _kernel = numba.njit(cache=True, error_model="numpy", nogil=True)(_quantise)
    return _kernel


def _quantise(values: Any, scale: float, limit: int, counter: Any, out: Any, residual: Any) -> Any:
    outside = np.int64(0)
    top = np.float64(limit)
    step = 1.0 / scale
    keep = residual.shape[0] > 0
    for j in range(out.shape[0]):
        counter += np.uint64(0x9E3779B97F4A7C15)
        z = (counter ^ (counter >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        uniform = np.float64(z >> np.uint64(11)) * 2.0**-53
        value = np.float64(values[j])
        steps = value * scale
        outside += np.int64(not abs(steps) <= top)
        rounded = min(max(np.floor(steps + uniform), -top), top)
        out[j] = np.int32(rounded)
        if keep:
            residual[j] = np.float32(value - rounded * step)
    return outside
