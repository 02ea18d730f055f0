"""Rounds of a federation in the clear, from docs/protocol.md alone, to compare with."""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from typing import Any

import numpy as np
import pytest

from fedshield.site.schemes import parameters_of
from fedshield.types import AdapterState

GRID = 2.0**-22

Array = np.ndarray[Any, Any]


def two_digits(count: int) -> int:
    """A count to two significant digits, by way of its decimal text."""
    return int(float(f"{count:.2g}"))


def expected_weights(federation: Any, weights: str) -> dict[str, float]:
    counts = {
        name: 1 if weights == "equal" else two_digits(federation.works[name].num_examples)
        for name in federation.names
    }
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def pruned(values: Array, state: AdapterState, rate: float) -> Array:
    """The floor(rate * size) smallest of each tensor set to zero, the first among equals first."""
    values = values.copy()
    for place in state.spec.slices().values():
        order = np.argsort(np.abs(values[place]), kind="stable")
        part = values[place]
        part[order[: int(rate * part.size)]] = 0
    return values


def uniform(seed: int, start: int, count: int) -> Array:
    """The rounding's numbers in [0, 1): splitmix64 in Python's own integers."""
    full = 2**64 - 1
    found = []
    for index in range(start + 1, start + 1 + count):
        z = (seed + index * 0x9E3779B97F4A7C15) & full
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & full
        z = (z ^ z >> 27) * 0x94D049BB133111EB & full
        found.append(((z ^ z >> 31) >> 11) * 2.0**-53)
    return np.array(found)


def rounding_seed(seed: int, site: str, number: int, base: str) -> int:
    """Of a demonstration's site, by docs/protocol.md, section 7."""

    def parts(*labels: object) -> bytes:
        texts = [str(label).encode() for label in labels]
        return b"".join(struct.pack(">I", len(text)) + text for text in texts)

    key = hashlib.sha256(b"fedshield demonstration 1" + parts(seed, site)).digest()
    drawn = hmac.new(key, parts("rounding", number, base), "sha256").digest()
    return int.from_bytes(drawn[:8], "big") >> 1


