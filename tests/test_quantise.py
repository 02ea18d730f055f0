"""Stochastic rounding: right on the mean, within the limit, the same in numba and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.quantise import quantise


@given(
    seed=st.integers(0, 2**63 - 1),
    limit=st.integers(1, 2**20),
    clip=st.floats(1e-6, 1e3),
    length=st.integers(0, 200),
)
def test_numba_and_numpy_agree(seed: int, limit: int, clip: float, length: int) -> None:
    values = np.random.default_rng(seed % 1000).normal(0, clip, length).astype(np.float32)
    fast, slow = (quantise(values, clip, limit, seed, fast) for fast in (True, False))
    np.testing.assert_array_equal(fast[0], slow[0])
    assert fast[1] == slow[1] == int(np.count_nonzero(np.abs(values * (limit / clip)) > limit))
    assert int(np.abs(fast[0]).max(initial=0)) <= limit


def test_the_mean_is_unbiased_and_a_step_is_the_most_it_moves() -> None:
    values = np.full(200_000, 0.3, np.float32)
    found, clipped = quantise(values, 1.0, 7, 5)
    steps = float(values[0]) * 7
    assert set(found.tolist()) == {2, 3}
    assert clipped == 0
    assert abs(float(found.mean()) - steps) < 5 * (0.25 / values.size) ** 0.5


def test_whole_steps_stay_as_they_are() -> None:
    found, _ = quantise(np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32), 1.0, 4, 9)
    assert found.tolist() == [-4, -2, 0, 2, 4]


def test_what_lies_beyond_the_clip_is_clipped_and_counted() -> None:
    found, clipped = quantise(np.array([-9.0, 0.0, 2.0], np.float32), 1.0, 10, 1)
    assert (found.tolist(), clipped) == ([-10, 0, 10], 2)


def test_the_seed_decides() -> None:
    values = np.full(1000, 0.05, np.float32)
    first = quantise(values, 1.0, 10, 1)[0]
    np.testing.assert_array_equal(first, quantise(values, 1.0, 10, 1)[0])
    assert (first != quantise(values, 1.0, 10, 2)[0]).any()


@pytest.mark.parametrize(("clip", "limit"), [(0.0, 3), (-1.0, 3), (1.0, 0)])
def test_impossible_ranges_are_refused(clip: float, limit: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        quantise(np.zeros(1, np.float32), clip, limit, 1)
