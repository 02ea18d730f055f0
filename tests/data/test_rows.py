"""Rows from files: every form and file type, and each bad row named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedshield.data.remarks import Remarks
from fedshield.data.rows import Row, Rows, read
from fedshield.data.turns import Turn
from fedshield.errors import DataError
from fedshield.plan.data import SourcePlan

QA = (("user", "What is 2 + 2?"), ("assistant", "4"))
TURNS = [{"role": role, "content": text} for role, text in QA]
GOOD = {"prompt": "What is 2 + 2?", "response": "4"}


def rows_of(path: Path, *, skip: bool = False, label: str | None = None, **settings: Any) -> Rows:
    source = SourcePlan.model_validate({"source": path.name, **settings})
    return read(
        path.parent,
        path.name,
        source,
        key="data.sites.a.source",
        on_bad_row="skip" if skip else "refuse",
        label_column=label,
    )


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, **settings)
    message = str(caught.value)
    assert message.isprintable(), "a control character or a line end in an error"
    return message


def jsonl(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(found: Rows) -> list[tuple[tuple[str, str], ...]]:
    return [tuple((turn.role, turn.content) for turn in row.turns) for row in found.rows]


# -- forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "What is 2 + 2?", "input": "", "output": "4"},
        {"instruction": "What is 2 + 2?", "input": None, "output": "4"},
        {"instruction": "What is 2 + 2?", "response": "4"},
        {"prompt": "What is 2 + 2?", "response": "4", "more": [1, 2]},
        {"query": "What is 2 + 2?", "response": "4"},
        {"input": "What is 2 + 2?", "output": "4"},
        {"prompt": "What is 2 + 2?", "completion": "4", "response": None},
        {"conversation": TURNS},
        {"messages": json.dumps(TURNS)},
        {"messages": [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in QA]},
        {"prompt": QA[0][1], "response": "4", "messages": None},
        {"question": "What is 2 + 2?", "answer": "4"},
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": QA[0][1]}, {"from": "gpt", "value": "4"}]},
        {"messages": [{"role": "user", "content": QA[0][1]}, {"role": "model", "content": "4"}]},
        # What follows the last answer teaches nothing and is left out.
        {"messages": [*TURNS, {"role": "user", "content": "?"}]},
    ],
    ids=lambda row: "-".join(row),
)  # fmt: skip
def test_every_form_is_recognised(tmp_path: Path, row: dict[str, Any]) -> None:
    found = rows_of(jsonl(tmp_path, row))
    turns = tuple(Turn(role, text) for role, text in QA)
    assert found.rows == (Row(turns, "rows.jsonl:1", "rows.jsonl"),)
    assert found.rows[0].as_messages() == [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]


def test_input_follows_the_instruction_and_system_comes_first(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat", "system": "Be brief."}
    assert messages(rows_of(jsonl(tmp_path, row))) == [
        (("system", "Be brief."), ("user", "Translate.\n\nchat"), ("assistant", "cat"))
    ]


def test_a_long_conversation_keeps_its_turns(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    assert messages(rows_of(jsonl(tmp_path, row))) == [tuple(turns)]


def test_columns_are_mapped(tmp_path: Path) -> None:
    row = {
        "frage": "What is 2 + 2?",
        "text": "hint",
        "antwort": "4",
        "regel": "Be brief.",
        "messages": "not a conversation",
        "prompt": "another",
        "response": "another",
        "turns": TURNS,
    }
    path = jsonl(tmp_path, row)
    names = {"prompt": "frage", "input": "text", "response": "antwort", "system": "regel"}
    assert messages(rows_of(path, columns=names)) == [
        (("system", "Be brief."), ("user", "What is 2 + 2?\n\nhint"), ("assistant", "4"))
    ]
    assert messages(rows_of(path, columns={"messages": "turns"})) == [QA]
    assert "rows.jsonl:1: expected text in nothing, got NoneType" in refused(
        path, columns={"prompt": "nothing"}
    )


def test_text_beside_lists_of_turns_is_named(tmp_path: Path) -> None:
    """It follows a prompt of text; a prompt of turns has no place for it."""
    row = {
        "prompt": [{"role": "user", "content": "Bed 1?"}],
        "completion": [{"role": "assistant", "content": "Free."}],
        "input": "ward 3",
    }
    remarks = Remarks()
    path = jsonl(tmp_path, row)
    source = SourcePlan(source=path.name)
    key = "data.sites.a.source"
    read(tmp_path, path.name, source, key=key, on_bad_row="refuse", remarks=remarks)
    assert remarks.sentences() == ("column `input` not used (1 row)",)


@pytest.mark.parametrize("part", ["history", "tools", "input", "system", "response"])
def test_a_column_that_no_row_has_is_refused(tmp_path: Path, part: str) -> None:
    """A row may lack earlier rounds and tools; a name that none has is a misspelt one."""
    rows = [{"prompt": "Bed 1?", "response": "Free.", "rounds": []} for _ in range(2)]
    says = refused(jsonl(tmp_path, *rows), columns={part: "round"})
    assert "round" in says
    if part in ("history", "tools"):
        assert says.startswith(f"data.sites.a.columns.{part}: expected a column of rows.jsonl, ")
        assert says.endswith("got 'round', which no row has; it has prompt, response, rounds")
        assert len(rows_of(tmp_path / "rows.jsonl", columns={part: "rounds"}).rows) == 2


def test_the_label_is_the_source_or_a_column(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "ward": "A"}, {**GOOD, "ward": 7})
    assert [row.label for row in rows_of(path).rows] == ["rows.jsonl"] * 2
    assert [row.label for row in rows_of(path, label="ward").rows] == ["A", "7"]
    path = jsonl(tmp_path, {**GOOD, "ward": None})
    assert "rows.jsonl:1: expected the column ward to split by" in refused(path, label="ward")


# -- file types ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.csv", "r.csv.gz", "r.csv.jsonl"])
def test_text_files_of_any_kind(tmp_path: Path, name: str, mark: str, end: str) -> None:
    if "jsonl" in name:
        lines = [json.dumps({"prompt": "é?", "response": "☃"}), "", json.dumps(GOOD), "  "]
    else:
        lines = ["prompt,response", 'é?,"☃"', "", '"What is 2 + 2?",4']
    raw = (mark + end.join(lines) + end).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found = rows_of(path)
    assert messages(found) == [(("user", "é?"), ("assistant", "☃")), QA]
    first = 1 if "jsonl" in name else 2
    assert [row.where for row in found.rows] == [f"{name}:{first}", f"{name}:{first + 2}"]


def test_a_csv_named_after_jsonl_is_csv(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl.csv"
    path.write_text("prompt,response\nWhat is 2 + 2?,4\n")
    assert messages(rows_of(path)) == [QA]


def test_csv_with_line_ends_commas_and_quotes_in_fields(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('prompt,response\n"one\r\ntwo, ""three""",4\nWhat is 2 + 2?,4\n', newline="")
    found = rows_of(path)
    assert messages(found) == [(("user", 'one\r\ntwo, "three"'), ("assistant", "4")), QA]
    assert [row.where for row in found.rows] == ["r.csv:3", "r.csv:4"]


