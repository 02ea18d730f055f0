"""The command line: parse, call, print. Nothing else prints.

`entry` says what each exit status means.
"""

from __future__ import annotations

from typing import Any

from fedshield.cli.entry import main

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    """`fedshield.cli.app`, imported when it is asked for: it needs every command."""
    if name == "app":
        from fedshield.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
