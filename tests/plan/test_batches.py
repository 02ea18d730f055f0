from __future__ import annotations

import string

import pytest

from fedshield.errors import PlanError
from fedshield.plan.batches import check, cut, in_order, sitting_out, whole
from fedshield.plan.quorum import default_colluding

TWO = (("a", "b", "c"), ("d", "e", "f", "g"))


@pytest.mark.parametrize("number", range(4, 27))
def test_names_are_cut_as_evenly_as_can_be_into_batches_with_two_honest_sites(number: int) -> None:
    names = string.ascii_lowercase[:number]
    for colluding in range(default_colluding(number) + 1):
        if number < 2 * (colluding + 2):
            continue
        batches = cut(reversed(names), colluding)
        check(batches, names, colluding)
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert len(batches) == number // (colluding + 2)
        assert [name for batch in batches for name in batch] == list(names)


@pytest.mark.parametrize(
    ("batches", "got"),
    [
        ((("a", "b", "c"), ("d", "e", "f")), "every site in a batch, got none for g"),
        ((*TWO, ("h", "i", "j")), "only sites of the roster, got h, i, j too"),
        ((("a", "b", "c"), ("c", "d", "e", "f", "g")), "each site in one batch, got c in two"),
        ((("a", "a", "b", "c"), ("d", "e", "f", "g")), "each site in one batch, got a in two"),
        ((tuple("abcdefg"),), "at least two batches, got one"),
        ((("a", "b"), tuple("cdefg")), "at least c \\+ 2 = 3 sites in each, got 2 \\(a, b\\)"),
    ],
)
def test_what_is_no_cut_is_refused(batches: tuple[tuple[str, ...], ...], got: str) -> None:
    check(TWO, "abcdefg", 1)
    with pytest.raises(PlanError, match=f"^batches: expected {got}"):
        check(batches, "abcdefg", 1)


def test_one_cut_has_one_form() -> None:
    assert in_order([["g", "f", "e", "d"], ["b", "a", "c"]]) == TWO


def test_a_batch_that_is_not_whole_sits_out() -> None:
    assert whole(TWO, "abcdefg") == tuple("abcdefg")
    assert whole(TWO, "abdefg") == tuple("defg")
    assert whole(TWO, "abde") == ()
    assert sitting_out(TWO, "abcdefg") == {}
    assert sitting_out(TWO, "defg") == {}
    assert sitting_out(TWO, "abdefg") == dict.fromkeys(
        "ab", "its batch (a, b, c) sits out until c is back"
    )
    assert sitting_out(TWO, "abcd") == {
        "d": "its batch (d, e, f, g) sits out until e, f, g are back"
    }
