"""Rows of text files: JSON lines, JSON lists and CSV, in any encoding that the plan names, gzipped
or not. Beside each row stands the digest of the bytes that the file holds for it (`records`).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedshield.data import records
from fedshield.errors import DataError
from fedshield.notes import one_line

#: Place, content and source's digest of a row; `BadRow` in place of a content that cannot be used.
RawRow = tuple[str, Any, bytes]
_SEPARATORS = {";": '";"', "\t": "tab", "|": '"|"'}
_SPACE = re.compile(r"[ \t\r\n]*")
# A quoted field of a CSV file may be long; its own limit is 128 KiB.
csv.field_size_limit(16 * 1024 * 1024)


class BadRow(Exception):
    """Why a row cannot be used, in words that follow its place."""


class _TwiceGiven(ValueError):
    pass


def _opener(path: Path) -> Callable[..., Any]:
    return gzip.open if path.suffix.lower() == ".gz" else open


def _lines(path: Path, name: str, encoding: str) -> Iterator[str]:
    codec = codecs.lookup(encoding).name
    first = True
    try:
        with _opener(path)(path, "rt", encoding=encoding, newline="") as file:
            for line in file:
                text = line.removeprefix("\ufeff") if first else line
                first = False
                if "\0" in text:
                    raise DataError(
                        f"{name}: expected text in {codec}, got NUL characters; set encoding: "
                        "utf-16 (or utf-16-le, utf-32) beside the source"
                    )
                yield text
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{name}: expected {codec.upper()} text, got other bytes ({reason}); "
            f"set encoding: {_guess(path)} beside the source, or convert the file"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read ({error}); check the file") from None


def _guess(path: Path) -> str:
    """The encoding that a file which is not UTF-8 most likely has."""
    with _opener(path)(path, "rb") as file:
        begin = file.read(64)
    if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if b"\0" in begin:
        return "utf-16-le (or utf-16-be)"
    return "cp1252 (or latin-1)"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceGiven(f"the key {one_line(twice, 60)!r} is given twice in one object")
    return fields


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def parse_json(text: str) -> Any:
    """What a JSON text says; NaN is null. Raises `ValueError`, also for a key that is given
    twice in one object, of which Python would keep the last, and `RecursionError`."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def json_lines(path: Path, name: str, encoding: str) -> Iterator[RawRow]:
    """One object a line. `name`: of the file, for places and errors. Raises `DataError`."""
    yield from _each_line(_lines(path, name, encoding), name, encoding)


def _each_line(lines: Iterable[str], name: str, encoding: str) -> Iterator[RawRow]:
    codec = codecs.lookup(encoding).name
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        record = records.of_source(records.raw_text(line, codec))
        try:
            yield where, parse_json(line), record
        except _TwiceGiven as error:
            yield where, BadRow(f"expected every key once, but {error}"), record
        except (ValueError, RecursionError) as error:
            bad = BadRow(f"expected a JSON object, got text that is not JSON ({error})")
            yield where, bad, record


def json_list(path: Path, name: str, encoding: str) -> Iterator[RawRow]:
    """A list of objects, or, as many files are named so, one object a line. Raises `DataError`."""
    lines = list(_lines(path, name, encoding))
    begin = next((line.strip()[0] for line in lines if line.strip()), "")
    if begin != "[":
        _check_lines(lines, name)
        yield from _each_line(lines, name, encoding)
        return
    codec = codecs.lookup(encoding).name
    try:
        items = _items("".join(lines))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: expected a JSON list of objects, but {error or 'it is nested too deeply'}; "
            "mend the file"
        ) from None
    for number, (row, text) in enumerate(items, start=1):
        yield f"{name}: row {number}", row, records.of_source(records.raw_text(text, codec))


def _items(text: str) -> list[tuple[Any, str]]:
    """The items of a JSON list, each with its text. Raises `ValueError` and `RecursionError`."""
    items: list[tuple[Any, str]] = []
    at = _after_space(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        at += 1
    else:
        while True:
            item, end = _DECODER.raw_decode(text, at)
            items.append((item, text[at:end]))
            at = _after_space(text, end) + 1
            mark = text[at - 1 : at]
            if mark == "]":
                break
            if mark != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at - 1)
            at = _after_space(text, at)
    if _after_space(text, at) < len(text):
        raise json.JSONDecodeError("Extra data", text, _after_space(text, at))
    return items


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _check_lines(lines: list[str], name: str) -> None:
    """Refuse a single object over several lines, none of which is a row. Raises `DataError`."""
    first = next((line for line in lines if line.strip()), "")
    try:
        json.loads(first)
        return
    except (ValueError, RecursionError):
        pass  # no row in one line
    try:
        whole = json.loads("".join(lines))
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict):
        keys = one_line(", ".join(whole), 80)
        raise DataError(
            f"{name}: expected a JSON list of objects, or an object a line, got one object over "
            f"several lines (keys {keys}); write the list of rows alone"
        )


class _Taken:
    """The lines of a CSV file as its reader takes them, and the bytes of those since `record`.

    Quotes stand in pairs in a whole record. So its lines are told by the file alone, whatever
    `separator` a plan has the reader take for the one between columns."""

    def __init__(self, lines: Iterator[str], encoding: str) -> None:
        self._lines = lines
        self._codec = codecs.lookup(encoding).name
        self._raw: list[bytes] = []
        self.open = False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            raw = records.raw_text(line, self._codec)
            self.open ^= raw.count(b'"') % 2 == 1
            self._raw.append(raw)
            yield line

    def record(self) -> bytes:
        """The digest of the lines since the last."""
        raw = b"\n".join(self._raw).strip()
        self._raw.clear()
        return records.of_source(raw)


def csv_rows(path: Path, name: str, encoding: str, separator: str) -> Iterator[RawRow]:
    """Rows below a header. `name`: of the file, for places and errors. Raises `DataError`."""
    taken = _Taken(_lines(path, name, encoding), encoding)
    reader = csv.DictReader(taken, strict=True, delimiter=separator)
    waiting: list[tuple[str, Any]] = []
    try:
        header = reader.fieldnames or ()
        if len(set(header)) < len(header):
            listed = one_line(", ".join(header), 160)
            raise DataError(f"{name}: expected every column once, got {listed}; mend it")
        if len(header) == 1:
            _check_separator(header[0], name, separator)
        if not taken.open:
            taken.record()  # the header's, which is no row's
        for row in reader:
            fields: Any = row
            if None in row or None in row.values():
                fields = BadRow(f"expected {len(header)} fields, got another number")
            waiting.append((f"{name}:{reader.line_num}", fields))
            if not taken.open:
                record = taken.record()
                yield from ((where, row, record) for where, row in waiting)
                waiting.clear()
    except csv.Error as error:
        # `line_num` is where the last whole row ended.
        raise DataError(
            f"{name}:{reader.line_num + 1}: expected CSV in the row that begins here, but {error}; "
            "mend it: a field with a quote in it stands in quotes, the inner ones twice"
        ) from None
    # A quote within a field without quotes, which the reader takes as it stands.
    record = taken.record()
    yield from ((where, row, record) for where, row in waiting)


def _check_separator(header: str, name: str, separator: str) -> None:
    others = {**_SEPARATORS, ",": '","'}
    likely = next((mark for mark in others if mark in header and mark != separator), None)
    if likely is not None:
        raise DataError(
            f"{name}: expected columns with {others.get(separator, repr(separator))} between "
            f"them, got a single one, {one_line(header, 60)!r}; set separator: {others[likely]} "
            "beside the source"
        )
