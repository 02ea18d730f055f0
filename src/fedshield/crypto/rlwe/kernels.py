"""The arithmetic of reference.py for numba: compiled at the first call, cached on disk.

Eight ring elements go through the transform side by side, so every loop runs over eight
neighbours and needs nothing wider than what the processor has. Products mod q < 2^50 are made of
float64 with fused multiply-add: h + l is the exact product, and h - k q + l, k = the rounded
quotient, is the centred remainder, exact because all parts are integers below 2^53 (Shoup's
quotient in floating point; see Brisebarre et al., "Floating-point LLL" style error terms).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from fedshield.crypto.rlwe.params import ETA, RING_DEGREE
from fedshield.crypto.rlwe.ring import Float64, Int64, Ring, centred

LANES = 8
STREAMS = 64

_jit: Any = numba.njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = numba.njit(cache=True, error_model="numpy", inline="always")


def _fma_intrinsic(_context, x, y, z):  # type: ignore[no-untyped-def]
    """x * y + z, rounded once."""

    def emit(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        return builder.fma(*args)

    double = types.float64
    return double(double, double, double), emit


def _ones_intrinsic(_context, x):  # type: ignore[no-untyped-def]
    """Bits set in a 64-bit word."""

    def emit(_context, builder, _signature, args):  # type: ignore[no-untyped-def]
        return builder.ctpop(*args)

    return types.uint64(types.uint64), emit


_fma: Any = intrinsic(_fma_intrinsic)
_ones: Any = intrinsic(_ones_intrinsic)

# 1.5 * 2^52: adding and taking it away rounds to the nearest integer.
_ROUND = 6755399441055744.0


@_inline
def _times(x, w, w_over_q, q):  # type: ignore[no-untyped-def]
    high = x * w
    low = _fma(x, w, -high)
    quotient = (x * w_over_q + _ROUND) - _ROUND
    return _fma(-quotient, q, high) + low


@_inline
def _small(x, q, q_inverse):  # type: ignore[no-untyped-def]
    """The centred remainder of a sum."""
    return _fma(-((x * q_inverse + _ROUND) - _ROUND), q, x)


# -- transforms ----------------------------------------------------------------------------


def forward_transform(x: Int64, here: Ring) -> None:
    """See reference.py."""
    _forward(x, here.roots, here.roots / here.q, here.q)


@_inline
def _reduce(a, w, w_over_q, q):  # type: ignore[no-untyped-def]
    r = a * w - np.int64(np.float64(a) * w_over_q) * q
    r += q & (r >> 63)
    r -= q
    return r + (q & (r >> 63))


@_jit
def _forward(x: Any, roots: Any, roots_over_q: Any, q: int) -> None:
    degree = roots.shape[0]
    width = degree >> 1
    groups = 1
    while groups < degree:
        base = 0
        for i in range(groups):
            w = roots[groups + i]
            w_over_q = roots_over_q[groups + i]
            low = x[base : base + width]
            high = x[base + width : base + 2 * width]
            for k in range(width):
                u = low[k]
                v = _reduce(high[k], w, w_over_q, q)
                total = u + v - q
                low[k] = total + (q & (total >> 63))
                difference = u - v
                high[k] = difference + (q & (difference >> 63))
            base += 2 * width
        width >>= 1
        groups *= 2


def prepare(w: Int64, here: Ring) -> Any:
    """The key and the roots, centred, each with its quotient by q."""
    key = centred(w, here.q).astype(np.float64)
    roots = centred(here.inverse_roots, here.q).astype(np.float64)
    return key, key / here.q, roots, roots / here.q, here.q


def multiply_back(low: Any, middle: Any, high: Any, mask: int, prepared: Any, out: Float64) -> int:
    """See reference.py."""
    key, key_over_q, roots, roots_over_q, q = prepared
    largest = _multiply(low, middle, high, mask, key, key_over_q, float(q), out)
    _inverse(out, roots, roots_over_q, float(q))
    return int(largest)


@_jit
def _multiply(
    low: Any, middle: Any, high: Any, mask: int, w: Any, w_over_q: Any, q: float, out: Any
) -> Any:
    largest = np.int64(0)
    for j in range(w.shape[0]):
        for k in range(j * LANES, (j + 1) * LANES):
            a = np.int64(low[k]) | (np.int64(middle[k]) << 32)
            if high.shape[0]:
                a |= np.int64(high[k]) << 48
            a &= mask
            largest = max(largest, a)
            out[k] = _times(np.float64(a), w[j], w_over_q[j], q)
    return largest


@_jit
def _inverse(x: Any, roots: Any, roots_over_q: Any, q: float) -> None:
    """Inverse negacyclic NTT in place, Gentleman-Sande, from bit-reversed to natural order, two
    stages in one pass over memory."""
    q_inverse = 1.0 / q
    width = LANES
    half = RING_DEGREE >> 1
    while half >= 2:
        base = 0
        for i in range(half >> 1):
            w0 = roots[half + 2 * i]
            f0 = roots_over_q[half + 2 * i]
            w1 = roots[half + 2 * i + 1]
            f1 = roots_over_q[half + 2 * i + 1]
            w2 = roots[(half >> 1) + i]
            f2 = roots_over_q[(half >> 1) + i]
            x0 = x[base : base + width]
            x1 = x[base + width : base + 2 * width]
            x2 = x[base + 2 * width : base + 3 * width]
            x3 = x[base + 3 * width : base + 4 * width]
            for k in range(width):
                a = x0[k]
                b = x1[k]
                c = x2[k]
                d = x3[k]
                s0 = a + b
                d0 = _times(a - b, w0, f0, q)
                s1 = c + d
                d1 = _times(c - d, w1, f1, q)
                x0[k] = _small(s0 + s1, q, q_inverse)
                x2[k] = _times(s0 - s1, w2, f2, q)
                x1[k] = _small(d0 + d1, q, q_inverse)
                x3[k] = _times(d0 - d1, w2, f2, q)
            base += 4 * width
        width *= 4
        half >>= 2


# -- digits --------------------------------------------------------------------------------


@_inline
def _floor_divide(x, by, inverse):  # type: ignore[no-untyped-def]
    """x // by for by > 0 and |x / by| < 2^50: a float guess, corrected by at most one."""
    guess = np.int64(np.floor(np.float64(x) * inverse))
    rest = x - guess * by
    return guess + (rest >> 63) + np.int64(rest >= by)


