"""Seeds for everything that must repeat: derived from the plan's seed, never global.

Only for data order, dropout, the initial adapter and public rows. Keys and encryption
randomness never come from here: they come from the operating system.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the use that `labels` name; different labels, unrelated seeds."""
    digest = hashlib.sha256(b"fedshield seed 1")
    digest.update(seed.to_bytes(16, "big", signed=True))
    for label in labels:
        raw = str(label).encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
