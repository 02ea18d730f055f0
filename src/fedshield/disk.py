"""What is written lands whole or not at all: names synced, folders renamed into place, a full disk
told in one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedshield import interrupt
from fedshield.causes import cause_of
from fedshield.errors import RunFolderError


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a file just made or renamed in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file whole or not at all, synced to disk. `mode`: before the umask."""
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.part")
    with interrupt.held():
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def check_room(folder: Path, num_bytes: int, out: Path) -> None:
    """Raises `RunFolderError` unless the disk of `folder` has `num_bytes` free for `out`."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RunFolderError(_no_room(out, num_bytes, free))


@contextmanager
def whole_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder that appears complete or not at all, in place of an earlier one.

    `num_bytes`: what will be written into it, about. Raises `RunFolderError` where the disk has
    no room for that, before or while it is written, or `out` is no place to write to.
    """
    out = out.resolve()
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        check_room(part, num_bytes, out)
        yield part
        with interrupt.held():
            if out.exists():
                shutil.rmtree(out)
            os.replace(part, out)
            sync_folder(out.parent)
    except Exception as error:
        if (cause := cause_of(error)) is not None and cause.code == "disk":
            shutil.rmtree(part, ignore_errors=True)
            free = shutil.disk_usage(out.parent).free
            raise RunFolderError(_no_room(out, num_bytes, free)) from None
        if isinstance(error, OSError) and not part.exists():
            raise RunFolderError(
                f"{out}: expected a place to write to, but {error.strerror}; choose another"
            ) from None
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _no_room(out: Path, needed: int, free: int) -> str:
    return (
        f"{out}: expected {_megabytes(needed)} of free disk space, got {_megabytes(free)}: the "
        "disk is full; free some, or choose another place"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
