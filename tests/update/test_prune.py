"""Pruning: the paper's ramp, exact counts, and what is sent of what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedshield.plan.schema import Plan
from fedshield.site.settings import exchange_schedule
from fedshield.types import (
    AdapterSpec,
    AdapterState,
    AdapterUpdate,
    Float32,
    PrunedUpdate,
    TensorSpec,
)
from fedshield.update import prune as pruning
from fedshield.update.prune import magnitude_mask, ramp_rounds, select

MakePlan = Callable[..., Plan]


def spec_of(*shapes: tuple[int, ...]) -> AdapterSpec:
    tensors = tuple(TensorSpec(f"t{k}.lora_A.weight", shape) for k, shape in enumerate(shapes))
    return AdapterSpec(tensors, "", 1.0)


SPEC = spec_of((3, 5), (7,), (1, 1), (4, 6))
#: Few different magnitudes, so that ties are common; all sizes of numbers else.
some_values = npst.arrays(
    np.float32,
    SPEC.num_values,
    elements=st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0])
    | st.floats(-(2.0**100), 2.0**100, width=32),
)
rates = st.floats(0, 1, exclude_max=True)


def prune(
    update: AdapterUpdate, plan: Plan, round_number: int, carried: Float32 | None = None
) -> PrunedUpdate:
    """Under the selection of the round, before any update was opened."""
    schedule = exchange_schedule(plan)
    selection = select(schedule, SPEC, None, round_number)
    return pruning.prune(
        update,
        schedule,
        round_number,
        selection,
        exchange=plan.adapter.exchange,
        error_feedback=plan.encoding.error_feedback,
        carried=carried,
    )


def rate_at(plan: Plan, round_number: int) -> float:
    return pruning.rate_at(plan.pruning, plan.rounds, round_number)


# -- the schedule --------------------------------------------------------------------------


def paper_rate(p0: float, target: float, start: int, end: int, number: int) -> float:
    """The paper's formula, not clamped: arXiv 2506.05640."""
    return p0 + (target - p0) * (number - start) / (end - start) if number >= start else 0.0


def test_the_papers_run_has_the_papers_rates(make_plan: MakePlan) -> None:
    plan = make_plan({"rounds": 200})
    assert ramp_rounds(plan.pruning, plan.rounds) == (40, 200)
    assert (rate_at(plan, 1), rate_at(plan, 39)) == (0.0, 0.0)
    assert [rate_at(plan, number) for number in (40, 120, 200)] == pytest.approx([0.2, 0.35, 0.5])
    for number in range(1, 201):
        expected = paper_rate(0.2, 0.5, 40, 200, number)
        assert rate_at(plan, number) == pytest.approx(expected, abs=1e-15)


@given(rounds=st.integers(2, 60), ends=st.tuples(st.integers(0, 60), st.integers(1, 60)))
@pytest.mark.parametrize("levels", [(0.0, 0.99), (0.2, 0.5), (0.3, 0.3)])
def test_any_ramp_is_the_formula_with_clamped_ends(
    make_plan: MakePlan, rounds: int, ends: tuple[int, int], levels: tuple[float, float]
) -> None:
    start, end = sorted(ends)
    assume(start < end <= rounds)
    ramp = dict(zip(("initial_rate", "target_rate"), levels, strict=True))
    plan = make_plan(
        {"rounds": rounds, "pruning": {**ramp, "start_round": start, "target_round": end}}
    )
    for number in range(1, rounds + 1):
        expected = paper_rate(*levels, start, end, min(number, end))
        assert rate_at(plan, number) == pytest.approx(expected, abs=1e-12)


def test_rounds_past_the_target_stay_at_the_target(make_plan: MakePlan) -> None:
    plan = make_plan({"rounds": 1000, "pruning": {"start_round": 40, "target_round": 200}})
    assert [rate_at(plan, number) for number in (200, 201, 467, 468, 1000)] == [0.5] * 5


@pytest.mark.parametrize(
    ("rounds", "keys", "ramp"),
    [
        (200, {}, (40, 200)),
        (10, {}, (2, 10)),
        (4, {}, (0, 4)),
        (1, {}, (0, 1)),
        (100, {"start_round": 50}, (50, 100)),
        (100, {"target_round": 60}, (20, 60)),
        (100, {"target_round": 5}, (5, 5)),
        (100, {"start_round": 7, "target_round": 7}, (7, 7)),
    ],
)
def test_what_the_plan_leaves_out_is_in_the_papers_proportions(
    make_plan: MakePlan, rounds: int, keys: dict[str, Any], ramp: tuple[int, int]
) -> None:
    plan = make_plan({"rounds": rounds, "pruning": keys})
    assert ramp_rounds(plan.pruning, plan.rounds) == ramp
    start, target = ramp
    assert all(rate_at(plan, number) == 0.0 for number in range(1, start))
    assert rate_at(plan, target) == pytest.approx(0.5)
    assert rate_at(plan, rounds) == pytest.approx(0.5)


def test_no_pruning_is_no_pruning(make_plan: MakePlan) -> None:
    plan = make_plan({"pruning.method": "none"})
    assert [rate_at(plan, number) for number in range(1, 9)] == [0.0] * 8


