"""Streams of AES-256-CTR and what is drawn from them: uniform residues, binomial errors.

A stream is named by a 32-byte seed, a label and an index; its key is SHA-256 over the three.
Where the seed is public (the matrix) anyone can expand it; where it is secret, everything drawn
is. Words are 64-bit little-endian.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import ETA, RING_DEGREE
from fedshield.crypto.rlwe.ring import LANES, Int64

UInt64 = NDArray[np.uint64]
#: Streams serve this many blocks each: fewer, longer ones are twice as fast to expand.
BLOCKS_PER_STREAM = LANES
_ZEROS = bytes(8 * BLOCKS_PER_STREAM * RING_DEGREE + 4096)
#: Spare words, for those that are rejected (each with probability below 2^-20).
_SPARE = 64


class Stream:
    """AES-256 in counter mode over zeros, from counter 0."""

    def __init__(self, seed: bytes, label: str, index: int) -> None:
        raw = label.encode()
        key = hashlib.sha256(
            b"fedshield stream 1" + struct.pack(">I", len(raw)) + raw + seed
            + struct.pack(">Q", index)
        ).digest()  # fmt: skip
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> UInt64:
        """The next `count` words."""
        size = 8 * count
        zeros = memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)
        return np.frombuffer(self._cipher.update(zeros), dtype="<u8")


def uniform(
    seed: bytes, label: str, index: int, num_blocks: int, q: int, fast: bool = True
) -> Int64:
    """Residues mod q of `num_blocks` (at most 8) blocks, uniform, (num_blocks, N): the stream's
    words cut to q's length, those >= q passed over."""
    stream = Stream(seed, label, index)
    mask = np.uint64((1 << q.bit_length()) - 1)
    count = num_blocks * RING_DEGREE
    words = stream.words(count + _SPARE)
    out = np.empty((num_blocks, RING_DEGREE), dtype=np.int64)
    if fast:
        from fedshield.crypto.rlwe import kernels

        if kernels.masked(words[:count], mask, out.reshape(-1)) < q:
            return out
    found = (words & mask).astype(np.int64)
    found = found[found < q]
    while found.size < count:
        more = (stream.words(_SPARE) & mask).astype(np.int64)
        found = np.concatenate([found, more[more < q]])
    out[:] = found[:count].reshape(out.shape)
    return out


def binomial(seed: bytes, label: str, index: int, num_blocks: int, fast: bool = True) -> Int64:
    """Centred binomial integers with eta = 42 (variance 21, magnitude at most 42) for
    `num_blocks` blocks, (num_blocks, N): bits set in 42 bits less bits set in 42 others.

    Three words a, b, c make two integers, N/2 pairs a block; the stream gives, block by block,
    all a, then all b, then all c. The first N/2 integers come from the low 42 bits of a and of
    b; the others from the first 42 of (high 22 of a, high 22 of b), and the low 42 of c.
    """
    words = Stream(seed, label, index).words(num_blocks * 3 * RING_DEGREE // 2)
    blocks = words.reshape(num_blocks, 3 * RING_DEGREE // 2)
    out = np.empty((num_blocks, RING_DEGREE), dtype=np.int64)
    if fast:
        from fedshield.crypto.rlwe import kernels

        for one, target in zip(blocks, out, strict=True):
            kernels.binomial(one, target)
        return out
    mask, low = np.uint64((1 << ETA) - 1), np.uint64(ETA)
    a, b, c = np.split(blocks, 3, axis=1)
    rest = (a >> low) | ((b >> low) << np.uint64(22))
    for place, plus, minus in ((0, a, b), (1, rest, c)):
        counts = np.bitwise_count(plus & mask).astype(np.int64)
        half = slice(place * RING_DEGREE // 2, (place + 1) * RING_DEGREE // 2)
        out[:, half] = counts - np.bitwise_count(minus & mask)
    return out
