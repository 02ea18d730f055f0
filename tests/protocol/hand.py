"""For the tests of the threshold protocol: sites that vanish or crash, and a coordinator that is
driven by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import Failing
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.errors import CryptoError, ProtocolError
from fedshield.plan.load import parse_plan
from fedshield.protocol.contexts import read_round_keys, round_context
from fedshield.protocol.coordinator import Coordinator, RoundOutcome
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.ciphers import WeightedUpdate, rlwe_layout
from fedshield.site.schemes import parameters_of
from fedshield.types import EncodedIntegers
from fedshield.update import encode_integers

Digits = np.ndarray[Any, Any]


def body_of(data: bytes) -> Any:
    """What an envelope says, whoever signed it."""
    value: Any = codec.decode(data[5 : -envelope.SIGNATURE_BYTES])
    return value[5]


def digests(blocks: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(block).digest() for block in blocks)


def flipped(data: bytes, at: int = -1, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


# -- sites that vanish -----------------------------------------------------------------------


def failing(federation: Any, moments: Mapping[str, tuple[str, str]] | None = None) -> Failing:
    """The federation's sites, and a coordinator that calls them, some of which will vanish."""
    sites = Failing(federation.wire, dict(moments or {}))
    federation.coordinator = Coordinator(
        federation.plan, federation.roster, sites, federation.server.sign
    )
    return sites


def started(federation: Any, sites: int = 4) -> Any:
    """rlwe, equal weights, ready for round 1."""
    ours = federation("rlwe", sites=sites, weights="equal")
    ours.coordinator.start()
    return ours


def with_scheme(made: Any, folder: Path, **changes: Any) -> Any:
    """A federation like this one, with other entries in its plan's `scheme`."""
    raw = json.loads(made.plan.canonical())
    raw["scheme"] |= changes
    counts = {name: work.num_examples for name, work in made.works.items()}
    return type(made)(parse_plan(raw, base_dir=folder), folder / "other", counts, made.spec)


def restart(federation: Any, name: str) -> Any:
    """The site's process again: what it had on disk is there, what was in memory is gone."""
    old = federation.participants[name]
    federation.participants[name] = federation.participant(
        name, federation.roster, old.state, old.completed_rounds, old.memory
    )
    return federation.participants[name]


# -- what sites hold ------------------------------------------------------------------------


def record(federation: Any, *names: str) -> dict[tuple[str, int], EncodedIntegers]:
    """(site, round) -> what the site encodes from now on."""
    made: dict[tuple[str, int], EncodedIntegers] = {}

    def watch(name: str) -> None:
        model = federation.participants[name]._model
        encode = model.contribution

        def contribution(round_number: int, cipher: Any, weight: float, *more: Any) -> Any:
            made[name, round_number] = encode(round_number, cipher, weight, *more)
            return made[name, round_number]

        model.contribution = contribution

    for name in names or federation.names:
        watch(name)
    return made


def sent_by(federation: Any, name: str) -> EncodedIntegers:
    """What the site has encoded in the round that it is in: made again, which repeats."""
    site = federation.participants[name]
    model, made = site._model, site._model._made
    encoded: EncodedIntegers = site._cipher.encode_update(
        WeightedUpdate(
            made.values,
            model.parts(),
            site._weight,
            0.0 if model.terms is not None else model.record.train_loss,
            model.rounding_seed(model.record.round_number),
        ),
        site._cipher.update_layout(made.selection.sha256(), made.values.size),
    )
    return encoded


def mean_of(
    federation: Any,
    before: Any,
    clip: Digits,
    parts: Iterable[EncodedIntegers],
    chosen_places: Digits | None = None,
) -> tuple[Digits, float]:
    """The next adapter, from the integers that its contributors sent; and their weight.
    `chosen_places`: the coordinates that travelled, all by default."""
    packing = parameters_of(federation.plan)
    chosen = list(parts)
    places = slice(None) if chosen_places is None else chosen_places
    sums = np.zeros(before.spec.num_values)
    for part in chosen:
        sums[places] += part.digits
    for place, bound in zip(before.spec.slices().values(), clip.tolist(), strict=True):
        sums[place] *= bound / packing.max_digit
    weight = sum(part.reserved[1] for part in chosen) * encode_integers.WEIGHT_STEP
    return (before.values.astype(np.float64) + sums / weight).astype(np.float32), weight


