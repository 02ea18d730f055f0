"""Where a ledger ends, where the other sites' ledgers ended when they last signed it, and by which
keys each site was known.

The others' heads lie beside the ledger, in NAME.peers, and are no part of its chain: whoever begins
sessions chooses how often they come, and a chain must not grow by that. The file is rewritten
whole, belongs to one ledger, and is kept and restored with it.

A site is known by the first key of its card, and each key names the next. Whoever holds an old key
can sign another successor with it, a fork. So the keys that a site had are remembered, and those
that come must go on from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedshield.disk import write_atomic
from fedshield.errors import UserError

FORMAT = "fedshield ledger peers 2"
#: No ledger has more lines: at one a second it would be 136 years old. A longer head is a lie.
MAX_LINES = 2**32
#: Lines by which a rebuilt ledger goes on beyond the last lost one that anyone told of: more than a
#: site ever writes unseen, so that no head of the lost one that somebody kept back is a later one.
GAP = 2**20
#: What a site does whose ledger is not what it was. A new one, for other records too, does not hold
#: what this site signed to its peers.
RESTORE = (
    "restore the ledger's newest backup; if that is lost, the rest can be rebuilt upon any older "
    "copy from what the other sites remember (fedshield site ledger ask --kit KIT); without a copy "
    "this site cannot go on, with other records neither: stop, and ask the other sites"
)


class LedgerError(UserError):
    """A ledger that is missing, damaged, held by another process, or cannot be written."""


class Head(NamedTuple):
    """Where a chain ends: its number of lines, and the digest of the last one, hex."""

    length: int
    digest: str


#: By the first key of a site: the last head that it signed, and the signed statement.
Heads = Mapping[str, tuple[Head, bytes]]
#: By the first key of a site: every key that it had in the last roster, the first one first, hex.
Chains = Mapping[str, tuple[str, ...]]


def place_beside(ledger: Path) -> Path:
    """Where the others' heads lie."""
    return ledger.with_name(f"{ledger.name}.peers")


def place_question(ledger: Path) -> Path:
    """Where the number of the question lies while the ledger is lost (`question`)."""
    return ledger.with_name(f"{ledger.name}.question")


def to_chains(keys: Mapping[str, Sequence[bytes]]) -> dict[str, tuple[str, ...]]:
    """`keys`: by a site's name, its public keys, the first one first.

    >>> to_chains({"bank": (bytes([170]), bytes([187]))})
    {'aa': ('aa', 'bb')}
    """
    chains = [tuple(key.hex() for key in chain) for chain in keys.values()]
    return {chain[0]: chain for chain in chains}


def forked(known: Chains, keys: Mapping[str, Sequence[bytes]]) -> str:
    """Why these keys of sites (by name) do not go on from those that are known; '' if they do.

    >>> old, new, other = bytes([170]), bytes([187]), bytes([204])
    >>> forked({"aa": ("aa", "bb")}, {"bank": (old, new, other)})
    ''
    >>> forked({"aa": ("aa", "bb")}, {"bank": (old, other)})[:42]
    'expected the keys of bank to begin with th'
    """
    for site, chain in keys.items():
        before = known.get(chain[0].hex(), ())
        now = tuple(key.hex() for key in chain)
        if now[: len(before)] != before:
            return (
                f"expected the keys of {site} to begin with the {len(before)} that this ledger "
                f"remembers, up to {before[-1][:16]}, got {len(now)} up to {now[-1][:16]}: an "
                f"older roster, or a card that somebody made with an old key of {site}; put the "
                f"roster of today in place, or ask {site}'s operator over a channel that the "
                "coordinator does not carry"
            )
    return ""


def write(path: Path, ledger: str, heads: Heads, chains: Chains) -> None:
    """All anew, mode 0600, synced.

    Args:
        path: of the file beside the ledger.
        ledger: SHA-256, hex, of the ledger's first line.
        heads: the last heads of other sites.
        chains: the keys of other sites.

    Raises:
        LedgerError: where it cannot be written.
    """
    rows = {
        name: {"length": head.length, "head": head.digest, "statement": statement.hex()}
        for name, (head, statement) in heads.items()
    }
    entry = {"format": FORMAT, "peers": rows, "chains": {name: [*c] for name, c in chains.items()}}
    text = json.dumps(entry | {"digest": digest_after(ledger, entry)}, sort_keys=True)
    try:
        write_atomic(path, text + "\n", mode=0o600)
    except OSError as error:
        raise LedgerError(
            f"{path}: expected to write what other sites signed, but {error.strerror}; nothing "
            "more was sent; make room and resume"
        ) from None


def read(
    path: Path, ledger: str, needed: bool
) -> tuple[dict[str, tuple[Head, bytes]], dict[str, tuple[str, ...]]]:
    """What `write` wrote for this ledger.

    Args:
        path: of the file beside the ledger.
        ledger: SHA-256, hex, of the ledger's first line.
        needed: whether the file must be there.

    Returns:
        Heads and chains; empty where there is no file and none is needed.

    Raises:
        LedgerError: for a file that is missing, damaged or another ledger's.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry.pop("digest") != digest_after(ledger, entry) or entry["format"] != FORMAT:
            raise ValueError
        peers = {
            name: (Head(row["length"], row["head"]), bytes.fromhex(row["statement"]))
            for name, row in entry["peers"].items()
        }
        return peers, {name: tuple(chain) for name, chain in entry["chains"].items()}
    except FileNotFoundError:
        if not needed:
            return {}, {}
        found = "found none"
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened ({error.strerror}); mend it") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = "got a damaged file, another ledger's, or one of an earlier version"
    raise LedgerError(
        f"{path}: expected what other sites signed, kept with the ledger, {found}; restore this "
        "file alone from its newest backup, and leave the ledger, if it is the right one"
    )


def digest_after(before: str, entry: Mapping[str, Any]) -> str:
    """SHA-256, hex, of an entry that follows a digest: of a ledger's line, and of what lies beside
    one. The order of its keys means nothing.

    >>> digest_after("", {"a": 1, "b": 2}) == digest_after("", {"b": 2, "a": 1})
    True
    """
    text = before + json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
