"""Membership batches: a batch that is away sits out, the others go on, and it comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand import failing, mean_of, record, restart

from fedshield.errors import RoundFailed

#: Six sites by name, c = 1: two batches of three.
FIRST, SECOND = ("bank", "clinic", "hospital"), ("lab", "surgery", "ward-00")
BATCHES = {"membership": "batches"}


@pytest.fixture(params=["equal", "private", "public"])
def six(request: pytest.FixtureRequest, federation: Any) -> Any:
    """All sites were in a session once, so that they are weighed."""
    six = federation("rlwe", sites=6, weights=request.param, rules=BATCHES)
    six.coordinator.start()
    return six


def again(ours: Any) -> Any:
    """Another process of the coordinator, and every site is there."""
    ours.coordinator = ours.another_coordinator()
    return ours.coordinator


def share(ours: Any, sites: tuple[str, ...]) -> float:
    """Of all rows, as they are told; or of all sites."""
    counts = dict.fromkeys(ours.names, 1)
    if ours.plan.scheme.weights != "equal":
        counts = {name: ours.participants[name]._model.num_examples for name in ours.names}
    return sum(counts[name] for name in sites) / sum(counts.values())


def rounds_of(ours: Any, *names: str) -> set[int]:
    return {ours.participants[name].completed_rounds for name in names}


def test_one_batch_is_away_for_a_round_and_takes_the_model_when_it_is_back(six: Any) -> None:
    sites = failing(six, {"surgery": ("invite", "before")})
    six.coordinator.start()
    assert six.coordinator.active == list(FIRST)
    assert six.coordinator.lost == {
        "surgery": "invite: no answer",
        "lab": "invite: its batch (lab, surgery, ward-00) sits out until surgery is back",
        "ward-00": "invite: its batch (lab, surgery, ward-00) sits out until surgery is back",
    }
    before, clip = six.participants["bank"].state, six.participants["bank"].memory.clip
    made = record(six)
    outcome = six.coordinator.round(1)
    assert outcome.contributors == FIRST
    assert set(made) == {(name, 1) for name in FIRST}
    mean, weight = mean_of(six, before, clip, [made[name, 1] for name in FIRST])
    assert weight == pytest.approx(share(six, FIRST), abs=1e-6)
    for name in FIRST:
        np.testing.assert_array_equal(six.participants[name].state.values, mean)
    assert rounds_of(six, *SECOND) == {0}
    six.coordinator.finish()

    sites.gone.clear()
    sites.moments.clear()
    coordinator = again(six)
    coordinator.start()
    assert coordinator.lost == {}
    assert coordinator.completed_rounds == 1
    for name in SECOND:
        np.testing.assert_array_equal(six.participants[name].state.values, mean)
        np.testing.assert_array_equal(six.stores[name].saved[1].values, mean)
    assert coordinator.round(2).contributors == FIRST + SECOND
    assert rounds_of(six, *six.names) == {2}
    six.state()
    coordinator.finish()


@pytest.mark.parametrize("at", ["prepare", "train"])
def test_a_site_lost_before_its_upload_parks_its_batch_only(six: Any, at: str) -> None:
    """Nobody has written a row yet, so that nobody is bound to the set."""
    sites = failing(six)
    six.coordinator.start()
    sites.moments["clinic"] = (at, "before")
    outcome = six.coordinator.round(1)
    assert outcome.contributors == SECOND
    assert outcome.lost == six.coordinator.lost
    assert six.coordinator.lost == {
        "clinic": f"{at}: no answer",
        "bank": "invite: its batch (bank, clinic, hospital) sits out until clinic is back",
        "hospital": "invite: its batch (bank, clinic, hospital) sits out until clinic is back",
    }
    assert six.coordinator.round(2).contributors == SECOND
    assert rounds_of(six, *FIRST) == {0}
    for name in FIRST:
        assert not [row for row in six.ledgers[name].rows if row.phase == "round"]
    # What was trained for the larger set is not trained again for the smaller one.
    assert six.works["lab"].trained_rounds == [1, 2]


@pytest.mark.parametrize("at", ["work", "fetch", "hold"])
def test_a_round_whose_rows_are_written_waits_for_its_sites(six: Any, at: str) -> None:
    """R4: the set is in the row. The next try is over the same sites or none, and the same bytes
    leave again."""
    sites = failing(six)
    six.coordinator.start()
    sites.moments["clinic"] = (at, "before")
    made = record(six)
    with pytest.raises(
        RoundFailed,
        match=r"no answer from clinic .*; round 1 was begun over bank, clinic, hospital, lab, "
        r"surgery, ward-00, and is repeated over them only \(R4\); clinic must be back first",
    ):
        six.coordinator.round(1)
    assert rounds_of(six, *six.names) == {0}
    first = {site: encoded.digits.copy() for (site, _), encoded in made.items()}

    # The clinic is still away: its batch could sit out, and the round could not.
    coordinator = six.coordinator = type(six.coordinator)(
        six.plan, six.roster, sites, six.server.sign
    )
    coordinator.start()
    assert coordinator.active == list(SECOND)
    with pytest.raises(
        RoundFailed, match=r"bank, clinic, hospital must be back first \(so say lab"
    ):
        coordinator.round(1)

    for name in six.names:
        restart(six, name)
    record(six)
    coordinator = again(six)
    coordinator.start()
    assert coordinator.round(1).contributors == FIRST + SECOND
    for name in six.names:
        entered = [row for row in six.ledgers[name].rows if row.key[1:] == ("round", 1)]
        assert len({row.content for row in entered}) == 1
        assert all(len(row.sites) == 6 for row in entered)
    assert set(first) == set(six.names)
    six.state()


def test_a_round_that_was_begun_by_one_batch_is_repeated_by_it_alone(six: Any) -> None:
    """The other batch is back by then; it takes the round's model, and is in the next."""
    sites = failing(six, {"surgery": ("invite", "before")})
    six.coordinator.start()
    sites.moments["clinic"] = ("hold", "before")
    with pytest.raises(RoundFailed, match="round 1 was begun over bank, clinic, hospital, and"):
        six.coordinator.round(1)
    sites.gone.clear()
    coordinator = again(six)
    coordinator.start()
    assert coordinator.active == [*FIRST, *SECOND]
    assert coordinator.round(1).contributors == FIRST
    assert rounds_of(six, *SECOND) == {0}
    assert coordinator.round(2).contributors == FIRST + SECOND
    assert rounds_of(six, *six.names) == {2}
    six.state()


def test_too_few_whole_batches_are_no_session(federation: Any) -> None:
    six = federation("rlwe", sites=6, rules=BATCHES)
    failing(six, {"bank": ("invite", "before"), "lab": ("invite", "before")})
    with pytest.raises(RoundFailed, match="invite: no answer from bank"):
        six.coordinator.start()


def test_a_certificate_is_of_the_sites_of_the_sum(federation: Any) -> None:
    """Three sites are in the sum, and all three must have opened the same; of six it would be
    four of six."""
    six = federation("rlwe", sites=6, rules=BATCHES)
    failing(six, {"surgery": ("invite", "before"), "clinic": ("open", "after")})
    six.coordinator.start()
    with pytest.raises(RoundFailed, match="open: no answer from clinic"):
        six.coordinator.round(1)
    assert rounds_of(six, *six.names) == {0}
