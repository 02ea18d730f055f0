"""The canonical encoding: one value, one byte string, and nothing else gets in."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.errors import ProtocolError
from fedshield.protocol.wire import codec

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "codec.json").read_text())

scalars = (
    st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
# Depth is limited to what the format allows: eight containers around a scalar.
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
).filter(lambda value: depth(value) <= codec.MAX_DEPTH)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0) if value else 0
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0) if value else 0
    return 0


def decoded(data: bytes) -> codec.Value | None:
    """The value in `data`, or None if it was refused as it should be."""
    try:
        return codec.decode(data)
    except ProtocolError as error:
        if error.code != "malformed":
            raise
        return None


def from_json(value: Any) -> codec.Value:
    if isinstance(value, dict):
        if "bytes" in value:
            return bytes.fromhex(value["bytes"])
        return {key: from_json(item) for key, item in value["map"].items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    assert isinstance(value, int | str)
    return value


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["name"])
def test_known_answers(vector: dict[str, Any]) -> None:
    value, data = from_json(vector["value"]), bytes.fromhex(vector["hex"])
    assert codec.encode(value).hex() == vector["hex"]
    assert codec.decode(data) == value


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_known_refusals(vector: dict[str, str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.decode(bytes.fromhex(vector["hex"]))
    assert caught.value.code == "malformed"


@given(values)
@settings(max_examples=300)
def test_round_trip(value: codec.Value) -> None:
    data = codec.encode(value)
    back = codec.decode(data)
    assert back == value
    assert type(back) is type(value)


@given(st.dictionaries(st.text(max_size=3), st.integers(-3, 3), max_size=5), st.randoms())
def test_the_order_of_insertion_does_not_show(pairs: dict[str, Any], shuffler: Any) -> None:
    items = list(pairs.items())
    shuffler.shuffle(items)
    assert codec.encode(dict(items)) == codec.encode(pairs)


@given(values, values)
@settings(max_examples=200)
def test_different_values_have_different_encodings(one: codec.Value, other: codec.Value) -> None:
    assert (codec.encode(one) == codec.encode(other)) == (one == other)


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_random_bytes_are_refused_or_canonical(data: bytes) -> None:
    value = decoded(data)
    if value is not None:
        assert codec.encode(value) == data


def test_mutated_encodings_are_refused_or_canonical() -> None:
    """Whatever is accepted is the one encoding of what came out, so no two signed byte strings
    mean the same."""
    rng = random.Random(1)
    source: codec.Value = {
        "": [0, -1, 2**40],
        "blocks": [bytes(32), b"\x01\x02", {"a": "é", "b": [[], {}]}],
        "phase": "round",
    }
    data = codec.encode(source)
    accepted = 0
    for _ in range(6000):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(mutated))
            action = rng.randrange(4)
            if action == 0:
                mutated[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                mutated[at] = rng.choice(b"ISBLM\x00\x01\xff")
            elif action == 2:
                del mutated[at : at + rng.randrange(1, 6)]
            else:
                mutated[at:at] = rng.randbytes(rng.randrange(1, 6))
            if not mutated:
                break
        value = decoded(bytes(mutated))
        if value is not None:
            accepted += 1
            assert codec.encode(value) == mutated
    assert accepted > 100  # the mutations do reach values, not only the first check


@pytest.mark.parametrize("tag", [b"S", b"B", b"L", b"M"])
@pytest.mark.parametrize("claimed", [2**32 - 1, 2**31, 2**24])
def test_a_false_length_costs_nothing(tag: bytes, claimed: int) -> None:
    """One million real bytes that claim up to four billion: refused with less than that."""
    data = tag + struct.pack(">I", claimed) + bytes(1_000_000)
    tracemalloc.start()
    try:
        assert decoded(data) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_count_one_too_high_is_refused_before_its_items_are_read() -> None:
    item = b"L" + struct.pack(">I", 0)
    data = b"L" + struct.pack(">I", 50_001) + item * 50_000
    tracemalloc.start()
    try:
        assert decoded(data) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_count_over_the_limit_is_refused_even_if_its_items_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "MAX_ITEMS", 1000)
    item = b"L" + struct.pack(">I", 0)
    assert decoded(b"L" + struct.pack(">I", 1000) + item * 1000) == [[]] * 1000
    assert decoded(b"L" + struct.pack(">I", 1001) + item * 1001) is None


def test_depth_is_bounded_before_the_stack_is() -> None:
    def nested(levels: int) -> bytes:
        return (b"L" + struct.pack(">I", 1)) * levels + codec.encode(1)

    assert decoded(nested(codec.MAX_DEPTH)) is not None
    assert decoded(nested(codec.MAX_DEPTH + 1)) is None
    assert decoded(nested(100_000)) is None
    as_keys = (b"M" + struct.pack(">I", 1)) * 50_000 + bytes(600_000)
    assert decoded(as_keys) is None


@pytest.mark.parametrize("value", [True, None, 1.0, {"a": False}, [1, 2.5], (1, 2), bytearray(2)])
def test_other_types_are_not_encoded(value: Any) -> None:
    with pytest.raises(TypeError):
        codec.encode(value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_numbers_beyond_64_bits_are_not_encoded(value: int) -> None:
    with pytest.raises(struct.error):
        codec.encode(value)
