"""From float updates to small integers whose sum is exact, for `rlwe`.

A tensor's values are cut to its clip, which every site computes from the same public state,
scaled by the site's weight and rounded at random to steps of clip / M, M being the largest digit
of a sum; so weighted sites share one range and honest sums cannot overflow. Weight, training
loss and a one for each contributor travel beside the values as reserved integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.errors import CryptoError
from fedshield.plan.schema import learning_rate
from fedshield.plan.sections import EncodingPlan, TrainingPlan
from fedshield.types import (
    AdapterSpec,
    AdapterState,
    EncodedIntegers,
    Exchange,
    Float32,
    Float64,
    Layout,
    OpenedSum,
    Selection,
)
from fedshield.update.encode_grid import WEIGHT as WEIGHT
from fedshield.update.quantise import quantise

CONTRIBUTORS, LOSS, COUNT = "contributors", "loss", "count"
#: Reserved integers of an update and of the weights phase: name -> bits that a site may send.
UPDATE_RESERVED = {CONTRIBUTORS: 1, WEIGHT: 31, LOSS: 31}
WEIGHTS_RESERVED = {CONTRIBUTORS: 1, COUNT: 30}
WEIGHT_STEP = 2.0**-30
LOSS_STEP = 2.0**-20
MAX_LOSS = 1024.0
#: Root mean square of a step of Muon's in learning rates (`match_rms_adamw`), and how many of them
#: a value may be from the mean where steps are many.
MUON_RMS, MUON_DEVIATIONS = 0.2, 5.0
#: A clip follows the last mean update: this many times its largest value, never more than
#: doubled from round to round, never below this share of where it began.
CLIP_MARGIN = 2.0
#: With few steps the noise of rounding is what counts, and what is clipped comes back by error
#: feedback: then a clip is at most (a + b log2 steps) root mean squares of that mean.
FEW_STEPS = 64
CLIP_DEVIATIONS = (2.0, 0.65)
CLIP_GROWTH = 2.0
CLIP_FLOOR = 2.0**-10


# -- layouts -------------------------------------------------------------------------------


def _layout(
    spec_sha256: str, num_values: int, reserved: dict[str, int], parameters: RlweParameters
) -> Layout:
    bits = ",".join(map(str, reserved.values()))
    return Layout(
        spec_sha256=spec_sha256,
        num_values=num_values,
        reserved=tuple(reserved),
        values_per_block=parameters.values_per_block,
        number_format=f"rlwe {parameters.name} reserved {bits}",
    )


def update_layout(sha256: str, num_values: int, parameters: RlweParameters) -> Layout:
    """`sha256`: of what travels (`Selection.sha256`)."""
    return _layout(sha256, num_values, UPDATE_RESERVED, parameters)


def weights_layout(parameters: RlweParameters) -> Layout:
    return _layout("weights", 0, WEIGHTS_RESERVED, parameters)


# -- clips ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipRule:
    """What the clips of a run follow from, besides the sums that were opened: public, and alike at
    every site.

    `exchange`: whether differences or whole parameters travel; `training`: how far a round can move
    a parameter; `encoding`: bits of a value, and whether what is clipped comes back; `rounds`: of
    the whole run; `num_sites`: that share the range of a value.
    """

    exchange: Exchange
    training: TrainingPlan
    encoding: EncodingPlan
    rounds: int
    num_sites: int


def _reach(rule: ClipRule, round_number: int) -> float:
    """How far local training can move a parameter in a round: AdamW takes steps of about the
    learning rate; Muon's are orthogonal matrices of a known root mean square; SGD's are bounded
    by the clipped gradient."""
    training = rule.training
    reach = learning_rate(training, rule.rounds, round_number) * training.steps
    if training.optimizer == "sgd":
        reach *= training.max_grad_norm or 1.0
    elif training.optimizer == "muon":
        reach *= MUON_RMS * (_deviations(rule.encoding, rule.num_sites) or MUON_DEVIATIONS)
    return max(reach, 1e-12)


def first_clip(rule: ClipRule, state: AdapterState) -> Float32:
    """The clip of each tensor in round 1: float32, (number of tensors,)."""
    return _bound(rule, state, 1).astype(np.float32)


def _bound(rule: ClipRule, state: AdapterState, round_number: int) -> Float64:
    """The largest magnitude that training can be expected to give in a round."""
    reach = _reach(rule, round_number)
    bound = np.full(len(state.spec.tensors), reach)
    if rule.exchange == "parameters":
        bound += _largest(state.values.astype(np.float64), state.spec)
    return bound


def _largest(values: Float64, spec: AdapterSpec) -> Float64:
    places = spec.slices().values()
    return np.array([np.abs(values[place]).max(initial=0.0) for place in places])


def next_clip(
    rule: ClipRule,
    clip: Float32,
    before: AdapterState,
    after: AdapterState,
    selection: Selection,
    mean: Float64,
    next_round: int,
) -> Float32:
    """The clip of each tensor in round `next_round`: from what is public, so every site finds the
    same. A tensor that did not travel keeps its clip.

    Args:
        rule: what clips follow from in this run.
        clip: float32, (number of tensors,), what was in force.
        before: the adapter before the round just summed.
        after: the adapter after it.
        selection: what travelled.
        mean: float64, (selection.size,), as it was opened.
        next_round: from 2.

    Returns:
        float32, (number of tensors,).
    """
    floor = _bound(rule, before, 1) * CLIP_FLOOR
    wanted = clip.astype(np.float64)
    deviations = _deviations(rule.encoding, rule.num_sites)
    if rule.exchange == "parameters":
        wanted = _bound(rule, after, min(next_round, rule.rounds))
    else:
        for number, part in selection.parts():
            wanted[number] = CLIP_MARGIN * np.abs(mean[part]).max()
            if deviations:
                spread = math.sqrt(float(np.mean(np.square(mean[part]))))
                wanted[number] = min(wanted[number], deviations * spread)
    grown = np.minimum(wanted, CLIP_GROWTH * clip.astype(np.float64))
    return np.maximum(grown, floor).astype(np.float32)


def _deviations(encoding: EncodingPlan, num_sites: int) -> float:
    """Root mean squares of the last mean that a clip may be; 0 where steps are many, or what is
    clipped would be lost."""
    own = (1 << encoding.bits - 1) - 1
    steps = own if encoding.headroom else own // num_sites
    if not encoding.error_feedback or steps >= FEW_STEPS or steps < 1:
        return 0.0
    return CLIP_DEVIATIONS[0] + CLIP_DEVIATIONS[1] * math.log2(steps)


# -- encoding ------------------------------------------------------------------------------


def encode_update(
    values: Float32,
    layout: Layout,
    parts: Sequence[tuple[slice, float]],
    weight: float,
    train_loss: float,
    parameters: RlweParameters,
    seed: int,
) -> EncodedIntegers:
    """The site's digits and reserved integers. `values`: float32, (layout.num_values,), those
    that travel; `parts`: (slice of them, its clip), covering all; `seed`: of the stochastic
    rounding, 63 bits, the site's own.

    Raises `CryptoError` for values that are not finite, and for a weight too small for the bits.
    """
    limit = parameters.site_limit(weight)
    top = parameters.max_digit
    digits: NDArray[np.int16] | NDArray[np.int32] = np.empty(values.size, dtype=np.int16)
    if top >= 2**15:
        digits = np.empty(values.size, dtype=np.int32)
    residual = np.empty(values.size, dtype=np.float32)
    clipped = 0
    for part, bound in parts:
        _, more = quantise(
            values[part],
            weight * top / bound,
            limit,
            seed,
            start=part.start,
            out=digits[part],
            residual=residual[part],
        )
        clipped += more
    if not math.isfinite(train_loss):
        raise CryptoError("update: expected a finite training loss; training diverged")
    loss = min(max(train_loss, 0.0), MAX_LOSS)
    reserved = (1, round(weight / WEIGHT_STEP), round(weight * loss / LOSS_STEP))
    return EncodedIntegers(digits, reserved, layout, clipped, residual)


def encode_count(num_examples: int, parameters: RlweParameters) -> EncodedIntegers:
    """The site's example count, rounded, as a reserved integer."""
    if not 0 < num_examples < 1 << WEIGHTS_RESERVED[COUNT]:
        raise ValueError(f"expected 1 to 2^{WEIGHTS_RESERVED[COUNT]} - 1 examples")
    none = np.zeros(0, dtype=np.int16)
    layout = weights_layout(parameters)
    return EncodedIntegers(none, (1, num_examples), layout, 0, np.zeros(0, dtype=np.float32))


# -- decoding ------------------------------------------------------------------------------


def decode_sum(
    values: np.ndarray[tuple[int], np.dtype[np.int64]],
    reserved: tuple[int, ...],
    layout: Layout,
    num_contributors: int,
    parts: Sequence[tuple[slice, float]] = (),
    max_digit: int = 1,
) -> OpenedSum:
    """The opened integers as the weighted sum of values. Raises `CryptoError` ('weight') if the
    number of contributors is not the one that was voted for."""
    named = dict(zip(layout.reserved, map(float, reserved), strict=True))
    if named[CONTRIBUTORS] != num_contributors:
        raise CryptoError(
            f"sum: expected {num_contributors} contributors, got {named[CONTRIBUTORS]:g}", "weight"
        )
    sums = values.astype(np.float64)
    for part, bound in parts:
        sums[part] *= bound / max_digit
    if WEIGHT in named:
        named[WEIGHT] *= WEIGHT_STEP
        named[LOSS] *= LOSS_STEP
    return OpenedSum(sums, named, layout)
