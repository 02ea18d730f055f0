"""docs/protocol.md, section 7c: what a site counts for, clips, scores and the server's optimisers,
from the page alone. `plan` is the canonical JSON, read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from page_adapter import Spec, parts_of
from page_streams import Packing
from page_wire import Refused

Array = NDArray[Any]


# -- clips ---------------------------------------------------------------------------------------


def deviations(plan: Mapping[str, Any]) -> float:
    encoding = plan["encoding"]
    own: int = 2 ** (encoding["bits"] - 1) - 1
    steps = own if encoding["headroom"] else own // num_sites(plan)
    if not encoding["error_feedback"] or not 1 <= steps < 64:
        return 0.0
    return 2.0 + 0.65 * math.log2(steps)


def num_sites(plan: Mapping[str, Any]) -> int:
    return len(plan["data"]["sites"]) or int(plan["data"]["num_sites"])


def learning_rate(plan: Mapping[str, Any], number: int) -> float:
    training = plan["training"]
    first, last = training["learning_rate"], training["min_learning_rate"]
    if training["lr_schedule"] == "constant":
        return float(first)
    turn = 1.0 + math.cos(math.pi * ((number - 1) / plan["rounds"]))
    return float(last + (first - last) * 0.5 * turn)


def reach(plan: Mapping[str, Any], number: int, values: Array, spec: Spec) -> Array:
    """How large a contribution can be expected to get, by tensor, float64."""
    training = plan["training"]
    most = learning_rate(plan, number) * training["steps"]
    if training["optimizer"] == "sgd":
        most *= training["max_grad_norm"] or 1.0
    elif training["optimizer"] == "muon":
        most *= 0.2 * (deviations(plan) or 5.0)
    found = np.full(len(spec.tensors), max(most, 1e-12))
    if plan["adapter"]["exchange"] == "parameters":
        wide = np.abs(values.astype(np.float64))
        found += [float(wide[place].max()) for place in spec.slices()]
    return found


def next_clip(
    plan: Mapping[str, Any],
    spec: Spec,
    clip: Array,
    before: Array,
    after: Array,
    places: Array,
    mean: Array,
    number: int,
) -> Array:
    """After round `number`. `mean`: opened, float64, by place."""
    wanted, old = clip.astype(np.float64), clip.astype(np.float64)
    if plan["adapter"]["exchange"] == "parameters":
        wanted = reach(plan, min(number + 1, plan["rounds"]), after, spec)
    else:
        for tensor, part in parts_of(spec, places):
            wanted[tensor] = 2.0 * np.abs(mean[part]).max()
            if deviations(plan):
                spread = math.sqrt(float(np.mean(np.square(mean[part]))))
                wanted[tensor] = min(wanted[tensor], deviations(plan) * spread)
    floor = reach(plan, 1, before, spec) * 2.0**-10
    return np.maximum(np.minimum(wanted, 2.0 * old), floor).astype(np.float32)


def next_score(score: Array | None, size: int, places: Array, moved: Array) -> Array:
    new = np.zeros(size, dtype=np.float32) if score is None else score.copy()
    magnitude, old = np.abs(moved).astype(np.float32), new[places]
    blended = old + np.float32(0.3) * (magnitude - old)
    new[places] = np.where(old == 0, magnitude, blended)
    return new


# -- the server's optimiser ----------------------------------------------------------------------


def stepped(
    plan: Mapping[str, Any],
    values: Array,
    places: Array,
    mean: Array,
    shared: Mapping[str, Array],
) -> tuple[Array, dict[str, Array]]:
    """The next adapter, float32, and the optimiser's vectors."""
    wide = values.astype(np.float64)
    if plan["adapter"]["exchange"] == "parameters":
        wide[places] = mean
        return _narrow(wide), {}
    rules, moments = plan["aggregation"], {}
    optimizer, beta = rules["optimizer"], rules["momentum"]
    direction = mean
    if optimizer != "fedavg":
        first = _vector(shared, "momentum", values.size)
        gain = 1.0 if optimizer == "fedavgm" else 1.0 - beta
        direction = beta * first[places].astype(np.float64) + gain * mean
        if optimizer == "fedadagrad":
            direction = mean
        first[places] = _narrow(direction)
        moments["momentum"] = first
    if optimizer in ("fedadam", "fedyogi", "fedadagrad"):
        second = _vector(shared, "second", values.size)
        old, square, gamma = (
            second[places].astype(np.float64),
            mean * mean,
            rules["second_momentum"],
        )
        new = {
            "fedadam": lambda: gamma * old + (1.0 - gamma) * square,
            "fedyogi": lambda: old - (1.0 - gamma) * square * np.sign(old - square),
            "fedadagrad": lambda: old + square,
        }[optimizer]()
        second[places] = _narrow(new)
        moments["second"] = second
        direction = direction / (np.sqrt(new) + rules["epsilon"])
    wide[places] += rules["learning_rate"] * direction
    return _narrow(wide), moments


def _vector(shared: Mapping[str, Array], name: str, size: int) -> Array:
    return shared[name].copy() if name in shared else np.zeros(size, dtype=np.float32)


def _narrow(values: Array) -> Array:
    if not np.abs(values).max(initial=0) <= np.finfo(np.float32).max:
        raise Refused("weight: a step that float32 does not hold")
    return values.astype(np.float32)


# -- what a site counts for ----------------------------------------------------------------------


def counted(plan: Mapping[str, Any], rows: int, honest: int) -> int:
    """`honest`: K - c."""
    training = plan["training"]
    least = plan["data"].get("min_examples") or (
        training["batch_size"] * training["gradient_accumulation"]
    )
    if rows < least:
        raise Refused("rule: R6: too few rows")
    share = Fraction(str(plan["scheme"].get("max_weight", 0.75)))
    most = _down(int((honest - 1) * _down(least) * share / (1 - share)))
    count = min(rows, most)
    if count < 100:
        return count
    step = 10 ** (len(str(count)) - 2)
    return round(Fraction(count, step)) * step


def _down(count: int) -> int:
    step = 10 ** max(0, len(str(count)) - 2)
    return count // step * step


def digits_of(
    values: Array, parts: Sequence[tuple[slice, float]], packing: Packing, weight: float, draw: Any
) -> Array:
    """Rounded at random. `draw`: a numpy generator."""
    digits = np.zeros(values.size, dtype=np.int64)
    limit = packing.limit(weight)
    for part, clip in parts:
        steps = values[part].astype(np.float64) * (weight * packing.largest / clip)
        rounded = np.floor(steps + draw.random(steps.size))
        digits[part] = np.clip(rounded, -limit, limit).astype(np.int64)
    return digits
