"""Requests to stop (Ctrl-C, SIGTERM, a closed terminal), remembered so that none is lost.

Python turns Ctrl-C into a KeyboardInterrupt wherever the program happens to be. It drops that
exception where a finaliser or a callback from C runs, a library's bare `except` swallows it, and a
SIGTERM ends the process on the spot. So the command line calls `install`: a signal is kept in mind
first, and raised second. `check`, asked at every step, raises again what was swallowed, and `leave`
says at the end whether there was a request at all.

Between `install` and `leave` a signal is raised at once only within `at_once`; what is `held`
within that (a file being written) ends first. A second signal is raised again where the program
then is. Without `install` (a library's use, or a thread that is not the main one) Python's own
rules hold, and nothing here does anything.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds within which signals are one request: `make`, a shell and a supervisor each pass it on.
TOGETHER_S = 0.5


@dataclass
class _State:
    asked: signal.Signals | None = None
    asked_at: float = 0.0
    depth: int = 0  # of `held`; in the main thread only
    pending: bool = False  # a signal came while held
    handled: list[signal.Signals] = field(default_factory=list)
    unraisable: Callable[[Any], Any] = sys.__unraisablehook__


_state = _State()


# -- the process's entry and end -----------------------------------------------------------------


def install() -> None:
    """Remember signals from now on, and hold them until `at_once`. A signal that this process was
    started to ignore (nohup, a shell's background job) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    _state.depth = 1
    _state.unraisable, sys.unraisablehook = sys.unraisablehook, _dropped
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _state.handled.append(number)
            signal.signal(number, _on_signal)


def leave() -> signal.Signals | None:
    """The request that came since `install`, or None; from now on a signal ends the process."""
    global _state
    for number in _state.handled:
        signal.signal(number, signal.SIG_DFL)
    if _state.handled:
        sys.unraisablehook = _state.unraisable
    asked, _state = _state.asked, _State()
    return asked


def _on_signal(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _state.asked is None:
        _state.asked = signal.Signals(number)
    elif now - _state.asked_at < TOGETHER_S:
        return
    _state.asked_at = now
    if _state.depth:
        _state.pending = True
    else:
        raise KeyboardInterrupt


def _dropped(unraisable: Any) -> None:
    """Python's hook for exceptions that it drops: ours is remembered and needs no traceback."""
    if _state.asked is None or not issubclass(unraisable.exc_type, KeyboardInterrupt):
        _state.unraisable(unraisable)


# -- what the program asks on its way --------------------------------------------------------------


def asked() -> signal.Signals | None:
    """The signal that asked this process to stop, if one did."""
    return _state.asked


def check() -> None:
    """Raises `KeyboardInterrupt` if a stop was asked for, also where that has been raised before
    and was swallowed. To be called at every step, not in clean-up."""
    if _state.asked is not None:
        raise KeyboardInterrupt


def words(number: signal.Signals | None) -> str:
    """Who stopped the program. Without a handler of ours only Ctrl-C raises KeyboardInterrupt."""
    return "stopped by the user" if number in (None, signal.SIGINT) else f"stopped by {number.name}"


class held:
    """Within the block a signal is only remembered; it is raised at the block's end. For what must
    not end half done and takes moments, such as writing a file."""

    def __enter__(self) -> None:
        self._ours = threading.current_thread() is threading.main_thread()
        self._before = _state.depth
        if self._ours:
            _state.depth = self._before + 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._ours:
            return
        _state.depth = self._before
        if _state.pending and not _state.depth:
            _state.pending = False
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                raise KeyboardInterrupt


class at_once:
    """Within the block a signal is raised where the program is, whatever is held around it."""

    def __enter__(self) -> None:
        self._ours = threading.current_thread() is threading.main_thread()
        self._before = _state.depth
        if self._ours:
            _state.depth = 0
            if _state.pending:
                _state.pending, _state.depth = False, self._before
                raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self._ours:
            _state.depth = self._before