def lose(
    ours: Any, number: int, moments: dict[str, tuple[str, str]], sites: Failing
) -> tuple[RoundOutcome, set[str]]:
    """Round `number` with these losses: its outcome, and who was in the sum. Every site that is
    left must hold exactly the mean of what these sent."""
    made = record(ours)
    clip = ours.participants[ours.names[0]].memory.clip
    before = ours.participants[ours.names[0]].state
    sites.moments |= moments
    outcome = ours.coordinator.round(number)
    found = set(outcome.contributors)
    mean, _ = mean_of(ours, before, clip, [made[name, number] for name in found])
    for name in ours.names:
        site = ours.participants[name]
        if name not in sites.gone:
            assert site.completed_rounds == number
            np.testing.assert_array_equal(site.state.values, mean)
            assert ours.seen[name].contributors == outcome.contributors
    return outcome, found


def standing(federation: Any, *names: str) -> dict[str, tuple[Any, ...]]:
    """All that a site has installed or kept, to compare."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in names or federation.names:
        site = federation.participants[name]
        found[name] = (
            site.state.sha256(),
            site.completed_rounds,
            site.memory.residual.tobytes(),
            site.memory.shared_sha256(),
            {name: vector.tobytes() for name, vector in site.memory.own.items()},
            tuple(sorted(federation.stores[name].saved)),
        )
    return found


@contextmanager
def nothing_installed(federation: Any, *names: str) -> Iterator[None]:
    """No site (of `names`) has another adapter, memory, round or file afterwards."""
    before = standing(federation, *names)
    yield
    assert standing(federation, *names) == before


# -- a coordinator by hand ------------------------------------------------------------------


class Hand:
    """One sum, sent step by step by someone who has the coordinator's key. The session has
    begun. `sites`: those that take part."""

    def __init__(self, federation: Any, round_number: int = 1, sites: Iterable[str] = ()) -> None:
        self.federation = federation
        self.sites = tuple(sites) or tuple(federation.names)
        session = federation.coordinator._session.context
        self.session = Binding(session, round_number, "round")
        self.binding = self.session
        self.keys: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.boxes: dict[str, dict[str, bytes]] = {}
        self.blocks: dict[str, list[bytes]] = {}
        #: Site -> who has no good share of it.
        self.unheard: dict[str, tuple[str, ...]] = {}

    # -- sending

    def raw(self, site: str, message: messages.Message, binding: Binding | None = None) -> bytes:
        """The site's signed reply to a well-signed command."""
        data = envelope.seal(
            message.kind,
            binding or self.binding,
            COORDINATOR,
            message.to_body(),
            self.federation.server.sign,
        )
        reply: bytes = self.federation.participants[site].handle(message.kind, data)
        return reply

    def send(self, site: str, message: messages.Message, binding: Binding | None = None) -> Any:
        return body_of(self.raw(site, message, binding))

    def refused(
        self, site: str, message: messages.Message, binding: Binding | None = None
    ) -> tuple[str, str]:
        """The code and the text with which the site refuses a well-signed command."""
        with pytest.raises((ProtocolError, CryptoError)) as caught:
            self.raw(site, message, binding)
        assert isinstance(caught.value, ProtocolError | CryptoError)
        return caught.value.code, str(caught.value)

    def signed_by(self, site: str, message: messages.Message) -> bytes:
        """What this site's key signs in this sum, whether the site would or not."""
        sign = self.federation.keys[site].sign
        return envelope.seal(message.kind, self.binding, site, message.to_body(), sign)

    # -- the honest steps

    def prepare(self) -> Hand:
        self.keys = {site: self.raw(site, messages.Prepare()) for site in self.sites}
        return self

    def summing(self, keys: Mapping[str, bytes] | None = None) -> Binding:
        """What a sum over these round keys is bound to."""
        read = read_round_keys(dict(keys or self.keys), self.session, self.federation.roster, 1)
        return replace(self.session, context=round_context(self.session, read))

    def work(self) -> Hand:
        self.uploads = {site: self.raw(site, messages.Work(self.keys)) for site in self.sites}
        self.binding = self.summing()
        return self

    def collect(self) -> Hand:
        """Every site's sealed shares and blocks."""
        for site in self.sites:
            self.boxes[site] = self.send(site, messages.FetchShares())["boxes"]
            count = len(body_of(self.uploads[site])["block_digests"])
            self.blocks[site] = [
                self.send(site, messages.Fetch(index))["data"] for index in range(count)
            ]
        return self

    def shares_for(self, holder: str, *dealers: str) -> dict[str, bytes]:
        return {
            dealer: self.boxes[dealer][holder]
            for dealer in dealers or self.sites
            if dealer != holder
        }

    def hold(self) -> Hand:
        for site in self.sites:
            held = self.send(site, messages.Hold(self.uploads, self.shares_for(site)))
            assert held["complaints"] == {}
        return self

    def ready(self) -> Hand:
        """Everything up to the announcement."""
        return self.prepare().work().collect().hold()

    # -- set and sum

    def over(self, sites: Iterable[str]) -> dict[str, bytes]:
        return {site: self.uploads[site] for site in sites}

    def announcement(
        self, sites: Iterable[str], blocks: Sequence[bytes] | None = None
    ) -> messages.Announce:
        names = tuple(sites)
        summed = self.aggregate(names) if blocks is None else blocks
        return messages.Announce(self.over(names), digests(summed))

    def totals(self, sites: Iterable[str]) -> list[Any]:
        """Running totals of the coordinator's adder, by chunk."""
        adder = RlweAdder(parameters_of(self.federation.plan))
        totals: list[Any] = []
        for column in zip(*(self.blocks[site] for site in sites), strict=True):
            totals.append(None)
            for block in column:
                totals[-1] = adder.add(totals[-1], block)
        return totals

    def aggregate(self, sites: Iterable[str]) -> list[bytes]:
        """The sum over these uploads, each as often as it is named."""
        adder = RlweAdder(parameters_of(self.federation.plan))
        return [adder.result(total) for total in self.totals(sites)]

    def shifted(self, sites: Iterable[str], at: int, by: int = 1) -> list[bytes]:
        """The sum with `by` added to the message of coefficient `at` of its first chunk: what
        anyone can do who knows the public layout."""
        p = parameters_of(self.federation.plan)
        totals = self.totals(sites)
        words = totals[0].words
        words[at] += round(by * p.delta % p.q / 2**p.dropped)
        if words[at] >= 1 << p.word_bits:  # as long as it is one of the words that sites can make
            words[at] -= round(p.q / 2**p.dropped)
        return [RlweAdder(p).result(total) for total in totals]

    def layout(self) -> RlweLayout:
        site = self.federation.participants[self.sites[0]]
        selection = site._model.selection()
        layout = site._cipher.update_layout(selection.sha256(), selection.size)
        return rlwe_layout(parameters_of(self.federation.plan), layout)

    def vote_on(
        self, sites: Iterable[str], voters: Iterable[str], blocks: Sequence[bytes] | None = None
    ) -> dict[str, bytes]:
        announce = self.announcement(sites, blocks)
        return {voter: self.raw(voter, announce) for voter in voters}

    def answers(self, votes: Mapping[str, bytes], *holders: str) -> dict[str, Any]:
        """The answers of `holders` (default: who voted), which are shown these votes."""
        return {
            site: self.send(
                site, messages.Quorum(dict(votes), dict.fromkeys(self.unheard.get(site, ()), b""))
            )
            for site in holders or votes
        }

    def deliver(self, site: str, blocks: Sequence[bytes]) -> None:
        for index, block in enumerate(blocks):
            self.send(site, messages.Deliver(index, block))

    def opening(self, site: str, answers: Mapping[str, Any]) -> messages.Open:
        """The command to open, with every answer that is meant for this site."""
        server = self.federation.plan.scheme.open_to == "server"
        meant = {
            holder: answer["share"] if server else answer["boxes"][site]
            for holder, answer in answers.items()
            if holder != site and (answer["share"] or site in answer["boxes"])
        }
        return messages.Open(meant, {holder: answers[holder]["tag"] for holder in meant})

    def finish(self, sites: Iterable[str] = ()) -> None:
        """The rest of an honest round over `sites`, at all sites."""
        chosen = tuple(sites) or self.sites
        blocks = self.aggregate(chosen)
        answers = self.answers(self.vote_on(chosen, self.sites, blocks))
        self.open_all(blocks, answers)

    def open_all(
        self, blocks: Sequence[bytes], answers: Mapping[str, Any], sites: Iterable[str] = ()
    ) -> None:
        """`sites` (default: all) open these blocks with these answers, and take what they have
        signed for."""
        chosen = tuple(sites) or self.sites
        receipts = {}
        for site in chosen:
            self.deliver(site, blocks)
            receipts[site] = self.raw(site, self.opening(site, answers))
        for site in chosen:
            self.raw(site, messages.Install(receipts))


