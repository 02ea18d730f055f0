"""Keys of one party: Ed25519 to sign; ML-KEM-768 and X25519, fresh each time, to be sealed to.

Private halves never leave the object, except for `SiteKey.to_bytes`, which is for the key file;
`repr` shows the public half only.
"""

from __future__ import annotations

import os

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedshield.crypto.public_keys import NO_MLKEM, PublicKey
from fedshield.errors import CryptoError

SEED_BYTES = 32
SECRET_BYTES = 32


class SigningKey:
    """A party's Ed25519 key: fresh from the operating system's generator, or from its seed."""

    def __init__(self, seed: bytes | None = None) -> None:
        if seed is not None and len(seed) != SEED_BYTES:
            raise CryptoError(f"signing key: expected {SEED_BYTES} bytes, got {len(seed)}")
        self._private = Ed25519PrivateKey.from_private_bytes(
            os.urandom(SEED_BYTES) if seed is None else seed
        )
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(public={self.public.hex()[:16]})"


class SiteKey(SigningKey):
    """A party's long-term keys: the signing key, and a secret that is mixed into what a site
    derives its one-time keys from, so that a poor or repeated random draw alone gives none away.
    What its training draws at random comes from the secret too (`seeds.SiteRandomness`).
    `SiteKey()` is fresh."""

    def __init__(self, seed: bytes | None = None, secret: bytes | None = None) -> None:
        super().__init__(seed)
        self.secret: bytes = os.urandom(SECRET_BYTES) if secret is None else secret
        if len(self.secret) != SECRET_BYTES:
            raise CryptoError(f"site secret: expected {SECRET_BYTES} bytes, got {len(self.secret)}")

    @classmethod
    def from_bytes(cls, raw: bytes) -> SiteKey:
        """Raises `CryptoError` for another length than `to_bytes` gives."""
        if len(raw) != SEED_BYTES + SECRET_BYTES:
            raise CryptoError(
                f"site key: expected {SEED_BYTES + SECRET_BYTES} bytes, got {len(raw)}"
            )
        return cls(raw[:SEED_BYTES], raw[SEED_BYTES:])

    def to_bytes(self) -> bytes:
        """Ed25519 seed | site secret. For the key file and nothing else."""
        return self._private.private_bytes_raw() + self.secret


class RunKey:
    """A site's keys for one session or one sum, which others seal to: ML-KEM-768 (FIPS 203) and
    X25519 (RFC 7748). In memory only.

    Both private halves are HKDF-SHA256 outputs of 64 random bytes and the site's own secret, so
    either alone keeps them: a poor or predictable generator gives neither away.

    Args:
        site_secret: 32 bytes that no other party has (`SiteKey.secret`).

    Raises:
        CryptoError: this machine's `cryptography` was built without ML-KEM.
    """

    def __init__(self, site_secret: bytes) -> None:
        source = os.urandom(64) + site_secret
        try:
            self.mlkem = MLKEM768PrivateKey.from_seed_bytes(_derived(source, b"ml-kem-768", 64))
        except UnsupportedAlgorithm:
            raise CryptoError(NO_MLKEM) from None
        self.x25519 = X25519PrivateKey.from_private_bytes(_derived(source, b"x25519", 32))
        self.public = PublicKey(
            self.mlkem.public_key().public_bytes_raw(),
            self.x25519.public_key().public_bytes_raw(),
        )

    def __repr__(self) -> str:
        return f"RunKey(x25519={self.public.x25519.hex()[:16]})"


def _derived(source: bytes, use: bytes, size: int) -> bytes:
    info = b"fedshield run key 2 " + use
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(source)
