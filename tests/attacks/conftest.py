"""What the hostile stories share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from consortium import Consortium


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Consortium]:
    consortium = Consortium(tmp_path / "four")
    yield consortium
    consortium.close()
