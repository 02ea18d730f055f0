"""Sites that are not in the sum, shares that are missing, and rounds that are tried again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hand import (
    Hand,
    body_of,
    failing,
    flipped,
    lose,
    mean_of,
    nothing_installed,
    record,
    restart,
    sent_by,
    standing,
)

from fedshield.errors import ProtocolError, RoundFailed
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding

GONE = "clinic"


# -- a site that is not in the sum ----------------------------------------------------------


def deal_badly(ours: Any, dealer: str, *holders: str) -> None:
    """The dealer hands these holders boxes that it did not sign for; its message is well signed."""

    def tamper(site: str, method: str, data: bytes) -> bytes:
        if (site, method) != (dealer, "fetch-shares"):
            return data
        boxes = dict(body_of(data)["boxes"])
        for holder in holders:
            boxes[holder] = flipped(boxes[holder])
        _, binding, _, _ = ours.opened(data)
        body = messages.Shares(boxes).to_body()
        return envelope.seal("shares", binding, site, body, ours.keys[site].sign)

    ours.wire.to_coordinator = tamper


@pytest.mark.parametrize("exchange", ["delta", "parameters"])
@pytest.mark.parametrize("mask", ["none", "local", "shared"])
def test_a_site_that_is_left_out_puts_its_update_back(
    federation: Any, exchange: str, mask: str
) -> None:
    """Too few holders have good shares of one dealer: it is left out, takes the sum like the
    others, and its next update carries what this one could not bring."""
    ours = federation(
        "rlwe",
        sites=4,
        weights="equal",
        adapter={"exchange": exchange},
        pruning={"mask": mask, "start_round": 1, "target_round": 1, "target_rate": 0.5}
        if mask != "none"
        else {"method": "none"},
    )
    ours.coordinator.start()
    before = ours.participants[GONE].state
    carried = ours.participants[GONE].memory.residual
    deal_badly(ours, GONE, "bank", "hospital")
    made = record(ours)
    clip = ours.participants[GONE].memory.clip
    places = ours.participants[GONE]._model.selection().indices
    assert places.size == (before.spec.num_values // 2 if mask == "shared" else 550)
    outcome = ours.coordinator.round(1)
    assert outcome.contributors == ("bank", "hospital", "lab")
    assert outcome.lost == {}
    assert ours.coordinator.active == list(ours.names)
    start = before.values.copy()
    if exchange == "parameters":
        start[places] = 0
    mean, _ = mean_of(
        ours,
        type(before)(start, before.spec),
        clip,
        [made[name, 1] for name in outcome.contributors],
        places,
    )
    np.testing.assert_array_equal(ours.state().values, mean)
    residual = ours.participants[GONE].memory.residual
    whole = ours.trained(GONE, before, 1) - before.values
    if exchange == "delta":
        np.testing.assert_array_equal(residual, whole)
        assert np.abs(residual).max() > 0.5
    else:
        # Parameters cannot be put back: the next round sends them anew.
        np.testing.assert_array_equal(residual, carried)
    others = ours.participants["bank"].memory.residual
    if mask == "shared" and exchange == "delta":  # what did not travel waits, whole
        travelled = np.isin(np.arange(others.size), places)
        own = ours.trained("bank", before, 1) - before.values
        np.testing.assert_array_equal(others[~travelled], own[~travelled])
        others = others[travelled]
    assert np.abs(others).max() < (1.0 if mask == "local" and exchange == "delta" else 1e-3)
    if exchange == "parameters" or mask != "none":
        return
    # It comes in the next round, on top of that round's own update.
    ours.wire.to_coordinator = lambda site, method, data: data
    state, clip = ours.state(), ours.participants[GONE].memory.clip
    made = record(ours)
    assert ours.coordinator.round(2).contributors == tuple(ours.names)
    wanted = ours.trained(GONE, state, 2) - state.values + residual
    sent = made[GONE, 2].digits.astype(np.float64)
    for place, bound in zip(state.spec.slices().values(), clip.tolist(), strict=True):
        sent[place] *= 4 * bound / 32767
    bounds = np.repeat(clip, [t.size for t in state.spec.tensors])
    cut = np.clip(wanted, -bounds, bounds)
    np.testing.assert_allclose(sent, cut, atol=2 * 4 * float(clip.max()) / 32767)
    # Beyond the clip it is not lost either.
    left = ours.participants[GONE].memory.residual
    np.testing.assert_allclose(left, wanted - sent, atol=1e-5)


def test_a_site_whose_block_was_changed_is_out(federation: Any) -> None:
    """A block that is not the one announced: its site is dropped, named, and the others' sum is
    opened; in a session of its own it would stand a round behind."""
    ours = federation("rlwe", sites=4, weights="equal")
    ours.coordinator.start()

    def tamper(site: str, method: str, data: bytes) -> bytes:
        if (site, method) != (GONE, "fetch"):
            return data
        _, binding, _, body = ours.opened(data)
        changed = messages.Block(body["index"], flipped(body["data"], 100)).to_body()
        return envelope.seal("block", binding, site, changed, ours.keys[site].sign)

    ours.wire.to_coordinator = tamper
    stood = standing(ours, GONE)
    made = record(ours)
    before, clip = ours.state(), ours.participants[GONE].memory.clip
    outcome = ours.coordinator.round(1)
    assert outcome.lost == {GONE: "fetch: digest"}
    assert outcome.contributors == ("bank", "hospital", "lab")
    mean, _ = mean_of(ours, before, clip, [made[name, 1] for name in outcome.contributors])
    for name in outcome.contributors:
        np.testing.assert_array_equal(ours.participants[name].state.values, mean)
    assert standing(ours, GONE) == stood
    ours.wire.to_coordinator = lambda site, method, data: data
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    assert ours.coordinator.lost == {GONE: "invite: round"}
    assert ours.coordinator.round(2).contributors == ("bank", "hospital", "lab")


def test_a_block_that_was_changed_on_the_way_fails_three_sites(federation: Any) -> None:
    ours = federation("rlwe", sites=3, weights="equal")
    ours.coordinator.start()
    ours.wire.to_coordinator = lambda site, method, data: (
        flipped(data, 100) if (site, method) == (GONE, "fetch") else data
    )
    with (
        nothing_installed(ours),
        pytest.raises(
            RoundFailed,
            match=r"^fetch: no answer from clinic \(its answer was refused: signature: .*kept$",
        ),
    ):
        ours.coordinator.round(1)


# -- shares that are missing or wrong -------------------------------------------------------


@pytest.mark.parametrize("way", ["missing", "flipped", "short", "another's", "another holder's"])
def test_who_lacks_a_share_complains_and_does_not_answer(federation: Any, way: str) -> None:
    """Not a partial sum: nothing."""
    ours = federation("rlwe", sites=4, weights="equal")
    ours.coordinator.start()
    hand = Hand(ours).prepare().work().collect()
    for holder in ours.names:
        shares = hand.shares_for(holder)
        if holder == "bank":
            box = shares.pop(GONE)
            if way == "flipped":
                shares[GONE] = flipped(box, 200)
            elif way == "short":
                shares[GONE] = box[:-1]
            elif way == "another's":
                shares[GONE] = shares["lab"]
            elif way == "another holder's":
                shares[GONE] = hand.boxes[GONE]["lab"]
        held = hand.send(holder, messages.Hold(hand.uploads, shares))
        code = b"missing" if way == "missing" else b"share"
        assert held["complaints"] == ({GONE: code} if holder == "bank" else {})
    blocks = hand.aggregate(ours.names)
    votes = hand.vote_on(ours.names, ours.names, blocks)
    hand.unheard[GONE] = ("bank",)
    answers = hand.answers(votes)
    assert answers["bank"] == {"boxes": {}, "share": b"", "tag": b""}
    assert all(set(answers[one]["boxes"]) == set(ours.names) - {one} for one in ours.names[1:])
    assert not ours.participants["bank"]._sum._held
    # The others are enough, and it can open with their answers.
    made = {name: sent_by(ours, name) for name in ours.names}
    mean, _ = mean_of(ours, ours.state(), ours.participants[GONE].memory.clip, made.values())
    hand.open_all(blocks, answers)
    np.testing.assert_array_equal(ours.state().values, mean)


def test_with_enough_content_holders_the_set_is_kept(federation: Any) -> None:
    ours = federation("rlwe", sites=4, weights="equal")
    network = failing(ours)
    ours.coordinator.start()
    deal_badly(ours, GONE, "bank")
    outcome, found = lose(ours, 1, {}, network)
    assert found == set(ours.names)
    assert outcome.lost == {}
    # Its answer was empty, and nobody needed it.
    assert body_of(ours.wire.of("bank", "hold")[-1].reply)["complaints"] == {GONE: b"share"}
    assert body_of(ours.wire.of("bank", "quorum")[-1].reply)["boxes"] == {}


def test_with_too_few_the_blamed_dealer_is_left_out(federation: Any) -> None:
    """And with its upload everyone can answer again, also those who complained."""
    ours = federation("rlwe", sites=5, weights="private")
    network = failing(ours)
    ours.coordinator.start()
    deal_badly(ours, GONE, "bank", "lab")
    _, found = lose(ours, 1, {}, network)
    assert found == set(ours.names) - {GONE}
    for name in ours.names:
        answer = body_of(ours.wire.of(name, "quorum")[-1].reply)
        assert set(answer["boxes"]) == set(ours.names) - {name}


# -- a round that failed, again -------------------------------------------------------------


def failed_after_the_vote(federation: Any, sites: int = 4, lost: int = 2) -> Any:
    """All voted for all, too few answered: no one opened anything, and everyone is bound."""
    ours = federation("rlwe", sites=sites, weights="equal")
    network = failing(ours)
    ours.coordinator.start()
    gone = ours.names[1 : 1 + lost]
    network.moments = dict.fromkeys(gone, ("quorum", "before"))
    with nothing_installed(ours), pytest.raises(RoundFailed, match=r"^quorum: no answer"):
        ours.coordinator.round(1)
    return ours


@pytest.mark.parametrize("restarted", [False, True])
def test_the_same_set_may_be_tried_again(federation: Any, restarted: bool) -> None:
    """In a new session, over the same sites: the right sum."""
    ours = failed_after_the_vote(federation)
    if restarted:
        for name in ours.names:
            restart(ours, name)
    network = failing(ours)
    ours.coordinator.start()
    _, found = lose(ours, 1, {}, network)
    assert found == set(ours.names)
    # From the next model on, sites may be missing again.
    _, found = lose(ours, 2, {GONE: ("work", "before")}, network)
    assert found == set(ours.names) - {GONE}


def test_the_same_set_without_a_site_that_came_back(federation: Any) -> None:
    """Who was not among those that were voted for is not in the sum now either, though it is
    there; it puts its update back."""
    ours = federation("rlwe", sites=5, weights="equal")
    network = failing(ours)
    ours.coordinator.start()
    network.moments = {GONE: ("work", "before"), "bank": ("quorum", "before")}
    with pytest.raises(RoundFailed, match=r"^quorum: no answer from bank"):
        ours.coordinator.round(1)
    network = failing(ours)
    ours.coordinator.start()
    before = ours.state()
    _, found = lose(ours, 1, {}, network)
    assert found == set(ours.names) - {GONE}
    whole = ours.trained(GONE, before, 1) - before.values
    np.testing.assert_array_equal(ours.participants[GONE].memory.residual, whole)


@pytest.mark.parametrize("moment", ["invite", "prepare", "work", "fetch"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_smaller_set_is_refused_by_the_coordinator(
    federation: Any, moment: str, restarted: bool
) -> None:
    """The missing site is named; it must be back first."""
    ours = failed_after_the_vote(federation)
    if restarted:
        for name in ours.names:
            restart(ours, name)
    failing(ours, {GONE: (moment, "before")})
    ours.coordinator.start()
    text = {
        "invite": "a sum over bank, clinic, hospital, lab (so says bank, hospital, lab) was voted "
        "for from this model, and any other would give a site away; clinic must be back first",
        "work": "work: no answer from clinic (no answer); the model of the last round is kept",
    }
    text["prepare"] = text["invite"]
    text["fetch"] = text["work"].replace("work", "fetch")
    with nothing_installed(ours), pytest.raises(RoundFailed, match=f"^{re.escape(text[moment])}$"):
        ours.coordinator.round(1)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_smaller_set_is_refused_by_the_sites(federation: Any, restarted: bool) -> None:
    """Whatever the coordinator thinks: each site that has voted knows it, from its journal."""
    ours = failed_after_the_vote(federation)
    if restarted:
        for name in ours.names:
            restart(ours, name)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    hand = Hand(ours).ready()
    with nothing_installed(ours):
        for site in ours.names:
            assert sorted(body_of(hand.keys[site])["bound"]) == list(ours.names)
            code, text = hand.refused(site, hand.announcement([n for n in ours.names if n != GONE]))
            assert code == "repeated"
            assert "a sum over bank, clinic, hospital, lab was voted for from this model" in text
    hand.finish()
    assert {site.completed_rounds for site in ours.participants.values()} == {1}
    assert ours.state()


def test_no_answer_leaves_before_the_votes_are_in(federation: Any) -> None:
    """Those who answered have nothing more to give: a late quorum is refused too."""
    ours = failed_after_the_vote(federation)
    bound: Binding = ours.coordinator._calls.binding
    quorum = envelope.seal(
        "quorum", bound, "coordinator", messages.Quorum({}).to_body(), ours.server.sign
    )
    for name, code in (("bank", "repeated"), (GONE, "vote")):
        with pytest.raises(ProtocolError) as caught:
            ours.participants[name].handle("quorum", quorum)
        assert caught.value.code == code
