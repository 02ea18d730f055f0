"""What the coordinator lets be seen of a run while it runs: progress, and sites lost, at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedshield.plan.batches import Batches, whole
from fedshield.run import progress
from fedshield.run.progress import PHASES, Progress

_LOG = logging.getLogger("fedshield")
#: Code -> what happened, as the submitter is told.
CODES = {
    "absent": "it is not connected",
    "deadline": "no answer within the deadline",
    "unreachable": "it cannot be reached any more",
    "malformed": "its answer was malformed",
    "refused": "it refused; its own error.log says why",
    "not-approved": "its operator has not approved this plan (fedshield site approve PLAN "
    "--kit KIT)",
    "rule": "a rule of its ledger forbids this sum until what its own error.log names is mended "
    "(docs/deploy.md says how)",
    "ledger": "its ledger, or another site's, is not the one that was signed before; its own "
    "error.log says whose",
    "internal": "an error at the site; its own error.log says which",
    "disagree": "it disagrees with what the others say",
}


class Follower:
    """Follows the calls of one run (`link.Watcher`). `folder`: where `progress.json` goes; `tell`
    takes an entry of the coordinator's log; `needed`: sites without which no sum is begun;
    `batches`: with membership batches."""

    def __init__(
        self,
        folder: Path,
        sites: Sequence[str],
        rounds: int,
        needed: int,
        tell: Callable[[Mapping[str, Any]], None],
        batches: Batches = (),
    ) -> None:
        self._folder = folder
        self._left = set(sites)
        self._rounds = rounds
        self._needed = needed
        self._tell = tell
        self._batches = batches
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._since = time.time()
        self._method = ""
        self._round = 0
        self._round_seconds: list[float] = []

    def begin_round(self, number: int) -> None:
        self._round = number

    def end_round(self, seconds: float) -> None:
        self._round_seconds.append(seconds)
        left_s = progress.seconds_left(self._round_seconds, self._rounds - self._round)
        _LOG.info(
            "round %d of %d: %d sites in %.1f s%s",
            self._round,
            self._rounds,
            len(whole(self._batches, self._left) if self._batches else self._left),
            seconds,
            f"; about {left_s:.0f} s left" if left_s else "",
        )

    def leave_out(self, lost: Mapping[str, str]) -> None:
        """These do not take part in the session, for reasons that are told elsewhere."""
        with self._lock:
            self._left -= set(lost)

    def asked(self, method: str, sites: Sequence[str]) -> None:
        with self._lock:
            self._waiting, self._since, self._method = set(sites), time.time(), method
            self._write()

    def answered(self, method: str, site: str, code: str) -> None:
        with self._lock:
            self._waiting.discard(site)
            self._write()
            if not code or site not in self._left:
                return
            self._left.discard(site)
            why = CODES.get(code, code)
            after = self._after(site)
            phase = PHASES.get(method, method)
            _LOG.info("%s is lost (%s): %s; %s", site, phase, why, after)
            self._tell(
                {"lost_now": site, "during": self._round, "phase": phase, "why": why, "then": after}
            )

    def _after(self, site: str) -> str:
        """What becomes of the run without this site."""
        left, needed, what = len(self._left), self._needed, "sites"
        if self._batches:
            left, what = len(whole(self._batches, self._left)), "sites of whole batches"
        if left < needed:
            return (
                f"the run stops ({left} {what} are left, {needed} are needed), unless the others "
                "can end its last round; every site keeps the model of its own last one"
            )
        if self._batches:
            batch = ", ".join(next(batch for batch in self._batches if site in batch))
            return (
                f"its batch ({batch}) sits out and the others go on ({left} are left), unless this "
                "round's updates have left: then the round waits for it, and is gone on with by "
                "fedshield submit --resume"
            )
        return f"going on without it ({left} {what} are left, {needed} are needed)"

    def _write(self) -> None:
        left_s = progress.seconds_left(self._round_seconds, self._rounds - self._round + 1)
        progress.write(
            self._folder,
            Progress(
                self._round,
                self._rounds,
                PHASES.get(self._method, self._method),
                self._since,
                waiting=tuple(sorted(self._waiting)),
                left_s=left_s,
            ),
        )
