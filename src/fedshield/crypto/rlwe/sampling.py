"""Streams of AES-256 in counter mode and what is drawn from them: residues, binomial errors.

A stream is named by a 32-byte seed, a label and an index; its key is SHA-256 over the three.
Where the seed is public (the matrix) anyone can expand it; where it is secret, everything drawn
is. Numbers are little-endian, and lie in planes: all low 32-bit halves first, then the rest, so
that wide words of any length are put together without shifting bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.layout import LANES
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.rlwe.ring import Int64

UInt64 = NDArray[np.uint64]
UInt32 = NDArray[np.uint32]
UInt16 = NDArray[np.uint16]
UInt8 = NDArray[np.uint8]
GROUP = LANES * RING_DEGREE
_ZEROS = bytes(12 * GROUP)


class Stream:
    """AES-256-CTR over zeros; the first counter block is the 128-bit big-endian number 2.

    That is what GCM's cipher part computes under a nonce of twelve zero bytes, and where OpenSSL
    has wide AES instructions it uses them for GCM alone: nearly twice as fast. The GCM tag is
    not used. A key serves one stream, so the constant nonce is no risk.
    """

    def __init__(self, seed: bytes, label: str, index: int) -> None:
        raw = label.encode()
        key = hashlib.sha256(
            b"fedshield stream 2" + struct.pack(">I", len(raw)) + raw + seed
            + struct.pack(">Q", index)
        ).digest()  # fmt: skip
        self._cipher = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()

    def fill(self, out: UInt8) -> None:
        """The next out.size bytes, into `out`."""
        for start in range(0, out.size, len(_ZEROS)):
            part = out[start : start + len(_ZEROS)]
            self._cipher.update_into(memoryview(_ZEROS)[: part.size], part.data)

    def words(self, count: int) -> UInt64:
        """The next `count` 64-bit words."""
        out = np.empty(8 * count, dtype=np.uint8)
        self.fill(out)
        return out.view("<u8")


def accepted(stream: Stream, count: int, q: int) -> Int64:
    """The next residues of a stream: 64-bit words cut to q's length, those >= q passed over.

    Args:
        stream: goes on by as many words as it takes.
        count: how many residues.
        q: below 2^63.

    Returns:
        int64 (count,), in [0, q).
    """
    mask = np.uint64((1 << q.bit_length()) - 1)
    found = np.empty(0, dtype=np.int64)
    while found.size < count:
        more = (stream.words(count - found.size) & mask).astype(np.int64)
        found = np.concatenate([found, more[more < q]])
    return found


@dataclass(frozen=True)
class Residues:
    """A group of residues mod q as drawn: bits 0-31, 32-47 and, where q is longer, 48-55 of
    each, still to be cut to q's length."""

    low: UInt32
    middle: UInt16
    high: UInt8
    mask: int

    def joined(self) -> Int64:
        """int64, (32768,), in [0, 2^length of q)."""
        found = self.low.astype(np.int64) | (self.middle.astype(np.int64) << 32)
        if self.high.size:
            found |= self.high.astype(np.int64) << 48
        return found & self.mask


class Matrix:
    """The public a_j, transformed: group g (0, 1, ...) holds blocks 8g to 8g + 7, residue p the
    one at place p // 8 of block 8g + p % 8. Groups are drawn in order, into one buffer."""

    def __init__(self, context: bytes, q: int) -> None:
        self._context = context
        self._q = q
        self._stream = Stream(context, "matrix", 0)
        self._buffer = np.empty((6 if q < 1 << 48 else 7) * GROUP, dtype=np.uint8)
        self._group = -1
        self._found = Residues(
            self._buffer[: 4 * GROUP].view("<u4"),
            self._buffer[4 * GROUP : 6 * GROUP].view("<u2"),
            self._buffer[6 * GROUP :],
            (1 << q.bit_length()) - 1,
        )

    def next_group(self) -> Residues:
        """Valid until the next call. Some residues may be >= q (each with probability below
        2^-20): whoever finds one calls `repair`."""
        self._group += 1
        self._stream.fill(self._buffer)
        return self._found

    def repair(self) -> None:
        """Replaces residues >= q of the last group, in order of place, by residues from a stream
        of their own: label "matrix-again", index the group."""
        places = np.flatnonzero(self._found.joined() >= self._q)
        again = accepted(Stream(self._context, "matrix-again", self._group), places.size, self._q)
        self._found.low[places] = again & 0xFFFFFFFF
        self._found.middle[places] = (again >> 32) & 0xFFFF
        if self._found.high.size:
            self._found.high[places] = again >> 48


@dataclass(frozen=True)
class Coins:
    """84 fair bits for each of m integers: 64 in `words` (m,), 16 in `halves` (m,), and 4 in
    `nibbles` (m/2,): the low half of byte p is that of integer p, the high half that of p + m/2.
    The integer is the number of ones less 42: centred binomial, variance 21."""

    words: UInt64
    halves: UInt16
    nibbles: UInt8


class Noise:
    """Coins for one group (or `count` integers) after another, into one buffer."""

    def __init__(self, seed: bytes, label: str, count: int = GROUP) -> None:
        self._stream = Stream(seed, label, 0)
        self._buffer = np.empty(count * 21 // 2, dtype=np.uint8)
        self._coins = Coins(
            self._buffer[: 8 * count].view("<u8"),
            self._buffer[8 * count : 10 * count].view("<u2"),
            self._buffer[10 * count :],
        )

    def next_group(self) -> Coins:
        """Valid until the next call."""
        self._stream.fill(self._buffer)
        return self._coins


def binomial(seed: bytes, label: str, count: int, fast: bool = True) -> Int64:
    """Centred binomial integers with eta = 42 (variance 21).

    >>> drawn = binomial(bytes(32), "error", 4096, fast=False)
    >>> bool((abs(drawn) <= 42).all()), bool(abs(drawn.mean()) < 0.5)
    (True, True)

    Args:
        seed: 32 bytes, secret where the integers are.
        label: what they are for.
        count: how many, an even number.
        fast: by compiled code; the integers are the same.

    Returns:
        int64 (count,), magnitude at most 42.
    """
    coins = Noise(seed, label, count).next_group()
    out = np.empty(count, dtype=np.int64)
    arithmetic(fast).binomial(coins.words, coins.halves, coins.nibbles, out)
    return out
