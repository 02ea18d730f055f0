"""Raw rows of files: encodings, separators, JSON lists, and keys that do not belong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedshield.data.remarks import Remarks
from fedshield.data.rows import Rows, read
from fedshield.data.text_files import parse_json
from fedshield.errors import DataError, PlanError
from fedshield.plan.data import SourcePlan
from fedshield.plan.load import parse_plan

PAIR = [("user", "Grüße?"), ("assistant", "Ja, 5 €.")]


def rows_of(path: Path, remarks: Remarks | None = None, **settings: Any) -> Rows:
    source = SourcePlan.model_validate({"source": path.name, **settings})
    key = "data.sites.a.source"
    return read(path.parent, path.name, source, key=key, on_bad_row="refuse", remarks=remarks)


def pairs(found: Rows) -> list[list[tuple[str, str]]]:
    return [[(turn.role, turn.content) for turn in row.turns] for row in found.rows]


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, **settings)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.json", "r.csv.gz"])
def test_files_in_other_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    text = 'prompt,response\nGrüße?,"Ja, 5 €."\n'
    if "json" in name:
        text = json.dumps({"prompt": "Grüße?", "response": "Ja, 5 €."}, ensure_ascii=False)
    if encoding == "utf-16-le":
        text = "\ufeff" + text
    raw = text.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert pairs(rows_of(path, encoding=encoding)) == [PAIR]


@pytest.mark.parametrize(
    ("encoding", "hint"), [("cp1252", "cp1252"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16")]
)
def test_the_error_says_which_encoding_to_set(tmp_path: Path, encoding: str, hint: str) -> None:
    path = tmp_path / "r.jsonl"
    text = json.dumps({"prompt": "Größe?", "response": "é"}, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    assert f"set encoding: {hint}" in refused(path)


@pytest.mark.parametrize(("mark", "setting"), [(";", ";"), ("\t", "tab"), ("\t", "\t"), ("|", "|")])
def test_other_separators_and_the_hint(tmp_path: Path, mark: str, setting: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"prompt{mark}response\nGrüße?{mark}Ja, 5 €.\n", encoding="utf-8")
    shown = {";": '";"', "\t": "tab", "|": '"|"'}[mark]
    assert f"set separator: {shown} beside the source" in refused(path)
    assert pairs(rows_of(path, separator=setting)) == [PAIR]


def test_tsv_has_tabs(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_text("prompt\tresponse\nGrüße?\tJa, 5 €.\n", encoding="utf-8")
    assert pairs(rows_of(path)) == [PAIR]
    path.write_text("prompt,response\nGrüße?,Ja\n", encoding="utf-8")
    assert 'set separator: ","' in refused(path)


def test_json_lists_and_json_lines_of_that_name(tmp_path: Path) -> None:
    row = {"prompt": "Grüße?", "response": "Ja, 5 €."}
    path = tmp_path / "r.json"
    path.write_text(json.dumps([row, row], indent=1))
    found = rows_of(path)
    assert pairs(found) == [PAIR] * 2
    assert [item.where for item in found.rows] == ["r.json: row 1", "r.json: row 2"]
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert pairs(rows_of(path)) == [PAIR] * 2
    path.write_text('[{"prompt": "a", "prompt": "b", "response": "c"}]')
    assert "r.json: expected a JSON list of objects, but the key 'prompt' is given" in refused(path)
    path.write_text('[{"prompt": ')
    assert refused(path).startswith("r.json: expected a JSON list of objects, but")


def test_one_object_over_several_lines_is_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rows = [{"prompt": "a", "response": "b"}] * 3
    path.write_text(json.dumps({"version": 1, "data": rows}, indent=1))
    message = refused(path)
    assert message.startswith(
        "r.json: expected a JSON list of objects, or an object a line, got one"
    )
    assert message.endswith("(keys version, data); write the list of rows alone")


@pytest.mark.parametrize("name", ["R.CSV", "R.Csv.GZ", "R.JSONL", "R.Json", "R.Parquet"])
def test_capital_letters_in_a_files_name(tmp_path: Path, name: str) -> None:
    path, row = tmp_path / name, {"prompt": "Grüße?", "response": "Ja, 5 €."}
    if name == "R.Parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist([row]), path)
    else:
        table = 'prompt,response\n"Grüße?","Ja, 5 €."\n'
        text = table if "C" in name[2:3] else json.dumps([row] if name == "R.Json" else row)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("GZ") else text.encode())
    assert pairs(rows_of(path)) == [PAIR]


def test_a_damaged_row_of_a_table_is_named_by_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('prompt,response\na,"b\nc"\nd,"e" f\ng,h\n')
    assert refused(path).startswith("r.csv:4: expected CSV in the row that begins here, but ','")


def test_a_key_given_twice_is_no_json() -> None:
    assert parse_json('{"a": NaN, "b": [1]}') == {"a": None, "b": [1]}
    with pytest.raises(ValueError, match="'a' is given twice"):
        parse_json('{"b": {"a": 1, "a": 1}}')


def test_settings_that_the_source_does_not_take(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "Grüße?", "response": "Ja, 5 €."}))
    assert "data.sites.a.separator: expected a .csv or .tsv source" in refused(path, separator=";")
    with pytest.raises(DataError, match=r"data\.sites\.a\.encoding: expected a JSON or CSV source"):
        rows_of(tmp_path / "r.parquet", encoding="cp1252")
    remarks = Remarks()
    assert pairs(rows_of(path, remarks, split="test")) == [PAIR]
    assert remarks.sentences() == ("split 'test' is not used: the source is no hub set",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("separator", ";;"),
        ("separator", '"'),
        ("separator", ""),
        ("encoding", "utf-9"),
        ("encoding", "base64"),
        ("encoding", "unicode_escape"),
    ],
)
def test_settings_that_cannot_be(key: str, value: str) -> None:
    raw = {"data": {"sites": {"a": {"source": "x.csv", key: value}}}}
    with pytest.raises(PlanError, match=rf"^data\.sites\.a\.{key}: expected"):
        parse_plan(raw, base_dir=Path())
