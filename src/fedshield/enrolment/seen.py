"""What a kit remembers of the rosters that were in force in it: each party's keys, and which of
them were replaced.

A roster that was replaced keeps all its signatures, so whoever stole an old key, or the
coordinator, could hand it out again. A kit takes no roster in which a key is in force that it
saw replaced, and says so of any other that was in force before: its rules may be weaker.

Whoever stole an old key can sign another successor with it too. A party is known by its first key,
so a kit takes no card that has a key of a party and does not go on from all keys that it saw of
it. A card whose keys were never seen is a new party's: `roster replace --key-lost`. It inherits
nothing, and the party before it does not come back, whoever finds the lost key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from fedshield import interrupt
from fedshield.disk import sync_folder
from fedshield.enrolment.cards import Card
from fedshield.enrolment.files import RosterError, read_document, to_text, write_new
from fedshield.enrolment.forms import Form, Hex32, Listed
from fedshield.enrolment.signed_roster import SignedRoster

FILE = "keys.seen.json"
#: Rosters that are remembered, the last ones.
MAX_ROSTERS = 256


@dataclass(frozen=True)
class SeenKeys:
    """`in_force`: party -> its public key; `replaced`: public keys that count no more; `chains`:
    first key of a party -> all its keys that were seen, in order; `rosters`: SHA-256 of the
    contents of rosters that were in force, the present one last."""

    in_force: dict[str, bytes]
    replaced: frozenset[bytes]
    chains: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    rosters: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path) -> SeenKeys:
        """Nothing where there is no file. Raises `RosterError` for one that is damaged."""
        if not path.exists():
            return cls({}, frozenset())
        fields, _ = read_document(path, "keys seen 2")
        try:
            return SeenForm.parse(fields).seen_keys()
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None

    def to_text(self) -> str:
        in_force = {name: public.hex() for name, public in sorted(self.in_force.items())}
        replaced = sorted(public.hex() for public in self.replaced)
        rosters = [digest.hex() for digest in self.rosters]
        chains = [[key.hex() for key in self.chains[first]] for first in sorted(self.chains)]
        values = {
            "in_force": in_force,
            "replaced": replaced,
            "chains": chains,
            "rosters": rosters,
        }
        return to_text("keys seen 2", values)

    def after(self, roster: SignedRoster) -> SeenKeys:
        """With this roster in force."""
        cards = (roster.coordinator, *roster.sites)
        in_force = self.in_force | {card.name: card.public for card in cards}
        replaced = {old.public for card in cards for old in card.replaces}
        replaced |= {key for name, key in self.in_force.items() if in_force[name] != key}
        present = roster.content_sha256()
        others = [digest for digest in self.rosters if digest != present]
        rosters = (*others[-MAX_ROSTERS + 1 :], present)
        chains = self.chains | {card.first_public(): card.chain() for card in cards}
        return SeenKeys(in_force, self.replaced | replaced, chains, rosters)

    def forks(self, card: Card) -> bool:
        """Whether the card has a key that was seen, and does not go on from its party's last."""
        first, keys = card.first_public(), card.chain()
        before = self.chains.get(first, ())
        others = {key for one, chain in self.chains.items() if one != first for key in chain}
        return (
            keys[: len(before)] != before
            or not others.isdisjoint(keys)
            # Lost: a new party's card took its place.
            or not self.replaced.isdisjoint(before[-1:])
        )


class SeenForm(Form):
    """The kit's file."""

    in_force: dict[str, Hex32]
    replaced: Listed[Hex32]
    chains: Listed[Listed[Hex32]]
    rosters: Listed[Hex32]

    def seen_keys(self) -> SeenKeys:
        return SeenKeys(
            {name: bytes.fromhex(key) for name, key in self.in_force.items()},
            frozenset(_raw(self.replaced)),
            {chain[0]: chain for chain in map(_raw, self.chains) if chain},
            _raw(self.rosters),
        )


def _raw(values: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(value) for value in values)


def put_in_force(folder: Path, roster: SignedRoster) -> tuple[str, ...]:
    """Remember the roster and its keys in the kit `folder`, synced. Raises `RosterError` for a
    roster in which a key counts that was replaced here before, or one that does not go on from a
    party's last.

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
        if seen.forks(card):
            raise RosterError(
                f"{folder / 'roster.json'}: expected the card of {card.name} to go on from the "
                f"keys that were seen here, got {card.public.hex()[:16]} on another way from one "
                "of them: who holds an old or a lost key can make such a card; do not run with "
                "it, and ask its operator over a channel that the coordinator does not carry (if "
                f"the key is lost: fedshield keygen {card.name}, and roster replace --key-lost)"
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
