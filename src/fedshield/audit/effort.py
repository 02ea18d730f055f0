"""How much an audit does, and the plan under other settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan


@dataclass(frozen=True)
class Effort:
    """How much an audit does. `rounds`: whose updates are attacked; `references`: secrets that each
    canary is ranked among; `canaries`: for each site and number of `repeats`; `shadows`: whether
    adapters are trained without the rows, two runs more."""

    rounds: int = 2
    references: int = 255
    canaries: int = 2
    repeats: tuple[int, ...] = (0, 1, 16)
    shadows: bool = True


USUAL = Effort()


def changed(plan: Plan, changes: dict[str, Any] | Any) -> Plan:
    """The plan with other keys (dotted), checked anew. What only `rlwe` knows is left out where
    the scheme becomes another; its settings are the plan's own where it is `rlwe` already, and
    otherwise its defaults, with two sites those that two can have. Raises `PlanError`."""
    raw = plan.model_dump(mode="json")
    for key, value in changes.items():
        section: Any = raw
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        if key == "scheme.name" and value != section["name"]:
            kept = {name: section[name] for name in ("weights", "max_weight")}
            raw["scheme"] = {"name": value, **kept}
            if value == "rlwe" and len(plan.data.site_names()) == 2:
                raw["scheme"]["max_colluding"] = 0
            continue
        section[last] = value
    return parse_plan(raw, base_dir=plan.base_dir)
