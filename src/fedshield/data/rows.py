"""Rows from files, hub sets and the built-in samples, each with the place it came from.

A row that cannot be used is named by file and line. What happens then is the plan's choice:
`refuse` stops before anything is trained, `skip` leaves it out and counts it.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedshield.causes import missing_token
from fedshield.data import samples
from fedshield.errors import DataError
from fedshield.model.base import offline
from fedshield.model.chat import Message
from fedshield.plan import Plan
from fedshield.plan_data import ColumnsPlan, SourcePlan

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
_PROMPTS = ("instruction", "prompt", "question")
_RESPONSES = ("response", "output", "completion", "answer")
_TURNS = ("messages", "conversations")
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
# A quoted field of a CSV file may be long; its own limit is 128 KiB.
csv.field_size_limit(16 * 1024 * 1024)


@dataclass(frozen=True)
class Row:
    """A usable example. `label`: the value of the column that a Dirichlet split asks for."""

    messages: tuple[tuple[str, str], ...]
    where: str
    label: str

    def as_messages(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True)
class Rows:
    """Rows of one source, and how many were skipped with the first reason why."""

    rows: tuple[Row, ...]
    skipped: int
    first_skipped: str


class _BadRow(Exception):
    pass


def read(
    plan: Plan,
    source: str,
    settings: SourcePlan,
    *,
    key: str,
    on_bad_row: Literal["refuse", "skip"],
    label_column: str | None = None,
) -> Rows:
    """All usable rows of `source`. `key` names the plan key in errors. Raises `DataError`."""
    good: list[Row] = []
    skipped, first = 0, ""
    for where, raw in _raw_rows(plan, source, settings.split, key):
        try:
            if isinstance(raw, _BadRow):
                raise raw
            row = _row(raw, where, settings.columns or ColumnsPlan(), label_column, source)
        except _BadRow as bad:
            if on_bad_row == "refuse":
                raise DataError(
                    f"{where}: {bad}; mend the row, or set data.on_bad_row: skip"
                ) from None
            skipped += 1
            first = first or f"{where}: {bad}"
            continue
        good.append(row)
    if not good:
        raise DataError(
            f"{key}: expected rows in {_line(source)}, got "
            + (f"{skipped} unusable ones ({first})" if skipped else "none")
            + "; check the file and data columns"
        )
    return Rows(tuple(good), skipped, first)


# -- sources -------------------------------------------------------------------------------


def _raw_rows(plan: Plan, source: str, split: str, key: str) -> Iterator[tuple[str, Any]]:
    if source.startswith("sample:"):
        try:
            sample = samples.path(source.removeprefix("sample:"))
        except DataError as error:
            raise DataError(f"{key}: {error}") from None
        yield from _jsonl(sample, source)
    elif source.startswith("hub:"):
        yield from _hub(source.removeprefix("hub:"), split, key)
    else:
        path, shown = plan.resolve(source), _line(source)
        if path.is_dir():
            raise DataError(f"{key}: expected a data file, got the folder {shown}; name a file")
        if not path.exists():
            raise DataError(f"{key}: expected a data file, found none at {shown}; check the path")
        if not path.name.endswith(SUFFIXES):
            raise DataError(
                f"{key}: expected a file ending in {', '.join(SUFFIXES)}, got {_line(path.name)}; "
                "convert it"
            )
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        reader = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[kind]
        yield from reader(path, _line(path.name))


def _lines(path: Path, name: str) -> Iterator[str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: expected UTF-8 text, got other bytes ({error.reason}); convert the file"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read ({error}); check the file") from None


def _jsonl(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path, name), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, _BadRow(f"expected a JSON object, got text that is not JSON ({error})")


def _csv(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(_lines(path, name), strict=True)
    try:
        header = reader.fieldnames or ()
        if len(set(header)) < len(header):
            raise DataError(f"{name}: expected every column once, got {_list(header)}; mend it")
        for row in reader:
            where = f"{name}:{reader.line_num}"
            if None in row or None in row.values():
                yield where, _BadRow(f"expected {len(header)} fields, got another number")
            else:
                yield where, row
    except csv.Error as error:
        raise DataError(
            f"{name}:{reader.line_num}: expected CSV with a header, but {error}; mend the file"
        ) from None


def _parquet(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{name}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        problem = _line(str(error).partition("\n")[0])
        raise DataError(f"{name}: expected a Parquet file, but {problem}; convert it") from None


def _hub(name: str, split: str, key: str) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        config = datasets.DownloadConfig(local_files_only=offline())
        loaded = datasets.load_dataset(name, split=split, download_config=config)
    except Exception as error:
        if (refused := missing_token(error)) is not None:
            raise DataError(f"{key}: hub data set {name}: {refused}") from None
        first = _line(str(error).partition("\n")[0])
        hint = (
            "HF_HUB_OFFLINE is set and it is not cached"
            if offline()
            else "check the name, the split and the network"
        )
        raise DataError(
            f"{key}: expected the hub data set {name} (split {split}), got "
            f"{type(error).__name__}: {first}; {hint}"
        ) from None
    for number, row in enumerate(loaded, start=1):
        yield f"hub:{name}: row {number}", row


# -- forms ---------------------------------------------------------------------------------


def _row(raw: Any, where: str, columns: ColumnsPlan, label_column: str | None, source: str) -> Row:
    if not isinstance(raw, dict):
        raise _BadRow(f"expected an object with named fields, got {type(raw).__name__}")
    label = source
    if label_column is not None:
        if raw.get(label_column) is None:
            raise _BadRow(f"expected the column {label_column} to split by, found none")
        label = str(raw[label_column])
    turns = columns.messages or next((name for name in _TURNS if name in raw), None)
    prompt_given = columns.prompt or columns.response
    if turns is not None and (columns.messages or not prompt_given):
        return Row(_turns(raw, turns), where, label)
    prompt_name = columns.prompt or _first(raw, _PROMPTS, "a prompt")
    response_name = columns.response or _first(raw, _RESPONSES, "a response")
    prompt = _text(raw, prompt_name, required=True)
    extra = _text(raw, columns.input or "input", required=columns.input is not None)
    system = _text(raw, columns.system or "system", required=columns.system is not None)
    response = _text(raw, response_name, required=True)
    user = f"{prompt}\n\n{extra}" if extra else prompt
    messages = [("user", user), ("assistant", response)]
    return Row((("system", system), *messages) if system else tuple(messages), where, label)


def _first(raw: dict[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in raw:
            return name
    raise _BadRow(
        f"expected {what} in one of {', '.join(names)} (or messages), found columns {_list(raw)}"
    )


def _list(names: Iterable[str]) -> str:
    return _line(", ".join(list(names)[:8])) or "none"


def _line(text: str) -> str:
    """Text of a file's or a library's making, as it can stand in a one-line message."""
    return "".join(c if c.isprintable() else "?" for c in text)[:160]


def _text(raw: dict[str, Any], name: str, *, required: bool) -> str:
    value = raw.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise _BadRow(f"expected text in {name}, got {type(value).__name__}")
    if required and not value.strip():
        raise _BadRow(f"expected text in {name}, got an empty one")
    return _unicode(value, name)


def _unicode(text: str, name: str) -> str:
    """The text, stripped. JSON can spell half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadRow(f"expected Unicode text in {name}, got half a surrogate pair") from None
    return text.strip()


def _turns(raw: dict[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    turns = raw.get(name)
    if not isinstance(turns, list) or not turns:
        raise _BadRow(f"expected a list of turns in {name}")
    found: list[tuple[str, str]] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise _BadRow(f"expected role and content in every turn of {name}")
        role = _ROLES.get(str(turn.get("role", turn.get("from"))))
        content = turn.get("content", turn.get("value"))
        if role is None or not isinstance(content, str) or not content.strip():
            raise _BadRow(
                f"expected a known role and some content in every turn of {name}, got role "
                f"{str(turn.get('role', turn.get('from')))[:20]!r}"
            )
        found.append((role, _unicode(content, name)))
    if found[-1][0] != "assistant":
        found = found[: max((k + 1 for k, t in enumerate(found) if t[0] == "assistant"), default=0)]
    if len(found) < 2 or "user" not in {role for role, _ in found}:
        raise _BadRow(f"expected a user's turn and an assistant's answer in {name}")
    return tuple(found)
