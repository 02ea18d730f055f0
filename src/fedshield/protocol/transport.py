"""How the coordinator reaches sites. An engine implements this; nothing else is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Replies:
    """`ok`: site -> reply bytes; `failed`: site -> a short code, never a site's own text."""

    ok: Mapping[str, bytes]
    failed: Mapping[str, str]


class Sites(Protocol):
    """A group of sites that can be called by name."""

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        """Call `method` at every site in `args` with that site's signed bytes. A site that raised,
        did not answer in time or is gone is in `failed`."""
