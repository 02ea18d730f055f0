"""The one number to which answers count while a ledger is lost, beside the place of the ledger.

All kits on the records ask with it. It is locked while it is used, and gone before there is a
ledger again: an answer to it says nothing of what the new ledger will hold.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path
from types import TracebackType

from fedshield.disk import sync_folder
from fedshield.ledger.heads import LedgerError, place_question

NONCE_BYTES = 32
_ASKED = re.compile(r"[0-9a-f]{64}")


class StandingQuestion:
    """Open and locked; a context manager. `nonce`: 32 bytes; `asked`: the first key of every site
    (a kit has one) that asked with it. Raises `LedgerError`."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle
        self.nonce = b""
        self.asked: tuple[str, ...] = ()

    @classmethod
    def of(cls, ledger: Path, *, make: bool) -> StandingQuestion:
        """The one of the ledger that is missing in `ledger`; `make`: begins one if there is
        none."""
        if ledger.exists():
            raise LedgerError(
                f"{ledger}: expected no ledger, got one; use it; where it is damaged, or an older "
                "copy and no newer one is left, move it away first, and keep it: the rest is "
                "rebuilt upon it"
            )
        path = place_question(ledger)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
        except FileNotFoundError:
            raise LedgerError(
                f"{path}: expected this site's question, found none; begin with: fedshield site "
                "ledger ask --kit KIT"
            ) from None
        except OSError as error:
            raise LedgerError(
                f"{path}: expected a place for a question, but {error.strerror}; make room"
            ) from None
        found = cls(path, handle)
        try:
            found._lock()
            found._load(make)
        except BaseException:
            found._close()
            raise
        return found

    def __enter__(self) -> StandingQuestion:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def add(self, site: str) -> None:
        """Remember that this site (its first key) asks."""
        if site not in self.asked:
            self._write(site)
            self.asked = (*self.asked, site)

    def drop(self) -> None:
        """No answer to it counts any more."""
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)

    def _close(self) -> None:
        os.close(self._handle)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(self._path), os.fstat(self._handle)):
                return
        except OSError:
            pass
        raise LedgerError(
            f"{self._path}: expected a question that no other process is at, got one that is "
            "asked or answered right now; wait for that to end"
        )

    def _load(self, make: bool) -> None:
        os.lseek(self._handle, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._handle), "rb") as file:
            lines = file.read().decode("ascii", "replace").splitlines()
        if not lines and make:
            nonce = secrets.token_hex(NONCE_BYTES)
            self._write(nonce)
            sync_folder(self._path.parent)
            lines = [nonce]
        if not lines or not all(_ASKED.fullmatch(line) for line in lines):
            raise LedgerError(
                f"{self._path}: expected a question's number, got a damaged file; remove it, and "
                "ask anew"
            )
        self.nonce, self.asked = bytes.fromhex(lines[0]), tuple(lines[1:])

    def _write(self, line: str) -> None:
        os.lseek(self._handle, 0, os.SEEK_END)
        os.write(self._handle, line.encode() + b"\n")
        os.fsync(self._handle)
