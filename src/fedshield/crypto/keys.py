"""Keys of one party: Ed25519 to sign, X25519 (fresh for each run) to be sealed to.

Private halves never leave the object, except for `SiteKey.to_bytes`, which is for the key file;
`repr` shows the public half only.
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

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
    """A site's X25519 key for one run; kept in memory only."""

    def __init__(self) -> None:
        self.private = X25519PrivateKey.generate()
        self.public: bytes = self.private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"RunKey(public={self.public.hex()[:16]})"
