"""Scheme `plain`: float32 sums in the clear, and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from fedshield.crypto import scheme
from fedshield.crypto.adders import PlainAdder, adder
from fedshield.crypto.plain import VALUES_PER_BLOCK, PlainScheme
from fedshield.crypto.scheme import BLOCK_BYTES, PLAIN, parameters
from fedshield.errors import CryptoError

PLAIN_SCHEME = PlainScheme()


def encrypt(slots: NDArray[np.float64]) -> list[bytes]:
    return list(PLAIN_SCHEME.encrypt(slots))


def add(uploads: list[list[bytes]]) -> list[bytes]:
    adding = PlainAdder()
    blocks = []
    for column in zip(*uploads, strict=True):
        total: object | None = None
        for block in column:
            total = adding.add(total, block)
        blocks.append(adding.result(total))
    return blocks


@pytest.mark.parametrize(
    ("num_sites", "length"),
    [(1, 1), (2, 7), (3, 7), (16, 1000), (2, VALUES_PER_BLOCK), (2, VALUES_PER_BLOCK + 1)],
)
def test_sums(num_sites: int, length: int) -> None:
    rng = np.random.default_rng(num_sites)
    slots = [rng.standard_normal(length).astype(np.float32) for _ in range(num_sites)]
    blocks = add([encrypt(one.astype(np.float64)) for one in slots])
    assert len(blocks) == -(-length // VALUES_PER_BLOCK)
    opened = PLAIN_SCHEME.open(blocks, length)
    expected = np.sum([one.astype(np.float64) for one in slots], axis=0).astype(np.float32)
    assert opened.dtype == np.float64
    assert (opened == expected).all()


def test_sums_are_taken_in_float64() -> None:
    """float32 would drop each of the 1024 small values."""
    small = [np.array([2.0**-25])] * 1024
    blocks = add([encrypt(np.array([1.0])), *(encrypt(one) for one in small)])
    assert PLAIN_SCHEME.open(blocks, 1)[0] == 1.0 + 2.0**-15


def test_wire_form_is_little_endian_float32() -> None:
    assert encrypt(np.array([1.0, -2.5])) == [struct.pack("<2f", 1.0, -2.5)]
    assert PLAIN_SCHEME.number_format == "float32"
    assert PLAIN_SCHEME.key_id == bytes(16)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 4 * 9 + 2, BLOCK_BYTES + 4])
def test_blocks_of_wrong_sizes(size: int) -> None:
    with pytest.raises(CryptoError, match="float32"):
        PlainAdder().add(None, bytes(size))


def test_blocks_of_different_sizes_are_not_added() -> None:
    adding = PlainAdder()
    with pytest.raises(CryptoError, match="expected 2 values, got 3"):
        adding.add(adding.add(None, bytes(8)), bytes(12))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 5, 9])
def test_what_is_not_a_number_is_refused_on_both_sides(bad: float, at: int) -> None:
    values = np.zeros(10, dtype="<f4")
    values[at] = bad
    with pytest.raises(CryptoError, match="finite"):
        PLAIN_SCHEME.open([values.tobytes()], 10)
    with pytest.raises(CryptoError, match="finite"):
        PlainAdder().add(None, values.tobytes())


def test_a_sum_that_float32_does_not_hold_is_refused() -> None:
    adding = PlainAdder()
    most = np.full(3, np.finfo(np.float32).max, dtype="<f4").tobytes()
    once = adding.add(None, most)
    assert adding.result(once) == most
    with pytest.raises(CryptoError, match="float32"):
        adding.result(adding.add(once, most))


@pytest.mark.parametrize(
    ("blocks", "num_slots"),
    [([], 1), ([bytes(4)], 2), ([bytes(8)], 1), ([bytes(7)], 2), ([bytes(4), bytes(4)], 3)],
)
def test_sums_of_wrong_sizes(blocks: list[bytes], num_slots: int) -> None:
    with pytest.raises(CryptoError, match="bytes"):
        PLAIN_SCHEME.open(blocks, num_slots)


def test_by_name() -> None:
    assert isinstance(adder("plain", "", b""), PlainAdder)
    assert parameters("plain", "") is PLAIN
    assert PLAIN.values_per_block == VALUES_PER_BLOCK == scheme.BLOCK_BYTES // 4
    assert PLAIN.bytes_per_value == 4
