"""What sites sign of each other's ledgers. A site that was restored from a backup, or of which
there are two, has a ledger that does not hold what it once signed.

A *head* is the number of lines of a ledger and the digest of the last (`ledger.heads`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedshield.errors import ProtocolError
from fedshield.ledger import heads
from fedshield.ledger.file import Head, Ledger
from fedshield.ledger.heads import RESTORE
from fedshield.protocol.roster import Roster
from fedshield.protocol.statements import not_following, read_head, sign_head
from fedshield.protocol.wire.envelope import Sign

#: Among who remembers a head: the ledger that asks.
OWN_MEMORY = "this site"


class PeerHeads:
    """The heads that the sites of a roster signed, as the site `name` remembers and compares
    them."""

    def __init__(self, ledger: Ledger, name: str, roster: Roster) -> None:
        self._ledger = ledger
        self._name = name
        self._roster = roster

    def statement(self, sign: Sign) -> bytes:
        """This ledger's head, signed: what the others hand back when this site comes again."""
        return sign_head(self._ledger.head, sign)

    def statements(self) -> dict[str, bytes]:
        """The last statement of each other site of the roster, as it signed it."""
        peers = self._ledger.peers
        known = {site: self._roster.identity(site) for site in self._roster.names()}
        return {site: peers[one][1] for site, one in known.items() if one in peers}

    def compare(self, own: Mapping[str, bytes], told: Mapping[str, Mapping[str, bytes]]) -> None:
        """Compare what the sites say of each other's ledgers. `own`: each site's statement of its
        own head now; `told`: each site's memory of the others'.

        What others remember counts under the site's key of today only: who stole an earlier key
        could sign a head that no ledger reaches, and have it handed back for ever. Of the past this
        ledger's own memory counts, whatever key signed it. Raises `ProtocolError` ('ledger') where
        a site's keys are not those that this ledger remembers or go on from them, where this site's
        chain does not hold a head that it once signed, where another site's is shorter than one
        that it signed, and where a site signed two heads of one length.
        """
        self._check_keys()
        for site, statement in own.items():
            now = self._signed_now(site, statement)
            lengths: dict[int, tuple[str, str]] = {}
            for teller, head in self._remembered(site, told):
                if site == self._name:
                    self._check_own(head, teller)
                else:
                    _check_follows(site, head, now, teller)
                other, digest = lengths.setdefault(head.length, (teller, head.digest))
                if digest != head.digest:
                    raise ProtocolError(
                        "ledger",
                        f"{site} signed two ledgers of one length (line {head.length}, remembered "
                        f"by {other} and {teller}): there are two of {site}; its operator must "
                        "see to it",
                    )
        self._ledger.see_keys(self._roster.chains)
        self.see_all(own)

    def _remembered(
        self, site: str, told: Mapping[str, Mapping[str, bytes]]
    ) -> Iterator[tuple[str, Head]]:
        """Who remembers which head of `site`: this site's ledger, then what was told, as far as the
        site signed it with its key of today."""
        if (mine := self._ledger.peers.get(self._roster.identity(site))) is not None:
            yield OWN_MEMORY, mine[0]
        for teller in sorted(told):
            if teller != site:
                head = read_head(told[teller].get(site, b""), self._roster.public(site))
                if head is not None:
                    yield teller, head

    def _check_keys(self) -> None:
        """Raises `ProtocolError` for a fork: the identity is the first key's, and who holds that
        one could make another successor."""
        if why := heads.forked(self._ledger.chains, self._roster.chains):
            raise ProtocolError("ledger", why)

    def _check_own(self, head: Head, teller: str) -> None:
        if self._ledger.holds(head):
            return
        by = "" if teller == OWN_MEMORY else self._roster.identity(teller)
        if not self._ledger.was_lost(head, by):
            raise ProtocolError(
                "ledger",
                "this site's ledger does not hold what it signed before "
                f"(line {head.length}, remembered by {teller}): it was restored from a backup, or "
                f"another copy of this site is at work; {RESTORE}; if this ledger is whole and the "
                "key was stolen, replace the key: what is told of an old key's counts for nothing",
            )

    def see_all(self, statements: Mapping[str, bytes]) -> None:
        """Remember other sites' statements, by name: synced once for all of them. Raises
        `ProtocolError` ('ledger'), and remembers none, if a site did not sign its own, or if one
        does not follow what this ledger remembers of it."""
        seen: dict[str, tuple[Head, bytes]] = {}
        for site, statement in statements.items():
            if site == self._name:
                continue
            head, identity = self._signed_now(site, statement), self._roster.identity(site)
            if identity in self._ledger.peers:
                # This memory needs no signature: it outlives the key that made it.
                _check_follows(site, self._ledger.peers[identity][0], head, OWN_MEMORY)
            seen[identity] = (head, statement)
        self._ledger.see_peers(seen)

    def _signed_now(self, site: str, statement: bytes) -> Head:
        head = read_head(statement, self._roster.public(site))
        if head is None:
            raise ProtocolError(
                "ledger",
                f"{site} did not sign its ledger's head, or one of more than {heads.MAX_LINES} "
                "lines",
            )
        return head


def _check_follows(site: str, before: Head, now: Head, teller: str) -> None:
    """Raises `ProtocolError` where a ledger that ended in `before` cannot end in `now`. `teller`:
    who remembers `before`."""
    if not_following(before, now):
        way = ""
        if teller == OWN_MEMORY:
            way = f"; if the key was stolen, and replaced: fedshield site ledger forget {site}"
        raise ProtocolError(
            "ledger",
            f"{site}'s ledger is not the one that it signed before (line {before.length}, "
            f"remembered by {teller}; now {now.length}): it was restored from a backup, there are "
            f"two of {site}, or its key was stolen; its operator must see to it{way}",
        )
