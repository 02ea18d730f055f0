"""What the coordinator holds: adders made from public material only.

Nothing in this module can hold a secret key: `CkksAdder` refuses a context that carries one.
"""

from __future__ import annotations

import numpy as np

from fedshield.crypto import framing, received
from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.crypto.scheme import BLOCK_BYTES, Adder, SchemeParameters, parameters
from fedshield.errors import CryptoError


class PlainAdder:
    """Adds float32 blocks, in float64."""

    def add(self, total: object | None, block: bytes) -> object:
        if not 0 < len(block) <= BLOCK_BYTES or len(block) % 4:
            raise CryptoError(f"plain block: expected whole float32 values, got {len(block)} bytes")
        with np.errstate(invalid="ignore"):  # a signalling NaN; refused below
            values = np.frombuffer(block, dtype="<f4").astype(np.float64)
        if not np.isfinite(values).all():
            raise CryptoError("plain block: expected finite numbers, got NaN or infinity")
        if total is None:
            return values
        assert isinstance(total, np.ndarray)
        if total.shape != values.shape:
            raise CryptoError(
                f"plain block: expected {total.shape[0]} values, got {values.shape[0]}"
            )
        return total + values

    def result(self, total: object) -> bytes:
        assert isinstance(total, np.ndarray)
        if np.abs(total).max(initial=0) > np.finfo(np.float32).max:
            raise CryptoError("plain sum: expected values that float32 holds, got larger ones")
        return total.astype("<f4").tobytes()


class CkksAdder:
    """Adds CKKS ciphertexts with TenSEAL, from the public context.

    Raises `CryptoError` for a context that does not parse, is not of the named set, or holds a
    secret key, Galois keys or relinearisation keys: addition needs none of them.
    """

    def __init__(self, parameters: SchemeParameters, public: bytes) -> None:
        self._parameters = parameters
        self._context = received.context(public, parameters, "public context")
        if self._context.has_secret_key():
            raise CryptoError("public context: expected public material, got a secret key")

    def add(self, total: object | None, block: bytes) -> object:
        vectors = [
            received.vector(self._context, raw, self._parameters)
            for raw in framing.unpack(block, self._parameters)
        ]
        if total is None:
            return vectors
        assert isinstance(total, list)
        if len(total) != len(vectors):
            raise CryptoError(f"block: expected {len(total)} ciphertexts, got {len(vectors)}")
        try:
            return [mine + theirs for mine, theirs in zip(total, vectors, strict=True)]
        except Exception as error:
            raise CryptoError(f"block: cannot be added ({type(error).__name__})") from None

    def result(self, total: object) -> bytes:
        assert isinstance(total, list)
        return framing.pack([vector.serialize() for vector in total])


def adder(
    scheme: str, parameter_set: str, public: bytes, packing: RlweParameters | None = None
) -> Adder:
    """The coordinator's adder for a scheme, from public material only.

    Args:
        scheme: `rlwe`, `plain` or `ckks`.
        parameter_set: of ckks, its name.
        public: of ckks, the public context as TenSEAL writes it.
        packing: of rlwe; the others need none.

    Raises:
        CryptoError: for a context that is not of the named set, or holds more than it needs to add.
    """
    if scheme == "rlwe":
        from fedshield.crypto.rlwe.adder import RlweAdder  # compiled arithmetic comes with it

        assert packing is not None
        return RlweAdder(packing)
    if scheme == "plain":
        return PlainAdder()
    return CkksAdder(parameters(scheme, parameter_set), public)
