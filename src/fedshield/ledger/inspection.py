"""How the ledger of a site's records stands, for whoever only looks: nothing is locked, mended or
written, so that a run may be under way."""

from __future__ import annotations

from pathlib import Path

from fedshield.ledger import heads
from fedshield.ledger.file import Ledger


def runs_kept(kit: Path) -> tuple[str, ...]:
    """Names of the runs that a kit has kept, in order."""
    names = (path.name for path in (kit / "runs").glob("*"))
    return tuple(sorted(name for name in names if not name.startswith(".")))


def inspected(path: Path, runs: tuple[str, ...]) -> str:
    """What the ledger in `path` holds, in words. `runs`: what the site's kit has been in. Raises
    `LedgerError` for one that is missing where there must be one, or that is damaged; so is one
    whose `.peers` is."""
    if not (path.exists() or heads.place_beside(path).exists() or runs):
        return "none yet: the first approval of a plan makes it"
    with Ledger.open(path, look_only=True) as ledger:
        tried = len({row.key for row in ledger.rows})
        return f"whole: {len(ledger.approvals):,} plans approved, {tried:,} sums entered"
