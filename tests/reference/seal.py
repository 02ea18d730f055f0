"""Sealing as docs/protocol.md, section 6, has it, from raw secrets: HKDF by hand with HMAC (RFC
5869), the key halves and the ciphertext from mlkem.py. For tests only; none of this
package's code is used."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from reference import mlkem


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-256."""
    derived, block, source = b"", b"", hmac.digest(salt or bytes(32), secret, "sha256")
    for number in range(1, -(-size // 32) + 1):
        block = hmac.digest(source, block + info + bytes([number]), "sha256")
        derived += block
    return derived[:size]


def prefixed(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


@dataclass(frozen=True)
class Keys:
    """Of one site: private halves from 64 random bytes and the site's secret."""

    mlkem_seed: bytes
    x25519_private: bytes

    @classmethod
    def derived(cls, random: bytes, site_secret: bytes) -> Keys:
        source = random + site_secret
        return cls(
            hkdf(source, b"", b"fedshield run key 2 ml-kem-768", 64),
            hkdf(source, b"", b"fedshield run key 2 x25519", 32),
        )

    @property
    def mlkem_public(self) -> bytes:
        return mlkem.keys(self.mlkem_seed[:32], self.mlkem_seed[32:])[0]

    @property
    def mlkem_private(self) -> bytes:
        return mlkem.keys(self.mlkem_seed[:32], self.mlkem_seed[32:])[1]

    @property
    def x25519_public(self) -> bytes:
        return (
            X25519PrivateKey.from_private_bytes(self.x25519_private).public_key().public_bytes_raw()
        )

    @property
    def public(self) -> bytes:
        """What travels."""
        return self.mlkem_public + self.x25519_public

    def exchange(self, peer: bytes) -> bytes:
        private = X25519PrivateKey.from_private_bytes(self.x25519_private)
        return private.exchange(X25519PublicKey.from_public_bytes(peer))


@dataclass(frozen=True)
class Box:
    """One box and what went into it."""

    ciphertext: bytes
    salt: bytes
    info: bytes
    key: bytes
    box: bytes


def sealed(
    sender: Keys,
    receiver: Keys,
    message: bytes,
    content: bytes,
    *,
    purpose: str,
    context: bytes,
    names: tuple[str, str],
    associated: bytes,
    salt_key: bytes,
) -> Box:
    """`message`: the 32 bytes that the sender encapsulates."""
    secret, ciphertext = mlkem.encapsulate(receiver.mlkem_public, message)
    public = receiver.x25519_public
    bound = (purpose.encode(), context, names[0].encode(), names[1].encode())
    salted = b"".join(hashlib.sha256(part).digest() for part in (*bound, associated, content))
    salt = hmac.digest(salt_key, salted, "sha256")
    info = prefixed(
        b"fedshield seal 2", *bound, sender.x25519_public, public, receiver.mlkem_public, ciphertext
    )
    key = hkdf(secret + sender.exchange(public), salt, info, 32)
    box = salt + ChaCha20Poly1305(key).encrypt(bytes(12), content, associated)
    return Box(ciphertext, salt, info, key, box)
