"""The command line in the process of the tests: seconds of imports less than in one of its own.

That a process of its own does the same is tested in tests/cli/test_cli_entry.py, and by the runs
in tests/e2e that are killed or stopped.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fedshield import cli, interrupt


class Done(NamedTuple):
    """How a command ended: its exit status, and what it wrote."""

    code: int
    out: str
    err: str


def fedshield(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """`fedshield *arguments`, as typed in the folder `cwd`. Signals are as before it afterwards."""
    out, err = io.StringIO(), io.StringIO()
    handlers = [(number, signal.getsignal(number)) for number in interrupt.SIGNALS]
    hook = sys.unraisablehook
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["fedshield", *map(str, arguments)])
        if cwd is not None:
            patch.chdir(cwd)
        try:
            with pytest.raises(SystemExit) as stopped:
                cli.main()
        finally:
            for number, handler in handlers:
                signal.signal(number, handler)
            sys.unraisablehook = hook
    assert "Traceback" not in err.getvalue()
    return Done(int(stopped.value.code or 0), out.getvalue(), err.getvalue())
