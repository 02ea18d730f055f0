"""The rounds of a session: the one driver, for every engine and for the audit.

What differs between them is who watches, and how it is known that nobody may go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from fedshield import interrupt
from fedshield.errors import RoundFailed
from fedshield.protocol.coordinator import Coordinator, RoundOutcome


class Watcher(Protocol):
    """Who is told of the rounds as they go by."""

    def set_up(self, lost: Mapping[str, str]) -> None:
        """The session stands. `lost`: site -> at which message, and why."""

    def begin(self, number: int) -> None:
        """Round `number` begins."""

    def end(self, outcome: RoundOutcome, round_s: float) -> None:
        """A round is completed, in so many seconds."""

    def end_early(self, why: str) -> None:
        """No further round begins. It is told before the session is finished, which can fail."""


def drive(
    coordinator: Coordinator,
    completed: int,
    rounds: int,
    over_budget: Callable[[], str],
    watcher: Watcher,
) -> None:
    """Set up a session, complete its rounds, and finish it.

    Args:
        coordinator: not started yet.
        completed: the round after which the sites stand; 0 for a new run.
        rounds: the last round to complete.
        over_budget: '' as long as every site may take part in another round, else who may not and
            why.
        watcher: told of each round.

    Raises:
        RoundFailed: where a round cannot be completed, and where not even the first one may begin.
    """
    coordinator.start()
    watcher.set_up(coordinator.lost)
    for number in range(completed + 1, rounds + 1):
        interrupt.check()
        if why := over_budget():
            stopped = f"before round {number}: {why}"
            if number == 1:
                raise RoundFailed(
                    f"{stopped}; no round was completed, agree on a plan with a higher limit "
                    "or more noise",
                    resumable=False,
                )
            watcher.end_early(stopped)
            break
        watcher.begin(number)
        started = time.perf_counter()
        outcome = coordinator.round(number)
        watcher.end(outcome, time.perf_counter() - started)
    coordinator.finish()
