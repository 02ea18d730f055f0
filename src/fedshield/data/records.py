"""What makes a raw record the same record again, whatever a plan makes of it.

A record is known by two SHA-256 digests. It is the same record where one of them is the same.

The *source's*: over what the file holds for it, before `columns`, `rows`, `separator`, `encoding`,
the chat template and every cut. Of a text file these are the record's bytes, without white space
around them: a line, an item of a JSON list, the lines of a CSV record. Of Parquet files and hub
sets it is every column that holds text, whichever are asked for. A plan changes it only by an
encoding that is not the file's: one that ends lines elsewhere (cp500) or takes bytes together
(UTF-16) makes other records of the file, of text that nobody wrote. (With an encoding that has two
byte forms for one character, as some East Asian ones, it is over the form that the encoding
writes.)

The *conversation's*: over roles, texts and tools as they are read, before the chat template. So a
record is known again where its operator converts the file, renames, adds or drops a column that
is not read, or moves the row. It changes with the columns that a plan reads: by itself it would
not do.

Else both are new only where the operator rewrites the file and the plan reads other columns too.
The digests are not keyed: whoever has them can try texts. They stay in memory; a ledger keeps keyed
hashes of them, beside the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

_BOM = b"\xef\xbb\xbf"


def raw_text(text: str, codec: str) -> bytes:
    """The bytes that `text` has in a file, without white space around them. `codec`: the name by
    `codecs.lookup` of what the file was read by."""
    # UTF-16 and UTF-32 would begin with a byte order mark of their own each time.
    name = "utf-8" if codec.startswith("utf") else codec
    # A codec that cannot write what it read must not stop a run.
    return text.encode(name, "backslashreplace").removeprefix(_BOM).strip()


def of_source(raw: bytes) -> bytes:
    """The source's digest, 32 bytes, of what the file holds for one record."""
    return hashlib.sha256(b"fedshield record source 1" + raw).digest()


def of_columns(row: Mapping[str, Any]) -> bytes:
    """The source's digest of a row of columns, text in it as bytes. Columns that are null are no
    part of it."""
    held = sorted((name, value) for name, value in row.items() if value is not None)
    return of_source(repr(held).encode("utf-8", "backslashreplace"))


def of_conversation(said: Iterable[tuple[str, str, str]], tools: str) -> bytes:
    """The conversation's digest, 32 bytes. `said`: role, content and the JSON text of the other
    keys of each turn; `tools`: the JSON text of a list, or ''."""
    told = json.dumps(json.loads(tools), sort_keys=True, ensure_ascii=False) if tools else ""
    text = json.dumps([list(said), told], ensure_ascii=False)
    return hashlib.sha256(b"fedshield record conversation 1" + text.encode()).digest()
