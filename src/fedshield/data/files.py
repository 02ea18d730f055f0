"""Raw rows of a source, one mapping each with the place it came from.

JSON lines, JSON lists and CSV, in any encoding that the plan names, gzipped or not; Parquet, hub
sets and the built-in samples. A row that cannot be read comes as a `BadRow`; a file that cannot be
read is a `DataError`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedshield.data import samples
from fedshield.data.columnar import hub_rows, parquet_rows
from fedshield.data.remarks import Remarks
from fedshield.errors import DataError
from fedshield.notes import one_line
from fedshield.plan import Plan
from fedshield.plan_data import SourcePlan

_JSON = (".jsonl", ".json")
_TABLES = (".csv", ".tsv")
SUFFIXES = (
    *(suffix + end for suffix in (*_JSON, *_TABLES) for end in ("", ".gz")),
    ".parquet",
)
_SEPARATORS = {";": '";"', "\t": "tab", "|": '"|"'}
# A quoted field of a CSV file may be long; its own limit is 128 KiB.
csv.field_size_limit(16 * 1024 * 1024)

RawRows = Iterator[tuple[str, Any]]


class BadRow(Exception):
    """Why a row cannot be used, in words that follow its place."""


class _TwiceGiven(ValueError):
    pass


def raw_rows(
    plan: Plan,
    source: str,
    settings: SourcePlan,
    *,
    key: str,
    columns: Collection[str],
    remarks: Remarks,
) -> RawRows:
    """Place and content of every row of `source`, which `settings` are about.

    Args:
        key: the plan key of `source`, for errors.
        columns: the names that a row is asked for. Of Parquet files and hub sets no other column
            is converted.
        remarks: told of what is not used.

    Raises:
        DataError: the source cannot be read, or a setting does not belong to it.
    """
    _check_settings(settings, key, remarks)
    if source.startswith("sample:"):
        try:
            sample = samples.path(source.removeprefix("sample:"))
        except DataError as error:
            raise DataError(f"{key}: {error}") from None
        yield from _json_lines(_lines(sample, source, "utf-8"), source)
        return
    if source.startswith("hub:"):
        name = source.removeprefix("hub:")
        yield from hub_rows(name, settings.split, key, columns, remarks)
        return
    path = _file(plan, source, key)
    shown = one_line(path.name)
    if path.name.lower().endswith(".parquet"):
        for where, row in parquet_rows(path, shown, columns, remarks):
            yield where, BadRow(row) if isinstance(row, str) else row
        return
    lines = _lines(path, shown, settings.encoding or "utf-8")
    kind = _kind(path.name)
    if kind == ".jsonl":
        yield from _json_lines(lines, shown)
    elif kind == ".json":
        yield from _json_list(lines, shown)
    else:
        separator = {"tab": "\t", None: "\t" if kind == ".tsv" else ","}.get(
            settings.separator, settings.separator
        )
        yield from _csv(lines, shown, str(separator))


def _kind(name: str) -> str:
    """The last suffix of a name in small letters, without `.gz`."""
    stem, dot, suffix = name.lower().removesuffix(".gz").rpartition(".")
    return dot + suffix if stem else name


def _check_settings(settings: SourcePlan, key: str, remarks: Remarks) -> None:
    """A setting that no source of the site takes is refused, or named where another party's copy
    of the source may take it."""
    sources = [settings.source, *([settings.heldout_source] if settings.heldout_source else [])]
    files = [name for name in sources if not name.startswith(("sample:", "hub:"))]
    kinds = {_kind(name) for name in files}
    prefix = key.rpartition(".")[0] or key
    if settings.separator is not None and not kinds & set(_TABLES):
        raise DataError(
            f"{prefix}.separator: expected a .csv or .tsv source for it, got "
            f"{one_line(_shown(settings.source))}; leave the key out"
        )
    if settings.encoding is not None and not kinds & {*_TABLES, *_JSON}:
        raise DataError(
            f"{prefix}.encoding: expected a JSON or CSV source for it, got "
            f"{one_line(_shown(settings.source))}; leave the key out"
        )
    if settings.split != "train" and len(files) == len(sources):
        remarks.say(f"split {one_line(settings.split)!r} is not used: the source is no hub set")


def _shown(source: str) -> str:
    return source if ":" in source else Path(source).name


def is_data_file(path: Path) -> bool:
    """Whether its name ends as that of a file that can be read here, in whatever letters."""
    return path.name.lower().endswith(SUFFIXES)


def _file(plan: Plan, source: str, key: str) -> Path:
    path, shown = plan.resolve(source), one_line(source)
    if path.is_dir():
        raise DataError(f"{key}: expected a data file, got the folder {shown}; name a file")
    if not path.exists():
        raise DataError(f"{key}: expected a data file, found none at {shown}; check the path")
    if not is_data_file(path):
        raise DataError(
            f"{key}: expected a file ending in {', '.join(SUFFIXES)}, got {one_line(path.name)}; "
            "convert it"
        )
    return path


# -- text ----------------------------------------------------------------------------------


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


def parse_json(text: str) -> Any:
    """What a JSON text says; NaN is null. Raises `ValueError`, also for a key that is given
    twice in one object, of which Python would keep the last, and `RecursionError`."""
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_constant=lambda name: None if name == "NaN" else float(name),
    )


def _json_lines(lines: Iterable[str], name: str) -> RawRows:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, parse_json(line)
        except _TwiceGiven as error:
            yield where, BadRow(f"expected every key once, but {error}")
        except (ValueError, RecursionError) as error:
            yield where, BadRow(f"expected a JSON object, got text that is not JSON ({error})")


def _json_list(lines: Iterable[str], name: str) -> RawRows:
    """A list of objects, or, as many files are named so, one object a line."""
    all_lines = list(lines)
    begin = next((line.strip()[0] for line in all_lines if line.strip()), "")
    if begin != "[":
        _check_lines(all_lines, name)
        yield from _json_lines(all_lines, name)
        return
    try:
        rows = parse_json("".join(all_lines))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: expected a JSON list of objects, but {error or 'it is nested too deeply'}; "
            "mend the file"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{name}: row {number}", row


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


def _csv(lines: Iterable[str], name: str, separator: str) -> RawRows:
    reader = csv.DictReader(lines, strict=True, delimiter=separator)
    try:
        header = reader.fieldnames or ()
        if len(set(header)) < len(header):
            listed = one_line(", ".join(header), 160)
            raise DataError(f"{name}: expected every column once, got {listed}; mend it")
        if len(header) == 1:
            _check_separator(header[0], name, separator)
        for row in reader:
            where = f"{name}:{reader.line_num}"
            if None in row or None in row.values():
                yield where, BadRow(f"expected {len(header)} fields, got another number")
            else:
                yield where, row
    except csv.Error as error:
        # `line_num` is where the last whole row ended.
        raise DataError(
            f"{name}:{reader.line_num + 1}: expected CSV in the row that begins here, but {error}; "
            "mend it: a field with a quote in it stands in quotes, the inner ones twice"
        ) from None


def _check_separator(header: str, name: str, separator: str) -> None:
    others = {**_SEPARATORS, ",": '","'}
    likely = next((mark for mark in others if mark in header and mark != separator), None)
    if likely is not None:
        raise DataError(
            f"{name}: expected columns with {others.get(separator, repr(separator))} between "
            f"them, got a single one, {one_line(header, 60)!r}; set separator: {others[likely]} "
            "beside the source"
        )
