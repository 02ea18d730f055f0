"""Epsilon, against published values and against exact ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.privacy.accounting import (
    ALL_ORDERS,
    WHOLE_ORDERS,
    Release,
    epsilon,
    least_multiplier,
)


def first_conversion(release: Release, rounds: int, delta: float) -> float:
    """Epsilon as the first papers had it: Mironov, CSF 2017, Proposition 3."""
    orders = np.array(release.orders)
    curve = release.rdp(rounds, release.orders)
    return float(np.min(curve - math.log(delta) / (orders - 1)))


def test_published_values() -> None:
    # Abadi et al., CCS 2016, section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5: 1.26.
    abadi = Release(4.0, sampling_rate=0.01, steps=10)
    assert round(first_conversion(abadi, 1000, 1e-5), 2) == 1.26
    assert epsilon(abadi, 1000, 1e-5) == pytest.approx(1.0355, abs=1e-3)
    # TensorFlow Privacy's tutorial: 60,000 rows, batches of 256, multiplier 1.12, 60 epochs,
    # delta 1e-5: 2.92.
    tutorial = Release(1.12, sampling_rate=256 / 60_000)
    assert round(first_conversion(tutorial, 14_063, 1e-5), 2) == 2.92
    assert epsilon(tutorial, 14_063, 1e-5) < 2.92


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("rounds", [1, 20])
def test_never_below_the_exact_value_and_not_far_above(multiplier: float, rounds: int) -> None:
    """Without sampling, rounds are one Gaussian of multiplier / sqrt(rounds), whose epsilon is
    known exactly: Balle, Wang, ICML 2018."""
    exact = get_epsilon_gaussian(multiplier / math.sqrt(rounds), 1e-5)
    found = epsilon(Release(multiplier), rounds, 1e-5)
    assert exact <= found <= 1.12 * exact + 0.01


def test_whole_orders_where_rows_are_sampled() -> None:
    """Only there the formula holds for the discrete Gaussian."""
    assert set(Release(1.0, sampling_rate=0.5).orders) == set(WHOLE_ORDERS)
    assert all(order == int(order) for order in WHOLE_ORDERS)
    assert Release(1.0).orders == ALL_ORDERS


def test_moments_of_the_discrete_gaussian_are_the_formulas() -> None:
    """E[((1-q) + q p(x-s)/p(x))^order] over whole numbers, summed, for a shift of s."""
    sigma, shift, q = 3.0, 4, 0.2
    x = np.arange(-90, 91, dtype=np.float64)
    logs = -(x**2) / (2 * sigma**2)
    p = np.exp(logs) / np.exp(logs).sum()
    ratio = np.exp((2 * x * shift - shift**2) / (2 * sigma**2))
    for order in (2, 3, 8):
        summed = math.log(float((p * (1 - q + q * ratio) ** order).sum())) / (order - 1)
        formula = float(Release(sigma / shift, sampling_rate=q).rdp(1, [order])[0])
        assert summed == pytest.approx(formula, rel=1e-9)


@settings(max_examples=10)
@given(st.floats(0.3, 20.0), st.integers(1, 50), st.sampled_from([0.01, 1.0]))
def test_more_noise_less_and_more_rounds_more(multiplier: float, rounds: int, rate: float) -> None:
    one, more = Release(multiplier, rate), Release(multiplier * 1.5, rate)
    assert epsilon(more, rounds, 1e-6) <= epsilon(one, rounds, 1e-6)
    assert epsilon(one, rounds, 1e-6) <= epsilon(one, rounds + 1, 1e-6)
    assert epsilon(one, 0, 1e-6) == 0.0


def test_the_noises_own_distance_is_paid_for() -> None:
    plain, off = Release(1.0), Release(1.0, distance=1e-13)
    assert epsilon(plain, 5, 1e-5) < epsilon(off, 5, 1e-5) < 1.2 * epsilon(plain, 5, 1e-5)
    found = epsilon(off, 5, 1e-5)
    # It is a fixed point: delta and (1 + e^epsilon) times the distance together are the target.
    left = 1e-5 - 5e-13 * (1 + math.exp(found))
    assert epsilon(plain, 5, left) == pytest.approx(found, rel=1e-6)
    assert epsilon(Release(1.0, distance=1e-5), 5, 1e-5) == math.inf


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_a_target_is_met_and_hardly_missed(rate: float) -> None:
    found = least_multiplier(4.0, 1e-5, 10, lambda one: Release(one, rate, steps=2))
    assert found is not None
    assert 0.99 * 4.0 <= epsilon(Release(found, rate, steps=2), 10, 1e-5) <= 4.0
    assert least_multiplier(0.001, 1e-5, 10**9, Release) is None
