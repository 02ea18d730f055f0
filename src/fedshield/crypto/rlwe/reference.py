"""The arithmetic in plain numpy, to be read beside kernels.py: same functions, same results.

A *group* is eight blocks that are transformed together, interleaved: place p of a group's
arrays is coefficient p // 8 of ring element p % 8. A *block* is 4096 consecutive coefficients of
the vector; on the wire its words are 64 bit streams side by side, word c in stream c % 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedshield.crypto.rlwe.params import ETA, RING_DEGREE
from fedshield.crypto.rlwe.ring import Float64, Int64, Ring

STREAMS = 64


def multiply_mod(a: Int64, b: Int64 | int, q: int) -> Int64:
    """a * b mod q, elementwise, exact, without floats: b in 13-bit pieces.

    >>> multiply_mod(np.array([5, 1 << 49]), 7, (1 << 50) - 27).tolist()
    [35, 562949953421393]

    Args:
        a: int64, any shape, in [0, q).
        b: int64 of a shape that goes with it, in [0, q).
        q: below 2^50.

    Returns:
        int64, in [0, q).
    """
    left = a.astype(np.uint64)
    right = np.asarray(b, dtype=np.uint64)
    modulus = np.uint64(q)
    total = np.zeros(np.broadcast(left, right).shape, dtype=np.uint64)
    for shift in (39, 26, 13, 0):
        piece = (right >> np.uint64(shift)) & np.uint64(0x1FFF)
        total = ((total << np.uint64(13)) + left * piece) % modulus
    return total.astype(np.int64)


def forward_transform(x: Int64, here: Ring) -> None:
    """Forward negacyclic NTT in place, (N,) in [0, q), natural to bit-reversed order."""
    q, roots = here.q, here.roots
    width, groups = RING_DEGREE // 2, 1
    while groups < RING_DEGREE:
        pairs = x.reshape(groups, 2, width)
        u = pairs[:, 0].copy()
        v = multiply_mod(pairs[:, 1], roots[groups : 2 * groups, None], q)
        pairs[:, 0] = (u + v) % q
        pairs[:, 1] = (u - v) % q
        width, groups = width // 2, groups * 2


def prepare(w: Int64, here: Ring) -> Any:
    """A transformed key, (N,) in [0, q), in the form that multiply_back takes."""
    return w, here


def multiply_back(low: Any, middle: Any, high: Any, mask: int, prepared: Any, out: Float64) -> int:
    """The inverse transform (without the factor 1/N) of a group of residues times the prepared key.

    Args:
        low: uint32 (32768,), bits 0-31 of each residue; see `sampling.Residues`.
        middle: uint16 (32768,), bits 32-47.
        high: uint8 (32768,), bits 48-55, or (0,) where q is shorter.
        mask: what cuts a residue to q's length.
        prepared: the transformed key, from `prepare`.
        out: float64 (32768,), filled: congruent mod q and less than q in magnitude.

    Returns:
        The largest residue: from q on, `out` is wrong.
    """
    w, here = prepared
    q = here.q
    a = low.astype(np.int64) | (middle.astype(np.int64) << 32)
    if high.size:
        a |= high.astype(np.int64) << 48
    a = (a & mask).reshape(RING_DEGREE, -1).T
    x = multiply_mod(a, w[None, :], q)
    width, half = 1, RING_DEGREE // 2
    while half >= 1:
        pairs = x.reshape(a.shape[0], half, 2, width)
        u, v = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
        roots = here.inverse_roots[half : 2 * half][None, :, None]
        pairs[:, :, 0] = (u + v) % q
        pairs[:, :, 1] = multiply_mod((u - v) % q, roots, q)
        width, half = width * 2, half // 2
    out[:] = x.T.reshape(-1)
    return int(a.max())


def binomial(words: Any, halves: Any, nibbles: Any, out: Int64) -> None:
    """Centred binomial integers: ones among 84 bits, less 42.

    Args:
        words: uint64 (m,); see `sampling.Coins`.
        halves: uint16 (m,).
        nibbles: uint8 (m/2,).
        out: int64 (m,), filled.
    """
    out[:] = np.bitwise_count(words).astype(np.int64) + np.bitwise_count(halves) - ETA
    out += np.bitwise_count(np.concatenate([nibbles & 15, nibbles >> 4]))


def pack_digits(
    values: Any, stride: int, start: int, radix: int, digits: int, out: Float64
) -> None:
    """Coefficients start, start + 1, ... of the packed vector: coefficient c is the sum over k of
    values[k * stride + c] * radix^k; what is not there is zero.

    Args:
        values: integers (n,), the whole vector.
        stride: coefficients of the whole packed vector.
        start: the first coefficient that is wanted.
        radix: odd, of the digits.
        digits: values in one coefficient.
        out: float64 (m,), filled with the m coefficients from `start` on.
    """
    padded = np.zeros((digits, stride), dtype=np.int64)
    padded.reshape(-1)[: values.size] = values
    part = padded[:, start : start + out.size]
    total = np.zeros(part.shape[1], dtype=np.int64)
    for row in part[::-1]:
        total = total * radix + row
    out[:] = 0
    out[: total.size] = total


def unpack_digits(
    coefficients: Float64, stride: int, start: int, radix: int, digits: int, out: Int64
) -> None:
    """The balanced digits of coefficients start, start + 1, ...: the inverse of `pack_digits`.

    Args:
        coefficients: float64 (m,), whole numbers.
        stride: coefficients of the whole packed vector.
        start: the first coefficient that is given.
        radix: odd, of the digits.
        digits: values in one coefficient.
        out: int64 (n,), the whole vector of values; those of these coefficients are filled.
    """
    half, rest = (radix - 1) // 2, coefficients.astype(np.int64)
    for k in range(digits):
        quotient = (rest + half) // radix
        part = out[k * stride : (k + 1) * stride][start : start + rest.size]
        part[:] = (rest - quotient * radix)[: part.size]
        rest = quotient


def prepare_tag(v: Int64, q: int) -> Any:
    """Vectors (k, N) in [0, q) in the form that `inner_products` takes.

    >>> prepare_tag(np.arange(3), 31).tolist()
    [0, 1, 2]
    """
    return v


def inner_products(messages: Float64, v: Any, q: int, out: Int64) -> None:
    """Inner products of each block with each vector of a tag, mod q.

    Args:
        messages: float64 (blocks * 4096,), whole numbers below q/2 in magnitude.
        v: int64 (k, 4096) in [0, q), from `prepare_tag`.
        q: a prime below 2^50.
        out: int64 (blocks, k), filled, in [0, q).
    """
    blocks = messages.astype(np.int64).reshape(-1, RING_DEGREE)
    for r in range(v.shape[0]):
        products = multiply_mod(blocks % q, v[r], q)
        out[:, r] = products.sum(axis=1) % q  # 4096 terms below 2^50 fit


def encrypt_blocks(
    product: Float64, words: Any, halves: Any, nibbles: Any, messages: Float64,
    delta: int, q: int, dropped: int, bits: int, out: Any,
) -> None:  # fmt: skip
    """((product + error + delta * message) mod q) >> dropped, packed, for the blocks that
    `messages` holds.

    Args:
        product: float64 (32768,), the group's a s, whole numbers below q in magnitude.
        words: uint64 (32768,), coins of the errors; see `sampling.Coins`.
        halves: uint16 (32768,).
        nibbles: uint8 (16384,).
        messages: float64 (blocks * 4096,), whole numbers.
        delta: what a message is multiplied by.
        q: a prime below 2^50.
        dropped: lowest bits that do not travel.
        bits: of a word.
        out: uint64 (blocks * 64 * bits,), filled.
    """
    count = messages.size
    errors = np.empty(words.size, dtype=np.int64)
    binomial(words, halves, nibbles, errors)
    c = (product[:count].astype(np.int64) + errors[:count] + delta * messages.astype(np.int64)) % q
    pack_words(c >> dropped, bits, out)


def pack_words(words: Int64, bits: int, out: Any) -> None:
    """Blocks of 4096 words of `bits` bits. Word c goes to stream c % 64, lowest bits first, at bit
    (c // 64) * bits; 64-bit word t of stream s lies at t * 64 + s.

    Args:
        words: int64 (blocks * 4096,), in [0, 2^bits).
        bits: of a word.
        out: uint64 (blocks * 64 * bits,), filled.
    """
    places = np.arange(bits, dtype=np.uint64)
    for block, one in enumerate(words.astype(np.uint64).reshape(-1, STREAMS, STREAMS)):
        stream = ((one.T[:, :, None] >> places) & np.uint64(1)).astype(np.uint8)
        packed = np.packbits(stream.reshape(STREAMS, -1), axis=1, bitorder="little")
        size = STREAMS * bits
        out[block * size : (block + 1) * size] = packed.view("<u8").T.reshape(-1)


def unpack_words(packed: Any, bits: int) -> Int64:
    """The inverse of `pack_words`: int64 (blocks * 4096,).

    >>> packed, words = np.zeros(64 * 5, dtype=np.uint64), np.arange(4096) % 32
    >>> pack_words(words, 5, packed)
    >>> bool((unpack_words(packed, 5) == words).all())
    True
    """
    places = np.int64(1) << np.arange(bits, dtype=np.int64)
    columns = np.ascontiguousarray(packed.reshape(-1, bits, STREAMS).transpose(0, 2, 1))
    stream = np.unpackbits(columns.view(np.uint8), bitorder="little")
    words = stream.reshape(-1, STREAMS, STREAMS, bits).astype(np.int64) @ places
    return np.ascontiguousarray(words.transpose(0, 2, 1)).reshape(-1)


def add_words(packed: Any, bits: int, total: Int64) -> None:
    """Adds packed words to a running total.

    Args:
        packed: uint64 (blocks * 64 * bits,).
        bits: of a word.
        total: int64 (blocks * 4096,), added to.
    """
    total += unpack_words(packed, bits)


def open_blocks(
    packed: Any, bits: int, product: Float64, middle: int, dropped: int, delta: int, q: int,
    out: Float64, squares: Float64,
) -> int:  # fmt: skip
    """From summed words to messages: v = word * 2^d + middle - product, centred mod q; the message
    is floor((v + delta//2) / delta).

    Args:
        packed: uint64 (blocks * 64 * bits,), summed words.
        bits: of a summed word.
        product: float64 (32768,), the group's a S, whole numbers below q in magnitude.
        middle: what was dropped, on average, times the sites.
        dropped: d, lowest bits that did not travel.
        delta: what a message is multiplied by.
        q: a prime below 2^50.
        out: float64 (blocks * 4096,), filled with messages.
        squares: float64 (blocks,), filled with the sum of (v - delta * message)^2 over each block.

    Returns:
        The largest word.
    """
    words = unpack_words(packed, bits)
    v = ((words << dropped) + middle - product[: words.size].astype(np.int64)) % q
    v = np.where(v > q // 2, v - q, v)
    found = (v + delta // 2) // delta
    out[:] = found
    left = (v - found * delta).astype(np.float64).reshape(-1, RING_DEGREE)
    squares[:] = (left * left).sum(axis=1)
    return int(words.max())
