"""Commands that a site must refuse, whoever made them, and what is left standing afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from by_hand import (
    COMMANDS,
    OF_A_SUM,
    REPEATED,
    VICTIM,
    ZERO,
    all_commands,
    answer,
    boxes_for,
    codes,
    each_scheme,
    finish_round,
    hold,
    invited,
    summed,
    vote,
)
from hand import FOUR, REST, Hand, digests, nothing_installed, started

from fedshield.crypto.keys import SigningKey
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding

# -- who speaks, and to whom -----------------------------------------------------------------


def test_these_are_all_the_commands(begun: Any) -> None:
    assert {"invite", *COMMANDS} == set(begun.participants[VICTIM]._commands)


def test_only_the_rosters_coordinator_is_listened_to(uploaded: tuple[Any, Any]) -> None:
    """Every command signed by a stranger, by another site or by nobody, and under another name:
    refused, and the session that is under way goes on to the right sum."""
    federation, uploads = uploaded
    stranger = SigningKey()
    checked = 0
    for message, binding in all_commands(federation):
        kind, body = message.kind, message.to_body()
        if kind == "prepare":
            binding = federation.opened(uploads["bank"])[1]
            binding = replace(binding, context=federation.coordinator._session.context)
        for sign in (stranger.sign, federation.keys["bank"].sign, lambda _: bytes(64)):
            data = envelope.seal(kind, binding, COORDINATOR, body, sign)
            assert federation.refused_bytes(VICTIM, kind, data) == "signature"
            checked += 1
        data = envelope.seal(kind, binding, "bank", body, federation.server.sign)
        assert federation.refused_bytes(VICTIM, kind, data) == "sender"
        good = federation.seal(message, binding)
        assert federation.refused_bytes(VICTIM, kind, good[:-1]) == "signature"
        assert federation.refused_bytes(VICTIM, kind, good + b"\0") == "signature"
        assert federation.refused_bytes(VICTIM, kind, b"") == "size"
    assert checked == 3 * (1 + len(COMMANDS))
    finish_round(federation, uploads)


@each_scheme
def test_who_cannot_sign_learns_nothing_of_a_site(federation: Any, scheme: str) -> None:
    """Whatever a site is doing, the code is the same: not whether it has keys, or is in a sum."""
    ours = federation(scheme)
    stranger = SigningKey()

    def ask() -> None:
        for message, binding in all_commands(ours):
            kind, body = message.kind, message.to_body()
            data = envelope.seal(kind, binding, COORDINATOR, body, stranger.sign)
            assert ours.refused_bytes(VICTIM, kind, data) == "signature", kind

    ask()
    ours.wire.to_site = lambda site, method, data: b"" if method == "make-key" else data
    with pytest.raises(RoundFailed):
        ours.coordinator.start()
    ask()
    ours.wire.to_site = lambda site, method, data: data
    ours.coordinator.start()
    ask()
    keys = ours.prepare(1)
    ask()
    uploads = {name: ours.reply(name, messages.Work(keys)) for name in ours.names}
    ours.binding = ours.summing(keys)
    ask()
    finish_round(ours, uploads)
    ask()


def test_an_unknown_command(begun: Any) -> None:
    for method in ("", "shutdown", "_forget", "join", "Open", "vote", "round-key"):
        data = begun.seal(messages.Open({}, {}))
        assert begun.refused_bytes(VICTIM, method, data) == "kind"


def test_a_command_under_another_commands_name(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    for message in (messages.Finish({}), messages.Evaluate()):
        data = federation.seal(message)
        for method in OF_A_SUM:
            assert federation.refused_bytes(VICTIM, method, data) == "kind", method
    data = federation.seal(messages.FetchShares())
    for method in (*OF_A_SUM, "finish", "evaluate", "prepare"):
        if method != "fetch-shares":
            assert federation.refused_bytes(VICTIM, method, data) == "kind", method
    finish_round(federation, uploads)


def test_an_unsigned_invite_does_not_end_a_live_session(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    invite = next(all_commands(federation))[0]
    for data in (
        b"",
        b"garbage" * 40,
        envelope.seal("invite", ZERO, COORDINATOR, invite.to_body(), SigningKey().sign),
        federation.seal(invite, ZERO)[:-1],
    ):
        with pytest.raises(ProtocolError):
            federation.participants[VICTIM].handle("invite", data)
    assert federation.participants[VICTIM]._keys is not None
    finish_round(federation, uploads)


# -- order -----------------------------------------------------------------------------------


@each_scheme
def test_commands_before_a_session(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    for message, binding in list(all_commands(ours))[1:]:
        if message.kind in ("finish", "evaluate", "may-go-on", "make-key"):
            continue  # these change nothing; make-key: see below
        with pytest.raises(ProtocolError):
            ours.participants["bank"].handle(message.kind, ours.seal(message, binding))
    ours.run(1)


@each_scheme
@pytest.mark.parametrize("joined", [False, True])
def test_make_key_before_begin(federation: Any, scheme: str, joined: bool) -> None:
    ours = federation(scheme)
    binding = ours.opened(invited(ours)["bank"])[1] if joined else ZERO
    with pytest.raises(ProtocolError):
        ours.participants["bank"].handle("make-key", ours.seal(messages.MakeKey(), binding))


@each_scheme
def test_commands_before_the_keys(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    ours.wire.to_site = lambda site, method, data: b"" if method == "make-key" else data
    with pytest.raises(RoundFailed, match=r"make-key: no answer from bank \(size\)"):
        ours.coordinator.start()
    for site in ours.names:
        codes(ours, site, REPEATED)
        first = Binding(ours.binding.context, 1, "round")
        assert ours.refused(site, messages.Prepare(), first) == "scheme"
    assert ours.refused(VICTIM, messages.MakeKey()) == "repeated"  # not the maker
    offer = ours.send("bank", messages.MakeKey())[1]
    assert ours.refused("bank", messages.MakeKey()) == "repeated"
    for site in ("clinic", "hospital"):
        ours.send(site, messages.TakeKey(offer["boxes"][site]))
        again = messages.TakeKey(offer["boxes"][site])
        assert ours.refused(site, again) == "repeated"
    ours.wire.to_site = lambda site, method, data: data
    ours.coordinator.start()
    finish_round(ours, ours.work(1))


def test_a_round_out_of_order(begun: Any) -> None:
    """Each command of a sum at every moment at which it is not its turn."""
    federation = begun
    codes(federation, VICTIM, REPEATED)
    keys = federation.prepare(1)
    codes(federation, VICTIM, {name: "repeated" for name in OF_A_SUM if name != "work"})
    command = messages.Work(keys)
    uploads = {name: federation.reply(name, command) for name in federation.names}
    federation.binding = federation.summing(keys)
    early = ("work", "quorum", "deliver", "open")
    codes(federation, VICTIM, dict.fromkeys(early, "repeated"))
    blocks = summed(federation, uploads, list(federation.names))
    hold(federation, uploads)
    if federation.plan.scheme.name == "rlwe":
        assert federation.refused(VICTIM, messages.Hold(uploads, {})) == "repeated"
    codes(federation, VICTIM, dict.fromkeys(early, "repeated"))

    votes = vote(federation, uploads, blocks)
    announce = messages.Announce(uploads, digests(blocks))
    assert federation.refused(VICTIM, announce) == "repeated"
    assert federation.refused(VICTIM, messages.Quorum({})) == "vote"
    federation.send("bank", messages.Deliver(0, blocks[0]))
    assert federation.refused("bank", messages.Open({}, {})) == "repeated"  # not answered
    answers = answer(federation, votes)
    assert federation.refused(VICTIM, messages.Quorum(votes)) == "repeated"

    command = boxes_for(VICTIM, answers)
    assert federation.refused(VICTIM, command) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(1, blocks[0])) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(-1, blocks[0])) == "repeated"
    federation.send(VICTIM, messages.Deliver(0, blocks[0]))
    assert federation.refused(VICTIM, messages.Deliver(0, blocks[0])) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(1, blocks[0])) == "size"
    assert federation.refused(VICTIM, messages.Install({})) == "repeated"
    before = federation.states()
    receipts = {VICTIM: federation.reply(VICTIM, command)}
    for site in federation.names:
        if site != VICTIM:
            for index, block in enumerate(blocks[site == "bank" :], site == "bank"):
                federation.send(site, messages.Deliver(int(index), block))
            receipts[site] = federation.reply(site, boxes_for(site, answers))
    assert federation.refused(VICTIM, messages.Install({})) == "disagree"
    assert federation.states() == before
    federation.send(VICTIM, messages.Install(receipts))
    assert federation.states()[VICTIM] != before[VICTIM]

    after = federation.states()
    codes(federation, VICTIM, REPEATED)
    for late in (announce, messages.Quorum(votes), messages.Deliver(0, blocks[0]), command):
        assert federation.refused(VICTIM, late) == "repeated"
    assert federation.states() == after


def test_answers_come_after_votes_and_votes_after_uploads(federation: Any) -> None:
    """A vote before an upload, an answer before a vote, an opening before an answer."""
    hand = Hand(started(federation)).prepare()
    early: list[messages.Message] = [
        messages.FetchShares(), messages.Fetch(0), messages.Hold({}, {}),
        messages.Announce({}, ()), messages.Quorum({}), messages.Deliver(0, b""),
        messages.Open({}, {}),
    ]  # fmt: skip
    with nothing_installed(hand.federation):
        for message in early:
            assert hand.refused(VICTIM, message)[0] == "repeated"
        hand.work().collect()
        for message in early[4:]:
            assert hand.refused(VICTIM, message)[0] == "repeated"
        hand.hold()
        blocks = hand.aggregate(FOUR)
        votes = hand.vote_on(FOUR, FOUR, blocks)
        hand.deliver(VICTIM, blocks)
        assert hand.refused(VICTIM, messages.Deliver(0, blocks[0]))[0] == "repeated"
        assert hand.refused(VICTIM, messages.Deliver(1, blocks[0]))[0] == "size"
        assert hand.refused(VICTIM, messages.Open({}, {}))[0] == "repeated"
    hand.answers(votes)


def test_everything_once(four: Hand) -> None:
    """A second prepare, work, hold, announcement, quorum or opening is refused."""
    ours = four.federation
    site = VICTIM
    assert four.refused(site, messages.Work(four.keys))[0] == "repeated"
    assert four.refused(site, messages.Work(four.keys), four.session)[0] == "context"
    shares = four.shares_for(site)
    assert four.refused(site, messages.Hold(four.uploads, shares))[0] == "repeated"
    blocks = four.aggregate(FOUR)
    votes = four.vote_on(FOUR, FOUR, blocks)
    for names in (FOUR, REST, FOUR[:3]):
        assert four.refused(site, four.announcement(names))[0] == "repeated"
    answers = four.answers(votes)
    assert four.refused(site, messages.Quorum(votes))[0] == "repeated"
    assert four.refused(site, messages.Hold(four.uploads, shares))[0] == "repeated"
    assert four.refused(site, messages.Prepare(), four.session)[0] == "repeated"
    for name in FOUR:
        four.deliver(name, blocks)
        four.raw(name, four.opening(name, answers))
        assert four.refused(name, four.opening(name, answers))[0] == "repeated"
    assert ours.state()


def test_rounds_cannot_be_skipped_or_repeated(begun: Any) -> None:
    context = begun.coordinator._session.context
    for number, phase in ((0, "round"), (2, "round"), (0, "weights"), (1, "weights"), (0, "setup")):
        binding = Binding(context, number, phase)
        assert begun.refused(VICTIM, messages.Prepare(), binding) == "round"
    begun.coordinator.round(1)
    assert begun.refused(VICTIM, messages.Prepare(), Binding(context, 1, "round")) == "round"
    begun.coordinator.round(2)


@each_scheme
def test_no_round_before_the_weights_are_summed(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private")
    ours.wire.to_site = lambda site, method, data: b"" if method == "prepare" else data
    with pytest.raises(RoundFailed, match="prepare: no answer"):
        ours.coordinator.start()
    context = ours.coordinator._session.context
    for site in ours.names:
        first = Binding(context, 1, "round")
        assert ours.refused(site, messages.Prepare(), first) == "round"
        assert ours.send(site, messages.Prepare(), Binding(context, 0, "weights"))
