"""Pruning: the paper's schedule, and masks by magnitude within each tensor.

Source: FedShield-LLM, arXiv 2506.05640, the pruning ramp; per-tensor unstructured L1. Here the
ramp is clamped, so that rounds past the target stay at the target rate.
"""

from __future__ import annotations

import numpy as np

from fedshield.plan import Plan
from fedshield.types import AdapterSpec, AdapterUpdate, Float32, Mask, PrunedUpdate


def ramp_rounds(plan: Plan) -> tuple[int, int]:
    """First and last round of the ramp: from the plan, else in the paper's proportions
    (40 and 200 of 200 rounds)."""
    start = plan.pruning.start_round
    target = plan.pruning.target_round
    last = plan.rounds if target is None else target
    return min(plan.rounds // 5, last) if start is None else start, last


def rate_at(plan: Plan, round_number: int) -> float:
    """The share of each tensor that is pruned in round 1..rounds; 0 before the ramp starts."""
    pruning = plan.pruning
    if pruning.method == "none":
        return 0.0
    start, target = ramp_rounds(plan)
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


def prune(
    update: AdapterUpdate, plan: Plan, round_number: int, carried: Float32 | None = None
) -> PrunedUpdate:
    """What the site contributes in this round: by the plan's `adapter.exchange`, its trained
    parameters or their difference from the global adapter, pruned by magnitude.

    `carried`: float32, (num_values,), what earlier rounds left out; it is added first. A pruned
    difference is left out and kept for the next round; pruned parameters are zeros on purpose
    (the paper) and are not.
    """
    exchange = plan.adapter.exchange
    values = update.values
    if exchange == "delta":
        values = (update.values - update.start.values).astype(np.float32)
    if carried is not None:
        values = values + carried
    mask = magnitude_mask(values, update.start.spec, rate_at(plan, round_number))
    keep_back = exchange == "delta" and plan.encoding.error_feedback
    zeros = np.zeros_like(values)
    left_out = np.where(mask.kept, zeros, values) if keep_back else zeros
    return PrunedUpdate(np.where(mask.kept, values, zeros), mask, exchange, left_out)
