"""Scheme `ckks`: the paper's. One key for all sites of a run, additions only.

Notable: values are rounded to a fixed grid before they are encrypted and the opened sum is
rounded to the same grid, half a step of which lies more than ten noise deviations away. So
the opened sum is exact, and no raw approximate decryption, which would carry the key's noise
(Li and Micciancio, EUROCRYPT 2021), ever leaves `open`.

The sites hold the secret key, so they encrypt with it. Encryption with a public key adds noise
that is a multiple of the secret: seven to eleven times as much in the worst slot (docs/log.md),
which at 64 sites and the `paper` set is more than a quarter of a grid step.

Limits, to be said wherever this scheme is chosen: any one site together with the coordinator
can read every site; a coordinator that does not follow the protocol can have one site's
ciphertext opened as if it were the sum; TenSEAL parses the coordinator's bytes in the process
that holds the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedshield.crypto import framing, received
from fedshield.crypto.scheme import CKKS, MODULUS_BITS, SCALE_BITS, SchemeParameters
from fedshield.errors import CryptoError
from fedshield.types import Float64

#: An opened value further than this many grid steps from the grid means that the noise is not
#: what it should be: reject rather than round to a neighbour.
GRID_TOLERANCE = 0.25


class CkksScheme:
    """A site's half, with the run's secret key. `repr` shows the key id only."""

    def __init__(
        self, parameters: SchemeParameters, context: Any, grid_bits: int, secret: bytes
    ) -> None:
        self.parameters = parameters
        self._context = context
        self._grid = 2.0**-grid_bits
        self.number_format = f"ckks grid 2^-{grid_bits} scale 2^{SCALE_BITS}"
        self.public = _serialize(context, secret=False)
        self._secret = secret
        self.key_id = hashlib.sha256(b"fedshield ckks key" + secret).digest()[:16]

    def __repr__(self) -> str:
        return f"CkksScheme({self.parameters.name}, key {self.key_id.hex()[:8]})"

    @classmethod
    def generate(cls, parameter_set: str, grid_bits: int) -> CkksScheme:
        """A new key, from SEAL's generator seeded by the operating system."""
        import tenseal

        chosen = CKKS[parameter_set]
        context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            2 * chosen.values_per_ciphertext,
            -1,
            list(MODULUS_BITS[parameter_set]),
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        context.global_scale = 2.0**SCALE_BITS
        return cls.from_secret(parameter_set, _serialize(context, secret=True), grid_bits)

    @classmethod
    def from_secret(cls, parameter_set: str, secret: bytes, grid_bits: int) -> CkksScheme:
        """From another site's `secret()`.

        Args:
            parameter_set: its name.
            secret: the context with its secret key, as TenSEAL writes it.
            grid_bits: of the grid that sums are rounded to.

        Raises:
            CryptoError: if it does not fit.
        """
        chosen = CKKS[parameter_set]
        context = received.context(secret, chosen, "run key")
        if not context.has_secret_key():
            raise CryptoError("run key: expected a secret key, got public material only")
        return cls(chosen, context, grid_bits, secret)

    def secret(self) -> bytes:
        """The context with its secret key. To be sealed to another site, never sent or kept."""
        return self._secret

    def encrypt(self, slots: Float64) -> Iterator[bytes]:
        import tenseal

        per_ciphertext = self.parameters.values_per_ciphertext
        per_block = self.parameters.values_per_block
        for start in range(0, slots.size, per_block):
            block = slots[start : start + per_block]
            yield framing.pack(
                [
                    tenseal.ckks_vector(
                        self._context, block[offset : offset + per_ciphertext]
                    ).serialize()
                    for offset in range(0, block.size, per_ciphertext)
                ]
            )

    def open(self, blocks: Sequence[bytes], num_slots: int) -> Float64:
        parts: list[Float64] = []
        left = num_slots
        for block in blocks:
            for raw in framing.unpack(block, self.parameters):
                vector = received.vector(self._context, raw, self.parameters)
                expected = min(left, self.parameters.values_per_ciphertext)
                if vector.size() != expected:
                    raise CryptoError(
                        f"sum: expected a ciphertext of {expected} values, got {vector.size()}"
                    )
                left -= expected
                try:
                    parts.append(np.asarray(vector.decrypt(), dtype=np.float64))
                except Exception as error:
                    raise CryptoError(f"sum: does not open ({type(error).__name__})") from None
        if left:
            raise CryptoError(f"sum: expected {num_slots} values, {left} of them are missing")
        values = np.concatenate(parts) if parts else np.zeros(0)
        steps = values / self._grid
        rounded = np.rint(steps)
        if not np.isfinite(steps).all() or np.abs(steps - rounded).max(initial=0) > GRID_TOLERANCE:
            raise CryptoError("sum: not on the grid (wrong key, damaged block or too much noise)")
        # Adding zero turns -0.0 into 0.0: the sign of a zero would be a bit of the noise.
        exact: Float64 = rounded * self._grid + 0.0
        if np.abs(exact).max(initial=0) >= self.parameters.sum_limit:
            raise CryptoError(f"sum: a value is at or over the limit {self.parameters.sum_limit:g}")
        return exact


def _serialize(context: Any, *, secret: bool) -> bytes:
    return bytes(
        context.serialize(
            save_public_key=False,
            save_secret_key=secret,
            save_galois_keys=False,
            save_relin_keys=False,
        )
    )
