"""What a kit remembers of the rosters that were in force in it: each party's key, and which keys
were replaced.

A roster that was replaced keeps all its signatures, so whoever stole an old key, or the
coordinator, could hand it out again. A kit takes no roster in which a key is in force that it
saw replaced.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedshield import interrupt
from fedshield.durable import sync_folder
from fedshield.enrolment.files import Fields, RosterError, read_document, to_text, write_new
from fedshield.enrolment.replacement import PUBLIC_BYTES
from fedshield.enrolment.roster import SignedRoster

FILE = "keys.seen.json"


@dataclass(frozen=True)
class SeenKeys:
    """`in_force`: party -> its public key; `replaced`: public keys that count no more."""

    in_force: dict[str, bytes]
    replaced: frozenset[bytes]

    @classmethod
    def read(cls, path: Path) -> SeenKeys:
        """Nothing where there is no file. Raises `RosterError` for one that is damaged."""
        if not path.exists():
            return cls({}, frozenset())
        fields, _ = read_document(path, "keys seen 1")
        try:
            inner = fields.inner("in_force")
            in_force = {name: inner.hexadecimal(name, PUBLIC_BYTES) for name in inner.names()}
            rows = fields.items("replaced")
            replaced = {
                Fields({"key": row}, f"replaced.{k}").hexadecimal("key", PUBLIC_BYTES)
                for k, row in enumerate(rows)
            }
            fields.done()
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None
        return cls(in_force, frozenset(replaced))

    def to_text(self) -> str:
        in_force = {name: public.hex() for name, public in sorted(self.in_force.items())}
        replaced = sorted(public.hex() for public in self.replaced)
        return to_text("keys seen 1", {"in_force": in_force, "replaced": replaced})

    def after(self, roster: SignedRoster) -> SeenKeys:
        """With this roster in force."""
        cards = (roster.coordinator, *roster.sites)
        in_force = self.in_force | {card.name: card.public for card in cards}
        replaced = {old.public for card in cards for old in card.replaces}
        replaced |= {key for name, key in self.in_force.items() if in_force[name] != key}
        return SeenKeys(in_force, self.replaced | replaced)


def put_in_force(folder: Path, roster: SignedRoster) -> None:
    """Remember the roster's keys in the kit `folder`, synced. Raises `RosterError` for a roster in
    which a key counts that was replaced here before."""
    path = folder / FILE
    seen = SeenKeys.read(path)
    for card in (roster.coordinator, *roster.sites):
        if card.public in seen.replaced:
            raise RosterError(
                f"{folder / 'roster.json'}: expected the present key of {card.name}, got "
                f"{card.public.hex()[:16]}, which was replaced: this is an older roster, and who "
                "stole that key could take part; put the present roster in its place (if all "
                f"sites agreed to go back, delete {path})"
            )
    now = seen.after(roster)
    if now != seen:
        _replace(path, now.to_text())


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with interrupt.held():
        part.unlink(missing_ok=True)  # of a process that was killed
        write_new(part, text, 0o644)
        os.replace(part, path)
        sync_folder(path.parent)