def test_a_long_csv_field(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"prompt,response\n{'x' * 300_000},4\n")
    assert len(rows_of(path).rows[0].turns[0].content) == 300_000


def test_parquet_with_columns_of_text_and_of_turns(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["What is 2 + 2?"] * 3, "response": ["4"] * 3}), path
    )
    found = rows_of(path)
    assert messages(found) == [QA] * 3
    assert [row.where for row in found.rows] == [f"r.parquet: row {k}" for k in (1, 2, 3)]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [TURNS]}), path)
    assert messages(rows_of(path)) == [QA]
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["a", "b"], "response": ["c", None]}), path
    )
    assert refused(path).startswith("r.parquet: row 2: expected text in response, got NoneType")


def test_a_sample_is_a_source_of_its_own(tmp_path: Path) -> None:
    source = SourcePlan(source="sample:maths")
    found = read(tmp_path, source.source, source, key="k", on_bad_row="refuse")
    assert len(found.rows) > 1000
    assert found.skipped == 0
    assert found.rows[0].where == "sample:maths:1"


# -- bad rows ------------------------------------------------------------------------------

BAD = [
    ('{"prompt": "a", "respon', "expected a JSON object, got text that is not JSON"),
    ("[" * 200_000, "expected a JSON object, got text that is not JSON"),
    ('{"prompt": ' + "9" * 5000 + "}", "expected a JSON object, got text that is not JSON"),
    ('["prompt", "response"]', "expected an object with named fields, got list"),
    ('["prompt", "response"]', "got list (a file that is one list ends in .json)"),
    ('{"prompt": "a", " response": "b"}', "(or messages), found columns prompt, ' response'"),
    ("null", "expected an object with named fields, got NoneType"),
    ('{"a\\nb\\u001b": 1}', "(or messages), found columns 'a\\nb\\x1b'"),
    ("{}", "expected a response in one of response, output, completion, answer (or messages)"),
    ('{"text": "a", "answer": "b"}', "(or messages), found columns text, answer"),
    ('{"prompt": "a"}', "expected a response in one of response, output, completion, answer"),
    ('{"prompt": "a", "response": ""}', "expected text in response, got an empty one"),
    ('{"prompt": " \\n", "response": "b"}', "expected text in prompt, got an empty one"),
    ('{"prompt": "a", "response": 4}', "expected text in response, got int"),
    ('{"prompt": "a", "response": null}', "expected text in response, got NoneType"),
    ('{"prompt": "a", "input": 1, "response": "b"}', "expected text in input, got int"),
    ('{"prompt": "a", "response": "\\ud83d"}', "expected Unicode text in response, got half a"),
    ('{"messages": []}', "expected a list of turns in messages, got an empty one"),
    ('{"messages": "hello"}', "expected a list of turns in messages, got text that is no JSON"),
    ('{"messages": {"role": "user"}}', "expected a list of turns in messages, got dict"),
    ('{"messages": ["hello"]}', "expected role and content in turn 1 of messages, got text"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "expected a user's turn and an assis"),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', "expected a user's turn and an"),
    (
        '{"messages": [{"role": "robot", "content": "a"}]}',
        "in turn 1 of messages, got role 'robot'",
    ),
    ('{"messages": [{"content": "a"}]}', "expected a role in turn 1 of messages, got keys content"),
    ('{"messages": [{"role": "user", "content": " "}]}', "turn 1 of messages (user), got an empty"),
    ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "expected Unicode text in turn 1"),
    ('{"messages": [{"role": "user", "content": null}]}', "got content null (and no tool_calls)"),
    ('{"messages": [{"role": "user", "content": 4}]}', "as the content of turn 1 of messages, got"),
    ('{"messages": [{"role": "user"}]}', "expected content in turn 1 of messages, got keys role"),
    (
        '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}',
        "expected parts of text in the content of turn 1 of messages, got a part of type 'image",
    ),
    ('{"prompt": "a", "response": "b", "response": "c"}', "the key 'response' is given twice"),
    ('{"prompt": "a", "response": NaN}', "expected text in response, got NoneType"),
    (
        '{"prompt": "a", "instruction": "b", "response": "c"}',
        "found instruction and prompt; say wh",
    ),
    ('{"prompt": "a", "response": "b", "output": "c"}', "found response and output; say which in"),
    ('{"prompt": "a", "input": "b", "context": "c", "response": "d"}', "found input and context;"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "a preference set"),
    ('{"text": "Once upon a time."}', "expected a response in one of response, output"),
    ('{"instruction": "a", "output": "b", "history": [["c"]]}', "expected lists of question and a"),
]


