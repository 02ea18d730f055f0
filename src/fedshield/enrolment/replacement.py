"""The statement by which a party's old key names its new one.

A card keeps all of them, from the party's first key on: whoever knew that key can follow the
party to the one of today, and two cards are one party's if they begin with the same key.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield.enrolment.files import RosterError
from fedshield.enrolment.forms import Form, Hex32, Hex64, Text
from fedshield.protocol.wire import codec

#: Keys that a card may name before the one of today.
MAX_REPLACED = 32


@dataclass(frozen=True)
class ReplacedKey:
    """`public`, `created`: a key that is no longer used, and its date; `signature`: its own, over
    `statement` with the key that came next."""

    public: bytes
    created: str
    signature: bytes

    def content(self) -> list[codec.Value]:
        return [self.public, self.created, self.signature]

    def fields(self) -> dict[str, str]:
        return {
            "public_key": self.public.hex(),
            "created": self.created,
            "signature": self.signature.hex(),
        }


class ReplacedForm(Form):
    """A replaced key in a card or key file."""

    public_key: Hex32
    created: Text
    signature: Hex64

    def replaced_key(self) -> ReplacedKey:
        public, signature = bytes.fromhex(self.public_key), bytes.fromhex(self.signature)
        return ReplacedKey(public, self.created, signature)


def statement(name: str, old: bytes, old_created: str, new: bytes, new_created: str) -> bytes:
    """What the old key signs.

    Args:
        name: of the party.
        old: public key, 32 bytes.
        old_created: its date.
        new: public key, 32 bytes.
        new_created: its date.

    Returns:
        The canonical encoding of `docs/roster.md`.
    """
    return codec.encode(
        ["fedshield replacement 1", name, old, old_created, new, new_created],
    )


def is_signed(message: bytes, signature: bytes, public: bytes) -> bool:
    """Whether a key signed a message; no error for bytes that are no key or no signature.

    Args:
        message: of any length.
        signature: Ed25519, 64 bytes.
        public: the key, 32 bytes.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_date(created: str) -> None:
    try:
        # One spelling only: fromisoformat takes others too.
        sound = datetime.date.fromisoformat(created).isoformat() == created
    except ValueError:
        sound = False
    if not sound:
        raise RosterError(
            f"created: expected a date such as 2026-03-01, got {created[:40]!r}; "
            "ask for the file again"
        )


def check_chain(name: str, public: bytes, created: str, replaces: tuple[ReplacedKey, ...]) -> None:
    """Each key signed the next, and none comes back.

    Args:
        name: of the party.
        public: its key of today, 32 bytes.
        created: the date of that.
        replaces: its keys before, the first one first.

    Raises:
        RosterError: for a chain that is broken, longer than `MAX_REPLACED`, or runs in a circle.
    """
    if len(replaces) > MAX_REPLACED:
        raise RosterError(
            f"card of {name}: expected at most {MAX_REPLACED} replaced keys, got more; enrol it "
            "with a new first key: fedshield keygen"
        )
    keys = [*((replaced.public, replaced.created) for replaced in replaces), (public, created)]
    if len({key for key, _ in keys}) < len(keys):
        raise RosterError(
            f"card of {name}: expected a new key at each replacement, got one that was there "
            "before; ask its site for it again"
        )
    for replaced, (new, new_created) in zip(replaces, keys[1:], strict=True):
        check_date(replaced.created)
        message = statement(name, replaced.public, replaced.created, new, new_created)
        if not is_signed(message, replaced.signature, replaced.public):
            raise RosterError(
                f"card of {name}: expected the replaced key {replaced.public.hex()[:16]} to have "
                "signed the next, got another signature; the card was changed or damaged: ask its "
                "site for it again"
            )
