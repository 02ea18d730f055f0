"""What a party sees to before its process becomes FLARE's: its log, its runs, room for threads."""

from __future__ import annotations

from pathlib import Path

from fedshield.run import presence
from fedshield.run.flare import limits, sentences


def prepare_start(kit: Path, *, server: bool) -> list[str]:
    """Write FLARE's logging rules into the kit, and mark runs that were cut off as interrupted.
    What its operator must know, one sentence each: those runs, and too little room for threads.
    Raises `UserError` for a server with so little that no run would end."""
    limit = limits.task_limit()
    if server:
        limits.refuse_too_few(limit)
    if (kit / "flare" / "local" / "log_config.json.default").exists():
        sentences.write_log_config(kit)
    notes = [
        f"{run} was cut off; it is marked as interrupted" for run in presence.settle(kit / "runs")
    ]
    needed = limits.SERVER_TASKS if server else limits.SITE_TASKS
    warning = limits.too_few(limit, needed, "the server" if server else "a site")
    return [*notes, warning] if warning else notes
