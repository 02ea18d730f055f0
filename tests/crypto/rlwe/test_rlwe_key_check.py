"""Which sum of keys a sum was made under: its first blocks tell, where anything can."""

from __future__ import annotations

import numpy as np
import pytest
from rlwe_round import CONTEXT, Round, layout_for

from fedshield.crypto.rlwe.scheme import key_fits, residual_limit, tells_keys
from fedshield.errors import CryptoError

PACKINGS = [
    *((sites, bits, False) for sites in (3, 4, 12) for bits in (8, 12, 16)),
    *((sites, bits, True) for sites in (3, 4, 12) for bits in (2, 4)),
]


def made(sites: int, bits: int, headroom: bool = False, num_values: int = 3000) -> Round:
    layout = layout_for(sites, bits, num_values, headroom=headroom)
    rng = np.random.default_rng(sites)
    limit = layout.parameters.site_limit(1 / sites)
    vectors = {
        site: rng.integers(-limit, limit + 1, num_values).astype(np.int32) for site in range(sites)
    }
    return Round(layout, vectors, dict.fromkeys(range(sites), (1, 2, 3, 4)))


def fits(of: Round, chunks: list[bytes], key_sum: np.ndarray) -> bool:
    return key_fits(chunks, key_sum, len(of.vectors), CONTEXT, of.layout)


@pytest.mark.parametrize(("sites", "bits", "headroom"), PACKINGS)
def test_the_right_key_and_those_next_to_it(sites: int, bits: int, headroom: bool) -> None:
    """One coefficient off by one, or all of them, or as far as the range lets."""
    ours = made(sites, bits, headroom)
    assert tells_keys(sites, ours.layout)
    chunks, right = ours.aggregate(), ours.key_sum()
    assert fits(ours, chunks, right)
    for place in (0, 1, 4095):
        for by in (1, -1, 42):
            wrong = right.copy()
            wrong[place] += by
            assert not fits(ours, chunks, wrong)
    for wrong in (right + 1, -right, 0 * right):
        assert not fits(ours, chunks, wrong)
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert not fits(ours, chunks, right + rng.integers(-1, 2, 4096))


@pytest.mark.parametrize("part", [0, 9])
def test_only_the_first_blocks_are_looked_at(part: int) -> None:
    """Eight of ten: enough to tell a key; what is wrong further on is for the opening to find."""
    ours = made(3, 16, num_values=2 * 10 * 4096)
    assert ours.layout.num_blocks == 10
    (chunk,) = ours.aggregate()
    block = len(chunk) // 10
    changed = bytearray(chunk)
    changed[part * block : (part + 1) * block] = bytes(block)
    assert fits(ours, [bytes(changed)], ours.key_sum()) == (part == 9)
    with pytest.raises(CryptoError, match="block"):
        ours.open([bytes(changed)])


def test_another_sum() -> None:
    """The right key of another set, or of fewer sites."""
    ours = made(4, 16)
    chunks = ours.aggregate()
    fewer = Round(ours.layout, {one: ours.vectors[one] for one in (0, 1, 2)}, ours.reserved)
    assert not fits(ours, chunks, fewer.key_sum())
    assert not key_fits(chunks, ours.key_sum(), 4, bytes(32), ours.layout)
    with pytest.raises(CryptoError, match="chunk of"):
        fits(ours, [chunks[0][:-8]], ours.key_sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
def test_two_sites_leave_nothing_to_tell(bits: int) -> None:
    """Their limit is four fifths of what a wrong key leaves, or all of it: a check that would pass
    a wrong key is no check."""
    layout = layout_for(2, bits, 3000, headroom=bits < 8)
    p = layout.parameters
    assert residual_limit(2, p) / (p.delta**2 / 12) > 0.78
    assert not tells_keys(2, layout)


def test_a_wrong_key_passes_where_it_cannot_be_told() -> None:
    """Control: two sites at 16 bits."""
    ours = made(2, 16)
    chunks, right = ours.aggregate(), ours.key_sum()
    passed = 0
    for place in range(40):
        wrong = right.copy()
        wrong[place] += 1
        passed += fits(ours, chunks, wrong)
    assert passed > 0


@pytest.mark.parametrize("sites", [*range(3, 17), 32, 64, 128, 390])
def test_three_sites_and_more_can_be_told(sites: int) -> None:
    for bits, headroom in ((2, True), (3, True), (4, True), (8, False), (12, False), (16, False)):
        try:
            layout = layout_for(sites, bits, 3000, headroom=headroom)
        except CryptoError:  # does not fit one prime
            continue
        assert tells_keys(sites, layout)
        assert tells_keys(min(3, sites), layout)


def test_a_sum_without_blocks_tells_nothing() -> None:
    assert not tells_keys(3, layout_for(3, 16, 0))
