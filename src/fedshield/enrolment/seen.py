"""What a kit remembers of the rosters that were in force in it: each party's key, and which keys
were replaced.

A roster that was replaced keeps all its signatures, so whoever stole an old key, or the
coordinator, could hand it out again. A kit takes no roster in which a key is in force that it
saw replaced, and says so of any other that was in force before: its rules may be weaker.
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
#: Rosters that are remembered, the last ones.
MAX_ROSTERS = 256


@dataclass(frozen=True)
class SeenKeys:
    """`in_force`: party -> its public key; `replaced`: public keys that count no more; `rosters`:
    SHA-256 of the contents of rosters that were in force, the present one last."""

    in_force: dict[str, bytes]
    replaced: frozenset[bytes]
    rosters: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path) -> SeenKeys:
        """Nothing where there is no file. Raises `RosterError` for one that is damaged."""
        if not path.exists():
            return cls({}, frozenset())
        fields, _ = read_document(path, "keys seen 1")
        try:
            inner = fields.inner("in_force")
            in_force = {name: inner.hexadecimal(name, PUBLIC_BYTES) for name in inner.names()}
            replaced = _digests(fields, "replaced")
            rosters = _digests(fields, "rosters")
            fields.done()
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None
        return cls(in_force, frozenset(replaced), rosters)

    def to_text(self) -> str:
        in_force = {name: public.hex() for name, public in sorted(self.in_force.items())}
        replaced = sorted(public.hex() for public in self.replaced)
        rosters = [digest.hex() for digest in self.rosters]
        values = {"in_force": in_force, "replaced": replaced, "rosters": rosters}
        return to_text("keys seen 1", values)

    def after(self, roster: SignedRoster) -> SeenKeys:
        """With this roster in force."""
        cards = (roster.coordinator, *roster.sites)
        in_force = self.in_force | {card.name: card.public for card in cards}
        replaced = {old.public for card in cards for old in card.replaces}
        replaced |= {key for name, key in self.in_force.items() if in_force[name] != key}
        present = roster.content_sha256()
        others = [digest for digest in self.rosters if digest != present]
        rosters = (*others[-MAX_ROSTERS + 1 :], present)
        return SeenKeys(in_force, self.replaced | replaced, rosters)


def _digests(fields: Fields, key: str) -> tuple[bytes, ...]:
    """A list of values of 32 bytes each."""
    rows = [Fields({key: row}, f"{key}.{k}") for k, row in enumerate(fields.items(key))]
    return tuple(row.hexadecimal(key, PUBLIC_BYTES) for row in rows)


def put_in_force(folder: Path, roster: SignedRoster) -> tuple[str, ...]:
    """Remember the roster and its keys in the kit `folder`, synced. Raises `RosterError` for a
    roster in which a key counts that was replaced here before.

    Returns:
        A sentence for the operator, if an earlier roster has come back.
    """
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
    if now == seen:
        return ()
    _replace(path, now.to_text())
    if roster.content_sha256() not in seen.rosters:
        return ()
    return (
        f"{folder / 'roster.json'}: this roster ({roster.fingerprint()}) was in force here before, "
        "and another took its place since; if you did not agree to go back to it, stop, and ask "
        "another site's operator",
    )


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with interrupt.held():
        part.unlink(missing_ok=True)  # of a process that was killed
        write_new(part, text, 0o644)
        os.replace(part, path)
        sync_folder(path.parent)
