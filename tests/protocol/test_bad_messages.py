"""Keys of a round that a site refuses, and messages that are cut, changed or too long."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hand import Hand, body_of, flipped, nothing_installed, started

from fedshield.crypto.keys import RunKey
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.protocol.wire import envelope, messages

VICTIM = "clinic"


# -- keys of a round ------------------------------------------------------------------------


def test_round_keys_that_a_site_refuses(federation: Any) -> None:
    ours = started(federation, 5)
    hand = Hand(ours).prepare()
    key = messages.RoundKey.from_body(body_of(hand.keys[VICTIM]))

    def code(keys: dict[str, bytes]) -> tuple[str, str]:
        return hand.refused(VICTIM, messages.Work(keys))

    def signed(site: str, **changes: Any) -> dict[str, bytes]:
        fresh = RunKey(os.urandom(32)).public.to_bytes()
        changed = messages.RoundKey(**{**key.__dict__, "key": fresh, **changes})
        return hand.keys | {site: hand.signed_by(site, changed)}

    with nothing_installed(ours):
        found, text = code(signed(VICTIM))
        assert (found, "own round key was replaced" in text) == ("disagree", True)
        found, text = code({site: hand.keys[site] for site in hand.sites if site != VICTIM})
        assert (found, "own round key was replaced" in text) == ("disagree", True)
        found, text = code(signed("lab", model_tag=bytes(32)))
        assert (found, "lab starts from another model" in text) == ("disagree", True)
        assert code(signed("lab", key=key.key))[0] == "repeated"
        assert code(signed("lab", key=b"short"))[0] == "size"
        assert code(signed("lab", model_tag=b"short"))[0] == "size"
        found, text = code({site: hand.keys[site] for site in hand.sites[:3]})
        assert (found, "expected at least 4 sites in a round, got 3" in text) == ("cohort", True)
        assert code(hand.keys | {"stranger": hand.keys["lab"]})[0] == "sender"
        assert code(hand.keys | {"lab": hand.keys["bank"]})[0] == "signature"
        mlkem, x25519 = key.key[:1184], key.key[1184:]
        own = RunKey(os.urandom(32)).public
        for half in (mlkem + own.x25519, own.mlkem + x25519):
            found, text = code(signed("lab", key=half))
            assert (found, "two sites sent the same round key" in text) == ("repeated", True)
        found, text = code(signed("lab", key=own.mlkem + bytes(32)))
        assert (found, "lab: the round key" in text) == ("malformed", True)
        assert "of low order" in text
        found, text = code(signed("lab", key=b"\xff" * 1184 + own.x25519))
        assert (found, "lab: the round key" in text) == ("malformed", True)
        assert "not reduced mod 3329" in text
    assert ours.works[VICTIM].trained_rounds == []


def test_a_site_that_failed_is_not_asked_again(federation: Any) -> None:
    """Its keys are for the sites that it was told of first, whatever became of its training."""
    ours = started(federation, 5)
    hand = Hand(ours).prepare()
    ours.works[VICTIM].fault = RoundFailed("out of memory")
    with pytest.raises(RoundFailed):
        hand.raw(VICTIM, messages.Work(hand.keys))
    ours.works[VICTIM].fault = None
    hand.binding = hand.summing()
    for sites in (hand.sites, hand.sites[:4]):
        again = messages.Work({site: hand.keys[site] for site in sites})
        assert hand.refused(VICTIM, again)[0] == "repeated"
        assert hand.refused(VICTIM, again, hand.session)[0] == "context"


def test_round_keys_of_two_sets(federation: Any) -> None:
    """Each half is told of other sites: what the halves upload cannot come together."""
    ours = started(federation, 5)
    hand = Hand(ours).prepare()
    without_last = {site: hand.keys[site] for site in hand.sites[:4]}
    without_first = {site: hand.keys[site] for site in hand.sites[1:]}
    uploads = {site: hand.raw(site, messages.Work(without_last)) for site in hand.sites[:4]}
    last = hand.sites[4]
    uploads[last] = hand.raw(last, messages.Work(without_first))
    one, other = hand.summing(without_last), hand.summing(without_first)
    assert one.context != other.context
    with nothing_installed(ours):
        mixed = {site: uploads[site] for site in hand.sites[1:]}
        # Nor does a site come in that this half was not told of, though it signs as if it had been.
        hand.binding = one
        stranger = hand.signed_by(last, messages.Upload.from_body(body_of(uploads["bank"])))
        found, text = hand.refused("bank", messages.Announce({**uploads, last: stranger}, ()))
        assert (found, f"{last} is not in this sum" in text) == ("not-in-set", True)
        for site in hand.sites:
            binding = other if site == last else one
            for command in (messages.Hold(mixed, {}), messages.Announce(mixed, (bytes(32),))):
                assert hand.refused(site, command, binding)[0] == "context"
            assert hand.refused(site, messages.Work(hand.keys), hand.session)[0] == "context"


def test_a_site_that_opened_another_model_is_named(federation: Any) -> None:
    """The next round's context holds a keyed digest of the model."""
    ours = started(federation)
    ours.participants["lab"]._model.state = type(ours.state())(
        ours.participants["bank"].state.values * 2, ours.spec
    )
    with pytest.raises(RoundFailed, match=r"^work: no answer from bank \(disagree\), clinic"):
        ours.coordinator.round(1)
    assert str(ours.wire.errors["bank"]) == "disagree: lab starts from another model"


