"""SCAFFOLD at a site: control variates, which correct each site's gradients for its drift
(Karimireddy et al., ICML 2020; option II of Algorithm 1).

The shared control variate is the mean of the sites' own, and all derive it alike from the opened
sums: with each value of an update travels what the site's control variate changes by. Both are kept
in a site's memory under `CONTROL`; a memory without it is of a run without SCAFFOLD.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedshield.types import AdapterSpec, AdapterUpdate, Float32, Float64, Selection, SiteMemory

CONTROL, CONTROL_CLIP = "control", "control clip"
#: The quantisation range of each part of what travels.
Parts = list[tuple[slice, float]]


def first_memory(
    spec: AdapterSpec, max_grad_norm: float | None
) -> tuple[dict[str, Float32], dict[str, Float32]]:
    """What is shared and what is a site's own before round 1: zeros. A control variate is a mean
    gradient, and gradients are clipped, so `max_grad_norm` bounds it; 1 where there is none."""
    zeros = np.zeros(spec.num_values, dtype=np.float32)
    reach = np.full(len(spec.tensors), max_grad_norm or 1.0, dtype=np.float32)
    return {CONTROL_CLIP: reach, CONTROL: zeros}, {CONTROL: zeros.copy()}


def correction(memory: SiteMemory) -> Float32 | None:
    """What is added to every gradient: float32, (num_values,); None without SCAFFOLD."""
    if CONTROL not in memory.shared:
        return None
    return memory.shared[CONTROL] - memory.own[CONTROL]


def parts(memory: SiteMemory, selection: Selection) -> Parts:
    """Of the values that travel after those of the update itself."""
    if CONTROL_CLIP not in memory.shared:
        return []
    clips, at = memory.shared[CONTROL_CLIP], selection.size
    return [
        (slice(at + part.start, at + part.stop), float(clips[number]))
        for number, part in selection.parts()
    ]


def change(memory: SiteMemory, update: AdapterUpdate, distance: float) -> Float32 | None:
    """What this site's control variate changes by: float32, (num_values,); None without SCAFFOLD.
    `distance`: optimiser steps times learning rate."""
    if CONTROL not in memory.shared:
        return None
    moved = (update.start.values - update.values) / np.float32(distance)
    return (moved - memory.shared[CONTROL]).astype(np.float32)


def next_shared(
    shared: Mapping[str, Float32], selection: Selection, total: Float64
) -> dict[str, Float32]:
    """What of the shared memory follows from a sum; nothing without SCAFFOLD. `total`: the opened
    sum of the changes, not their mean: weights are shares of all sites, and who is not in it keeps
    its own. So the shared one moves by |S| / K times the mean change of the sites in the sum, and
    stays the mean over all."""
    if CONTROL not in shared:
        return {}
    control = shared[CONTROL].copy()
    control[selection.indices] += total.astype(np.float32)
    return {CONTROL: control, CONTROL_CLIP: shared[CONTROL_CLIP]}


def next_own(own: Mapping[str, Float32], selection: Selection, sent: Float32) -> dict[str, Float32]:
    """What of a site's own memory follows from a sum that it is in; nothing without SCAFFOLD.
    `sent`: its change as it was really sent, rounded, so that the mean of the sites' stays the
    shared one."""
    if CONTROL not in own:
        return {}
    control = own[CONTROL].copy()
    control[selection.indices] += sent
    return {CONTROL: control}
