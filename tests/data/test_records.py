"""A raw record is the same again whatever a plan makes of it, and in another file where it can."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedshield.data.columnar import hub_rows, parquet_rows
from fedshield.data.remarks import Remarks
from fedshield.data.sites import SiteData, load_sites
from fedshield.model.builtin import tiny
from fedshield.plan.load import parse_plan
from fedshield.run.settings import data_setup

Record = dict[str, Any]
NOTES = [
    {"ask": f"Größe {k}?", "say": f"Ja, {k} €.", "other": f"note {k}", "ward": "B", "age": k}
    for k in range(12)
]
COLUMNS = {"prompt": "ask", "response": "say"}
PLAIN = {"prompt": "other", "response": "say"}


def write(path: Path, rows: Sequence[Record]) -> Path:
    """The rows as a file of the kind that its name says."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    return path


def load(path: Path, max_length: int = 96, template: str = "auto", **source: Any) -> SiteData:
    settings = {"source": path.name, "columns": COLUMNS, **source}
    return _load(path.parent, {"sites": {"a": settings}}, max_length, template)["a"]


def _load(
    folder: Path, data: dict[str, Any], max_length: int = 96, template: str = "auto"
) -> dict[str, SiteData]:
    raw = {
        "model": {"name": "tiny-llama", "chat_template": template},
        "data": {"heldout_rows": 2, "min_examples": 1, "on_bad_row": "skip", **data},
        "training": {"max_length": max_length},
        "scheme": {"name": "plain"},
    }
    return load_sites(data_setup(parse_plan(raw, base_dir=folder)), tiny.tokenizer())


def same(one: SiteData, other: SiteData) -> int:
    """Digests that both have."""
    return len({*one.records} & {*other.records})


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    "changed",
    [
        {"columns": PLAIN},
        {"columns": {**COLUMNS, "input": "other"}},
        {"columns": {**COLUMNS, "system": "ward"}},
    ],
    ids=["another column", "one more", "a system text"],
)
def test_columns_of_a_plan_change_no_source(
    tmp_path: Path, kind: str, changed: dict[str, Any]
) -> None:
    path = write(tmp_path / f"r.{kind}", NOTES)
    one = load(path)
    assert len(one.records) == 2 * len(one.train) == 20
    # What is read is another conversation; what the file holds is the same.
    assert same(one, load(path, **changed)) == 10


def test_neither_limit_nor_length_nor_template_change_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", NOTES)
    whole = load(path)
    assert set(load(path, rows=4).records) < set(whole.records)
    assert len(load(path, rows=4).records) == 8
    # One token of the answer is left of the shortest rows.
    assert load(path, max_length=34).records == whole.records
    assert load(path, max_length=34).truncated_tokens
    assert load(path, template="fallback").records == whole.records


def test_neither_order_nor_repetition_nor_split_change_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", NOTES)
    twice = write(tmp_path / "twice.jsonl", [*NOTES[9::-1], *NOTES[:10], *NOTES[10:]])
    assert load(twice).records == load(path).records
    own = write(tmp_path / "own.jsonl", NOTES[:2])
    everything = load(path, heldout_source=own.name)
    pool = {"num_sites": 2, "pool": [{"source": path.name, "columns": COLUMNS}]}
    for split in ("iid", "dirichlet"):
        dealt = _load(tmp_path, {"split": split, "dirichlet_alpha": 100.0, **pool}).values()
        held = sum(len(site.heldout) for site in dealt)
        found = [digest for site in dealt for digest in site.records]
        assert len(found) == len(set(found)) == 2 * (len(NOTES) - held)
        # The first two are held out here; whichever the pool holds out, the others are known.
        assert len(set(found) & set(everything.records)) >= 2 * (len(NOTES) - held - 2)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_another_encoding_reads_other_letters_of_the_same_record(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"r.{kind}", NOTES)
    one, other = load(path), load(path, encoding="cp1250")
    assert one.train != other.train
    assert same(one, other) == 10
    # Escapes are the same text whatever the encoding, and bytes of the same file.
    path.write_text(json.dumps(NOTES)) if kind == "json" else None
    if kind == "json":
        assert load(path).records == load(path, encoding="latin-1").records


def test_an_encoding_without_ascii_reads_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    header, *lines = (",".join(str(row[key]) for key in ("other", "ward")) for row in NOTES)
    path.write_bytes("\r".join(["other,ward", header, *lines, ""]).encode())
    names = (b"other".decode("cp037"), b"ward".decode("cp037"))
    settings = {"encoding": "cp037", "separator": b",".decode("cp037")}
    as_other = load(path, columns=dict(zip(("prompt", "response"), names, strict=True)), **settings)
    one = load(path, columns={"prompt": "other", "response": "ward"})
    assert len(as_other.train) == len(one.train) == 10
    assert same(one, as_other) == 10