# -- masks ---------------------------------------------------------------------------------


@given(some_values, rates)
def test_exactly_the_smallest_of_each_tensor_go_first_come_first(
    values: Float32, rate: float
) -> None:
    before = values.copy()
    mask = magnitude_mask(values, SPEC, rate)
    assert mask.rate == rate
    for tensor, place in zip(SPEC.tensors, SPEC.slices().values(), strict=True):
        # The reference: a stable sort by magnitude, the first ones pruned.
        magnitude = [abs(float(value)) for value in values[place]]
        order = sorted(range(tensor.size), key=lambda k, m=magnitude: m[k])
        pruned = set(order[: math.floor(rate * tensor.size)])
        assert set(np.flatnonzero(~mask.kept[place])) == pruned
        kept = [magnitude[k] for k in range(tensor.size) if k not in pruned]
        assert max((magnitude[k] for k in pruned), default=0.0) <= min(kept)
    assert values.tobytes() == before.tobytes()
    again = magnitude_mask(before, SPEC, rate)
    assert (again.kept == mask.kept).all()


def test_each_tensor_is_pruned_by_its_own_magnitudes() -> None:
    spec = spec_of((4,), (4,))
    values = np.array([1, 2, 3, 4, 100, 200, 300, 400], dtype=np.float32)
    assert magnitude_mask(values, spec, 0.5).kept.tolist() == [False, False, True, True] * 2


def test_large_tensors_are_pruned_to_the_last_coordinate() -> None:
    spec = spec_of((64, 576))
    values = np.random.default_rng(1).standard_normal(spec.num_values).astype(np.float32)
    for rate in (0.2, 0.35, 0.5, 0.999):
        assert magnitude_mask(values, spec, rate).num_pruned == int(rate * spec.num_values)


# -- what is sent --------------------------------------------------------------------------


@given(start=some_values, trained=some_values)
@pytest.mark.parametrize("exchange", ["parameters", "delta"])
def test_what_is_sent_is_the_pruned_parameters_or_the_pruned_difference(
    make_plan: MakePlan, start: Float32, trained: Float32, exchange: str
) -> None:
    plan = make_plan({"adapter.exchange": exchange, "pruning.mask": "local"})
    update = AdapterUpdate(trained.copy(), AdapterState(start.copy(), SPEC), 5)
    sent = prune(update, plan, 4)
    full = trained if exchange == "parameters" else trained - start
    expected = magnitude_mask(full, SPEC, 0.5)
    assert sent.exchange == exchange
    assert sent.mask.rate == 0.5
    assert (sent.mask.kept == expected.kept).all()
    assert sent.mask.num_pruned == 7 + 3 + 0 + 12
    assert (sent.values[expected.kept] == full[expected.kept]).all()
    assert (sent.values[~expected.kept] == 0).all()


@given(start=some_values, trained=some_values, carried=some_values)
@pytest.mark.parametrize("exchange", ["parameters", "delta"])
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("mask", ["shared", "local"])
def test_only_a_pruned_difference_is_kept_back(
    make_plan: MakePlan,
    start: Float32,
    trained: Float32,
    carried: Float32,
    exchange: str,
    feedback: bool,
    mask: str,
) -> None:
    """What earlier rounds left out is added before pruning. A pruned difference waits for the
    next round; pruned parameters are zeros, as in the paper."""
    plan = make_plan(
        {
            "adapter.exchange": exchange,
            "encoding.error_feedback": feedback,
            "pruning.mask": mask,
        }
    )
    alike = np.zeros(SPEC.num_values, np.bool_)
    alike[select(exchange_schedule(plan), SPEC, None, 4).indices] = True
    update = AdapterUpdate(trained.copy(), AdapterState(start.copy(), SPEC), 5)
    for more in (None, carried):
        sent = prune(update, plan, 4, more)
        full = trained if exchange == "parameters" else trained - start
        full = full if more is None else full + more
        kept = alike if mask == "shared" else magnitude_mask(full, SPEC, 0.5).kept
        assert (sent.mask.kept == kept).all()
        assert (sent.values[kept] == full[kept]).all()
        assert (sent.values[~kept] == 0).all()
        if exchange == "delta" and feedback:
            assert (sent.values + sent.left_out == full).all()  # nothing is lost
            assert (sent.left_out[kept] == 0).all()
        else:
            assert not sent.left_out.any()


@pytest.mark.parametrize("mask", ["shared", "local"])
def test_the_round_decides_the_rate(make_plan: MakePlan, mask: str) -> None:
    plan = make_plan({"rounds": 10, "pruning.mask": mask})
    update = AdapterUpdate(
        np.ones(SPEC.num_values, np.float32),
        AdapterState(np.zeros(SPEC.num_values, np.float32), SPEC),
        5,
    )
    for number in range(1, 11):
        sent = prune(update, plan, number)
        assert sent.mask.rate == rate_at(plan, number)
        assert np.count_nonzero(sent.values == 0) == sent.mask.num_pruned
        assert (
            pruning.num_pruned(sent.mask, plan.adapter.train, SPEC, number) == sent.mask.num_pruned
        )
    assert prune(update, plan, 1).mask.num_pruned == 0
