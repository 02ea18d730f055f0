"""One kit, one process: a lock that the process holds as long as it lives.

A second process with the same certificate takes the first one's place at the server, and when it
ends, every later run fails without a cause anywhere. So whoever starts a party locks a file in its
kit. It is a record lock (POSIX): it survives `exec`, ends with the process, however that ends, and
is not handed on to the processes that FLARE starts for each job, which may outlive their parent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedshield.run.flare.provision import ProvisionError

LOCK_FILE = "party.lock"


def lock_kit(kit: Path, what: str) -> int:
    """Lock the kit for this process, and for the program that it becomes by `exec`. The handle
    that comes back must stay open; closing any handle on the file frees the lock.

    Raises `ProvisionError` while another process holds it. `what`: who that is, in words."""
    path = kit / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ProvisionError(
            f"{path}: expected a file that this user can lock, but {error.strerror}; run it as the "
            "kit's owner"
        ) from None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        if not isinstance(error, BlockingIOError | PermissionError):
            raise ProvisionError(
                f"{path}: expected a file system with locks, but {error.strerror}; move the kit to "
                "a local disk"
            ) from None
        raise ProvisionError(
            f"{kit}: expected that {what} does not run yet, but process "
            f"{holder or '(unknown)'} runs it; one kit is for one process: stop that one first"
        ) from None
    os.truncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    os.set_inheritable(handle, True)
    return handle


@contextlib.contextmanager
def locked(kit: Path, what: str) -> Iterator[None]:
    """No process runs the kit, and none begins to, within it. Raises `ProvisionError`."""
    handle = lock_kit(kit, what)
    try:
        yield
    finally:
        os.close(handle)
