"""Sites lost at every moment of a threshold sum: it goes on exactly as long as the quorums hold,
and the sum is exactly that of the uploads that are left; else the model is kept everywhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from threshold_kit import failing, lose, nothing_installed, standing

from fedshield.errors import RoundFailed
from fedshield.update.encode_grid import round_count

GONE = "clinic"
#: The messages of a round in the order in which the coordinator sends them.
METHODS = (
    "prepare", "work", "fetch-shares", "hold", "fetch",
    "announce", "quorum", "deliver", "open", "install", "evaluate",
)  # fmt: skip
#: Up to here a lost site's upload is lost with it.
BEFORE_VOTE = METHODS[:5]

pytestmark = pytest.mark.usefixtures("unsynced")


def expect_mean(ours: Any, before: Any, contributors: set[str], equal: bool, number: int) -> None:
    """The same from what the sites trained, independent of the encoding: weights of those who
    contributed, scaled up to one."""
    counts = {
        name: 1 if equal else round_count(ours.works[name].num_examples) for name in contributors
    }
    total = sum(counts.values())
    mean = sum(
        counts[name] / total * ours.trained(name, before, number).astype(np.float64)
        for name in contributors
    )
    alive = max(ours.participants.values(), key=lambda one: one.completed_rounds)
    # Each site is at most one step of the sum away, and the total weight is at least a quarter.
    step = 5.0 / 32767
    np.testing.assert_allclose(
        alive.state.values, mean, atol=4 * step * len(contributors), rtol=1e-6
    )


CASES = [
    *((4, method, "after", "private") for method in METHODS),
    *((4, method, "before", "equal") for method in METHODS),
    *((5, method, "before", "private") for method in ("work", "fetch", "announce", "quorum")),
]


@pytest.mark.parametrize(("sites", "method", "when", "weights"), CASES)
def test_one_site_lost(federation: Any, sites: int, method: str, when: str, weights: str) -> None:
    """At any moment, with one site to spare: the round completes, over the uploads that came."""
    ours = federation("rlwe", sites=sites, weights=weights)
    network = failing(ours)
    ours.coordinator.start()
    before = ours.participants[GONE].state
    stood = standing(ours, GONE)
    outcome, found = lose(ours, 1, {GONE: (method, when)}, network)
    assert found == set(ours.names) - ({GONE} if method in BEFORE_VOTE else set())
    assert set(outcome.lost) == {GONE}
    # A site that took no shares is missed when its blocks are asked for, at the latest.
    assert re.fullmatch(f"({method}{'|fetch' * (method == 'hold')}): no answer", outcome.lost[GONE])
    expect_mean(ours, before, found, weights == "equal", 1)
    if not (method == "evaluate" or (method == "install" and when == "after")):
        assert standing(ours, GONE) == stood
    # Those who are left go on, exactly, without it.
    outcome, found = lose(ours, 2, {}, network)
    assert found == set(ours.names) - {GONE}
    assert outcome.lost == {}
    assert ours.coordinator.active == [name for name in ours.names if name != GONE]


@pytest.mark.parametrize(("when", "weights"), [("before", "private"), ("after", "equal")])
@pytest.mark.parametrize("method", METHODS)
def test_one_of_three_lost(federation: Any, method: str, when: str, weights: str) -> None:
    """Three sites, of which all must contribute and all must have opened the same: the round waits
    for one that is lost before that, and no site takes the sum."""
    ours = federation("rlwe", sites=3, weights=weights)
    network = failing(ours)
    ours.coordinator.start()
    before = ours.participants[GONE].state
    network.moments = {GONE: (method, when)}
    if method in ("install", "evaluate"):
        _, found = lose(ours, 1, {GONE: (method, when)}, network)
        assert found == set(ours.names)
        expect_mean(ours, before, found, weights == "equal", 1)
        text = r"^prepare: no answer from clinic \(no answer\)"
        with nothing_installed(ours), pytest.raises(RoundFailed, match=text):
            ours.coordinator.round(2)
        return
    noticed = f"({method}|fetch|deliver|open)"
    text = rf"^{noticed}: no answer from clinic \(no answer\).*; the model of .* is kept$"
    with nothing_installed(ours), pytest.raises(RoundFailed, match=text):
        ours.coordinator.round(1)


@pytest.mark.parametrize("method", ["work", "announce", "open"])
def test_a_site_lost_while_weights_are_summed(federation: Any, method: str) -> None:
    """The rounds' weights are shares of what was summed, and the mean is still a mean."""
    ours = federation("rlwe", sites=4, weights="private")
    network = failing(ours, {GONE: (method, "before")})
    ours.coordinator.start()
    assert ours.coordinator.lost == {GONE: f"{method}: no answer"}
    before = ours.participants["bank"].state
    in_total = set(ours.names) - ({GONE} if method == "work" else set())
    total = sum(round_count(ours.works[name].num_examples) for name in in_total)
    assert ours.participants["bank"]._weight == 41 / total
    _, found = lose(ours, 1, {}, network)
    assert found == set(ours.names) - {GONE}
    expect_mean(ours, before, found, False, 1)


