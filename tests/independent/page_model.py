"""docs/protocol.md, sections 7 and 7c: a site's model from round to round, from the page alone. It
trains nothing: its updates are small random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from page_adapter import (
    UPDATE_RESERVED,
    WEIGHTS_RESERVED,
    Spec,
    adapter_digest,
    first_values,
    layout_digest,
    parts_of,
    selection_digest,
    shared_digest,
    standing_digest,
    travelling,
)
from page_learning import digits_of, next_clip, next_score, num_sites, reach, stepped
from page_shares import Shape
from page_streams import packing
from page_wire import Refused, sha256

Array = NDArray[Any]


class Work(NamedTuple):
    """What a site puts into a sum."""

    digits: Array
    reserved: list[int]
    layout: bytes
    shape: Shape

    def digest(self) -> str:
        numbers = np.array([*self.digits, *self.reserved], dtype="<i8")
        return sha256(self.layout, numbers.tobytes()).hex()


class Standing(NamedTuple):
    """The adapter, and what goes with it alike at every site, after so many rounds."""

    completed: int
    values: Array
    shared: Mapping[str, Array]


class Model:
    """`plan`: the canonical JSON, read; `folder`: where the last standing is kept."""

    def __init__(
        self, name: str, plan: Mapping[str, Any], spec: Spec, threshold: int, folder: Path
    ) -> None:
        self._name, self._plan, self.spec, self._threshold = name, plan, spec, threshold
        encoding = plan["encoding"]
        self._packing = packing(num_sites(plan), encoding["bits"], encoding["headroom"])
        values = first_values(plan, spec)
        clip = reach(plan, 1, values, spec).astype(np.float32)
        self.standing = Standing(0, values, {"clip": clip})
        self.first = self.standing_digest(self.standing)
        self._file = folder / "kept.npz"
        if self._file.exists():
            with np.load(self._file) as kept:
                shared = {name[2:]: kept[name] for name in kept if name.startswith("s ")}
                self.standing = Standing(int(kept["completed"]), kept["values"], shared)

    def digest(self) -> bytes:
        """Of the adapter."""
        return adapter_digest(self.spec, self.standing.values)

    def agreed(self) -> bytes:
        """What must be alike before a sum."""
        return self.digest() + shared_digest(self.standing.shared)

    def standing_digest(self, standing: Standing) -> str:
        return standing_digest(self.spec, standing.values, standing.shared)

    # -- what is put in --------------------------------------------------------------------------

    def count(self, count: int) -> Work:
        layout = layout_digest(self._packing, "weights", 0, WEIGHTS_RESERVED)
        none = np.zeros(0, dtype=np.int64)
        return Work(none, [1, count], layout, self._shape(0, WEIGHTS_RESERVED))

    def update(self, weight: float) -> Work:
        number, spec = self.standing.completed + 1, self.spec
        self._places = travelling(self._plan, spec, self.standing.shared.get("score"), number)
        draw = np.random.default_rng([number, *self._name.encode()])
        values = np.zeros(self._places.size, dtype=np.float32)
        for part, clip in self._parts():
            values[part] = clip * draw.uniform(-0.5, 0.5, part.stop - part.start)
        if self._plan["adapter"]["exchange"] == "parameters":
            values = self.standing.values[self._places] + values / 16
        digits = digits_of(values, self._parts(), self._packing, weight, draw)
        reserved = [1, round(weight * 2**30), round(weight * 1.5 * 2**20)]
        what = selection_digest(spec, self._places)
        layout = layout_digest(self._packing, what, digits.size, UPDATE_RESERVED)
        return Work(digits, reserved, layout, self._shape(digits.size, UPDATE_RESERVED))

    def _parts(self) -> list[tuple[slice, float]]:
        clip = self.standing.shared["clip"]
        return [(part, float(clip[k])) for k, part in parts_of(self.spec, self._places)]

    def _shape(self, values: int, reserved: Mapping[str, int]) -> Shape:
        sites = num_sites(self._plan)
        return Shape(self._packing, values, len(reserved), sites, self._threshold)

    # -- what comes out --------------------------------------------------------------------------

    def next(self, sums: Array, reserved: list[int], weight: float) -> Standing:
        """After this round. `weight`: this site's own."""
        total = reserved[1] * 2.0**-30
        if not max(weight, 0.25) - 2.0**-20 <= total <= 1 + 2.0**-20:
            raise Refused("weight")
        mean = sums.astype(np.float64)
        for part, clip in self._parts():
            mean[part] *= clip / self._packing.largest
        mean = mean / total
        plan, spec, places = self._plan, self.spec, self._places
        completed, before, old = self.standing
        after, shared = stepped(plan, before, places, mean, old)
        clip = old["clip"]
        shared["clip"] = next_clip(plan, spec, clip, before, after, places, mean, completed + 1)
        if plan["pruning"]["method"] != "none" and plan["pruning"]["mask"] == "shared":
            whole = plan["adapter"]["exchange"] == "parameters"
            moved = mean - before[places] if whole else mean
            shared["score"] = next_score(old.get("score"), before.size, places, moved)
        return Standing(completed + 1, after, shared)

    def take(self, standing: Standing) -> None:
        """Kept before it is stood on."""
        shared: dict[str, Any] = {f"s {name}": one for name, one in standing.shared.items()}
        part = self._file.with_name("part.npz")
        np.savez(part, completed=standing.completed, values=standing.values, **shared)
        part.replace(self._file)
        self.standing = standing
