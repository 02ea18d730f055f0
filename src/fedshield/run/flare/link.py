"""`Sites` over FLARE's proxies: one deadline for each kind of call, and codes for what fails."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from fedshield.errors import RoundFailed
from fedshield.notes import one_line
from fedshield.plan.sections import SpeedPlan
from fedshield.protocol.transport import Replies
from fedshield.run.flare import limits

_LOG = logging.getLogger("fedshield")
#: Bytes of one command that are on their way to sites at once: FLARE holds each about three times.
IN_FLIGHT = 8 << 20
#: Sites that are called at once in any case, so that one which does not answer holds up no other.
AT_ONCE = 4
#: Seconds to wait for the word of an abort when a site is gone. FLARE ends the sites' processes
#: first, waits 2 s for their answers, and tells the coordinator's own process last.
ABORT_WORD_S = 6.0
#: Longest code that is believed to be one.
_CODE = re.compile(r"[a-z-]{1,32}")


class Watcher(Protocol):
    """Whoever follows the calls. Called from several threads."""

    def asked(self, method: str, sites: Sequence[str]) -> None: ...

    def answered(self, method: str, site: str, code: str) -> None:
        """`code`: empty, or why the site's answer is none."""


class Unwatched:
    """Calls that nobody follows."""

    def asked(self, method: str, sites: Sequence[str]) -> None:
        pass

    def answered(self, method: str, site: str, code: str) -> None:
        pass


class FlareSites:
    """`proxies`: FLARE's, by site name. Calls of one command go to all sites at once, each in a
    thread, or to so many that memory does not grow with their number; what is not back within its
    deadline counts as lost. `aborted`: whether the run was told to end."""

    def __init__(
        self,
        proxies: Mapping[str, Any],
        deadlines: SpeedPlan,
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._proxies = dict(sorted(proxies.items()))
        self._deadlines = deadlines
        self._aborted = aborted
        self.watcher: Watcher = Unwatched()

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        longest = max(map(len, args.values()), default=0)
        return self.each(
            method,
            args,
            self._deadline_s(method),
            lambda proxy, data: proxy.handle(method, data),
            max(AT_ONCE, IN_FLIGHT // max(1, longest)),
        )

    def _deadline_s(self, method: str) -> float:
        if method in ("stand", "restart"):
            return self._deadlines.setup_deadline_s
        if method in ("train", "work", "evaluate", "finish", "give-model", "take-model"):
            return self._deadlines.work_deadline_s
        return self._deadlines.message_deadline_s

    def each(
        self,
        method: str,
        args: Mapping[str, Any],
        deadline_s: float,
        ask: Callable[[Any, Any], Any],
        at_once: int | None = None,
    ) -> Replies:
        """Ask each site of `args`. Raises `RoundFailed` if it is not the sites' fault that they
        do not answer: the run was aborted, or this machine starts no more threads."""

        def call_site(site: str) -> tuple[bytes, str]:
            data, code, own_fault = self._reply(site, args[site], deadline_s, ask)
            if code:
                gone = code == "unreachable" and not own_fault
                self._check_aborted(ABORT_WORD_S if gone else 0.0)
                # Even if there is room for a thread again by now, the site is not to blame.
                own_fault = own_fault or limits.exhausted()
                if own_fault:
                    raise RoundFailed(_no_threads(own_fault))
            self.watcher.answered(method, site, code)
            return data, code

        self._check_aborted()
        self.watcher.asked(method, sorted(args))
        workers = max(1, min(len(args), at_once or len(args)))
        try:
            with ThreadPoolExecutor(max_workers=workers) as pool:
                replies = dict(zip(args, pool.map(call_site, args), strict=True))
        except RuntimeError as error:
            cause = limits.no_more_threads(error)
            if not cause:
                raise
            raise RoundFailed(_no_threads(cause)) from None
        return Replies(
            {site: data for site, (data, code) in replies.items() if not code},
            {site: code for site, (_, code) in replies.items() if code},
        )

    def _reply(
        self, site: str, data: Any, deadline_s: float, ask: Callable[[Any, Any], Any]
    ) -> tuple[bytes, str, str]:
        """The site's bytes; a code for why there are none; and why it is this machine's fault."""
        started = time.monotonic()
        if site not in self._proxies:
            return b"", "absent", ""
        try:
            reply = ask(self._proxies[site](timeout=deadline_s), data)
        except Exception as error:
            # The submitter is told in our words; an operator finds the transport's own here.
            _LOG.info(
                "%s: the call failed: %s: %s", site, type(error).__name__, one_line(str(error))
            )
            late = time.monotonic() - started >= deadline_s * 0.95
            own_fault = limits.no_more_threads(error)
            return b"", "deadline" if late else "unreachable", own_fault
        return *_checked(reply), ""

    def _check_aborted(self, wait_s: float = 0.0) -> None:
        """Raises `RoundFailed` if the run was told to end, or is within `wait_s`: a site that an
        abort has ended already is not lost."""
        until = time.monotonic() + wait_s
        while not self._aborted():
            if time.monotonic() >= until:
                return
            time.sleep(0.1)
        raise RoundFailed(
            "the run was aborted by whoever submitted it, or by an operator of the server; "
            "every site keeps the model of the last round"
        )


def _no_threads(cause: str) -> str:
    return (
        f"{cause}; no site is to blame: raise the limit at the coordinator, or end what else runs "
        f"under it, until there is room for {limits.SERVER_TASKS} (docs/deploy.md), then go on"
    )


def _checked(reply: Any) -> tuple[bytes, str]:
    """What a site sent, which may be anything."""
    if not isinstance(reply, dict):
        return b"", "malformed"
    data, code = reply.get("data"), reply.get("code")
    if not isinstance(data, bytes) or not isinstance(code, str):
        return b"", "malformed"
    if code and not _CODE.fullmatch(code):
        return b"", "malformed"
    return data, code
