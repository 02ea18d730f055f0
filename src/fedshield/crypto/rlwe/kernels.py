"""The fast path: numba kernels, compiled at their first call and cached on disk.

Eight blocks go through the transform side by side (index [coefficient * 8 + lane]), so every
stage has a contiguous inner loop and needs nothing wider than what the processor has. A product
mod q < 2^50 takes the quotient from float64: a * (w/q) is wrong by less than one, so the
wrapped 64-bit difference lies in (-q, 2q) and two conditional steps bring it home. Divisions by
delta and radix are done the same way and then corrected, so they are exact.

ring.py has the same functions in numpy; tests hold the two to equal results.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

LANES = 8

_jit: Any = numba.njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = numba.njit(cache=True, error_model="numpy", inline="always")


@_inline
def _reduce(a, w, w_over_q, q):  # type: ignore[no-untyped-def]
    r = a * w - np.int64(np.float64(a) * w_over_q) * q
    r += q & (r >> 63)
    r -= q
    return r + (q & (r >> 63))


@_inline
def _floor_divide(x, by, inverse):  # type: ignore[no-untyped-def]
    """x // by for by > 0 and |x / by| < 2^50: a float guess, corrected by at most one."""
    guess = np.int64(np.floor(np.float64(x) * inverse))
    rest = x - guess * by
    return guess + (rest >> 63) + np.int64(rest >= by)


@_jit
def multiply(a: Any, w: Any, w_over_q: Any, q: int, out: Any) -> None:
    """out[j * 8 + lane] = a[lane, j] * w[j] mod q; a: (8, N), w: (N,), all in [0, q)."""
    lanes, degree = a.shape
    for lane in range(lanes):
        for j in range(degree):
            out[j * LANES + lane] = _reduce(a[lane, j], w[j], w_over_q[j], q)


@_jit
def inverse_transform(x: Any, roots: Any, roots_over_q: Any, q: int, n_inverse: int) -> None:
    """Inverse negacyclic NTT in place, Gentleman-Sande, from bit-reversed to natural order.
    x: (N * 8,) interleaved, in [0, q). Two stages in one pass over memory; N is a power of 4."""
    degree = roots.shape[0]
    width = LANES
    half = degree >> 1
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
                s0 = a + b - q
                s0 += q & (s0 >> 63)
                d0 = _reduce(a - b + q, w0, f0, q)
                s1 = c + d - q
                s1 += q & (s1 >> 63)
                d1 = _reduce(c - d + q, w1, f1, q)
                t = s0 + s1 - q
                x0[k] = t + (q & (t >> 63))
                x2[k] = _reduce(s0 - s1 + q, w2, f2, q)
                t = d0 + d1 - q
                x1[k] = t + (q & (t >> 63))
                x3[k] = _reduce(d0 - d1 + q, w2, f2, q)
            base += 4 * width
        width *= 4
        half >>= 2
    n_over_q = n_inverse / q
    for k in range(x.shape[0]):
        x[k] = _reduce(x[k], n_inverse, n_over_q, q)


@_jit
def forward_transform(x: Any, roots: Any, roots_over_q: Any, q: int) -> None:
    """Forward negacyclic NTT in place, Cooley-Tukey, natural to bit-reversed order. x: (N,)."""
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


@_inline
def _popcount(x):  # type: ignore[no-untyped-def]
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_jit
def binomial(words: Any, out: Any) -> None:
    """Two centred binomial integers from three words, see sampling.binomial. out: (2m,)."""
    m = out.shape[0] // 2
    first = words[:m]
    second = words[m : 2 * m]
    third = words[2 * m : 3 * m]
    low = out[:m]
    high = out[m:]
    mask = np.uint64((1 << 42) - 1)
    for k in range(m):
        a = first[k]
        b = second[k]
        low[k] = _popcount(a & mask) - _popcount(b & mask)
        rest = (a >> np.uint64(42)) | ((b >> np.uint64(42)) << np.uint64(22))
        high[k] = _popcount(rest & mask) - _popcount(third[k] & mask)


