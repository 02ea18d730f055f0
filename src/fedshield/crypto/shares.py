"""What one dealer gives one holder: a share of its one-time key and of its residues mod q.

The key travels packed in elements of a field of 31 bits, the reserved integers and tags as
residues mod q (shamir.py). The two are dealt, summed and opened together, so that there is one
share, one answer and one opening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedshield.crypto import decode, shamir
from fedshield.errors import CryptoError

_RESIDUE_BYTES = 8


@dataclass(frozen=True)
class ShareShape:
    """Of all shares of one sum. `modulus`: q of the residues, a prime."""

    threshold: int
    num_holders: int
    num_residues: int
    modulus: int

    @property
    def num_bytes(self) -> int:
        """Of a share on the wire."""
        return shamir.share_bytes(self.num_holders) + _RESIDUE_BYTES * self.num_residues


@dataclass(frozen=True, eq=False)
class Share:
    """`key`: uint64, (shamir.elements(num_holders),); `residues`: in [0, modulus)."""

    key: shamir.UInt64 = field(repr=False)
    residues: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class OpenedShares:
    """The sum of the keys, int64 (4096,), and that of the residues mod q. `wrong`: the holders
    whose answers do not lie on its polynomials."""

    key_sum: shamir.Int64 = field(repr=False)
    residues: tuple[int, ...] = field(repr=False)
    wrong: frozenset[int] = frozenset()


def deal(
    secret: shamir.Int64, residues: Sequence[int], shape: ShareShape, seed: bytes
) -> list[Share]:
    """A share for each holder, in the roster's order.

    Args:
        secret: int64 (4096,), magnitude at most 42.
        residues: in [0, shape.modulus).
        shape: of all shares of the sum.
        seed: 32 secret bytes, used for this alone.

    Raises:
        CryptoError: for what does not fit.
    """
    if len(residues) != shape.num_residues:
        raise CryptoError(f"share: expected {shape.num_residues} residues, got {len(residues)}")
    keys = shamir.share(secret, shape.threshold, shape.num_holders, seed)
    rest = shamir.share_residues(residues, shape.modulus, shape.threshold, shape.num_holders, seed)
    return [Share(key, row) for key, row in zip(keys, rest, strict=True)]


def add(shares: Sequence[Share], shape: ShareShape) -> Share:
    """The share of the sum, at one holder."""
    return Share(
        shamir.add_shares([one.key for one in shares]),
        shamir.add_residues([one.residues for one in shares], shape.modulus),
    )


def open_sum(
    shares: Mapping[int, Share],
    shape: ShareShape,
    num_summed: int,
    fits: decode.KeyCheck | None = None,
    colluding: int = 0,
) -> OpenedShares:
    """What `num_summed` dealers' shares add up to, from those of m >= T holders, of which floor((m
    - T) / 2) may be wrong, and at most m - T - c where nothing but the shares tells a wrong sum. A
    holder whose key is wrong is left out of the residues.

    Args:
        shares: holder -> its share of the sum.
        shape: of all shares of the sum; T is its threshold.
        num_summed: dealers, which bound the coefficients.
        fits: tells the right sum of keys, so that more wrong keys can be borne (`decode`); None
            where nothing does.
        colluding: c, holders that may agree on a lie.

    Raises:
        CryptoError: as of `decode.open_keys` and `decode.open_residues`.
    """
    key_sum, wrong = decode.open_keys(
        {holder: one.key for holder, one in shares.items()},
        shape.threshold,
        num_summed,
        shape.num_holders,
        fits,
        colluding,
    )
    residues, more = decode.open_residues(
        {holder: one.residues for holder, one in shares.items() if holder not in wrong},
        shape.modulus,
        shape.threshold,
        colluding,
    )
    return OpenedShares(key_sum, residues, wrong | more)


def to_bytes(share: Share) -> bytes:
    """The key's elements as little-endian 32-bit words, then the residues as 64-bit ones."""
    return shamir.to_bytes(share.key) + np.array(share.residues, dtype="<u8").tobytes()


def from_bytes(raw: bytes, shape: ShareShape) -> Share:
    """Raises `CryptoError` for a wrong length, or an element or residue out of range."""
    if len(raw) != shape.num_bytes:
        raise CryptoError(f"share: expected {shape.num_bytes} bytes, got {len(raw)}")
    cut = shamir.share_bytes(shape.num_holders)
    residues = tuple(np.frombuffer(raw[cut:], dtype="<u8").tolist())
    if any(one >= shape.modulus for one in residues):
        raise CryptoError(f"share: expected residues below {shape.modulus}")
    return Share(shamir.from_bytes(raw[:cut], shape.num_holders), residues)
