"""Paths that a kit can have."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from fedshield.engines.flare.provision import ProvisionError


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
