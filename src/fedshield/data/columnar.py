"""Rows of Parquet files and hub sets: a row has the columns that it is asked for.

The others are named from the file's own counts of nulls. Those that hold text are read all the
same, as bytes, for the digest of the raw record (`records`): whichever are asked for, it is one.
A column of structs holds null for every key that a row does not have; those nulls are no part of
the row and are taken out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedshield.causes import missing_token
from fedshield.data import records
from fedshield.data.remarks import Remarks, named
from fedshield.errors import DataError
from fedshield.model.locate import offline
from fedshield.notes import one_line

#: Rows that are converted at a time: a column that nobody asked for may hold whole documents.
BATCH_ROWS = 1024


def parquet_rows(
    path: Path, name: str, columns: Collection[str], remarks: Remarks
) -> Iterator[tuple[str, Any, bytes]]:
    """Place, content and digest of each row; for a content that cannot be read a text, why. Raises
    `DataError`."""
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
            yield f"{name}: row 1", dict.fromkeys(names), b""
            return
        texts = [field.name for field in file.schema_arrow if _holds_text(field.type)]
        read = list(dict.fromkeys([*asked, *texts]))
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=read):
            digests = _digests(batch.select(texts))
            for row, record in zip(_rows_of(batch.select(asked)), digests, strict=True):
                number += 1
                yield f"{name}: row {number}", row, record
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


# -- digests of raw records ----------------------------------------------------------------


def _digests(table: Any) -> Iterator[bytes]:
    """The source's digest of each row of a batch or table of columns with text."""
    import pyarrow

    held = {name: table[name].cast(_as_bytes(table[name].type)) for name in table.schema.names}
    yield from map(records.of_columns, pyarrow.table(held).to_pylist())


def _holds_text(kind: Any) -> bool:
    """Whether a column of this type has text anywhere in it."""
    from pyarrow import BaseExtensionType, types

    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    if isinstance(kind, BaseExtensionType):
        return _holds_text(kind.storage_type)
    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    if types.is_map(kind):
        return _holds_text(kind.key_type) or _holds_text(kind.item_type)
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return any(_holds_text(field.type) for field in fields)


def _as_bytes(kind: Any) -> Any:
    """The type with bytes for text, which need not be UTF-8, and integers for times, which need
    not be any that Python has."""
    import pyarrow as pa

    def inner(field: Any) -> Any:
        return field.with_type(_as_bytes(field.type))

    types = pa.types
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.binary()
    if isinstance(kind, pa.BaseExtensionType):
        return _as_bytes(kind.storage_type)
    if types.is_dictionary(kind):
        return _as_bytes(kind.value_type)
    if types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([inner(kind.field(place)) for place in range(kind.num_fields)])
    if types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(inner(kind.value_field))
    if types.is_list(kind):
        return pa.list_(inner(kind.value_field))
    if types.is_date32(kind) or types.is_time32(kind):
        return pa.int32()
    return pa.int64() if types.is_temporal(kind) else kind


# -- what is not used ----------------------------------------------------------------------


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
) -> Iterator[tuple[str, Any, bytes]]:
    """Place, content and digest of each row of a data set on the hub. Raises `DataError`."""
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
        yield f"hub:{name}: row 1", dict.fromkeys(names), b""
        return
    rows = iter(loaded.select_columns(asked))
    texts = [field.name for field in loaded.data.schema if _holds_text(field.type)]
    tables = loaded.select_columns(texts).with_format("arrow").iter(BATCH_ROWS)
    digests = (record for table in tables for record in _digests(table))
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
        yield f"hub:{name}: row {number}", _without_nulls(row), next(digests)
