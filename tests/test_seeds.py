"""Derived seeds: the same for the same use, unrelated for any other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.seeds import derive

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
