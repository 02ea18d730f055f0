"""From float updates to integers that sum exactly: clips, weights, rounding, reserved numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import MIN_SITE_DIGIT, RlweParameters, choose
from fedshield.errors import CryptoError
from fedshield.plan.schema import Plan
from fedshield.site.settings import clip_rule
from fedshield.types import (
    AdapterSpec,
    AdapterState,
    EncodedIntegers,
    Float32,
    Layout,
    Selection,
    TensorSpec,
)
from fedshield.update import encode_integers
from fedshield.update.encode_grid import mean_of
from fedshield.update.encode_integers import (
    CLIP_FLOOR,
    CLIP_GROWTH,
    CLIP_MARGIN,
    CONTRIBUTORS,
    COUNT,
    LOSS,
    LOSS_STEP,
    MAX_LOSS,
    UPDATE_RESERVED,
    WEIGHT,
    WEIGHT_STEP,
    WEIGHTS_RESERVED,
    decode_sum,
    encode_count,
    encode_update,
    weights_layout,
)

MakePlan = Callable[..., Plan]

SPEC = AdapterSpec((TensorSpec("a", (5, 8)), TensorSpec("b", (4, 3))), "00" * 32, 2.0)
SMALL = choose(3, 8, 1000)
WIDE = choose(3, 16, 1000)
HEADROOM = choose(3, 8, 1000, headroom=True)


def everything(spec: AdapterSpec) -> Selection:
    return Selection(np.arange(spec.num_values, dtype=np.int64), spec)


ALL = everything(SPEC)


def update_layout(spec: AdapterSpec, parameters: RlweParameters) -> Layout:
    """Of an update of which all coordinates travel."""
    digest = everything(spec).sha256()
    return encode_integers.update_layout(digest, spec.num_values, parameters)


def parts_of(bounds: Float32, spec: AdapterSpec = SPEC) -> list[tuple[slice, float]]:
    return list(zip(spec.slices().values(), bounds.tolist(), strict=True))


def next_clip(
    plan: Plan, bounds: Float32, before: AdapterState, after: AdapterState, next_round: int
) -> Float32:
    """Where all coordinates travel and the adapter moves by the mean alone."""
    mean = after.values.astype(np.float64)
    if plan.adapter.exchange == "delta":
        mean = mean - before.values.astype(np.float64)
    rule = clip_rule(plan)
    return encode_integers.next_clip(rule, bounds, before, after, ALL, mean, next_round)


def first_clip(plan: Plan, start: AdapterState) -> Float32:
    return encode_integers.first_clip(clip_rule(plan), start)


def clip(*bounds: float) -> Float32:
    return np.array(bounds, dtype=np.float32)


def encoded(
    values: Any,
    bounds: Float32,
    weight: float = 1 / 3,
    loss: float = 1.0,
    parameters: RlweParameters = SMALL,
    seed: int = 1,
    spec: AdapterSpec = SPEC,
) -> EncodedIntegers:
    array = np.broadcast_to(np.asarray(values, dtype=np.float32), spec.num_values).copy()
    layout = update_layout(spec, parameters)
    return encode_update(array, layout, parts_of(bounds, spec), weight, loss, parameters, seed)


def state(values: Any) -> AdapterState:
    array = np.broadcast_to(np.asarray(values, dtype=np.float32), SPEC.num_values).copy()
    return AdapterState(array, SPEC)


def normal(seed: int, scale: float = 1.0) -> Float32:
    return np.random.default_rng(seed).normal(0, scale, SPEC.num_values).astype(np.float32)


def shares_of_one(raw: Sequence[int]) -> list[float]:
    return [one / sum(raw) for one in raw]


# -- clips ------------------------------------------------------------------------------------


def test_the_first_clip_is_how_far_training_reaches(make_plan: MakePlan) -> None:
    training = {"training.learning_rate": 0.25, "training.steps": 6}
    plan = make_plan(training)
    start = state(normal(1))
    assert first_clip(plan, start).tolist() == [1.5, 1.5]
    assert first_clip(plan, start).dtype == np.float32
    # AdamW's steps are about the rate, whatever the gradient; SGD's are bounded by its clip.
    sgd = {**training, "training.optimizer": "sgd"}
    for norm, reach in ((0.5, 0.75), (2.0, 3.0), (None, 1.5)):
        assert first_clip(make_plan({**sgd, "training.max_grad_norm": norm}), start)[0] == reach
    for norm in (0.5, None):
        assert first_clip(make_plan({**training, "training.max_grad_norm": norm}), start)[0] == 1.5
    # Muon's have a root mean square of 0.2 rates: five of those, or as few as few steps resolve.
    muon = {**training, "training.optimizer": "muon"}
    assert first_clip(make_plan(muon), start)[0] == pytest.approx(1.5)
    coarse = {**muon, "encoding.bits": 2, "encoding.headroom": True}
    assert first_clip(make_plan(coarse), start)[0] == pytest.approx(0.6)


def test_the_first_clip_of_parameters_holds_them_as_well(make_plan: MakePlan) -> None:
    plan = make_plan(
        {
            "training.learning_rate": 0.25,
            "training.steps": 2,
            "adapter.exchange": "parameters",
        }
    )
    values = np.zeros(SPEC.num_values, dtype=np.float32)
    values[3], values[41] = -7.0, 2.0
    assert first_clip(plan, state(values)).tolist() == [7.5, 2.5]


def test_a_clip_follows_what_moved(make_plan: MakePlan) -> None:
    """Twice the largest value of the last mean, by tensor."""
    plan = make_plan()
    before, moved = state(normal(1)), np.zeros(SPEC.num_values, dtype=np.float32)
    moved[5], moved[6], moved[45] = 0.25, -0.75, 0.5
    after = state(before.values + moved)
    found = next_clip(plan, clip(4.0, 4.0), before, after, 2)
    assert CLIP_MARGIN == 2.0
    np.testing.assert_allclose(found, [1.5, 1.0], rtol=1e-6)
    assert found.dtype == np.float32


def test_a_clip_at_most_doubles_and_never_falls_below_the_floor(make_plan: MakePlan) -> None:
    plan = make_plan({"training.learning_rate": 0.25, "training.steps": 6})
    assert (CLIP_GROWTH, CLIP_FLOOR) == (2.0, 2.0**-10)
    before = state(0.0)
    bounds = first_clip(plan, before)
    for number in range(2, 8):
        grown = next_clip(plan, bounds, before, state(1e6), number)
        np.testing.assert_array_equal(grown, bounds * 2)
        bounds = grown
    for number in range(2, 8):
        bounds = next_clip(plan, bounds, before, before, number)
        np.testing.assert_array_equal(bounds, np.full(2, 1.5 * 2.0**-10, np.float32))
    # From the floor it grows again.
    np.testing.assert_array_equal(next_clip(plan, bounds, before, state(1.0), 9), bounds * 2)


@given(
    scales=st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=12),
    exchange=st.sampled_from(["delta", "parameters"]),
)
def test_clips_stay_in_their_bounds(
    make_plan: MakePlan, scales: list[float], exchange: str
) -> None:
    plan = make_plan({"adapter.exchange": exchange})
    now = state(normal(7, 0.01))
    bounds = first_clip(plan, now)
    for number, scale in enumerate(scales):
        then = state((now.values + normal(number, scale)).astype(np.float32))
        found = next_clip(plan, bounds, now, then, number + 2)
        assert np.isfinite(found).all()
        assert (found > 0).all()
        assert (found <= np.maximum(bounds * 2, _floor(plan, now))).all()
        assert (found >= _floor(plan, now)).all()
        now, bounds = then, found


def _floor(plan: Plan, before: AdapterState) -> Float32:
    return (first_clip(plan, before).astype(np.float64) * CLIP_FLOOR).astype(np.float32)


def test_clips_of_parameters_hold_the_parameters(make_plan: MakePlan) -> None:
    """What is exchanged is the whole parameter: its size and what training adds, however little
    it moved. The last round's rate is used after it."""
    plan = make_plan(
        {
            "adapter.exchange": "parameters",
            "training.learning_rate": 0.25,
            "training.min_learning_rate": 0.01,
            "training.steps": 2,
            "rounds": 2,
        }
    )
    before, after = state(3.0), state(4.0)
    bounds = clip(3.5, 3.5)
    rate = 0.01 + 0.24 * 0.5  # cosine, half way
    for number in (2, 3, 9):
        found = next_clip(plan, bounds, before, after, number)
        np.testing.assert_allclose(found, 4.0 + 2 * rate, rtol=1e-6)
    assert next_clip(plan, clip(1.0, 8.0), before, after, 2).tolist()[0] == 2.0


