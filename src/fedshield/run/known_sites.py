"""Whom a kit ever knew: the sites of every roster that was in force in it or in one of its runs,
and of those that are known beside these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import SignedRoster
from fedshield.enrolment.seen import FILE, SeenKeys
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.recovery.letters import RecoveryError
from fedshield.run.flare.kit import Kit
from fedshield.run.log_file import ROSTERS_FILE, read_rosters


class KnownRoster(NamedTuple):
    """A roster under which this site can have been in sums. `digest`: SHA-256, hex, of its content;
    `sites`: the names of all its sites by first key (hex). A roster that is known by its batches
    alone has no sites here where its membership is open, for then there are no batches."""

    digest: str
    sites: Mapping[str, str]

    @classmethod
    def of(cls, roster: Roster) -> Self:
        return cls(roster.charter.hex(), {roster.identity(name): name for name in roster.names()})


def before(roster: Roster, own: str) -> tuple[KnownRoster, ...]:
    """Of the rosters that this one follows those that this site was in, each with the sites of its
    batch there: they alone tell of its sums. `own`: its first key."""
    history = roster.history()
    rosters = []
    for cut in history.cuts[:-1]:
        sites = next((batch for batch in cut if own in batch), ())
        if sites or not cut:
            names = {site: history.call(site) for site in sites}
            rosters.append(KnownRoster("of before " + roster.charter.hex()[:16], names))
    return tuple(rosters)


def must_answer(rosters: Iterable[KnownRoster]) -> dict[str, str]:
    """The sites of all these rosters, by first key: each could be the only honest one to tell of a
    sum. Raises `RecoveryError` for a roster of which the sites are not known."""
    needed: dict[str, str] = {}
    for roster in rosters:
        if not roster.sites:
            raise RecoveryError(
                f"expected every roster with its sites, got {roster.digest[:16]} without (an "
                "earlier one, with membership open): whoever was in it could be the only one to "
                "tell of a sum, so the ledger cannot be rebuilt; use records that were in no sum"
            )
        needed |= roster.sites
    return needed


@dataclass(frozen=True)
class Member:
    """One site's kit under its roster of today. `own`: the site's first key; `others`: by first
    key, the name and all known keys (today's last) of each site that this kit ever knew;
    `example_cap`: the roster's; `rosters`: all that are known, today's the last."""

    kit: Kit
    roster: Roster
    key: SiteKey = field(repr=False)
    own: str
    others: dict[str, tuple[str, tuple[bytes, ...]]]
    example_cap: int | None
    rosters: tuple[KnownRoster, ...]

    @classmethod
    def of(cls, kit: Kit) -> Member:
        """Raises `UserError`s for a roster that is not in force here, or one that is not ready."""
        signed, key = kit.enrolled()
        roster = signed.to_roster()
        own = roster.identity(kit.name)
        known = {first: member for first, member in _known(kit, signed).items() if first != own}
        member = cls(kit, roster, key, own, known, signed.allowed.max_examples, ())
        return member.with_rosters([*before(roster, own), KnownRoster.of(roster)])

    def with_rosters(self, rosters: Sequence[KnownRoster]) -> Member:
        """Under the last of these rosters, the others before it. A site of theirs that this kit
        never saw is known by its first key only."""
        strange = {
            first: (name, (bytes.fromhex(first),))
            for roster in rosters
            for first, name in roster.sites.items()
            if first != self.own
        }
        return replace(self, others=strange | self.others, rosters=tuple(rosters))


def _known(kit: Kit, signed: SignedRoster) -> dict[str, tuple[str, tuple[bytes, ...]]]:
    seen = SeenKeys.read(kit.path / FILE)
    names = {key: name for name, key in seen.in_force.items()}
    chains = dict(seen.chains)
    coordinators = {*signed.coordinator.chain(), seen.in_force.get(COORDINATOR, b"")}
    runs = [
        roster
        for run in kit.runs()
        if (path := kit.path / "runs" / run / ROSTERS_FILE).exists()
        for roster in read_rosters(path)
    ]
    coordinators |= {roster.coordinator for roster in runs}
    for roster in runs:
        for name, key in roster.sites.items():
            names.setdefault(key, name)
            if not any(key in chain for chain in chains.values()):
                chains[key] = (key,)
    for card in signed.sites:
        chains[card.first_public()] = card.chain()
        names[card.public] = card.name
    return {
        first.hex(): (names.get(chain[-1], first.hex()[:16]), chain)
        for first, chain in chains.items()
        if coordinators.isdisjoint(chain)
    }
