"""A party's key file, which stays where it was made, and its card, which everyone may see.

NAME.key         private: the signing key and the site secret; mode 0600, or it is not used
NAME.card.json   public: name, public key, date, signed by that key (so its sender holds it)
"""

from __future__ import annotations

import datetime
import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield import interrupt
from fedshield.crypto.keys import SiteKey
from fedshield.enrolment.files import (
    Fields,
    RosterError,
    check_name,
    read_document,
    to_text,
    write_new,
)
from fedshield.protocol import codec

PUBLIC_BYTES, SIGNATURE_BYTES, KEY_BYTES = 32, 64, 64
PRIVATE_MODE, PUBLIC_MODE = 0o600, 0o644


def is_signed(message: bytes, signature: bytes, public: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Card:
    """A party's public half. One that does not carry its own key's signature cannot be made:
    `RosterError`."""

    name: str
    public: bytes
    created: str
    signature: bytes

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        _check_date(self.created)
        message = _signed_part(self.name, self.public, self.created)
        if not is_signed(message, self.signature, self.public):
            raise RosterError(
                f"card of {self.name}: expected its own key's signature, got another; the card "
                "was changed or damaged: ask its site for it again"
            )

    def content(self) -> list[codec.Value]:
        """What of a card is under other signatures."""
        return [self.name, self.public, self.created]

    def fields(self) -> dict[str, str]:
        return {
            "name": self.name,
            "public_key": self.public.hex(),
            "created": self.created,
            "signature": self.signature.hex(),
        }

    def to_text(self) -> str:
        return to_text("card 1", self.fields())

    @classmethod
    def from_fields(cls, fields: Fields) -> Card:
        card = cls(
            fields.text("name"),
            fields.hexadecimal("public_key", PUBLIC_BYTES),
            fields.text("created"),
            fields.hexadecimal("signature", SIGNATURE_BYTES),
        )
        fields.done()
        return card

    @classmethod
    def read(cls, path: Path) -> Card:
        fields, _ = read_document(path, "card 1")
        try:
            return cls.from_fields(fields)
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None


def _signed_part(name: str, public: bytes, created: str) -> bytes:
    return codec.encode(["fedshield card 1", name, public, created])


def _check_date(created: str) -> None:
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


@dataclass(frozen=True)
class KeyFile:
    """What a party keeps to itself. `repr` shows public halves only."""

    name: str
    created: str
    key: SiteKey

    @classmethod
    def make(cls, name: str) -> KeyFile:
        check_name(name, "NAME")
        return cls(name, datetime.datetime.now(datetime.UTC).date().isoformat(), SiteKey())

    def card(self) -> Card:
        public = self.key.public
        signature = self.key.sign(_signed_part(self.name, public, self.created))
        return Card(self.name, public, self.created, signature)

    def to_text(self) -> str:
        return to_text(
            "key 1",
            {
                "name": self.name,
                "created": self.created,
                "public_key": self.key.public.hex(),
                "private_key": self.key.to_bytes().hex(),
            },
        )

    @classmethod
    def read(cls, path: Path) -> KeyFile:
        """Raises `RosterError`, also if others on this machine may read or own the file."""
        fields, status = read_document(path, "key 1")
        _check_private(path, status)
        try:
            name, created = fields.text("name"), fields.text("created")
            public = fields.hexadecimal("public_key", PUBLIC_BYTES)
            key = SiteKey.from_bytes(fields.hexadecimal("private_key", KEY_BYTES))
            fields.done()
            check_name(name, "name")
            _check_date(created)
            if key.public != public:
                raise RosterError("expected the key of its public_key, got another; restore it")
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None
        return cls(name, created, key)


def _check_private(path: Path, status: os.stat_result) -> None:
    """Of the file that was read, so that it cannot be exchanged in between."""
    mode, quoted = stat.S_IMODE(status.st_mode), shlex.quote(str(path))
    if status.st_uid != os.geteuid():
        raise RosterError(
            f"{path}: expected a key file of the user who runs this, got one of user "
            f"{status.st_uid}; run: sudo chown {os.geteuid()} {quoted} && chmod 600 {quoted}"
        )
    if mode & ~PRIVATE_MODE:
        raise RosterError(
            f"{path}: expected mode 0600 or narrower, got {mode:04o}; run: chmod 600 {quoted} "
            "(and make a new key if anyone else can have read it)"
        )


def keygen(name: str, folder: Path) -> tuple[Path, Path]:
    """Make a party's keys: the paths of its key file and its card. Neither may be there yet.
    Raises `RosterError`, and then leaves nothing behind."""
    with interrupt.held():
        return _keygen(name, folder)


def _keygen(name: str, folder: Path) -> tuple[Path, Path]:
    key_file = KeyFile.make(name)
    key_path, card_path = folder / f"{name}.key", folder / f"{name}.card.json"
    made = _make_folder(folder)
    try:
        write_new(key_path, key_file.to_text(), PRIVATE_MODE)
        try:
            write_new(card_path, key_file.card().to_text(), PUBLIC_MODE)
        except BaseException:
            key_path.unlink(missing_ok=True)
            raise
    except BaseException:
        if made:
            folder.rmdir()
        raise
    return key_path, card_path


def _make_folder(folder: Path) -> bool:
    """Whether it was made here."""
    if folder.is_dir():
        return False
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise RosterError(
            f"{folder}: expected a folder for the key, but {error.strerror}; choose another --out"
        ) from None
    return True
