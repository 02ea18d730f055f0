"""Derived seeds: the same for the same use, unrelated for any other."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fedshield.seeds import SiteRandomness, derive

labels = st.lists(st.text(max_size=4) | st.integers(-5, 5), max_size=4)


def test_known_answers() -> None:
    assert derive(42, "train", "hospital", 3) == 1408026914970875276
    assert derive(0) == 9104427675962024343


@given(st.integers(-(2**127), 2**127 - 1), labels)
def test_a_seed_has_63_bits_and_repeats(seed: int, uses: list[str | int]) -> None:
    found = derive(seed, *uses)
    assert 0 <= found < 2**63
    assert derive(seed, *uses) == found


@given(st.integers(0, 3), labels, st.integers(0, 3), labels)
def test_other_seeds_or_labels_give_other_seeds(
    seed: int, uses: list[str | int], other: int, others: list[str | int]
) -> None:
    same = (seed, [str(use) for use in uses]) == (other, [str(use) for use in others])
    assert (derive(seed, *uses) == derive(other, *others)) == same


@pytest.mark.parametrize(
    ("one", "two"), [(("ab", "c"), ("a", "bc")), (("a",), ("a", "")), (("",), ())]
)
def test_labels_do_not_run_together(one: tuple[str, ...], two: tuple[str, ...]) -> None:
    assert derive(1, *one) != derive(1, *two)


# -- a site's own ---------------------------------------------------------------------------

PLAN = "ab" * 32


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_sites_key_is_hkdf_of_its_secret_and_the_plan(secret: bytes, plan: bytes) -> None:
    info = b"fedshield training 1" + plan
    expected = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
    found = SiteRandomness.of_site(secret, plan.hex())
    assert found.key == expected
    assert secret not in found.key
    assert repr(found) == "SiteRandomness()"


def test_known_answers_of_a_site() -> None:
    site = SiteRandomness.of_site(bytes(range(32)), PLAN)
    assert site.seed("dropout", 3, "cd" * 32) == 4121952332762225900
    assert site.permutation(6, "rows", 0).tolist() == [5, 1, 2, 3, 0, 4]
    demonstration = SiteRandomness.of_demonstration(42, "hospital")
    assert demonstration.seed("dropout", 3, "cd" * 32) == 4951597350346618250


def test_secret_plan_site_and_use_each_change_what_is_drawn() -> None:
    sources = [
        SiteRandomness.of_site(b"s" * 32, PLAN),
        SiteRandomness.of_site(b"t" * 32, PLAN),
        SiteRandomness.of_site(b"s" * 32, "00" * 32),
        SiteRandomness.of_demonstration(42, "bank"),
        SiteRandomness.of_demonstration(42, "clinic"),
        SiteRandomness.of_demonstration(43, "bank"),
    ]
    uses: list[tuple[str | int, ...]] = [("order", 1, "a"), ("order", 1, "b"), ("order", 2, "a")]
    uses += [("rows", 1, "a"), ("order", 11, ""), ("order", 1, "1")]
    assert len({one.seed(*use) for one in sources for use in uses}) == 36
    assert len({tuple(one.permutation(50, *use)) for one in sources for use in uses}) == 36
    for one in sources:
        assert sorted(one.permutation(50, "rows", 0)) == list(range(50))
