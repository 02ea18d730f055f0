"""What every site does with the opened mean: the federated optimiser, applied alike by all.

The coordinator sees none of it. State (momentum, second moments) is computed from opened
aggregates only, so every site has the same without sending any.

Sources: FedAvg (McMahan et al., AISTATS 2017); FedAvgM (Hsu et al., arXiv 1909.06335); FedAdagrad,
FedAdam and FedYogi (Reddi et al., Adaptive Federated Optimization, ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedshield.errors import CryptoError
from fedshield.plan.schema import Plan
from fedshield.types import AdapterState, Float32, Float64, Selection

MOMENTUM, SECOND = "momentum", "second"


def step(
    plan: Plan,
    state: AdapterState,
    selection: Selection,
    mean: Float64,
    shared: Mapping[str, Float32],
) -> tuple[AdapterState, dict[str, Float32]]:
    """The next global adapter, and the optimiser's vectors for the next round.

    `mean`: float64, (selection.size,), the weighted mean of what was sent: parameters, which
    replace those that travelled, or differences, which the optimiser takes as its direction.
    Coordinates that did not travel keep their value and their moments. Raises `CryptoError`
    ('weight') if the step leaves float32.
    """
    values = state.values.astype(np.float64)
    places = selection.indices
    if plan.adapter.exchange == "parameters":
        values[places] = mean
        return AdapterState(_narrow(values), state.spec), {}
    rules = plan.aggregation
    direction, moments = mean, {}
    if rules.optimizer != "fedavg":
        first = _vector(shared, MOMENTUM, values.size)
        gain = 1.0 if rules.optimizer == "fedavgm" else 1.0 - rules.momentum
        moved = rules.momentum * first[places].astype(np.float64) + gain * mean
        if rules.optimizer == "fedadagrad":
            moved = mean  # without momentum, as in the paper
        first[places] = _narrow(moved)
        moments[MOMENTUM] = first
        direction = moved
        if rules.optimizer != "fedavgm":
            second = _vector(shared, SECOND, values.size)
            new = _second_moment(rules.optimizer, second[places].astype(np.float64), mean, plan)
            second[places] = _narrow(new)
            moments[SECOND] = second
            direction = moved / (np.sqrt(new) + rules.epsilon)
    values[places] += rules.learning_rate * direction
    return AdapterState(_narrow(values), state.spec), moments


def _second_moment(optimizer: str, old: Float64, mean: Float64, plan: Plan) -> Float64:
    square = mean * mean
    beta = plan.aggregation.second_momentum
    if optimizer == "fedadagrad":
        return old + square
    if optimizer == "fedyogi":
        return old - (1.0 - beta) * square * np.sign(old - square)
    return beta * old + (1.0 - beta) * square


def _narrow(values: Float64) -> Float32:
    if not np.abs(values).max(initial=0) <= np.finfo(np.float32).max:
        raise CryptoError(
            "sum: expected a step that float32 holds, got NaN or larger values", "weight"
        )
    return values.astype(np.float32)


def _vector(shared: Mapping[str, Float32], name: str, size: int) -> Float32:
    found = shared.get(name)
    return np.zeros(size, dtype=np.float32) if found is None else found.copy()
