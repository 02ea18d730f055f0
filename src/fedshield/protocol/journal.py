"""A site's memory of what it has let out: one upload, one vote, one answer a round, and one
opened set for each base model.

Append-only JSON lines, each synced to disk before the message it speaks of leaves. This is the
one file of the protocol that touches a disk: the rules below hold only if the record survives
a crash. A line that was cut by a crash was never acted on and is dropped; any other damage
makes the site leave the run: each line carries a digest of itself and of the line before, so a
changed, missing or doubled one is noticed (lines lost from the end are not).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from fedshield import interrupt
from fedshield.disk import sync_folder
from fedshield.errors import ProtocolError


class Journal:
    """The journal of one site in one run. Raises `ProtocolError` ('journal') if unreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # (kind, session, round, phase) -> digest of what left.
        self._left: dict[tuple[str, str, int, str], str] = {}
        self._opened: dict[str, list[str]] = {}
        self._chain = ""
        self._broken = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._load()
            path.touch()
            sync_folder(path.parent)
        except OSError as error:
            raise ProtocolError(
                "journal", f"{path.name}: cannot be read or made ({error.strerror})"
            ) from None

    def _load(self) -> None:
        data = self._path.read_bytes()
        *lines, cut = data.split(b"\n")
        try:
            for line in lines:
                record = json.loads(line)
                if record.pop("check") != self._check(record):
                    raise ValueError
                self._apply(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ProtocolError(
                "journal", f"{self._path.name}: damaged; the site cannot tell what it has sent"
            ) from None
        if cut:  # written but not completed before a crash: nothing left on its account
            with self._path.open("r+b") as file:
                file.truncate(len(data) - len(cut))
                os.fsync(file.fileno())

    def _check(self, record: dict[str, object]) -> str:
        text = self._chain + json.dumps(record, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _apply(self, record: dict[str, object]) -> None:
        self._chain = self._check(record)
        kind = str(record["kind"])
        if kind not in ("upload", "vote", "answer"):
            raise KeyError(kind)
        key = (kind, str(record["session"]), int(str(record["round"])), str(record["phase"]))
        self._left[key] = str(record["digest"])
        if kind == "vote":
            contributors = record["contributors"]
            if not isinstance(contributors, list):
                raise TypeError
            self._opened[str(record["base"])] = [str(name) for name in contributors]

    def _append(self, record: dict[str, object]) -> None:
        if self._broken:
            raise ProtocolError(
                "journal", f"{self._path.name}: a line could not be written before; leave the run"
            )
        line = json.dumps({**record, "check": self._check(record)}, sort_keys=True) + "\n"
        with interrupt.held():
            self._write(line)
            self._apply(record)

    def _write(self, line: str) -> None:
        # Until it is known to be on disk, nobody can tell what the file holds.
        self._broken = True
        try:
            with self._path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ProtocolError(
                "journal",
                f"{self._path.name}: expected to write a line, but {error.strerror}; nothing was "
                "sent; make room and resume",
            ) from None
        self._broken = False

    def upload(self, session: bytes, round_number: int, phase: str, digest: bytes) -> None:
        """Record an upload, before it leaves. A second, different one in the same session, round
        and phase raises 'repeated'."""
        self._once("upload", session, round_number, phase, digest, {})

    def vote(
        self,
        session: bytes,
        round_number: int,
        phase: str,
        digest: bytes,
        base: str,
        contributors: list[str],
    ) -> None:
        """Record a vote to open the sum over `contributors`, before it leaves. `base`: the
        digest of the model that the round started from. A second vote, or a different set from
        the same base, raises 'repeated': the difference of two such sums would be the
        difference of the sets. A vote binds even if the round fails after it."""
        known = self._opened.get(base)
        if known is not None and known != sorted(contributors):
            raise ProtocolError(
                "repeated", f"a sum over {', '.join(known)} was voted for from this model already"
            )
        more: dict[str, object] = {"base": base, "contributors": sorted(contributors)}
        self._once("vote", session, round_number, phase, digest, more)

    def answer(self, session: bytes, round_number: int, phase: str, digest: bytes) -> None:
        """Record an answer, before it leaves. A second, different one raises 'repeated'."""
        self._once("answer", session, round_number, phase, digest, {})

    def num_uploads(self, phase: str) -> int:
        """Uploads of this phase that left, or were about to, in all sessions of the run."""
        return sum(kind == "upload" and where == phase for kind, _, _, where in self._left)

    def bound(self, base: str) -> tuple[str, ...]:
        """The only set that may still be opened from `base`; empty if any may."""
        return tuple(self._opened.get(base, ()))

    def _once(
        self,
        kind: str,
        session: bytes,
        round_number: int,
        phase: str,
        digest: bytes,
        more: dict[str, object],
    ) -> None:
        known = self._left.get((kind, session.hex(), round_number, phase))
        if known is not None and known != digest.hex():
            raise ProtocolError(
                "repeated", f"round {round_number} ({phase}): another {kind} has been sent"
            )
        if known is None:
            self._append(
                {
                    "kind": kind,
                    "session": session.hex(),
                    "round": round_number,
                    "phase": phase,
                    "digest": digest.hex(),
                    **more,
                }
            )