class Rounds:
    """What the sites should hold, computed in the clear from docs/protocol.md, section 7: round
    by round, with what each site carries over and, for rlwe, the clip of each tensor."""

    def __init__(self, federation: Any, weights: dict[str, float]) -> None:
        self.federation = federation
        self.weights = weights
        self.state = federation.state()
        self.plan = federation.plan
        self.feedback = self.plan.encoding.error_feedback
        self.reach = self.plan.training.learning_rate * self.plan.training.steps
        self.carried = dict.fromkeys(weights, np.zeros(self.state.spec.num_values, np.float32))
        self.first = self.clip = self.bounds()
        if self.plan.scheme.name == "rlwe":
            self.top = parameters_of(self.plan).max_digit

    def bounds(self) -> list[float]:
        """How large a contribution can be expected to get, for each tensor."""
        most = [0.0] * len(self.state.spec.tensors)
        if self.plan.adapter.exchange == "parameters":
            most = self.largest(self.state.values)
        return [float(np.float32(self.reach + one)) for one in most]

    def largest(self, values: Array) -> list[float]:
        places = self.state.spec.slices().values()
        return [float(np.abs(values[place].astype(np.float64)).max()) for place in places]

    def spreads(self) -> float:
        """Root mean squares that a clip may be; 0 with 64 steps or more at equal weights."""
        encoding = self.plan.encoding
        steps = 2 ** (encoding.bits - 1) - 1
        if not encoding.headroom:
            steps //= len(self.plan.data.site_names())
        return 2 + 0.65 * math.log2(steps) if steps < 64 else 0.0

    def contributions(self, number: int, rate: float) -> dict[str, Array]:
        """What each site sends, before it is encoded; and what it leaves out is carried."""
        delta = self.plan.adapter.exchange == "delta"
        found = {}
        for name in self.weights:
            values = self.federation.trained(name, self.state, number)
            values = (values - self.state.values if delta else values) + self.carried[name]
            found[name] = pruned(values, self.state, rate)
            kept = values - found[name] if delta and self.feedback else np.zeros_like(values)
            self.carried[name] = kept
        return found

    def summed(self, sent: dict[str, Array], number: int) -> tuple[Array, float]:
        """The weighted sum and the total weight as the scheme's numbers give them."""
        names = list(sent)
        w = np.array([self.weights[name] for name in names])
        if self.plan.scheme.name != "rlwe":
            stacked = np.stack([sent[name].astype(np.float64) for name in names])
            if self.plan.scheme.name == "plain":
                return np.average(stacked, axis=0, weights=w), 1.0
            grid = np.rint(stacked * w[:, None] / GRID).astype(np.int64).sum(axis=0) * GRID
            return grid, float(np.rint(w / GRID).astype(np.int64).sum() * GRID)
        digits = np.zeros(self.state.spec.num_values, dtype=np.int64)
        for name in names:
            digits += self.digits(name, sent[name], number)
        sums = digits.astype(np.float64)
        for place, bound in zip(self.state.spec.slices().values(), self.clip, strict=True):
            sums[place] *= bound / self.top
        return sums, sum(round(one * 2**30) for one in w.tolist()) * 2.0**-30

    def digits(self, name: str, values: Array, number: int) -> Array:
        """floor(x w M / C + u), clipped to floor(w M), or 1 + floor(w (M - K)) with headroom; the
        rest is carried."""
        seed = rounding_seed(self.plan.seed, name, number, self.state.sha256())
        weight, digits = self.weights[name], np.zeros(values.size, np.int64)
        limit = int(weight * self.top * (1 + 2.0**-50))
        if self.plan.encoding.headroom:
            spare = self.top - len(self.federation.roster.sites)
            limit = 1 + int(weight * spare * (1 + 2.0**-50))
        for place, bound in zip(self.state.spec.slices().values(), self.clip, strict=True):
            scale, part = weight * self.top / bound, values[place].astype(np.float64)
            u = uniform(seed, place.start, part.size)
            digits[place] = np.clip(np.floor(part * scale + u), -limit, limit)
            rest = (part - digits[place] * (1 / scale)).astype(np.float32)
            if self.feedback:
                self.carried[name][place] += rest
        return digits

    def round(self, number: int, rate: float = 0.0) -> None:
        """Have it done, and check every site against what it should hold: with ckks and rlwe the
        very floats, with plain as near as float32 goes."""
        ours, before = self.federation, self.state
        sums, total = self.summed(self.contributions(number, rate), number)
        mean = sums / total
        if self.plan.adapter.exchange == "delta":
            mean = before.values.astype(np.float64) + mean
        expected = mean.astype(np.float32)
        ours.coordinator.round(number)
        found = ours.state()
        assert found.sha256() != before.sha256()
        if self.plan.scheme.name == "plain":
            np.testing.assert_allclose(found.values, expected, atol=2e-6, rtol=0)
        else:
            assert found.values.tobytes() == expected.tobytes()
        self.state = found
        wanted = self.bounds()
        if self.plan.adapter.exchange == "delta":
            wanted = [2 * one for one in self.largest(sums / total)]
            if (most := self.spreads()) and self.feedback:
                places = self.state.spec.slices().values()
                roots = [float(np.mean((sums / total)[place] ** 2)) ** 0.5 for place in places]
                wanted = [min(one, most * root) for one, root in zip(wanted, roots, strict=True)]
        last, floors = self.clip, [one * 2.0**-10 for one in self.first]
        self.clip = [
            float(np.float32(max(min(one, 2 * old), floor)))
            for one, old, floor in zip(wanted, last, floors, strict=True)
        ]
        for name, site in ours.participants.items():
            assert site.completed_rounds == number
            assert ours.stores[name].saved[number].sha256() == found.sha256()
            assert ours.stores[name].memories[number] is site.memory
            assert (site.memory.residual == self.carried[name]).all()
            if self.plan.scheme.name == "plain":
                assert site.memory.clip.tolist() == pytest.approx(self.clip, rel=1e-5)
            else:
                assert site.memory.clip.tolist() == self.clip
            assert ours.seen[name].contributors == tuple(ours.names)
