"""Changing a roster: never over a signature.

Whoever adds a card or replaces one changes what was signed. A roster that nobody signed is changed
where it is. One that anyone signed stays, and is in force as long as it is the one in the kits;
the changed one is written beside it, for all to review, compare and sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedshield.disk import write_atomic
from fedshield.enrolment import coming
from fedshield.enrolment.cards import Card
from fedshield.enrolment.files import RosterError, write_new
from fedshield.enrolment.signed_roster import SignedRoster


@dataclass(frozen=True)
class Change:
    """`path`: where the roster belongs; `is_new`: whether no file is there yet; `kept`: the path
    and the signers of a signed roster that stays."""

    path: Path
    roster: SignedRoster
    is_new: bool = False
    kept: tuple[Path, tuple[str, ...]] | None = None

    def notes(self) -> tuple[str, ...]:
        """What the operator should know, in sentences."""
        if self.kept is None:
            return ()
        kept, signers = self.kept
        return (
            f"{kept} stays as it is, with the countersignatures of {', '.join(signers)}; "
            f"{self.path} is new, and nobody signed it: {', '.join(self.roster.names())} each "
            "review it, compare its fingerprint and sign it, and then it takes the place of "
            f"{kept} here and of roster.json in every kit",
        )

    def write(self) -> None:
        """Write the changed roster where it belongs. Raises `RosterError`."""
        if self.is_new:
            write_new(self.path, self.roster.to_text(), 0o644)
        else:
            rewrite(self.path, self.roster)


def rewrite(path: Path, roster: SignedRoster) -> None:
    """Write a roster over the one at `path`, whole. Raises `RosterError`."""
    try:
        write_atomic(path, roster.to_text())
    except OSError as error:
        raise RosterError(
            f"{path}: expected a file to write to, but {error.strerror}; check the folder"
        ) from None


def next_path(path: Path) -> Path:
    """Where a roster goes that is to follow the one at `path`.

    >>> next_path(Path("roster.json")).name
    'roster.next.json'
    """
    return path.with_name(f"{path.stem}.next{path.suffix}")


def previous_path(path: Path) -> Path | None:
    """The roster that the one at `path` is to follow, if it is beside it."""
    if not path.stem.endswith(".next"):
        return None
    previous = path.with_name(f"{path.stem.removesuffix('.next')}{path.suffix}")
    return previous if previous.is_file() else None


def changed(
    path: Path, change: Callable[[SignedRoster], SignedRoster], out: Path | None = None
) -> Change:
    """The change of a roster, not written yet; one that anyone signed is then among those that the
    changed one follows.

    Args:
        path: of the roster.
        change: from the roster to the changed one.
        out: a new file for it; beside the roster by default.

    Raises:
        RosterError: for a change that cannot be, and where another change waits already.
    """
    before = SignedRoster.read(path)
    signed = before if before.countersignatures else _followed(path, before) or before
    after = coming.with_announced(signed, change(coming.following(before)))
    signers = tuple(sorted(before.countersignatures))
    if out is None and not signers:
        return Change(path, after)
    target = out or next_path(path)
    if target.exists():
        raise RosterError(
            f"{target}: expected no roster there yet, found one; change that one, put it in force, "
            "or give another file with --out"
        )
    return Change(target, after, is_new=True, kept=(path, signers) if signers else None)


def _followed(path: Path, roster: SignedRoster) -> SignedRoster | None:
    """The roster beside it that this one follows, which nobody signed yet: who signed that one may
    have signed for going, too."""
    previous = previous_path(path)
    if previous is None or not roster.lineage.earlier:
        return None
    before = SignedRoster.read(previous)
    return before if before.content_sha256() == roster.lineage.earlier[-1].roster else None


def enrolled(path: Path, card: Card) -> Change:
    """With this site's card, in the roster at `path` or in the one that is to follow it; the same
    roster if the card is in it. Raises `RosterError`, also where someone signed the one that is
    to follow."""
    following = next_path(path)
    current = SignedRoster.read(path)
    if card in current.sites:
        return Change(path, current)
    if not following.exists():
        return changed(path, lambda roster: roster.with_cards([card]))
    awaited = SignedRoster.read(following)
    if card in awaited.sites:
        return Change(following, awaited)
    if awaited.countersignatures:
        raise RosterError(
            f"{following}: expected a roster that nobody signed, to add {card.name} to, got one "
            f"signed by {', '.join(sorted(awaited.countersignatures))}; put it in force first, or "
            "delete it and approve all its new sites again"
        )
    return Change(following, awaited.with_cards([card]))


def enrolled_cards(path: Path, name: str) -> list[Card]:
    """The cards of this site, in the roster and in the one that is to follow it. Raises
    `RosterError` if neither has it."""
    rosters = [SignedRoster.read(path)]
    if next_path(path).exists():
        rosters.append(SignedRoster.read(next_path(path)))
    cards = [card for roster in rosters for card in roster.sites if card.name == name]
    if not cards:
        raise RosterError(
            f"{path}: expected {name[:40]!r} among its sites, to renew its certificate, got "
            f"{', '.join(rosters[0].names()) or 'none'}; a new site sends its card too"
        )
    return cards
