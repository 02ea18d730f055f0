# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The arithmetic of reference.py for numba: digits, tags, words. Compiled at the first call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedshield.crypto.rlwe.params import ETA, RING_DEGREE
from fedshield.crypto.rlwe.primitives import (
    cut,
    fma,
    inline,
    jit,
    ones_in,
    small,
    times,
    to_float,
    to_float_signed,
    to_int,
)
from fedshield.crypto.rlwe.ring import Float64, Int64, centred
from fedshield.crypto.rlwe.transform import forward_transform, multiply_back, prepare

__all__ = [
    "add_words",
    "binomial",
    "encrypt_blocks",
    "forward_transform",
    "inner_products",
    "multiply_back",
    "open_blocks",
    "pack_digits",
    "pack_words",
    "prepare",
    "prepare_tag",
    "unpack_digits",
]

STREAMS = 64
#: Coefficients that are packed or unpacked together, so that they stay in the nearest cache.
_TILE = 1024


# -- digits --------------------------------------------------------------------------------


@jit
def pack_digits(values: Any, stride: int, start: int, radix: int, digits: int, out: Any) -> None:
    """See reference.py."""
    r = np.float64(radix)
    for low in range(0, out.shape[0], _TILE):
        tile = out[low : low + _TILE]
        tile[:] = 0.0
        first = start + low
        for k in range(digits - 1, -1, -1):
            # Values of this digit that are there: within the plane and within the vector.
            end = min(stride, values.shape[0] - k * stride)
            part = values[k * stride + min(first, end) : k * stride + end]
            for c in range(min(part.shape[0], tile.shape[0])):
                tile[c] = tile[c] * r + np.float64(part[c])


