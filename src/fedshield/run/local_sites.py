"""`Sites` over participants in this process, counting the bytes that cross."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedshield import interrupt
from fedshield.causes import failure_code
from fedshield.protocol.participant import Participant
from fedshield.protocol.transport import Replies


@dataclass
class Traffic:
    """Bytes of signed messages, by site, as they crossed."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def take(self) -> tuple[dict[str, int], dict[str, int]]:
        """What crossed since the last call."""
        taken = self.up, self.down
        self.up, self.down = {}, {}
        return taken


class InProcessSites:
    """`Sites` over participants in this process. A site's error goes on as a code only; the
    error itself stays in `errors`, which is the site operator's."""

    def __init__(
        self,
        participants: Mapping[str, Participant],
        before_call: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._participants = dict(sorted(participants.items()))
        self._before_call = before_call
        self.traffic = Traffic()
        self.errors: dict[str, Exception] = {}

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        ok: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        for site, data in args.items():
            interrupt.check()
            self._before_call(site, method)
            self.traffic.down[site] = self.traffic.down.get(site, 0) + len(data)
            try:
                reply = self._participants[site].handle(method, data)
            except Exception as error:
                interrupt.check()
                self.errors[site] = error
                failed[site] = failure_code(error)
                continue
            self.traffic.up[site] = self.traffic.up.get(site, 0) + len(reply)
            ok[site] = reply
        return Replies(ok, failed)
