"""A party's key file, which stays where it was made, and its card, which everyone may see.

NAME.key         private: the signing key and the site secret; mode 0600, or it is not used
NAME.card.json   public: name, public key, date, signed by that key (so its sender holds it)

A key that replaces another is named by a signature of the old one, which both files keep.
"""

from __future__ import annotations

import datetime
import os
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedshield import interrupt
from fedshield.crypto.keys import SiteKey
from fedshield.enrolment.files import RosterError, check_name, read_document, to_text, write_new
from fedshield.enrolment.forms import Form, Hex32, Hex64, Listed, Text
from fedshield.enrolment.replacement import (
    ReplacedForm,
    ReplacedKey,
    check_chain,
    check_date,
    is_signed,
    statement,
)
from fedshield.protocol.wire import codec

PRIVATE_MODE, PUBLIC_MODE = 0o600, 0o644


@dataclass(frozen=True)
class Card:
    """A party's public half. `replaces`: the party's keys before this one, the first one first.

    One that does not carry its own key's signature, and that of each key over the next, cannot be
    made: `RosterError`."""

    name: str
    public: bytes
    created: str
    signature: bytes
    replaces: tuple[ReplacedKey, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        check_date(self.created)
        check_chain(self.name, self.public, self.created, self.replaces)
        message = _signed_part(self.name, self.public, self.created, self.replaces)
        if not is_signed(message, self.signature, self.public):
            raise RosterError(
                f"card of {self.name}: expected its own key's signature, got another; the card "
                "was changed or damaged: ask its site for it again"
            )

    def content(self) -> list[codec.Value]:
        """What of a card is under other signatures."""
        return _content(self.name, self.public, self.created, self.replaces)

    def chain(self) -> tuple[bytes, ...]:
        """Every key of the party, its first one and that of today at the ends."""
        return (*(one.public for one in self.replaces), self.public)

    def first_public(self) -> bytes:
        """The party's first key: the same for all cards of one party."""
        return self.chain()[0]

    def follows(self, earlier: Card) -> bool:
        """Whether the key of the earlier card named that of this one, directly or through keys in
        between."""
        past = len(earlier.replaces)
        return (
            self.name == earlier.name
            and len(self.replaces) > past
            and self.replaces[:past] == earlier.replaces
            and self.replaces[past].public == earlier.public
        )

    def fields(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "public_key": self.public.hex(),
            "created": self.created,
            **_replaces_field(self.replaces),
            "signature": self.signature.hex(),
        }

    def to_text(self) -> str:
        return to_text("card 1", self.fields())

    @classmethod
    def read(cls, path: Path) -> Card:
        """Raises `RosterError`."""
        fields, _ = read_document(path, "card 1")
        try:
            return CardForm.parse(fields).card()
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None


class CardForm(Form):
    """A card in its file, a roster or a statement."""

    name: Text
    public_key: Hex32
    created: Text
    replaces: Listed[ReplacedForm] = ()
    signature: Hex64

    def card(self) -> Card:
        """Raises `RosterError` for one that is not signed."""
        return Card(
            self.name,
            bytes.fromhex(self.public_key),
            self.created,
            bytes.fromhex(self.signature),
            tuple(form.replaced_key() for form in self.replaces),
        )


def _content(
    name: str, public: bytes, created: str, replaces: tuple[ReplacedKey, ...]
) -> list[codec.Value]:
    """A card of a first key has three fields, as before there were replacements."""
    chain: list[codec.Value] = [replaced.content() for replaced in replaces]
    return [name, public, created, *([chain] if chain else [])]


def _signed_part(
    name: str, public: bytes, created: str, replaces: tuple[ReplacedKey, ...]
) -> bytes:
    return codec.encode(["fedshield card 1", *_content(name, public, created, replaces)])


def _replaces_field(replaces: tuple[ReplacedKey, ...]) -> dict[str, Any]:
    return {"replaces": [replaced.fields() for replaced in replaces]} if replaces else {}


def check_parties(cards: Iterable[Card]) -> None:
    """Raises `RosterError` for a name or a key that two of these cards have. A key that was
    replaced stays its party's: nobody else may come with it."""
    names: set[str] = set()
    holders: dict[bytes, str] = {}
    for card in cards:
        if card.name in names:
            raise RosterError(
                f"expected each name once, got a second card of {card.name}; every party needs a "
                "name of its own (to replace a card: fedshield roster replace)"
            )
        names.add(card.name)
        for public in (card.public, *(replaced.public for replaced in card.replaces)):
            if public in holders:
                raise RosterError(
                    f"expected a key of its own for each party, got the same for "
                    f"{holders[public]} and {card.name}; one of them runs fedshield keygen"
                )
            holders[public] = card.name


@dataclass(frozen=True)
class KeyFile:
    """What a party keeps to itself. `repr` shows public halves only."""

    name: str
    created: str
    key: SiteKey
    replaces: tuple[ReplacedKey, ...] = ()

    @classmethod
    def make(cls, name: str, old: KeyFile | None = None) -> KeyFile:
        """New keys. `old`: what they replace, whose signing key says so."""
        check_name(name, "NAME")
        key, today = SiteKey(), datetime.datetime.now(datetime.UTC).date().isoformat()
        if old is None:
            return cls(name, today, key)
        if old.name != name:
            raise RosterError(
                f"--replaces: expected a key file of {name}, got one of {old.name}; a key replaces "
                "one of the same party"
            )
        message = statement(name, old.key.public, old.created, key.public, today)
        replaced = ReplacedKey(old.key.public, old.created, old.key.sign(message))
        return cls(name, today, key, (*old.replaces, replaced))

    def card(self) -> Card:
        public = self.key.public
        message = _signed_part(self.name, public, self.created, self.replaces)
        return Card(self.name, public, self.created, self.key.sign(message), self.replaces)

    def to_text(self) -> str:
        return to_text(
            "key 1",
            {
                "name": self.name,
                "created": self.created,
                **_replaces_field(self.replaces),
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
            form = KeyForm.parse(fields)
            public = bytes.fromhex(form.public_key)
            key = SiteKey.from_bytes(bytes.fromhex(form.private_key))
            replaces = tuple(replaced.replaced_key() for replaced in form.replaces)
            check_name(form.name, "name")
            check_date(form.created)
            if key.public != public:
                raise RosterError("expected the key of its public_key, got another; restore it")
            check_chain(form.name, public, form.created, replaces)
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None
        return cls(form.name, form.created, key, replaces)


class KeyForm(Form):
    """A key file. `repr` shows public halves only."""

    name: Text
    created: Text
    replaces: Listed[ReplacedForm] = ()
    public_key: Hex32
    private_key: Annotated[Hex64, Field(repr=False)]


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


def keygen(name: str, folder: Path, replaces: Path | None = None) -> tuple[Path, Path]:
    """Make a party's keys. What cannot be made whole leaves nothing behind.

    Args:
        name: of a site, or coordinator.
        folder: where both files go; it is made if it is not there.
        replaces: the party's old key file, None for a first key.

    Returns:
        The paths of its key file and its card.

    Raises:
        RosterError: where either is there already, or cannot be written, and for another party's
            old key.
    """
    with interrupt.held():
        return _keygen(name, folder, replaces)


def _keygen(name: str, folder: Path, replaces: Path | None) -> tuple[Path, Path]:
    old = None if replaces is None else KeyFile.read(replaces)
    key_file = KeyFile.make(name, old)
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
