"""What a site says of itself before a session: the rounds that it keeps, and its base model.

It is not signed: a hint, from which the coordinator lines the sites up and names the odd one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

#: Hex digits of a base model's SHA-256 that are told.
SHOWN = 16
#: Bytes of what a site says: a site keeps two rounds.
MAX_BYTES = 4096


@dataclass(frozen=True)
class Standing:
    """`rounds`: whose adapter the site keeps; `base_model`: the first digits of its SHA-256."""

    rounds: frozenset[int]
    base_model: str

    def to_bytes(self) -> bytes:
        return json.dumps({"rounds": sorted(self.rounds), "base_model": self.base_model}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Standing | None:
        """None for what no site of ours says."""
        if len(data) > MAX_BYTES:
            return None
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(raw, dict) or set(raw) != {"rounds", "base_model"}:
            return None
        rounds, digest = raw["rounds"], raw["base_model"]
        if not isinstance(rounds, list) or not all(type(number) is int for number in rounds):
            return None
        if not is_digest(digest):
            return None
        return cls(frozenset(rounds), digest)


def is_digest(value: object) -> bool:
    """Whether it is the shown part of a SHA-256."""
    return (
        isinstance(value, str) and len(value) == SHOWN and not set(value) - set("0123456789abcdef")
    )
