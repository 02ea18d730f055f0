"""Where a ledger ends, and where the other sites' ledgers ended when they last signed it.

The others' heads lie beside the ledger, in NAME.peers, and are no part of its chain: whoever begins
sessions chooses how often they come, and a chain must not grow by that. The file is rewritten
whole, belongs to one ledger, and is kept and restored with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedshield.durable import write_atomic
from fedshield.errors import UserError

FORMAT = "fedshield ledger peers 1"
#: What a site does whose ledger is not what it was. There is no way yet to rebuild one, and a new
#: one, for other records too, does not hold what this site signed to its peers.
RESTORE = (
    "restore the ledger's newest backup; if there is none, this site cannot go on, with other "
    "records neither: stop, and ask the other sites"
)


class LedgerError(UserError):
    """A ledger that is missing, damaged, held by another process, or cannot be written."""


class Head(NamedTuple):
    """Where a chain ends: its number of lines, and the digest of the last one, hex."""

    length: int
    digest: str


#: By the first key of a site: the last head that it signed, and the signed statement.
Heads = Mapping[str, tuple[Head, bytes]]


def place_beside(ledger: Path) -> Path:
    """Where the others' heads lie."""
    return ledger.with_name(f"{ledger.name}.peers")


def write(path: Path, ledger: str, heads: Heads) -> None:
    """All heads anew, mode 0600, synced. `ledger`: the digest of the ledger's first line. Raises
    `LedgerError`."""
    rows = {
        name: {"length": head.length, "head": head.digest, "statement": statement.hex()}
        for name, (head, statement) in heads.items()
    }
    entry = {"format": FORMAT, "peers": rows}
    text = json.dumps(entry | {"digest": _digest(ledger, entry)}, sort_keys=True)
    try:
        write_atomic(path, text + "\n", mode=0o600)
    except OSError as error:
        raise LedgerError(
            f"{path}: expected to write what other sites signed, but {error.strerror}; nothing "
            "more was sent; make room and resume"
        ) from None


def read(path: Path, ledger: str, needed: bool) -> dict[str, tuple[Head, bytes]]:
    """What `write` wrote for this ledger; empty where there is no file and none is `needed`. Raises
    `LedgerError` for a file that is missing, damaged or another ledger's."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry.pop("digest") != _digest(ledger, entry) or entry["format"] != FORMAT:
            raise ValueError
        return {
            name: (Head(row["length"], row["head"]), bytes.fromhex(row["statement"]))
            for name, row in entry["peers"].items()
        }
    except FileNotFoundError:
        if not needed:
            return {}
        found = "found none"
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened ({error.strerror}); mend it") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = "got a damaged file or another ledger's"
    raise LedgerError(
        f"{path}: expected what other sites signed, kept with the ledger, {found}; restore this "
        "file alone from its newest backup, and leave the ledger, if it is the right one"
    )


def _digest(ledger: str, entry: Mapping[str, Any]) -> str:
    text = ledger + json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
