"""Scheme `plain`: float32 in the clear. The Vanilla-FL baseline; it protects nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedshield.crypto.scheme import BLOCK_BYTES, PLAIN, SchemeParameters
from fedshield.errors import CryptoError
from fedshield.types import Float64

VALUES_PER_BLOCK = BLOCK_BYTES // 4


class PlainScheme:
    """float32, little-endian. There is no key."""

    parameters: SchemeParameters = PLAIN
    key_id = bytes(16)
    number_format = "float32"

    def encrypt(self, slots: Float64) -> Iterator[bytes]:
        for start in range(0, slots.size, VALUES_PER_BLOCK):
            yield slots[start : start + VALUES_PER_BLOCK].astype("<f4").tobytes()

    def open(self, blocks: Sequence[bytes], num_slots: int) -> Float64:
        raw = b"".join(blocks)
        if len(raw) != 4 * num_slots:
            raise CryptoError(f"plain sum: expected {4 * num_slots} bytes, got {len(raw)}")
        with np.errstate(invalid="ignore"):  # a signalling NaN; refused below
            values = np.frombuffer(raw, dtype="<f4").astype(np.float64)
        if not np.isfinite(values).all():
            raise CryptoError("plain sum: expected finite numbers, got NaN or infinity")
        return values
