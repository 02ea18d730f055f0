"""A site that signed for a result which nobody else has: it signs no second receipt, and takes the
others' result by their certificate (protocol.md, section 4, steps 8 and 9)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hand import Hand, body_of, ended, flipped, nothing_installed, restart

from fedshield.errors import RoundFailed
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.wire import messages

PINNED, COLLUDER = "bank", "lab"
OTHERS = ("clinic", "hospital", COLLUDER)


def nudge(ours: Any, by: int, name: str = COLLUDER) -> None:
    """The colluder puts in something else in the next try; its own ledger is no hindrance."""
    site = ours.participants[name]
    encode = site._model.contribution

    def contribution(*arguments: Any) -> Any:
        encoded = encode(*arguments)
        digits = encoded.digits.copy()
        digits[0] += by if digits[0] < 0 else -by
        return dataclasses.replace(encoded, digits=digits)

    site._model.contribution = contribution
    site._line.enter = site._line.check = lambda **_: None
    site._line.sign_receipt = lambda *_: None


def openings(hand: Hand) -> dict[str, messages.Open]:
    """The sum is made, voted on, answered for and delivered: what is left is to open it."""
    blocks = hand.aggregate(hand.sites)
    answers = hand.answers(hand.vote_on(hand.sites, hand.sites, blocks))
    for site in hand.sites:
        hand.deliver(site, blocks)
    return {site: hand.opening(site, answers) for site in hand.sites}


def alone(ours: Any, site: str) -> bytes:
    """A session of which this site alone opens the sum; its receipt."""
    hand = Hand(ours).ready()
    return hand.raw(site, openings(hand)[site])


def again(ours: Any) -> Any:
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    return ours.coordinator


def pinned(federation: Any, **rules: Any) -> Any:
    """Four sites, of which one may collude. The colluder and the coordinator had one honest site
    alone open round 1; it signed for that sum, and the colluder puts in another update now."""
    ours = federation("rlwe", sites=4, rules={"membership": "fixed", **rules})
    ours.coordinator.start()
    alone(ours, PINNED)
    nudge(ours, 3)
    return ours


def opened_by_others(ours: Any) -> tuple[Hand, dict[str, bytes]]:
    """The next session, by hand: the others' receipts, and the pinned site has refused its own."""
    again(ours)
    hand = Hand(ours).ready()
    opening = openings(hand)
    receipts = {site: hand.raw(site, opening[site]) for site in OTHERS}
    code, why = hand.refused(PINNED, opening[PINNED])
    assert code == "disagree"
    assert "R4: round 1 (round): this site signed for another result before" in why
    assert "takes this one only if 3 other sites sign for it (there are 3)" in why
    return hand, receipts


def test_a_site_that_signed_for_another_result_goes_on_with_the_others(federation: Any) -> None:
    ours = pinned(federation)
    signed = dict(ours.ledgers[PINNED].receipts)
    outcome = again(ours).round(1)
    assert outcome.lost == {}
    assert len(set(ours.states().values())) == 1
    # It signed nothing in this session, and its ledger has the one receipt that it ever signed.
    assert [one.code for one in ours.wire.of(PINNED, "open")] == ["disagree"]
    assert ours.ledgers[PINNED].receipts == signed
    # The next session begins and goes on with all of them.
    ours.coordinator.finish()
    again(ours).round(2)
    assert {one.completed_rounds for one in ours.participants.values()} == {2}
    assert len(set(ours.states().values())) == 1


