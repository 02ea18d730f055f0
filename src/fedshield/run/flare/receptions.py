"""One thread for what FLARE remembers of each message, instead of a thread for each.

FLARE keeps every message that it received in mind for 65 seconds, to answer repeated ones, and
starts a `threading.Timer`, so a thread, to forget it: at 40 messages a second, 65 times as many
threads. FLARE 2.9.0 has no setting for it but a shorter memory, which would weaken what the
memory is for.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

_LOG = logging.getLogger("fedshield")


class Appointments:
    """Calls functions when their time has come, all from one thread, which starts with the first.
    What it calls must be short."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._due: list[tuple[float, int, Appointment]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, action: Callable[[], object]) -> Appointment:
        """Call `action` once, `seconds` from now, unless it is cancelled before."""
        appointment = Appointment(action)
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="forget", daemon=True)
                self._thread.start()
            due = time.monotonic() + seconds
            heapq.heappush(self._due, (due, next(self._numbers), appointment))
            self._wake.notify()
        return appointment

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._due or self._due[0][0] > time.monotonic():
                    wait_s = self._due[0][0] - time.monotonic() if self._due else None
                    self._wake.wait(wait_s)
                _, _, appointment = heapq.heappop(self._due)
            try:
                appointment.keep()
            except Exception:
                # One message that cannot be forgotten must not keep the others in memory.
                _LOG.exception("could not forget a message")


class Appointment:
    """One call to come. `cancel` lets go of what it would have called."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def cancel(self) -> None:
        self._action = None

    def keep(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


_APPOINTMENTS = Appointments()


def forget_in_one_thread() -> None:
    """From now on, in this process. Raises `RuntimeError` for another FLARE, which may keep its
    receptions otherwise."""
    from nvflare.fuel.f3.streaming.byte_receiver import RxTask

    if not hasattr(RxTask, "_schedule_remove_task"):
        raise RuntimeError("expected NVIDIA FLARE 2.9.0, got another; install the one that fits")

    def schedule(task: Any, ttl: float | None = None) -> None:
        with task.stop_lock:
            if not task.cleanup_timer:
                seconds = task.completed_task_ttl if ttl is None else ttl
                task.cleanup_timer = _APPOINTMENTS.after(seconds, task._remove_task)

    RxTask._schedule_remove_task = schedule
