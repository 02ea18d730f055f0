"""Sealing a short secret to a peer: ML-KEM-768 and X25519, HKDF-SHA256, ChaCha20-Poly1305.

A `Channel` is one direction between two sites in one context. Its sender encapsulates once
(FIPS 203), and the ciphertext travels in front of the first box. Every box has a key of its own:

    key  = HKDF-SHA256(ML-KEM secret | X25519 secret, salt, info, 32 bytes)
    info = "fedshield seal 2", purpose, context, sender, receiver, sender's and receiver's X25519
           keys, receiver's ML-KEM key, ciphertext; each preceded by its 32-bit length

ML-KEM comes first: SP 800-56C (revision 2, section 2) lets an auxiliary secret follow an approved
one. An outsider must break both to open a box; it opens for no other pair, purpose or context, and
under no other ciphertext. The salt (32 bytes, sent along) is made from the content, so a key never
seals two contents and the nonce can be fixed.

Randomness: `encapsulate` draws from the system's generator alone, for the library takes no seed.
A generator that repeats (a cloned machine) repeats the ML-KEM secret; the salt still keeps the
keys of unlike contents apart. One that an adversary can predict gives the ML-KEM secret away, and
sealing is then X25519 alone, whose keys are hardened by the site's secret (`RunKey`).

A changed ciphertext is no error of its own: it gives another secret (FIPS 203, implicit rejection),
under which no box opens.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import SEALING, PublicKey
from fedshield.errors import CryptoError

SALT_BYTES = 32
#: What a box is longer than its content.
OVERHEAD_BYTES = SALT_BYTES + 16
#: An ML-KEM-768 ciphertext, in front of the first box of a channel.
CIPHERTEXT_BYTES = 1088
_LABEL = f"fedshield seal {SEALING}".encode()
_NONCE = bytes(12)


@dataclass(frozen=True)
class Channel:
    """What two sites share in one direction and one context; made by `encapsulate` at the sender
    and by `receive` at the receiver. `names`: sender, receiver. `ciphertext`: (1088 bytes,)
    public. `keys`: the sender's and the receiver's X25519 key, the receiver's ML-KEM key."""

    ciphertext: bytes = field(repr=False)
    context: bytes = field(repr=False)
    names: tuple[str, str]
    keys: tuple[bytes, bytes, bytes] = field(repr=False)
    #: ML-KEM secret | X25519 secret, 64 bytes.
    secret: bytes = field(repr=False)

    def seal(
        self,
        content: bytes,
        purpose: str,
        *,
        associated: bytes = b"",
        salt_key: bytes | None = None,
    ) -> bytes:
        """A box of the content, `OVERHEAD_BYTES` longer.

        Args:
            content: what is sealed, any length.
            purpose: what the box is for; it opens for no other.
            associated: what the box speaks of; bound to it, not in it.
            salt_key: 32 secret bytes that the salt is derived from; random if not given. The
                content goes into the salt too, so that a cloned machine whose random bytes repeat
                never seals two contents under one key.

        Returns:
            salt (32 bytes) | ChaCha20-Poly1305 of the content.
        """
        parts = (purpose.encode(), self.context, *map(str.encode, self.names), associated, content)
        digest = b"".join(hashlib.sha256(part).digest() for part in parts)
        salt = hmac.digest(salt_key or os.urandom(SALT_BYTES), digest, "sha256")
        cipher = ChaCha20Poly1305(self._key(purpose, salt))
        return salt + cipher.encrypt(_NONCE, content, associated)

    def unseal(self, box: bytes, purpose: str, *, associated: bytes = b"") -> bytes:
        """What was sealed.

        Args:
            box: salt (32 bytes) | ChaCha20-Poly1305 of the content.
            purpose: what the box is for.
            associated: what the box speaks of.

        Raises:
            CryptoError: if the box was not made in this channel for this purpose and `associated`,
                or was changed.
        """
        if len(box) < OVERHEAD_BYTES:
            raise CryptoError(
                f"sealed box: expected at least {OVERHEAD_BYTES} bytes, got {len(box)}"
            )
        cipher = ChaCha20Poly1305(self._key(purpose, box[:SALT_BYTES]))
        try:
            return cipher.decrypt(_NONCE, box[SALT_BYTES:], associated)
        except InvalidTag:
            raise CryptoError(
                f"sealed box from {self.names[0]}: does not open (changed, or made for another run)"
            ) from None

    def _key(self, purpose: str, salt: bytes) -> bytes:
        names = map(str.encode, self.names)
        parts = (_LABEL, purpose.encode(), self.context, *names, *self.keys, self.ciphertext)
        info = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(self.secret)


def encapsulate(key: RunKey, peer: PublicKey, *, context: bytes, names: tuple[str, str]) -> Channel:
    """The sender's end of a new channel. The receiver needs its `ciphertext`.

    Args:
        key: the sender's.
        peer: the receiver's public key.
        context: of the session or sum; it must cover both public keys of every site.
        names: sender, receiver.

    Raises:
        CryptoError: the peer's key is malformed (FIPS 203, section 7.2) or of low order.
    """
    try:
        kem, ciphertext = MLKEM768PublicKey.from_public_bytes(peer.mlkem).encapsulate()
    except ValueError:
        raise _unusable(names) from None
    keys = (key.public.x25519, peer.x25519, peer.mlkem)
    return Channel(ciphertext, context, names, keys, kem + _exchange(key, peer, names))


def receive(
    data: bytes, key: RunKey, peer: PublicKey, *, context: bytes, names: tuple[str, str]
) -> tuple[Channel, bytes]:
    """The receiver's end of a channel, and its first box.

    Args:
        data: ciphertext (1088 bytes) | box.
        key: the receiver's.
        peer: the sender's public key.
        context: as in `encapsulate`.
        names: sender, receiver.

    Raises:
        CryptoError: too few bytes, or the peer's key is of low order. A changed ciphertext shows
            when the box does not open.
    """
    if len(data) < CIPHERTEXT_BYTES + OVERHEAD_BYTES:
        raise CryptoError(
            f"sealed box: expected at least {CIPHERTEXT_BYTES + OVERHEAD_BYTES} bytes, got "
            f"{len(data)}"
        )
    ciphertext, box = data[:CIPHERTEXT_BYTES], data[CIPHERTEXT_BYTES:]
    kem = key.mlkem.decapsulate(ciphertext)
    keys = (peer.x25519, key.public.x25519, key.public.mlkem)
    return Channel(ciphertext, context, names, keys, kem + _exchange(key, peer, names)), box


def _exchange(key: RunKey, peer: PublicKey, names: tuple[str, str]) -> bytes:
    try:
        return key.x25519.exchange(X25519PublicKey.from_public_bytes(peer.x25519))
    except ValueError:  # a low-order or malformed public key
        raise _unusable(names) from None


def _unusable(names: tuple[str, str]) -> CryptoError:
    return CryptoError(f"sealed box: {names[0]}-{names[1]}: the peer's key is unusable")
