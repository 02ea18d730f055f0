"""What a server and its colluding sites can compute from all that they see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from threshold_kit import Hand, digests

from fedshield.crypto import shamir
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.protocol import messages
from fedshield.protocol.journal import Journal
from fedshield.protocol.session import aggregate_digest, contributors_digest, read_uploads
from fedshield.protocol.summation import ANSWER


class Attacker:
    """The coordinator with `colluders`: everything that crossed in a sum, and everything that
    those sites hold. What honest sites keep to themselves is out of its reach."""

    def __init__(self, hand: Hand, *colluders: str) -> None:
        self.hand = hand
        self.colluders = colluders
        self._roster = hand.federation.roster

    def _sum(self, colluder: str) -> Any:
        assert colluder in self.colluders
        return self.hand.federation.participants[colluder]._sum

    def votes(self, sites: Iterable[str], blocks: Sequence[bytes]) -> dict[str, bytes]:
        """The colluders' votes for whatever is wanted."""
        uploads = read_uploads(self.hand.over(sites), self.hand.binding, self._roster)
        vote = messages.Vote(contributors_digest(uploads), aggregate_digest(digests(blocks)))
        return {one: self.hand.signed_by(one, vote) for one in self.colluders}

    def own_shares(self, sites: Iterable[str]) -> dict[str, shamir.UInt64]:
        """What the colluders would answer for this set."""
        names = tuple(sites)
        return {
            one: shamir.add_shares([self._sum(one)._held[site] for site in names])
            for one in self.colluders
        }

    def read(
        self, answers: Mapping[str, Any], sites: Iterable[str], blocks: Sequence[bytes]
    ) -> dict[str, shamir.UInt64]:
        """The honest sites' answers that are sealed to the first colluder, opened."""
        first = self.colluders[0]
        uploads = read_uploads(self.hand.over(sites), self.hand.binding, self._roster)
        about = contributors_digest(uploads) + aggregate_digest(digests(blocks))
        return {
            holder: shamir.from_bytes(
                self._sum(first)._unseal(answer["boxes"][first], holder, ANSWER, about),
                len(self._roster.sites),
            )
            for holder, answer in answers.items()
            if first in answer["boxes"]
        }

    def own_key(self, colluder: str) -> Any:
        """The one-time key that the colluder itself made."""
        return self._sum(colluder)._sealed.secret

    def key_sum(self, shares: Mapping[str, shamir.UInt64], num_summed: int) -> Any:
        """The sum of the keys, from shares of it by holder. Raises `CryptoError`."""
        indexed = {self._roster.index(holder): share for holder, share in shares.items()}
        rules, num_sites = self._roster.rules, len(self._roster.sites)
        return shamir.reconstruct(indexed, rules.threshold, num_summed, num_sites)

    def decrypt(self, sites: Sequence[str], key_sum: Any) -> rlwe.Opened:
        """The sum over `sites`' uploads, which the server has, under a key that it has found:
        exact, because the tag and what is left over are checked. Raises `CryptoError`."""
        federation = self.hand.federation
        site = federation.participants[self.colluders[0]]
        context = self.hand.binding.context
        return rlwe.open_sum(
            self.hand.aggregate(sites),
            key_sum,
            len(sites),
            context,
            self.hand.layout(),
            site._cipher._tag_seed(context),
        )


class Forgetful(Journal):
    """A journal that remembers nothing: every rule that rests on it is gone."""

    def _once(self, *_: Any) -> None:
        return

    def vote(self, *_: Any) -> None:
        return

    def bound(self, base: str) -> tuple[str, ...]:
        return ()
