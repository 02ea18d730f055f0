"""What a site has seen before, sent again: commands, uploads, keys and joins."""

from __future__ import annotations

import os
from typing import Any

import pytest
from by_hand import COLLUDER, OF_A_SUM, VICTIM, each_scheme, finish_round, invited, summed
from hand import FOUR, REST, Hand, digests, nothing_installed, rejected, restart, started

from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.plan.quorum import resolve
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding

# -- commands --------------------------------------------------------------------------------


@each_scheme
def test_commands_of_one_round_are_refused_in_the_next(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    ours.work(2)
    for one in log:
        if one.method not in ("invite", "finish"):
            expected = "round" if one.method == "prepare" else "context"
            assert ours.refused_bytes(one.site, one.method, one.command) == expected, one.method
    assert ours.states() == before


@each_scheme
def test_commands_of_a_round_are_refused_after_it(federation: Any, scheme: str) -> None:
    """Their context is still in force, for the evaluation; their sum is not."""
    ours = federation(scheme, weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    trained = {name: list(work.trained_rounds) for name, work in ours.works.items()}
    now = ours.binding
    checked = set()
    for one in log:
        binding = ours.opened(one.command)[1]
        if binding == now and one.method != "evaluate":
            assert ours.refused_bytes(one.site, one.method, one.command) == "repeated", one.method
            checked.add(one.method)
        elif one.method in ("prepare", "work"):
            expected = "round" if one.method == "prepare" else "context"
            assert ours.refused_bytes(one.site, one.method, one.command) == expected
    assert checked >= {"fetch", "announce", "quorum", "deliver", "open"}
    assert ours.states() == before
    assert {name: work.trained_rounds for name, work in ours.works.items()} == trained
    ours.coordinator.round(2)


@each_scheme
def test_commands_of_one_session_are_refused_in_another(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    for one in log:
        if one.method != "invite":
            code = ours.refused_bytes(one.site, one.method, one.command)
            assert code == "context" or (code == "repeated" and one.method in OF_A_SUM), one.method
    assert ours.states() == before
    ours.coordinator.round(2)
    assert ours.coordinator.completed_rounds == 2


def test_a_replayed_round(federation: Any) -> None:
    """Every command of round 1, once more: in round 2 and in a new session."""
    ours = federation("rlwe", sites=4, weights="private").run(1)
    old = [(one.site, one.method, one.command) for one in ours.wire.log if one.method != "invite"]
    assert len({method for _, method, _ in old}) == 14

    def replay() -> None:
        with nothing_installed(ours):
            for site, method, command in old:
                with pytest.raises(ProtocolError) as caught:
                    ours.participants[site].handle(method, command)
                # 'repeated': between two sums there is none that it could be for.
                assert caught.value.code in ("context", "round", "repeated")

    hand = Hand(ours, 2).prepare()
    replay()
    hand.work()
    replay()
    hand.collect().hold()
    replay()
    hand.finish()
    assert {site.completed_rounds for site in ours.participants.values()} == {2}
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    replay()
    ours.coordinator.round(3)


# -- a round that was rejected ---------------------------------------------------------------


@pytest.mark.parametrize("place", ["same session", "new session", "restarted"])
def test_a_rejected_round_with_one_site_fewer(federation: Any, place: str) -> None:
    """Whatever was wrong with the first sum, it counts as opened."""
    ours = started(federation)
    hand = Hand(ours).ready()
    rejected(hand, hand.shifted(FOUR, 7), "tag")
    if place == "same session":
        again = Hand(ours).prepare()
        for site in FOUR:
            code, text = again.refused(site, messages.Work(again.keys))
            assert (code, "another upload has been sent" in text) == ("repeated", True)
            for message in (hand.announcement(REST), messages.FetchShares(), messages.Fetch(0)):
                assert again.refused(site, message, again.summing())[0] == "repeated"
        return
    if place == "restarted":
        for name in FOUR:
            restart(ours, name)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    with nothing_installed(ours):
        again = Hand(ours).ready()
        for site in FOUR:
            code, text = again.refused(site, again.announcement(REST))
            assert code == "repeated"
            assert "a sum over bank, clinic, hospital, lab was voted for from this model" in text
            assert again.refused(site, messages.Quorum({}))[0] == "repeated"
    again.finish()
    assert ours.state()


def test_a_rejected_round_is_not_repeated_in_its_session(federation: Any) -> None:
    """A sum that opens but does not weigh what it should: the site may be asked to prepare again,
    and gives no second upload."""
    ours = started(federation, 5)
    ours.participants[COLLUDER]._weight = 1.5
    hand = Hand(ours).ready()
    blocks = hand.aggregate(hand.sites)
    answers = hand.answers(hand.vote_on(hand.sites, hand.sites, blocks))
    with nothing_installed(ours):
        for site in ours.names:
            hand.deliver(site, blocks)
            code, text = hand.refused(site, hand.opening(site, answers))
            assert code == "weight"
            assert "total weight" in text
        again = Hand(ours).prepare()
        for site in ours.names:
            code, text = again.refused(site, messages.Work(again.keys))
            assert (code, "another upload has been sent" in text) == ("repeated", True)


# -- uploads and keys ------------------------------------------------------------------------


def test_a_block_asked_for_again_is_the_same_bytes(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    first = federation.blocks(VICTIM, uploads[VICTIM])
    assert federation.blocks(VICTIM, uploads[VICTIM]) == first
    assert digests(first) == tuple(federation.opened(uploads[VICTIM])[3]["block_digests"])
    for index in (-1, len(first), 2**62):
        assert federation.refused(VICTIM, messages.Fetch(index)) == "size"
    shares = federation.send(VICTIM, messages.FetchShares())
    assert federation.send(VICTIM, messages.FetchShares()) == shares


def test_a_second_work_command_gets_no_second_upload(uploaded: tuple[Any, Any]) -> None:
    """Another encryption of the same round would be another upload: refused, under whatever
    keys, and the first stays in force."""
    federation, uploads = uploaded
    before = federation.blocks(VICTIM, uploads[VICTIM])
    first = Binding(federation.coordinator._session.context, 1, "round")
    keys = {name: RunKey(os.urandom(32)).public.to_bytes() for name in federation.names}
    for binding in (federation.binding, first):
        code = "repeated" if binding == federation.binding else "context"
        for round_keys in ({}, keys):
            assert federation.refused(VICTIM, messages.Work(round_keys), binding) == code
    assert federation.refused(VICTIM, messages.Prepare(), first) == "repeated"
    assert federation.blocks(VICTIM, uploads[VICTIM]) == before
    assert federation.works[VICTIM].trained_rounds == [1]
    finish_round(federation, uploads)


def test_round_keys_that_a_site_refuses(begun: Any) -> None:
    """A key replaced, missing, of another round or session, or of no site: no site works on it."""
    old = begun.prepare(1)
    begun.coordinator = begun.another_coordinator()
    begun.coordinator.start()
    keys = begun.prepare(1)

    def forged(site: str, **changes: Any) -> bytes:
        kind, binding, sender, body = begun.opened(keys[site])
        return envelope.seal(kind, binding, sender, body | changes, begun.keys[site].sign)

    lab = SigningKey()
    body = begun.opened(keys["bank"])[3]
    stranger = envelope.seal("round-key", begun.binding, "lab", body, lab.sign)
    own = begun.opened(keys[VICTIM])[3]["key"]
    fresh = RunKey(os.urandom(32)).public
    for changed, code in (
        ({}, "cohort"),
        ({"bank": keys["bank"], VICTIM: keys[VICTIM]}, "cohort"),
        ({**keys, VICTIM: forged(VICTIM, key=fresh.to_bytes())}, "disagree"),
        ({**keys, "bank": forged("bank", key=own)}, "repeated"),
        ({**keys, "bank": forged("bank", key=own[:1184] + fresh.x25519)}, "repeated"),
        ({**keys, "bank": forged("bank", key=fresh.mlkem + own[1184:])}, "repeated"),
        ({**keys, "bank": forged("bank", key=b"\xff" * 1184 + fresh.x25519)}, "malformed"),
        ({**keys, "bank": forged("bank", key=fresh.mlkem + bytes(32))}, "malformed"),
        ({**keys, "bank": forged("bank", key=b"short")}, "size"),
        ({**keys, "bank": forged("bank", model_tag=bytes(32))}, "disagree"),
        ({**keys, "bank": keys["hospital"]}, "signature"),
        ({**keys, "bank": old["bank"]}, "context"),
        ({**keys, "lab": stranger}, "sender"),
    ):
        assert begun.refused(VICTIM, messages.Work(changed)) == code
    assert begun.works[VICTIM].trained_rounds == []
    begun.send(VICTIM, messages.Work(keys))
    assert begun.works[VICTIM].trained_rounds == [1]


def test_uploads_of_another_round_are_refused(begun: Any) -> None:
    begun.coordinator.round(1)
    earlier = {name: begun.wire.of(name, "work")[-1].reply for name in begun.names}
    uploads = begun.work(2)
    blocks = digests(summed(begun, uploads, list(begun.names)))
    mixed = {**uploads, "bank": earlier["bank"]}
    for wrong in (mixed, earlier):
        assert begun.refused(VICTIM, messages.Announce(wrong, blocks)) == "context"
        assert begun.refused(VICTIM, messages.Hold(wrong, {})) == "context"


# -- joins -----------------------------------------------------------------------------------


def test_a_second_begin(begun: Any) -> None:
    joins = {name: begun.wire.of(name, "invite")[0].reply for name in begun.names}
    setup = begun.opened(joins["bank"])[1]
    assert begun.refused(VICTIM, messages.Begin(joins), setup) == "context"
    assert begun.refused(VICTIM, messages.Begin(joins)) == "context"
    begun.coordinator.round(1)


@each_scheme
def test_begin_with_other_joins(federation: Any, scheme: str) -> None:
    """A site left out, added, answering twice, or replaced by its own older join."""
    ours = federation(scheme)
    earlier, joins = invited(ours), invited(ours)
    setup = ours.opened(joins["bank"])[1]
    assert setup == ours.opened(earlier["bank"])[1]
    for raw, code in (
        ({**joins, VICTIM: earlier[VICTIM]}, "disagree"),
        ({name: joins[name] for name in ("bank", VICTIM)}, "cohort"),
        ({**joins, "lab": joins["bank"]}, "sender"),
        ({**joins, "bank": joins["hospital"]}, "signature"),
        ({}, "cohort"),
    ):
        assert ours.refused(VICTIM, messages.Begin(raw), setup) == code
    # One that answered twice: the others go on, but to another context than that site.
    mixed = {**joins, "bank": earlier["bank"]}
    ready = ours.send(VICTIM, messages.Begin(mixed), setup)[1]["context"]
    assert ours.refused("bank", messages.Begin(mixed), setup) == "disagree"
    assert ours.send("hospital", messages.Begin(joins), setup)[1]["context"] != ready


def test_begin_without_a_site_that_is_not_needed(federation: Any) -> None:
    """Three of four are enough for a threshold; the fourth does not go on without its own."""
    ours = federation("rlwe", sites=4)
    assert ours.roster.rules == resolve(4, membership="open")
    joins = invited(ours)
    setup = ours.opened(joins["bank"])[1]
    three = {name: joins[name] for name in ("bank", "hospital", "lab")}
    assert ours.refused(VICTIM, messages.Begin(three), setup) == "disagree"
    assert ours.send("bank", messages.Begin(three), setup)[0] == "ready"
    two = {name: joins[name] for name in ("hospital", "lab")}
    assert ours.refused("lab", messages.Begin(two), setup) == "cohort"


@each_scheme
def test_sites_at_different_rounds_do_not_begin(federation: Any, scheme: str) -> None:
    """Neither with an honest coordinator nor with one that goes on regardless."""
    ours = federation(scheme).run(1)
    ours.participants["bank"] = ours.participant("bank", ours.roster)
    with pytest.raises(RoundFailed, match=r"different rounds \(bank 0, clinic 1, hospital 1\)"):
        ours.another_coordinator().start()
    joins = invited(ours)
    setup = ours.opened(joins["bank"])[1]
    for site in ours.names:
        assert ours.refused(site, messages.Begin(joins), setup) == "round"
