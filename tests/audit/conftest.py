"""Runs of the tiny model under every scheme, recorded once, on which known attacks work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedshield.audit import stage
from fedshield.audit.suite import changed
from fedshield.plan import Plan
from fedshield.planfile import parse_plan

SITES = ("bank", "hospital", "school")
SOURCES = dict(zip(SITES, ("finance", "medical", "maths"), strict=True))


def make(**changes: Any) -> Plan:
    """Three sites; one step on one row a round, by SGD: what token recovery is known to work on."""
    raw: dict[str, Any] = {
        "name": "audited",
        "seed": 7,
        "rounds": 2,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        "data": {
            "heldout_rows": 12,
            "sites": {
                site: {"source": f"sample:{source}", "rows": 60} for site, source in SOURCES.items()
            },
        },
        "training": {
            "steps": 1,
            "batch_size": 1,
            "optimizer": "sgd",
            "max_length": 192,
            "learning_rate": 0.5,
            "min_learning_rate": 0.5,
            "precision": "fp32",
        },
        "pruning": {"method": "none"},
        "scheme": {"name": "plain", "weights": "private"},
        "speed": {"device": "cpu", "threads": 1},
    }
    return changed(parse_plan(raw, base_dir=Path.cwd()), changes)


@dataclass(frozen=True)
class Staged:
    plan: Plan
    scene: stage.Scene
    recording: stage.Recording


@pytest.fixture(scope="session")
def staged() -> Callable[..., Staged]:
    """`staged(**{'scheme.name': 'ckks'})`: that run, recorded; each made once."""
    made: dict[str, Staged] = {}
    scenes: dict[str, stage.Scene] = {}

    def give(**changes: Any) -> Staged:
        key = repr(sorted(changes.items()))
        if key not in made:
            plan = make(**changes)
            shared = repr((plan.adapter, plan.data, plan.training.max_length))
            if shared not in scenes:
                scenes[shared] = stage.prepare(plan)
            made[key] = Staged(plan, scenes[shared], stage.record(plan, scenes[shared]))
        return made[key]

    return give