def test_a_byte_order_mark_and_line_ends_are_no_part_of_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", NOTES)
    before = load(path).records
    text = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b" \r\n\r\n"))
    assert load(path).records == before
    assert load(path, encoding="utf-8-sig").records == before
    path.write_bytes(text.decode().encode("utf-16"))
    assert load(path, encoding="utf-16").records == before


# -- csv ------------------------------------------------------------------------------------

LETTERS = [
    {"ask": f"one;q{k}\nsecond; line", "say": f"yes {k}\n\nno; {k}", "other": "x;y"}
    for k in range(12)
]


def test_another_separator_reads_the_same_lines(tmp_path: Path) -> None:
    """Read with ; what has , between columns: most lines are rows of another shape."""
    path = write(tmp_path / "r.csv", [{"a;b": row["other"], **row} for row in LETTERS])
    one = load(path)
    columns = {"prompt": "a", "response": "b,ask,say,other"}
    other = load(path, columns=columns, separator=";")
    assert other.train[0] != one.train[0]
    assert len(one.records) == 20
    # Whatever part of a record became a row there, its lines are the whole record's.
    assert same(one, other) >= 10


def test_a_lone_quote_joins_records_and_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    lines = [f"a {k},{5 if k % 4 else '5' + chr(34)} b {k}" for k in range(12)]
    path.write_text("\n".join(["prompt,response", *lines, ""]))
    one = load(path, columns=None)
    assert len(one.train) == 10
    # Ten conversations; sources are fewer, since lines between two quotes are one.
    assert 10 < len(one.records) < 20
    assert load(path, columns=None, separator=",").records == one.records


# -- another file ---------------------------------------------------------------------------


def _renamed(row: Record) -> Record:
    return {{"ask": "question"}.get(name, name): value for name, value in row.items()}


@pytest.mark.parametrize(
    ("name", "change", "columns"),
    [
        ("r.csv", lambda row: row, COLUMNS),
        ("r.json", lambda row: row, COLUMNS),
        ("r.parquet", lambda row: row, COLUMNS),
        ("other.jsonl", lambda row: {"id": row["age"] + 1000, **row}, COLUMNS),
        ("other.jsonl", lambda row: dict(sorted(row.items())), COLUMNS),
        ("other.jsonl", _renamed, {"prompt": "question", "response": "say"}),
    ],
    ids=["csv", "json list", "parquet", "a column more", "order of keys", "a name"],
)
def test_another_file_with_the_same_conversations(
    tmp_path: Path, name: str, change: Callable[[Record], Record], columns: dict[str, str]
) -> None:
    one = load(write(tmp_path / "r.jsonl", NOTES))
    other = load(write(tmp_path / name, [change(row) for row in NOTES]), columns=columns)
    assert same(one, other) >= 10


def test_turns_with_keys_in_another_order_and_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "beds", "parameters": {}}}
    turned = {"function": tool["function"], "type": "function"}

    def chat(k: int, tools: Record, flip: bool) -> Record:
        turns: list[Record] = [
            {"role": "user", "content": f"q {k}"},
            {"role": "assistant", "content": f"a {k}"},
        ]
        if flip:
            turns = [dict(reversed(turn.items())) for turn in turns]
        return {"messages": turns, "tools": [tools]}

    one = load(write(tmp_path / "r.jsonl", [chat(k, tool, False) for k in range(12)]), columns=None)
    other = load(
        write(tmp_path / "s.jsonl", [chat(k, turned, True) for k in range(12)]), columns=None
    )
    assert same(one, other) == 10
    bare = write(tmp_path / "t.jsonl", [chat(k, {}, False) for k in range(20, 32)])
    assert not same(one, load(bare, columns=None))


def test_other_records_are_others(tmp_path: Path) -> None:
    one = load(write(tmp_path / "r.jsonl", NOTES))
    others = [{**row, "ask": f"{row['ask']} x"} for row in NOTES]
    assert not same(one, load(write(tmp_path / "s.jsonl", others)))
    # Where one text ends and the next begins is part of what is said.
    cut = [{"ask": "ab", "say": "c"}, {"ask": "a", "say": "bc"}]
    assert len(load(write(tmp_path / "t.jsonl", [*cut, *NOTES[:2]])).records) == 4


# -- columns of a table ----------------------------------------------------------------------


