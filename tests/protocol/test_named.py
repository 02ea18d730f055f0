"""A round that fails says which site is to blame, also when that site still answers."""

from __future__ import annotations

from typing import Any

import pytest
from hand import Hand, body_of, flipped, started

from fedshield.errors import RoundFailed
from fedshield.protocol.wire import envelope, messages
from fedshield.types import Layout


def resigned(ours: Any, site: str, data: bytes, message: messages.Message) -> bytes:
    """Another body in place of a site's reply, signed by it."""
    _, binding, _, _ = ours.opened(data)
    return envelope.seal(message.kind, binding, site, message.to_body(), ours.keys[site].sign)


def dealt_badly(ours: Any, data: bytes, *holders: str) -> bytes:
    boxes = dict(body_of(data)["boxes"])
    changed = boxes | {holder: flipped(boxes[holder]) for holder in holders}
    return resigned(ours, "clinic", data, messages.Shares(changed))


def failed(ours: Any) -> str:
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(1)
    return str(caught.value)


def test_a_dealer_that_is_left_out_and_missed(federation: Any) -> None:
    ours = started(federation, 3)
    ours.wire.to_coordinator = lambda site, method, data: (
        dealt_badly(ours, data, "bank", "hospital")
        if (site, method) == ("clinic", "fetch-shares")
        else data
    )
    text = "no answer from clinic (its shares were refused by bank, hospital); the model of"
    assert text in failed(ours)


def test_sites_that_vote_otherwise(federation: Any) -> None:
    ours = started(federation)
    ours.wire.to_coordinator = lambda site, method, data: (
        resigned(ours, site, data, messages.Vote(bytes(32), bytes(32), ours.head_of(site)))
        if method == "announce" and site in ("clinic", "lab")
        else data
    )
    text = "clinic (voted for another sum), lab (voted for another sum); 2 of 3 needed"
    assert text in failed(ours)


def test_sites_that_lack_a_share_and_did_not_say_so(federation: Any) -> None:
    ours = started(federation)

    def tamper(site: str, method: str, data: bytes) -> bytes:
        if method == "hold":
            return resigned(ours, site, data, messages.Held({}))
        if (site, method) == ("clinic", "fetch-shares"):
            return dealt_badly(ours, data, "bank", "hospital")
        return data

    ours.wire.to_coordinator = tamper
    text = "quorum: no answer from bank (lacks a share), hospital (lacks a share); 2 of 3 needed"
    assert text in failed(ours)


def test_the_odd_one_out_is_named_though_it_comes_first(federation: Any) -> None:
    ours = started(federation)
    model = ours.participants["bank"]._model
    contribution = model.contribution

    def otherwise(*args: Any) -> Any:
        right = contribution(*args)
        layout = Layout(**{**right.layout.__dict__, "spec_sha256": "another"})
        return type(right)(right.digits, right.reserved, layout, 0, right.residual)

    model.contribution = otherwise
    assert failed(ours) == "bank used another key or layout than the others"


def test_a_site_lost_at_its_shares_is_not_asked_for_blocks(federation: Any) -> None:
    ours = started(federation)
    ours.wire.to_coordinator = lambda site, method, data: (
        data[:-1] if (site, method) == ("clinic", "hold") else data
    )
    outcome = ours.coordinator.round(1)
    assert ours.wire.of("clinic", "fetch") == []
    assert outcome.contributors == ("bank", "hospital", "lab")
    assert outcome.lost["clinic"].startswith("hold: its answer was refused")


def test_shares_come_before_the_vote(federation: Any) -> None:
    hand = Hand(started(federation)).prepare().work().collect()
    hand.vote_on(hand.sites, ["clinic"])
    hold = messages.Hold(hand.uploads, hand.shares_for("clinic"))
    assert hand.refused("clinic", hold)[0] == "repeated"
