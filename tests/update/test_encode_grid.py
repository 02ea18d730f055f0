"""From floats to numbers that sum exactly, and from the sum to the next adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedshield.crypto.scheme import CKKS, PLAIN
from fedshield.errors import CryptoError, PlanError
from fedshield.plan.data import MAX_SITES
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.types import (
    AdapterSpec,
    AdapterState,
    EncodedUpdate,
    Exchange,
    Float32,
    Float64,
    OpenedSum,
    Selection,
    TensorSpec,
)
from fedshield.update import server_optimizer
from fedshield.update.encode_grid import (
    COUNT_BASE,
    COUNT_DIGITS,
    decode_count,
    decode_sum,
    encode_count,
    encode_update,
    mean_of,
    round_count,
    update_layout,
    weights_layout,
)
from fedshield.update.server_optimizer import Moments

MakePlan = Callable[..., Plan]

SPEC = AdapterSpec(
    (TensorSpec("q.lora_A.weight", (2, 5)), TensorSpec("q.lora_B.weight", (3, 2))), "", 2.0
)
NUM = SPEC.num_values
ALL = Selection(np.arange(NUM, dtype=np.int64), SPEC)
LAYOUT = update_layout(ALL.sha256(), NUM, CKKS["lean"], "ckks")
COUNTS = weights_layout(CKKS["lean"], "ckks")
#: Every grid that a plan may ask for.
GRIDS = range(19, 23)
LIMIT = 2.0**10

adapters = npst.arrays(np.float32, NUM, elements=st.floats(-4, 4, width=32))


def encoded(
    values: Float32, weight: float, grid_bits: int | None = 22, limit: float = LIMIT
) -> EncodedUpdate:
    given = np.array(values, np.float32)
    return encode_update(given, weight, LAYOUT, grid_bits=grid_bits, slot_limit=limit)


def on_grid(slots: Float64, grid_bits: int) -> bool:
    steps = slots * 2.0**grid_bits
    return bool((steps == np.rint(steps)).all())


def opened(uploads: Sequence[EncodedUpdate]) -> OpenedSum:
    return decode_sum(np.sum([upload.slots for upload in uploads], axis=0), LAYOUT)


def state(values: Float32 | float = 0.0) -> AdapterState:
    return AdapterState(np.full(NUM, values, np.float32), SPEC)


def apply_sum(
    before: AdapterState, found: OpenedSum, exchange: Exchange, least_weight: float | None = None
) -> AdapterState:
    """The next adapter by FedAvg, where all coordinates travel: what a site does with a sum."""
    sites = {name: {"source": "sample:finance"} for name in ("x", "y", "z")}
    raw = {"data": {"sites": sites}, "adapter": {"exchange": exchange}}
    plan = parse_plan(raw, base_dir=Path.cwd())
    mean = mean_of(found, least_weight)
    if exchange == "parameters":
        return server_optimizer.replaced(before, ALL, mean)
    none = Moments()
    after, moments = server_optimizer.step(plan.aggregation, before, ALL, mean, none)
    assert moments == none
    return after


def test_a_plan_may_ask_for_these_grids_and_no_others(make_plan: MakePlan) -> None:
    for grid_bits in GRIDS:
        make_plan({"encoding.grid_bits": grid_bits})
    for grid_bits in (8, 9, GRIDS.start - 1, GRIDS.stop):
        with pytest.raises(PlanError, match=r"encoding\.grid_bits"):
            make_plan({"encoding.grid_bits": grid_bits})


# -- counts --------------------------------------------------------------------------------


def test_counts_are_rounded_to_two_digits() -> None:
    given_counts = [1, 9, 99, 100, 104, 106, 994, 996, 1049, 1051, 33_955, 262_039, 10**6]
    expected = [1, 9, 99, 100, 100, 110, 990, 1000, 1000, 1100, 34_000, 260_000, 10**6]
    assert [round_count(count) for count in given_counts] == expected


@given(st.integers(1, 10**9))
def test_a_rounded_count_is_near_and_tells_two_digits(count: int) -> None:
    rounded = round_count(count)
    assert abs(rounded - count) <= count * 0.05
    assert rounded == count if count < 100 else set(str(rounded)[2:]) <= {"0"}
    assert round_count(rounded) == rounded


@given(st.lists(st.integers(1, COUNT_BASE**COUNT_DIGITS - 1), min_size=1, max_size=MAX_SITES))
def test_counts_sum_exactly_on_every_grid(counts: list[int]) -> None:
    uploads = [encode_count(count, COUNTS).slots for count in counts]
    total = np.sum(uploads, axis=0)
    assert decode_count(OpenedSum(total, {}, COUNTS), MAX_SITES) == sum(counts)
    for grid_bits in GRIDS:
        assert all(on_grid(slots, grid_bits) for slots in uploads)
    # And as `plain` carries them, in float32.
    single = np.sum(uploads, axis=0, dtype=np.float32).astype(np.float64)
    assert decode_count(OpenedSum(single, {}, COUNTS), MAX_SITES) == sum(counts)


def test_the_largest_counts_of_the_most_sites_sum_exactly() -> None:
    largest = COUNT_BASE**COUNT_DIGITS - 1
    upload = encode_count(largest, COUNTS).slots
    total = np.sum([upload] * MAX_SITES, axis=0)
    assert decode_count(OpenedSum(total, {}, COUNTS), MAX_SITES) == MAX_SITES * largest
    assert total.max() < min(PLAIN.sum_limit, *(chosen.sum_limit for chosen in CKKS.values()))


@pytest.mark.parametrize("grid_bits", [GRIDS.start, GRIDS.stop - 1])
def test_counts_cross_real_ciphertexts_unchanged(grid_bits: int) -> None:
    from fedshield.crypto.adders import CkksAdder
    from fedshield.crypto.ckks import CkksScheme

    scheme = CkksScheme.generate("lean", grid_bits)
    adder = CkksAdder(scheme.parameters, scheme.public)
    counts = [1, 1023, 1024, COUNT_BASE**COUNT_DIGITS - 1, *range(40_000, 40_060)]
    total: object | None = None
    for count in counts:
        (block,) = scheme.encrypt(encode_count(count, COUNTS).slots)
        total = adder.add(total, block)
    slots = scheme.open([adder.result(total)], COUNTS.num_slots)
    assert decode_count(decode_sum(slots, COUNTS), MAX_SITES) == sum(counts)


@pytest.mark.parametrize("count", [0, -1, COUNT_BASE**COUNT_DIGITS])
def test_counts_that_do_not_fit_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 1073741823 examples"):
        encode_count(count, COUNTS)


@pytest.mark.parametrize("digits", [[-1, 5, 5], [0, 0, 2047], [2047, 0, 0]])
def test_digits_that_no_sum_has_are_refused(digits: list[int]) -> None:
    found = OpenedSum(np.array(digits) / COUNT_BASE, {}, COUNTS)
    with pytest.raises(CryptoError, match="expected a sum of example counts"):
        decode_count(found, 2)
    assert decode_count(OpenedSum(np.array([2046, 0, 2046]) / COUNT_BASE, {}, COUNTS), 2) > 0


# -- one site's update ---------------------------------------------------------------------


@given(adapters, st.floats(0.001, 1), st.sampled_from(GRIDS))
def test_slots_lie_on_the_grid_at_most_half_a_step_off(
    values: Float32, weight: float, grid_bits: int
) -> None:
    upload = encoded(values, weight, grid_bits)
    exact = np.append(values.astype(np.float64) * weight, weight)
    assert on_grid(upload.slots, grid_bits)
    assert np.abs(upload.slots - exact).max() <= 2.0 ** -(grid_bits + 1)
    assert upload.num_clipped == 0
    assert upload.layout == LAYOUT
    assert upload.residual is None


@given(adapters, st.floats(0.001, 1))
def test_without_a_grid_slots_are_the_products(values: Float32, weight: float) -> None:
    slots = encoded(values, weight, None).slots
    assert (slots == np.append(values.astype(np.float64) * weight, weight)).all()


def test_values_beyond_the_limit_are_clipped_and_counted() -> None:
    values = np.zeros(NUM, np.float32)
    values[:5] = [8.5, -100, 8, -8, 7.5]
    upload = encoded(values, 0.5, limit=4.0)
    assert upload.num_clipped == 2
    assert upload.slots[:5].tolist() == [4, -4, 4, -4, 3.75]
    assert upload.slots[-1] == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    values = np.ones(NUM, np.float32)
    values[3] = bad
    for grid_bits in (22, None):
        with pytest.raises(CryptoError, match="expected finite values"):
            encoded(values, 0.5, grid_bits)


# -- the sum -------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["parameters", "delta"])
@pytest.mark.parametrize("num_sites", range(1, 17))
def test_the_next_adapter_is_the_weighted_mean(num_sites: int, exchange: Exchange) -> None:
    rng = np.random.default_rng(num_sites)
    rows = rng.standard_normal((num_sites, NUM)).astype(np.float32)
    counts = rng.integers(1, 100, num_sites)
    weights = counts / counts.sum()
    before = AdapterState(rng.standard_normal(NUM).astype(np.float32), SPEC)
    base = before.values.astype(np.float64) if exchange == "delta" else 0.0
    expected = base + np.average(rows.astype(np.float64), axis=0, weights=counts)
    for grid_bits, allowed in ((None, 3e-7), (22, 3e-7 + num_sites * 2.0**-22)):
        uploads = [encoded(row, w, grid_bits) for row, w in zip(rows, weights, strict=True)]
        after = apply_sum(before, opened(uploads), exchange)
        assert after.spec == SPEC
        assert after.values.dtype == np.float32
        np.testing.assert_allclose(after.values, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("grid_bits", GRIDS)
@pytest.mark.parametrize("direction", [0.51, 0.49])
def test_weights_that_all_round_the_same_way_are_still_accepted(
    grid_bits: int, direction: float
) -> None:
    weights = [(1000 + direction) * 2.0**-grid_bits] * (MAX_SITES - 1)
    weights.append(1.0 - sum(weights))
    values = np.full(NUM, 3.0, np.float32)
    total = opened([encoded(values, weight, grid_bits) for weight in weights])
    after = apply_sum(state(), total, "parameters")
    np.testing.assert_allclose(after.values, 3.0, rtol=0, atol=MAX_SITES * 2.0**-grid_bits * 4)


def test_the_mean_is_over_what_was_summed() -> None:
    weights = (0.5, 0.5 - 2.0**-16)
    uploads = [encoded(np.full(NUM, 2.0, np.float32), weight) for weight in weights]
    assert apply_sum(state(), opened(uploads), "parameters").values.tolist() == [2.0] * NUM


@pytest.mark.parametrize("total", [0.0, 1 / 3, 0.75, 0.999, 1.001, 1.5, 2.0, -1.0])
def test_a_sum_with_another_total_weight_is_refused(total: float) -> None:
    found = OpenedSum(np.ones(NUM), {"weight": total}, LAYOUT)
    with pytest.raises(CryptoError, match="total weight") as caught:
        apply_sum(state(), found, "parameters")
    assert caught.value.code == "weight"


@pytest.mark.parametrize("exchange", ["parameters", "delta"])
@pytest.mark.parametrize(
    ("least", "total", "good"),
    [
        (0.25, 0.25, True),
        (0.25, 0.25 - 2.0**-21, True),
        (0.25, 0.25 - 2.0**-19, False),
        (0.25, 0.7, True),
        (0.25, 1.0, True),
        (0.25, 1 + 2.0**-21, True),
        (0.25, 1 + 2.0**-19, False),
        (0.25, 0.0, False),
        (0.25, float("nan"), False),
        (0.6, 0.59, False),
        (0.6, 0.61, True),
    ],
)
def test_where_sites_may_be_missing_the_mean_is_over_those_that_are_there(
    exchange: Exchange, least: float, total: float, good: bool
) -> None:
    found = OpenedSum(np.full(NUM, 3.0 * total), {"weight": total}, LAYOUT)
    if good:
        after = apply_sum(state(0.5), found, exchange, least)
        assert after.values.tolist() == [3.0 if exchange == "parameters" else 3.5] * NUM
    else:
        with pytest.raises(CryptoError, match="total weight") as caught:
            apply_sum(state(0.5), found, exchange, least)
        assert caught.value.code == "weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_a_mean_that_float32_does_not_hold_is_refused(value: float) -> None:
    found = OpenedSum(np.full(NUM, value), {"weight": 1.0}, LAYOUT)
    with pytest.raises(CryptoError, match="float32"):
        mean_of(found)


def test_an_adapter_that_float32_does_not_hold_is_refused() -> None:
    """Each fits, their sum does not: no site may install it."""
    found = OpenedSum(np.full(NUM, 3e38), {"weight": 1.0}, LAYOUT)
    with pytest.raises(CryptoError, match="float32") as caught:
        apply_sum(state(3e38), found, "delta")
    assert caught.value.code == "weight"


def test_a_sum_whose_weight_is_no_number_is_refused() -> None:
    found = OpenedSum(np.ones(NUM), {"weight": float("nan")}, LAYOUT)
    with pytest.raises(CryptoError, match="total weight"):
        apply_sum(state(), found, "parameters")


@given(st.lists(adapters, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_every_site_finds_the_same_adapter_bit_by_bit(rows: list[Float32], shuffler) -> None:
    weight = 1.0 / len(rows)
    uploads = [encoded(row, weight) for row in rows]
    first = apply_sum(state(0.5), opened(uploads), "delta")
    shuffler.shuffle(uploads)  # on the grid, the order of adding cannot matter
    again = apply_sum(state(0.5), opened(uploads), "delta")
    assert first.values.tobytes() == again.values.tobytes()
    assert first.sha256() == again.sha256()


def test_the_layout_names_what_is_summed() -> None:
    assert (LAYOUT.num_values, LAYOUT.reserved) == (NUM, ("weight",))
    assert LAYOUT.spec_sha256 == ALL.sha256()
    assert LAYOUT.values_per_block == CKKS["lean"].values_per_block
    assert COUNTS.num_slots == COUNT_DIGITS
    found = decode_sum(np.arange(NUM + 1, dtype=np.float64), LAYOUT)
    assert found.values.tolist() == list(range(NUM))
    assert found.reserved == {"weight": float(NUM)}
