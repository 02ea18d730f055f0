"""The coordinator's own key makes it no site: in a session, a sum, a set, a vote or a receipt."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hand import FOUR, Hand, body_of, started

from fedshield.crypto.keys import RunKey
from fedshield.errors import ProtocolError
from fedshield.protocol.contexts import setup_context
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding


def own(ours: Any, message: messages.Message, binding: Binding) -> bytes:
    """The coordinator's message in its own name."""
    return envelope.seal(message.kind, binding, COORDINATOR, message.to_body(), ours.server.sign)


@pytest.mark.parametrize("scheme", ["rlwe", "ckks"])
def test_it_joins_no_session(federation: Any, scheme: str) -> None:
    """Else the site that makes the run's keys would seal them to it as well, or where its name
    comes first, it would make them."""
    ours = federation(scheme, sites=3, weights="equal")
    zero = Binding(bytes(32), 0, "setup")
    setup = Binding(setup_context(ours.plan.sha256(), ours.roster, b"s" * 16), 0, "setup")
    invite = messages.Invite(b"s" * 16, ours.plan.canonical(), ours.roster.encode())
    joins = {
        name: site.handle("invite", own(ours, invite, zero))
        for name, site in ours.participants.items()
    }
    key = RunKey(os.urandom(32)).public.to_bytes()
    join = messages.Join(os.urandom(32), key, 0, 0, bytes(64), b"", {}, b"", 0)
    joins[COORDINATOR] = own(ours, join, setup)
    for site in ours.participants.values():
        with pytest.raises(ProtocolError, match=r"^sender: "):
            site.handle("begin", own(ours, messages.Begin(joins), setup))


def test_it_is_in_no_sum(federation: Any) -> None:
    ours = started(federation)
    hand = Hand(ours).prepare()
    tag = messages.RoundKey.from_body(body_of(hand.keys["bank"])).model_tag
    key = RunKey(os.urandom(32)).public.to_bytes()
    keys = hand.keys | {COORDINATOR: own(ours, messages.RoundKey(key, tag, {}), hand.session)}
    assert hand.refused("clinic", messages.Work(keys))[0] == "sender"


def test_it_has_no_upload_and_no_vote(federation: Any) -> None:
    ours = started(federation)
    hand = Hand(ours).ready()
    upload = messages.Upload.from_body(body_of(hand.uploads["bank"]))
    uploads = hand.uploads | {COORDINATOR: own(ours, upload, hand.binding)}
    announce = messages.Announce(uploads, (bytes(32),))
    assert hand.refused("clinic", announce)[0] == "sender"
    votes = hand.vote_on(FOUR, FOUR)
    vote = messages.Vote.from_body(body_of(votes["bank"]))
    two = {name: votes[name] for name in ("bank", "lab")}
    quorum = messages.Quorum(two | {COORDINATOR: own(ours, vote, hand.binding)})
    assert hand.refused("clinic", quorum)[0] == "sender"


def test_it_has_no_receipt(federation: Any) -> None:
    ours = federation("rlwe", sites=4, weights="equal").run(1)
    binding = ours.coordinator._calls.binding
    receipt = messages.Receipt.from_body(body_of(ours.coordinator._receipts["bank"]))
    receipts = {COORDINATOR: own(ours, receipt, binding)}
    finish = own(ours, messages.Finish(receipts), binding)
    with pytest.raises(ProtocolError, match=r"^sender: "):
        ours.participants["bank"].handle("finish", finish)
