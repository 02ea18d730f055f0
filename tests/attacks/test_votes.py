"""Votes that a site does not count, and two halves that are shown different things."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from attacker import Attacker
from by_hand import COLLUDER, VICTIM, hold, summed, vote
from hand import FOUR, Hand, nothing_installed, started

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding


def test_two_sets_to_two_halves(five: Hand) -> None:
    """All to two sites, all but the victim to the two others; the colluder votes for both."""
    small = [name for name in five.sites if name != VICTIM]
    blocks = {5: five.aggregate(five.sites), 4: five.aggregate(small)}
    attacker = Attacker(five, COLLUDER)
    first = five.vote_on(five.sites, ("bank", "clinic"), blocks[5])
    second = five.vote_on(small, ("hospital", "lab"), blocks[4])
    first |= attacker.votes(five.sites, blocks[5])
    second |= attacker.votes(small, blocks[4])
    with nothing_installed(five.federation):
        for site in ("bank", "clinic"):
            code, text = five.refused(site, messages.Quorum(first))
            assert (code, "expected 4 matching votes, got 3" in text) == ("vote", True)
            code, text = five.refused(site, messages.Quorum(first | second))
            assert code == "vote"
            assert "hospital voted for another set or another sum" in text
            assert five.refused(site, messages.Quorum(second))[0] == "vote"
            assert five.refused(site, five.announcement(small, blocks[4]))[0] == "repeated"
        assert five.refused("lab", messages.Quorum(second))[0] == "vote"


def test_two_sums_to_two_halves(five: Hand) -> None:
    """The same set, two aggregates: no site answers for one that others did not vote for."""
    blocks = five.aggregate(five.sites)
    other = five.shifted(five.sites, 0)
    votes = five.vote_on(five.sites, five.sites[:3], blocks)
    others = five.vote_on(five.sites, five.sites[3:], other)
    with nothing_installed(five.federation):
        for site in five.sites[:3]:
            code, text = five.refused(site, messages.Quorum(votes | others))
            assert code == "vote"
            assert "lab voted for another" in text
            assert five.refused(site, messages.Quorum(votes))[0] == "vote"
            five.deliver(site, blocks)
            # Unanswered, so not opened either, whatever comes.
            assert five.refused(site, messages.Open({}, {}))[0] == "repeated"
        assert five.refused("lab", messages.Quorum(others))[0] == "vote"


@pytest.mark.parametrize(("scheme", "sites"), [("plain", 3), ("ckks", 3), ("rlwe", 3), ("rlwe", 4)])
def test_votes_that_are_refused(federation: Any, scheme: str, sites: int) -> None:
    """A site answers to enough votes, all for what it voted for itself, of distinct sites. Others
    are forged, from another sum, from strangers, repeated under another name, or too few: no answer
    leaves, and the right votes are still good afterwards."""
    ours = federation(scheme, sites=sites)
    ours.coordinator.start()
    session = ours.coordinator._session.context
    uploads = ours.work(1)
    blocks = summed(ours, uploads, list(ours.names))
    hold(ours, uploads)
    votes = vote(ours, uploads, blocks)
    _, binding, _, body = ours.opened(votes["hospital"])
    stranger, hospital = SigningKey(), ours.keys["hospital"]
    needed = ours.roster.rules.votes
    others = [name for name in ours.names if name not in ("hospital", VICTIM)]
    few = {name: votes[name] for name in [*others, VICTIM][: needed - 1]}

    def signed(sender: str, by: Any, bound: Binding = binding, **changes: Any) -> bytes:
        return envelope.seal("vote", bound, sender, body | changes, by.sign)

    bad = [
        ("hospital", signed("hospital", stranger), "signature"),
        ("hospital", signed("hospital", ours.server), "signature"),
        ("hospital", votes["bank"], "signature"),
        ("hospital", votes["hospital"][:-1], "signature"),
        ("hospital", b"", "size"),
        ("hospital", signed("bank", hospital), "sender"),
        ("hospital", signed("hospital", hospital, replace(binding, context=session)), "context"),
        ("hospital", signed("hospital", hospital, replace(binding, context=bytes(32))), "context"),
        ("hospital", uploads["hospital"], "kind"),
        ("hospital", signed("hospital", hospital, contributors=bytes(32)), "vote"),
        ("hospital", signed("hospital", hospital, aggregate=bytes(32)), "vote"),
        ("surgery", signed("surgery", stranger), "sender"),
        ("stranger", signed("stranger", stranger), "sender"),
    ]
    wrong = [({}, "vote"), (few, "vote")]
    wrong += [({**good, name: raw}, code) for name, raw, code in bad for good in (few, votes)]
    with nothing_installed(ours):
        for shown, code in wrong:
            assert ours.refused(VICTIM, messages.Quorum(shown)) == code
            assert ours.refused(VICTIM, messages.Open({}, {})) == "repeated"
        for shown, text in (
            (few, f"expected {needed} matching votes, got {needed - 1}"),
            (few | {"stranger": b"x" * 80}, "'stranger' is not in the roster"),
        ):
            with pytest.raises(ProtocolError) as caught:
                ours.send(VICTIM, messages.Quorum(shown))
            assert text in str(caught.value)
    for site in ours.names:
        boxes = ours.send(site, messages.Quorum(votes))[1]["boxes"]
        assert set(boxes) == (set(ours.names) - {site} if scheme == "rlwe" else set())


def test_votes_of_another_session(federation: Any) -> None:
    """The very same set of sites, voted for before: those votes are for other uploads."""
    ours = started(federation)
    first = Hand(ours).ready()
    old = first.vote_on(FOUR, FOUR)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    second = Hand(ours).ready()
    new = second.vote_on(FOUR, FOUR)
    assert second.refused(VICTIM, messages.Quorum(old))[0] == "context"
    assert second.refused(VICTIM, messages.Quorum(new | {"lab": old["lab"]}))[0] == "context"
    second.answers(new)
