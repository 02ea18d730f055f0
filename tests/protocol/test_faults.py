"""Sites that are lost, at every moment of a session: it goes on exactly as long as the quorums
hold, and the sum is exactly that of the uploads that are left; else all keep the model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hand import failing, lose, nothing_installed, standing
from next_session import BAD, SCHEMES, goes_on

from fedshield.errors import RoundFailed
from fedshield.update.encode_grid import round_count

# -- with the whole roster needed, any loss ends the round ------------------------------------


def unreachable(federation: Any, site: str, method: str) -> None:
    """From now on this message does not reach this site."""

    def to_site(name: str, kind: str, data: bytes) -> bytes:
        return b"" if (name, kind) == (site, method) else data

    federation.wire.to_site = to_site


@SCHEMES
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (RoundFailed("out of memory"), "training"),
        (ValueError("patient 4711 has a bad row"), "internal"),
        (np.full(550, np.nan), "crypto"),
        (np.full(550, np.inf), "crypto"),
    ],
    ids=["RoundFailed", "ValueError", "NaN", "infinity"],
)
def test_a_site_that_fails_in_training(federation: Any, scheme: str, fault: Any, code: str) -> None:
    """Its code crosses, its text does not; every site keeps its state; a new session goes on."""
    ours = federation(scheme).run(1)
    before = ours.states()
    memories = {name: one.memory for name, one in ours.participants.items()}
    ours.works[BAD].fault = fault
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(2)
    assert str(caught.value) == (
        f"work: no answer from clinic ({code}); the model of the last round is kept"
    )
    assert ours.coordinator.lost == {BAD: f"work: {code}"}
    assert ours.states() == before
    assert {one.completed_rounds for one in ours.participants.values()} == {1}
    assert all(set(store.saved) == {1} for store in ours.stores.values())
    assert all(one.memory is memories[name] for name, one in ours.participants.items())
    goes_on(ours, 2)


def test_a_training_loss_that_is_no_number_is_refused(federation: Any) -> None:
    """It would travel in the sum, and spoil every site's."""
    ours = federation("rlwe").run(1)
    real = ours.works[BAD].train
    ours.works[BAD].train = lambda state, number, *_: (real(state, number)[0], float("nan"))
    with pytest.raises(RoundFailed, match=r"work: no answer from clinic \(crypto\)"):
        ours.coordinator.round(2)
    ours.works[BAD].train = real
    goes_on(ours, 2)


SET_UP = ["invite", "begin", "make-key", "take-key", "prepare", "work"]


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        *((scheme, method) for scheme in ("plain", "ckks", "rlwe") for method in SET_UP),
        *((scheme, "fetch") for scheme in ("plain", "ckks")),
        *((scheme, "evaluate") for scheme in ("plain", "ckks")),
        *((scheme, method) for scheme in ("plain", "ckks") for method in ("announce", "quorum")),
        *((scheme, method) for scheme in ("plain", "ckks") for method in ("deliver", "open")),
        ("rlwe", "fetch-shares"),
    ],
)
def test_a_site_that_is_gone_during_set_up(federation: Any, scheme: str, method: str) -> None:
    """Weights are summed in it, so a set-up has every message that a round has; but for blocks
    under rlwe, where counts travel in shares alone."""
    ours = federation(scheme, weights="private")
    before = ours.states()
    gone = "bank" if method == "make-key" else BAD
    unreachable(ours, gone, method)
    with pytest.raises(RoundFailed, match=f"{method}: no answer from {gone} .size."):
        ours.coordinator.start()
    assert ours.states() == before
    ours.wire.to_site = lambda site, name, data: data
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    ours.coordinator.round(1)
    ours.state()
    assert ours.coordinator.lost == {}


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        *((scheme, "prepare") for scheme in ("plain", "ckks", "rlwe")),
        *((scheme, "work") for scheme in ("plain", "ckks", "rlwe")),
        *((scheme, "fetch") for scheme in ("plain", "ckks", "rlwe")),
        *((scheme, method) for scheme in ("plain", "ckks") for method in ("announce", "quorum")),
        *((scheme, "deliver") for scheme in ("plain", "ckks")),
        ("rlwe", "fetch-shares"),
    ],
)
def test_a_site_that_is_gone_during_a_round(federation: Any, scheme: str, method: str) -> None:
    ours = federation(scheme).run(1)
    before = ours.states()
    unreachable(ours, BAD, method)
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(2)
    assert str(caught.value) == (
        f"{method}: no answer from clinic (size); the model of the last round is kept"
    )
    assert ours.states() == before
    goes_on(ours, 2)


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_a_site_that_is_gone_when_the_sum_is_opened(federation: Any, scheme: str) -> None:
    """Of three sites all must have opened it: no site takes the sum, and the next session repeats
    it with the same numbers."""
    ours = federation(scheme).run(1)
    before = ours.states()
    unreachable(ours, BAD, "open")
    with pytest.raises(RoundFailed, match="open: no answer from clinic"):
        ours.coordinator.round(2)
    assert ours.states() == before
    sent = {name: ours.stores[name].contribution for name in ours.names}
    goes_on(ours, 2)
    assert {name: ours.stores[name].contribution for name in ours.names} == sent


