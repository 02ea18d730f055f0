"""Whether a process works on a run, and what became of runs whose process is gone.

A party's process holds a lock in the run's folder for as long as it lives. The system lets go of it
whatever ends the process, so a run that says `running` and that nobody holds was cut off.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

from fedshield.errors import UserError
from fedshield.run.folder import RunFolder, now

LOCK = ".process.lock"
#: A process that was told to end takes up to ten seconds (FLARE's grace) to be gone.
PATIENCE_S = 20.0
CUT_OFF = "its process was killed or its machine went down; go on with: fedshield submit --resume"


def hold(folder: Path, patience_s: float = PATIENCE_S) -> IO[str]:
    """The lock, to be kept open until the process ends. Raises `UserError` if another process
    still has it after `patience_s` seconds."""
    file = (folder / LOCK).open("w")
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() >= until:
                file.close()
                raise UserError(
                    f"{folder}: expected no other process at work on this run, found one; wait "
                    "until it ends, or stop this party and start it again"
                ) from None
            time.sleep(0.1)


def is_held(folder: Path) -> bool:
    """Whether a process works on the run in `folder`."""
    path = folder / LOCK
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def settle(runs: Path) -> list[str]:
    """Runs below `runs` that say `running` though no process works on them become `interrupted`.
    Their names."""
    return [
        path.parent.name
        for path in sorted(runs.glob("*/run.json"))
        if _settled(RunFolder(path.parent))
    ]


def _settled(folder: RunFolder) -> bool:
    try:
        if folder.state()["status"] != "running":
            return False
        # Held while it is looked at and marked: a process that takes the run up meanwhile waits.
        with hold(folder.path, patience_s=0):
            state = folder.state()
            if state["status"] != "running":
                return False
            folder.write_state(
                state | {"status": "interrupted", "reason": CUT_OFF, "settled": now()}
            )
    except (UserError, OSError):
        return False  # damaged: whoever opens the run is told; or a process works on it
    return True
