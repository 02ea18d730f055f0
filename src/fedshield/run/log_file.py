"""Audit logs on disk: appended and synced entry by entry, mended after a crash, read for checking.

RUN/coordinator.audit.jsonl   the coordinator's
RUN/sites/NAME/audit.jsonl    each site's
RUN/rosters.json              public keys of every session's roster, to check signatures by
"""

from __future__ import annotations

import datetime
import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

from fedshield import __version__, interrupt
from fedshield.disk import sync_folder, write_atomic
from fedshield.enrolment import RosterError, SignedRoster
from fedshield.enrolment.files import read_document, to_text
from fedshield.enrolment.forms import (
    Flag,
    Form,
    Hex32,
    Listed,
    MaybeHex32,
    Text,
    TextLists,
    WholeNumber,
    missing_key,
    unknown_key,
)
from fedshield.errors import ProtocolError, RunFolderError
from fedshield.plan.quorum import Membership, Rules, Server
from fedshield.protocol.log.entries import (
    START,
    Fact,
    opening,
    read_entry,
    sha256,
    write_entry,
)
from fedshield.protocol.log.verify import Chain, KnownKeys, read_chain
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire.envelope import Sign

LOG_FILE, COORDINATOR_FILE, ROSTERS_FILE = "audit.jsonl", "coordinator.audit.jsonl", "rosters.json"


def site_log(run: Path, site: str) -> Path:
    return run / "sites" / site / LOG_FILE


def coordinator_log(run: Path) -> Path:
    return run / COORDINATOR_FILE


