"""What the coordinator holds: adders made from public material only.

Nothing in this module can hold a secret key: `CkksAdder` refuses a context that carries one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedshield.crypto import framing
from fedshield.crypto.scheme import BLOCK_BYTES, SchemeParameters
from fedshield.errors import CryptoError


class PlainAdder:
    """Adds float32 blocks, in float64."""

    def add(self, total: object | None, block: bytes) -> object:
        if not 0 < len(block) <= BLOCK_BYTES or len(block) % 4:
            raise CryptoError(f"plain block: expected whole float32 values, got {len(block)} bytes")
        values = np.frombuffer(block, dtype="<f4").astype(np.float64)
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
        return total.astype("<f4").tobytes()


class CkksAdder:
    """Adds CKKS ciphertexts with TenSEAL, from the public context.

    Raises `CryptoError` for a context that does not parse or that holds a secret key, Galois
    keys or relinearisation keys beyond what addition needs.
    """

    def __init__(self, parameters: SchemeParameters, public: bytes) -> None:
        import tenseal

        self._tenseal = tenseal
        self._parameters = parameters
        try:
            self._context = tenseal.context_from(public, n_threads=1)
        except Exception as error:  # TenSEAL raises bare ValueError/RuntimeError
            raise CryptoError(f"public context: does not parse ({type(error).__name__})") from None
        if self._context.has_secret_key() or self._context.has_galois_keys():
            raise CryptoError(
                "public context: expected public material, got a secret or Galois key"
            )

    def add(self, total: object | None, block: bytes) -> object:
        vectors = [self._vector(raw) for raw in framing.unpack(block, self._parameters)]
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

    def _vector(self, raw: bytes) -> Any:
        try:
            return self._tenseal.ckks_vector_from(self._context, raw)
        except Exception as error:
            raise CryptoError(f"ciphertext: does not parse ({type(error).__name__})") from None
