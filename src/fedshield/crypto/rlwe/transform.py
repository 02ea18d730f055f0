# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The negacyclic number-theoretic transforms of reference.py for numba.

Eight ring elements go through the inverse transform side by side, so that every loop runs over
neighbours and needs nothing wider than what the processor has. Sums double in magnitude at each
stage; they are reduced wherever four times q could be passed (see primitives.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.rlwe.primitives import inline, jit, small, times, to_float
from fedshield.crypto.rlwe.ring import Float64, Int64, Ring, centred, ring


def forward_transform(x: Int64, here: Ring) -> None:
    """See reference.py."""
    y = x.astype(np.float64)
    _forward(y, *_float_roots(here.q, False), float(here.q))
    x[:] = y
    x += np.where(x < 0, here.q, 0)


@jit
def _forward(x: Any, roots: Any, roots_over_q: Any, q: float) -> None:
    """Once a key: simple rather than fast."""
    width = RING_DEGREE >> 1
    groups = 1
    while groups < RING_DEGREE:
        for i in range(groups):
            w = roots[groups + i]
            w_over_q = roots_over_q[groups + i]
            for k in range(2 * i * width, (2 * i + 1) * width):
                u = x[k]
                v = times(x[k + width], w, w_over_q, q)
                x[k] = small(u + v, q, 1.0 / q)
                x[k + width] = small(u - v, q, 1.0 / q)
        width >>= 1
        groups *= 2


def prepare(w: Int64, here: Ring) -> Any:
    """The key and the roots, centred, each with its quotient by q."""
    key = centred(w, here.q).astype(np.float64)
    return key, key / here.q, *_float_roots(here.q, True), here.q


@lru_cache(maxsize=32)
def _float_roots(q: int, inverse: bool) -> tuple[Float64, Float64]:
    """The roots, centred, and their quotients by q."""
    roots = centred(ring(q).inverse_roots if inverse else ring(q).roots, q).astype(np.float64)
    return roots, roots / q


def multiply_back(low: Any, middle: Any, high: Any, mask: int, prepared: Any, out: Float64) -> int:
    """See reference.py."""
    key, key_over_q, roots, roots_over_q, q = prepared
    if high.size:
        largest = _decode_wide(low, middle, high, mask, out)
    else:
        largest = _decode(low, middle, mask, out)
    _inverse(out, key, key_over_q, roots, roots_over_q, float(q))
    return int(largest)


@jit
def _decode(low: Any, middle: Any, mask: int, out: Any) -> Any:
    cut = np.uint64(mask)
    largest = np.uint64(0)
    for k in range(out.shape[0]):
        a = (np.uint64(low[k]) | (np.uint64(middle[k]) << np.uint64(32))) & cut
        largest = max(largest, a)
        out[k] = to_float(a)
    return largest


@jit
def _decode_wide(low: Any, middle: Any, high: Any, mask: int, out: Any) -> Any:
    cut = np.uint64(mask)
    largest = np.uint64(0)
    for k in range(out.shape[0]):
        a = np.uint64(low[k]) | (np.uint64(middle[k]) << np.uint64(32))
        a = (a | (np.uint64(high[k]) << np.uint64(48))) & cut
        largest = max(largest, a)
        out[k] = to_float(a)
    return largest


@inline
def _meet(u, v, w, f, q):
    """Gentleman and Sande's butterfly."""
    return u + v, times(u - v, w, f, q)


@inline
def _roots(x, half, i):
    """The roots of four stages for the i-th sixteen; `half`: groups of the first stage. Read
    before the loops, where the compiler knows that nothing overwrites them."""
    r, s, t, u = half + 8 * i, (half >> 1) + 4 * i, (half >> 2) + 2 * i, (half >> 3) + i
    return (
        x[r], x[r + 1], x[r + 2], x[r + 3], x[r + 4], x[r + 5], x[r + 6], x[r + 7],
        x[s], x[s + 1], x[s + 2], x[s + 3], x[t], x[t + 1], x[u],
    )  # fmt: skip


@inline
def _sixteen(x, w, f, q, q_inverse):
    """Four stages over sixteen numbers of magnitude up to q; so is the result. w, f: see
    `_roots`."""
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15 = x
    a0, a1 = _meet(a0, a1, w[0], f[0], q)
    a2, a3 = _meet(a2, a3, w[1], f[1], q)
    a4, a5 = _meet(a4, a5, w[2], f[2], q)
    a6, a7 = _meet(a6, a7, w[3], f[3], q)
    a8, a9 = _meet(a8, a9, w[4], f[4], q)
    a10, a11 = _meet(a10, a11, w[5], f[5], q)
    a12, a13 = _meet(a12, a13, w[6], f[6], q)
    a14, a15 = _meet(a14, a15, w[7], f[7], q)
    a0, a2 = _meet(a0, a2, w[8], f[8], q)
    a1, a3 = _meet(a1, a3, w[8], f[8], q)
    a4, a6 = _meet(a4, a6, w[9], f[9], q)
    a5, a7 = _meet(a5, a7, w[9], f[9], q)
    a8, a10 = _meet(a8, a10, w[10], f[10], q)
    a9, a11 = _meet(a9, a11, w[10], f[10], q)
    a12, a14 = _meet(a12, a14, w[11], f[11], q)
    a13, a15 = _meet(a13, a15, w[11], f[11], q)
    # Sums of four and of two products; the others are products.
    a0, a1 = small(a0, q, q_inverse), small(a1, q, q_inverse)
    a4, a5 = small(a4, q, q_inverse), small(a5, q, q_inverse)
    a8, a9 = small(a8, q, q_inverse), small(a9, q, q_inverse)
    a12, a13 = small(a12, q, q_inverse), small(a13, q, q_inverse)
    a0, a4 = _meet(a0, a4, w[12], f[12], q)
    a1, a5 = _meet(a1, a5, w[12], f[12], q)
    a2, a6 = _meet(a2, a6, w[12], f[12], q)
    a3, a7 = _meet(a3, a7, w[12], f[12], q)
    a8, a12 = _meet(a8, a12, w[13], f[13], q)
    a9, a13 = _meet(a9, a13, w[13], f[13], q)
    a10, a14 = _meet(a10, a14, w[13], f[13], q)
    a11, a15 = _meet(a11, a15, w[13], f[13], q)
    a0, a8 = _meet(a0, a8, w[14], f[14], q)
    a1, a9 = _meet(a1, a9, w[14], f[14], q)
    a2, a10 = _meet(a2, a10, w[14], f[14], q)
    a3, a11 = _meet(a3, a11, w[14], f[14], q)
    a4, a12 = _meet(a4, a12, w[14], f[14], q)
    a5, a13 = _meet(a5, a13, w[14], f[14], q)
    a6, a14 = _meet(a6, a14, w[14], f[14], q)
    a7, a15 = _meet(a7, a15, w[14], f[14], q)
    a0, a1 = small(a0, q, q_inverse), small(a1, q, q_inverse)
    a2, a3 = small(a2, q, q_inverse), small(a3, q, q_inverse)
    a4, a5 = small(a4, q, q_inverse), small(a5, q, q_inverse)
    a6, a7 = small(a6, q, q_inverse), small(a7, q, q_inverse)
    return a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15


@inline
def _load(x, at, step):
    return (
        x[at], x[at + step], x[at + 2 * step], x[at + 3 * step],
        x[at + 4 * step], x[at + 5 * step], x[at + 6 * step], x[at + 7 * step],
        x[at + 8 * step], x[at + 9 * step], x[at + 10 * step], x[at + 11 * step],
        x[at + 12 * step], x[at + 13 * step], x[at + 14 * step], x[at + 15 * step],
    )  # fmt: skip


@inline
def _store(x, at, step, a):
    x[at], x[at + step], x[at + 2 * step], x[at + 3 * step] = a[0], a[1], a[2], a[3]
    x[at + 4 * step], x[at + 5 * step], x[at + 6 * step], x[at + 7 * step] = a[4], a[5], a[6], a[7]
    x[at + 8 * step], x[at + 9 * step] = a[8], a[9]
    x[at + 10 * step], x[at + 11 * step] = a[10], a[11]
    x[at + 12 * step], x[at + 13 * step] = a[12], a[13]
    x[at + 14 * step], x[at + 15 * step] = a[14], a[15]


@inline
def _scaled(a, w, f, q):
    return (
        times(a[0], w[0], f[0], q), times(a[1], w[1], f[1], q),
        times(a[2], w[2], f[2], q), times(a[3], w[3], f[3], q),
        times(a[4], w[4], f[4], q), times(a[5], w[5], f[5], q),
        times(a[6], w[6], f[6], q), times(a[7], w[7], f[7], q),
        times(a[8], w[8], f[8], q), times(a[9], w[9], f[9], q),
        times(a[10], w[10], f[10], q), times(a[11], w[11], f[11], q),
        times(a[12], w[12], f[12], q), times(a[13], w[13], f[13], q),
        times(a[14], w[14], f[14], q), times(a[15], w[15], f[15], q),
    )  # fmt: skip


@jit
def _inverse(x: Any, w: Any, w_over_q: Any, roots: Any, f: Any, q: float) -> None:
    """x times w, then the inverse negacyclic NTT in place, Gentleman-Sande, from bit-reversed to
    natural order; four stages in one pass over memory. N = 16^3."""
    q_inverse = 1.0 / q
    for i in range(256):
        first = _load(w, 16 * i, 1)
        first_over_q = _load(w_over_q, 16 * i, 1)
        r = _roots(roots, 2048, i)
        g = _roots(f, 2048, i)
        for k in range(i * 128, i * 128 + 8):
            a = _load(x, k, 8)
            a = _scaled(a, first, first_over_q, q)
            _store(x, k, 8, _sixteen(a, r, g, q, q_inverse))
    for i in range(16):
        r = _roots(roots, 128, i)
        g = _roots(f, 128, i)
        for k in range(i * 2048, i * 2048 + 128):
            _store(x, k, 128, _sixteen(_load(x, k, 128), r, g, q, q_inverse))
    r = _roots(roots, 8, 0)
    g = _roots(f, 8, 0)
    for k in range(2048):
        _store(x, k, 2048, _sixteen(_load(x, k, 2048), r, g, q, q_inverse))
