"""A request to stop is not lost, wherever it comes.

Each case is a process of its own that sends itself the signal at an exact place.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.usefixtures("signals_heeded")

BEGIN = """
import ctypes, gc, os, signal, sys, threading, weakref
from fedshield import interrupt
def stop():
    signal.raise_signal(signal.SIGINT)
"""


def child(body: str, begin: str = BEGIN) -> subprocess.CompletedProcess[str]:
    code = begin + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )


def said(body: str) -> list[str]:
    done = child(body)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


#: Where Python or a library drops an exception, as code that sends the signal there.
SWALLOWED = {
    "a finaliser": """
        class Resource:
            def __del__(self):
                stop()
        Resource()
        """,
    "a callback of a weak reference": """
        class Thing: pass
        thing = Thing()
        ref = weakref.ref(thing, lambda _: stop())
        del thing
        """,
    "the garbage collector's callback": """
        gc.callbacks.append(lambda phase, _: phase == "start" and stop())
        gc.collect()
        gc.callbacks.clear()
        """,
    "a callback from C": """
        call = ctypes.CFUNCTYPE(None)(stop)
        call()
        """,
    "a bare except": """
        try:
            stop()
        except:
            pass
        """,
    "an exception of another kind": """
        try:
            try:
                stop()
            except BaseException as error:
                raise ValueError("the library's own") from error
        except ValueError:
            pass
        """,
}


@pytest.mark.parametrize("place", SWALLOWED)
def test_a_swallowed_request_is_raised_at_the_next_step_and_known_at_the_end(place: str) -> None:
    swallowed = textwrap.indent(textwrap.dedent(SWALLOWED[place]), " " * 8)
    body = f"""
interrupt.install()
try:
    with interrupt.at_once():
{swallowed}
        print("went-on")
        interrupt.check()
        print("LOST")
except KeyboardInterrupt:
    print("stopped", interrupt.asked().name)
print(interrupt.leave().name)
"""
    assert said(body) == ["went-on", "stopped", "SIGINT", "SIGINT"]


def test_what_python_drops_besides_is_still_told() -> None:
    done = child(
        """
        interrupt.install()
        class Resource:
            def __del__(self):
                raise ValueError("of a finaliser")
        Resource()
        """
    )
    assert "ValueError: of a finaliser" in done.stderr


def test_what_is_held_ends_first() -> None:
    body = """
        interrupt.install()
        try:
            with interrupt.at_once():
                with interrupt.held():
                    with interrupt.held():
                        stop()
                        print("inner")
                    print("outer")
                print("LOST")
        except KeyboardInterrupt:
            print("stopped")
        """
    assert said(body) == ["inner", "outer", "stopped"]


def test_a_request_before_work_begins_stops_it_as_it_begins() -> None:
    body = """
        interrupt.install()
        stop()
        print("held")
        try:
            with interrupt.at_once():
                print("LOST")
        except KeyboardInterrupt:
            print("stopped")
            with interrupt.held():
                print("clean-up")
        """
    assert said(body) == ["held", "stopped", "clean-up"]


def test_the_error_of_a_held_block_gives_way_to_the_request() -> None:
    body = """
        interrupt.install()
        try:
            with interrupt.at_once(), interrupt.held():
                stop()
                raise ValueError
        except KeyboardInterrupt as error:
            print("stopped", type(error.__context__).__name__)
        """
    assert said(body) == ["stopped", "ValueError"]


def test_signals_together_are_one_request_and_a_later_one_is_raised_again() -> None:
    body = """
        interrupt.install()
        interrupt.TOGETHER_S = 1000.0
        with interrupt.at_once():
            try:
                stop()
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGTERM)
                print("once")
            interrupt.TOGETHER_S = 0.0
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                print("again", interrupt.leave().name)
        """
    assert said(body) == ["once", "again", "SIGINT"]


def test_an_ignored_signal_stays_ignored() -> None:
    body = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupt.install()
        with interrupt.at_once():
            signal.raise_signal(signal.SIGHUP)
            interrupt.check()
        print(interrupt.leave())
        """
    assert said(body) == ["None"]


