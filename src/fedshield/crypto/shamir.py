"""Shamir's sharing of short integer vectors, T of K, over p = 2^31 - 1.

Two secret coefficients travel in one field element, in lanes of radix 2^15: a key's
coefficients are at most 42 in magnitude, so sums over up to 390 sites stay inside a lane, and
the shares of a sum are the sums of the shares. Source: Shamir, CACM 1979.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import ETA, MAX_SITES, RING_DEGREE
from fedshield.crypto.rlwe.sampling import Stream
from fedshield.errors import CryptoError

PRIME = 2**31 - 1
LANE_BITS = 15
ELEMENTS = RING_DEGREE // 2
SHARE_BYTES = 4 * ELEMENTS

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
_P = np.uint64(PRIME)


def share(secret: Int64, threshold: int, num_holders: int, seed: bytes) -> list[UInt64]:
    """One share (2048 field elements) for each holder 0..num_holders-1, at x = holder + 1.

    `secret`: (4096,), magnitude at most 42. The polynomials' other coefficients are drawn from
    `seed` (32 secret bytes) by rejection. Raises `CryptoError` for a threshold out of range.
    """
    if not 1 <= threshold <= num_holders <= MAX_SITES:
        raise CryptoError(
            f"shamir: expected 1 <= threshold <= holders <= {MAX_SITES}, got {threshold} of "
            f"{num_holders}"
        )
    if secret.shape != (RING_DEGREE,) or int(np.abs(secret).max()) > ETA:
        raise CryptoError(f"shamir: expected {RING_DEGREE} coefficients up to {ETA}")
    # Lanes low + 2^15 high, as a residue: negative lanes borrow, and `_lanes` gives back.
    packed = ((secret[0::2] + (secret[1::2] << LANE_BITS)) % PRIME).astype(np.uint64)
    coefficients = [packed]
    coefficients += [_uniform(seed, degree) for degree in range(1, threshold)]
    shares: list[UInt64] = []
    for holder in range(num_holders):
        x = np.uint64(holder + 1)
        value = np.zeros(ELEMENTS, dtype=np.uint64)
        for coefficient in reversed(coefficients):  # Horner; 2^31 * 390 fits
            value = (value * x + coefficient) % _P
        shares.append(value)
    return shares


def add_shares(shares: list[UInt64]) -> UInt64:
    """The share of the sum of secrets, for one holder."""
    total = np.zeros(ELEMENTS, dtype=np.uint64)
    for one in shares:
        total = (total + one) % _P
    return total


def reconstruct(shares: Mapping[int, UInt64], threshold: int, num_summed: int) -> Int64:
    """The (sum of) secrets from the shares of at least `threshold` holders (index -> share).

    Every share beyond the first `threshold` must lie on the same polynomials. Raises
    `CryptoError` if there are too few, one does not fit, or a coefficient is larger than
    `num_summed` keys can make it.
    """
    if len(shares) < threshold:
        raise CryptoError(f"shamir: expected {threshold} shares, got {len(shares)}")
    holders = sorted(shares)
    used, rest = holders[:threshold], holders[threshold:]
    for holder in rest:
        if not np.array_equal(_interpolate(shares, used, holder + 1), shares[holder]):
            raise CryptoError(f"shamir: the share of holder {holder} does not fit the others")
    found = _lanes(_interpolate(shares, used, 0))
    if int(np.abs(found).max()) > ETA * num_summed:
        raise CryptoError(f"shamir: expected coefficients up to {ETA * num_summed}, got larger")
    return found


def to_bytes(one: UInt64) -> bytes:
    """2048 little-endian 32-bit words."""
    return one.astype("<u4").tobytes()


def from_bytes(raw: bytes) -> UInt64:
    """Raises `CryptoError` for a wrong length or an element that is not below the prime."""
    if len(raw) != SHARE_BYTES:
        raise CryptoError(f"share: expected {SHARE_BYTES} bytes, got {len(raw)}")
    found = np.frombuffer(raw, dtype="<u4").astype(np.uint64)
    if int(found.max()) >= PRIME:
        raise CryptoError("share: expected elements below 2^31 - 1")
    return found


def _uniform(seed: bytes, degree: int) -> UInt64:
    """Field elements by rejection: the low 31 bits of a word, all ones passed over."""
    stream = Stream(seed, "shamir", degree)
    mask = np.uint64(2**31 - 1)
    found = stream.words(ELEMENTS) & mask
    found = found[found < _P]
    while found.size < ELEMENTS:
        more = stream.words(8) & mask
        found = np.concatenate([found, more[more < _P]])
    return found[:ELEMENTS]


def _interpolate(shares: Mapping[int, UInt64], holders: list[int], at: int) -> UInt64:
    total = np.zeros(ELEMENTS, dtype=np.uint64)
    for holder in holders:
        numerator = denominator = 1
        for other in holders:
            if other != holder:
                numerator = numerator * (at - (other + 1)) % PRIME
                denominator = denominator * (holder - other) % PRIME
        weight = np.uint64(numerator * pow(denominator, PRIME - 2, PRIME) % PRIME)
        total = (total + shares[holder] * weight) % _P
    return total


def _lanes(elements: UInt64) -> Int64:
    value = elements.astype(np.int64)
    value = np.where(value > PRIME // 2, value - PRIME, value)
    half = 1 << (LANE_BITS - 1)
    low = (value + half) % (1 << LANE_BITS) - half
    out = np.empty(RING_DEGREE, dtype=np.int64)
    out[0::2] = low
    out[1::2] = (value - low) >> LANE_BITS
    return out
