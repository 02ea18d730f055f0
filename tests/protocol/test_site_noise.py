"""A federation whose unit is a site: whose noise is in a sum, what is not told, and the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedshield.errors import RoundFailed
from fedshield.privacy import distributed_gaussian
from fedshield.protocol.wire import messages
from fedshield.site.interfaces import SiteRound
from fedshield.types import AdapterUpdate

PRIVACY = {"unit": "site", "clip_norm": 5.0, "noise_multiplier": 1.0}


@pytest.fixture
def noisy(federation: Any) -> Callable[..., Any]:
    """`noisy(sites=5, **more of privacy)`: five sites by default, of which one may collude."""

    def make(sites: int = 5, **privacy: Any) -> Any:
        return federation("rlwe", sites=sites, privacy={**PRIVACY, **privacy})

    return make


def moved(fed: Any, before: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the round added to the adapter: the noised mean."""
    return (fed.state().values - before.values).astype(np.float64)


def test_the_opened_mean_is_the_bounded_one_and_noise_of_the_stated_size(noisy: Any) -> None:
    fed = noisy()
    before = fed.participants["bank"].state
    fed.run(1)
    found = fed.participants["bank"].spent.terms.site
    wanted = np.zeros(before.values.size)
    for site in fed.names:
        update = fed.trained(site, before, 1) - before.values
        wanted += update * min(1.0, 5.0 / np.linalg.norm(update)) / 5
    noise = moved(fed, before) - wanted
    # Five shares, of which the four honest ones alone would do.
    deviation = 5.0 / 5 * math.sqrt(5 / found.honest)
    assert found.honest == fed.plan.rules().min_cohort - 1 == 4
    assert abs(noise.std() / deviation - 1) < 5 / math.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(noise.size)


def test_without_a_site_there_is_no_sum_and_a_colluder_that_adds_no_noise_leaves_enough(
    noisy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = noisy()
    # Nothing is trained, so that what is opened is noise.
    monkeypatch.setattr(
        type(fed.works["bank"]),
        "train",
        lambda self, state, number, *_: (_update(state, self.num_examples), 1.0),
    )
    before = fed.participants["bank"].state
    colluder = fed.names[-1]
    model = fed.participants[colluder]._model
    encode = model.contribution

    def silent(round_number: int, cipher: Any, weight: float, *more: Any) -> Any:
        encoded = encode(round_number, cipher, weight, *more)
        return replace(encoded, digits=np.zeros_like(encoded.digits))

    model.contribution = silent
    fed.coordinator.start()
    outcome = fed.coordinator.round(1)
    assert len(outcome.contributors) == 5
    noise = moved(fed, before)
    # The mean is over five: a unit of the sum is a fifth. Four honest shares are there.
    least = 5.0 / 5
    assert abs(noise.std() / least - 1) < 5 / math.sqrt(2 * noise.size)
    fed.wire.to_coordinator = lambda site, method, data: (
        b"" if (site, method) == (colluder, "work") else data
    )
    states = fed.states()
    with pytest.raises(RoundFailed, match=f"no answer from {colluder}"):
        fed.coordinator.round(2)
    assert fed.states() == states


def _update(state: Any, num_examples: int) -> AdapterUpdate:
    return AdapterUpdate(state.values.copy(), state, num_examples)


def test_what_is_left_for_the_next_round_has_no_noise_in_it(
    noisy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else error feedback would take a round's noise out of the next, and nobody would count it:
    the residual is the same whatever noise was drawn."""
    kept = []
    draw = distributed_gaussian.DiscreteGaussian.draw
    for scale in (1, 3):

        def scaled(self: Any, count: int, stream: Any, by: int = scale) -> Any:
            return (draw(self, count, stream) // by).astype(np.int64)

        with monkeypatch.context() as patch:
            patch.setattr(distributed_gaussian.DiscreteGaussian, "draw", scaled)
            fed = noisy()
            fed.run(1)
        kept.append(fed.participants["bank"].memory.residual)
        mechanism = fed.participants["bank"].spent.terms.site
        # Less than a step each, where the noise is hundreds of them.
        assert np.abs(kept[-1]).max() <= 1.01 / mechanism.scale(0.2)
        assert np.abs(kept[-1]).max() > 0
    assert np.array_equal(kept[0], kept[1])


def test_losses_are_not_told(noisy: Any) -> None:
    fed = noisy().run(1)
    record: SiteRound = fed.seen["bank"]
    assert math.isnan(record.mean_train_loss)
    assert record.train_loss == 1.0
    assert record.clip_factor < 1


def test_epsilon_counts_uploads_and_is_shown(noisy: Any) -> None:
    fed = noisy().run(2)
    terms = fed.participants["bank"].spent.terms
    assert fed.participants["bank"].spent.uploads == 2
    assert fed.seen["bank"].epsilon == terms.epsilon(2) > terms.epsilon(1) > 0


def test_a_round_that_failed_counts_and_a_restart_keeps_the_count(noisy: Any) -> None:
    fed = noisy()
    fed.coordinator.start()
    # No block arrives: nobody votes, let alone answers, but the uploads have left.
    fed.wire.to_coordinator = lambda site, method, data: b"" if method == "fetch" else data
    with pytest.raises(RoundFailed):
        fed.coordinator.round(1)
    assert [one.spent.uploads for one in fed.participants.values()] == [1] * 5
    # A new process, the same journal.
    again = fed.participant("bank", fed.roster)
    assert again.completed_rounds == 0
    assert again.spent.uploads == 1


def test_a_site_keeps_to_its_limit_whatever_it_is_told(noisy: Any) -> None:
    one = noisy().run(1)
    terms = one.participants["bank"].spent.terms
    fed = noisy(max_epsilon=(terms.epsilon(2) + terms.epsilon(3)) / 2).run(2)
    before = fed.states()
    keys = fed.prepare(3)
    refused = fed.refused("bank", messages.Work(keys))
    assert refused == "budget"
    assert fed.works["bank"].trained_rounds == [1, 2]
    fresh = fed.another_coordinator()
    fresh.start()
    with pytest.raises(RoundFailed, match="budget"):
        fresh.round(3)
    assert fed.states() == before


def test_two_sites_each_carry_all_of_the_noise(noisy: Any) -> None:
    """Each knows its own: only the other's protects it."""
    fed = noisy(sites=2).run(1)
    found = fed.participants["bank"].spent.terms.site
    assert (found.honest, fed.plan.rules().max_colluding) == (1, 0)
    assert found.deviation == pytest.approx(found.sensitivity)


def test_counts_that_are_public_change_no_bound(federation: Any) -> None:
    fed = federation("rlwe", sites=4, weights="public", privacy=PRIVACY).run(2)
    assert len(set(fed.states().values())) == 1
    for one in fed.participants.values():
        assert (
            one.spent.terms.site.sensitivity
            == fed.participants["bank"].spent.terms.site.sensitivity
        )
