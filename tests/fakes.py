"""What stands in for a party, a disk or a network in tests: one of each kind, for every room.

Each has the interface of what it stands for and does the least of it; what a test wants otherwise
is a field.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fedshield.causes import failure_code
from fedshield.protocol.transport import Replies
from fedshield.run.events import Quiet
from fedshield.site.interfaces import Contribution
from fedshield.types import AdapterState, AdapterUpdate, SiteMemory
from reference import mlkem

Values = np.ndarray[Any, Any]


# -- a site's own house ------------------------------------------------------------------------


def trained(site: str, state: AdapterState, round_number: int) -> Values:
    """What 'training' gives: float32, a function of site, start and round."""
    seed = hashlib.sha256(f"{site} {round_number}".encode()).digest()
    noise = np.random.default_rng(list(seed)).standard_normal(state.spec.num_values)
    return (state.values * 0.75 + 0.3 * noise).astype(np.float32)


@dataclass
class FakeWork:
    """`LocalWork` without a model. `fault`: raised, or returned as values, in its next rounds;
    `starts`, `corrections`, `sent`: of every round that it trained in."""

    site: str
    num_examples: int
    fault: Exception | Values | None = None
    loss: float = 1.0
    trained_rounds: list[int] = field(default_factory=list)
    starts: list[Values] = field(default_factory=list)
    corrections: list[Values | None] = field(default_factory=list)
    sent: list[Values] = field(default_factory=list)

    def values(self, state: AdapterState, round_number: int) -> Values:
        return trained(self.site, state, round_number)

    def train(
        self, state: AdapterState, round_number: int, correction: Values | None = None
    ) -> tuple[AdapterUpdate, float]:
        self.trained_rounds.append(round_number)
        self.starts.append(state.values)
        self.corrections.append(correction)
        if isinstance(self.fault, Exception):
            raise self.fault
        values = self.values(state, round_number)
        if self.fault is not None:
            values = self.fault.astype(np.float32)
        self.sent.append(values)
        return AdapterUpdate(values, state, self.num_examples), self.loss

    def evaluate(self, state: AdapterState) -> float:
        return float(np.abs(state.values).mean())


@dataclass
class MemoryStore:
    """`Store` without a disk. `order`: the rounds as they were saved; `full`: nothing more is."""

    saved: dict[int, AdapterState] = field(default_factory=dict)
    memories: dict[int, SiteMemory] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    contribution: Contribution | None = None
    full: bool = False

    def keep(self, contribution: Contribution) -> None:
        self.contribution = contribution

    def kept(self) -> Contribution | None:
        return self.contribution

    def save(self, completed_rounds: int, state: AdapterState, memory: SiteMemory) -> None:
        if self.full:
            raise OSError("no space left on device")
        self.order.append(completed_rounds)
        self.saved[completed_rounds] = state
        self.memories[completed_rounds] = memory


@dataclass
class NoLedger:
    """In place of a `Line`, what a sum asks of it: a head to send, and to see the others'."""

    head: bytes = b""

    def statement(self, sign: Any) -> bytes:
        return self.head

    def see_all(self, statements: Mapping[str, bytes]) -> None:
        return None

    @property
    def heads(self) -> NoLedger:
        return self


class Notes(Quiet):
    """`Events` that keep what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# -- between coordinator and sites -------------------------------------------------------------


class Handler(Protocol):
    """A site, as far as a coordinator reaches it."""

    def handle(self, method: str, data: bytes, /) -> bytes: ...


@dataclass(frozen=True)
class Crossing:
    """One command and its reply, as bytes. `code`: why there is no reply."""

    site: str
    method: str
    command: bytes
    reply: bytes = b""
    code: str = ""


Tamper = Callable[[str, str, bytes], bytes]


@dataclass
class Wire:
    """`Sites` over handlers in memory, recording every byte. `to_site` and `to_coordinator` may
    change what crosses; `away`: who does not answer, and the code for it."""

    participants: Mapping[str, Handler] = field(repr=False)
    log: list[Crossing] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    to_site: Tamper = lambda site, method, data: data
    to_coordinator: Tamper = lambda site, method, data: data
    away: Mapping[str, str] = field(default_factory=dict)

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        ok: dict[str, bytes] = {}
        failed = {site: self.away[site] for site in args if site in self.away}
        for site, data in args.items():
            if site in failed:
                continue
            command = self.to_site(site, method, data)
            try:
                reply = self.participants[site].handle(method, command)
            except Exception as error:
                self.errors[site] = error
                failed[site] = failure_code(error)
                self.log.append(Crossing(site, method, command, code=failed[site]))
                continue
            ok[site] = self.to_coordinator(site, method, reply)
            self.log.append(Crossing(site, method, command, ok[site]))
        return Replies(ok, failed)

    def of(self, site: str, method: str) -> list[Crossing]:
        return [one for one in self.log if (one.site, one.method) == (site, method)]


@dataclass
class Failing:
    """`Sites` of which some go away for good: `moments` says of each at which message, and
    whether before it reaches the site or after the site has acted on it."""

    wire: Any
    moments: dict[str, tuple[str, str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        going = {site for site in args if self.moments.get(site, ("", ""))[0] == method}
        self.gone |= {site for site in going if self.moments[site][1] == "before"}
        reached = {site: data for site, data in args.items() if site not in self.gone}
        replies = self.wire.call(method, reached)
        self.gone |= going
        ok = {site: data for site, data in replies.ok.items() if site not in self.gone}
        return Replies(ok, replies.failed)


@dataclass
class Canned:
    """`Sites` that give the recorded replies, in order, and one of them mutated."""

    replies: dict[tuple[str, str], list[bytes]]
    place: tuple[str, str, int]
    mutant: bytes
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    gave: bool = False

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        ok: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        for site in args:
            count = self.asked[site, method]
            self.asked[site, method] += 1
            known = self.replies.get((site, method), [])
            if (site, method, count) == self.place:
                self.gave = True
                ok[site] = self.mutant
            elif count < len(known):
                ok[site] = known[count]
            else:
                failed[site] = "internal"
        return Replies(ok, failed)


class Proxy:
    """A site as FLARE gives it: called with a timeout, it is what has the published methods.
    `answer`: of its method `handle`, or what gives it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.timeouts: list[float] = []

    def __call__(self, timeout: float) -> Proxy:
        self.timeouts.append(timeout)
        return self

    def handle(self, method: str, data: bytes) -> Any:
        return self.answer(method, data) if callable(self.answer) else self.answer


# -- randomness --------------------------------------------------------------------------------


class RepeatingPublicKey:
    """In place of the library's, while its generator repeats: the message is always the same."""

    message = b"\7" * 32

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @classmethod
    def from_public_bytes(cls, raw: bytes) -> RepeatingPublicKey:
        return cls(raw)

    def encapsulate(self) -> tuple[bytes, bytes]:
        return mlkem.encapsulate(self._raw, self.message)