@SCHEMES
def test_a_site_that_is_gone_when_the_sum_is_taken(federation: Any, scheme: str) -> None:
    """The others have taken it: they stand a round further, and the next session says so. The
    engine then takes all back to the last round that every site has kept."""
    ours = federation(scheme).run(1)
    before = ours.states()
    unreachable(ours, BAD, "install")
    if scheme == "rlwe":
        assert set(ours.coordinator.round(2).lost) == {BAD}
    else:
        with pytest.raises(RoundFailed, match="install: no answer from clinic"):
            ours.coordinator.round(2)
    assert ours.states()[BAD] == before[BAD]
    assert {name: one.completed_rounds for name, one in ours.participants.items()} == {
        "bank": 2,
        BAD: 1,
        "hospital": 2,
    }
    with pytest.raises(RoundFailed) as caught:
        ours.another_coordinator().start()
    assert str(caught.value) == (
        "the sites stand at different rounds (bank 2, clinic 1, hospital 2) and no 3 of them at "
        "the same; take them back to a round that enough of them have kept"
    )
    for name in ("bank", "hospital"):
        store = ours.stores[name]
        ours.participants[name] = ours.participant(
            name, ours.roster, store.saved[1], 1, store.memories[1]
        )
    goes_on(ours, 2)


@SCHEMES
def test_a_state_that_cannot_be_kept_is_not_taken(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(1)
    before, memory = ours.states(), ours.participants[BAD].memory

    def full(completed_rounds: int, state: Any, memory: Any) -> None:
        raise OSError("no space left on device")

    ours.stores[BAD].save = full
    if scheme == "rlwe":  # one site that has taken the sum is enough for it not to be lost
        assert ours.coordinator.round(2).lost == {BAD: "install: internal"}
    else:
        with pytest.raises(RoundFailed, match=r"install: no answer from clinic \(internal\)"):
            ours.coordinator.round(2)
    one = ours.participants[BAD]
    assert ours.states()[BAD] == before[BAD] != ours.states()["bank"]
    assert (one.completed_rounds, one.memory) == (1, memory)


@SCHEMES
def test_a_coordinator_can_start_again(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(1)
    ours.coordinator.start()
    ours.coordinator.round(2)
    assert ours.coordinator.completed_rounds == 2


# -- with a threshold, it goes on without a site ----------------------------------------------


#: The messages of a round in the order in which the coordinator sends them.
METHODS = (
    "prepare", "work", "fetch-shares", "hold", "fetch",
    "announce", "quorum", "deliver", "open", "install", "evaluate",
)  # fmt: skip
#: Up to here a lost site's upload is lost with it.
BEFORE_VOTE = METHODS[:5]


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
    before = ours.participants[BAD].state
    stood = standing(ours, BAD)
    outcome, found = lose(ours, 1, {BAD: (method, when)}, network)
    assert found == set(ours.names) - ({BAD} if method in BEFORE_VOTE else set())
    assert set(outcome.lost) == {BAD}
    # A site that took no shares is missed when its blocks are asked for, at the latest.
    assert re.fullmatch(f"({method}{'|fetch' * (method == 'hold')}): no answer", outcome.lost[BAD])
    expect_mean(ours, before, found, weights == "equal", 1)
    if not (method == "evaluate" or (method == "install" and when == "after")):
        assert standing(ours, BAD) == stood
    # Those who are left go on, exactly, without it.
    outcome, found = lose(ours, 2, {}, network)
    assert found == set(ours.names) - {BAD}
    assert outcome.lost == {}
    assert ours.coordinator.active == [name for name in ours.names if name != BAD]


@pytest.mark.parametrize(("when", "weights"), [("before", "private"), ("after", "equal")])
@pytest.mark.parametrize("method", METHODS)
def test_one_of_three_lost(federation: Any, method: str, when: str, weights: str) -> None:
    """Three sites, of which all must contribute and all must have opened the same: the round waits
    for one that is lost before that, and no site takes the sum."""
    ours = federation("rlwe", sites=3, weights=weights)
    network = failing(ours)
    ours.coordinator.start()
    before = ours.participants[BAD].state
    network.moments = {BAD: (method, when)}
    if method in ("install", "evaluate"):
        _, found = lose(ours, 1, {BAD: (method, when)}, network)
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
    network = failing(ours, {BAD: (method, "before")})
    ours.coordinator.start()
    assert ours.coordinator.lost == {BAD: f"{method}: no answer"}
    before = ours.participants["bank"].state
    in_total = set(ours.names) - ({BAD} if method == "work" else set())
    total = sum(round_count(ours.works[name].num_examples) for name in in_total)
    assert ours.participants["bank"]._weight == 41 / total
    _, found = lose(ours, 1, {}, network)
    assert found == set(ours.names) - {BAD}
    expect_mean(ours, before, found, False, 1)


def test_a_remaining_weight_below_a_quarter_is_not_taken(federation: Any) -> None:
    """The one big site is lost after the weights were summed: what is left says too little."""
    ours = federation("rlwe", sites=4, weights="private")
    for name, count in zip(ours.names, (10, 2000, 15, 20), strict=True):
        ours.works[name].num_examples = count
    network = failing(ours)
    ours.coordinator.start()
    network.moments = {BAD: ("work", "before")}
    with (
        nothing_installed(ours),
        pytest.raises(RoundFailed, match=r"^open: no answer from bank \(weight\), .*model .* kept"),
    ):
        ours.coordinator.round(1)


@pytest.mark.parametrize("weights", ["equal", "private"])
def test_a_failed_round_is_repeated_without_a_site_with_membership_open(
    federation: Any, weights: str
) -> None:
    """Nobody voted: the others send what they trained once again, weighted over those that are
    left: the mean is right, and no row's privacy is spent twice."""
    ours = federation("rlwe", sites=4, weights=weights)
    network = failing(ours)
    ours.coordinator.start()
    network.moments = dict.fromkeys((BAD, "lab"), ("fetch", "before"))
    with nothing_installed(ours), pytest.raises(RoundFailed, match="no answer from"):
        ours.coordinator.round(1)
    before = ours.participants[BAD].state
    network = failing(ours)
    network.gone.add(BAD)
    ours.coordinator.start()
    outcome = ours.coordinator.round(1)
    assert outcome.contributors == ("bank", "hospital", "lab")
    expect_mean(ours, before, set(outcome.contributors), weights == "equal", 1)
    assert ours.works["bank"].trained_rounds == [1]
    assert ours.participants["bank"].spent.uploads == 1


# -- as many as can be lost, and one more -----------------------------------------------------


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
