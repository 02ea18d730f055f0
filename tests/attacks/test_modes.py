"""Sums that are opened to the server, and a server that is semi-honest."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from by_hand import VICTIM
from hand import FOUR, Hand, flipped, nothing_installed, with_scheme

from fedshield.crypto import shares as sharing
from fedshield.protocol.wire import messages


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
