"""The values that flow: nothing in them can be changed, and a digest covers every field."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest

from fedshield.types import (
    AdapterSpec,
    AdapterState,
    AdapterUpdate,
    EncodedIntegers,
    EncodedUpdate,
    Layout,
    Mask,
    OpenedSum,
    PrunedUpdate,
    Selection,
    SiteMemory,
    TensorSpec,
)

SPEC = AdapterSpec(
    (TensorSpec("q.lora_A.weight", (2, 3)), TensorSpec("q.lora_B.weight", (4, 2))), "ab" * 32, 2.0
)
LAYOUT = Layout("cd" * 32, 14, ("weight",), 8, "ckks grid 2^-22 scale 2^40")


def state() -> AdapterState:
    return AdapterState(np.arange(14, dtype=np.float32) / 8, SPEC)


def mask() -> Mask:
    return Mask(np.arange(14) % 2 == 0, 0.5)


def zeros() -> Any:
    return np.zeros(14, np.float32)


def digits(dtype: Any = np.int16) -> Any:
    return np.zeros(14, dtype)


#: How each value with an array is built from it, the array's name, dtype and length.
WITH_ARRAYS: list[tuple[Callable[[Any], Any], str, Any, int]] = [
    (lambda a: AdapterState(a, SPEC), "values", np.float32, 14),
    (lambda a: AdapterUpdate(a, state(), 5), "values", np.float32, 14),
    (lambda a: Mask(a, 0.5), "kept", np.bool_, 14),
    (lambda a: PrunedUpdate(a, mask(), "delta", zeros()), "values", np.float32, 14),
    (lambda a: PrunedUpdate(zeros(), mask(), "delta", a), "left_out", np.float32, 14),
    (lambda a: EncodedIntegers(digits(), (1,), LAYOUT, 0, a), "residual", np.float32, 14),
    (lambda a: EncodedUpdate(a, LAYOUT, 0), "slots", np.float64, 15),
    (lambda a: OpenedSum(a, {"weight": 1.0}, LAYOUT), "values", np.float64, 14),
]
arrays = pytest.mark.parametrize(
    ("build", "name", "dtype", "length"),
    WITH_ARRAYS,
    ids=[
        *("AdapterState", "AdapterUpdate", "Mask", "PrunedUpdate", "left out", "EncodedIntegers"),
        *("EncodedUpdate", "OpenedSum"),
    ],
)


@arrays
def test_arrays_are_read_only_and_kept_as_given(
    build: Callable[[Any], Any], name: str, dtype: Any, length: int
) -> None:
    given = np.ones(length, dtype)
    array = getattr(build(given), name)
    assert array.dtype == dtype
    assert array.tolist() == [1] * length
    for target in (array, given):
        with pytest.raises(ValueError, match="read-only"):
            target[0] = 0


@arrays
def test_wrong_arrays_are_refused(
    build: Callable[[Any], Any], name: str, dtype: Any, length: int
) -> None:
    other = np.float64 if dtype is np.float32 else np.float32
    wrong = [np.ones(length, other), np.ones((length, 1), dtype), np.ones((2, length), dtype)]
    if dtype is not np.bool_:  # a mask alone has no length to keep to
        wrong += [np.ones(length - 1, dtype), np.ones(length + 1, dtype)]
        wrong.append(np.ones(length, np.dtype(dtype).newbyteorder(">")))
    for array in wrong:
        with pytest.raises(ValueError, match=rf"{name}: expected {np.dtype(dtype).name}"):
            build(array)


def test_digits_are_read_only_and_of_the_layouts_length() -> None:
    for dtype in (np.int16, np.int32):
        given = digits(dtype)
        kept = EncodedIntegers(given, (1,), LAYOUT, 0, zeros()).digits
        assert kept.dtype == dtype
        for target in (given, kept):
            with pytest.raises(ValueError, match="read-only"):
                target[0] = 1
    for wrong in (np.zeros(13, np.int16), np.zeros((14, 1), np.int16), np.zeros(15, np.int16)):
        with pytest.raises(ValueError, match="digits: got shape"):
            EncodedIntegers(wrong, (1,), LAYOUT, 0, zeros())


def test_what_a_site_carries_is_read_only_float32() -> None:
    residual, clip = zeros(), np.ones(2, np.float32)
    own = np.ones(3, np.float32)
    memory = SiteMemory(residual, {"clip": clip}, {"control": own})
    for target in (residual, clip, own, memory.residual, memory.clip, memory.own["control"]):
        with pytest.raises(ValueError, match="read-only"):
            target[0] = 1
    for wrong in (np.zeros(14), np.zeros((14, 1), np.float32)):
        with pytest.raises(ValueError, match="residual: expected float32"):
            SiteMemory(wrong, {"clip": np.ones(2, np.float32)})
        with pytest.raises(ValueError, match="clip: expected float32"):
            SiteMemory(zeros(), {"clip": wrong})
        with pytest.raises(ValueError, match="control: expected float32"):
            SiteMemory(zeros(), {"clip": np.ones(2, np.float32)}, {"control": wrong})


def test_what_sites_share_is_in_one_digest_and_their_own_is_not() -> None:
    def digest(own: Any = None, residual: Any = None, **shared: Any) -> bytes:
        given = {name: np.array(vector, np.float32) for name, vector in shared.items()}
        return SiteMemory(
            zeros() if residual is None else residual, given, own or {}
        ).shared_sha256()

    first = digest(clip=[1, 2], score=[3])
    assert digest({"control": np.ones(2, np.float32)}, clip=[1, 2], score=[3]) == first
    assert digest(None, np.ones(14, np.float32), clip=[1, 2], score=[3]) == first
    assert digest(score=[3], clip=[1, 2]) == first  # in whatever order
    others = [
        digest(clip=[1, 2]),
        digest(clip=[1, 2], momentum=[3]),
        digest(clip=[1, 2, 3], score=[]),
        digest(clip=[1], score=[2, 3]),
        digest(clip=[2, 1], score=[3]),
        digest(clip=[1, np.nextafter(np.float32(2), np.float32(3))], score=[3]),
        digest(clip=[1, 2], score=[3], second=[0]),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_no_field_can_be_set() -> None:
    values = [
        SPEC.tensors[0],
        SPEC,
        LAYOUT,
        Selection(np.arange(3), SPEC),
        SiteMemory(zeros(), {"clip": np.ones(2, np.float32)}),
        *(build(np.ones(length, dtype)) for build, _, dtype, length in WITH_ARRAYS),
    ]
    for value in values:
        for field in fields(value):
            with pytest.raises(FrozenInstanceError):
                setattr(value, field.name, None)


def test_a_spec_lays_tensors_one_after_the_other() -> None:
    assert SPEC.num_values == 14
    assert SPEC.slices() == {"q.lora_A.weight": slice(0, 6), "q.lora_B.weight": slice(6, 14)}
    assert TensorSpec("scalar", ()).size == 1


@pytest.mark.parametrize(("length", "blocks"), [(0, 1), (7, 1), (8, 2), (15, 2), (16, 3)])
def test_a_layout_counts_slots_and_blocks(length: int, blocks: int) -> None:
    layout = replace(LAYOUT, num_values=length)
    assert (layout.num_slots, layout.num_blocks) == (length + 1, blocks)


def test_a_mask_counts_what_it_prunes() -> None:
    assert mask().num_pruned == 7


def test_digests_are_the_known_answers() -> None:
    text = (
        b'[["q.lora_A.weight", [2, 3]], ["q.lora_B.weight", [4, 2]], "' + b"ab" * 32 + b'", "2.0"]'
    )
    assert SPEC.sha256() == hashlib.sha256(text).hexdigest()
    assert SPEC.sha256() == "cc3243b4687e3e3f3a16819c411af7acd8f8bd8222f997c9a9433d45cc079239"
    assert state().sha256() == "d5862003148b86719eea2f49dc1502a8ab11f170168c1b0b8a0b09db20e6477e"
    assert (
        LAYOUT.sha256().hex() == "0e653b9624be985fd971190c5c65ec85809ac0aa9c7e58b2b795f5eae76168d0"
    )


def test_every_field_of_a_spec_is_in_its_digest() -> None:
    first, second = SPEC.tensors
    changed = [
        replace(SPEC, tensors=(second, first)),
        replace(SPEC, tensors=(first,)),
        replace(SPEC, tensors=(replace(first, name="k.lora_A.weight"), second)),
        replace(SPEC, tensors=(replace(first, shape=(3, 2)), second)),
        replace(SPEC, tensors=(replace(first, shape=(6,)), second)),
        replace(SPEC, base_model_sha256="ac" * 32),
        replace(SPEC, scaling=2.0000000000000004),
    ]
    assert {f.name for f in fields(SPEC)} == {"tensors", "base_model_sha256", "scaling"}
    digests = {spec.sha256() for spec in [SPEC, *changed]}
    assert len(digests) == 1 + len(changed)


def test_every_value_and_the_spec_are_in_a_states_digest() -> None:
    found = {state().sha256()}
    for place in range(14):
        values = state().values.copy()
        values[place] = np.nextafter(values[place], np.float32(9))
        found.add(AdapterState(values, SPEC).sha256())
    found.add(AdapterState(state().values.copy(), replace(SPEC, scaling=1.0)).sha256())
    assert len(found) == 16


def test_every_field_of_a_layout_is_in_its_digest() -> None:
    changes = {
        "spec_sha256": "ce" * 32,
        "num_values": 13,
        "reserved": ("count",),
        "values_per_block": 9,
        "number_format": "ckks grid 2^-21 scale 2^40",
    }
    assert set(changes) == {f.name for f in fields(LAYOUT)}
    digests = {replace(LAYOUT, **{name: value}).sha256() for name, value in changes.items()}
    assert len(digests | {LAYOUT.sha256()}) == 1 + len(changes)


def test_large_arrays_stay_out_of_repr() -> None:
    pruned = PrunedUpdate(zeros(), mask(), "delta", zeros())
    integers = EncodedIntegers(digits(), (1,), LAYOUT, 0, zeros())
    for value in (state(), pruned, integers, SiteMemory(zeros(), {"clip": zeros()})):
        assert "array" not in repr(value)
