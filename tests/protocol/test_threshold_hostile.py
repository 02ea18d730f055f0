"""A coordinator that does not follow the protocol, with at most c sites on its side: what the
honest sites refuse, with which code, and that nothing is opened or installed by it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from threshold_attack import Attacker
from threshold_kit import (
    FOUR,
    REST,
    Hand,
    body_of,
    flipped,
    nothing_installed,
    rejected,
    restart,
    started,
    with_scheme,
)

from fedshield.crypto import shares as sharing
from fedshield.crypto.keys import SigningKey
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import envelope, messages

VICTIM, COLLUDER = "clinic", "surgery"

pytestmark = pytest.mark.usefixtures("unsynced")


# -- two stories ----------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_a_set_below_the_cohort(five: Hand, size: int) -> None:
    """Also the victim with the tolerated colluders; who is left out is named."""
    names = (COLLUDER, VICTIM, "bank")[:size]
    announce = five.announcement(names, five.aggregate(five.sites))
    with nothing_installed(five.federation):
        for site in five.sites:
            code, text = five.refused(site, announce)
            assert code == "cohort"
            assert "expected a sum over at least 4 sites, it leaves out" in text
            assert "hospital, lab" in text
            assert five.refused(site, messages.Quorum({}))[0] == "repeated"


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


# -- votes ----------------------------------------------------------------------------------


def test_votes_that_do_not_count(four: Hand) -> None:
    """Forged, from another sum, from strangers, repeated under another name, too few: no answer
    leaves, and the right votes are still good afterwards."""
    ours = four.federation
    blocks = four.aggregate(FOUR)
    votes = four.vote_on(FOUR, FOUR, blocks)
    two = {name: votes[name] for name in ("bank", "lab")}
    vote = messages.Vote.from_body(body_of(votes["bank"]))
    stranger = SigningKey()

    def signed(sender: str, sign: Any, binding: Any = four.binding) -> bytes:
        return envelope.seal("vote", binding, sender, vote.to_body(), sign)

    bad: list[tuple[dict[str, bytes], str]] = [
        ({"hospital": signed("hospital", stranger.sign)}, "signature"),
        ({"hospital": signed("hospital", ours.server.sign)}, "signature"),
        ({"hospital": votes["lab"]}, "signature"),
        ({"hospital": votes["hospital"][:-1]}, "signature"),
        ({"hospital": b""}, "size"),
        ({"hospital": signed("lab", ours.keys["hospital"].sign)}, "sender"),
        ({"hospital": signed("hospital", ours.keys["hospital"].sign, four.session)}, "context"),
        ({"surgery": signed("surgery", stranger.sign)}, "sender"),
        ({"stranger": signed("stranger", stranger.sign)}, "sender"),
        ({}, "vote"),
    ]
    with nothing_installed(ours):
        for extra, code in bad:
            assert four.refused(VICTIM, messages.Quorum(two | extra))[0] == code
        text = four.refused(VICTIM, messages.Quorum(two))[1]
        assert "expected 3 matching votes, got 2" in text
        text = four.refused(VICTIM, messages.Quorum(two | {"stranger": b"x" * 80}))[1]
        assert "'stranger' is not in the roster" in text
    answer = four.answers(votes, VICTIM)[VICTIM]
    assert set(answer["boxes"]) == set(REST)


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


def test_out_of_order(federation: Any) -> None:
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


# -- other modes ----------------------------------------------------------------------------


def test_opening_to_the_server(federation: Any, tmp_path: Path) -> None:
    """The shares of the sum travel in the clear; what the sites open is checked as ever."""
    ours = with_scheme(federation("rlwe", sites=4), tmp_path, open_to="server").run(1)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    hand = Hand(ours, 2).ready()
    blocks = hand.aggregate(FOUR)
    answers = hand.answers(hand.vote_on(FOUR, FOUR, blocks))
    secrets = [ours.participants[site]._sum._sealed.secret for site in FOUR]
    current = ours.participants["bank"]._sum
    shape = current._shape(current._layout)
    for three in itertools.combinations(FOUR, 3):
        shares = {
            ours.roster.index(one): sharing.from_bytes(answers[one]["share"], shape)
            for one in three
        }
        assert (sharing.open_sum(shares, shape, 4).key_sum == sum(secrets)).all()
    assert all(answer["boxes"] == {} for answer in answers.values())
    # Nor can the server change one in the clear: its holder signed a tag of it.
    hand.deliver("bank", blocks)
    opening = hand.opening("bank", answers)
    wrong = {"clinic": flipped(answers["clinic"]["share"], 0)}
    hand.raw("bank", messages.Open(opening.answers | wrong, opening.tags))
    assert current.faulty == {"clinic": "tag"}
    with nothing_installed(ours):
        hand.deliver("clinic", blocks)
        opening = hand.opening("clinic", answers)
        wrong = {"bank": answers["bank"]["share"][:-1], "lab": b"\xff" * 8192}
        code, text = hand.refused("clinic", messages.Open(opening.answers | wrong, opening.tags))
        assert code == "share"
        for name in ("bank", "lab"):
            assert f"the answer of {name} cannot be read" in text


@pytest.mark.parametrize("lying", [False, True], ids=["server alone", "holder lies"])
@pytest.mark.parametrize("slot", range(5))
def test_answers_that_the_server_shifts(
    federation: Any, tmp_path: Path, slot: int, lying: bool
) -> None:
    """In the clear, and no more of them than needed: to another number of contributors, total
    weight, loss or tag. The holder's signed tag finds it; where the holder lies too, the tags of
    the sum do, as long as it does not forge them as well."""
    ours = with_scheme(federation("rlwe", sites=4), tmp_path, open_to="server")
    ours.coordinator.start()
    hand = Hand(ours).ready()
    current = ours.participants["bank"]._sum
    shape, q = current._shape(current._layout), current._cipher.parameters.q
    assert shape.num_residues == 5
    blocks = hand.aggregate(FOUR)
    answers = hand.answers(hand.vote_on(FOUR, FOUR, blocks))
    share = sharing.from_bytes(answers["clinic"]["share"], shape)
    residues = list(share.residues)
    # What adds one to the opened sum: bank, clinic and hospital stand at 1, 2 and 3.
    residues[slot] = (residues[slot] - pow(3, -1, q)) % q
    wrong = sharing.to_bytes(replace(share, residues=tuple(residues)))
    given = {
        index: sharing.from_bytes(raw, shape)
        for index, raw in enumerate((answers["bank"]["share"], wrong, answers["hospital"]["share"]))
    }
    right = sharing.open_sum({**given, 1: share}, shape, 4).residues
    assert sharing.open_sum(given, shape, 4).residues[slot] == (right[slot] + 1) % q
    hand.deliver("bank", blocks)
    tags = {name: answers[name]["tag"] for name in ("clinic", "hospital")}
    opening = {"clinic": wrong, "hospital": answers["hospital"]["share"]}
    if lying:
        tags["clinic"] = hand.signed_by("clinic", messages.AnswerTag(current._answer_tag(wrong)))
    with nothing_installed(ours):
        code, text = hand.refused("bank", messages.Open(opening, tags))
    assert code == ("tag" if lying else "share")
    assert ("clinic is not the one that it signed for all sites" in text) == (not lying)


@pytest.mark.parametrize("sites", [3, 4, 5])
def test_a_semi_honest_server(federation: Any, tmp_path: Path, sites: int) -> None:
    """No votes are asked for; everything else is as it was."""
    made = federation("rlwe", sites=sites)
    ours = with_scheme(made, tmp_path, server="semi-honest", min_cohort=3)
    rules = ours.roster.rules
    assert (rules.threshold, rules.votes, rules.min_cohort) == (2, 0, 3)
    ours.coordinator.start()
    hand = Hand(ours).ready()
    for site in ours.names:
        assert hand.refused(site, hand.announcement(ours.names[:2]))[0] == "cohort"
    blocks = hand.aggregate(ours.names)
    votes = hand.vote_on(ours.names, ours.names, blocks)
    assert hand.refused(VICTIM, hand.announcement(ours.names))[0] == "repeated"
    answers = hand.answers({}, *ours.names[: rules.certificate])
    assert hand.refused(VICTIM, messages.Quorum(votes))[0] == "repeated"
    hand.open_all(blocks, answers, sites=ours.names[: rules.certificate])
    assert ours.participants[VICTIM].completed_rounds == 1


# -- plan and roster ------------------------------------------------------------------------


def invited(ours: Any, plan: bytes, roster: bytes) -> str:
    zero = envelope.Binding(bytes(32), 0, "setup")
    body = messages.Invite(b"session", plan, roster).to_body()
    command = envelope.seal("invite", zero, COORDINATOR, body, ours.server.sign)
    with pytest.raises(ProtocolError) as caught:
        ours.participants[VICTIM].handle("invite", command)
    return f"{caught.value.code}: {'plan' if 'plan' in str(caught.value) else 'roster'}"


DOWNGRADES = [
    (b'"bits":16', b'"bits":8'),
    (b'"name":"rlwe"', b'"name":"plain"'),
    (b'"threshold":null', b'"threshold":2'),
    (b'"votes":null', b'"votes":0'),
    (b'"max_colluding":null', b'"max_colluding":0'),
    (b'"server":"malicious"', b'"server":"semi-honest"'),
    (b'"open_to":"peers"', b'"open_to":"server"'),
]


def test_a_plan_or_roster_that_was_changed(federation: Any) -> None:
    """Any change, however well signed: refused, and the session under way is untouched."""
    ours = started(federation)
    plan, roster = ours.plan.canonical(), ours.roster
    for old, new in DOWNGRADES:
        assert plan.count(old) == 1
        assert invited(ours, plan.replace(old, new), roster.encode()) == "context: plan"
    assert invited(ours, plan + b" ", roster.encode()) == "context: plan"
    assert invited(ours, b"", roster.encode()) == "context: plan"
    kind = type(roster)
    stranger = SigningKey().public
    fewer = {name: key for name, key in roster.sites.items() if name != "lab"}
    weak = type(roster.rules)(4, 1, 2, 2, 3)
    for changed in (
        kind(roster.sites | {"lab": stranger}, roster.coordinator, roster.rules, True),
        kind(roster.sites | {"zoo": stranger}, roster.coordinator, roster.rules, True),
        kind(fewer, roster.coordinator, roster.rules, True),
        kind(roster.sites, stranger, roster.rules, True),
        kind(roster.sites, roster.coordinator, weak, True),
        kind(roster.sites, roster.coordinator, roster.rules, False),
        kind(roster.sites, roster.coordinator, roster.rules, True, b"x" * 32),
    ):
        assert invited(ours, plan, changed.encode()) == "context: roster"
    raw = roster.encode()
    first, second = (roster.sites[name] for name in ("bank", "clinic"))
    swapped = raw.replace(first, b"\0" * 32).replace(second, first).replace(b"\0" * 32, second)
    assert swapped != raw
    assert invited(ours, plan, swapped) == "context: roster"
    assert invited(ours, plan, raw[:-1]) == "context: roster"
    ours.coordinator.round(1)
    # Nor does a site begin with quorums that are not its plan's.
    with pytest.raises(ProtocolError, match=r"^context: the roster's quorums are not the plan's"):
        ours.participant("lab", kind(roster.sites, roster.coordinator, weak, True))
    with pytest.raises(ProtocolError, match=r"^sender: no site may be named 'coordinator'"):
        kind({"coordinator": stranger}, roster.coordinator, roster.rules, True)


def test_a_coordinator_with_another_plan_gets_no_session(federation: Any) -> None:
    ours = federation("rlwe", sites=4, weights="equal")
    theirs = federation("rlwe", sites=4, weights="equal", encoding={"bits": 8})
    ours.coordinator = type(ours.coordinator)(theirs.plan, ours.roster, ours.wire, ours.server.sign)
    with pytest.raises(RoundFailed, match=r"^invite: no answer from bank \(context\), clinic"):
        ours.coordinator.start()
    assert not any(isinstance(error, CryptoError) for error in ours.wire.errors.values())
