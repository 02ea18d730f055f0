"""What a machine's limit of threads means for a party."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fakes import Proxy
from fedshield.errors import RoundFailed, UserError
from fedshield.plan.sections import SpeedPlan
from fedshield.run.flare import limits, link
from fedshield.run.flare.limits import TaskLimit
from fedshield.run.flare.link import FlareSites
from fedshield.run.flare.starting import prepare_start


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the word of an abort: tests/run/flare/test_link.py has a clock for that."""
    monkeypatch.setattr(link, "ABORT_WORD_S", 0.0)


def test_too_little_room_is_told_with_the_limit_and_what_is_needed() -> None:
    limit = TaskLimit(700, 450, "the container's pids.max")
    assert limits.too_few(limit, 250, "the server") == ""
    assert limits.too_few(None, 250, "the server") == ""
    said = limits.too_few(limit, 400, "the server")
    assert "expected room for 400 threads for the server, got 250" in said
    assert "the container's pids.max allows 700, 450 are in use" in said


def test_a_server_starts_only_where_a_run_can_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below that it answers, and a run stalls without a word. A site is warned."""
    of_user = "the user's limit (ulimit -u)"
    monkeypatch.setattr(limits, "task_limit", lambda: TaskLimit(90, 31, of_user))
    with pytest.raises(UserError) as refused:
        prepare_start(tmp_path, server=True)
    assert str(refused.value) == (
        "expected room for 400 threads for the server, got 59 (the user's limit (ulimit -u) "
        "allows 90, 31 are in use), and below 60 no run ends; raise the limit, or end what else "
        "runs under it"
    )
    (warning,) = prepare_start(tmp_path, server=False)
    assert warning.startswith("expected room for 300 threads for a site, got 59 (")
    monkeypatch.setattr(limits, "task_limit", lambda: TaskLimit(90, 30, of_user))
    (warning,) = prepare_start(tmp_path, server=True)
    assert warning.endswith("; raise the limit, or the run may stall")
    monkeypatch.setattr(limits, "task_limit", lambda: None)
    assert prepare_start(tmp_path, server=True) == []


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


def gone(method: str, data: bytes) -> None:
    raise OSError("gone")


def test_no_site_is_blamed_for_threads_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sites = FlareSites({"a": Proxy(gone)}, SpeedPlan())
    assert sites.call("work", {"a": b""}).failed == {"a": "unreachable"}
    monkeypatch.setattr(limits, "task_limit", lambda: TaskLimit(700, 700, "the pids.max"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RoundFailed) as stopped:
        sites.call("work", {"a": b""})
    assert str(stopped.value) == (
        "this machine lets the coordinator start no more threads; the pids.max allows 700, 700 are "
        "in use; no site is to blame: raise the limit at the coordinator, or end what else runs "
        "under it, until there is room for 400 (docs/deploy.md), then go on"
    )


def out_of_threads(method: str, data: bytes) -> None:
    """A call that FLARE could not begin, as it says so: its own error, raised because of
    Python's."""
    words = "can't start new thread"
    raise ValueError(f"call failed: {words}") from RuntimeError(words)


def out_of_threads_at_the_site(method: str, data: bytes) -> None:
    """The same words, from the site."""
    raise ValueError("call failed: can't start new thread") from None


def test_a_thread_that_failed_counts_though_another_can_be_started_by_now() -> None:
    with pytest.raises(RoundFailed, match=r"start no more threads.*; no site is to blame"):
        FlareSites({"a": Proxy(out_of_threads)}, SpeedPlan()).call("work", {"a": b""})
    of_site = FlareSites({"a": Proxy(out_of_threads_at_the_site)}, SpeedPlan()).call(
        "work", {"a": b""}
    )
    assert of_site.failed == {"a": "unreachable"}


def test_an_aborted_run_blames_no_site() -> None:
    sites = FlareSites({"a": Proxy(gone)}, SpeedPlan(), aborted=lambda: True)
    with pytest.raises(RoundFailed, match="the run was aborted"):
        sites.call("work", {"a": b""})
