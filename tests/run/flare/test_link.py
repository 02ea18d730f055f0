"""What FLARE's proxies return, whatever they return, becomes replies and codes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from fakes import Proxy
from fedshield.errors import RoundFailed
from fedshield.plan.sections import SpeedPlan
from fedshield.run.flare import link
from fedshield.run.flare.link import AT_ONCE, FlareSites

SPEED = SpeedPlan(setup_deadline_s=1, work_deadline_s=2, message_deadline_s=1)


class Clock:
    """A time of its own for each thread: what one site takes does not make another late."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def monotonic(self) -> float:
        return float(getattr(self._thread, "now", 0.0))

    def spend(self, seconds: float) -> None:
        self._thread.now = self.monotonic() + seconds

    sleep = spend


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(link, "time", clock)
    return clock


def good(data: bytes = b"yes") -> dict[str, Any]:
    return {"data": data, "code": ""}


def test_each_site_gets_its_own_bytes_and_all_work_at_once() -> None:
    together = threading.Barrier(3, timeout=300)

    def answer(method: str, data: bytes) -> dict[str, Any]:
        together.wait()  # times out unless all three are called before any returns
        return good(method.encode() + data)

    sites = FlareSites({name: Proxy(answer) for name in "cab"}, SPEED)
    replies = sites.call("work", {"a": b"1", "b": b"2", "c": b"3"})
    assert replies.ok == {"a": b"work1", "b": b"work2", "c": b"work3"}
    assert replies.failed == {}


@pytest.mark.parametrize(
    ("method", "deadline"),
    [
        ("train", 2),
        ("work", 2),
        ("evaluate", 2),
        ("finish", 2),
        ("prepare", 1),
        ("fetch", 1),
        ("open", 1),
    ],
)
def test_what_a_site_trains_for_has_another_deadline(method: str, deadline: int) -> None:
    proxy = Proxy(good())
    FlareSites({"a": proxy}, SPEED).call(method, {"a": b""})
    assert proxy.timeouts == [deadline]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"bytes",
        {},
        {"data": b"x"},
        {"data": "text", "code": ""},
        {"data": b"", "code": 3},
        {"data": b"", "code": "The patient's name is"},
        {"data": b"", "code": "a" * 33},
        {"data": b"", "code": "UPPER"},
    ],
)
def test_an_answer_of_another_form_is_malformed(answer: Any) -> None:
    replies = FlareSites({"a": Proxy(answer)}, SPEED).call("work", {"a": b""})
    assert replies.ok == {}
    assert replies.failed == {"a": "malformed"}


def test_a_code_crosses_and_an_error_does_not(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedshield")

    def fails(method: str, data: bytes) -> Any:
        raise RuntimeError("what FLARE says of it")

    proxies = {"a": Proxy({"data": b"ignored", "code": "journal"}), "b": Proxy(fails)}
    replies = FlareSites(proxies, SPEED).call("work", {"a": b"", "b": b"", "gone": b""})
    assert replies.ok == {}
    assert replies.failed == {"a": "journal", "b": "unreachable", "gone": "absent"}
    assert caplog.messages == ["b: the call failed: RuntimeError: what FLARE says of it"]


@pytest.mark.parametrize(("word_after", "aborted"), [(0.0, True), (3.0, True), (60.0, False)])
def test_a_site_that_an_abort_ended_first_is_not_lost(
    clock: Clock, word_after: float, aborted: bool
) -> None:
    """FLARE ends the processes of the sites, and the coordinator's own seconds later."""

    def ended(method: str, data: bytes) -> Any:
        raise RuntimeError("the runtime is shutting down")

    answers = {"a": Proxy(good()), "b": Proxy(ended)}

    def told() -> bool:
        return bool(answers["b"].timeouts) and clock.monotonic() >= word_after

    sites = FlareSites(answers, SPEED, told)
    if aborted:
        with pytest.raises(RoundFailed, match="aborted by whoever submitted it"):
            sites.call("fetch", {"a": b"", "b": b""})
    else:
        assert sites.call("fetch", {"a": b"", "b": b""}).failed == {"b": "unreachable"}
        assert clock.monotonic() == 0  # the waiting was in the thread of that call


def test_a_late_answer_is_told_from_a_broken_line(clock: Clock) -> None:
    def late(method: str, data: bytes) -> Any:
        clock.spend(1.0)
        raise TimeoutError

    assert FlareSites({"a": Proxy(late)}, SPEED).call("open", {"a": b""}).failed == {
        "a": "deadline"
    }


def most_at_once(number: int, payload: int, expected: int) -> int:
    """How many of so many sites have a command of so many bytes at the same time. Each waits until
    `expected` have it, and a moment for more; fewer would wait in vain."""
    lock, enough, now, most = threading.Lock(), threading.Event(), 0, 0

    def answer(method: str, data: bytes) -> dict[str, Any]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if most >= expected:
                enough.set()
        enough.wait(300)
        time.sleep(0.05)
        with lock:
            now -= 1
        return good(data[:1])

    names = [f"s{at:02d}" for at in range(number)]
    sites = FlareSites({name: Proxy(answer) for name in names}, SPEED)
    replies = sites.call("deliver", dict.fromkeys(names, bytes(payload)))
    assert sorted(replies.ok) == names
    return most


@pytest.mark.parametrize(
    ("payload", "at_once"), [(100, 12), (1 << 20, 8), (3 << 20, AT_ONCE), (20 << 20, AT_ONCE)]
)
def test_of_a_long_command_few_copies_are_under_way_at_once(payload: int, at_once: int) -> None:
    """So that the coordinator's memory does not grow with the number of sites."""
    assert most_at_once(12, payload, at_once) == at_once


def test_a_site_that_had_to_wait_for_its_turn_has_its_own_deadline(clock: Clock) -> None:
    """Broken at once, but called after slow ones: it was not late."""

    def slow(method: str, data: bytes) -> Any:
        clock.spend(0.98)
        return good()

    def broken(method: str, data: bytes) -> Any:
        raise OSError

    proxies = {f"s{at}": Proxy(slow) for at in range(AT_ONCE)} | {"t": Proxy(broken)}
    replies = FlareSites(proxies, SPEED).call("deliver", dict.fromkeys(proxies, bytes(9 << 20)))
    assert replies.failed == {"t": "unreachable"}


def test_who_loads_model_and_data_has_the_time_for_it() -> None:
    proxy = Proxy(good())
    speed = SPEED.model_copy(update={"setup_deadline_s": 70, "message_deadline_s": 30})
    sites = FlareSites({"a": proxy}, speed)
    for method in ("stand", "restart", "compare"):
        sites.call(method, {"a": b""})
    assert proxy.timeouts == [70, 70, 30]
