"""The site's bound, its share of the noise, and the sum of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedshield.crypto.rlwe.sampling import Stream
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.errors import CryptoError, PlanError
from fedshield.plan.quorum import resolve
from fedshield.privacy import distributed_gaussian
from fedshield.privacy.discrete_gaussian import DiscreteGaussian, fresh_stream
from fedshield.privacy.distributed_gaussian import BoundedIntegers, SiteMechanism, squared_norm
from fedshield.update import encode_integers


def made(num_sites: int = 5, multiplier: float = 1.0, num_values: int = 500) -> SiteMechanism:
    packing = rlwe_parameters(num_sites, 16, False)
    return distributed_gaussian.mechanism(2.0, multiplier, resolve(num_sites), packing, num_values)


def stream(seed: int) -> Stream:
    return Stream(seed.to_bytes(32, "big"), "test", 0)


values_of = hnp.arrays(
    np.float32, st.integers(0, 300), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
)


@given(values_of, st.floats(1e-3, 1e6), st.integers(1, 5000), st.integers(0, 2**40))
def test_no_update_is_longer_than_the_sensitivity(
    values: np.ndarray[tuple[int], np.dtype[np.float32]], scale: float, most: int, seed: int
) -> None:
    """Whatever a site trained, and however it is rounded."""
    found = distributed_gaussian.bound(values, scale, most, seed)
    assert sum(int(one) ** 2 for one in found.digits) <= most**2
    assert 0 < found.factor <= 1
    assert np.isfinite(found.residual).all()


def test_a_short_update_is_only_rounded() -> None:
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    found = distributed_gaussian.bound(values, 10.0, 2000, 3)
    assert found.factor == 1
    assert np.abs(found.digits - values * 10).max() <= 1 + 1e-4
    # What rounding left is kept, what the noise added is not in it.
    assert np.allclose(found.digits / 10 + found.residual, values, atol=1e-6)
    # On the mean rounding changes nothing.
    many = [distributed_gaussian.bound(values, 10.0, 2000, seed).digits for seed in range(200)]
    assert np.abs(np.mean(many, axis=0) - values * 10).max() < 0.2


def test_a_long_update_is_shortened_as_a_whole() -> None:
    values = np.random.default_rng(2).standard_normal(4000).astype(np.float32)
    found = distributed_gaussian.bound(values, 1e4, 1500, 3)
    length = math.sqrt(squared_norm(found.digits))
    assert 0.97 * 1500 < length <= 1500
    cosine = float(found.digits @ values / (length * np.linalg.norm(values)))
    assert cosine > 0.99
    # What the clip cut off does not come back by error feedback.
    assert np.abs(found.residual).max() <= 1.01 / 1e4


def test_values_that_are_no_numbers_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(CryptoError, match="expected finite values"):
            distributed_gaussian.bound(np.array([1.0, bad], dtype=np.float32), 1.0, 10, 0)


def test_integers_that_are_too_long_cannot_be_made() -> None:
    with pytest.raises(CryptoError, match="expected integers of squared norm up to 16"):
        BoundedIntegers(np.array([3, 4]), np.zeros(2, np.float32), 4, 1.0)
    BoundedIntegers(np.array([3, 4]), np.zeros(2, np.float32), 5, 1.0)


def test_norms_are_counted_exactly() -> None:
    big = np.array([1 << 40, 3, -(1 << 40)], dtype=np.int64)
    assert squared_norm(big) == 2 * (1 << 80) + 9
    many = np.full((1 << 22) + 5, -1000, dtype=np.int64)
    assert squared_norm(many) == many.size * 10**6


@settings(max_examples=30)
@given(
    st.integers(2, 64),
    st.floats(0.3, 8.0),
    st.integers(8, 16),
    st.booleans(),
    st.integers(1, 20_000),
)
def test_nothing_can_wrap(
    sites: int, multiplier: float, bits: int, headroom: bool, num_values: int
) -> None:
    """The largest that every site can send, whatever is drawn, fits a digit of the sum."""
    try:
        packing = rlwe_parameters(sites, bits, headroom)
        rules = resolve(sites, max_colluding=0 if sites == 2 else None)
        found = distributed_gaussian.mechanism(1.0, multiplier, rules, packing, num_values)
    except (CryptoError, PlanError):
        return
    assert found.num_sites * (found.sensitivity + found.noise.bound) <= packing.max_digit
    assert found.sensitivity**2 >= num_values
    # One step finer would not fit.
    finer = DiscreteGaussian(found.deviation * (found.sensitivity + 1) / found.sensitivity)
    assert found.sensitivity + 1 + finer.bound > found.limit
    # The honest ones alone carry what was asked for.
    carried = math.sqrt(found.honest) * found.deviation / found.sensitivity
    assert carried == pytest.approx(multiplier, rel=1e-12)
    assert found.release(num_values).noise_multiplier <= multiplier


def test_whose_noise_counts() -> None:
    """Colluders can take theirs away, and so can any one site that looks at the sum."""
    assert distributed_gaussian.honest_sites(resolve(5)) == resolve(5).min_cohort - 1
    assert distributed_gaussian.honest_sites(resolve(16)) == resolve(16).min_cohort - 5
    assert distributed_gaussian.honest_sites(resolve(2, max_colluding=0)) == 1
    assert (
        distributed_gaussian.honest_sites(resolve(4, max_colluding=0))
        == resolve(4, max_colluding=0).min_cohort - 1
    )


def test_the_sum_carries_the_whole_noise_and_a_site_its_share() -> None:
    mechanism = made()
    size = 40_000
    packing = rlwe_parameters(5, 16, False)
    layout = encode_integers.update_layout("", size, packing)
    nothing = BoundedIntegers(
        np.zeros(size, np.int64), np.zeros(size, np.float32), mechanism.sensitivity, 1.0
    )
    drawn = [
        distributed_gaussian.encode_noised(
            nothing, mechanism, layout, 0.2, stream(seed)
        ).digits.astype(int)
        for seed in range(5)
    ]
    slack = 5 * math.sqrt(2 / size)
    share = mechanism.deviation**2
    for one in drawn:
        assert abs(one.var() / share - 1) < slack
    wanted = (1.0 * mechanism.sensitivity) ** 2
    least = sum(drawn[: mechanism.honest])
    assert abs(least.var() / wanted - 1) < slack
    whole = sum(drawn)
    assert whole.var() / wanted > 5 / mechanism.honest - slack
    assert np.abs(whole).max() <= packing.max_digit
    # In the units of the mean: at equal weights, clip / sites times the multiplier.
    ((_, bound),) = mechanism.parts(size)
    assert bound / packing.max_digit * mechanism.sensitivity == pytest.approx(2.0 / 5)


def test_no_loss_travels_and_the_bound_rides_on_the_integers() -> None:
    mechanism, packing = made(num_values=100), rlwe_parameters(5, 16, False)
    layout = encode_integers.update_layout("", 100, packing)
    values = np.ones(100, dtype=np.float32)
    good = distributed_gaussian.bound(values, mechanism.scale(0.2), mechanism.sensitivity, 1)
    found = distributed_gaussian.encode_noised(good, mechanism, layout, 0.2, fresh_stream("x", b""))
    assert found.reserved == (1, round(0.2 * 2**30), 0)
    other = distributed_gaussian.bound(values, 1.0, mechanism.sensitivity + 1, 1)
    with pytest.raises(CryptoError, match="expected integers bounded by"):
        distributed_gaussian.encode_noised(other, mechanism, layout, 0.2, fresh_stream("x", b""))


def test_a_heavier_site_moves_the_sum_no_more() -> None:
    """The bound is on the weighted contribution, so it is the same at any weight."""
    mechanism = made(num_values=100)
    values = np.full(100, 5.0, dtype=np.float32)
    for weight in (0.01, 0.2, 0.9):
        found = distributed_gaussian.bound(
            values, mechanism.scale(weight), mechanism.sensitivity, 1
        )
        assert squared_norm(found.digits) <= mechanism.sensitivity**2


def test_several_discrete_gaussians_are_not_taken_for_one() -> None:
    """At small deviations their sum is rougher, and the bound of arXiv 2102.06387 says so."""
    rough = SiteMechanism(1.0, 1, 0.6, 4, 6, 100, 1000)
    tau = 10 * sum(math.exp(-2 * math.pi**2 * 0.36 * k / (k + 1)) for k in (1, 2, 3))
    cost = 1 / (2 * 0.6) + tau * math.sqrt(50)
    assert rough.release(50).noise_multiplier == pytest.approx(1 / cost)
    fine = SiteMechanism(1.0, 100, 60.0, 4, 6, 1000, 10_000)
    assert fine.release(50).noise_multiplier == pytest.approx(1.2)


def test_no_room_for_steps_names_the_knobs() -> None:
    packing = rlwe_parameters(16, 8, False)
    with pytest.raises(PlanError, match=r"use encoding\.headroom, more encoding\.bits"):
        distributed_gaussian.mechanism(1.0, 1.0, resolve(16), packing, 10_000)
