"""What kind of data a site has, from its update: which silo it is, and in what mix.

Property inference (Ganju et al., CCS 2018; on updates Melis et al., arXiv 1805.04049) in its
simplest form: the attacker has some text of each kind, trains on it from the same adapter as the
site did, and compares. `which`: the kind whose own updates point most in the update's direction;
`mix`: the non-negative combination of the kinds' updates that is nearest to it, in shares of the
update: of response tokens rather than of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from fedshield.audit.attacks.openings import Seen
from fedshield.audit.replay import Scene
from fedshield.data.sites import SiteData
from fedshield.model.chat import Tokens
from fedshield.plan.privacy import PrivacyPlan
from fedshield.plan.schema import Plan
from fedshield.seeds import SiteRandomness
from fedshield.site.train import LocalTrainer
from fedshield.types import AdapterState, Float32, Float64

#: Updates of its own that the attacker makes of each kind of text.
EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Kinds:
    """The attacker's own updates: kind -> float32, (examples, num_values)."""

    updates: Mapping[str, Float32] = field(repr=False)

    def direction(self, kind: str, known: Float32) -> Float64:
        """The mean direction of a kind's updates on the known places, of length one."""
        mean = self.updates[kind].mean(axis=0).astype(np.float64) * known
        length = float(np.linalg.norm(mean))
        direction: Float64 = mean / length if length else mean
        return direction


def learn(
    scene: Scene,
    plan: Plan,
    start: AdapterState,
    round_number: int,
    text: Mapping[str, Sequence[Tokens]],
) -> Kinds:
    """Train as a site would, from `start`, on each kind of `text`: which the attacker has."""
    found: dict[str, Float32] = {}
    for kind, rows in text.items():
        updates: list[Float32] = []
        for number in range(EXAMPLES):
            # Another order of the rows for each example; an attacker adds no noise to its own.
            own = plan.model_copy(update={"privacy": PrivacyPlan()})
            order = SiteRandomness.of_demonstration(plan.seed + 1 + number, kind)
            data = _only(next(iter(scene.data.values())), rows)
            trainer = LocalTrainer(
                kind, own, data, scene.host, scene.base.pad_token_id, scene.base.device, order
            )
            update, _ = trainer.train(start, round_number)
            updates.append((update.values - start.values).astype(np.float32))
        found[kind] = np.stack(updates)
    return Kinds(found)


def which(seen: Seen, kinds: Kinds) -> str:
    """The kind of text that an update is nearest to in direction."""
    known = seen.known.astype(np.float32)
    alike = {
        kind: float(kinds.direction(kind, known) @ seen.values.astype(np.float64))
        for kind in sorted(kinds.updates)
    }
    return max(alike, key=lambda kind: alike[kind])


def mix(seen: Seen, kinds: Kinds) -> dict[str, float]:
    """The share of each kind in the update: least squares without negative parts, found over all
    subsets of kinds. Even shares where none fits."""
    known = seen.known.astype(np.float32)
    names = sorted(kinds.updates)
    columns = np.stack([kinds.direction(name, known) for name in names], axis=1)
    goal = seen.values.astype(np.float64)
    best, least = np.full(len(names), 1.0 / len(names)), float(np.square(goal).sum())
    for size in range(1, len(names) + 1):
        for subset in combinations(range(len(names)), size):
            parts = np.linalg.lstsq(columns[:, subset], goal, rcond=None)[0]
            if parts.min() <= 0:
                continue
            error = float(np.square(goal - columns[:, subset] @ parts).sum())
            if error < least:
                least, best = error, np.zeros(len(names))
                best[list(subset)] = parts / parts.sum()
    return dict(zip(names, best.tolist(), strict=True))


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation between two mixes: 0 equal, 1 nothing in common."""
    kinds = {*one, *other}
    return 0.5 * sum(abs(one.get(kind, 0.0) - other.get(kind, 0.0)) for kind in kinds)


def _only(data: SiteData, rows: Sequence[Tokens]) -> SiteData:
    return replace(data, source="the attacker's own", train=tuple(rows), heldout=tuple(rows[:1]))
