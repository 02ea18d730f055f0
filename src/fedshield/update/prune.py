"""Pruning: which coordinates travel in a round, and what a site keeps back.

The ramp is the paper's (FedShield-LLM, arXiv 2506.05640), clamped: rounds past the target stay at
the target rate. Masks are of two kinds. `shared`: every site ranks coordinates by the mean
updates that all have opened before, so the mask need not be sent and the coordinator does not
learn it; a seeded share of places goes to coordinates outside the ranking, so that pruned ones
can come back. `local`: each site prunes its own smallest magnitudes (the paper), and zeros travel
like the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedshield.plan.sections import PruningPlan, TrainedFactors
from fedshield.seeds import derive
from fedshield.types import (
    AdapterSpec,
    AdapterUpdate,
    Bool,
    Exchange,
    Float32,
    Float64,
    Mask,
    PrunedUpdate,
    Selection,
)

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class ExchangeSchedule:
    """What is trained and what travels in each round of a run: public, and alike at every site.

    `train`: the factors that are trained; `pruning`: the ramp, and how coordinates are ranked;
    `rounds`: of the whole run; `seed`: the run's, of places that are drawn; `channels`: values that
    a coordinate travels with, 2 with `scaffold` (its control variate is the second), else 1.
    """

    train: TrainedFactors
    pruning: PruningPlan
    rounds: int
    seed: int
    channels: int

    def rate(self, round_number: int) -> float:
        """The share of each tensor that is pruned in a round."""
        return rate_at(self.pruning, self.rounds, round_number)


def ramp_rounds(pruning: PruningPlan, rounds: int) -> tuple[int, int]:
    """First and last round of the ramp: as they are set, else in the paper's proportions
    (40 and 200 of 200 rounds)."""
    start, target = pruning.start_round, pruning.target_round
    last = rounds if target is None else target
    return min(rounds // 5, last) if start is None else start, last


def rate_at(pruning: PruningPlan, rounds: int, round_number: int) -> float:
    """The share of each tensor that is pruned in a round.

    Args:
        pruning: the ramp.
        rounds: of the whole run.
        round_number: 1 to `rounds`.

    Returns:
        From 0 (also before the ramp starts) to below 1.
    """
    if pruning.method == "none":
        return 0.0
    start, target = ramp_rounds(pruning, rounds)
    if round_number < start:
        return 0.0
    progress = 1.0 if target <= start else (round_number - start) / (target - start)
    clamped = min(max(progress, 0.0), 1.0)
    return pruning.initial_rate + (pruning.target_rate - pruning.initial_rate) * clamped


def magnitude_mask(values: Float32, spec: AdapterSpec, rate: float) -> Mask:
    """Prune floor(rate * size) coordinates of smallest magnitude in each tensor.

    `values`: float32, shape (spec.num_values,). Exactly that many are pruned; among equal
    magnitudes those that come first go first, so every party finds the same mask.
    """
    kept = np.ones(spec.num_values, dtype=np.bool_)
    for place in spec.slices().values():
        magnitude = np.abs(values[place])
        count = int(rate * magnitude.size)
        if count == 0:
            continue
        threshold = np.partition(magnitude, count - 1)[count - 1]
        below = magnitude < threshold
        ties = np.flatnonzero(magnitude == threshold)[: count - int(np.count_nonzero(below))]
        below[ties] = True
        kept[place] = ~below
    return Mask(kept, rate)


# -- which coordinates ------------------------------------------------------------------------


A, B, BOTH = ".lora_A.", ".lora_B.", ""


@dataclass(frozen=True)
class FactorRule:
    """One way to train an adapter's factors. `trained`: of a round, what the names of the tensors
    that a site trains have in them; `shared`: what the names of those of them have that travel."""

    trained: Callable[[int], str] = lambda _: BOTH
    shared: str = BOTH


#: By `adapter.train`. LoRA-XS (`core`) has one tensor a layer, between two frozen factors.
FACTORS: dict[TrainedFactors, FactorRule] = {
    "ab": FactorRule(),
    "core": FactorRule(),
    # FFA-LoRA (arXiv 2403.12313): A stays as it was drawn.
    "b": FactorRule(trained=lambda _: B),
    # B first: with B zero, A has no gradient.
    "alternate": FactorRule(trained=lambda number: B if number % 2 else A),
    # FedSA-LoRA (arXiv 2410.01463): each site keeps a B of its own.
    "share-a": FactorRule(shared=A),
}


def trained_tensors(train: TrainedFactors, spec: AdapterSpec, round_number: int) -> tuple[str, ...]:
    """The tensors that a site trains in a round.

    Args:
        train: the factors that are trained.
        spec: the adapter's tensors.
        round_number: from 1; `alternate` goes by odd and even.

    Returns:
        Their names, in the order of `spec`.
    """
    names = tuple(tensor.name for tensor in spec.tensors)
    return _of_factor(names, FACTORS[train].trained(round_number))


def exchanged_tensors(
    train: TrainedFactors, spec: AdapterSpec, round_number: int
) -> tuple[str, ...]:
    """Those of `trained_tensors(...)` that travel: with `share-a`, B stays at the site."""
    names = trained_tensors(train, spec, round_number)
    return _of_factor(names, FACTORS[train].shared)


def _of_factor(names: tuple[str, ...], factor: str) -> tuple[str, ...]:
    return tuple(name for name in names if factor in name)


def num_travelling(schedule: ExchangeSchedule, spec: AdapterSpec, round_number: int) -> int:
    """How many coordinates travel in a round: fixed by the schedule, so that lengths say
    nothing of a mask. Equal to `select(...).size`."""
    sizes = {tensor.name: tensor.size for tensor in spec.tensors}
    groups = [sizes[name] for name in exchanged_tensors(schedule.train, spec, round_number)]
    rate = schedule.rate(round_number)
    if schedule.pruning.mask == "local":
        return sum(groups)
    if schedule.pruning.ranking == "global":
        groups = [sum(groups)]
    return sum(size - int(rate * size) for size in groups)


def num_sent(schedule: ExchangeSchedule, spec: AdapterSpec, round_number: int) -> int:
    """Values of an update: those that travel, and with `scaffold` a control for each."""
    return schedule.channels * num_travelling(schedule, spec, round_number)


def select(
    schedule: ExchangeSchedule, spec: AdapterSpec, score: Float32 | None, round_number: int
) -> Selection:
    """The coordinates that travel in a round: the same at every site, from public state.

    Args:
        schedule: what travels when. With local masks, or before the ramp, all coordinates of the
            exchanged tensors travel.
        spec: the adapter's tensors.
        score: float32, (num_values,), see `next_score`; None before the first update.
        round_number: from 1.
    """
    places, pruning = spec.slices(), schedule.pruning
    wanted = [places[name] for name in exchanged_tensors(schedule.train, spec, round_number)]
    whole = [np.arange(place.start, place.stop, dtype=np.int64) for place in wanted]
    rate = schedule.rate(round_number)
    if pruning.mask == "local" or rate == 0 or not whole:
        return Selection(np.concatenate(whole) if whole else np.zeros(0, np.int64), spec)
    if pruning.ranking == "global":
        whole = [np.concatenate(whole)]
    kept: list[Int64] = []
    for group, candidates in enumerate(whole):
        seed = derive(schedule.seed, "explore", round_number, group)
        kept.append(_ranked(candidates, score, rate, pruning.explore, seed))
    return Selection(np.sort(np.concatenate(kept)), spec)


def _ranked(
    candidates: Int64, score: Float32 | None, rate: float, explore: float, seed: int
) -> Int64:
    """size - floor(rate * size) of the candidates: the best by score (the first among equals),
    and a share `explore` of them drawn from the others."""
    count = candidates.size - int(rate * candidates.size)
    here = None if score is None else score[candidates]
    # Without any history there is nothing to rank by: all places are drawn.
    drawn = count if here is None or not here.any() else int(explore * count)
    generator = np.random.Generator(np.random.Philox(seed))
    if here is None or drawn == count:
        some: Int64 = candidates[generator.permutation(candidates.size)[:count]]
        return some
    order = np.argsort(-here, kind="stable")
    best, rest = order[: count - drawn], order[count - drawn :]
    found: Int64 = candidates[np.concatenate([best, generator.permutation(rest)[:drawn]])]
    return found


#: Weight of the last mean update in a coordinate's score.
SCORE_UPDATE = 0.3


def next_score(score: Float32 | None, selection: Selection, mean: Float64) -> Float32:
    """A running mean of the magnitude of opened updates, over the rounds in which a coordinate
    travelled. `mean`: float64, (selection.size,), the mean update just opened."""
    num_values = selection.spec.num_values
    new = np.zeros(num_values, dtype=np.float32) if score is None else score.copy()
    magnitude = np.abs(mean).astype(np.float32)
    old = new[selection.indices]
    first = old == 0
    moved = old + np.float32(SCORE_UPDATE) * (magnitude - old)
    new[selection.indices] = np.where(first, magnitude, moved)
    return new


# -- a site's contribution --------------------------------------------------------------------


def prune(
    update: AdapterUpdate,
    schedule: ExchangeSchedule,
    round_number: int,
    selection: Selection,
    *,
    exchange: Exchange,
    error_feedback: bool,
    carried: Float32 | None = None,
) -> PrunedUpdate:
    """What the site contributes in this round: its trained parameters or their difference from
    the global adapter, pruned.

    Args:
        update: the adapter before and after training.
        schedule: the rate of each round, and whose masks are used.
        round_number: from 1.
        selection: what travels; all else is zero.
        exchange: parameters or difference.
        error_feedback: whether a pruned difference is left out and kept for the next round. Pruned
            parameters are zeros on purpose (the paper) and are not.
        carried: float32, (num_values,), what earlier rounds left out; it is added first.
    """
    values = update.values
    if exchange == "delta":
        values = (update.values - update.start.values).astype(np.float32)
    if carried is not None:
        values = values + carried
    travels = np.zeros(values.size, dtype=np.bool_)
    travels[selection.indices] = True
    rate = schedule.rate(round_number)
    if schedule.pruning.mask == "local":
        mask = magnitude_mask(values, update.start.spec, rate)
        mask = Mask(mask.kept & travels, rate)
    else:
        mask = Mask(travels, rate)
    keep_back = exchange == "delta" and error_feedback
    zeros = np.zeros_like(values)
    left_out = np.where(mask.kept, zeros, values) if keep_back else zeros
    # Nothing of what never travels is owed to anyone.
    left_out[own_places(schedule.train, update.start.spec)] = 0
    return PrunedUpdate(np.where(mask.kept, values, zeros), mask, exchange, left_out)


def own_places(train: TrainedFactors, spec: AdapterSpec) -> Bool:
    """Coordinates that a site trains and keeps (`share-a`), in every round the same: bool,
    (num_values,)."""
    places = spec.slices()
    mine = np.zeros(spec.num_values, dtype=np.bool_)
    for name in set(trained_tensors(train, spec, 1)) - set(exchanged_tensors(train, spec, 1)):
        mine[places[name]] = True
    return mine


def num_pruned(mask: Mask, train: TrainedFactors, spec: AdapterSpec, round_number: int) -> int:
    """Coordinates of the exchanged tensors that did not get a value in this round.

    Args:
        mask: of the round's update.
        train: the factors that are trained.
        spec: the adapter's tensors.
        round_number: from 1.
    """
    places = spec.slices()
    names = exchanged_tensors(train, spec, round_number)
    return sum(int(np.count_nonzero(~mask.kept[places[name]])) for name in names)
