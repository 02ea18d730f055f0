"""Encrypt, add, open: integer vectors in, their exact sum out.

For block j: a_j is public, expanded from the round's context; c_j = a_j s + e_j + delta m_j.
Words c >> d travel, bit-packed; the server adds words as integers; who has S = sum of the s_i
takes a_j S away, restores the middle of what was dropped, and rounds to the nearest message.
With the parameters' rule the result is the exact sum, except with probability 2^-64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.params import ERROR_VARIANCE, ETA, RING_DEGREE, RlweParameters
from fedshield.crypto.rlwe.ring import LANES, Int64, ring
from fedshield.errors import CryptoError

MATRIX, SECRET, ERROR = "matrix", "secret", "error"


@dataclass(frozen=True)
class OneTimeKey:
    """A site's key for one vector, drawn from `seed` (32 secret bytes). Used once."""

    seed: bytes = field(repr=False)

    def secret(self, fast: bool = True) -> Int64:
        """s: (N,), magnitude at most 42. What is shared out, and summed."""
        secret: Int64 = sampling.binomial(self.seed, SECRET, 0, 1, fast)[0]
        return secret


def num_blocks(num_values: int, parameters: RlweParameters) -> int:
    return -(-num_values // parameters.values_per_block)


def encrypt(
    values: Int64,
    key: OneTimeKey,
    context: bytes,
    parameters: RlweParameters,
    *,
    fast: bool = True,
) -> Iterator[bytes]:
    """One upload block (`parameters.bytes_per_block` bytes) per N * D values.

    `values`: int64, magnitude at most the site's share of `parameters.max_digit`; more raises
    `CryptoError`. `context`: 32 bytes that name run, round and phase; the same key must never
    see two contexts or two vectors.
    """
    p, here = parameters, ring(parameters.q, fast)
    if values.size and int(np.abs(values).max()) > p.max_digit:
        raise CryptoError(f"rlwe: expected digits up to {p.max_digit}, got larger ones")
    transformed = here.forward(key.secret(fast) % p.q)
    blocks = num_blocks(values.size, p)
    a = np.empty((LANES, RING_DEGREE), dtype=np.int64)
    errors = np.empty((LANES, RING_DEGREE), dtype=np.int64)
    for start in range(0, blocks, LANES):
        count = min(LANES, blocks - start)
        group = start // LANES
        a[:count] = sampling.uniform(context, MATRIX, group, count, p.q, fast)
        errors[:count] = sampling.binomial(key.seed, ERROR, group, count, fast)
        a[count:], errors[count:] = 0, 0
        product = here.multiply_back(a, transformed)
        low = start * p.values_per_block
        part = values[low : low + count * p.values_per_block]
        messages = here.pack_digits(part, p.radix, p.digits, LANES * RING_DEGREE)
        words = _combine(product, errors, messages.reshape(LANES, RING_DEGREE), p, fast)
        for lane in range(count):
            yield here.pack_words(words[lane], p.word_bits)


def _combine(
    product: Int64, errors: Int64, messages: Int64, p: RlweParameters, fast: bool
) -> Int64:
    words = np.empty((LANES, RING_DEGREE), dtype=np.int64)
    if fast:
        from fedshield.crypto.rlwe import kernels

        kernels.combine(product, errors, messages, p.delta, p.q, p.dropped, words)
        return words
    words[:] = (product.reshape(RING_DEGREE, LANES).T + errors + p.delta * messages) % p.q
    return words >> p.dropped


class Accumulator:
    """The server's running sum of one block: integers, one addition for each site's block."""

    def __init__(self, parameters: RlweParameters, fast: bool = True) -> None:
        self._parameters = parameters
        self._ring = ring(parameters.q, fast)
        self.words: Int64 = np.zeros(RING_DEGREE, dtype=np.int64)
        self.num_added = 0

    def add(self, block: bytes) -> None:
        """Raises `CryptoError` for a block of a wrong length or one site too many."""
        p = self._parameters
        if len(block) != p.bytes_per_block:
            raise CryptoError(f"rlwe block: expected {p.bytes_per_block} bytes, got {len(block)}")
        if self.num_added >= p.num_sites:
            raise CryptoError(f"rlwe sum: expected at most {p.num_sites} blocks, got another")
        self._ring.add_words(block, p.word_bits, self.words)
        self.num_added += 1

    def result(self) -> bytes:
        return self._ring.pack_words(self.words, self._parameters.sum_word_bits)


@dataclass(frozen=True)
class Opened:
    """`values`: int64, the exact sum. `mean_squares`: of what is left over, by block; near
    K(21 + (4^d - 1)/12) when key, block and bits are right, delta^2/12 when not."""

    values: NDArray[np.int64] = field(repr=False)
    mean_squares: tuple[float, ...]


def residual_limit(num_sites: int, parameters: RlweParameters) -> float:
    """A block's mean square of what is left over must stay below this. It tells a wrong key or
    block from the right one; a change by a multiple of delta leaves no trace here and is for the
    protocol's keyed tag to find."""
    rounding = ((1 << 2 * parameters.dropped) - 1) / 12
    return 2 * num_sites * (ERROR_VARIANCE + rounding)


def open_sum(
    blocks: Sequence[bytes] | Iterable[bytes],
    key_sum: Int64,
    num_values: int,
    num_sites: int,
    context: bytes,
    parameters: RlweParameters,
    *,
    fast: bool = True,
) -> Opened:
    """The sum of `num_sites` vectors from the server's blocks and the sum of the keys.

    Raises `CryptoError` if the key sum is out of range, a block has a wrong length, or what is
    left over is too large in any block (wrong key, context, order or bits).
    """
    p, here = parameters, ring(parameters.q, fast)
    if key_sum.shape != (RING_DEGREE,) or int(np.abs(key_sum).max()) > ETA * num_sites:
        raise CryptoError(f"rlwe key sum: expected magnitudes up to {ETA * num_sites}")
    transformed = here.forward(key_sum % p.q)
    middle = num_sites * ((1 << p.dropped) - 1) // 2
    size = RING_DEGREE * p.sum_word_bits // 8
    blocks = list(blocks)
    if len(blocks) != num_blocks(num_values, p):
        raise CryptoError(
            f"rlwe sum: expected {num_blocks(num_values, p)} blocks, got {len(blocks)}"
        )
    coefficients = np.empty((len(blocks), RING_DEGREE), dtype=np.int64)
    squares: list[float] = []
    a = np.zeros((LANES, RING_DEGREE), dtype=np.int64)
    for start in range(0, len(blocks), LANES):
        part = blocks[start : start + LANES]
        group = start // LANES
        a[: len(part)] = sampling.uniform(context, MATRIX, group, len(part), p.q, fast)
        product = here.multiply_back(a, transformed)
        for lane, block in enumerate(part):
            if len(block) != size:
                raise CryptoError(f"rlwe sum: expected blocks of {size} bytes, got {len(block)}")
            total = np.zeros(RING_DEGREE, dtype=np.int64)
            here.add_words(block, p.sum_word_bits, total)
            out = coefficients[start + lane]
            squares.append(_open_block(total, product, lane, middle, p, out, fast) / RING_DEGREE)
    limit = residual_limit(num_sites, p)
    for index, found in enumerate(squares):
        if found >= limit:
            raise CryptoError(
                f"rlwe sum: block {index} leaves {found:.3g} where at most {limit:.3g} is "
                "expected (wrong key, context or bits)"
            )
    values = here.unpack_digits(coefficients.reshape(-1), p.radix, p.digits, num_values)
    return Opened(values, tuple(squares))


def _open_block(
    total: Int64,
    product: Int64,
    lane: int,
    middle: int,
    p: RlweParameters,
    out: Int64,
    fast: bool,
) -> float:
    if fast:
        from fedshield.crypto.rlwe import kernels

        return float(kernels.open_block(total, product, lane, middle, p.dropped, p.delta, p.q, out))
    y = ((total << p.dropped) + middle) % p.q
    v = (y - product.reshape(RING_DEGREE, LANES)[:, lane]) % p.q
    v = np.where(v > p.q - 1 - p.q // 2, v - p.q, v)
    out[:] = (v + p.delta // 2) // p.delta
    left = (v - out * p.delta).astype(np.float64)
    return float(np.dot(left, left))
