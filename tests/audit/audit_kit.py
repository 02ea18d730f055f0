"""A small plan on which known attacks work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedshield.audit.effort import changed
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan

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
