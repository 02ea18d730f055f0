"""The federated optimisers, against the papers' formulas written out for one coordinate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedshield.errors import PlanError
from fedshield.plan.load import parse_plan
from fedshield.plan.sections import AggregationPlan
from fedshield.types import AdapterSpec, AdapterState, Selection, TensorSpec
from fedshield.update import server_optimizer
from fedshield.update.server_optimizer import Moments

SPEC = AdapterSpec((TensorSpec("a", (2, 2)), TensorSpec("b", (3,))), "00" * 32, 1.0)
START = AdapterState(np.arange(7, dtype=np.float32), SPEC)
#: Coordinates 0, 3 and 5 travel.
CHOSEN = Selection(np.array([0, 3, 5], dtype=np.int64), SPEC)
MEANS = (np.array([0.5, -0.25, 0.0]), np.array([0.25, 0.5, -1.0]), np.array([-0.5, 0.5, 0.125]))


def rules_of(**aggregation: Any) -> AggregationPlan:
    plan = parse_plan(
        {
            "data": {"sites": {name: {"source": "sample:finance"} for name in ("x", "y", "z")}},
            "aggregation": aggregation,
        },
        base_dir=Path.cwd(),
    )
    return plan.aggregation


def by_hand(optimizer: str, means: list[float], rate: float, eps: float) -> float:
    """How far one coordinate moves over the rounds: Reddi et al., algorithm 2, and FedAvgM."""
    beta1, beta2 = 0.9, 0.99
    moved = first = second = 0.0
    for mean in means:
        if optimizer == "fedavg":
            moved += rate * mean
            continue
        if optimizer == "fedavgm":
            first = beta1 * first + mean
            moved += rate * first
            continue
        first = mean if optimizer == "fedadagrad" else beta1 * first + (1 - beta1) * mean
        square = mean * mean
        if optimizer == "fedadagrad":
            second += square
        elif optimizer == "fedadam":
            second = beta2 * second + (1 - beta2) * square
        else:
            second -= (1 - beta2) * square * math.copysign(1, second - square) * (second != square)
        moved += rate * first / (math.sqrt(second) + eps)
    return moved


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_each_optimiser_moves_as_its_paper_says(optimizer: str) -> None:
    rules = rules_of(optimizer=optimizer, learning_rate=0.5, epsilon=0.01)
    state, moments = START, Moments()
    for mean in MEANS:
        state, moments = server_optimizer.step(rules, state, CHOSEN, mean, moments)
    for place, index in enumerate(CHOSEN.indices):
        moved = by_hand(optimizer, [float(mean[place]) for mean in MEANS], 0.5, 0.01)
        assert state.values[index] - START.values[index] == pytest.approx(moved, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_what_did_not_travel_stays(optimizer: str) -> None:
    rules = rules_of(optimizer=optimizer)
    state, moments = server_optimizer.step(rules, START, CHOSEN, MEANS[0], Moments())
    others = np.setdiff1d(np.arange(7), CHOSEN.indices)
    np.testing.assert_array_equal(state.values[others], START.values[others])
    for vector in moments.to_shared().values():
        assert not vector[others].any()


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        ("fedavg", []),
        ("fedavgm", ["momentum"]),
        ("fedadam", ["momentum", "second"]),
        ("fedyogi", ["momentum", "second"]),
        ("fedadagrad", ["momentum", "second"]),
    ],
)
def test_moments_are_kept_under_names_that_run_folders_have(
    optimizer: str, names: list[str]
) -> None:
    rules = rules_of(optimizer=optimizer)
    _, moments = server_optimizer.step(rules, START, CHOSEN, MEANS[0], Moments())
    shared = moments.to_shared()
    assert list(shared) == names
    assert all(vector.dtype == np.float32 for vector in shared.values())
    again = Moments.from_shared({"clip": np.zeros(2, np.float32), **shared})
    assert all(one is two for one, two in zip(again, moments, strict=True))


def test_moments_outside_a_selection_are_kept() -> None:
    rules = rules_of(optimizer="fedadam")
    _, before = server_optimizer.step(rules, START, CHOSEN, MEANS[0], Moments())
    elsewhere = Selection(np.array([1], dtype=np.int64), SPEC)
    _, after = server_optimizer.step(rules, START, elsewhere, np.array([1.0]), before)
    assert before.momentum is not None
    assert after.momentum is not None
    np.testing.assert_array_equal(after.momentum[CHOSEN.indices], before.momentum[CHOSEN.indices])
    assert after.momentum[1] > 0


def test_parameters_replace_what_travelled() -> None:
    state = server_optimizer.replaced(START, CHOSEN, np.array([9.0, 8.0, 7.0]))
    np.testing.assert_array_equal(state.values, [9, 1, 2, 8, 4, 7, 6])


def test_the_inputs_are_not_changed() -> None:
    rules = rules_of(optimizer="fedyogi")
    _, moments = server_optimizer.step(rules, START, CHOSEN, MEANS[0], Moments())
    shared = moments.to_shared()
    before = {name: vector.copy() for name, vector in shared.items()}
    assert before.keys() == {"momentum", "second"}
    server_optimizer.step(rules, START, CHOSEN, MEANS[1], moments)
    for name, vector in before.items():
        np.testing.assert_array_equal(shared[name], vector)


@pytest.mark.parametrize("changes", [{"optimizer": "fedadam"}, {"learning_rate": 0.5}])
def test_parameters_go_with_plain_averaging_only(changes: dict[str, Any]) -> None:
    raw = {
        "data": {"sites": {name: {"source": "sample:finance"} for name in ("x", "y", "z")}},
        "adapter": {"exchange": "parameters"},
        "aggregation": changes,
    }
    with pytest.raises(PlanError, match=r"aggregation\.optimizer: expected fedavg"):
        parse_plan(raw, base_dir=Path.cwd())