@_jit
def pack_digits(values: Any, radix: int, digits: int, out: Any) -> None:
    """See reference.py."""
    count = values.shape[0]
    whole = min(count // digits, out.shape[0])
    for c in range(whole):
        total = np.int64(0)
        for k in range(digits - 1, -1, -1):
            total = total * radix + np.int64(values[c * digits + k])
        out[c] = total
    for c in range(whole, out.shape[0]):
        total = np.int64(0)
        for k in range(digits - 1, -1, -1):
            at = c * digits + k
            total = total * radix + (np.int64(values[at]) if at < count else np.int64(0))
        out[c] = total


@_jit
def unpack_digits(coefficients: Any, radix: int, digits: int, out: Any) -> None:
    """See reference.py."""
    half = (radix - 1) // 2
    inverse = 1.0 / radix
    count = out.shape[0]
    whole = min(count // digits, coefficients.shape[0])
    for c in range(whole):
        rest = coefficients[c]
        for k in range(digits):
            quotient = _floor_divide(rest + half, radix, inverse)
            out[c * digits + k] = rest - quotient * radix
            rest = quotient
    for at in range(whole * digits, count):
        rest = coefficients[whole]
        for _ in range(at - whole * digits):
            rest = _floor_divide(rest + half, radix, inverse)
        out[at] = rest - _floor_divide(rest + half, radix, inverse) * radix


def inner_products(messages: Int64, v: Int64, q: int, out: Int64) -> None:
    """See reference.py."""
    _inner_products(messages, v, v / q, q, out)


@_jit
def _inner_products(messages: Any, v: Any, v_over_q: Any, q: int, out: Any) -> None:
    for block in range(out.shape[0]):
        part = messages[block * RING_DEGREE : (block + 1) * RING_DEGREE]
        for r in range(out.shape[1]):
            row = v[r]
            quotients = v_over_q[r]
            total = np.int64(0)
            for c in range(RING_DEGREE):
                # Wrapped, but the difference is within (-2q, 2q), and 4096 of them within 2^63.
                m = part[c]
                total += m * row[c] - np.int64(np.float64(m) * quotients[c]) * q
            out[block, r] = total % q


# -- words ---------------------------------------------------------------------------------


@_jit
def binomial(words: Any, halves: Any, nibbles: Any, out: Any) -> None:
    """See reference.py."""
    half = nibbles.shape[0]
    for p in range(half):
        out[p] = (
            np.int64(
                _ones(words[p]) + _ones(np.uint64(halves[p]) | (np.uint64(nibbles[p] & 15) << 16))
            )
            - ETA
        )
    for p in range(half):
        out[half + p] = (
            np.int64(
                _ones(words[half + p])
                + _ones(np.uint64(halves[half + p]) | (np.uint64(nibbles[p] >> 4) << 16))
            )
            - ETA
        )


@_jit
def encrypt_blocks(
    product: Any, words: Any, halves: Any, nibbles: Any, messages: Any,
    delta: int, q: int, dropped: int, bits: int, out: Any,
) -> None:  # fmt: skip
    """See reference.py."""
    half = nibbles.shape[0]
    row = np.empty(STREAMS, dtype=np.int64)
    for block in range(messages.shape[0] // RING_DEGREE):
        packed = out[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        for i in range(STREAMS):
            start = block * RING_DEGREE + i * STREAMS
            upper = start >= half
            shift = 4 if upper else 0
            first = start - half if upper else start
            for s in range(STREAMS):
                p = start + s
                ones = _ones(words[p]) + _ones(
                    np.uint64(halves[p]) | (np.uint64((nibbles[first + s] >> shift) & 15) << 16)
                )
                c = np.int64(product[p]) + np.int64(ones) - ETA + delta * messages[p]
                c += q & (c >> 63)
                c += q & (c >> 63)
                c -= q
                c += q & (c >> 63)
                row[s] = c >> dropped
            _place(row, i, bits, packed)


@_inline
def _place(row, i, bits, packed):  # type: ignore[no-untyped-def]
    """Row i of a block, 64 words, into the 64 streams."""
    at = i * bits
    t = at >> 6
    shift = np.uint64(at & 63)
    if shift == 0:
        for s in range(STREAMS):
            packed[t * STREAMS + s] = np.uint64(row[s])
        return
    for s in range(STREAMS):
        packed[t * STREAMS + s] |= np.uint64(row[s]) << shift
    if shift + np.uint64(bits) > np.uint64(64):
        for s in range(STREAMS):
            packed[(t + 1) * STREAMS + s] = np.uint64(row[s]) >> (np.uint64(64) - shift)


@_jit
def pack_words(words: Any, bits: int, out: Any) -> None:
    """See reference.py."""
    for block in range(words.shape[0] // RING_DEGREE):
        packed = out[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        for i in range(STREAMS):
            start = block * RING_DEGREE + i * STREAMS
            _place(words[start : start + STREAMS], i, bits, packed)


@_jit
def add_words(packed: Any, bits: int, total: Any) -> None:
    """See reference.py."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for block in range(total.shape[0] // RING_DEGREE):
        part = packed[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        for i in range(STREAMS):
            row = total[block * RING_DEGREE + i * STREAMS :][:STREAMS]
            at = i * bits
            t = at >> 6
            shift = np.uint64(at & 63)
            if shift + np.uint64(bits) > np.uint64(64):
                back = np.uint64(64) - shift
                for s in range(STREAMS):
                    row[s] += np.int64(
                        ((part[t * STREAMS + s] >> shift) | (part[(t + 1) * STREAMS + s] << back))
                        & mask
                    )
            else:
                for s in range(STREAMS):
                    row[s] += np.int64((part[t * STREAMS + s] >> shift) & mask)


@_jit
def open_blocks(
    packed: Any, bits: int, product: Any, middle: int, dropped: int, delta: int, q: int,
    out: Any, squares: Any,
) -> Any:  # fmt: skip
    """See reference.py."""
    half = q // 2
    half_delta = delta // 2
    inverse_q = 1.0 / q
    inverse_delta = 1.0 / delta
    out[:] = 0
    add_words(packed, bits, out)
    largest = np.int64(0)
    for block in range(squares.shape[0]):
        found = 0.0
        for p in range(block * RING_DEGREE, (block + 1) * RING_DEGREE):
            word = out[p]
            largest = max(largest, word)
            v = (word << dropped) + middle - np.int64(product[p]) + half
            v -= _floor_divide(v, q, inverse_q) * q
            v -= half
            message = _floor_divide(v + half_delta, delta, inverse_delta)
            out[p] = message
            left = np.float64(v - message * delta)
            found += left * left
        squares[block] = found
    return largest
