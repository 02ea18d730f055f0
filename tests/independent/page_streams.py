"""docs/protocol.md, section 7: streams, parameters, packing, the lattice and its tags, from the
page alone. Integers are numpy's int64 below q < 2^50."""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from page_wire import LABELS, Refused

Array = NDArray[Any]
DEGREE, GROUP = 4096, 8


class Stream:
    """Bytes in order. `label`: of LABELS, or as it is."""

    def __init__(self, label: str | bytes, seed: bytes, index: int) -> None:
        name = LABELS[label] if isinstance(label, str) else label
        key = hashlib.sha256(
            LABELS["stream"] + struct.pack(">I", len(name)) + name + seed + struct.pack(">Q", index)
        ).digest()
        self._cipher = Cipher(AES256(key), CTR((2).to_bytes(16, "big"))).encryptor()

    def read(self, size: int) -> bytes:
        return self._cipher.update(bytes(size))

    def numbers(self, kind: str, count: int) -> Array:
        dtype = np.dtype(kind)
        return np.frombuffer(self.read(count * dtype.itemsize), dtype=dtype)

    def residues(self, q: int, count: int, above: int = 0) -> Array:
        """Accepted residues, those below `above` passed over as well."""
        taken = np.zeros(0, dtype=np.int64)
        mask = np.uint64((1 << q.bit_length()) - 1)
        while taken.size < count:
            words = (self.numbers("<u8", count - taken.size) & mask).astype(np.int64)
            taken = np.concatenate([taken, words[(words >= above) & (words < q)]])
        return taken


class Packing(NamedTuple):
    """Parameters of `rlwe` for a federation."""

    sites: int
    bits: int
    headroom: bool
    q: int
    radix: int
    digits: int
    delta: int
    dropped: int

    @property
    def name(self) -> str:
        kind = "headroom" if self.headroom else "shared"
        return f"n4096-q{self.q.bit_length()}-{self.bits}bit-{kind}-{self.sites}sites"

    @property
    def largest(self) -> int:
        """M."""
        return (self.radix - 1) // 2

    @property
    def word_bits(self) -> int:
        return self.q.bit_length() - self.dropped

    @property
    def sum_bits(self) -> int:
        return (self.sites * (2**self.word_bits - 1)).bit_length()

    def limit(self, weight: float) -> int:
        """L."""
        weight = min(weight, 1.0) * (1 + 2.0**-50)
        if self.headroom:
            return 1 + math.floor(weight * (self.largest - self.sites))
        if (limit := math.floor(weight * self.largest)) < 4:
            raise Refused("crypto: fewer than four steps")
        return limit


#: The largest prime = 1 mod 8192 below 2^42, 2^43, ...
PRIMES = (
    *(4398046486529, 8796092858369, 17592186028033, 70368743669761),
    *(140737488273409, 281474976694273, 562949953216513, 1125899906826241),
)


def packing(sites: int, bits: int, headroom: bool) -> Packing:
    own = 2 ** (bits - 1) - 1
    radix = 2 * sites * own + 1 if headroom else 2 * own + 1
    coefficients = 2**40 + 64 * DEGREE
    bound = math.ceil(
        math.sqrt(2 * math.log(2) * (64 + math.log2(coefficients) + 1)) * math.sqrt(21 * sites)
    )
    best: Packing | None = None
    for q in PRIMES:
        for digits in range(1, 25):
            delta = q // radix**digits
            dropped = -1
            while delta >= 2 * bound + sites * (2 ** (dropped + 1) - 1) + 2:
                dropped += 1
            if dropped < 0:
                continue
            found = Packing(sites, bits, headroom, q, radix, digits, delta, dropped)
            if best is None or found.word_bits * best.digits < best.word_bits * digits:
                best = found
    assert best is not None
    return best


# -- the ring ------------------------------------------------------------------------------------


def times(a: Array, b: Array, q: int) -> Array:
    """a b mod q: the quotient in floating point is off by a few at most, and what is left fits."""
    quotient = np.floor(a.astype(np.float64) * b.astype(np.float64) / q).astype(np.int64)
    with np.errstate(over="ignore"):
        rest: Array = (a * b - quotient * q) % q
    return rest


