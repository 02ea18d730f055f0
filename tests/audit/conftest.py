"""Runs of the tiny model under every scheme, recorded once, on which known attacks work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from audit_kit import make

from fedshield.audit import replay
from fedshield.plan.schema import Plan


@dataclass(frozen=True)
class Staged:
    plan: Plan
    scene: replay.Scene
    recording: replay.Recording


@pytest.fixture(scope="session")
def staged() -> Callable[..., Staged]:
    """`staged(**{'scheme.name': 'ckks'})`: that run, recorded; each made once."""
    made: dict[str, Staged] = {}
    scenes: dict[str, replay.Scene] = {}

    def give(**changes: Any) -> Staged:
        key = repr(sorted(changes.items()))
        if key not in made:
            plan = make(**changes)
            shared = repr((plan.adapter, plan.data, plan.training.max_length))
            if shared not in scenes:
                scenes[shared] = replay.prepare(plan)
            made[key] = Staged(plan, scenes[shared], replay.record(plan, scenes[shared]))
        return made[key]

    return give
