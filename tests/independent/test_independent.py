"""A site built from docs/protocol.md alone takes part in a run with two of FedShield's own, under
FedShield's coordinator, and ends with their model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mixed_run import mixed, moved, plan_of


@pytest.mark.parametrize("independent", ["school", "bank"])
def test_ends_with_the_model_of_the_others(independent: str, tmp_path: Path) -> None:
    """`bank` sorts first: it makes the run's keys."""
    with mixed(plan_of(), tmp_path, independent) as run:
        run.run(3)
        assert len(set(run.digests().values())) == 1
        assert run.coordinator.completed_rounds == run.other.completed == 3
        assert moved(run)
        assert not run.sites.errors
