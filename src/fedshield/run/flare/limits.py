"""How many threads this machine lets a party start, and whether that is enough.

A process that can start no thread does not answer. Without a look at the limit, those who wait for
it take healthy sites for lost.
"""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass
from pathlib import Path

from fedshield.errors import UserError

#: Room for threads and processes of the server and one run's coordinator together, and of a site
#: with its run's process. With three sites 77 and 62 were seen; under load FLARE's pools of threads
#: grow, up to 192 for streams.
SERVER_TASKS, SITE_TASKS = 400, 300
#: With room for 59 a server of three sites, the fewest there are, answered and never began a run;
#: with 69 it ended one. On a machine of many cores it takes more.
LEAST_SERVER_TASKS = 60
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class TaskLimit:
    """`limit`: threads and processes together; `used`: now; `source`: which limit it is."""

    limit: int
    used: int
    source: str

    @property
    def free(self) -> int:
        return self.limit - self.used

    def in_words(self) -> str:
        return f"{self.source} allows {self.limit}, {self.used} are in use"


def task_limit() -> TaskLimit | None:
    """The tighter one of the container's limit and the user's; None if there is none."""
    limits = [limit for limit in (_of_container(), _of_user()) if limit is not None]
    return min(limits, key=lambda limit: limit.free, default=None)


def too_few(limit: TaskLimit | None, needed: int, party: str) -> str:
    """What to tell the operator of `party`; empty if it is enough."""
    if limit is None or limit.free >= needed:
        return ""
    return (
        f"expected room for {needed} threads for {party}, got {max(0, limit.free)} "
        f"({limit.in_words()}); raise the limit, or the run may stall"
    )


def refuse_too_few(limit: TaskLimit | None) -> None:
    """Raises `UserError` where the server would start, answer, and never end a run."""
    if limit is not None and limit.free < LEAST_SERVER_TASKS:
        raise UserError(
            f"expected room for {SERVER_TASKS} threads for the server, got {max(0, limit.free)} "
            f"({limit.in_words()}), and below {LEAST_SERVER_TASKS} no run ends; raise the limit, "
            "or end what else runs under it"
        )


def exhausted() -> str:
    """Why this process can start no more threads, found out by starting one; empty if it can."""
    try:
        thread = threading.Thread(target=lambda: None, name="probe")
        thread.start()
    except RuntimeError as error:
        return no_more_threads(error)
    thread.join()
    return ""


def no_more_threads(error: BaseException | None) -> str:
    """That this process could start no more threads, and the limit that there is, if `error` says
    so or was raised because of it in this process; else empty. What a site writes of itself does
    not count."""
    while error is not None:
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            limit = task_limit()
            which = f"; {limit.in_words()}" if limit else ""
            return f"this machine lets the coordinator start no more threads{which}"
        error = error.__cause__
    return ""


def _of_container() -> TaskLimit | None:
    """The tightest `pids.max` of this process's cgroup and those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = [line.split(":", 2) for line in lines]
    roots = [
        (CGROUPS / ("pids" if controllers else "") / path.lstrip("/"))
        for _, controllers, path in own
        if not controllers or "pids" in controllers.split(",")
    ]
    limits: list[TaskLimit] = []
    for root in roots:
        for folder in (root, *root.parents):
            limits += _read_pids(folder)
            if folder == CGROUPS:
                break
    return min(limits, key=lambda limit: limit.free, default=None)


def _read_pids(folder: Path) -> list[TaskLimit]:
    try:
        limit = (folder / "pids.max").read_text().strip()
        used = (folder / "pids.current").read_text().strip()
    except OSError:
        return []
    return [] if limit == "max" else [TaskLimit(int(limit), int(used), "the container's pids.max")]


def _of_user() -> TaskLimit | None:
    """RLIMIT_NPROC, which does not bind root."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return None
    return TaskLimit(limit, _tasks_of(os.geteuid()), "the user's limit (ulimit -u)")


def _tasks_of(user: int) -> int:
    """Threads of all processes of a user."""
    threads = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == user:
                threads += sum(1 for _ in (process / "task").iterdir())
        except OSError:
            continue  # it ended meanwhile
    return threads
