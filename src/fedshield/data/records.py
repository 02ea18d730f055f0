"""What makes a raw record the same record again, whatever a plan says of columns and cuts.

A record is known by a digest of each text in it that is long enough to be its own, and by one of
all its fields. So it is known again when a plan reads other columns of it, when its row moves, and
when a column is added or dropped. Two records that share such a text count as one body of records:
that errs on the safe side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

#: Characters of a text that is taken for a record's own. Shorter ones are labels and dates.
MIN_TEXT = 16
_LABEL = b"fedshield record 1"


def digests(fields: Mapping[str, Any]) -> frozenset[bytes]:
    """SHA-256 digests, 32 bytes each, by which the record with these fields is known again.

    They are not keyed: they stay in memory (`ledger.rows.record_hash` keys them)."""
    found = {_digest("text", text) for text in _texts(fields) if len(text) >= MIN_TEXT}
    whole = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str)
    return frozenset(found | {_digest("fields", whole)})


def _digest(kind: str, text: str) -> bytes:
    return hashlib.sha256(_LABEL + kind.encode() + b"\0" + text.encode("utf-8", "replace")).digest()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, without the white space around it."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
