"""docs/protocol.md, section 7c: the adapter, its digests, how it begins and which coordinates
travel, from the page alone. `plan` is the canonical JSON, read."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from page_streams import Packing
from page_wire import LABELS, Refused, sha256, sized

Array = NDArray[Any]


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Spec(NamedTuple):
    """`tensors` in the order of their names; `base`: digest of what they stand on, hex."""

    tensors: tuple[Tensor, ...]
    base: str
    scaling: float

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def slices(self) -> list[slice]:
        ends = np.cumsum([tensor.size for tensor in self.tensors]).tolist()
        return [
            slice(end - tensor.size, end) for end, tensor in zip(ends, self.tensors, strict=True)
        ]

    def digest(self) -> bytes:
        value = [[t.name, list(t.shape)] for t in self.tensors] + [self.base, repr(self.scaling)]
        return sha256(json.dumps(value).encode())


def adapter_digest(spec: Spec, values: Array) -> bytes:
    return sha256(spec.digest(), values.astype("<f4").tobytes())


def selection_digest(spec: Spec, places: Array) -> str:
    return sha256(spec.digest(), places.astype("<i8").tobytes()).hex()


def shared_digest(shared: Mapping[str, Array]) -> bytes:
    parts = [LABELS["shared memory"]]
    for name in sorted(shared):
        vector = shared[name]
        parts += [name.encode(), b"\0", struct.pack(">Q", vector.size)]
        parts.append(vector.astype("<f4").tobytes())
    return sha256(*parts)


def standing_digest(spec: Spec, values: Array, shared: Mapping[str, Array]) -> str:
    parts = (LABELS["standing"], adapter_digest(spec, values), shared_digest(shared))
    return sha256(*parts).hex()


def layout_digest(packing: Packing, what: str, values: int, reserved: Mapping[str, int]) -> bytes:
    """`what`: digest of the selection, or 'weights'; `reserved`: name -> bits."""
    bits = ",".join(map(str, reserved.values()))
    number_format = f"rlwe {packing.name} reserved {bits}"
    block = 4096 * packing.digits
    value = [LABELS["layout"].decode(), what, values, list(reserved), block, number_format]
    return sha256(json.dumps(value).encode())


UPDATE_RESERVED = {"contributors": 1, "weight": 31, "loss": 31}
WEIGHTS_RESERVED = {"contributors": 1, "count": 30}


# -- seeds and the adapter -----------------------------------------------------------------------


def derive(seed: int, *labels: str | int) -> int:
    parts = [sized(str(label).encode()) for label in labels]
    start = LABELS["seed"] + seed.to_bytes(16, "big", signed=True)
    return int.from_bytes(sha256(start, *parts)[:8], "big") >> 1


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def core_base(base: str, weights: Mapping[str, Array], rank: int) -> str:
    """Digest of what `core` adapters stand on. `weights`: layer -> (out, in), float32, of the
    layers that have an adapter."""
    digest = hashlib.sha256(LABELS["factors"])
    for layer in sorted(weights):
        for factor in core_factors(weights[layer].astype(np.float64), rank):
            digest.update(np.rint(factor * 1024).astype("<i2").tobytes())
    return sha256(bytes.fromhex(base), digest.hexdigest().encode()).hex()


def core_factors(w: Array, rank: int) -> tuple[Array, Array]:
    """U (out, rank) and V (in, rank), by the eigenvectors of the smaller product."""
    tall = w.shape[0] >= w.shape[1]
    short = np.linalg.eigh(w.T @ w if tall else w @ w.T)[1][:, ::-1][:, :rank]
    long, triangle = np.linalg.qr((w if tall else w.T) @ short)
    long = long * np.sign(np.diagonal(triangle))
    u, v = (long, short) if tall else (short, long)
    signs = np.sign(v[np.abs(v).argmax(axis=0), np.arange(rank)])
    return u * signs, v * signs


def first_values(plan: Mapping[str, Any], spec: Spec) -> Array:
    values = np.zeros(spec.size, dtype=np.float32)
    seed = derive(plan["seed"], "adapter")
    for tensor, place in zip(spec.tensors, spec.slices(), strict=True):
        if ".lora_A." in tensor.name:
            bound = tensor.shape[1] ** -0.5
            drawn = generator(derive(seed, "init", tensor.name))
            values[place] = drawn.uniform(-bound, bound, tensor.size).astype(np.float32)
    return values


# -- which coordinates ---------------------------------------------------------------------------


def travelling(plan: Mapping[str, Any], spec: Spec, score: Array | None, number: int) -> Array:
    """The coordinates of round `number`, ascending."""
    groups = [
        np.arange(place.start, place.stop, dtype=np.int64)
        for tensor, place in zip(spec.tensors, spec.slices(), strict=True)
        if _travels(plan["adapter"]["train"], tensor.name, number)
    ]
    rate = pruning_rate(plan, number)
    if rate == 0:
        return np.concatenate(groups)
    pruning = plan["pruning"]
    if pruning["mask"] != "shared":
        raise Refused("internal: this site knows shared masks only")
    if pruning["ranking"] == "global":
        groups = [np.concatenate(groups)]
    kept = [
        _kept(group, score, rate, pruning["explore"], derive(plan["seed"], "explore", number, k))
        for k, group in enumerate(groups)
    ]
    return np.sort(np.concatenate(kept))


def _travels(train: str, name: str, number: int) -> bool:
    factor = {"b": "B", "share-a": "A", "alternate": "B" if number % 2 else "A"}.get(train)
    return factor is None or f".lora_{factor}." in name


def pruning_rate(plan: Mapping[str, Any], number: int) -> float:
    pruning, rounds = plan["pruning"], plan["rounds"]
    target = rounds if pruning["target_round"] is None else pruning["target_round"]
    start = min(rounds // 5, target) if pruning["start_round"] is None else pruning["start_round"]
    if pruning["method"] == "none" or number < start:
        return 0.0
    progress = 1.0 if target <= start else (number - start) / (target - start)
    first, last = pruning["initial_rate"], pruning["target_rate"]
    rate: float = first + (last - first) * min(max(progress, 0.0), 1.0)
    return rate


def _kept(group: Array, score: Array | None, rate: float, explore: float, seed: int) -> Array:
    count, draw = group.size - int(rate * group.size), generator(seed)
    scores = None if score is None else score[group]
    drawn = count if scores is None or not scores.any() else int(explore * count)
    if scores is None or drawn == count:
        some: Array = group[draw.permutation(group.size)[:count]]
        return some
    order = np.argsort(-scores, kind="stable")
    best, rest = order[: count - drawn], order[count - drawn :]
    found: Array = group[np.concatenate([best, draw.permutation(rest)[:drawn]])]
    return found


def parts_of(spec: Spec, places: Array) -> list[tuple[int, slice]]:
    """(number of a tensor, its stretch of the selected values), where it has any."""
    found: list[tuple[int, slice]] = []
    for number, place in enumerate(spec.slices()):
        low, high = np.searchsorted(places, (place.start, place.stop))
        if high > low:
            found.append((number, slice(int(low), int(high))))
    return found


def spec_of(plan: Mapping[str, Any], base: str, weights: Mapping[str, Array]) -> Spec:
    """`base`: the base model's digest, hex; `weights`: layer -> (out, in), of the target layers."""
    adapter = plan["adapter"]
    rank, tensors = adapter["rank"], []
    for layer, weight in weights.items():
        name, (out, size) = f"base_model.model.{layer}", weight.shape
        if adapter["train"] == "core":
            tensors.append(Tensor(f"{name}.lora_B.core", (rank, rank)))
        else:
            tensors.append(Tensor(f"{name}.lora_A.weight", (rank, size)))
            tensors.append(Tensor(f"{name}.lora_B.weight", (out, rank)))
    if adapter["train"] == "core":
        base = core_base(base, weights, rank)
    return Spec(tuple(sorted(tensors)), base, adapter["alpha"] / rank)
