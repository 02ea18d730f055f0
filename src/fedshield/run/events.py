"""What an engine tells whoever watches a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Events(Protocol):
    """What a user interface may want to show. All calls come from the running thread."""

    def note(self, text: str) -> None: ...

    def phase(self, round_number: int, phase: str, site: str) -> None: ...

    def step(self, round_number: int, site: str, step: int, steps: int, loss: float) -> None: ...

    def round_done(self, round_number: int, rows: Sequence[dict[str, Any]]) -> None: ...


class Quiet:
    """Events that nobody watches."""

    def note(self, text: str) -> None:
        pass

    def phase(self, round_number: int, phase: str, site: str) -> None:
        pass

    def step(self, round_number: int, site: str, step: int, steps: int, loss: float) -> None:
        pass

    def round_done(self, round_number: int, rows: Sequence[dict[str, Any]]) -> None:
        pass