@_jit
def masked(words: Any, mask: Any, out: Any) -> Any:
    """out[j] = words[j] & mask; returns the largest, so that the caller can reject."""
    largest = np.int64(0)
    for j in range(out.shape[0]):
        value = np.int64(words[j] & mask)
        out[j] = value
        largest = max(largest, value)
    return largest


@_jit
def combine(
    product: Any, errors: Any, messages: Any, delta: int, q: int, dropped: int, out: Any
) -> None:
    """out[lane, j] = ((product[j*8+lane] + errors[lane, j] + delta * messages[lane, j]) mod q)
    >> dropped. |delta * message| < q/2, so two steps down and one up are enough."""
    lanes, degree = out.shape
    for lane in range(lanes):
        for j in range(degree):
            c = product[j * LANES + lane] + errors[lane, j] + delta * messages[lane, j]
            c += q & (c >> 63)
            c -= q
            c += q & (c >> 63)
            c -= q
            c += q & (c >> 63)
            out[lane, j] = c >> dropped


@_jit
def pack_digits(values: Any, radix: int, digits: int, out: Any) -> None:
    """out[c] = sum over k of values[c * digits + k] * radix^k; missing values are zero."""
    count = values.shape[0]
    whole = count // digits
    for c in range(whole):
        total = np.int64(0)
        for k in range(digits - 1, -1, -1):
            total = total * radix + values[c * digits + k]
        out[c] = total
    for c in range(whole, out.shape[0]):
        total = np.int64(0)
        for k in range(digits - 1, -1, -1):
            at = c * digits + k
            total = total * radix + (values[at] if at < count else 0)
        out[c] = total


@_jit
def unpack_digits(coefficients: Any, radix: int, digits: int, out: Any) -> None:
    """The balanced digits of each coefficient: the inverse of pack_digits."""
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


@_jit
def pack_words(words: Any, bits: int, out: Any) -> None:
    """Bit stream of `bits`-bit words into 64-bit words, lowest bits first."""
    held = np.uint64(0)
    filled = np.uint64(0)
    width = np.uint64(bits)
    at = 0
    for j in range(words.shape[0]):
        word = np.uint64(words[j])
        held |= word << filled
        filled += width
        if filled >= np.uint64(64):
            out[at] = held
            at += 1
            filled -= np.uint64(64)
            # Shifts stay below 64: bits - filled is at least one here.
            held = word >> (width - filled)
    if filled > np.uint64(0):
        out[at] = held


@_jit
def add_words(packed: Any, bits: int, total: Any) -> None:
    """total[j] += the j-th `bits`-bit word of the stream `packed` of 64-bit words, which is
    followed by at least one more."""
    width = np.uint64(bits)
    mask = (np.uint64(1) << width) - np.uint64(1)
    for j in range(total.shape[0]):
        start = np.uint64(j) * width
        at = start >> np.uint64(6)
        shift = start & np.uint64(63)
        # Twice, so that a shift by 64 never happens.
        high = (packed[at + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)
        total[j] += np.int64(((packed[at] >> shift) | high) & mask)


@_jit
def open_block(
    total: Any, product: Any, lane: int, middle: int, dropped: int, delta: int, q: int, out: Any
) -> float:
    """From summed words to the message: out[j] = floor((v + delta//2) / delta), v = total * 2^d +
    middle - product, centred mod q. Returns the sum of squares of v - delta * out."""
    squares = 0.0
    half = q // 2
    half_delta = delta // 2
    inverse_q = 1.0 / q
    inverse_delta = 1.0 / delta
    for j in range(out.shape[0]):
        v = (total[j] << dropped) + middle - product[j * LANES + lane] + half
        v -= _floor_divide(v, q, inverse_q) * q
        v -= half
        message = _floor_divide(v + half_delta, delta, inverse_delta)
        out[j] = message
        left = np.float64(v - message * delta)
        squares += left * left
    return squares