class LogFile:
    """A party's log, open for appending. `append` is what a participant or coordinator takes as
    `log`; an entry that cannot be written stops its party, so nothing goes on unlogged."""

    def __init__(self, path: Path, party: str, sign: Sign) -> None:
        self._path = path
        self._party = party
        self._sign = sign
        self._number = 0
        self._before = START
        self._broken = False

    @classmethod
    def open(
        cls,
        path: Path,
        party: str,
        sign: Sign,
        public: bytes,
        plan_sha256: str,
        roster: Roster,
        policy_sha256: str = "",
    ) -> LogFile:
        """Go on with the log in `path`, or begin it: the first entry names plan, roster and the
        key that signs from here on (`public`, of `sign`).

        A last line that a crash cut is dropped, and the entry says of how many bytes. Raises
        `RunFolderError` for a log with any other damage, or of another party: it is evidence, so
        it is neither mended nor written on.
        """
        log = cls(path, party, sign)
        fact = opening(plan_sha256, roster, public, __version__, policy_sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            dropped = log._go_on() if path.exists() else 0
            path.touch()
            sync_folder(path.parent)
        except OSError as error:
            raise RunFolderError(
                f"{path}: expected a place for an audit log, but {error.strerror}; mend it"
            ) from None
        details = {**fact.details, "dropped_bytes": dropped}
        log.append(Fact("opened", details=details))
        return log

    def _go_on(self) -> int:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            chain = read_chain(self._path.name, whole, None)
            if chain.problems or chain.party != self._party:
                why = (*chain.problems, f"it is {chain.party}'s")[0]
                raise RunFolderError(
                    f"{self._path}: expected {self._party}'s audit log, whole, but {why}; move it "
                    "away and keep it: it is evidence"
                )
            self._number, self._before = len(chain.entries), chain.entries[-1].digest
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        return len(data) - len(whole)

    def append(self, fact: Fact) -> None:
        """Write and sync one entry. Raises `ProtocolError` ('journal') if that fails, and from
        then on: what the file holds is not known."""
        if self._broken:
            raise ProtocolError("journal", f"{self._path.name}: an entry could not be written")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = write_entry(fact, self._party, self._number, now, self._before, self._sign)
        read_entry(line)  # what could not be read again is not written
        with interrupt.held():
            self._write(line)

    def _write(self, line: bytes) -> None:
        self._broken = True
        try:
            with self._path.open("ab") as file:
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ProtocolError(
                "journal", f"{self._path.name}: an entry cannot be written ({error.strerror})"
            ) from None
        self._broken = False
        self._number += 1
        self._before = sha256(line)


# -- reading -------------------------------------------------------------------------------


def read_log(path: Path, known: KnownKeys | None, name: str | None = None) -> Chain:
    """Raises `RunFolderError` if the file cannot be read; what is in it is the chain's to say."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunFolderError(
            f"{path}: expected an audit log, but {error.strerror}; check the path"
        ) from None
    return read_chain(name or str(path), data, known)


def logs_of(run: Path) -> list[Path]:
    """The logs in a run folder, the coordinator's first. Raises `RunFolderError` for none."""
    found = [path for path in (coordinator_log(run),) if path.exists()]
    found += sorted(run.glob(f"sites/*/{LOG_FILE}"))
    if not found:
        raise RunFolderError(
            f"{run}: expected a run folder with audit logs, found none; give the files themselves"
        )
    return found


# -- the keys to check by --------------------------------------------------------------------


def keep_roster(run: Path, roster: Roster) -> None:
    """Add a session's roster to the run folder's: names, rules and public keys, nothing else.
    Several processes may share the folder."""
    path = run / ROSTERS_FILE
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".rosters.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = read_rosters(path) if path.exists() else ()
        if roster not in kept:
            rows = [_row(one) for one in (*kept, roster)]
            write_atomic(path, to_text("run rosters 2", {"rosters": rows}))


def read_rosters(path: Path) -> tuple[Roster, ...]:
    """Raises `RosterError` for anything but what `keep_roster` wrote."""
    fields, _ = read_document(path, "run rosters 2")
    try:
        form = RostersForm.parse(fields)
        return tuple(row.roster(f"rosters.{at}") for at, row in enumerate(form.rosters))
    except (RosterError, ProtocolError) as error:
        raise RosterError(f"{path}: {error}") from None


def known_keys(rosters: Iterable[Roster]) -> KnownKeys:
    found: dict[str, Mapping[str, bytes]] = {}
    for roster in rosters:
        keys = {**roster.sites, COORDINATOR: roster.coordinator}
        found[roster.sha256().hex()] = keys
        if roster.charter:
            found[roster.charter.hex()] = keys
    return found


def read_known_keys(path: Path) -> KnownKeys:
    """Of a countersigned roster, or of a run folder's `rosters.json`. Raises `RosterError`."""
    try:
        return known_keys([SignedRoster.read(path).to_roster()])
    except RosterError as refused:
        try:
            return known_keys(read_rosters(path))
        except RosterError:
            raise refused from None


def _row(roster: Roster) -> dict[str, object]:
    return {
        "sites": {name: key.hex() for name, key in sorted(roster.sites.items())},
        "coordinator": roster.coordinator.hex(),
        "rules": asdict(roster.rules),
        "demonstration": roster.demo,
        "charter": roster.charter.hex() or None,
    } | ({"batches": [[*batch] for batch in roster.batches]} if roster.batches else {})


class RulesForm(Form):
    """The quorums of a roster. They are only hashed, so none is checked."""

    num_sites: WholeNumber
    max_colluding: WholeNumber
    threshold: WholeNumber
    votes: WholeNumber
    min_cohort: WholeNumber
    server: Text
    membership: Text

    def rules(self) -> Rules:
        return Rules(
            self.num_sites,
            self.max_colluding,
            self.threshold,
            self.votes,
            self.min_cohort,
            cast(Server, self.server),
            cast(Membership, self.membership),
        )


class RosterKeysForm(Form):
    """A session's roster in `rosters.json`."""

    sites: dict[str, Hex32]
    coordinator: Hex32
    rules: RulesForm
    demonstration: Flag
    charter: MaybeHex32
    batches: TextLists = ()

    def roster(self, where: str) -> Roster:
        """`where`: the keys to this roster. Raises `RosterError` or `ProtocolError`."""
        has_batches = "batches" in self.model_fields_set
        if self.rules.membership == "batches" and not has_batches:
            raise missing_key([where, "batches"], "a list of lists of texts")
        if self.rules.membership != "batches" and has_batches:
            raise unknown_key([where, "batches"])
        return Roster(
            {name: bytes.fromhex(key) for name, key in self.sites.items()},
            bytes.fromhex(self.coordinator),
            self.rules.rules(),
            self.demonstration,
            bytes.fromhex(self.charter or ""),
            batches=self.batches,
        )


class RostersForm(Form):
    """The file `rosters.json`."""

    rosters: Listed[RosterKeysForm]
