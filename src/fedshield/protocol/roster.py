"""Who takes part, with which signing key, and who may open what. Its hash is in every context.

A demonstration roster is made with fresh keys for one session; one that organisations reviewed
and countersigned comes from `fedshield.enrolment`, which hands out this type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from fedshield.crypto.public_keys import SEALING
from fedshield.errors import ProtocolError
from fedshield.protocol import codec
from fedshield.quorum import Rules

COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Roster:
    """`sites`: name -> Ed25519 public key (32 bytes); `coordinator`: its public key; `rules`: who
    may open what; `charter`: SHA-256 of the countersigned roster that this comes from, or
    nothing for a demonstration; `chains`: name -> every key of the site's card, the first one
    and that of today at the ends (under the charter, so not encoded here).

    Raises `ProtocolError` ('sender') for a site with the coordinator's name, or a key that two
    parties have."""

    sites: dict[str, bytes]
    coordinator: bytes
    rules: Rules
    demo: bool
    charter: bytes = b""
    chains: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Else the coordinator's key would speak for that site.
        if COORDINATOR in self.sites:
            raise ProtocolError("sender", f"no site may be named {COORDINATOR!r}; rename it")
        # One key under two names would count twice in every quorum.
        if len({*self.sites.values(), self.coordinator}) <= len(self.sites):
            raise ProtocolError("sender", "two parties of the roster have the same key")

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.sites))

    def index(self, name: str) -> int:
        """A site's place in the sorted roster, from 0: it holds the shares at x = index + 1."""
        return self.names().index(name)

    def public(self, name: str) -> bytes:
        """The signing key of a site. The coordinator is none: what it signs in its own name counts
        as no site's join, key, upload, vote or receipt. Raises `ProtocolError`."""
        if name not in self.sites:
            raise ProtocolError("sender", f"{name!r} is not in the roster")
        return self.sites[name]

    def identity(self, name: str) -> str:
        """Whom a ledger knows `name` as: the first key of its card, hex; the name itself in a
        demonstration, whose keys are new in every session. Raises `ProtocolError`."""
        self.public(name)
        return self.chains[name][0].hex() if name in self.chains else name

    def keys(self, name: str) -> tuple[bytes, ...]:
        """Every key that a site ever signed with, as its card says: that of today is the last.
        Raises `ProtocolError`."""
        return self.chains.get(name, (self.public(name),))

    def encode(self) -> bytes:
        sites: dict[str, codec.Value] = dict(self.sites)
        rules: list[codec.Value] = [*astuple(self.rules)]
        demo = int(self.demo)
        return codec.encode(
            ["fedshield roster 3", sites, self.coordinator, rules, self.charter, demo, SEALING]
        )

    def sha256(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()
