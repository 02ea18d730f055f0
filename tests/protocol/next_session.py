"""For tests of sites that fail or lie: a session after one that failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

BAD = "clinic"
SCHEMES = pytest.mark.parametrize("scheme", ["plain", "ckks", "rlwe"])
#: Half a step of the grid, or float32, for the first two; three sites' steps and what they carry
#: over for rlwe.
NEAR = {"plain": 2e-6, "ckks": 2e-6, "rlwe": 1e-3}


def goes_on(federation: Any, round_number: int) -> None:
    """A new session from the same participants does the round that failed, rightly."""
    for work in federation.works.values():
        work.fault = None
    federation.wire.to_site = federation.wire.to_coordinator = lambda site, name, data: data
    before = federation.state()
    fresh = federation.coordinator = federation.another_coordinator()
    fresh.start()
    assert fresh.completed_rounds == round_number - 1
    fresh.round(round_number)
    assert fresh.lost == {}
    trained = [federation.trained(name, before, round_number) for name in federation.names]
    near = NEAR[federation.plan.scheme.name]
    np.testing.assert_allclose(federation.state().values, np.mean(trained, axis=0), atol=near)