# -- lengths --------------------------------------------------------------------------------


def test_truncated_and_changed_messages(federation: Any) -> None:
    """Before each command its beginning, its end and a changed copy: refused, and no trace."""
    ours = federation("rlwe", sites=4, weights="private")
    seen: set[str] = set()

    def tamper(site: str, method: str, data: bytes) -> bytes:
        if site == VICTIM:
            seen.add(method)
            bad = [b"", data[:5], data[:68], data[:-1], data[1:], data + b"\0", data + data]
            bad += [flipped(data, at) for at in (0, 4, 20, len(data) // 2, -65, -1)]
            for one in bad:
                with pytest.raises(ProtocolError) as caught:
                    ours.participants[site].handle(method, one)
                assert caught.value.code in ("signature", "size")
        return data

    ours.wire.to_site = tamper
    ours.run(2)
    ours.coordinator.finish()
    assert len(seen) == 15
    assert {site.completed_rounds for site in ours.participants.values()} == {2}


def test_an_oversized_message(four: Hand) -> None:
    huge = bytes(envelope.MAX_BYTES + 1)
    with nothing_installed(four.federation), pytest.raises(ProtocolError, match=r"^size: "):
        four.federation.participants[VICTIM].handle("announce", huge)


@pytest.mark.parametrize("method", ["prepare", "work", "fetch", "hold", "announce", "quorum"])
@pytest.mark.parametrize("way", ["cut", "another kind", "another site's"])
def test_replies_that_the_coordinator_refuses(federation: Any, method: str, way: str) -> None:
    """A site whose reply is no reply is out, and named; the others go on."""
    ours = federation("rlwe", sites=4, weights="equal")
    ours.coordinator.start()
    last: dict[str, bytes] = {}

    def tamper(site: str, name: str, data: bytes) -> bytes:
        if site == VICTIM and name == method:
            if way == "cut":
                return data[:-1]
            if way == "another site's":
                return last.get(name, b"")
            _, binding, _, body = ours.opened(data)
            return envelope.seal("done", binding, site, body, ours.keys[site].sign)
        last[name] = data
        return data

    ours.wire.to_coordinator = tamper
    outcome = ours.coordinator.round(1)
    assert set(outcome.lost) == {VICTIM}
    if method != "hold":  # its blocks may still be had, or not
        assert (VICTIM in outcome.contributors) == (method in ("announce", "quorum"))
    assert "its answer was refused: " in outcome.lost[VICTIM]
