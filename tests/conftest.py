"""What several tests share: a small plan, the tiny model on disk, and a closed network."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

# Before torch is imported: many small models on few cores run faster, and repeat, with one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from fedshield import interrupt
from fedshield.cli.entry import SPINS
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan

# Before torch too, which none of these loads: other work on the machine slows no test.
os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

MakePlan = Callable[..., Plan]


def _tiny_plan(base_dir: Path, changes: dict[str, Any]) -> Plan:
    """Two sites on `tiny-llama`; `changes`: dotted key -> value."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "rounds": 4,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        "data": {
            "heldout_rows": 4,
            "sites": {
                "bank": {"source": "sample:finance", "rows": 16},
                "hospital": {"source": "sample:medical", "rows": 16},
            },
        },
        "training": {
            "steps": 3,
            "batch_size": 4,
            "max_length": 96,
            "learning_rate": 0.01,
            "min_learning_rate": 0.001,
            "precision": "fp32",
        },
        "scheme": {"name": "plain"},
        "speed": {"device": "cpu"},
    }
    for key, value in changes.items():
        section = raw
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return parse_plan(raw, base_dir=base_dir)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_a_disk() -> Iterator[None]:
    """No test survives a power cut, so none need wait for a disk: `fsync` looks at its handle and
    is done. Whether and when it is called can be tested all the same."""

    def looked_at(handle: int) -> None:
        os.fstat(handle)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", looked_at)
        yield


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """The command line's entry, called in this process, leaves signals as a process that ends."""
    before = [(number, signal.getsignal(number)) for number in interrupt.SIGNALS]
    hook = sys.unraisablehook
    yield
    for number, handler in before:
        signal.signal(number, handler)
    sys.unraisablehook = hook


@pytest.fixture
def signals_heeded(_signals_as_before: None) -> None:
    """A shell has its background jobs ignore SIGINT, `nohup` SIGHUP, and children inherit it."""
    for number in interrupt.SIGNALS:
        heeded = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, heeded)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A plan with `speed.threads` sets them for the process: sums of other tests would differ."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(before or int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def make_plan(tmp_path_factory: pytest.TempPathFactory) -> MakePlan:
    """`make_plan({'training.steps': 2})`: the tiny plan with changes."""
    base_dir = tmp_path_factory.mktemp("plans")
    return lambda changes=None: _tiny_plan(base_dir, changes or {})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny-llama` as a Hugging Face model folder. Copy it before changing it."""
    from fedshield.model.builtin import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.build().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test at the first try to reach another machine."""

    def refuse(*args: object, **_: object) -> NoReturn:
        pytest.fail(f"the network was asked for {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
