"""Paths that a kit, and that FLARE's simulator, can have."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

from fedshield.run.flare.provision import ProvisionError


def check_kit_path(path: Path) -> None:
    """Raises `ProvisionError` for the path of a kit or consortium's folder with a control
    character in it, such as a line break: logs and messages could not name it in one line.
    Everything else may be in it (`launchers` says why that needs care)."""
    for character in str(path.absolute()):
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ProvisionError(
                f"{str(path)!r}: expected a path without control characters, got {character!r} in "
                "it; choose another folder"
            )


def check_simulator_path(path: str, what: str) -> None:
    """Raises `ProvisionError` for a path that FLARE's simulator takes apart: it has no launcher of
    ours, and splits its command line as a shell would. `what`: what the path is, and the cure."""
    try:
        words = shlex.split(path, comments=True)
    except ValueError:
        words = []
    if words != [path]:
        odd = next(character for character in path if character.isspace() or character in "\"'\\#")
        raise ProvisionError(
            f"{path}: expected a path without spaces, quotes, backslashes and number signs for "
            f"FLARE's simulator, got {odd!r} in it; {what}"
        )