def rejected(hand: Hand, blocks: list[bytes], code: str, text: str = "") -> None:
    """The set is agreed on and answered for, and `blocks` is delivered as its sum: every site
    refuses to open it, for this reason."""
    ours = hand.federation
    answers = hand.answers(hand.vote_on(hand.sites, hand.sites, blocks))
    with nothing_installed(ours):
        for site in hand.sites:
            hand.deliver(site, blocks)
            opening = hand.opening(site, answers)
            found, said = hand.refused(site, opening)
            assert found == code
            assert text in said
            # There is one try, and nothing is left of the sum.
            ended(hand, site, opening)


def ended(hand: Hand, site: str, opening: messages.Open) -> None:
    """The site has let go of this sum, with its keys, and answers nothing more of it."""
    for message in (opening, messages.Fetch(0), messages.FetchShares()):
        assert hand.refused(site, message)[0] == "repeated"
    assert hand.federation.participants[site]._sum is None


# -- a site that may crash -----------------------------------------------------------------

SITE = "clinic"
FOUR = ("bank", "clinic", "hospital", "lab")
REST = ("bank", "hospital", "lab")
KINDS = {"work": "upload", "announce": "vote", "quorum": "answer"}


class PowerCut(Exception):
    """Nothing after this happens."""


class Watched(Hand):
    """A round of four sites, of which `SITE` is watched and served first. `left`: what of it
    reached the coordinator, as (session, kind, message); `cut`: the message at which its power
    goes, before it arrives or before the reply leaves."""

    def __init__(self, ours: Any, left: list[tuple[bytes, str, bytes]], cut: Any = None) -> None:
        super().__init__(ours, sites=(SITE, *REST))
        self.left = left
        self.cut = cut
        self.commands: list[tuple[messages.Message, Binding]] = []

    def raw(self, site: str, message: messages.Message, binding: Binding | None = None) -> bytes:
        if site != SITE:
            return super().raw(site, message, binding)
        self.commands.append((message, binding or self.binding))
        if self.cut == (message.kind, "before"):
            raise PowerCut
        reply = super().raw(site, message, binding)
        if self.cut == (message.kind, "after"):
            raise PowerCut
        if message.kind in KINDS:
            self.left.append((self.session.context, KINDS[message.kind], reply))
        return reply

    def whole(self) -> Watched:
        """A round over all four, of which only this site opens the sum."""
        self.prepare().work().collect().hold()
        blocks = self.aggregate(FOUR)
        votes = self.vote_on(FOUR, self.sites, blocks)
        self.open_all(blocks, self.answers(votes))
        return self


def at_most_once(left: list[tuple[bytes, str, bytes]]) -> None:
    found: dict[tuple[bytes, str], set[bytes]] = {}
    for session, kind, reply in left:
        found.setdefault((session, kind), set()).add(reply)
    assert all(len(replies) == 1 for replies in found.values()), found.keys()
