"""What a site signs of its ledger: the head, its number of lines and the digest of the last."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield.errors import ProtocolError
from fedshield.ledger import heads
from fedshield.ledger.heads import Head
from fedshield.protocol.wire import codec
from fedshield.protocol.wire.envelope import Sign

HEAD_LABEL = "fedshield ledger head 1"


def sign_head(head: Head, sign: Sign) -> bytes:
    """As it travels, and as others hand it back."""
    return codec.encode([head.length, bytes.fromhex(head.digest), sign(_message(head))])


def read_head(statement: bytes, public: bytes) -> Head | None:
    """The head in a statement that this key signed; None for any other, and for one that no ledger
    reaches."""
    try:
        value = codec.decode(statement)
    except ProtocolError:
        return None
    if not (isinstance(value, list) and len(value) == 3):
        return None
    length, digest, signature = value
    if not (
        isinstance(length, int)
        and isinstance(digest, bytes)
        and len(digest) == hashlib.sha256().digest_size
        and isinstance(signature, bytes)
        and 0 < length <= heads.MAX_LINES
    ):
        return None
    head = Head(length, digest.hex())
    return head if is_signed(_message(head), signature, public) else None


def is_signed(message: bytes, signature: bytes, public: bytes) -> bool:
    """Whether this Ed25519 key signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def not_following(before: Head, now: Head) -> bool:
    """Whether a ledger that ended in `before` cannot end in `now`.

    >>> not_following(Head(3, "aa"), Head(3, "bb")), not_following(Head(3, "aa"), Head(4, "bb"))
    (True, False)
    """
    return before.length > now.length or (
        before.length == now.length and before.digest != now.digest
    )


def _message(head: Head) -> bytes:
    return codec.encode([HEAD_LABEL, head.length, bytes.fromhex(head.digest)])
