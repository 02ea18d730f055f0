"""Whom a kit ever knew: the sites of every roster that was in force in it or in one of its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedshield.auditfile import ROSTERS_FILE, read_rosters
from fedshield.crypto.keys import SiteKey
from fedshield.engines.flare.kit import Kit
from fedshield.enrolment import SignedRoster
from fedshield.enrolment.seen import FILE, SeenKeys
from fedshield.protocol.roster import COORDINATOR, Roster


@dataclass(frozen=True)
class Member:
    """One site's kit under its roster of today. `own`: the site's first key; `others`: by first
    key, the name and all known keys (today's last) of each site that this kit ever knew;
    `example_cap`: the roster's."""

    kit: Kit
    roster: Roster
    key: SiteKey = field(repr=False)
    own: str
    others: dict[str, tuple[str, tuple[bytes, ...]]]
    example_cap: int | None

    @classmethod
    def of(cls, kit: Kit) -> Member:
        """Raises `UserError`s for a roster that is not in force here, or one that is not ready."""
        signed, key = kit.enrolled()
        roster = signed.to_roster()
        own = roster.identity(kit.name)
        known = {first: member for first, member in _known(kit, signed).items() if first != own}
        return cls(kit, roster, key, own, known, signed.allowed.max_examples)


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
