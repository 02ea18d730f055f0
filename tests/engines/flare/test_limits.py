"""What a machine's limit of threads means for a party."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedshield.engines.flare import limits
from fedshield.engines.flare.limits import TaskLimit
from fedshield.engines.flare.link import FlareSites
from fedshield.errors import RoundFailed
from fedshield.plan import SpeedPlan


def test_too_little_room_is_told_with_the_limit_and_what_is_needed() -> None:
    limit = TaskLimit(700, 450, "the container's pids.max")
    assert limits.too_few(limit, 250, "the server") == ""
    assert limits.too_few(None, 250, "the server") == ""
    said = limits.too_few(limit, 400, "the server")
    assert "expected room for 400 threads for the server, got 250" in said
    assert "the container's pids.max allows 700, 450 are in use" in said


def test_the_tightest_of_nested_containers_counts(tmp_path: Path) -> None:
    for folder, limit, used in ((tmp_path, "max", "9"), (tmp_path / "inner", "100", "40")):
        folder.mkdir(exist_ok=True)
        (folder / "pids.max").write_text(limit + "\n")
        (folder / "pids.current").write_text(used + "\n")
    assert limits._read_pids(tmp_path) == []
    (inner,) = limits._read_pids(tmp_path / "inner")
    assert (inner.limit, inner.free) == (100, 60)
    assert limits._read_pids(tmp_path / "absent") == []


def test_threads_of_a_user_are_counted() -> None:
    held = threading.Event()
    threads = [threading.Thread(target=held.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        counted = limits._tasks_of(Path("/proc/self").stat().st_uid)
    finally:
        held.set()
        for thread in threads:
            thread.join()
    assert counted >= 6


def test_a_machine_with_room_has_none_to_complain_of() -> None:
    assert limits.exhausted() == ""


class Failing:
    """A proxy whose calls fail."""

    def __call__(self, timeout: float) -> Failing:
        return self

    def handle(self, method: str, data: bytes) -> None:
        raise OSError("gone")


def test_no_site_is_blamed_for_threads_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sites = FlareSites({"a": Failing()}, SpeedPlan())
    assert sites.call("work", {"a": b""}).failed == {"a": "unreachable"}
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RoundFailed, match="no site is to blame: raise the limit") as stopped:
        sites.call("work", {"a": b""})
    assert "start no more threads" in str(stopped.value)


def test_an_aborted_run_blames_no_site() -> None:
    sites = FlareSites({"a": Failing()}, SpeedPlan(), aborted=lambda: True)
    with pytest.raises(RoundFailed, match="the run was aborted"):
        sites.call("work", {"a": b""})
