"""What a check found, before a run or during one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """One line: what was expected, what was found, and what to do where it is not well."""

    check: str
    state: State
    expected: str
    found: str
    todo: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)
