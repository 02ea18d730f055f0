"""The decoder of one word against a search over all choices of T values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto.reed_solomon import Code
from reference.reed_solomon import nearest
from reference.shamir import value

LARGE = 2**31 - 1


@st.composite
def words(draw: st.DrawFn) -> tuple[int, tuple[int, ...], int, list[int], frozenset[int]]:
    """Prime, points, dimension, a word, and where it was changed; of small fields also words that
    are near no codeword, and such as are near another than they were made from."""
    prime = draw(st.sampled_from([11, 13, 31, LARGE]))
    points = draw(
        st.lists(st.integers(0, min(prime, 100) - 1), min_size=1, max_size=8, unique=True)
    )
    dimension = draw(st.integers(1, len(points)))
    elements = st.integers(0, prime - 1)
    coefficients = draw(st.lists(elements, min_size=dimension, max_size=dimension))
    found = [value(coefficients, x, prime) for x in points]
    changed = draw(st.sets(st.integers(0, len(points) - 1)))
    for place in changed:
        found[place] = (found[place] + draw(st.integers(1, prime - 1))) % prime
    return prime, tuple(points), dimension, found, frozenset(changed)


@settings(deadline=None, max_examples=400)
@given(words())
def test_it_finds_what_a_search_finds(
    word: tuple[int, tuple[int, ...], int, list[int], frozenset[int]],
) -> None:
    prime, points, dimension, values, changed = word
    code = Code(points, dimension, prime)
    found = code.wrong(values)
    assert found == nearest(points, values, dimension, prime)
    if len(changed) <= code.radius:
        assert found == changed


@pytest.mark.parametrize("values", [(0, 0, 0, 0, 0), (0, 0, 7, 0, 0), (3, 3, 3, 1, 3)])
def test_constants_and_zero(values: tuple[int, ...]) -> None:
    """Polynomials of a lower degree than they may have, down to none."""
    usual = max(set(values), key=values.count)
    expected = frozenset(place for place, one in enumerate(values) if one != usual)
    for dimension in (1, 2, 3):
        assert Code((1, 2, 3, 4, 5), dimension, LARGE).wrong(values) == expected


@pytest.mark.parametrize(("size", "dimension"), [(64, 22), (63, 22), (390, 200)])
def test_as_many_sites_as_there_can_be(size: int, dimension: int) -> None:
    points = tuple(range(1, size + 1))
    code = Code(points, dimension, LARGE)
    coefficients = [pow(7, power + 1, LARGE) for power in range(dimension)]
    right = [value(coefficients, x, LARGE) for x in points]
    assert code.wrong(right) == frozenset()
    places = [(11 * place) % size for place in range(code.radius + 1)]
    wrong = list(right)
    for place in places[:-1]:
        wrong[place] = (wrong[place] + 1 + place) % LARGE
    assert code.wrong(wrong) == frozenset(places[:-1])
    wrong[places[-1]] = (wrong[places[-1]] + 1) % LARGE
    assert code.wrong(wrong) is None


def test_with_nothing_to_spare_nothing_is_wrong() -> None:
    """m = T: every word is a codeword. m = T + 1: one that is not is seen, no more."""
    assert Code((1, 2, 3), 3, 31).wrong((30, 0, 17)) == frozenset()
    assert Code((1, 2, 3), 2, 31).wrong((1, 2, 3)) == frozenset()
    assert Code((1, 2, 3), 2, 31).wrong((1, 2, 4)) is None
