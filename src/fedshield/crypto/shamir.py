"""Shamir's sharing of short integer vectors, T of K, over p = 2^31 - 1.

Several secret coefficients travel in one field element, in lanes that sums over all K sites stay
inside: a key's coefficients are at most 42 in magnitude, so three lanes of 10 bits serve up to 12
sites, two of 15 bits up to 390. The shares of a sum are the sums of the shares. Source: Shamir,
CACM 1979.

Residues mod q (reserved integers and tags of rlwe) are shared beside the key, over the field mod
q: their sum is opened mod q, and nothing else of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import ETA, MAX_SITES, RING_DEGREE
from fedshield.crypto.rlwe.sampling import Stream, accepted
from fedshield.errors import CryptoError

PRIME = 2**31 - 1
#: (most sites, bits of a lane, lanes in an element): 2 * 42 * sites < 2^bits, lanes * bits <= 30.
_LANES = ((12, 10, 3), (MAX_SITES, 15, 2))

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
_P = np.uint64(PRIME)


def lanes(num_holders: int) -> tuple[int, int]:
    """Bits of a lane and lanes in a field element, for a roster of so many sites.

    >>> lanes(12), lanes(13)
    ((10, 3), (15, 2))
    """
    for most, bits, count in _LANES:
        if num_holders <= most:
            return bits, count
    raise CryptoError(f"shamir: expected at most {MAX_SITES} sites, got {num_holders}")


def elements(num_holders: int) -> int:
    """Field elements of a share.

    >>> elements(12), elements(13)
    (1366, 2048)
    """
    return -(-RING_DEGREE // lanes(num_holders)[1])


def share_bytes(num_holders: int) -> int:
    """Bytes of a share on the wire.

    >>> share_bytes(12)
    5464
    """
    return 4 * elements(num_holders)


def share(secret: Int64, threshold: int, num_holders: int, seed: bytes) -> list[UInt64]:
    """One share for each holder 0..num_holders-1, at x = holder + 1.

    >>> shares = share(np.full(4096, -7), 2, 3, bytes(32))
    >>> set(reconstruct({0: shares[0], 2: shares[2]}, 2, 1, 3).tolist())
    {-7}

    Args:
        secret: int64 (4096,), magnitude at most 42.
        threshold: T, shares that give the secret.
        num_holders: of the roster.
        seed: 32 secret bytes, from which the polynomials' other coefficients are drawn by
            rejection.

    Returns:
        uint64 (elements(num_holders),) each, below 2^31 - 1.

    Raises:
        CryptoError: for a secret or a threshold out of range.
    """
    if not 1 <= threshold <= num_holders <= MAX_SITES:
        raise CryptoError(
            f"shamir: expected 1 <= threshold <= holders <= {MAX_SITES}, got {threshold} of "
            f"{num_holders}"
        )
    if secret.shape != (RING_DEGREE,) or int(np.abs(secret).max()) > ETA:
        raise CryptoError(f"shamir: expected {RING_DEGREE} coefficients up to {ETA}")
    bits, count = lanes(num_holders)
    padded = np.zeros(count * elements(num_holders), dtype=np.int64)
    padded[:RING_DEGREE] = secret
    # Lanes low + 2^bits next + ..., as a residue: negative lanes borrow, `_unpack` gives back.
    packed = np.zeros(elements(num_holders), dtype=np.int64)
    for lane in range(count):
        packed += padded[lane::count] << (lane * bits)
    coefficients = [(packed % PRIME).astype(np.uint64)]
    coefficients += [_uniform(seed, degree, packed.size) for degree in range(1, threshold)]
    shares: list[UInt64] = []
    for holder in range(num_holders):
        x = np.uint64(holder + 1)
        value = np.zeros(packed.size, dtype=np.uint64)
        for coefficient in reversed(coefficients):  # Horner; 2^31 * 390 fits
            value = (value * x + coefficient) % _P
        shares.append(value)
    return shares


def add_shares(shares: list[UInt64]) -> UInt64:
    """The share of the sum of secrets, for one holder.

    >>> add_shares([np.array([1, PRIME - 1], dtype=np.uint64)] * 2).tolist()
    [2, 2147483645]
    """
    total = np.zeros_like(shares[0])
    for one in shares:
        total = (total + one) % _P
    return total


def reconstruct(
    shares: Mapping[int, UInt64], threshold: int, num_summed: int, num_holders: int
) -> Int64:
    """The (sum of) secrets from shares. Every share beyond the first `threshold` must lie on the
    same polynomials.

    >>> one, two = (share(np.full(4096, value), 2, 3, bytes(32)) for value in (3, 39))
    >>> sums = {holder: add_shares([one[holder], two[holder]]) for holder in range(3)}
    >>> set(reconstruct(sums, 2, 2, 3).tolist())
    {42}

    Args:
        shares: holder -> uint64 (elements(num_holders),), below 2^31 - 1.
        threshold: T, shares that give the secret.
        num_summed: keys in the sum, which bound its coefficients.
        num_holders: of the roster.

    Returns:
        int64 (4096,).

    Raises:
        CryptoError: if there are too few, one does not fit, or a coefficient is larger than
            `num_summed` keys can make it.
    """
    if len(shares) < threshold:
        raise CryptoError(f"shamir: expected {threshold} shares, got {len(shares)}")
    holders = sorted(shares)
    used, rest = holders[:threshold], holders[threshold:]
    for holder in rest:
        if not np.array_equal(_interpolate(shares, used, holder + 1), shares[holder]):
            raise CryptoError(f"shamir: the share of holder {holder} does not fit the others")
    found = _unpack(_interpolate(shares, used, 0), num_holders)
    if int(np.abs(found).max()) > ETA * num_summed:
        raise CryptoError(f"shamir: expected coefficients up to {ETA * num_summed}, got larger")
    if found[RING_DEGREE:].any():
        raise CryptoError("shamir: expected zeros after the last coefficient")
    return found[:RING_DEGREE]


def to_bytes(one: UInt64) -> bytes:
    """Little-endian 32-bit words.

    >>> to_bytes(np.array([1, 258], dtype=np.uint64)).hex()
    '0100000002010000'
    """
    return one.astype("<u4").tobytes()


def from_bytes(raw: bytes, num_holders: int) -> UInt64:
    """A share of a roster of `num_holders` sites. Raises `CryptoError` for a wrong length or an
    element that is not below the prime.

    >>> from_bytes(bytes(share_bytes(12)), 12).shape
    (1366,)
    """
    if len(raw) != share_bytes(num_holders):
        raise CryptoError(f"share: expected {share_bytes(num_holders)} bytes, got {len(raw)}")
    found = np.frombuffer(raw, dtype="<u4").astype(np.uint64)
    if int(found.max()) >= PRIME:
        raise CryptoError("share: expected elements below 2^31 - 1")
    return found


def _uniform(seed: bytes, degree: int, count: int) -> UInt64:
    """Field elements by rejection: the low 31 bits of a word, all ones passed over."""
    stream = Stream(seed, "shamir", degree)
    mask = np.uint64(2**31 - 1)
    found = stream.words(count) & mask
    found = found[found < _P]
    while found.size < count:
        more = stream.words(8) & mask
        found = np.concatenate([found, more[more < _P]])
    return found[:count]


def lagrange_weights(holders: list[int], at: int, prime: int) -> list[int]:
    """Lagrange's weights of the holders' shares (at x = holder + 1) for the value at `at`.

    >>> weights = lagrange_weights([0, 1], 0, 31)  # the line through (1, 5) and (2, 6)
    >>> (weights[0] * 5 + weights[1] * 6) % 31
    4

    Args:
        holders: each once.
        at: the place of the value that is wanted.
        prime: of the field.

    Returns:
        A weight for each holder, in [0, prime).
    """
    found: list[int] = []
    for holder in holders:
        numerator = denominator = 1
        for other in holders:
            if other != holder:
                numerator = numerator * (at - (other + 1)) % prime
                denominator = denominator * (holder - other) % prime
        found.append(numerator * pow(denominator, prime - 2, prime) % prime)
    return found


def _interpolate(shares: Mapping[int, UInt64], holders: list[int], at: int) -> UInt64:
    total = np.zeros_like(shares[holders[0]])
    for holder, weight in zip(holders, lagrange_weights(holders, at, PRIME), strict=True):
        total = (total + shares[holder] * np.uint64(weight)) % _P
    return total


def _unpack(packed: UInt64, num_holders: int) -> Int64:
    """All lanes, those after the last coefficient as well."""
    bits, count = lanes(num_holders)
    value = packed.astype(np.int64)
    value = np.where(value > PRIME // 2, value - PRIME, value)
    half, size = 1 << (bits - 1), 1 << bits
    out = np.empty(count * value.size, dtype=np.int64)
    for lane in range(count - 1):
        low = (value + half) % size - half
        out[lane::count] = low
        value = (value - low) >> bits
    out[count - 1 :: count] = value
    return out


# -- residues mod q ------------------------------------------------------------------------


def share_residues(
    residues: Sequence[int], modulus: int, threshold: int, num_holders: int, seed: bytes
) -> list[tuple[int, ...]]:
    """One share, a residue for each, for each holder 0..num_holders-1, at x = holder + 1.

    >>> shares = share_residues((3, 5), 31, 2, 3, bytes(32))
    >>> reconstruct_residues({1: shares[1], 2: shares[2]}, 31, 2)
    (3, 5)

    Args:
        residues: in [0, modulus).
        modulus: q, a prime above num_holders.
        threshold: T, shares that give the residues.
        num_holders: of the roster.
        seed: 32 secret bytes, from which the polynomials' other coefficients are drawn by
            rejection.

    Returns:
        For each holder a value in [0, modulus) for each residue.

    Raises:
        CryptoError: for residues or a threshold out of range.
    """
    if not 1 <= threshold <= num_holders < modulus:
        raise CryptoError(
            f"shamir: expected 1 <= threshold <= holders < {modulus}, got {threshold} of "
            f"{num_holders}"
        )
    if any(not 0 <= one < modulus for one in residues):
        raise CryptoError(f"shamir: expected residues below {modulus}")
    drawn = [
        accepted(Stream(seed, "shamir residues", degree), len(residues), modulus).tolist()
        for degree in range(1, threshold)
    ]
    shares: list[tuple[int, ...]] = []
    for x in range(1, num_holders + 1):
        value = [0] * len(residues)
        for coefficients in (*reversed(drawn), residues):
            value = [(v * x + c) % modulus for v, c in zip(value, coefficients, strict=True)]
        shares.append(tuple(value))
    return shares


def add_residues(shares: Sequence[Sequence[int]], modulus: int) -> tuple[int, ...]:
    """The share of the sum, for one holder.

    >>> add_residues([(3, 30), (4, 2)], 31)
    (7, 1)
    """
    return tuple(sum(column) % modulus for column in zip(*shares, strict=True))


def reconstruct_residues(
    shares: Mapping[int, Sequence[int]], modulus: int, threshold: int
) -> tuple[int, ...]:
    """The (sum of) residues from shares. Every share beyond the first `threshold` must lie on the
    same polynomials.

    >>> reconstruct_residues({0: (5,), 1: (6,), 2: (7,)}, 31, 2)  # x + 4
    (4,)

    Args:
        shares: holder -> a value in [0, modulus) for each residue.
        modulus: q, a prime.
        threshold: T, shares that give the residues.

    Returns:
        Each in [0, modulus).

    Raises:
        CryptoError: if there are too few or one does not fit.
    """
    if len(shares) < threshold:
        raise CryptoError(f"shamir: expected {threshold} shares, got {len(shares)}")
    holders = sorted(shares)
    used, rest = holders[:threshold], holders[threshold:]

    def value(at: int) -> tuple[int, ...]:
        weights = lagrange_weights(used, at, modulus)
        return tuple(
            sum(w * one for w, one in zip(weights, column, strict=True)) % modulus
            for column in zip(*(shares[holder] for holder in used), strict=True)
        )

    for holder in rest:
        if value(holder + 1) != tuple(shares[holder]):
            raise CryptoError(f"shamir: the share of holder {holder} does not fit the others")
    return value(0)
