"""The envelope around every message: versioned, signed, bound to run, round, phase and sender.

    "FSHD" | version (1 byte) | body, as `codec` encodes it | Ed25519 signature (64 bytes)

The signature is over everything before it and is checked before anything is parsed; the
receiver knows whom it is listening to, so the message does not get to choose its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield.errors import ProtocolError
from fedshield.protocol.wire import codec

MAGIC = b"FSHD"
VERSION = 1
SIGNATURE_BYTES = 64
MAX_BYTES = 64 * 1024 * 1024

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Binding:
    """What a message belongs to. `context` is 32 bytes, see `run_context`."""

    context: bytes
    round_number: int
    phase: str


def run_context(label: str, *parts: bytes) -> bytes:
    """A 32-byte digest over a label and length-prefixed parts."""
    return hashlib.sha256(codec.encode(["fedshield context 1", label, *parts])).digest()


def seal(kind: str, binding: Binding, sender: str, body: codec.Value, sign: Sign) -> bytes:
    """The signed bytes of one message."""
    message = (
        MAGIC
        + bytes([VERSION])
        + codec.encode([kind, binding.context, binding.round_number, binding.phase, sender, body])
    )
    return message + sign(message)


def unseal(
    data: bytes, kind: str, binding: Binding, sender: str, public: bytes, max_bytes: int = MAX_BYTES
) -> codec.Value:
    """The body of a message that must be of `kind`, from `sender`, for `binding`.

    Raises `ProtocolError`: 'size', 'signature', 'version', 'malformed', 'kind', 'context',
    'round' or 'sender', in that order of checking.
    """
    if not len(MAGIC) + 1 + SIGNATURE_BYTES <= len(data) <= max_bytes:
        raise ProtocolError("size", f"{kind} from {sender}: {len(data)} bytes, at most {max_bytes}")
    message, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise ProtocolError(
            "signature", f"{kind}: not signed by {sender}'s key in the roster"
        ) from None
    if message[: len(MAGIC)] != MAGIC or message[len(MAGIC)] != VERSION:
        raise ProtocolError("version", f"{kind} from {sender}: expected protocol {VERSION}")
    value = codec.decode(message[len(MAGIC) + 1 :])
    if not (isinstance(value, list) and len(value) == 6):
        raise ProtocolError("malformed", f"{kind} from {sender}: not an envelope")
    got_kind, context, round_number, phase, got_sender, body = value
    if got_kind != kind:
        raise ProtocolError("kind", f"expected {kind} from {sender}, got {got_kind!r:.60}")
    if context != binding.context:
        raise ProtocolError(
            "context", f"{kind} from {sender}: made for another run, plan or roster"
        )
    if round_number != binding.round_number or phase != binding.phase:
        raise ProtocolError(
            "round",
            f"{kind} from {sender}: expected round {binding.round_number} ({binding.phase}), "
            f"got {round_number!r:.60} ({phase!r:.60})",
        )
    if got_sender != sender:
        raise ProtocolError(
            "sender", f"expected {kind} from {sender}, got one from {got_sender!r:.60}"
        )
    return body
