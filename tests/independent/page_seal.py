"""docs/protocol.md, section 6: keys and what one site seals to another, from the page alone."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from page_wire import LABELS, Refused, sha256, sized

MLKEM_KEY, X25519_KEY, CIPHERTEXT, SALT, MODULUS = 1184, 32, 1088, 32, 3329
PUBLIC_KEY = MLKEM_KEY + X25519_KEY


def hkdf(secret: bytes, salt: bytes | None, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)


class SealKey:
    """The private halves of a run or round key; `public`: 1216 bytes."""

    def __init__(self, random: bytes, site_secret: bytes) -> None:
        drawn = random + site_secret
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(
            hkdf(drawn, None, b"fedshield run key 2 ml-kem-768", 64)
        )
        self._x25519 = X25519PrivateKey.from_private_bytes(
            hkdf(drawn, None, b"fedshield run key 2 x25519", 32)
        )
        self.public = (
            self._mlkem.public_key().public_bytes_raw()
            + self._x25519.public_key().public_bytes_raw()
        )

    def decapsulated(self, ciphertext: bytes) -> bytes:
        return self._mlkem.decapsulate(ciphertext)

    def shared(self, other: bytes) -> bytes:
        """X25519 with the second half of `other`'s public key."""
        return self._x25519.exchange(X25519PublicKey.from_public_bytes(other[MLKEM_KEY:]))


def check_keys(keys: Mapping[str, bytes]) -> None:
    """Of all sites of a session or sum."""
    for site, key in keys.items():
        if len(key) != PUBLIC_KEY:
            raise Refused(f"size: {site}")
        # FIPS 203, section 7.2: twelve bits a coefficient, lowest bits first; 32 bytes of seed.
        packed = np.frombuffer(key[: MLKEM_KEY - 32], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little").reshape(-1, 12)
        if int((bits @ (1 << np.arange(12))).max()) >= MODULUS:
            raise Refused(f"malformed: {site}")
        try:  # of low order: every exchange gives zeros
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key[MLKEM_KEY:]))
        except ValueError:
            raise Refused(f"malformed: {site}") from None
    for half in (slice(0, MLKEM_KEY), slice(MLKEM_KEY, None)):
        if len({key[half] for key in keys.values()}) != len(keys):
            raise Refused("repeated: two sites sent one key")


class Channel:
    """One direction between two sites, in a session or a sum."""

    def __init__(self, secret: bytes, names: Iterable[str], keys: Any, context: bytes) -> None:
        """`secret`: ML-KEM's, then X25519's; `keys`: what `info` names last, in its order."""
        self._secret, self._names = secret, [name.encode() for name in names]
        self._keys, self._context = keys, context

    def _key(self, purpose: str, salt: bytes) -> bytes:
        parts = [LABELS["seal"], LABELS[purpose], self._context, *self._names, *self._keys]
        return hkdf(self._secret, salt, b"".join(map(sized, parts)), 32)

    def seal(self, content: bytes, purpose: str, associated: bytes, salt_key: bytes) -> bytes:
        parts = (LABELS[purpose], self._context, *self._names, associated, content)
        salt = hmac.digest(salt_key, b"".join(map(sha256, parts)), "sha256")
        cipher = ChaCha20Poly1305(self._key(purpose, salt))
        return salt + cipher.encrypt(bytes(12), content, associated)

    def open(self, box: bytes, purpose: str, associated: bytes) -> bytes:
        cipher = ChaCha20Poly1305(self._key(purpose, box[:SALT]))
        try:
            return cipher.decrypt(bytes(12), box[SALT:], associated)
        except (InvalidTag, ValueError):
            raise Refused("crypto: a box that does not open") from None


def sending(
    own: SealKey, names: tuple[str, str], receiver: bytes, context: bytes
) -> tuple[Channel, bytes]:
    """The channel to a site (`names`: sender, receiver), and the ciphertext to go in front."""
    public = MLKEM768PublicKey.from_public_bytes(receiver[:MLKEM_KEY])
    secret, ciphertext = public.encapsulate()
    keys = _keys(own.public, receiver, ciphertext)
    return Channel(secret + own.shared(receiver), names, keys, context), ciphertext


def receiving(
    own: SealKey, names: tuple[str, str], sender: bytes, context: bytes, ciphertext: bytes
) -> Channel:
    """The channel from a site."""
    if len(ciphertext) != CIPHERTEXT:
        raise Refused("crypto: a box without its ciphertext")
    secret = own.decapsulated(ciphertext) + own.shared(sender)
    return Channel(secret, names, _keys(sender, own.public, ciphertext), context)


def _keys(sender: bytes, receiver: bytes, ciphertext: bytes) -> list[bytes]:
    return [sender[MLKEM_KEY:], receiver[MLKEM_KEY:], receiver[:MLKEM_KEY], ciphertext]


def new_key(site_secret: bytes) -> SealKey:
    return SealKey(os.urandom(64), site_secret)