def test_it_takes_what_it_opened_itself_by_a_certificate_of_others_and_by_nothing_less(
    federation: Any,
) -> None:
    ours = federation("rlwe", sites=4, rules={"membership": "fixed"})
    ours.coordinator.start()
    earlier = alone(ours, PINNED)
    nudge(ours, 3)
    hand, receipts = opened_by_others(ours)
    mine = messages.Receipt.from_body(body_of(receipts["clinic"]))
    two = {site: receipts[site] for site in ("clinic", "hospital")}
    lies = dataclasses.replace(mine, model_tag=flipped(mine.model_tag))
    refused = [
        ({}, "disagree"),
        (two, "disagree"),
        # Its own key makes up for no other site, whoever had it sign.
        ({**two, PINNED: hand.signed_by(PINNED, mine)}, "disagree"),
        ({**receipts, PINNED: hand.signed_by(PINNED, mine)}, "disagree"),
        ({**two, PINNED: earlier}, "disagree"),
        ({**two, COLLUDER: hand.signed_by(COLLUDER, lies)}, "disagree"),
        ({**two, COLLUDER: flipped(receipts[COLLUDER])}, "signature"),
        ({**two, COLLUDER: receipts["clinic"]}, "signature"),
    ]
    with nothing_installed(ours, PINNED):
        for shown, code in refused:
            assert hand.refused(PINNED, messages.Install(shown))[0] == code
        assert ours.ledgers[PINNED].certified == {}
    hand.raw(PINNED, messages.Install(receipts))
    hand.raw("clinic", messages.Install(receipts))
    assert ours.states()[PINNED] == ours.states()["clinic"]
    assert ours.participants[PINNED].completed_rounds == 1
    # Once.
    assert hand.refused(PINNED, messages.Install(receipts))[0] == "repeated"


def test_it_takes_nothing_that_it_did_not_open(federation: Any) -> None:
    """What the others signed for is not the model: a site that could not open has none to take."""
    ours = pinned(federation)
    again(ours)
    hand = Hand(ours).ready()
    opening = openings(hand)
    receipts = {site: hand.raw(site, opening[site]) for site in OTHERS}
    with nothing_installed(ours, PINNED):
        assert hand.refused(PINNED, messages.Install(receipts))[0] == "repeated"
        assert hand.refused(PINNED, messages.Open({}, {}))[0] == "share"
        assert hand.refused(PINNED, messages.Install(receipts))[0] == "repeated"
    ended(hand, PINNED, opening[PINNED])
    assert ours.ledgers[PINNED].certified == {}


def test_a_restart_in_between_takes_the_sum_anew(federation: Any) -> None:
    """What was opened was in memory only. Nor does it help the site to have written down what it
    takes: the model is what the next session opens."""
    ours = pinned(federation)
    hand, receipts = opened_by_others(ours)
    site, store = ours.participants[PINNED], ours.stores[PINNED]

    def full(*_: Any) -> None:
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch, nothing_installed(ours, PINNED):
        patch.setattr(store, "save", full)
        command = ours.seal(messages.Install(receipts), hand.binding)
        with pytest.raises(OSError, match="no space"):
            site.handle("install", command)
    restart(ours, PINNED)
    assert hand.refused(PINNED, messages.Install(receipts))[0] == "context"
    size = (ours.folder / f"{PINNED}.ledger").stat().st_size
    assert again(ours).round(1).lost == {}
    assert len(set(ours.states().values())) == 1
    # It was written once, and the repeated session added no line.
    assert (ours.folder / f"{PINNED}.ledger").stat().st_size == size
    again(ours).round(2)
    assert len(set(ours.states().values())) == 1


def test_a_site_that_the_others_left_behind_catches_up_when_they_repeat_the_round(
    federation: Any,
) -> None:
    ours = pinned(federation)
    hand, receipts = opened_by_others(ours)
    for site in OTHERS:
        hand.raw(site, messages.Install(receipts))
    with pytest.raises(RoundFailed, match="stand at different rounds"):
        again(ours)
    for site in OTHERS:  # as `submit --resume` takes them back to what all have
        ours.participants[site] = ours.participant(site, ours.roster)
    nudge(ours, 3)
    assert again(ours).round(1).lost == {}
    again(ours).round(2)
    assert len(set(ours.states().values())) == 1