@functools.cache
def roots(q: int) -> tuple[Array, Array, Array]:
    """Powers of psi, powers of its inverse, and bit reversals of 0 to 4095."""
    psi = next(
        root
        for base in range(2, q)
        if pow(root := pow(base, (q - 1) // (2 * DEGREE), q), DEGREE, q) == q - 1
    )
    powers = [pow(psi, k, q) for k in range(2 * DEGREE)]
    inverse = [powers[-k % (2 * DEGREE)] for k in range(2 * DEGREE)]
    reversal = [int(f"{k:012b}"[::-1], 2) for k in range(DEGREE)]
    return np.array(powers), np.array(inverse), np.array(reversal)


def _cyclic(values: Array, powers: Array, q: int) -> Array:
    """Sum of values[j] w^(jk), w = powers[2]; by halves, the shortest first."""
    found, width = values[roots(q)[2]], 1
    while width < DEGREE:
        pairs = found.reshape(-1, 2, width)
        turns = powers[np.arange(width) * (DEGREE // width)]
        turned = times(pairs[:, 1], np.broadcast_to(turns, pairs[:, 1].shape), q)
        even = pairs[:, 0]
        found = np.stack([(even + turned) % q, (even - turned) % q], axis=1).reshape(-1)
        width *= 2
    return found


def transformed(values: Array, q: int) -> Array:
    """Place i: the value at psi^(2 bitreverse(i) + 1)."""
    powers, _, reversal = roots(q)
    return _cyclic(times(values % q, powers[:DEGREE], q), powers, q)[reversal]


def coefficients(places: Array, q: int) -> Array:
    """The other way."""
    _, inverse, reversal = roots(q)
    natural = np.empty_like(places)
    natural[reversal] = places
    scaled = times(_cyclic(natural, inverse, q), np.full(DEGREE, pow(DEGREE, -1, q)), q)
    return times(scaled, inverse[:DEGREE], q)


# -- what streams give ---------------------------------------------------------------------------


def matrix(context: bytes, q: int, num_blocks: int) -> list[Array]:
    """`a` of each block, transformed."""
    stream, size = Stream("matrix", context, 0), GROUP * DEGREE
    blocks: list[Array] = []
    for group in range(-(-num_blocks // GROUP)):
        numbers = stream.numbers("<u4", size).astype(np.int64)
        numbers |= stream.numbers("<u2", size).astype(np.int64) << 32
        if q > 2**48:
            numbers |= stream.numbers("u1", size).astype(np.int64) << 48
        numbers &= (1 << q.bit_length()) - 1
        outside = np.flatnonzero(numbers >= q)
        numbers[outside] = Stream(b"matrix-again", context, group).residues(q, outside.size)
        blocks += [numbers[k::GROUP] for k in range(GROUP)]
    return blocks[:num_blocks]


def binomial(stream: Stream, count: int) -> Array:
    """Ones among 84 bits, less 42."""
    long = stream.numbers("<u8", count)
    short = stream.numbers("<u2", count)
    packed = stream.numbers("u1", count // 2)
    last = np.concatenate([packed & 15, packed >> 4])
    ones = sum(np.bitwise_count(part).astype(np.int64) for part in (long, short, last))
    centred: Array = ones - 42
    return centred


# -- words ---------------------------------------------------------------------------------------


def pack(words: Array, bits: int) -> bytes:
    """Words of 4096 coefficients."""
    spread = (words[:, None] >> np.arange(bits)) & 1
    lanes = spread.reshape(64, 64, bits).transpose(1, 0, 2).reshape(64, bits, 64)
    packed = np.packbits(lanes.astype(np.uint8), axis=2, bitorder="little")
    return packed.transpose(1, 0, 2).tobytes()


def unpack(data: bytes, bits: int) -> Array:
    lanes = np.frombuffer(data, dtype=np.uint8).reshape(bits, 64, 8).transpose(1, 0, 2)
    spread = np.unpackbits(np.ascontiguousarray(lanes), axis=2, bitorder="little")
    words = spread.reshape(64, 64, bits).transpose(1, 0, 2).reshape(DEGREE, bits)
    found: Array = (words.astype(np.int64) << np.arange(bits)).sum(axis=1)
    return found


def packs_a_chunk(p: Packing) -> int:
    one = DEGREE * p.sum_bits // 8
    return max(GROUP, 4 * 2**20 // one // GROUP * GROUP)


def num_tags(q: int, packs: int) -> int:
    """The least k with ((J + 1)/q)^k <= 2^-64."""
    k = 1
    while (packs + 1) ** k * 2**64 > q**k:
        k += 1
    return k


def tags(seed: bytes, q: int, message: Array, reserved: Sequence[int]) -> list[int]:
    """Of a whole coefficient vector, padding included."""
    packs = message.reshape(-1, DEGREE)
    found: list[int] = []
    for number in range(num_tags(q, len(packs))):
        stream = Stream("tag stream", seed, number)
        rho = int(stream.residues(q, 1, above=1)[0])
        v, u = stream.residues(q, DEGREE), stream.residues(q, len(reserved))
        total = sum(int(one) * x for one, x in zip(u, reserved, strict=True))
        for j, pack_ in enumerate(packs):
            total += pow(rho, j, q) * int(times(v, pack_ % q, q).sum())
        found.append(total % q)
    return found
