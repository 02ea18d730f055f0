"""What every site does with the opened mean: the federated optimiser, applied alike by all.

The coordinator sees none of it. State (momentum, second moments) is computed from opened
aggregates only, so every site has the same without sending any.

Sources: FedAvg (McMahan et al., AISTATS 2017); FedAvgM (Hsu et al., arXiv 1909.06335); FedAdagrad,
FedAdam and FedYogi (Reddi et al., Adaptive Federated Optimization, ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedshield.errors import CryptoError
from fedshield.plan.sections import AggregationPlan
from fedshield.types import AdapterState, Float32, Float64, Selection


class Moments(NamedTuple):
    """What the optimiser carries from round to round, float32, (num_values,) each: None for what it
    has none of, and before the first step, where all are zeros. Sites keep them in the shared part
    of their memory, under these names."""

    momentum: Float32 | None = None
    second: Float32 | None = None

    @classmethod
    def from_shared(cls, shared: Mapping[str, Float32]) -> Moments:
        return cls(*(shared.get(name) for name in cls._fields))

    def to_shared(self) -> dict[str, Float32]:
        return {name: vector for name, vector in self._asdict().items() if vector is not None}


def step(
    optimizer: AggregationPlan,
    state: AdapterState,
    selection: Selection,
    mean: Float64,
    moments: Moments,
) -> tuple[AdapterState, Moments]:
    """The next global adapter after a mean difference, which the optimiser takes as its direction.

    Args:
        optimizer: which one, with its rates.
        state: the adapter that the round started from.
        selection: the coordinates that travelled. The others keep their value and their moments.
        mean: float64, (selection.size,), the weighted mean of the sites' differences.
        moments: of the round before.

    Returns:
        The adapter, and the moments for the next round.

    Raises:
        CryptoError: 'weight', the step leaves float32.
    """
    values = state.values.astype(np.float64)
    places = selection.indices
    direction, after = mean, Moments()
    if optimizer.optimizer != "fedavg":
        first = _vector(moments.momentum, values.size)
        gain = 1.0 if optimizer.optimizer == "fedavgm" else 1.0 - optimizer.momentum
        moved = optimizer.momentum * first[places].astype(np.float64) + gain * mean
        if optimizer.optimizer == "fedadagrad":
            moved = mean  # without momentum, as in the paper
        first[places] = _narrow(moved)
        after = Moments(momentum=first)
        direction = moved
        if optimizer.optimizer != "fedavgm":
            second = _vector(moments.second, values.size)
            new = _second_moment(optimizer, second[places].astype(np.float64), mean)
            second[places] = _narrow(new)
            after = Moments(first, second)
            direction = moved / (np.sqrt(new) + optimizer.epsilon)
    values[places] += optimizer.learning_rate * direction
    return AdapterState(_narrow(values), state.spec), after


def replaced(state: AdapterState, selection: Selection, mean: Float64) -> AdapterState:
    """The next global adapter after a mean of whole parameters, which take the place of those that
    travelled; no optimiser has a part in it.

    Args:
        state: the adapter that the round started from.
        selection: the coordinates that travelled. The others keep their value.
        mean: float64, (selection.size,), the weighted mean of the sites' parameters.

    Raises:
        CryptoError: 'weight', the mean leaves float32.
    """
    values = state.values.astype(np.float64)
    values[selection.indices] = mean
    return AdapterState(_narrow(values), state.spec)


def _second_moment(optimizer: AggregationPlan, old: Float64, mean: Float64) -> Float64:
    square = mean * mean
    beta = optimizer.second_momentum
    if optimizer.optimizer == "fedadagrad":
        return old + square
    if optimizer.optimizer == "fedyogi":
        return old - (1.0 - beta) * square * np.sign(old - square)
    return beta * old + (1.0 - beta) * square


def _narrow(values: Float64) -> Float32:
    if not np.abs(values).max(initial=0) <= np.finfo(np.float32).max:
        raise CryptoError(
            "sum: expected a step that float32 holds, got NaN or larger values", "weight"
        )
    return values.astype(np.float32)


def _vector(moment: Float32 | None, size: int) -> Float32:
    """The moment to be changed: a copy, zeros where there is none yet."""
    return np.zeros(size, dtype=np.float32) if moment is None else moment.copy()
