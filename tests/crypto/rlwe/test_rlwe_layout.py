"""The layout: room for every honest sum, tags short enough and strong enough, chunks that fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.crypto.rlwe.layout import RlweLayout, blocks_per_chunk
from fedshield.crypto.rlwe.params import RING_DEGREE, choose
from fedshield.crypto.scheme import BLOCK_BYTES
from fedshield.errors import CryptoError


@given(
    sites=st.integers(1, 64),
    bits=st.integers(2, 16),
    headroom=st.booleans(),
    num_values=st.integers(0, 2**28),
    reserved=st.lists(st.integers(1, 36), max_size=6).map(tuple),
)
def test_every_layout_has_room_for_what_it_promises(
    sites: int, bits: int, headroom: bool, num_values: int, reserved: tuple[int, ...]
) -> None:
    try:
        p = choose(sites, bits, num_values, headroom=headroom)
    except CryptoError:
        return  # test_rlwe_params says when
    try:
        layout = RlweLayout(p, num_values, reserved)
    except CryptoError:
        # A sum of some reserved integer would go around mod q.
        assert sites * ((1 << max(reserved)) - 1) >= p.q
        return
    assert all(sites * ((1 << most) - 1) < p.q for most in reserved)
    # The tag: strong enough, and not more of them than there must be.
    blocks, q = layout.num_blocks, p.q
    assert (blocks + 1) ** layout.num_tags << 64 <= q**layout.num_tags
    assert (blocks + 1) ** (layout.num_tags - 1) << 64 > q ** (layout.num_tags - 1)
    assert layout.num_residues == len(reserved) + layout.num_tags
    assert layout.num_coefficients * p.digits >= num_values
    assert 0 <= blocks * RING_DEGREE - layout.num_coefficients < RING_DEGREE
    assert layout.num_coefficients <= p.num_coefficients
    # Chunks: all blocks, in messages that are not too long.
    sizes = [layout.chunk_blocks(index) for index in range(layout.num_chunks)]
    assert sum(sizes) == blocks
    assert blocks_per_chunk(p) % 8 == 0
    assert all(size == blocks_per_chunk(p) for size in sizes[:-1])
    assert layout.upload_bytes == sum(map(layout.chunk_bytes, range(layout.num_chunks)))
    if sizes:
        assert layout.sum_chunk_bytes(0) <= BLOCK_BYTES
        assert layout.chunk_bytes(0) == sizes[0] * p.bytes_per_block


def test_without_values_there_are_no_blocks_but_tags() -> None:
    layout = RlweLayout(choose(3, 16, 10), 0, (30,))
    assert (layout.num_blocks, layout.num_chunks, layout.num_tags) == (0, 0, 2)


@pytest.mark.parametrize("reserved", [(0,), (41,), (16, -1)])
def test_impossible_slots_are_refused(reserved: tuple[int, ...]) -> None:
    """Three sites and q just below 2^42: 40 bits each is the most."""
    assert choose(3, 16, 10).q.bit_length() == 42
    RlweLayout(choose(3, 16, 10), 10, (40,))
    with pytest.raises(CryptoError, match="reserved"):
        RlweLayout(choose(3, 16, 10), 10, reserved)


def test_a_layout_longer_than_its_parameters_were_chosen_for_is_refused() -> None:
    p = choose(3, 16, 1000)
    RlweLayout(p, 1000, (16,) * 100)
    with pytest.raises(CryptoError, match="choose the parameters"):
        RlweLayout(p, 10**6, ())
    with pytest.raises(CryptoError, match="0 or more values"):
        RlweLayout(p, -1, ())


def test_a_chunk_that_is_not_there() -> None:
    layout = RlweLayout(choose(3, 16, 1000), 1000, ())
    for index in (-1, 1):
        with pytest.raises(CryptoError, match="chunk"):
            layout.chunk_bytes(index)
