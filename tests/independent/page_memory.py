"""docs/protocol.md, section 8: what a site remembers, from the page alone. The journal's rules and
those of the ledger that bear on membership `fixed` without a `privacy.unit`."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from page_wire import LABELS, Refused, decode, encode, sha256

FORMAT = "fedshield ledger 1"


class Chain:
    """Lines of JSON, each with a digest over the line before's and its own, synced. `done` is
    called with each, old and new."""

    def __init__(self, path: Path, start: str, done: Callable[[dict[str, Any]], None]) -> None:
        self._path, self.digests, self._done = path, [start], done
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            entry = json.loads(line)
            if entry.pop("digest") != self._digest(entry):
                raise Refused("journal: a damaged file")
            self._take(entry)

    def _digest(self, entry: Mapping[str, Any]) -> str:
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        return sha256((self.digests[-1] + text).encode()).hex()

    def _take(self, entry: dict[str, Any]) -> None:
        self.digests.append(self._digest(entry))
        self._done(entry)

    def add(self, entry: dict[str, Any]) -> None:
        whole = {**entry, "digest": self._digest(entry)}
        with self._path.open("a") as file:
            file.write(json.dumps(whole, sort_keys=True, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(entry)


class Journal:
    """One upload, vote and answer a session, round and phase; one set from a base."""

    def __init__(self, path: Path) -> None:
        self._left: dict[str, str] = {}
        self._sets: dict[str, list[str]] = {}
        self._chain = Chain(path, "", self._take)

    def _take(self, entry: Mapping[str, Any]) -> None:
        self._left[entry["of"]] = entry["what"]
        if "base" in entry:
            self._sets[entry["base"]] = entry["sites"]

    def once(
        self, kind: str, of: tuple[str, int, str], what: bytes, base: str = "", sites: Any = ()
    ) -> None:
        """Before it leaves. `of`: session, round and phase."""
        known, own = f"{kind} {of}", what.hex()
        if self._left.get(known, own) != own:
            raise Refused(f"repeated: another {kind} has been sent")
        if base and self._sets.get(base, sorted(sites)) != sorted(sites):
            raise Refused("repeated: another set was voted for from this model")
        if known not in self._left:
            more = {"base": base, "sites": sorted(sites)} if base else {}
            self._chain.add({"of": known, "what": own} | more)

    def bound(self, base: str) -> list[str]:
        return self._sets.get(base, [])


class Ledger:
    """Rows, receipts and heads of one body of records. `key`: of the site; `sources`, `rows`:
    digests of the records that it trains on, and of what is read of them."""

    def __init__(
        self, path: Path, name: str, key: Ed25519PrivateKey, sources: bytes, rows: bytes
    ) -> None:
        self._name, self._key = name, key
        self.rows: list[dict[str, Any]] = []
        self.receipts: dict[str, str] = {}
        self.certified: dict[str, str] = {}
        self._approved: dict[str, dict[str, Any]] = {}
        self._record_key = b""
        #: Site -> the last statement of its head.
        self.peers: dict[str, bytes] = {}
        self._chain = Chain(path, FORMAT, self._take)
        if not self._record_key:
            self._chain.add({"kind": "begun", "format": FORMAT, "record_key": os.urandom(32).hex()})
        parts = (b"fedshield ledger sources 1" + sources, b"fedshield ledger rows 1" + rows)
        self.version = b"".join(hmac.digest(self._record_key, part, "sha256") for part in parts)

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "begun":
            self._record_key = bytes.fromhex(entry["record_key"])
        elif entry["kind"] == "approval":
            self._approved[entry["plan"]] = entry
        elif entry["kind"] == "row":
            self.rows.append(entry)
        else:
            kept = self.certified if entry["kind"] == "certified" else self.receipts
            kept[entry["of"]] = entry["result"]

    def approve(self, plan: str, roster: str, rounds: int) -> None:
        entry = {"kind": "approval", "plan": plan, "roster": roster, "rounds": rounds}
        if self._approved.get(plan) != entry:
            self._chain.add(entry)

    def enter(self, row: dict[str, Any], roster: str, everyone: list[str], first: str) -> None:
        """The row of a sum, before its upload leaves; `first`: what the plan starts from."""
        approval = self._approved.get(row["plan"])
        if approval is None or approval["roster"] != roster or row["round"] > approval["rounds"]:
            raise Refused("rule: R8: not approved")
        starts = {first, *(self.receipts | self.certified).values()}
        if row["round"] and row["base"] not in starts:
            raise Refused("rule: R7: a start that is not this ledger's")
        if row["sites"] != everyone:
            raise Refused("rule: R1: not the whole roster")
        for other in self.rows:
            same = [other[name] == row[name] for name in ("plan", "round", "phase")]
            if all(same) and other != row:
                raise Refused("rule: R4: this sum was tried before with something else")
            self._check_part(row["versions"], other["versions"], everyone)
        self._chain.add(row)

    def _check_part(
        self, now: Mapping[str, str], before: Mapping[str, str], everyone: list[str]
    ) -> None:
        """R3, of the records and of the rows, where the rows changed here."""
        if before[self._name][64:] == now[self._name][64:]:
            return
        for half in (slice(0, 64), slice(64, 128)):
            kept = [site for site in everyone if now[site][half] == before[site][half]]
            if kept and self._name not in kept:
                raise Refused("rule: R3: this site changed what others kept")

    def sign_receipt(self, of: str, result: str) -> None:
        """One for each sum, for ever."""
        if self.receipts.get(of, result) != result:
            raise Refused("disagree: R4: another result was signed")
        if of not in self.receipts:
            self._chain.add({"kind": "receipt", "of": of, "result": result})

    def certify(self, of: str, result: str) -> None:
        """A result that is taken by others' receipts, in place of what this site signed for."""
        if self.certified.get(of, result) != result:
            raise Refused("disagree: R4: another result was certified")
        if of not in self.certified:
            self._chain.add({"kind": "certified", "of": of, "result": result})

    # -- heads -------------------------------------------------------------------------------

    def statement(self) -> bytes:
        length, digest = len(self._chain.digests) - 1, bytes.fromhex(self._chain.digests[-1])
        signature = self._key.sign(encode([LABELS["head"].decode(), length, digest]))
        return encode([length, digest, signature])

    def compare(
        self, name: str, joins: Mapping[str, Mapping[str, Any]], keys: Mapping[str, bytes]
    ) -> None:
        """Of all joins of a session."""
        for site, join in joins.items():
            now = read_head(join["head"], keys[site])
            if now is None:
                raise Refused(f"ledger: {site} did not sign its head")
            told = [other["heads"].get(site, b"") for one, other in joins.items() if one != site]
            earlier = [head for one in told if (head := read_head(one, keys[site])) is not None]
            for length, digest in earlier:
                if site == name:
                    if self._chain.digests[length : length + 1] != [digest.hex()]:
                        raise Refused("ledger: this one does not hold what it signed")
                elif (length, digest) != now and length >= now[0]:
                    raise Refused(f"ledger: {site} goes back")
            if len(set(earlier)) > len({length for length, _ in earlier}):
                raise Refused(f"ledger: {site} signed two heads of one length")
            if site != name:
                self.see(site, join["head"], keys[site])

    def see(self, site: str, statement: bytes, key: bytes) -> None:
        now = read_head(statement, key)
        if now is None:
            raise Refused(f"ledger: {site} did not sign its head")
        before = read_head(self.peers.get(site, b""), key)
        if before is not None and before != now and before[0] >= now[0]:
            raise Refused(f"ledger: {site} goes back")
        self.peers[site] = statement


def read_head(statement: bytes, key: bytes) -> tuple[int, bytes] | None:
    """Length and digest, if `key` signed them."""
    try:
        length, digest, signature = decode(statement)
        message = encode([LABELS["head"].decode(), length, digest])
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (Refused, ValueError, TypeError, AttributeError, InvalidSignature):
        return None
    return (length, digest) if 0 < length <= 2**32 else None
