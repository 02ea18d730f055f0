"""Sealing a short secret to a peer: X25519, HKDF-SHA256, ChaCha20-Poly1305.

The key is derived with a fresh 32-byte salt that travels along, so it is never used twice and
the nonce can be fixed. Sender, receiver, both public keys, the purpose and the run's context
are bound into the key; the box opens for no one else and nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedshield.crypto.keys import RunKey
from fedshield.errors import CryptoError

SALT_BYTES = 32
OVERHEAD_BYTES = SALT_BYTES + 16
_NONCE = bytes(12)


def seal(
    secret: bytes,
    key: RunKey,
    peer: bytes,
    *,
    purpose: str,
    context: bytes,
    names: tuple[str, str],
    associated: bytes = b"",
    salt_key: bytes | None = None,
) -> bytes:
    """A box for the holder of `peer` (X25519 public, 32 bytes). `names`: sender, receiver;
    `associated`: what the box speaks of, bound to it but not in it.

    `salt_key`: 32 secret bytes that the salt is derived from, random if not given. The content
    goes into the salt too, so that a cloned machine whose random bytes repeat never seals two
    contents under one key."""
    parts = (purpose.encode(), context, *map(str.encode, names), associated, secret)
    digest = b"".join(hashlib.sha256(part).digest() for part in parts)
    salt = hmac.digest(salt_key or os.urandom(SALT_BYTES), digest, "sha256")
    derived = _derive(key, peer, salt, purpose, context, names, (key.public, peer))
    return salt + ChaCha20Poly1305(derived).encrypt(_NONCE, secret, associated)


def unseal(
    box: bytes,
    key: RunKey,
    peer: bytes,
    *,
    purpose: str,
    context: bytes,
    names: tuple[str, str],
    associated: bytes = b"",
) -> bytes:
    """What was sealed. `names` and `associated` as in `seal`. Raises `CryptoError` if the box was
    not made by that sender for this receiver, purpose and context, or was changed."""
    if len(box) < OVERHEAD_BYTES:
        raise CryptoError(f"sealed box: expected at least {OVERHEAD_BYTES} bytes, got {len(box)}")
    salt = box[:SALT_BYTES]
    derived = _derive(key, peer, salt, purpose, context, names, (peer, key.public))
    try:
        return ChaCha20Poly1305(derived).decrypt(_NONCE, box[SALT_BYTES:], associated)
    except InvalidTag:
        raise CryptoError(
            f"sealed box from {names[0]}: does not open (changed, or made for another run)"
        ) from None


def _derive(
    key: RunKey,
    peer: bytes,
    salt: bytes,
    purpose: str,
    context: bytes,
    names: tuple[str, str],
    publics: tuple[bytes, bytes],
) -> bytes:
    try:
        shared = key.private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:  # a low-order or malformed public key
        raise CryptoError(
            f"sealed box: {names[0]}-{names[1]}: the peer's key is unusable"
        ) from None
    info = b""
    for part in (b"fedshield seal 1", purpose.encode(), context, *map(str.encode, names), *publics):
        info += struct.pack(">I", len(part)) + part
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(shared)
