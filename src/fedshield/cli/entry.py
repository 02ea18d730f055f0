"""Entry point: signals first, then the commands.

Exit status: 0 done, 1 a run failed, 2 something that the user can mend; 130 stopped by Ctrl-C
(SIGINT), 143 by SIGTERM, 129 by a closed terminal (SIGHUP). A signal that comes before Python has
got as far as `main`, or after `main` has ended, ends the process as signals do, which a shell
shows as the same numbers.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from fedshield import interrupt
from fedshield.cli.terminal import visible

#: Rounds for which an OpenMP thread of GCC's library spins before it sleeps; 300,000 by default.
#: Where another process has one of the cores, threads that wait spinning keep the core from those
#: that they wait for: thirty times as long for the tiny example (docs/log.md, 2026-11-27).
SPINS = "1000"
#: Of a stop by signal, to which its number is added, as shells count.
STOPPED = 128


def main() -> NoReturn:
    """Entry point. Signals are remembered before the commands, and what they need, are imported."""
    interrupt.install()
    status, done = 1, False
    try:
        status = _command()
        done = status == 0
    except SystemExit as stop:  # typer's, where whoever read the output is gone
        status = stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        status = STOPPED + 2
    except Exception as error:
        if interrupt.asked() is None:
            raise
        # What a library made of the interruption; the request is what counts.
        _say(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    finally:
        stopped_by = interrupt.leave()
    if stopped_by is not None:
        status = STOPPED + stopped_by
    if status > STOPPED:
        _say(interrupt.words(stopped_by) + (", when everything was done" if done else ""))
    sys.exit(status)


def _command() -> int:
    # Read when torch is loaded, here and in the processes that are started from here.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    from fedshield.cli.commands import command

    with interrupt.at_once():
        return command()


def _say(text: str) -> None:
    # Where the terminal was closed there is nobody to tell.
    with contextlib.suppress(OSError):
        print(f"fedshield: {visible(text)}", file=sys.stderr)
