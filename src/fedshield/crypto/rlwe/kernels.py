"""The fast path: numba kernels, compiled at their first call and cached on disk.

Eight blocks go through the transform side by side (index [coefficient * 8 + lane]), so every
stage has a contiguous inner loop and needs nothing wider than what the processor has. A product
mod q < 2^50 takes the quotient from float64: a * (w/q) is wrong by less than one, so the
wrapped 64-bit difference lies in (-q, 2q) and two conditional steps bring it home.

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
    x: (N * 8,) interleaved, in [0, q)."""
    degree = roots.shape[0]
    width = LANES
    half = degree >> 1
    while half >= 1:
        base = 0
        for i in range(half):
            w = roots[half + i]
            w_over_q = roots_over_q[half + i]
            low = x[base : base + width]
            high = x[base + width : base + 2 * width]
            for k in range(width):
                u = low[k]
                v = high[k]
                total = u + v - q
                low[k] = total + (q & (total >> 63))
                difference = u - v
                difference += q & (difference >> 63)
                high[k] = _reduce(difference, w, w_over_q, q)
            base += 2 * width
        width *= 2
        half >>= 1
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
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_jit
def binomial(words: Any, mask: Any, out: Any) -> None:
    """out[j] = popcount(words[2j] & mask) - popcount(words[2j+1] & mask): centred binomial."""
    for j in range(out.shape[0]):
        out[j] = np.int64(_popcount(words[2 * j] & mask)) - np.int64(
            _popcount(words[2 * j + 1] & mask)
        )


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
    >> dropped. |messages| <= P/2, so one wrap each way is enough."""
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
    for c in range(out.shape[0]):
        total = np.int64(0)
        for k in range(digits - 1, -1, -1):
            at = c * digits + k
            total = total * radix + (values[at] if at < count else 0)
        out[c] = total


@_jit
def unpack_digits(coefficients: Any, radix: int, digits: int, out: Any) -> None:
    """The balanced digits of each coefficient: the inverse of pack_digits."""
    half = (radix - 1) // 2
    count = out.shape[0]
    for c in range(coefficients.shape[0]):
        rest = coefficients[c]
        for k in range(digits):
            shifted = rest + half
            quotient = shifted // radix
            digit = shifted - quotient * radix - half
            rest = quotient
            at = c * digits + k
            if at < count:
                out[at] = digit


@_jit
def pack_words(words: Any, bits: int, out: Any) -> None:
    """Little-endian bit stream of `bits`-bit words into bytes; whole bytes in all."""
    held = np.uint64(0)
    filled = 0
    at = 0
    for j in range(words.shape[0]):
        word = np.uint64(words[j])
        held |= word << np.uint64(filled)
        total = filled + bits
        if total >= 64:
            for k in range(8):
                out[at + k] = np.uint8((held >> np.uint64(8 * k)) & np.uint64(255))
            at += 8
            taken = 64 - filled
            held = word >> np.uint64(taken) if taken < 64 else np.uint64(0)
            filled = total - 64
        else:
            filled = total
    while filled > 0:
        out[at] = np.uint8(held & np.uint64(255))
        held >>= np.uint64(8)
        filled -= 8
        at += 1


@_jit
def add_words(packed: Any, bits: int, total: Any) -> None:
    """total[j] += the j-th `bits`-bit word of the little-endian bit stream `packed`, which is
    followed by at least eight bytes that are not read as words."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for j in range(total.shape[0]):
        start = j * bits
        at = start >> 3
        shift = np.uint64(start & 7)
        word = np.uint64(0)
        for k in range(8):
            word |= np.uint64(packed[at + k]) << np.uint64(8 * k)
        total[j] += np.int64((word >> shift) & mask)


@_jit
def open_block(
    total: Any, product: Any, lane: int, middle: int, dropped: int, delta: int, q: int, out: Any
) -> float:
    """From summed words to the message: out[j] = round((y - aS) / delta) with y = total * 2^d +
    middle, centred mod q. Returns the sum of squares of what is left over."""
    squares = 0.0
    half = q // 2
    for j in range(out.shape[0]):
        y = ((total[j] << dropped) + middle) % q
        v = y - product[j * LANES + lane]
        v += q & (v >> 63)
        if v > half:
            v -= q
        message = (v + (delta // 2 if v >= 0 else -(delta // 2))) // delta
        if v < 0:
            message = -((-v + delta // 2) // delta)
        out[j] = message
        left = np.float64(v - message * delta)
        squares += left * left
    return squares
