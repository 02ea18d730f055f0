"""A ledger on disk: append-only JSON lines, hash-chained, locked for the life of a session, and
synced before anything that a line speaks of leaves the site.

The file belongs to the records, not to a run or a kit. Its head (length and digest of the last
line) is what peers remember: a site that was restored from a backup has a chain that does not hold
the head that it once signed (`holds`). A last line that a crash cut was never acted on, and is
dropped; any other damage refuses the ledger whole. `heads` has what lies beside it. A ledger that
was rebuilt (`recovery`) goes on at a later line than the lost ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedshield.disk import sync_folder
from fedshield.ledger import entries, heads
from fedshield.ledger.entries import (
    Answered,
    Attested,
    Forgotten,
    OpenedRound,
    Receipt,
    Recovered,
    Total,
)
from fedshield.ledger.heads import RESTORE, Head, LedgerError
from fedshield.ledger.history import Entered
from fedshield.ledger.rows import Row
from fedshield.ledger.rules import Approval

__all__ = ["Forgotten", "Head", "Ledger", "LedgerError", "Receipt"]

FORMAT = "fedshield ledger 1"
KEY_BYTES = 32


class Ledger:
    """One site's ledger, open and locked. Make it with `create` or `open`; it is a context manager.

    `rows`, `receipts`: what it holds, the oldest first; `certified`: results taken by the receipts
    of others, where this site's own is for another; `totals`: what all sites of a plan count for,
    by plan; `attested`: rounds that were taken by the word of others, by plan and number;
    `approvals`: the last of each plan that is a permission, in order: none of before the ledger was
    rebuilt is; `past_approvals`: those too, for what a plan was said to spend;
    `peers`: the last head that each other site signed, by its first key, and the signed statement;
    `chains`: the keys by which each site was known last; `forgotten`: heads that the operator had
    it forget; `answered`: what other sites were told of their lost ledgers; `recoveries`: where
    this one was rebuilt; `ended`: plans that cannot go on since; `entered`: the rosters that its
    records went on under. Raises `LedgerError`."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle: int | None = handle
        self._digests: dict[int, str] = {}  # by the line's number, in order
        self._record_key = b""
        self._records: dict[str, frozenset[bytes]] = {}
        self._broken = False
        self.rows: list[Row] = []
        self.receipts: dict[tuple[str, str, int], Receipt] = {}
        self.certified: dict[tuple[str, str, int], Receipt] = {}
        self.totals: dict[str, Total] = {}
        self.attested: dict[tuple[str, int], OpenedRound] = {}
        self.approvals: dict[str, Approval] = {}
        self.past_approvals: dict[str, Approval] = {}
        self.peers: dict[str, tuple[Head, bytes]] = {}
        self.chains: dict[str, tuple[str, ...]] = {}
        self.forgotten: list[Forgotten] = []
        self.answered: list[Answered] = []
        self.recoveries: list[Recovered] = []
        self.entered: list[Entered] = []
        self.ended: set[str] = set()
        # Where the rows stood when each plan was last approved.
        self._approved_at: dict[str, int] = {}

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """A new ledger, mode 0600, with a key of its own for the hashes of records. It has its name
        once it is whole. Raises `LedgerError` if there is a file, or what lay beside one: a ledger
        is never made anew in silence."""
        beside, question = heads.place_beside(path), heads.place_question(path)
        if beside.exists() and not path.exists():
            raise LedgerError(f"{beside}: expected no earlier ledger, got its file; {RESTORE}")
        if question.exists() and not path.exists():
            raise LedgerError(
                f"{question}: expected no question about a lost ledger, got one; go on with: "
                "fedshield site ledger recover, or remove this file if there never was a ledger"
            )

        def begin(ledger: Ledger) -> None:
            key = secrets.token_bytes(KEY_BYTES)
            ledger._append({"kind": "begun", "format": FORMAT, "record_key": key.hex()})

        return cls._new(path, begin)

    @classmethod
    def rebuild(
        cls,
        path: Path,
        lines: bytes,
        recovered: Recovered,
        rows: Sequence[Row],
        results: Sequence[Receipt],
        peers: heads.Heads,
        chains: heads.Chains,
        last: Callable[[], None],
    ) -> Ledger:
        """A lost ledger anew: the lines of an older copy, then that it was lost, and what others
        told.

        Args:
            path: where no ledger is yet.
            lines: of the older copy (`prefix`).
            recovered: that it was lost.
            rows: as others told of them.
            results: as others told of them.
            peers: the last heads of other sites.
            chains: the keys of other sites.
            last: called when all is on disk but the name.

        Raises:
            LedgerError: where it cannot be written, or there is a ledger.
        """

        def fill(ledger: Ledger) -> None:
            handle = ledger._usable()
            _write(handle, lines)
            ledger._load(whole=False)
            ledger._append(entries.of_recovered(recovered))
            for row in rows:
                ledger._append_row(row)
            for result in results:
                ledger.add_certified(result)
            # It is of the same first line, so what lies there of the lost one goes with it too.
            heads.write(heads.place_beside(path), ledger.first, peers, chains)
            ledger.peers, ledger.chains = dict(peers), dict(chains)
            last()

        return cls._new(path, fill)

    @classmethod
    def _new(cls, path: Path, fill: Callable[[Ledger], None]) -> Ledger:
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        ledger = made = None
        try:
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            ledger = cls(part, handle)
            ledger._lock()
            fill(ledger)
            os.link(part, path)
            part.unlink()
            sync_folder(path.parent)
            made, ledger._path = ledger, path
        except FileExistsError:
            raise LedgerError(f"{path}: expected no ledger yet, got one; use it") from None
        except OSError as error:
            why = f"expected a place for a ledger, but {error.strerror}; choose another"
            raise LedgerError(f"{path}: {why}") from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
            if ledger is not None and made is None:
                ledger.close()
        return made

    @classmethod
    def open(cls, path: Path, *, look_only: bool = False) -> Ledger:
        """The ledger in `path`, locked against every other process; with `look_only` neither locked
        nor mended, and it takes no line."""
        try:
            handle = os.open(path, (os.O_RDONLY if look_only else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError:
            missing = f"{path}: expected the ledger of these records, found none; {RESTORE}"
            raise LedgerError(missing) from None
        except OSError as error:
            raise LedgerError(f"{path}: cannot be opened ({error.strerror}); mend it") from None
        ledger = cls(path, handle)
        try:
            if not look_only:
                ledger._lock()
                ledger._check_place()
            ledger._broken = look_only
            ledger._load()
            if not look_only:
                # Answers to it hold nothing of what this ledger will: it must not outlive its loss.
                heads.place_question(path).unlink(missing_ok=True)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def prefix(cls, path: Path) -> tuple[Ledger, bytes]:
        """An older copy of a ledger, or what is left of a damaged one, to look at: as far as its
        lines follow from each other, and these lines. `peers` are empty without the file beside."""
        try:
            ledger = cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise LedgerError(
                f"{path}: expected a copy of the ledger, but {error.strerror}; check the path"
            ) from None
        try:
            ledger._broken = True
            lines = ledger._load(whole=False)
            beside = heads.place_beside(path)
            ledger.peers, ledger.chains = heads.read(beside, ledger.first, needed=False)
        except BaseException:
            ledger.close()
            raise
        return ledger, lines

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
        return Head(*next(reversed(self._digests.items())))

    @property
    def first(self) -> str:
        """The digest of the first line, hex: which ledger it is."""
        return self._digests[1]

    def holds(self, head: Head) -> bool:
        """Whether this chain once ended in `head`: it does unless lines were lost or replaced."""
        return self._digests.get(head.length) == head.digest

    def was_lost(self, head: Head, by: str) -> bool:
        """Whether this site (a first key) told of this head, or a later one, when this ledger was
        rebuilt: so it was signed before. A later one than was told, it was hidden or is another
        copy's that is at work."""
        return any(one.after < head.length <= one.told.get(by, 0) for one in self.recoveries)

    def last_attested(self, plan: str) -> int:
        """The last round of a plan that this site took by the word of others; 0 for none."""
        return max((number for of, number in self.attested if of == plan), default=0)

    def tries(self, key: tuple[str, str, int]) -> int:
        """How many rows there are for one sum since its plan was last approved."""
        since = self._approved_at.get(key[0], 0)
        return sum(row.key == key for row in self.rows[since:])

    def results(self, plan: str) -> frozenset[str]:
        """The digests of this plan's results: those that this site signed a receipt for, but where
        it took another one since enough others signed for it; and those that it took by the word of
        others."""
        results = (self.receipts | self.certified).values()
        taken = {one.result for (of, _), one in self.attested.items() if of == plan}
        return frozenset(one.result for one in results if one.plan == plan) | taken

    def approve(self, approval: Approval) -> None:
        """Record that this site's operator approved a plan; its sums may be tried anew."""
        self._append(entries.of_approval(approval))

    def see_peers(self, seen: Mapping[str, tuple[Head, bytes]]) -> None:
        """Remember the heads that other sites signed, each if it is a later one than the last, or
        the same under another key: all of them, or after a crash none. The chain does not grow."""
        later = {
            name: (head, statement)
            for name, (head, statement) in seen.items()
            if name not in self.peers
            or self.peers[name][0].length < head.length
            or (self.peers[name][0] == head and self.peers[name][1] != statement)
        }
        if later:
            self._keep_beside(self.peers | later, self.chains)

    def see_keys(self, keys: Mapping[str, Sequence[bytes]]) -> None:
        """Remember every key of these sites, by name, the first one first. They go on from those
        that are known (`heads.forked`)."""
        chains = self.chains | heads.to_chains(keys)
        if chains != self.chains:
            self._keep_beside(self.peers, chains)

    def forget_peer(self, name: str, when: str) -> Forgotten:
        """Forget the last head of the site with this first key, by the operator's hand. A line of
        the chain says so first, and for ever; the site's keys stay remembered. `when`: the time,
        for people. Raises `KeyError` where no head is remembered."""
        head = self.peers[name][0]
        forgotten = Forgotten(name, *head, when)
        self._append(entries.of_forgotten(forgotten))
        others = {site: kept for site, kept in self.peers.items() if site != name}
        self._keep_beside(others, self.chains)
        return forgotten

    def add_answered(self, answered: Answered) -> None:
        """Record that another site is about to be told of its lost ledger."""
        self._append(entries.of_answered(answered))

    def add_row(self, row: Row) -> Head:
        """Write and sync a row; the head after it. Call it before the upload leaves."""
        if not heads.place_beside(self._path).exists():
            self._keep_beside(self.peers, self.chains)  # from the first row on there is one
        self._append_row(row)
        return self.head

    def add_entered(self, entered: Entered) -> None:
        """Record under which roster these records go on; no line for what is known already."""
        if entered not in self.entered:
            self._append(entries.of_entered(entered, self._kept_records(entered.records)))

    def add_receipt(self, receipt: Receipt) -> Receipt:
        """The receipt to sign for this key: the first one that was ever added, whatever comes."""
        if receipt.key not in self.receipts:
            self._append({"kind": "receipt", **receipt._asdict()})
        return self.receipts[receipt.key]

    def add_certified(self, receipt: Receipt) -> Receipt:
        """The result to take by the receipts of others: the first one that was ever added."""
        if receipt.key not in self.certified:
            self._append({"kind": "certified", **receipt._asdict()})
        return self.certified[receipt.key]

    def add_attested(self, attested: Attested) -> None:
        """Rounds to stand after by the word of others; no line for what is known already."""
        numbered = enumerate(attested.rounds, attested.first)
        if any(self.attested.get((attested.plan, number)) != one for number, one in numbered):
            self._append(entries.of_attested(attested))

    def add_total(self, total: Total) -> Total:
        """The total that a plan's weights are shares of: the first one that was ever added."""
        if total.plan not in self.totals:
            self._append({"kind": "total", **total._asdict()})
        return self.totals[total.plan]

    # -- the file --------------------------------------------------------------------------

    def _lock(self) -> None:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            held = "another process of this site holds the ledger; wait for its run to end"
            raise LedgerError(f"{self._path}: {held}") from None

    def _check_place(self) -> None:
        """Raises `LedgerError` where the name has come to mean another file than the locked one."""
        assert self._handle is not None
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._handle)):
                return
            found = "another in its place"
        except OSError as error:
            found = str(error.strerror)
        self._broken = True
        raise LedgerError(
            f"{self._path}: expected the ledger that this process opened, got {found}; nothing "
            "more was sent; see that nothing replaces the file, restore the newest, and resume"
        )

    def _append_row(self, row: Row) -> None:
        self._append(entries.of_row(row, self._kept_records(row.records)))

    def _kept_records(self, records: frozenset[bytes]) -> str:
        """The digest of the line that holds them."""
        if records not in self._records.values():
            self._append(entries.of_records(records))
        return next(name for name, known in self._records.items() if known == records)

    def _keep_beside(self, peers: heads.Heads, chains: heads.Chains) -> None:
        self._usable()
        heads.write(heads.place_beside(self._path), self.first, peers, chains)
        self.peers, self.chains = dict(peers), dict(chains)

    def _usable(self) -> int:
        """The open file. Raises `LedgerError` where a line was lost, or the file was replaced."""
        if self._broken or self._handle is None:
            raise LedgerError(f"{self._path}: a line could not be written before; end the session")
        self._check_place()
        return self._handle

    def _load(self, whole: bool = True) -> bytes:
        """The lines that were read; without `whole` up to the first that does not follow, and
        nothing of what lies beside."""
        assert self._handle is not None
        with os.fdopen(os.dup(self._handle), "rb") as file:
            file.seek(0)
            data = file.read()
        *lines, cut = data.split(b"\n")
        size = 0
        try:
            for line in lines:
                entry = json.loads(line)
                digest = entry.pop("digest")
                if digest != self._digest(entry):
                    raise ValueError
                self._apply(entry, digest)
                size += len(line) + 1
            if not self._record_key:
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if whole or not self._record_key:
                raise LedgerError(
                    f"{self._path}: expected a whole ledger, but line {len(self._digests) + 1} "
                    f"does not follow from those before; {RESTORE}"
                ) from None
        if whole:
            if cut and not self._broken:
                os.ftruncate(self._handle, len(data) - len(cut))
                os.fsync(self._handle)
            beside = heads.place_beside(self._path)
            self.peers, self.chains = heads.read(beside, self.first, needed=bool(self.rows))
        return data[:size]

    def _digest(self, entry: Mapping[str, Any]) -> str:
        return heads.digest_after(self.head.digest if self._digests else FORMAT, entry)

    def _append(self, entry: dict[str, Any]) -> None:
        handle = self._usable()
        entry = json.loads(json.dumps(entry))  # as it will be read
        digest = self._digest(entry)
        line = json.dumps({**entry, "digest": digest}, sort_keys=True, separators=(",", ":"))
        # Until it is known to be on disk, nobody can tell what the file holds.
        self._broken = True
        try:
            os.lseek(handle, 0, os.SEEK_END)
            _write(handle, line.encode() + b"\n")
        except OSError as error:
            raise LedgerError(
                f"{self._path}: expected to write a line, but {error.strerror}; nothing "
                "more was sent; make room and resume"
            ) from None
        self._broken = False
        self._apply(entry, digest)

    def _apply(self, entry: Mapping[str, Any], digest: str) -> None:
        kind, number = entry["kind"], len(self._digests) + 1
        if self.recoveries:
            number = self.head.length + 1
        if (kind == "begun") == bool(self._digests):
            raise ValueError(kind)  # it comes first, and once
        if kind == "begun":
            if entry["format"] != FORMAT:
                raise ValueError(entry["format"])
            self._record_key = bytes.fromhex(entry["record_key"])
            if len(self._record_key) != KEY_BYTES:
                raise ValueError
        elif kind == "records":
            self._records[digest] = entries.to_records(entry)
        elif kind == "row":
            self.rows.append(entries.to_row(entry, self._records))
        elif kind == "entered":
            self.entered.append(entries.to_entered(entry, self._records))
        elif kind == "approval":
            approval = entries.to_approval(entry)
            for known in (self.approvals, self.past_approvals):
                known.pop(approval.plan, None)  # approved again, it is the last
                known[approval.plan] = approval
            self._approved_at[approval.plan] = len(self.rows)
        elif kind == "receipt":
            receipt = entries.to_receipt(entry)
            self.receipts[receipt.key] = receipt
        elif kind == "certified":
            receipt = entries.to_receipt(entry)
            self.certified[receipt.key] = receipt
        elif kind == "attested":
            taken = entries.to_attested(entry)
            for at, one in enumerate(taken.rounds, taken.first):
                self.attested[taken.plan, at] = one
        elif kind == "total":
            total = entries.to_total(entry)
            self.totals[total.plan] = total
        elif kind == "forgotten":
            self.forgotten.append(entries.to_forgotten(entry))
        elif kind == "answered":
            self.answered.append(entries.to_answered(entry))
        elif kind == "recovered":
            recovered = entries.to_recovered(entry)
            if recovered.after != number - 1 or recovered.line < number:
                raise ValueError(recovered.line)
            self.recoveries.append(recovered)
            self.ended.update(recovered.ended)
            # The lost lines can hold a later approval of the same plan, with less consent.
            self.approvals.clear()
            number = recovered.line
        else:
            raise ValueError(kind)
        self._digests[number] = digest


def _write(handle: int, data: bytes) -> None:
    """All of it, synced."""
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)
