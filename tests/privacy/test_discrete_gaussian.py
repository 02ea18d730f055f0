"""The noise: its distribution, its agreement with two plain references, and where it comes from."""

from __future__ import annotations

import json
import math
import os
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedshield.crypto.rlwe.sampling import Stream
from fedshield.privacy import discrete_gaussian
from fedshield.privacy.discrete_gaussian import DISTANCE_BITS, DiscreteGaussian, fresh_stream
from reference import discrete_gaussian as reference

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "noise.json").read_text())


def stream(seed: int) -> Stream:
    """Known randomness: only a test has it, production asks `fresh_stream`."""
    return Stream(seed.to_bytes(32, "big"), "test", 0)


def masses(deviation: float, reach: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The true probabilities of -reach..reach, by summing."""
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(x**2) / (2 * deviation**2))
    total = weights.sum() + 2 * sum(
        math.exp(-(k**2) / (2 * deviation**2)) for k in range(reach + 1, reach + 400)
    )
    return np.asarray(weights / total)


def chi_square(values: np.ndarray[tuple[int], np.dtype[np.int64]], deviation: float) -> float:
    """The p-value of these values against the true distribution; rare values are put together."""
    reach = math.floor(3.5 * deviation) + 1
    true = masses(deviation, reach)
    inside = values[np.abs(values) <= reach]
    counts = np.bincount(inside + reach, minlength=2 * reach + 1).astype(np.float64)
    observed = np.append(counts, values.size - inside.size)
    expected = np.append(true, 1 - true.sum()) * values.size
    rare = expected < 10
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 1e-3
    return float(stats.chisquare(observed[keep], expected[keep] / expected[keep].sum()
                                 * observed[keep].sum()).pvalue)  # fmt: skip


@pytest.mark.parametrize("deviation", [0.4, 1.0, 3.7, 31.9, 100.25])
def test_values_follow_the_distribution(deviation: float) -> None:
    values = DiscreteGaussian(deviation).draw(400_000, stream(1))
    assert chi_square(values, deviation) > 1e-3
    # The same values are no sample of a distribution a hundredth wider, or shifted by a tenth.
    assert chi_square(values, deviation * 1.02) < 1e-6
    if deviation > 1:
        assert chi_square(values + 1, deviation) < 1e-6 or deviation > 50


def test_large_deviations_follow_the_continuous_one() -> None:
    """At 2^20 the discrete one is a Gaussian to a part in 10^12: Kolmogorov and Smirnov."""
    values = DiscreteGaussian(2.0**20).draw(300_000, stream(2))
    assert stats.kstest(values, "norm", args=(0, 2.0**20)).pvalue > 1e-3
    assert stats.kstest(values, "norm", args=(0, 1.02 * 2.0**20)).pvalue < 1e-3
    # Within a cell places are not equally likely: the lowest bits still are.
    assert stats.chisquare(np.bincount(values & 15, minlength=16)).pvalue > 1e-3


def test_the_variance_and_the_bound() -> None:
    for deviation in (2.0, 900.0):
        found = DiscreteGaussian(deviation)
        values = found.draw(500_000, stream(3))
        assert abs(values.var() / deviation**2 - 1) < 5 * math.sqrt(2 / values.size)
        assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)
        assert np.abs(values).max() <= found.bound


@settings(max_examples=25)
@given(st.floats(min_value=0.05, max_value=2.0**30))
def test_what_is_cut_off_is_as_little_as_stated(deviation: float) -> None:
    found = DiscreteGaussian(deviation)
    # Chernoff: P(|X| > bound) <= 2 exp(-(bound + 1)^2 / (2 sigma^2)).
    log2_tail = 1 - (found.bound + 1) ** 2 / (2 * deviation**2) / math.log(2)
    assert log2_tail <= -(DISTANCE_BITS + 1)
    assert found.width & (found.width - 1) == 0
    assert found.num_cells < 1100
    cells = discrete_gaussian._cells(found)
    assert len(cells.cumulative) == found.num_cells
    assert all(low <= high for low, high in zip(cells.cumulative, cells.cumulative[1:],
                                                 strict=False))  # fmt: skip


def test_the_table_is_the_distribution_to_110_bits() -> None:
    """Against rationals: one whole number a cell, so that nothing but the table decides."""
    found = DiscreteGaussian(2.5)
    assert found.width == 1
    weights = [Fraction(found.relative(0, k)) for k in range(found.num_cells)]
    edges = discrete_gaussian._cells(found).cumulative
    for k in range(found.num_cells):
        got = Fraction(edges[k] - (edges[k - 1] if k else 0), 1 << 128)
        assert abs(got - weights[k] / sum(weights)) < Fraction(1, 1 << 120)
    # And the weights are what they are said to be.
    for k in range(5):
        assert math.isclose(float(weights[k]), math.exp(-(k**2) / (2 * 2.5**2)), rel_tol=1e-15)


@settings(max_examples=25)
@given(st.floats(min_value=0.05, max_value=5000), st.integers(0, 2**32), st.integers(1, 30))
def test_it_is_the_plain_sampler_on_the_same_words(deviation: float, seed: int, n: int) -> None:
    found = DiscreteGaussian(deviation)
    words = stream(seed)
    plain = reference.table_draw(found, n, lambda k: [int(w) for w in words.words(k)])
    assert found.draw(n, stream(seed)).tolist() == plain


class Scripted:
    """A stream that says what it is told: cells, places, keeps, then halves that decide."""

    def __init__(self, *calls: list[int]) -> None:
        self.calls = list(calls)

    def words(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        found = self.calls.pop(0)
        assert len(found) == count
        return np.array(found, dtype=np.uint64)


def test_where_64_bits_do_not_decide_128_do() -> None:
    found = DiscreteGaussian(40.0)
    edge = discrete_gaussian._cells(found).cumulative[0]
    high, low = edge >> 64, edge & (2**64 - 1)
    assert found.width == 1
    for half, cell in ((low - 1, 0), (low, 1)):
        # Keep words of zero: whatever is chosen stays.
        drawn = found.draw(1, Scripted([high], [0], [0], [half]))  # type: ignore[arg-type]
        assert drawn.tolist() == [cell]
    wide = DiscreteGaussian(100.0)
    assert wide.width == 2
    odds = Fraction(wide.relative(0, 1)) * (1 << 128)
    high, low = int(odds) >> 64, int(odds) & (2**64 - 1)
    for half, kept in ((low - 1, True), (low + 1, False)):
        calls = [[0], [1], [high], [half]] + ([] if kept else [[0], [0], [0]])
        drawn = wide.draw(1, Scripted(*calls))  # type: ignore[arg-type]
        assert drawn.tolist() == ([1] if kept else [0])


def test_known_answers() -> None:
    for one in VECTORS["draws"]:
        found = DiscreteGaussian(float.fromhex(one["deviation"]))
        words = Stream(bytes.fromhex(one["seed"]), one["label"], 0)
        assert found.draw(len(one["values"]), words).tolist() == one["values"]
        assert (found.width, found.num_cells) == (one["width"], one["num_cells"])


def test_another_way_to_the_same_distribution() -> None:
    """The exact sampler of arXiv 2004.00010 on rational coins, two-sample against ours."""
    coins = random.Random(5)
    plain = [reference.exact_draw(Fraction(49, 4), coins.randrange) for _ in range(10_000)]
    ours = DiscreteGaussian(3.5).draw(10_000, stream(6))
    reach = 8
    table = [
        np.bincount(np.clip(np.asarray(one), -reach, reach) + reach, minlength=2 * reach + 1)
        for one in (plain, ours)
    ]
    assert stats.chi2_contingency(np.array(table)).pvalue > 1e-3
    assert chi_square(np.array(plain, dtype=np.int64), 3.5) > 1e-3


def test_streams_are_the_operating_systems_and_bound_to_contents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (fresh_stream("x", b"same").words(4).tolist() for _ in range(2))
    assert first != second
    # A cloned machine has equal randomness: other contents still get other noise.
    monkeypatch.setattr(os, "urandom", lambda count: b"\7" * count)
    same = [fresh_stream("x", about).words(4).tolist() for about in (b"a", b"a", b"b")]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan"), float("inf"), 2.0**31])
def test_deviations_that_make_no_sense_are_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="expected a deviation of"):
        DiscreteGaussian(deviation)