def broken(*texts: bytes) -> Any:
    """A column of text that claims to be UTF-8."""
    ends = pa.array([sum(map(len, texts[:k])) for k in range(len(texts) + 1)], pa.int32())
    buffers = [None, ends.buffers()[1], pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _digests(path: Path, *asked: str) -> list[bytes]:
    return [record for _, _, record in parquet_rows(path, "r", set(asked), Remarks())]


TABLES: dict[str, tuple[Any, bool]] = {
    "text": (["x", "y", None], True),
    "large": (pa.array(["x", "y", None], pa.large_string()), True),
    "dictionary": (pa.array(["x", "y", None]).dictionary_encode(), True),
    "list": ([["x"], ["y", "z"], []], True),
    "struct": ([{"a": "x", "n": 1}, {"a": None, "n": 2}, None], True),
    "map": (pa.array([[("a", "b")], [("c", "d")], []], pa.map_(pa.string(), pa.string())), True),
    "a time in it": (
        pa.array(
            [[{"a": "x", "at": 2**62 + 1}], [{"a": "x", "at": 3}], None],
            pa.list_(pa.struct({"a": pa.string(), "at": pa.timestamp("ns")})),
        ),
        True,
    ),
    "not utf-8": (broken(b"\xff", b"\xfe", b"x"), True),
    "numbers": ([1.5, 2.5, None], False),
    "vectors": ([[1.0], [2.0], []], False),
    "bytes": ([b"x", b"y", None], False),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_column_with_text_is_part_of_a_row(tmp_path: Path, kind: str) -> None:
    """Whether it is asked for or not; pictures and vectors are not."""
    column, counts = TABLES[kind]
    base = {"prompt": ["a", "a", "a"], "response": ["b", "b", "b"]}
    pyarrow.parquet.write_table(pa.table(base), tmp_path / "bare.parquet")
    pyarrow.parquet.write_table(pa.table({**base, "more": column}), tmp_path / "r.parquet")
    bare = _digests(tmp_path / "bare.parquet", "prompt", "response")
    found = _digests(tmp_path / "r.parquet", "prompt", "response")
    assert found == _digests(tmp_path / "r.parquet", "response")
    assert len(set(bare)) == 1
    assert len(set(found)) == (3 if counts else 1)
    assert (found[0] != bare[0]) is counts
    if kind not in ("list", "map"):  # an empty list is something, null is nothing
        assert found[2] == bare[2] or kind == "not utf-8"


def test_a_hub_set_has_the_digests_of_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "a", "response": f"b {k}", "other": f"c {k}", "n": k} for k in range(2500)]
    path = write(tmp_path / "r.parquet", rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    asked = {"prompt", "response"}
    found = list(hub_rows("some/set", "train", "key", asked, Remarks()))
    assert [row for _, row, _ in found][7] == {"prompt": "a", "response": "b 7"}
    assert [record for _, _, record in found] == _digests(path, *asked)
    # The same with another column asked for.
    others = [record for *_, record in hub_rows("some/set", "train", "key", {"other"}, Remarks())]
    assert others == _digests(path, "other")
    assert len(set(others)) == len(rows)


# -- what counts ----------------------------------------------------------------------------


def test_rows_that_enter_no_sum_are_no_records(tmp_path: Path) -> None:
    bad = {"ask": "no answer", "say": "", "other": "x", "ward": "B", "age": 1}
    long = {**NOTES[0], "ask": "Größe " + "x" * 200}
    held = NOTES[10:]
    path = write(tmp_path / "r.jsonl", [bad, long, NOTES[0], NOTES[11], *held])
    data = load(path, max_length=64)
    assert (data.skipped_rows, data.no_response_rows, data.duplicate_rows) == (1, 1, 1)
    alone = load(write(tmp_path / "s.jsonl", [NOTES[0], *held]), max_length=64)
    assert data.records == alone.records
    assert len(data.records) == 2


def test_built_in_samples_have_records(tmp_path: Path) -> None:
    sites = {name: {"source": f"sample:{name}", "rows": 20} for name in ("medical", "finance")}
    found = _load(tmp_path, {"sites": sites}, max_length=400)
    assert [len(data.records) for data in found.values()] == [40, 40]
    assert not same(*found.values())


def test_records_are_in_no_text_about_the_data(tmp_path: Path) -> None:
    data = load(write(tmp_path / "r.jsonl", NOTES))
    assert all(len(record) == 32 for record in data.records)
    told = io.StringIO()
    print(data, data.counts(), data.sha256(), data.notes, file=told)
    for record in data.records:
        assert record.hex() not in told.getvalue()
        assert repr(record) not in told.getvalue()
    assert "records" not in data.counts()
