"""What the hostile stories share: federations in memory for those within a sum, and a consortium
of site processes for those across sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from by_hand import begun, uploaded
from consortium import Consortium
from federation import federation, five, four, three_blocks

__all__ = ["begun", "federation", "five", "four", "three_blocks", "uploaded"]


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "consortium")
    yield made
    made.close()