def test_what_a_background_job_ignores_is_not_heeded() -> None:
    """A shell starts it so, and Python keeps to it: its owner has to ask by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    body = """
        interrupt.install()
        with interrupt.at_once():
            stop()
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                print("stopped", interrupt.leave().name)
        """
    assert said(body) == ["stopped", "SIGTERM"]


def test_without_the_command_line_pythons_rules_hold() -> None:
    body = """
        interrupt.check()
        other = threading.Thread(target=interrupt.install)
        other.start()
        other.join()
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        try:
            with interrupt.held():
                stop()
                print("LOST")
        except KeyboardInterrupt:
            interrupt.check()
            print(interrupt.words(interrupt.asked()).replace(" ", "-"))
        """
    assert said(body) == ["True", "stopped-by-the-user"]


def test_another_thread_holds_nothing() -> None:
    body = """
        interrupt.install()
        def other():
            with interrupt.held():
                entered.set()
                done.wait()
        entered, done = threading.Event(), threading.Event()
        thread = threading.Thread(target=other)
        thread.start()
        entered.wait()
        try:
            with interrupt.at_once():
                stop()
                print("LOST")
        except KeyboardInterrupt:
            print("stopped")
        done.set()
        thread.join()
        """
    assert said(body) == ["stopped"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_after_the_end_a_signal_ends_the_process(name: str) -> None:
    done = child(f"interrupt.install(); interrupt.leave(); signal.raise_signal(signal.{name})")
    assert done.returncode == -signal.Signals[name]
    assert done.stderr == ""


# -- the command line's entry ------------------------------------------------------------------

COMMAND = (
    BEGIN
    + """
import fedshield.cli
from types import ModuleType
entry = ModuleType("fedshield.cli.commands")
sys.modules["fedshield.cli.commands"] = entry
"""
)


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("return 0", 0, ""),
        ("return 2", 2, ""),
        ("stop()", 130, "fedshield: stopped by the user\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "fedshield: stopped by SIGTERM\n"),
        ("signal.raise_signal(signal.SIGHUP)", 129, "fedshield: stopped by SIGHUP\n"),
        ("raise KeyboardInterrupt", 130, "fedshield: stopped by the user\n"),
        ("raise SystemExit(1)", 1, ""),
        (
            "\n    try: stop()\n    except: return 0",
            130,
            "fedshield: stopped by the user, when everything was done\n",
        ),
        ("\n    try: stop()\n    except: return 1", 130, "fedshield: stopped by the user\n"),
        (
            "\n    try: stop()\n    except: raise ValueError('a library\\nfailed')",
            130,
            "fedshield: ValueError: a library failed\nfedshield: stopped by the user\n",
        ),
    ],
)
def test_a_request_is_the_exit_status_and_one_line(command: str, status: int, words: str) -> None:
    done = child(
        f"def command(): {command}\nentry.command = command\nfedshield.cli.main()", COMMAND
    )
    assert (done.returncode, done.stderr, done.stdout) == (status, words, "")


def test_an_error_that_nobody_foresaw_is_still_shown_whole() -> None:
    done = child(
        "def command(): raise ValueError('why')\nentry.command = command\nfedshield.cli.main()",
        COMMAND,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: why\n")


def test_a_request_while_the_commands_are_imported() -> None:
    body = """
        import fedshield.cli
        assert not {"typer", "numpy"} & set(sys.modules)
        class Finder:
            def find_spec(self, name, *_):
                if name == "fedshield.cli.commands":
                    stop()
        sys.meta_path.insert(0, Finder())
        sys.argv = ["fedshield", "--version"]
        fedshield.cli.main()
        """
    done = child(body)
    assert (done.returncode, done.stderr) == (130, "fedshield: stopped by the user\n")
    assert done.stdout == ""