def test_a_remaining_weight_below_a_quarter_is_not_taken(federation: Any) -> None:
    """The one big site is lost after the weights were summed: what is left says too little."""
    ours = federation("rlwe", sites=4, weights="private")
    for name, count in zip(ours.names, (10, 2000, 15, 20), strict=True):
        ours.works[name].num_examples = count
    network = failing(ours)
    ours.coordinator.start()
    network.moments = {GONE: ("work", "before")}
    with (
        nothing_installed(ours),
        pytest.raises(RoundFailed, match=r"^open: no answer from bank \(weight\), .*model .* kept"),
    ):
        ours.coordinator.round(1)


# -- as many as can be lost, and one more ---------------------------------------------------


MOST = [
    *((7, 2, method) for method in ("prepare", "fetch", "announce", "quorum")),
    (16, 5, "fetch"),
    (16, 5, "quorum"),
]


@pytest.mark.parametrize(("sites", "spare", "method"), MOST)
def test_as_many_losses_as_the_quorums_allow(
    federation: Any, sites: int, spare: int, method: str
) -> None:
    ours = federation("rlwe", sites=sites, weights="equal")
    rules = ours.roster.rules
    assert sites - max(rules.min_cohort, rules.threshold, rules.votes) == spare
    network = failing(ours)
    ours.coordinator.start()
    gone = ours.names[1 : 1 + spare]
    _, found = lose(ours, 1, dict.fromkeys(gone, (method, "before")), network)
    assert found == set(ours.names) - (set(gone) if method in BEFORE_VOTE else set())
    assert set(ours.coordinator.lost) == set(gone)


TOO_MANY = [
    *((sites, spare, method) for sites, spare in ((4, 1), (5, 1)) for method in ("work", "quorum")),
    *((3, int(method != "work"), method) for method in ("work", "announce", "quorum")),
    (7, 2, "announce"),
    (16, 5, "work"),
    (16, 5, "announce"),
]


@pytest.mark.parametrize(("sites", "spare", "method"), TOO_MANY)
def test_one_more_is_too_many(federation: Any, sites: int, spare: int, method: str) -> None:
    ours = federation("rlwe", sites=sites, weights="equal")
    network = failing(ours)
    ours.coordinator.start()
    gone = ours.names[1 : 2 + spare]
    network.moments = dict.fromkeys(gone, (method, "before"))
    rules = ours.roster.rules
    need = {
        "work": rules.min_cohort,
        "announce": max(rules.threshold, rules.votes),
        "quorum": rules.threshold,
    }[method]
    named = ", ".join(f"{name} (no answer)" for name in gone)
    left = "" if need == sites else f"; {sites - len(gone)} of {need} needed are left"
    text = f"{method}: no answer from {named}{left}; the model of the last round is kept"
    with nothing_installed(ours), pytest.raises(RoundFailed, match=f"^{re.escape(text)}$"):
        ours.coordinator.round(1)


def test_as_many_as_a_certificate_spares_may_be_lost_after_the_answers(
    federation: Any,
) -> None:
    """As many sites as make a certificate must open the sum; one fewer is too few, and no site
    takes it."""
    ours = federation("rlwe", sites=5, weights="equal")
    network = failing(ours)
    ours.coordinator.start()
    spare = ours.plan.rules().num_sites - ours.plan.rules().certificate
    assert spare == 1
    _, found = lose(ours, 1, dict.fromkeys(ours.names[-spare:], ("deliver", "before")), network)
    assert found == set(ours.names)
    again = federation("rlwe", sites=5, weights="equal")
    network = failing(again)
    again.coordinator.start()
    network.moments = dict.fromkeys(again.names[: spare + 1], ("open", "before"))
    with nothing_installed(again), pytest.raises(RoundFailed, match=r"^open: no answer from bank"):
        again.coordinator.round(1)


@pytest.mark.parametrize("weights", ["equal", "private"])
def test_a_failed_round_is_repeated_without_a_site_with_membership_open(
    federation: Any, weights: str
) -> None:
    """Nobody voted: the others send what they trained once again, weighted over those that are
    left: the mean is right, and no row's privacy is spent twice."""
    ours = federation("rlwe", sites=4, weights=weights)
    network = failing(ours)
    ours.coordinator.start()
    network.moments = dict.fromkeys((GONE, "lab"), ("fetch", "before"))
    with nothing_installed(ours), pytest.raises(RoundFailed, match="no answer from"):
        ours.coordinator.round(1)
    before = ours.participants[GONE].state
    network = failing(ours)
    network.gone.add(GONE)
    ours.coordinator.start()
    outcome = ours.coordinator.round(1)
    assert outcome.contributors == ("bank", "hospital", "lab")
    expect_mean(ours, before, set(outcome.contributors), weights == "equal", 1)
    assert ours.works["bank"].trained_rounds == [1]
    assert ours.participants["bank"].spent.uploads == 1
