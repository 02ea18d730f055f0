"""A ledger on disk: append-only JSON lines, hash-chained, locked for the life of a session, and
synced before anything that a line speaks of leaves the site.

The file belongs to the records, not to a run or a kit. Its head (length and digest of the last
line) is what peers remember: a site that was restored from a backup has a chain that does not hold
the head that it once signed (`holds`). A last line that a crash cut was never acted on, and is
dropped; any other damage refuses the ledger whole.
"""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from fedshield.durable import sync_folder
from fedshield.errors import UserError
from fedshield.ledger.rows import RECORD_BYTES, Row, Scale
from fedshield.ledger.rules import Approval

FORMAT = "fedshield ledger 1"
KEY_BYTES = 32
_FIELDS = {field.name for field in dataclasses.fields(Row)}


class LedgerError(UserError):
    """A ledger that is missing, damaged, held by another process, or cannot be written."""


class Head(NamedTuple):
    """Where a chain ends: its number of lines, and the digest of the last one, hex."""

    length: int
    digest: str


class Receipt(NamedTuple):
    """What this site signed for a result (R4: one for each key, for ever), and the result."""

    plan: str
    phase: str
    round_number: int
    result: str


class Ledger:
    """One site's ledger, open and locked. Make it with `create` or `open`; it is a context manager.

    `rows`, `receipts`: what it holds, the oldest first; `approvals`: the last of each plan;
    `peers`: the last head that each other site signed, by its first key, and the signed statement.
    Raises `LedgerError`."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle: int | None = handle
        self._digests: list[str] = []
        self._record_key = b""
        self._records: dict[str, frozenset[bytes]] = {}
        self._broken = False
        self.rows: list[Row] = []
        self.receipts: dict[tuple[str, str, int], Receipt] = {}
        self.approvals: dict[str, Approval] = {}
        self.peers: dict[str, tuple[Head, bytes]] = {}
        # Where the rows stood when each plan was last approved.
        self._approved_at: dict[str, int] = {}

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """A new ledger, mode 0600, with a key of its own for the hashes of records. Raises
        `LedgerError` if there is a file: a ledger is never made anew in silence."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise LedgerError(f"{path}: expected no ledger yet, got one; use it") from None
        except OSError as error:
            raise LedgerError(
                f"{path}: expected a place for a ledger, but {error.strerror}; choose another"
            ) from None
        ledger = cls(path, handle)
        ledger._lock()
        key = secrets.token_bytes(KEY_BYTES)
        ledger._append({"kind": "begun", "format": FORMAT, "record_key": key.hex()})
        sync_folder(path.parent)
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """The ledger in `path`, locked against every other process."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LedgerError(
                f"{path}: expected the ledger of these records, found none; restore it, or "
                "rebuild it with: fedshield site ledger recover"
            ) from None
        except OSError as error:
            raise LedgerError(f"{path}: cannot be opened ({error.strerror}); mend it") from None
        ledger = cls(path, handle)
        try:
            ledger._lock()
            ledger._load()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def record_key(self) -> bytes:
        """The key of `rows.record_hash` for these records. It never leaves the site."""
        return self._record_key

    @property
    def head(self) -> Head:
        return Head(len(self._digests), self._digests[-1])

    def holds(self, head: Head) -> bool:
        """Whether this chain once ended in `head`: it does unless lines were lost or replaced."""
        return (
            1 <= head.length <= len(self._digests) and self._digests[head.length - 1] == head.digest
        )

    def tries(self, key: tuple[str, str, int]) -> int:
        """How many rows there are for one sum since its plan was last approved."""
        since = self._approved_at.get(key[0], 0)
        return sum(row.key == key for row in self.rows[since:])

    def results(self, plan: str) -> frozenset[str]:
        """The digests of this plan's results that this site signed a receipt for."""
        return frozenset(one.result for one in self.receipts.values() if one.plan == plan)

    def approve(self, approval: Approval) -> None:
        """Record that this site's operator approved a plan; its sums may be tried anew."""
        fields = dataclasses.asdict(approval)
        self._append({"kind": "approval", **fields})

    def see_peer(self, name: str, head: Head, statement: bytes) -> None:
        """Remember the head that another site signed, if it is a later one than the last."""
        known = self.peers.get(name)
        if known is None or known[0].length < head.length:
            entry = {"name": name, "length": head.length, "head": head.digest}
            self._append({"kind": "peer", **entry, "statement": statement.hex()})

    def add_row(self, row: Row) -> Head:
        """Write and sync a row; the head after it. Call it before the upload leaves."""
        if row.records not in self._records.values():
            packed = base64.b64encode(b"".join(sorted(row.records))).decode()
            self._append({"kind": "records", "hashes": packed})
        named = next(name for name, known in self._records.items() if known == row.records)
        fields = dataclasses.asdict(row) | {"records": named}
        self._append({"kind": "row", **fields})
        return self.head

    def add_receipt(self, receipt: Receipt) -> Receipt:
        """The receipt to sign for this key: the first one that was ever added, whatever comes."""
        known = self.receipts.get(receipt[:3])
        if known is None:
            self._append({"kind": "receipt", **receipt._asdict()})
        return known or receipt

    # -- the file --------------------------------------------------------------------------

    def _lock(self) -> None:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise LedgerError(
                f"{self._path}: another process of this site holds the ledger; wait for its "
                "run to end"
            ) from None

    def _load(self) -> None:
        assert self._handle is not None
        with os.fdopen(os.dup(self._handle), "rb") as file:
            file.seek(0)
            data = file.read()
        *lines, cut = data.split(b"\n")
        try:
            for line in lines:
                entry = json.loads(line)
                digest = entry.pop("digest")
                if digest != self._digest(entry):
                    raise ValueError
                self._apply(entry, digest)
            if not self._record_key:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LedgerError(
                f"{self._path}: expected a whole ledger, but line {len(self._digests) + 1} does "
                "not follow from those before; restore it, or rebuild it with: fedshield site "
                "ledger recover"
            ) from None
        if cut:
            os.ftruncate(self._handle, len(data) - len(cut))
            os.fsync(self._handle)

    def _digest(self, entry: Mapping[str, Any]) -> str:
        before = self._digests[-1] if self._digests else FORMAT
        text = before + json.dumps(entry, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _append(self, entry: dict[str, Any]) -> None:
        if self._broken or self._handle is None:
            raise LedgerError(f"{self._path}: a line could not be written before; end the session")
        entry = json.loads(json.dumps(entry))  # as it will be read
        digest = self._digest(entry)
        line = json.dumps({**entry, "digest": digest}, sort_keys=True, separators=(",", ":"))
        # Until it is known to be on disk, nobody can tell what the file holds.
        self._broken = True
        try:
            os.lseek(self._handle, 0, os.SEEK_END)
            data = line.encode() + b"\n"
            while data:
                data = data[os.write(self._handle, data) :]
            os.fsync(self._handle)
        except OSError as error:
            raise LedgerError(
                f"{self._path}: expected to write a line, but {error.strerror}; nothing was "
                "sent; make room and resume"
            ) from None
        self._broken = False
        self._apply(entry, digest)

    def _apply(self, entry: Mapping[str, Any], digest: str) -> None:
        kind = entry["kind"]
        if (kind == "begun") == bool(self._digests):
            raise ValueError(kind)  # it comes first, and once
        if kind == "begun":
            if entry["format"] != FORMAT:
                raise ValueError(entry["format"])
            self._record_key = bytes.fromhex(entry["record_key"])
            if len(self._record_key) != KEY_BYTES:
                raise ValueError
        elif kind == "records":
            packed = base64.b64decode(entry["hashes"], validate=True)
            places = range(0, len(packed), RECORD_BYTES)
            self._records[digest] = frozenset(packed[at : at + RECORD_BYTES] for at in places)
        elif kind == "row":
            self.rows.append(self._row(entry))
        elif kind == "approval":
            given = {field.name: entry[field.name] for field in dataclasses.fields(Approval)}
            texts = {name: tuple(given[name]) for name in ("tallies", "lines")}
            approval = Approval(**given | texts)
            self.approvals[approval.plan] = approval
            self._approved_at[approval.plan] = len(self.rows)
        elif kind == "peer":
            head = Head(int(entry["length"]), str(entry["head"]))
            self.peers[str(entry["name"])] = head, bytes.fromhex(entry["statement"])
        elif kind == "receipt":
            receipt = Receipt(**{name: entry[name] for name in Receipt._fields})
            self.receipts[receipt[:3]] = receipt
        else:
            raise ValueError(kind)
        self._digests.append(digest)

    def _row(self, entry: Mapping[str, Any]) -> Row:
        fields = {name: entry[name] for name in _FIELDS}
        return Row(
            **fields
            | {
                "batch": tuple(fields["batch"]),
                "sites": tuple(fields["sites"]),
                "curve": tuple(fields["curve"]),
                "scale": Scale(**fields["scale"]),
                "records": self._records[fields["records"]],
            }
        )
