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
    reserved=st.lists(st.integers(1, 64), max_size=6).map(tuple),
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
        # Not one bit for each site in half of a coefficient's range.
        assert (p.radix**p.digits - 1) // 2 // sites < 2
        return
    s, half = layout.slot_bits, (p.radix**p.digits - 1) // 2
    assert sites * ((1 << s) - 1) <= half < sites << (s + 1)
    assert layout.value_coefficients * p.digits >= num_values
    assert all(
        count * s >= most > (count - 1) * s
        for count, most in zip(layout.reserved_digits, reserved, strict=True)
    )
    # The tag: strong enough, and not longer than it must be.
    blocks, q = layout.num_blocks, p.q
    assert layout.tag_digits * s >= q.bit_length()
    assert (blocks + 1) ** layout.num_tags << 64 <= q**layout.num_tags
    assert (blocks + 1) ** (layout.num_tags - 1) << 64 > q ** (layout.num_tags - 1)
    assert 0 <= blocks * RING_DEGREE - layout.num_coefficients < RING_DEGREE
    assert layout.num_coefficients <= p.num_coefficients
    # Chunks: all blocks, in messages that are not too long.
    sizes = [layout.chunk_blocks(index) for index in range(layout.num_chunks)]
    assert sum(sizes) == blocks
    assert blocks_per_chunk(p) % 8 == 0
    assert all(size == blocks_per_chunk(p) for size in sizes[:-1])
    assert layout.sum_chunk_bytes(0) <= BLOCK_BYTES
    assert layout.chunk_bytes(0) == sizes[0] * p.bytes_per_block
    assert layout.upload_bytes == sum(map(layout.chunk_bytes, range(layout.num_chunks)))


def test_the_smallest_range_of_a_coefficient() -> None:
    """Two sites at 16 bits and D = 1 have P = 65535: 14 bits a slot."""
    p = choose(2, 16, 1000)
    one = type(p)(**{name: getattr(p, name) for name in p.__dataclass_fields__} | {"digits": 1})
    assert RlweLayout(one, 1000, ()).slot_bits == 13
    assert 2 * ((1 << 13) - 1) <= 32767 < 2 * ((1 << 14) - 1) + 2


@pytest.mark.parametrize("reserved", [(0,), (65,), (16, -1)])
def test_impossible_slots_are_refused(reserved: tuple[int, ...]) -> None:
    with pytest.raises(CryptoError, match="reserved"):
        RlweLayout(choose(3, 16, 10), 10, reserved)


def test_a_layout_longer_than_its_parameters_were_chosen_for_is_refused() -> None:
    p = choose(3, 16, 1000)
    RlweLayout(p, 1000, (16,) * 100)
    with pytest.raises(CryptoError, match="choose the parameters"):
        RlweLayout(p, 10**6, ())
    with pytest.raises(CryptoError, match="expected values"):
        RlweLayout(p, -1, ())


def test_a_chunk_that_is_not_there() -> None:
    layout = RlweLayout(choose(3, 16, 1000), 1000, ())
    for index in (-1, 1):
        with pytest.raises(CryptoError, match="chunk"):
            layout.chunk_bytes(index)
