"""Rows of Parquet files and hub sets: only the columns that a row is asked for are converted.

The others are named from the file's own counts of nulls, unread. A column of structs holds null for
every key that a row does not have; those nulls are no part of the row and are taken out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedshield.causes import missing_token
from fedshield.data.remarks import Remarks, named
from fedshield.errors import DataError
from fedshield.model.locate import offline
from fedshield.notes import one_line


def parquet_rows(
    path: Path, name: str, columns: Collection[str], remarks: Remarks
) -> Iterator[tuple[str, Any]]:
    """Place and content of each row, or why it cannot be read (a text). Raises `DataError`."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            listed = one_line(", ".join(names), 160)
            raise DataError(f"{name}: expected every column once, got {listed}; mend it")
        for other in names:
            if other not in columns:
                _name_unused(file, other, name, remarks)
        asked = [other for other in names if other in columns]
        if not asked and file.metadata.num_rows:
            # Without a column there are no rows to refuse: one says what the file has.
            yield f"{name}: row 1", dict.fromkeys(names)
            return
        number = 0
        for batch in file.iter_batches(columns=asked):
            for row in _rows_of(batch):
                number += 1
                yield f"{name}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        problem = one_line(str(error).partition("\n")[0], 160)
        raise DataError(f"{name}: expected a Parquet file, but {problem}; convert it") from None


def _rows_of(batch: Any) -> Iterator[Any]:
    try:
        for row in batch.to_pylist():
            yield _without_nulls(row)
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            yield _one_row(batch.slice(place, 1))


def _one_row(batch: Any) -> Any:
    """The row of a batch of one, or why it cannot be read."""
    row: dict[str, Any] = {}
    for name in batch.schema.names:
        try:
            (row[name],) = batch.column(name).to_pylist()
        except UnicodeDecodeError as error:
            return f"expected UTF-8 text in {one_line(name, 60)}, got other bytes ({error.reason})"
    return _without_nulls(row)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _name_unused(file: Any, column: str, name: str, remarks: Remarks) -> None:
    """Name a column that is not converted, unless it is null (or empty text) in every row."""
    metadata = file.metadata
    places = [
        place
        for place in range(metadata.num_columns)
        if f"{metadata.schema.column(place).path}.".startswith(f"{column}.")
    ]
    values, known, blank = 0, len(places) == 1, True
    for group in range(metadata.num_row_groups):
        for place in places:
            part = metadata.row_group(group).column(place)
            statistics = part.statistics
            if statistics is None or not statistics.has_null_count:
                known, blank = False, False
                continue
            count = metadata.row_group(group).num_rows - statistics.null_count
            nested = metadata.schema.column(place).max_repetition_level > 0
            known = known and not nested
            values += max(count, 0) if not nested else statistics.num_values
            blank = blank and _is_blank(statistics)
    if not blank:
        remarks.unused(named("column", column), name, values if known else None)


def _is_blank(statistics: Any) -> bool:
    """Whether part of a column has no value, or none but empty text."""
    if not statistics.num_values:
        return True
    try:
        return bool(statistics.has_min_max) and statistics.max in ("", b"")
    except UnicodeDecodeError:
        return False


def hub_rows(
    name: str, split: str, key: str, columns: Collection[str], remarks: Remarks
) -> Iterator[tuple[str, Any]]:
    """Place and content of each row of a data set on the hub. Raises `DataError`."""
    import datasets

    try:
        config = datasets.DownloadConfig(local_files_only=offline())
        loaded = datasets.load_dataset(name, split=split, download_config=config)
    except Exception as error:
        if (refused := missing_token(error)) is not None:
            raise DataError(f"{key}: hub data set {name}: {refused}") from None
        first = one_line(str(error).partition("\n")[0], 160)
        hint = (
            "HF_HUB_OFFLINE is set and it is not cached"
            if offline()
            else "check the name, the split and the network"
        )
        raise DataError(
            f"{key}: expected the hub data set {name} (split {split}), got "
            f"{type(error).__name__}: {first}; {hint}"
        ) from None
    names = list(loaded.column_names)
    for other in names:
        if other not in columns:
            table = loaded.data.column(other)
            count = len(table) - table.null_count
            if count:
                remarks.unused(named("column", other), f"hub:{name}", count)
    asked = [other for other in names if other in columns]
    if not asked:
        yield f"hub:{name}: row 1", dict.fromkeys(names)
        return
    rows = iter(loaded.select_columns(asked))
    number = 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise DataError(
                f"hub:{name}: row {number}: expected UTF-8 text, got other bytes "
                f"({error.reason}); mend the set"
            ) from None
        yield f"hub:{name}: row {number}", _without_nulls(row)