def test_there_is_no_second_certificate(federation: Any) -> None:
    """Of three receipts for another result, one at least is of an honest site that signed twice:
    more sites lie than the plan bears. What was taken stays taken."""
    ours = pinned(federation)
    hand, receipts = opened_by_others(ours)
    hand.raw(PINNED, messages.Install(receipts))
    before = ours.ledgers[PINNED].results(ours.plan.sha256())
    restart(ours, PINNED)
    for site in OTHERS:
        restart(ours, site)
        ours.participants[site]._line.sign_receipt = lambda *_: None
    nudge(ours, 9)
    ours.participants[PINNED] = ours.participant(PINNED, ours.roster)
    with nothing_installed(ours, PINNED):
        hand, receipts = opened_by_others(ours)
        code, why = hand.refused(PINNED, messages.Install(receipts))
    assert (code, "more sites lie than the plan's max_colluding" in why) == ("disagree", True)
    assert ours.ledgers[PINNED].results(ours.plan.sha256()) == before


def test_with_two_pinned_of_four_no_result_is_taken(federation: Any) -> None:
    """Two other receipts are no certificate: the run stops, and says who signed before."""
    ours = pinned(federation)
    again(ours)
    alone(ours, "clinic")
    nudge(ours, 5)
    again(ours)
    before = ours.states()
    with pytest.raises(
        RoundFailed, match=r"open: no answer from bank \(disagree\), clinic \(disagree\); 2 of 3"
    ):
        ours.coordinator.round(1)
    assert ours.states() == before
    assert all(not ledger.certified for ledger in ours.ledgers.values())


@pytest.mark.parametrize("scheme", ["plain", "rlwe"])
def test_three_sites_need_every_receipt(federation: Any, scheme: str) -> None:
    """With one that may collude, or without a threshold, two others are no certificate."""
    ours = federation(scheme).run(1)
    line = ours.participants[PINNED]._line
    line.sign_receipt(ROUND, 2, "d" * 64)
    with pytest.raises(RoundFailed, match=r"open: no answer from bank \(disagree\)"):
        ours.coordinator.round(2)
    receipts = {site: ours.wire.of(site, "open")[-1].reply for site in ours.names if site != PINNED}
    with nothing_installed(ours, PINNED):
        assert ours.refused(PINNED, messages.Install(receipts)) == "disagree"


def test_the_next_round_starts_from_what_was_taken_and_not_from_what_was_signed(
    federation: Any,
) -> None:
    """R7: the result that nobody else has is no result of the plan."""
    ours = pinned(federation)
    ledger, plan = ours.ledgers[PINNED], ours.plan.sha256()
    signed = ledger.receipts[plan, ROUND, 1].result
    assert ledger.results(plan) == {signed}
    again(ours).round(1)
    assert ledger.results(plan) == {ours.participants[PINNED]._model.standing()}
    assert signed not in ledger.results(plan)


def test_a_tally_of_another_total_is_taken_by_certificate_too(federation: Any) -> None:
    """The colluder tells another count in each session; one honest site alone opened the first."""
    ours = federation("rlwe", sites=4, weights="private", rules={"membership": "fixed"})
    with pytest.MonkeyPatch.context() as patch:
        for site in OTHERS:
            patch.setitem(ours.participants[site]._commands, "open", _refuses)
        with pytest.raises(RoundFailed, match="open: no answer from"):
            ours.coordinator.start()
    assert len(ours.ledgers[PINNED].receipts) == 1
    ours.works[COLLUDER].num_examples += 1000
    line = ours.participants[COLLUDER]._line
    line.enter = line.check = lambda **_: None
    again(ours).round(1)
    assert len(set(ours.states().values())) == 1
    assert [one.code for one in ours.wire.of(PINNED, "open")] == ["", "disagree", ""]


def _refuses(_: bytes) -> messages.Message:
    raise RuntimeError("cut off")
