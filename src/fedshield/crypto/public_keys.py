"""The public key that boxes are sealed to: ML-KEM-768 (FIPS 203) and X25519 (RFC 7748), both.

Nothing here can hold a private key, so the coordinator checks keys with it too.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedshield.errors import CryptoError

#: How boxes are sealed (seal.py): 1 was X25519 alone. It is under every countersignature.
SEALING = 2
MLKEM_BYTES = 1184
X25519_BYTES = 32
PUBLIC_KEY_BYTES = MLKEM_BYTES + X25519_BYTES
NO_MLKEM = (
    "public key: expected a package cryptography with ML-KEM-768, got one that was built without "
    "it; install version 48 or later from the package index"
)


class PublicKey(NamedTuple):
    """Both public keys of one site in a session or sum. `mlkem`: 1184 bytes; `x25519`: 32 bytes.

    >>> len(PublicKey(bytes(1184), bytes(32)).to_bytes())
    1216
    """

    mlkem: bytes
    x25519: bytes

    @classmethod
    def from_bytes(cls, raw: bytes) -> PublicKey:
        """Raises `CryptoError` for another length. What the keys are worth says `check`."""
        if len(raw) != PUBLIC_KEY_BYTES:
            raise CryptoError(
                f"public key: expected {PUBLIC_KEY_BYTES} bytes, got {len(raw)}; all parties need "
                "the same version of FedShield"
            )
        return cls(raw[:MLKEM_BYTES], raw[MLKEM_BYTES:])

    def to_bytes(self) -> bytes:
        """ML-KEM-768 | X25519: what travels."""
        return self.mlkem + self.x25519

    def check(self) -> None:
        """Raises `CryptoError` for an ML-KEM key with a coefficient that is not reduced mod q
        (FIPS 203, section 7.2: type and modulus check), and for an X25519 key of low order, with
        which anyone would know the shared secret (RFC 7748, section 6.1); and where this machine
        has no ML-KEM."""
        try:
            MLKEM768PublicKey.from_public_bytes(self.mlkem)
        except UnsupportedAlgorithm:
            raise CryptoError(NO_MLKEM) from None
        except ValueError:
            raise CryptoError(
                "public key: expected an ML-KEM-768 key, got one that is not reduced mod 3329"
            ) from None
        # This private key is nobody's: it asks whether there is a shared secret at all.
        probe = X25519PrivateKey.from_private_bytes(bytes(range(32)))
        try:
            probe.exchange(X25519PublicKey.from_public_bytes(self.x25519))
        except ValueError:
            raise CryptoError(
                "public key: expected an X25519 key, got one that is of low order"
            ) from None
