"""However many messages came, one thread forgets them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fedshield.run.flare.receptions import Appointments, forget_in_one_thread


def test_calls_are_made_in_their_order_from_one_thread() -> None:
    appointments, done = Appointments(), threading.Event()
    called: list[tuple[str, str]] = []

    def call(name: str) -> None:
        called.append((name, threading.current_thread().name))
        if name == "last":
            done.set()

    appointments.after(0.05, lambda: call("last"))
    appointments.after(0.0, lambda: call("first"))
    appointments.after(0.01, lambda: 1 / 0)  # it must not end the thread
    cancelled = appointments.after(0.0, lambda: call("never"))
    cancelled.cancel()
    assert done.wait(30)
    assert [name for name, _ in called if name != "never"] == ["first", "last"]
    assert {thread for _, thread in called} == {"forget"}


def test_flare_forgets_a_thousand_messages_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    byte_receiver = pytest.importorskip("nvflare.fuel.f3.streaming.byte_receiver")
    task_class = byte_receiver.RxTask
    monkeypatch.setattr(task_class, "_schedule_remove_task", task_class._schedule_remove_task)
    forget_in_one_thread()
    before = threading.active_count()
    tasks: list[Any] = [task_class(number, "site", None, reliable=True) for number in range(1000)]
    for task in tasks:
        task_class.rx_task_map[(task.origin, task.sid)] = task
        task.stop()
    assert threading.active_count() <= before + 1
    # They are kept as long as before, and can be let go of.
    assert len(task_class.rx_task_map) == 1000
    for task in tasks:
        task._remove_task()
    assert not task_class.rx_task_map


def test_another_flare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    byte_receiver = pytest.importorskip("nvflare.fuel.f3.streaming.byte_receiver")
    monkeypatch.delattr(byte_receiver.RxTask, "_schedule_remove_task")
    with pytest.raises(RuntimeError, match=r"expected NVIDIA FLARE 2\.9\.0"):
        forget_in_one_thread()
