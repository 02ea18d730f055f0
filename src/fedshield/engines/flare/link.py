"""`Sites` over FLARE's proxies: one deadline for each kind of call, and codes for what fails."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fedshield.plan import SpeedPlan
from fedshield.protocol.sites import Replies

#: Bytes of one command that are on their way to sites at once: FLARE holds each about three times.
IN_FLIGHT = 8 << 20
#: Sites that are called at once in any case, so that one which does not answer holds up no other.
AT_ONCE = 4
#: Longest code that is believed to be one.
_CODE = re.compile(r"[a-z-]{1,32}")


class FlareSites:
    """`proxies`: FLARE's, by site name. Calls of one command go to all sites at once, each in a
    thread, or to so many that memory does not grow with their number; what is not back within its
    deadline counts as lost."""

    def __init__(self, proxies: Mapping[str, Any], deadlines: SpeedPlan) -> None:
        self._proxies = dict(sorted(proxies.items()))
        self._deadlines = deadlines
        self.lost: set[str] = set()

    def names(self) -> Sequence[str]:
        return tuple(self._proxies)

    def call(
        self, method: str, args: Mapping[str, bytes], timeout_s: float | None = None
    ) -> Replies:
        longest = max(map(len, args.values()), default=0)
        return self.each(
            args,
            self._deadline_s(method),
            lambda proxy, data: proxy.handle(method, data),
            max(AT_ONCE, IN_FLIGHT // max(1, longest)),
        )

    def stand(self) -> Replies:
        """The rounds that each site keeps; it loads model and data for it."""
        return self.each(self._proxies, self._deadlines.setup_deadline_s, lambda p, _: p.stand())

    def open(self, completed_rounds: int, sites: Sequence[str]) -> Replies:
        return self.each(
            dict.fromkeys(sites, b""),
            self._deadlines.setup_deadline_s,
            lambda proxy, _: proxy.open(completed_rounds),
        )

    def may_go_on(self) -> Replies:
        """Whether each site's privacy budget allows another round."""
        deadline_s = self._deadlines.message_deadline_s
        return self.each(self._proxies, deadline_s, lambda proxy, _: proxy.may_go_on())

    def _deadline_s(self, method: str) -> float:
        if method in ("work", "evaluate", "finish"):
            return self._deadlines.work_deadline_s
        return self._deadlines.message_deadline_s

    def each(
        self,
        args: Mapping[str, Any],
        deadline_s: float,
        ask: Callable[[Any, Any], Any],
        at_once: int | None = None,
    ) -> Replies:
        def one(site: str) -> tuple[bytes, str]:
            started = time.monotonic()
            if site not in self._proxies:
                return b"", "absent"
            try:
                reply = ask(self._proxies[site](timeout=deadline_s), args[site])
            except Exception:
                late = time.monotonic() - started >= deadline_s * 0.95
                return b"", "deadline" if late else "unreachable"
            return _checked(reply)

        workers = max(1, min(len(args), at_once or len(args)))
        with ThreadPoolExecutor(max_workers=workers) as pool:
            found = dict(zip(args, pool.map(one, args), strict=True))
        return Replies(
            {site: data for site, (data, code) in found.items() if not code},
            {site: code for site, (_, code) in found.items() if code},
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
