"""Who takes part, with which signing key, and who may open what. Its hash is in every context.

A demonstration roster is made with fresh keys for one session; one that organisations reviewed
and countersigned comes from `fedshield.enrolment`, which hands out this type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, field, replace

from fedshield.crypto.public_keys import SEALING
from fedshield.errors import PlanError, ProtocolError
from fedshield.ledger.history import Cut, History, chain, in_order, named_in
from fedshield.plan import batches as batching
from fedshield.plan.batches import Batches
from fedshield.plan.quorum import Rules
from fedshield.protocol.wire import codec

COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Roster:
    """`sites`: name -> Ed25519 public key (32 bytes); `coordinator`: its public key; `rules`: who
    may open what; `charter`: SHA-256 of the countersigned roster that this comes from, or
    nothing for a demonstration; `chains`: name -> every key of the site's card, the first one
    and that of today at the ends (under the charter, so not encoded here); `batches`: the sites by
    batch, with membership batches, cut by name where none are given; `lineage`: the rosters that
    the countersigned one follows, and who signed that it is exposed (under the charter too).

    Raises `ProtocolError`: 'sender' for a site with the coordinator's name, or a key that two
    parties have; 'cohort' for batches that are none."""

    sites: dict[str, bytes]
    coordinator: bytes
    rules: Rules
    demo: bool
    charter: bytes = b""
    chains: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    batches: Batches = ()
    lineage: History = field(default_factory=History, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", self._batches())
        # Else the coordinator's key would speak for that site.
        if COORDINATOR in self.sites:
            raise ProtocolError("sender", f"no site may be named {COORDINATOR!r}; rename it")
        # One key under two names would count twice in every quorum.
        if len({*self.sites.values(), self.coordinator}) <= len(self.sites):
            raise ProtocolError("sender", "two parties of the roster have the same key")

    def _batches(self) -> Batches:
        if self.rules.membership != "batches":
            return ()
        colluding = self.rules.max_colluding
        batches = batching.in_order(self.batches) or batching.cut(self.sites, colluding)
        try:
            batching.check(batches, self.names(), colluding)
        except PlanError as error:
            raise ProtocolError("cohort", str(error)) from None
        return batches

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.sites))

    def batch(self, name: str) -> tuple[str, ...]:
        """Who is in a sum whenever this site is (rule R1). Raises `ProtocolError`."""
        self.public(name)
        if self.rules.membership == "open":
            return (name,)
        return next((batch for batch in self.batches if name in batch), self.names())

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

    def cut(self) -> Cut:
        """The sites batch by batch, as ledgers know them; nothing with membership open."""
        if self.rules.membership == "open":
            return ()
        cells = self.batches or (self.names(),)
        return in_order(map(self.identity, cell) for cell in cells)

    def history(self) -> History:
        """What the rosters up to this one are to rule R1."""
        names = {self.identity(name): name for name in self.names()}
        return replace(
            self.lineage,
            cuts=chain([*self.lineage.cuts, self.cut()])[0],
            names={**self.lineage.names, **names},
        )

    def exposing(self, names: Collection[str]) -> Roster:
        """As a site sees it whose policy exposes sites of these names, of today or of before.
        Raises `ProtocolError` ('rule') for a name of no site, or of two."""
        if not names:
            return self
        try:
            return replace(self, lineage=named_in(self.history(), names))
        except LookupError as error:
            name, sites = error.args
            raise ProtocolError(
                "rule",
                "exposes: expected the name of one site of the roster or of those that it follows, "
                f"got {name[:40]!r}, which is that of {' and '.join(sites) or 'none'}; correct it "
                "in the policy",
            ) from None

    def keys(self, name: str) -> tuple[bytes, ...]:
        """Every key that a site ever signed with, as its card says: that of today is the last.
        Raises `ProtocolError`."""
        return self.chains.get(name, (self.public(name),))

    def encode(self) -> bytes:
        sites: dict[str, codec.Value] = dict(self.sites)
        rules: list[codec.Value] = [*astuple(self.rules)]
        demo = int(self.demo)
        value: list[codec.Value] = ["fedshield roster 3", sites, self.coordinator, rules]
        value += [self.charter, demo, SEALING]
        if self.batches:
            value.append([[*batch] for batch in self.batches])
        return codec.encode(value)

    def sha256(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()
