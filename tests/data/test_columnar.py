"""Parquet: what is asked for is converted, what is not is named, and text is UTF-8 or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedshield.data.columnar import parquet_rows
from fedshield.data.remarks import Remarks

ASKED = {"prompt", "response", "messages"}


def broken(*texts: bytes) -> Any:
    """A column of text that claims to be UTF-8."""
    ends = np.cumsum([0, *map(len, texts)]).astype("int32")
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def read(path: Path, remarks: Remarks) -> list[tuple[str, Any]]:
    """Place and content; digests are looked at in test_records.py."""
    return [(where, row) for where, row, _ in parquet_rows(path, path.name, ASKED, remarks)]


def test_only_what_is_asked_for_is_converted(tmp_path: Path) -> None:
    """A column that is not asked for may hold what cannot be converted at all."""
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "response": ["d", "e", "f"],
            "scan": broken(b"\xff", b"\xfe", b"x"),
            "ward": ["7", None, "8"],
            "empty": pa.array([None] * 3, pa.string()),
            "blank": ["", "", ""],
            "tags": [["x"], ["y", "z"], []],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    remarks = Remarks()
    rows = read(tmp_path / "r.parquet", remarks)
    assert rows[1] == ("r.parquet: row 2", {"prompt": "b", "response": "e"})
    assert len(rows) == 3
    assert remarks.sentences() == (
        "column `scan` not used (3 rows)",
        "column `ward` not used (2 rows)",
        "column `tags` not used",
    )


def test_rows_that_are_not_utf8_are_named_one_by_one(tmp_path: Path) -> None:
    column = broken(b"good", "Café".encode("latin-1"), b"fine")
    table = pa.table({"prompt": column, "response": ["a", "b", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    rows = read(tmp_path / "r.parquet", Remarks())
    assert rows[0] == ("r.parquet: row 1", {"prompt": "good", "response": "a"})
    assert rows[1][1].startswith("expected UTF-8 text in prompt, got other bytes")
    assert rows[2] == ("r.parquet: row 3", {"prompt": "fine", "response": "c"})


def test_nulls_that_structs_are_filled_with_are_no_part_of_a_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "name": "beds"}]
    pyarrow.parquet.write_table(pa.table({"messages": [turns]}), tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet", Remarks()) == [("r.parquet: row 1", {"messages": turns})]


def test_a_file_without_any_known_column_shows_its_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet", Remarks()) == [("r.parquet: row 1", {"text": None})]


@pytest.mark.parametrize("rows", [1, 5])
def test_a_column_with_a_dot_in_its_name(tmp_path: Path, rows: int) -> None:
    table = pa.table({"prompt": ["a"] * rows, "meta.id": ["b"] * rows})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    remarks = Remarks()
    assert len(read(tmp_path / "r.parquet", remarks)) == rows
    plural = "" if rows == 1 else "s"
    assert remarks.sentences() == (f"column `meta.id` not used ({rows} row{plural})",)
