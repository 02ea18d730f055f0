"""What a server and its colluding sites can compute from all that they see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hand import Hand, digests

from fedshield.crypto import shares as sharing
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.protocol.contexts import aggregate_digest, contributors_digest, read_uploads
from fedshield.protocol.journal import Journal
from fedshield.protocol.wire import messages


@dataclass(frozen=True, eq=False)
class Keys:
    """Sums of one-time keys and residues: with those of other sets, differences."""

    key_sum: Any
    residues: tuple[int, ...]
    modulus: int

    def __sub__(self, other: Keys) -> Keys:
        residues = tuple(
            (one - two) % self.modulus
            for one, two in zip(self.residues, other.residues, strict=True)
        )
        return Keys(self.key_sum - other.key_sum, residues, self.modulus)


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
        about = contributors_digest(uploads), aggregate_digest(digests(blocks))
        return {
            one: self.hand.signed_by(one, messages.Vote(*about, self.hand.federation.head_of(one)))
            for one in self.colluders
        }

    def own_shares(self, sites: Iterable[str]) -> dict[str, sharing.Share]:
        """What the colluders would answer for this set."""
        names = tuple(sites)
        return {
            one: sharing.add([self._sum(one)._held[site] for site in names], self.shape)
            for one in self.colluders
        }

    def read(
        self, answers: Mapping[str, Any], sites: Iterable[str], blocks: Sequence[bytes]
    ) -> dict[str, sharing.Share]:
        """The honest sites' answers that are sealed to the first colluder, opened."""
        first = self.colluders[0]
        uploads = read_uploads(self.hand.over(sites), self.hand.binding, self._roster)
        about = contributors_digest(uploads) + aggregate_digest(digests(blocks))
        channels = self._sum(first)._channels
        found: dict[str, sharing.Share] = {}
        for holder, answer in answers.items():
            if first in answer["boxes"]:
                raw = channels.open_answer(answer["boxes"][first], holder, about)
                found[holder] = sharing.from_bytes(raw, self.shape)
        return found

    @property
    def shape(self) -> sharing.ShareShape:
        current = self._sum(self.colluders[0])
        found: sharing.ShareShape = current._shape(current._layout)
        return found

    def own_key(self, colluder: str) -> Keys:
        """The one-time key, and the residues with it, that the colluder itself made."""
        sealed = self._sum(colluder)._sealed
        return Keys(sealed.secret, sealed.residues, self.shape.modulus)

    def key_sum(self, shares: Mapping[str, sharing.Share], num_summed: int) -> Keys:
        """The sum of the keys, from shares of it by holder. Raises `CryptoError`."""
        indexed = {self._roster.index(holder): share for holder, share in shares.items()}
        found = sharing.open_sum(indexed, self.shape, num_summed)
        return Keys(found.key_sum, found.residues, self.shape.modulus)

    def decrypt(self, sites: Sequence[str], keys: Keys) -> rlwe.Opened:
        """The sum over `sites`' uploads, which the server has, under a key that it has found:
        exact, because the tag and what is left over are checked. Raises `CryptoError`."""
        federation = self.hand.federation
        site = federation.participants[self.colluders[0]]
        context = self.hand.binding.context
        return rlwe.open_sum(
            self.hand.aggregate(sites),
            keys.key_sum,
            keys.residues,
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
