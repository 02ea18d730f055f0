"""A block on the wire: a count, then that many length-prefixed ciphertexts."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fedshield.crypto.scheme import SchemeParameters
from fedshield.errors import CryptoError


def pack(ciphertexts: Sequence[bytes]) -> bytes:
    """Ciphertexts as one block: their number, then each after its length.

    >>> pack([b"abc"]).hex()
    '010003000000616263'
    """
    parts = [struct.pack("<H", len(ciphertexts))]
    for ciphertext in ciphertexts:
        parts += (struct.pack("<I", len(ciphertext)), ciphertext)
    return b"".join(parts)


def unpack(block: bytes, parameters: SchemeParameters) -> list[bytes]:
    """The ciphertexts of a block. Every length is checked before it is used; raises
    `CryptoError` if the block is cut, overlong or holds too much."""
    if not 2 <= len(block) <= parameters.block_limit():
        raise CryptoError(
            f"block: expected 2 to {parameters.block_limit()} bytes, got {len(block)}"
        )
    (count,) = struct.unpack_from("<H", block)
    if not 1 <= count <= parameters.ciphertexts_per_block:
        raise CryptoError(
            f"block: expected 1 to {parameters.ciphertexts_per_block} ciphertexts, got {count}"
        )
    ciphertexts: list[bytes] = []
    offset = 2
    for _ in range(count):
        if offset + 4 > len(block):
            raise CryptoError(f"block: cut short after {len(block)} bytes")
        (length,) = struct.unpack_from("<I", block, offset)
        offset += 4
        if offset + length > len(block):
            raise CryptoError(f"block: a ciphertext runs past the end ({len(block)} bytes)")
        ciphertexts.append(block[offset : offset + length])
        offset += length
    if offset != len(block):
        raise CryptoError(f"block: {len(block) - offset} bytes follow the last ciphertext")
    return ciphertexts
