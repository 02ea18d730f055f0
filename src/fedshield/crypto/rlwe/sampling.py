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
from fedshield.crypto.rlwe.ring import Int64

UInt64 = NDArray[np.uint64]
_ZEROS = bytes(16 * RING_DEGREE + 1024)
#: Spare words, for those that are rejected (each with probability below 2^-20).
_SPARE = 16


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
        zeros = _ZEROS[:size] if size <= len(_ZEROS) else bytes(size)
        return np.frombuffer(self._cipher.update(zeros), dtype="<u8")


def uniform(seed: bytes, label: str, index: int, q: int, fast: bool = True) -> Int64:
    """N residues mod q, uniform: words cut to q's length, those >= q passed over."""
    stream = Stream(seed, label, index)
    mask = np.uint64((1 << q.bit_length()) - 1)
    words = stream.words(RING_DEGREE + _SPARE)
    out = np.empty(RING_DEGREE, dtype=np.int64)
    if fast:
        from fedshield.crypto.rlwe import kernels

        if kernels.masked(words[:RING_DEGREE], mask, out) < q:
            return out
    found = (words & mask).astype(np.int64)
    found = found[found < q]
    while found.size < RING_DEGREE:
        more = (stream.words(_SPARE) & mask).astype(np.int64)
        found = np.concatenate([found, more[more < q]])
    out[:] = found[:RING_DEGREE]
    return out


def binomial(seed: bytes, label: str, index: int, fast: bool = True) -> Int64:
    """N centred binomial integers with eta = 42: the bits set in 42 bits of one word less those
    in 42 bits of the next; variance 21, magnitude at most 42."""
    words = Stream(seed, label, index).words(2 * RING_DEGREE)
    mask = np.uint64((1 << ETA) - 1)
    if fast:
        from fedshield.crypto.rlwe import kernels

        out = np.empty(RING_DEGREE, dtype=np.int64)
        kernels.binomial(words, mask, out)
        return out
    counts = np.bitwise_count(words & mask).astype(np.int64)
    difference: Int64 = counts[0::2] - counts[1::2]
    return difference