@jit
def unpack_digits(
    coefficients: Any, stride: int, start: int, radix: int, digits: int, out: Any
) -> None:
    """See reference.py."""
    r = np.float64(radix)
    inverse = 1.0 / r
    # The half keeps the quotient away from integers by more than it can be wrong.
    half = np.float64((radix - 1) // 2) + 0.5
    rest = np.empty(_TILE)
    for low in range(0, coefficients.shape[0], _TILE):
        tile = coefficients[low : low + _TILE]
        for c in range(tile.shape[0]):
            rest[c] = tile[c]
        first = start + low
        for k in range(digits):
            end = min(stride, out.shape[0] - k * stride)
            part = out[k * stride + min(first, end) : k * stride + end]
            for c in range(min(part.shape[0], tile.shape[0])):
                quotient = np.floor((rest[c] + half) * inverse)
                part[c] = to_int(rest[c] - quotient * r)
                rest[c] = quotient


def prepare_tag(v: Int64, q: int) -> Any:
    """See reference.py."""
    rows = centred(v, q).astype(np.float64)
    return rows, rows / q


def inner_products(messages: Float64, v: Any, q: int, out: Int64) -> None:
    """See reference.py."""
    _inner_products(messages, v[0], v[1], float(q), out)
    out %= q


@jit
def _inner_products(messages: Any, v: Any, v_over_q: Any, q: float, out: Any) -> None:
    half = RING_DEGREE // 2
    for block in range(out.shape[0]):
        at = block * RING_DEGREE
        for r in range(out.shape[1]):
            total = np.int64(0)
            for c in range(half):
                # Two remainders, below 2^51 together; 2048 such sums fit.
                total += to_int(
                    times(messages[at + c], v[r, c], v_over_q[r, c], q)
                    + times(messages[at + half + c], v[r, half + c], v_over_q[r, half + c], q)
                )
            out[block, r] = total


# -- words ---------------------------------------------------------------------------------


@jit
def binomial(words: Any, halves: Any, nibbles: Any, out: Any) -> None:
    """See reference.py."""
    half = nibbles.shape[0]
    for p in range(half):
        out[p] = _coins(words[p], halves[p], nibbles[p] & 15) - ETA
    for p in range(half):
        out[half + p] = _coins(words[half + p], halves[half + p], nibbles[p] >> 4) - ETA


@inline
def _coins(word, half, nibble):
    rest = np.uint64(half) | (np.uint64(nibble) << np.uint64(16))
    return np.int64(ones_in(word) + ones_in(rest))


@jit
def encrypt_blocks(
    product: Any, words: Any, halves: Any, nibbles: Any, messages: Any,
    delta: int, q: int, dropped: int, bits: int, out: Any,
) -> None:  # fmt: skip
    """See reference.py."""
    half = nibbles.shape[0]
    row = np.empty(STREAMS, dtype=np.uint64)
    for block in range(messages.shape[0] // RING_DEGREE):
        packed = out[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        for i in range(STREAMS):
            p = block * RING_DEGREE + i * STREAMS
            upper = p >= half
            _encrypt_row(
                product[p : p + STREAMS], words[p : p + STREAMS], halves[p : p + STREAMS],
                nibbles[p - half if upper else p :][:STREAMS], 4 if upper else 0,
                messages[p : p + STREAMS], np.float64(delta), np.float64(q), 1.0 / q, dropped, row,
            )  # fmt: skip
            _place(row, i, bits, packed)


@inline
def _encrypt_row(
    product, words, halves, nibbles, shift, messages, delta, q, q_inverse, dropped, row
):
    down = np.uint64(dropped)
    for s in range(STREAMS):
        ones = _coins(words[s], halves[s], (nibbles[s] >> shift) & 15)
        y = fma(delta, messages[s], product[s]) + (to_float(np.uint64(ones)) - ETA)
        # Up to 1.6 q: half a unit keeps the quotient further from integers than it can be wrong.
        y = fma(-np.floor((y + 0.5) * q_inverse), q, y)
        row[s] = cut(y, down)


@inline
def _place(row, i, bits, packed):
    """Row i of a block, 64 words, into the 64 streams."""
    at = i * bits
    t = (at >> 6) * STREAMS
    shift = np.uint64(at & 63)
    if shift == 0:
        for s in range(STREAMS):
            packed[t + s] = row[s]
        return
    for s in range(STREAMS):
        packed[t + s] |= row[s] << shift
    if (at & 63) + bits > 64:
        back = np.uint64(64) - shift
        for s in range(STREAMS):
            packed[t + STREAMS + s] = row[s] >> back


@jit
def pack_words(words: Any, bits: int, out: Any) -> None:
    """See reference.py."""
    row = np.empty(STREAMS, dtype=np.uint64)
    for block in range(words.shape[0] // RING_DEGREE):
        packed = out[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        for i in range(STREAMS):
            start = block * RING_DEGREE + i * STREAMS
            for s in range(STREAMS):
                row[s] = np.uint64(words[start + s])
            _place(row, i, bits, packed)


@inline
def _take(packed, i, bits, row):
    """The inverse of `_place`."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    at = i * bits
    t = (at >> 6) * STREAMS
    shift = np.uint64(at & 63)
    if (at & 63) + bits > 64:
        back = np.uint64(64) - shift
        for s in range(STREAMS):
            row[s] = np.int64(((packed[t + s] >> shift) | (packed[t + STREAMS + s] << back)) & mask)
    else:
        for s in range(STREAMS):
            row[s] = np.int64((packed[t + s] >> shift) & mask)


@jit
def add_words(packed: Any, bits: int, total: Any) -> None:
    """See reference.py."""
    row = np.empty(STREAMS, dtype=np.int64)
    for block in range(total.shape[0] // RING_DEGREE):
        part = packed[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        for i in range(STREAMS):
            _take(part, i, bits, row)
            start = block * RING_DEGREE + i * STREAMS
            for s in range(STREAMS):
                total[start + s] += row[s]


@jit
def open_blocks(
    packed: Any, bits: int, product: Any, middle: int, dropped: int, delta: int, q: int,
    out: Any, squares: Any,
) -> Any:  # fmt: skip
    """See reference.py."""
    prime, q_inverse = np.float64(q), 1.0 / q
    scale, inverse = np.float64(delta), 1.0 / delta
    half = np.float64(delta // 2)
    row = np.empty(STREAMS, dtype=np.int64)
    sums = np.empty(STREAMS)
    largest = np.int64(0)
    for block in range(squares.shape[0]):
        part = packed[block * STREAMS * bits : (block + 1) * STREAMS * bits]
        sums[:] = 0.0
        for i in range(STREAMS):
            _take(part, i, bits, row)
            start = block * RING_DEGREE + i * STREAMS
            for s in range(STREAMS):
                word = row[s]
                largest = max(largest, word)
                # As wide as 59 bits: the multiple of q goes in integers.
                x = (word << dropped) + middle
                x -= to_int(np.float64(x) * q_inverse) * q
                v = small(to_float_signed(x) - product[start + s], prime, q_inverse)
                message = np.floor(((v + half) + 0.5) * inverse)
                out[start + s] = message
                left = fma(-message, scale, v)
                sums[s] += left * left
        squares[block] = sums.sum()
    return largest