@pytest.mark.parametrize(("line", "says"), BAD, ids=[line[:40] for line, _ in BAD])
def test_a_bad_row_is_refused_or_skipped_and_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD)
    path.write_text(f"{good}\n\n{line}\n{good}\n{line}\n")
    message = refused(path)
    assert message.startswith("rows.jsonl:3: ")
    assert says in message
    assert message.endswith("; mend the row, or set data.on_bad_row: skip")

    found = rows_of(path, skip=True)
    assert [row.where for row in found.rows] == ["rows.jsonl:1", "rows.jsonl:4"]
    assert found.skipped == 2
    assert found.first_skipped.startswith("rows.jsonl:3: ")
    assert says in found.first_skipped


@pytest.mark.parametrize("line", ["a", "a,b,c"])
def test_csv_rows_with_another_number_of_fields(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"prompt,response\nWhat is 2 + 2?,4\n{line}\n")
    assert refused(path).startswith("r.csv:3: expected 2 fields, got another number; mend the row")
    found = rows_of(path, skip=True)
    assert (messages(found), found.skipped) == ([QA], 1)


def test_nothing_usable_is_an_error_under_both_rules(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    with pytest.raises(DataError, match=r"^data.sites.a.source: .*2 unusable ones \(rows.jsonl:1"):
        rows_of(path, skip=True)
    path.write_text("\n \n")
    assert "data.sites.a.source: expected rows in rows.jsonl, got none; check" in refused(path)


# -- files that cannot be read -------------------------------------------------------------

COMPRESSED = gzip.compress(json.dumps(GOOD).encode() * 50, mtime=0)
PARQUET_TAIL = b"\xff" * 60 + (60).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("r.txt", b"a", "data.sites.a.source: expected a file ending in .jsonl, .jsonl.gz, .json"),
        (
            "r.jsonl",
            b'{"prompt": "caf\xe9"}',
            "r.jsonl: expected UTF-8 text, got other bytes (invalid continuation byte); set enc",
        ),
        (
            "r.csv",
            "prompt,response\na,b".encode("utf-16"),
            "r.csv: expected UTF-8 text, got other bytes (invalid start byte); set enc",
        ),
        ("r.jsonl.gz", b"plain", "r.jsonl.gz: cannot be read (Not a gzipped file"),
        ("r.jsonl.gz", COMPRESSED[:-20], "r.jsonl.gz: cannot be read (Compressed file ended"),
        ("r.jsonl.gz", COMPRESSED[:12] + b"\xff" * 20 + COMPRESSED[32:], "cannot be read (Error"),
        ("r.jsonl.gz", COMPRESSED[:-8] + bytes(8), "cannot be read (CRC check failed"),
        (
            "r.csv",
            b'prompt,response\n"a,b\n',
            "r.csv:2: expected CSV in the row that begins here, but un",
        ),
        ("r.csv", b"prompt,prompt,response\na,b,c\n", "expected every column once, got prompt, p"),
        ("r.csv", b"prompt,response\n", "expected rows in r.csv, got none"),
        ("r.csv", b"", "expected rows in r.csv, got none"),
        ("r.parquet", b"", "r.parquet: expected a Parquet file, but"),
        ("r.parquet", b"PAR1" + bytes(40), "r.parquet: expected a Parquet file, but"),
        ("r.parquet", b"PAR1" + PARQUET_TAIL, "r.parquet: expected a Parquet file, but"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, raw: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    assert says in refused(tmp_path / name)
    with pytest.raises(DataError):  # the rule for bad rows is not one for bad files
        rows_of(tmp_path / name, skip=True)


def test_a_missing_file_a_folder_and_a_misspelt_sample(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.csv") == (
        "data.sites.a.source: expected a data file, found none at none.csv; check the path"
    )
    (tmp_path / "folder.csv").mkdir()
    assert "got the folder folder.csv; name a file" in refused(tmp_path / "folder.csv")
    assert refused(tmp_path / "sample:medcal") == (
        "data.sites.a.source: no sample is called 'medcal': expected one of medical, finance, "
        "maths, code; did you mean 'medical'?"
    )


# -- anything at all -----------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "response", "messages", "role", "content", "from", "input"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=JSON)
def test_any_row_is_read_or_named(tmp_path: Path, row: object) -> None:
    found = rows_of(jsonl(tmp_path, row, GOOD), skip=True)
    assert len(found.rows) + found.skipped == 2
    for usable in found.rows:
        roles = [turn.role for turn in usable.turns]
        assert roles[-1] == "assistant"
        assert "user" in roles
        assert all(turn.content.strip() for turn in usable.turns)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=60), name=st.sampled_from(["r.jsonl", "r.csv", "r.parquet", "r.csv.gz"])
)
def test_any_file_is_read_or_refused(tmp_path: Path, raw: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(raw)
    assert refused(tmp_path / name)
