"""Keys of one party: Ed25519 to sign, X25519 (fresh for each run) to be sealed to.

Private halves never leave the object; `repr` shows the public half only.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


class SigningKey:
    """A party's long-term Ed25519 key, from the operating system's generator."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()[:16]})"


class RunKey:
    """A site's X25519 key for one run; kept in memory only."""

    def __init__(self) -> None:
        self.private = X25519PrivateKey.generate()
        self.public: bytes = self.private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"RunKey(public={self.public.hex()[:16]})"
