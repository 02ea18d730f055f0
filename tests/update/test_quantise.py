"""Stochastic rounding: right on the mean, within the limit, the same in numba and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.errors import CryptoError
from fedshield.update.quantise import quantise


@given(
    seed=st.integers(0, 2**63 - 1),
    limit=st.integers(1, 2**20),
    clip=st.floats(1e-6, 1e3),
    length=st.integers(0, 200),
    start=st.integers(0, 2**40),
    residual=st.booleans(),
)
def test_numba_and_numpy_agree(
    seed: int, limit: int, clip: float, length: int, start: int, residual: bool
) -> None:
    values = np.random.default_rng(seed % 1000).normal(0, clip, length).astype(np.float32)
    scale = limit / clip
    left = [np.full(length, 9, np.float32) if residual else None for _ in range(2)]
    fast, slow = (
        quantise(values, scale, limit, seed, start=start, residual=rest, fast=fast)
        for fast, rest in zip((True, False), left, strict=True)
    )
    np.testing.assert_array_equal(fast[0], slow[0])
    assert fast[0].dtype == slow[0].dtype == (np.int16 if limit < 2**15 else np.int32)
    wide = values.astype(np.float64) * scale
    assert fast[1] == slow[1] == int(np.count_nonzero(np.abs(wide) > limit))
    assert int(np.abs(fast[0].astype(np.int64)).max(initial=0)) <= limit
    if residual:
        np.testing.assert_array_equal(left[0], left[1])
        expected = values - fast[0] / scale
        np.testing.assert_allclose(left[0], expected, atol=1e-6 * clip, rtol=1e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_the_mean_is_unbiased_and_a_step_is_the_most_it_moves(fast: bool) -> None:
    values = np.full(200_000, 0.3, np.float32)
    found, clipped = quantise(values, 7.0, 7, 5, fast=fast)
    steps = float(values[0]) * 7
    assert set(found.tolist()) == {2, 3}
    assert clipped == 0
    assert abs(float(found.mean()) - steps) < 5 * (0.25 / values.size) ** 0.5


@given(value=st.floats(-1, 1, width=32), seed=st.integers(0, 2**32))
def test_no_value_is_biased(value: float, seed: int) -> None:
    values = np.full(4000, value, np.float32)
    found, _ = quantise(values, 10.0, 10, seed)
    assert abs(float(found.mean()) - value * 10) < 6 * (0.25 / values.size) ** 0.5
    assert np.unique(found).size <= 2


def test_whole_steps_stay_as_they_are() -> None:
    found, _ = quantise(np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32), 4.0, 4, 9)
    assert found.tolist() == [-4, -2, 0, 2, 4]


def test_what_lies_beyond_the_limit_is_clipped_counted_and_left_in_the_residual() -> None:
    values = np.array([-9.0, 0.0, 2.0], np.float32)
    found, clipped = quantise(values, 10.0, 10, 1, residual=values)
    assert (found.tolist(), clipped) == ([-10, 0, 10], 2)
    assert values.tolist() == [-8, 0, 1]


def test_the_seed_decides_and_parts_make_the_whole() -> None:
    values = np.random.default_rng(1).normal(0, 0.3, 1000).astype(np.float32)
    whole = quantise(values, 10.0, 10, 1)[0]
    out = np.empty(1000, np.int32)
    for low, high in ((0, 1), (1, 700), (700, 1000)):
        quantise(values[low:high], 10.0, 10, 1, start=low, out=out[low:high])
    np.testing.assert_array_equal(whole, out)
    assert (whole != quantise(values, 10.0, 10, 2)[0]).any()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float, fast: bool) -> None:
    values = np.array([0.0] * 50 + [bad], np.float32)
    for residual in (None, values.copy()):
        with pytest.raises(CryptoError, match="1 NaN or infinite"):
            quantise(values, 1.0, 10, 1, residual=residual, fast=fast)
    with pytest.raises(CryptoError, match="1 NaN or infinite"):
        quantise(values, 1.0, 10, 1, residual=values, fast=fast)


@pytest.mark.parametrize(
    ("scale", "limit", "start"),
    [(0.0, 3, 0), (-1.0, 3, 0), (float("nan"), 3, 0), (1.0, 0, 0), (1.0, 3, -1)],
)
def test_impossible_arguments_are_refused(scale: float, limit: int, start: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        quantise(np.zeros(1, np.float32), scale, limit, 1, start=start)


def test_arrays_that_do_not_fit_are_refused() -> None:
    values = np.zeros(3, np.float32)
    for arguments in (
        {"out": np.zeros(2, np.int16)},
        {"out": np.zeros(3, np.int64)},
        {"residual": np.zeros(3)},
        {"out": np.zeros(3, np.int16), "limit": 2**15},
    ):
        with pytest.raises(ValueError, match="expected float32"):
            quantise(values, 1.0, **({"limit": 5, "seed": 1} | arguments))  # type: ignore[arg-type]
