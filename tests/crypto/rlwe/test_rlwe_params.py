"""Parameters of rlwe: the primes, the rules of exactness, the sizes that the design computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.crypto.rlwe.params import (
    PRIMES,
    RING_DEGREE,
    RlweParameters,
    check,
    choose,
    error_bound,
)
from fedshield.errors import CryptoError


def is_prime(n: int) -> bool:
    """Miller-Rabin with bases that are proof below 3.3e24."""
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(base, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_primes_are_the_largest_of_their_kind() -> None:
    for bits, q in PRIMES.items():
        assert q.bit_length() == bits
        assert is_prime(q)
        assert q % (2 * RING_DEGREE) == 1
        larger = range(q + 2 * RING_DEGREE, 1 << bits, 2 * RING_DEGREE)
        assert not any(is_prime(candidate) for candidate in larger)


@pytest.mark.parametrize(
    ("sites", "bits", "most"),
    [(3, 16, 2.2), (3, 12, 1.6), (3, 8, 1.1), (16, 16, 2.35), (16, 12, 1.75), (16, 8, 1.2)],
)
def test_bytes_per_value_of_an_upload(sites: int, bits: int, most: float) -> None:
    assert choose(sites, bits, 1_000_000).bytes_per_value <= most


def test_four_bits_a_site_with_headroom_at_three_sites() -> None:
    assert choose(3, 4, 1_000_000, headroom=True).bytes_per_value <= 0.75


@given(
    sites=st.integers(1, 64),
    bits=st.integers(2, 18),
    values=st.integers(0, 2**31),
    headroom=st.booleans(),
)
def test_every_choice_obeys_the_rules(sites: int, bits: int, values: int, headroom: bool) -> None:
    try:
        p = choose(sites, bits, values, headroom=headroom)
    except CryptoError:
        # Refused only where one value does not fit a coefficient.
        own = (1 << (bits - 1)) - 1
        radix = 2 * sites * own + 1 if headroom else 2 * own + 1
        least = 2 * error_bound(sites, values + 64 * RING_DEGREE) + sites + 2
        assert radix * least > PRIMES[50] // 2
        return
    assert p.delta >= 2 * p.error_bound + sites * ((1 << p.dropped) - 1) + 2
    assert p.delta * p.radix**p.digits <= p.q
    assert p.radix % 2 == 1
    # Honest sums never overflow: by headroom, or because weights add up to at most one.
    own = (1 << (bits - 1)) - 1
    if headroom:
        assert sites * own <= p.max_digit
    else:
        assert p.max_digit == own
        assert sum(int(own / sites) for _ in range(sites)) <= p.max_digit
    assert sites * ((1 << p.word_bits) - 1) < 1 << p.sum_word_bits
    assert p.sum_word_bits <= 56  # a word is read from eight bytes, shifted by up to seven bits


def test_the_error_bound_is_the_designs() -> None:
    # 11.596 sqrt(21 K) at 2^32 coefficients: 93, 213 and 426 for 3, 16 and 64 sites.
    assert [error_bound(sites, 2**32) for sites in (3, 16, 64)] == [93, 213, 426]


def test_the_error_bound_holds_in_simulation_at_a_weakened_level() -> None:
    """With failure 2^-4 a vector instead of 2^-64, the rule's bound must still be a bound: the
    share of failing vectors stays below it (sub-Gaussian tails are not tight)."""
    rng = np.random.default_rng(5)
    length, trials, level = 256, 4000, 4
    exponent = level + math.log2(length) + 1
    bound = math.ceil(math.sqrt(2 * math.log(2) * exponent) * math.sqrt(21 * 3))
    errors = sum(
        rng.binomial(42, 0.5, (trials, length)) - rng.binomial(42, 0.5, (trials, length))
        for _ in range(3)
    )
    failing = float((np.abs(errors).max(axis=1) > bound).mean())
    assert failing <= 2.0**-level
    assert float((np.abs(errors).max(axis=1) > bound / 2).mean()) > 0.5  # the test has power


def test_a_changed_parameter_is_refused() -> None:
    p = choose(3, 16, 1000)
    fields = {name: getattr(p, name) for name in RlweParameters.__dataclass_fields__}
    for name, value in (
        ("dropped", p.dropped + 1),
        ("radix", p.radix + 1),
        ("digits", p.digits + 1),
        ("q", p.q + 2),
        ("error_bound", p.error_bound * 4),
    ):
        with pytest.raises(CryptoError):
            check(RlweParameters(**(fields | {name: value})))


def test_a_weight_too_small_for_the_bits_is_refused() -> None:
    p = choose(64, 8, 1000)
    assert p.site_limit(0.5) == 63
    assert p.site_limit(4.01 / 127) == 4
    for weight in (1 / 64, 3.99 / 127):
        with pytest.raises(CryptoError, match="headroom"):
            p.site_limit(weight)
    roomy = choose(64, 8, 1000, headroom=True)
    assert roomy.site_limit(1 / 64) == 127
    assert roomy.site_limit(1 / 1000) == 1 + int(64 * 126 / 1000) == 9
    assert roomy.site_limit(1.0) == 1 + 64 * 126
    few = choose(2, 2, 1000, headroom=True)  # one step a site, whatever it weighs
    assert [few.site_limit(weight) for weight in (1e-6, 0.4, 0.5, 1.0)] == [1, 1, 1, 1]


def test_equal_weights_with_headroom_give_every_site_its_own_bits() -> None:
    """Also where weight * num_sites rounds below one, as (1/49) * 49 does."""
    for sites in range(1, 391):
        p = choose(sites, 4, 1000, headroom=True)
        assert p.site_limit(1 / sites) == 7


@given(
    sites=st.integers(1, 64),
    packing=st.sampled_from(
        [(8, False), (12, False), (16, False), (2, True), (3, True), (4, True), (8, True)]
    ),
    data=st.data(),
)
def test_honest_limits_never_add_up_to_more_than_the_range(
    sites: int, packing: tuple[int, bool], data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 10**6), min_size=sites, max_size=sites))
    p = choose(sites, packing[0], 1000, headroom=packing[1])
    total = 0
    for count in counts:
        try:
            total += p.site_limit(count / sum(counts))
        except CryptoError:
            continue
    assert total <= p.max_digit