def test_a_clip_follows_the_mean_over_what_travelled(make_plan: MakePlan) -> None:
    """By its places in the selection, whatever the optimiser made of it; a tensor that did not
    travel keeps its clip."""
    before = state(normal(1))
    some = Selection(np.array([3, 39, 40, 51], dtype=np.int64), SPEC)
    mean = np.array([0.25, -0.75, 0.5, -0.125])
    after = state(before.values + np.float32(7))
    rule, bounds, found = clip_rule(make_plan()), clip(4.0, 4.0), encode_integers.next_clip
    assert found(rule, bounds, before, after, some, mean, 2).tolist() == [1.5, 1.0]
    first = Selection(np.array([3, 39], dtype=np.int64), SPEC)
    assert found(rule, bounds, before, after, first, mean[:2], 2).tolist() == [1.5, 4.0]


@pytest.mark.parametrize(
    ("encoding", "deviations"),
    [
        ({"bits": 2, "headroom": True}, 2.0),  # one step
        ({"bits": 4, "headroom": True}, 2.0 + 0.65 * math.log2(7)),
        ({"bits": 6}, 2.0 + 0.65 * math.log2(31 // 2)),  # shared by two sites
        ({"bits": 16}, None),
        ({"bits": 8, "headroom": True}, None),
        ({"bits": 4, "headroom": True, "error_feedback": False}, None),
    ],
)
def test_with_few_steps_a_clip_follows_the_spread(
    make_plan: MakePlan, encoding: dict[str, Any], deviations: float | None
) -> None:
    """One large value does not make the steps of all others coarse, where it can be made up for
    in the next round."""
    plan = make_plan({f"encoding.{key}": value for key, value in encoding.items()})
    before, values = state(0.0), np.full(SPEC.num_values, 0.01)
    values[3], values[45] = 1.0, 0.015
    rule = clip_rule(plan)
    found = encode_integers.next_clip(rule, clip(4.0, 4.0), before, state(0.5), ALL, values, 2)
    largest = np.array([2.0, 0.03])
    if deviations is None:
        np.testing.assert_allclose(found, largest, rtol=1e-6)
        return
    spread = [math.sqrt((39 * 1e-4 + 1) / 40), math.sqrt((11 * 1e-4 + 2.25e-4) / 12)]
    np.testing.assert_allclose(found, np.minimum(largest, deviations * np.array(spread)), rtol=1e-6)
    assert found[0] < 2.0


def test_few_steps_do_not_make_a_clip_grow_by_their_own_noise(make_plan: MakePlan) -> None:
    """The mean of sites that send one step or none is noise up to the clip itself: a clip of twice
    its largest value would double in every round, whatever the sites have."""
    rule = clip_rule(make_plan({"encoding.bits": 2, "encoding.headroom": True}))
    parameters = choose(3, 2, 1000, headroom=True)
    rng, bounds = np.random.default_rng(1), clip(1.0, 1.0)
    spec = AdapterSpec((TensorSpec("a", (4000,)), TensorSpec("b", (4000,))), "00" * 32, 1.0)
    everything = Selection(np.arange(8000, dtype=np.int64), spec)
    zero = AdapterState(np.zeros(8000, dtype=np.float32), spec)
    values = rng.normal(0, 0.1, 8000).astype(np.float32)
    for number in range(2, 12):
        total = np.zeros(8000)
        for site in range(3):
            found = encode_integers.encode_update(
                values,
                encode_integers.update_layout("00", 8000, parameters),
                [(slice(0, 4000), float(bounds[0])), (slice(4000, 8000), float(bounds[1]))],
                1 / 3,
                1.0,
                parameters,
                10 * number + site,
            )
            total += found.digits
        mean = total / parameters.max_digit * np.repeat(bounds.astype(np.float64), 4000)
        bounds = encode_integers.next_clip(rule, bounds, zero, zero, everything, mean, number)
    assert (bounds > 0.15).all()
    assert (bounds < 0.35).all()


def test_every_site_finds_the_same_clips(make_plan: MakePlan) -> None:
    """From the same public state: bit for bit, whatever the site keeps for itself."""
    plan = make_plan()
    before, after = normal(1), normal(2)
    found = {
        next_clip(plan, clip(0.3, 0.4), state(before), state(after), 2).tobytes() for _ in range(3)
    }
    assert len(found) == 1


def test_an_empty_tensor_has_a_clip(make_plan: MakePlan) -> None:
    spec = AdapterSpec((TensorSpec("a", (0, 4)), TensorSpec("b", (2, 2))), "00" * 32, 1.0)
    plan = make_plan({"adapter.exchange": "parameters"})
    start = AdapterState(np.ones(4, dtype=np.float32), spec)
    assert (first_clip(plan, start) > 0).all()
    assert encoded(0.5, first_clip(plan, start), spec=spec).digits.shape == (4,)


# -- weights and digits -----------------------------------------------------------------------


@given(
    raw=st.lists(st.integers(1, 10**6), min_size=2, max_size=8),
    bits=st.integers(2, 16),
    headroom=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    reach=st.floats(0.01, 100.0),
)
def test_honest_sums_never_overflow(
    raw: list[int], bits: int, headroom: bool, seed: int, reach: float
) -> None:
    """Each site stays within floor(w M), or with headroom 1 + floor(w (M - K)), whatever it has
    and whatever its clip says; so all together within M: for every set of weights that is not
    refused, and with headroom none is."""
    parameters = choose(len(raw), bits, 1000, headroom=headroom)
    top = parameters.max_digit
    total = np.zeros(SPEC.num_values, dtype=np.int64)
    rng = np.random.default_rng(seed % 2**32)
    for site, weight in enumerate(shares_of_one(raw)):
        values = rng.choice([-1, 1]) * np.full(SPEC.num_values, reach, np.float32)
        try:
            found = encoded(values, clip(1.0, 3.0), weight, 1.0, parameters, seed ^ site)
        except CryptoError:
            assert not headroom
            assert int(weight * top) < MIN_SITE_DIGIT
            continue
        limit = int(np.abs(found.digits.astype(np.int64)).max())
        # But for the rounding of the weight itself (1/49 * 49 is below one).
        most = 1 + weight * (top - len(raw)) if headroom else weight * top
        assert limit <= most * (1 + 2.0**-49)
        total += np.abs(found.digits.astype(np.int64))
    assert int(total.max()) <= top


@pytest.mark.parametrize("num_sites", range(2, 65))
def test_equal_weights_leave_no_room_and_take_none_too_much(num_sites: int) -> None:
    """The nudge that mends 1/K in float64 never lets K sites overflow."""
    for parameters in (choose(num_sites, 16, 10), choose(num_sites, 4, 10, headroom=True)):
        limit = parameters.site_limit(1 / num_sites)
        assert limit == parameters.max_digit // num_sites
        assert num_sites * limit <= parameters.max_digit


def test_digits_are_weighted_steps_of_the_clip() -> None:
    """A value at the clip is floor(w M) steps; one of a step's whole multiple is that multiple."""
    weight, top = 0.25, SMALL.max_digit
    assert top == 127
    step = 1.0 / (weight * top)  # of a clip of one
    values = np.zeros(SPEC.num_values, dtype=np.float32)
    values[:4] = [1.0, -1.0, 0.0, 8 * step]
    values[40:44] = [3.0, -3.0, 100.0, -6 * step]
    found = encoded(values, clip(1.0, 3.0), weight)
    limit = int(weight * top)
    assert limit == 31
    assert found.digits[:2].tolist() == [limit, -limit]
    assert found.digits[2] == 0
    assert found.digits[3] in (7, 8)  # 8 but for the float32 of the value
    assert found.digits[40:43].tolist() == [limit, -limit, limit]
    assert found.digits[43] in (-3, -2, -1)  # two steps of the second tensor's clip
    assert found.num_clipped == 5  # the clip itself is 31.75 steps of 31


@given(
    weight=st.floats(0.1, 1.0),
    bound=st.floats(2.0**-20, 2.0**20, width=32),
    seed=st.integers(0, 2**63 - 1),
    parameters=st.sampled_from([SMALL, WIDE, HEADROOM]),
)
def test_the_residual_is_what_was_left_out(
    weight: float, bound: float, seed: int, parameters: RlweParameters
) -> None:
    """Exactly value - digit * step, as float32: of rounding, less than a step; of clipping, all
    that lies beyond."""
    values = np.random.default_rng(seed % 1000).normal(0, bound, SPEC.num_values)
    values = values.astype(np.float32)
    found = encoded(values, clip(bound, bound / 2), weight, 1.0, parameters, seed)
    bounds = np.repeat([bound, np.float32(bound / 2)], [40, 12]).astype(np.float64)
    step = 1.0 / (weight * parameters.max_digit / bounds)
    exact = values.astype(np.float64) - found.digits * step
    np.testing.assert_array_equal(found.residual, exact.astype(np.float32))
    limit = parameters.site_limit(weight)
    beyond = np.abs(values) > limit * step
    assert (np.abs(exact[~beyond]) <= step[~beyond] * (1 + 1e-9)).all()
    assert (np.abs(found.digits[beyond].astype(np.int64)) == limit).all()
    assert found.num_clipped == np.count_nonzero(beyond)
    assert not found.residual.flags.writeable
    assert not found.digits.flags.writeable


def test_rounding_is_right_on_the_mean() -> None:
    """Over seeds, the digits of one update average to its values, in both tensors."""
    values = normal(3, 0.3).clip(-0.9, 0.9)
    weight, draws = 1 / 3, 3000
    total = np.zeros(SPEC.num_values)
    for seed in range(draws):
        total += encoded(values, clip(1.0, 2.0), weight, seed=seed * 7919).digits
    steps = values.astype(np.float64) * weight * SMALL.max_digit
    steps[40:] /= 2
    deviation = np.sqrt(0.25 / draws)
    assert np.abs(total / draws - steps).max() < 5.5 * deviation
    # Over all coordinates together no drift up or down either.
    assert abs((total / draws - steps).mean()) < 5.5 * deviation / SPEC.num_values**0.5


def test_coordinates_round_independently() -> None:
    """One number of the seed's stream each: equal values do not all go the same way, in one
    tensor and between tensors."""
    weight = 0.5
    half = 0.5 / (weight * SMALL.max_digit)
    found = encoded(np.full(SPEC.num_values, half), clip(1.0, 1.0), weight).digits
    assert set(found[:40].tolist()) == set(found[40:].tolist()) == {0, 1}
    assert found[:12].tolist() != found[40:].tolist()
    assert 10 < int(found.sum()) < 42


def test_a_seed_repeats_and_another_rounds_otherwise() -> None:
    first, again = (encoded(normal(1), clip(1.0, 1.0), seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.digits, again.digits)
    assert (first.digits != encoded(normal(1), clip(1.0, 1.0), seed=6).digits).any()


@pytest.mark.parametrize(
    ("parameters", "dtype"),
    [
        (choose(3, 8, 10), np.int16),
        (choose(64, 16, 10), np.int16),
        (choose(3, 4, 10, headroom=True), np.int16),
        (choose(64, 12, 10, headroom=True), np.int32),
        (choose(2, 16, 10, headroom=True), np.int32),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_digits_are_as_wide_as_the_range_of_the_sum(
    parameters: RlweParameters, dtype: type[np.signedinteger]
) -> None:
    """Not as the site's own: all sites then hash and send alike, whatever their weights."""
    for weight in (1 / parameters.num_sites, 1.0):
        found = encoded(normal(1), clip(1.0, 1.0), weight, 1.0, parameters)
        assert found.digits.dtype == dtype


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 39, 40, 51])
def test_what_is_no_number_is_refused(bad: float, place: int) -> None:
    values = normal(1)
    values[place] = bad
    with pytest.raises(CryptoError, match="finite values, got 1"):
        encoded(values, clip(1.0, 1.0))


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(CryptoError, match="finite training loss"):
        encoded(normal(1), clip(1.0, 1.0), loss=loss)


@pytest.mark.parametrize(
    ("parameters", "weight", "knob"),
    [
        (SMALL, 0.03, r"at least 4 steps .*at 8 bits, got 3; use more bits or headroom"),
        (SMALL, 1e-9, r"got 0; use more bits or headroom"),
        (choose(64, 8, 10), 1 / 64, r"at least 4 steps .*at 8 bits, got 1; use more bits or head"),
    ],
)
def test_a_weight_too_small_for_the_bits_names_the_knob(
    parameters: RlweParameters, weight: float, knob: str
) -> None:
    with pytest.raises(CryptoError, match=knob):
        encoded(normal(1), clip(1.0, 1.0), weight, 1.0, parameters)
    fits = MIN_SITE_DIGIT / parameters.max_digit
    assert encoded(normal(1), clip(1.0, 1.0), fits, 1.0, parameters).digits.any()


def test_with_headroom_any_weight_has_a_step() -> None:
    """Of two bits, one: rounded at random, so that the mean over rounds is right."""
    two_bits = choose(3, 2, 1000, headroom=True)
    for parameters, weight in ((HEADROOM, 0.002), (two_bits, 0.01), (two_bits, 0.9)):
        found = encoded(np.full(SPEC.num_values, 2.0, np.float32), clip(1.0, 1.0), weight, 1.0,
                        parameters)  # fmt: skip
        assert set(found.digits.tolist()) <= {0, parameters.site_limit(weight)}
    values = np.full(SPEC.num_values, 0.4, np.float32)
    digits = [
        encoded(values, clip(1.0, 1.0), 0.2, 1.0, two_bits, seed).digits for seed in range(2000)
    ]
    assert np.mean(digits) == pytest.approx(0.4 * 0.2 * two_bits.max_digit, rel=0.02)


# -- reserved integers ------------------------------------------------------------------------


def test_layouts_name_what_is_reserved() -> None:
    layout = update_layout(SPEC, SMALL)
    assert layout.reserved == (CONTRIBUTORS, WEIGHT, LOSS)
    assert layout.num_values == SPEC.num_values
    assert weights_layout(SMALL).reserved == (CONTRIBUTORS, COUNT)
    assert weights_layout(SMALL).num_values == 0


def test_layouts_that_differ_have_different_digests() -> None:
    """So that what was laid out, packed or cut otherwise is never added."""
    other = AdapterSpec((TensorSpec("a", (8, 5)), TensorSpec("b", (4, 3))), "00" * 32, 2.0)
    found = [
        update_layout(SPEC, SMALL),
        update_layout(other, SMALL),
        update_layout(replace(SPEC, base_model_sha256="11" * 32), SMALL),
        update_layout(SPEC, WIDE),
        update_layout(SPEC, HEADROOM),
        update_layout(SPEC, choose(4, 8, 1000)),
        weights_layout(SMALL),
        weights_layout(WIDE),
    ]
    assert len({one.sha256() for one in found}) == len(found)


@given(
    weight=st.floats(0.04, 1.0),
    loss=st.one_of(st.floats(-10, 3000), st.sampled_from([0.0, MAX_LOSS, -1.0, 1e30])),
)
def test_reserved_integers_fit_their_bits(weight: float, loss: float) -> None:
    found = encoded(0.0, clip(1.0, 1.0), weight, loss)
    for one, bits in zip(found.reserved, UPDATE_RESERVED.values(), strict=True):
        assert 0 <= one < 1 << bits
    one, weighed, lost = found.reserved
    assert one == 1
    assert abs(weighed * WEIGHT_STEP - weight) <= WEIGHT_STEP / 2
    assert abs(lost * LOSS_STEP - weight * min(max(loss, 0.0), MAX_LOSS)) <= LOSS_STEP / 2


def test_reserved_integers_have_room_in_every_packing() -> None:
    for num_sites in (2, 3, 16, 64, 390):
        for bits in (2, 4, 8, 12, 16):
            for headroom in (False, True):
                try:
                    parameters = choose(num_sites, bits, 10, headroom=headroom)
                except CryptoError:
                    continue
                for reserved in (UPDATE_RESERVED, WEIGHTS_RESERVED):
                    RlweLayout(parameters, 5, tuple(reserved.values()))
                    # Every site's largest: their sum does not go around.
                    assert all(num_sites << bits < parameters.q for bits in reserved.values())


def test_counts() -> None:
    for count in (1, 2, 41, 2**30 - 1):
        found = encode_count(count, SMALL)
        assert (found.reserved, found.digits.size, found.num_clipped) == ((1, count), 0, 0)
        assert found.layout == weights_layout(SMALL)
    for count in (0, -1, 2**30):
        with pytest.raises(ValueError, match="examples"):
            encode_count(count, SMALL)


# -- decoding ---------------------------------------------------------------------------------


def summed(parts: Sequence[EncodedIntegers]) -> tuple[Any, tuple[int, ...]]:
    values = np.sum([one.digits.astype(np.int64) for one in parts], axis=0, dtype=np.int64)
    return values, tuple(map(sum, zip(*(one.reserved for one in parts), strict=True)))


@given(
    raw=st.lists(st.integers(1, 1000), min_size=3, max_size=3),
    seed=st.integers(0, 2**32),
    parameters=st.sampled_from([WIDE, HEADROOM]),
)
def test_the_decoded_sum_is_the_weighted_mean(
    raw: list[int], seed: int, parameters: RlweParameters
) -> None:
    """To within a step a site, in both tensors; and with each site's residual, weighted, to
    within the float32 of the residuals."""
    weights = shares_of_one(raw)
    if min(weights) * parameters.max_digit < 5:
        return
    bounds = clip(1.0, 4.0)
    updates = [normal(seed + n, 0.3).clip(-0.9, 0.9) for n in range(3)]
    losses = [0.5, 2.0, 7.25]
    parts = [
        encoded(update, bounds, weight, loss, parameters, seed + n)
        for n, (update, weight, loss) in enumerate(zip(updates, weights, losses, strict=True))
    ]
    values, reserved = summed(parts)
    opened = decode_sum(
        values, reserved, parts[0].layout, 3, parts_of(bounds), parameters.max_digit
    )
    mean = np.sum([w * u.astype(np.float64) for w, u in zip(weights, updates, strict=True)], axis=0)
    left = np.sum([w * p.residual for w, p in zip(weights, parts, strict=True)], axis=0)
    np.testing.assert_allclose(opened.values + left, mean, atol=1e-6)
    assert opened.reserved[CONTRIBUTORS] == 3
    assert abs(opened.reserved[WEIGHT] - 1) <= 3 * WEIGHT_STEP
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    assert abs(opened.reserved[LOSS] - expected) <= 3 * LOSS_STEP
    # The next adapter is the mean over those who were in it.
    taken = mean_of(opened, 0.25)
    np.testing.assert_allclose(taken, opened.values, atol=2e-6)


def test_a_mean_over_some_is_renormalised() -> None:
    """Two of three sites: the weight that came divides the sum."""
    weights = [0.5, 0.3]
    updates = [0.5, -0.25]
    parts = [
        encoded(update, clip(1.0, 1.0), weight, 1.0, WIDE)
        for update, weight in zip(updates, weights, strict=True)
    ]
    values, reserved = summed(parts)
    opened = decode_sum(
        values, reserved, parts[0].layout, 2, parts_of(clip(1.0, 1.0)), WIDE.max_digit
    )
    np.testing.assert_allclose(mean_of(opened, 0.5), (0.25 - 0.075) / 0.8, atol=1e-4)
    with pytest.raises(CryptoError) as caught:
        mean_of(opened, 0.9)
    assert caught.value.code == "weight"


@pytest.mark.parametrize(("ones", "voted"), [(3, 2), (2, 3), (0, 3), (4, 3)])
def test_another_number_of_contributors_is_refused(ones: int, voted: int) -> None:
    values = np.zeros(SPEC.num_values, dtype=np.int64)
    for layout, reserved in (
        (update_layout(SPEC, SMALL), (ones, 2**30, 0)),
        (weights_layout(SMALL), (ones, 10)),
    ):
        sums = values[: layout.num_values]
        with pytest.raises(CryptoError, match=f"expected {voted} contributors, got") as caught:
            decode_sum(sums, reserved, layout, voted)
        assert caught.value.code == "weight"


def test_counts_come_back_as_they_were_summed() -> None:
    parts = [encode_count(n, SMALL) for n in (41, 1200, 380)]
    values, reserved = summed(parts)
    opened = decode_sum(values, reserved, weights_layout(SMALL), 3)
    assert dict(opened.reserved) == {CONTRIBUTORS: 3.0, COUNT: 1621.0}
    assert opened.values.shape == (0,)


def test_large_sums_are_exact() -> None:
    """64 sites at the ends of the reserved integers and of the digits."""
    parameters = choose(64, 16, 10)
    layout = update_layout(SPEC, parameters)
    top = np.full(SPEC.num_values, parameters.max_digit, dtype=np.int64)
    reserved = (64, 64 * (2**31 - 1), 64 * (2**31 - 1))
    opened = decode_sum(top, reserved, layout, 64, parts_of(clip(1.0, 0.25)), parameters.max_digit)
    assert set(opened.values[:40].tolist()) == {1.0}
    assert set(opened.values[40:].tolist()) == {0.25}
    assert opened.reserved[WEIGHT] == 64 * (2**31 - 1) * WEIGHT_STEP


def test_names_are_those_that_the_model_reads() -> None:
    """`encode.mean_of` divides by the weight under its own name."""
    from fedshield.update import encode_grid

    assert encode_integers.WEIGHT == encode_grid.WEIGHT
