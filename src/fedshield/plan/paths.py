"""Paths of a plan: relative ones start from the folder of its file."""

from __future__ import annotations

from pathlib import Path

from fedshield.errors import PlanError


def resolve(path: str, base_dir: Path) -> Path:
    """A path of the plan, made absolute. Raises `PlanError` if it cannot be one."""
    try:
        absolute = (base_dir / Path(path).expanduser()).resolve()
        absolute.exists()  # refuses a name that is too long
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path[:60]!r}: expected a path, but {reason}; check the plan") from None
    return absolute
