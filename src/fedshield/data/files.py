"""Raw rows of a source, one mapping each with the place it came from and a digest of what the
source holds for it (`records`).

Text files, Parquet, hub sets and the built-in samples. A row that cannot be read comes as a
`BadRow`; a file that cannot be read is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from fedshield.data import samples
from fedshield.data.columnar import hub_rows, parquet_rows
from fedshield.data.remarks import Remarks
from fedshield.data.text_files import BadRow, RawRow, csv_rows, json_lines, json_list
from fedshield.errors import DataError
from fedshield.notes import one_line
from fedshield.plan import paths
from fedshield.plan.data import SourcePlan

_JSON = (".jsonl", ".json")
_TABLES = (".csv", ".tsv")
SUFFIXES = (
    *(suffix + end for suffix in (*_JSON, *_TABLES) for end in ("", ".gz")),
    ".parquet",
)


def raw_rows(
    base_dir: Path,
    source: str,
    settings: SourcePlan,
    *,
    key: str,
    columns: Collection[str],
    remarks: Remarks,
) -> Iterator[RawRow]:
    """Place, content and digest of every row of `source`, which `settings` are about.

    Args:
        base_dir: what a relative path of `source` starts from.
        key: the plan key of `source`, for errors.
        columns: the names that a row is asked for. Of Parquet files and hub sets a row has no
            other column; its digest is over those with text all the same.
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
        yield from json_lines(sample, source, "utf-8")
        return
    if source.startswith("hub:"):
        name = source.removeprefix("hub:")
        yield from hub_rows(name, settings.split, key, columns, remarks)
        return
    path = _file(base_dir, source, key)
    shown = one_line(path.name)
    if path.name.lower().endswith(".parquet"):
        for where, row, record in parquet_rows(path, shown, columns, remarks):
            yield where, BadRow(row) if isinstance(row, str) else row, record
        return
    encoding, kind = settings.encoding or "utf-8", _kind(path.name)
    if kind == ".jsonl":
        yield from json_lines(path, shown, encoding)
    elif kind == ".json":
        yield from json_list(path, shown, encoding)
    else:
        separator = {"tab": "\t", None: "\t" if kind == ".tsv" else ","}.get(
            settings.separator, settings.separator
        )
        yield from csv_rows(path, shown, encoding, str(separator))


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


def _file(base_dir: Path, source: str, key: str) -> Path:
    path, shown = paths.resolve(source, base_dir), one_line(source)
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
