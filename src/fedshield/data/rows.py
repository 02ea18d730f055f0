"""Rows of a source as conversations, each with the place it came from.

A row that cannot be used is named by file and line. What happens then is the plan's choice:
`refuse` stops before anything is trained, `skip` leaves it out and counts it. A row in which two
columns could be the prompt (or the answer) is such a row: which one is meant is not guessed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fedshield.data import records
from fedshield.data.files import raw_rows
from fedshield.data.remarks import Remarks, carries_meaning, named
from fedshield.data.text_files import BadRow
from fedshield.data.turns import (
    Turn,
    list_in,
    read_turns,
    round_of,
    texts_in,
    unicode_text,
)
from fedshield.errors import DataError
from fedshield.model.chat import Message
from fedshield.notes import one_line
from fedshield.plan.data import ColumnsPlan, SourcePlan

_PROMPTS = ("instruction", "prompt", "question", "query")
_RESPONSES = ("response", "output", "completion", "answer")
_INPUTS = ("input", "context")
_TURNS = ("messages", "conversations", "conversation")
_BESIDE = ("system", "tools", "history")
_USUAL = {*_PROMPTS, *_RESPONSES, *_INPUTS, *_TURNS, *_BESIDE, "chosen", "rejected"}
AFTER_LAST = "turns after the last answer are not used: nothing in them is learnt"


@dataclass(frozen=True)
class Row:
    """A usable example. `label`: the value of the column that a Dirichlet split asks for. `tools`:
    the JSON text of a list, or ''. `source_digest`: of what the source holds for it."""

    turns: tuple[Turn, ...]
    where: str
    label: str
    tools: str = ""
    source_digest: bytes = field(default=b"", repr=False, compare=False)

    @property
    def said(self) -> tuple[tuple[Turn, ...], str]:
        """What is said: equal for equal rows, wherever they come from."""
        return self.turns, self.tools

    def records(self) -> tuple[bytes, bytes]:
        """The digests by which the raw record is known again."""
        said = ((turn.role, turn.content, turn.more) for turn in self.turns)
        return self.source_digest, records.of_conversation(said, self.tools)

    def as_messages(self) -> list[Message]:
        return [turn.as_message() for turn in self.turns]

    def as_tools(self) -> list[Any] | None:
        return json.loads(self.tools) if self.tools else None


@dataclass(frozen=True)
class Rows:
    """Rows of one source, and how many were skipped with the first reason why."""

    rows: tuple[Row, ...]
    skipped: int
    first_skipped: str


def read(
    base_dir: Path,
    source: str,
    settings: SourcePlan,
    *,
    key: str,
    on_bad_row: Literal["refuse", "skip"],
    label_column: str | None = None,
    remarks: Remarks | None = None,
) -> Rows:
    """All usable rows of `source`.

    Args:
        base_dir: what a relative path of `source` starts from.
        settings: of the plan's source; where rows are held out in a file of their own, also theirs.
        key: the plan key of `source`, for errors.
        on_bad_row: whether a row that cannot be used is an error.
        label_column: the column that a Dirichlet split asks for.
        remarks: told of what is not used.

    Raises:
        DataError: the source cannot be read, has no usable row, or a bad one that is refused.
    """
    told = Remarks() if remarks is None else remarks
    columns = settings.columns or ColumnsPlan()
    asked = {*_USUAL, *(name for _, name in columns if name)}
    asked |= {label_column} if label_column else set()
    good: list[Row] = []
    seen: set[str] = set()
    skipped, first = 0, ""
    raw = raw_rows(base_dir, source, settings, key=key, columns=asked, remarks=told)
    for where, fields, digest in raw:
        try:
            if isinstance(fields, BadRow):
                raise fields
            if isinstance(fields, dict):
                seen |= fields.keys()
            row, used = _row(fields, where, digest, columns, label_column, source, told)
        except BadRow as bad:
            skip_or_refuse(where, bad, on_bad_row)
            skipped += 1
            first = first or f"{where}: {bad}"
            continue
        for name in fields:
            if name not in used and carries_meaning(fields[name]):
                told.unused(named("column", name), where)
        good.append(row)
    if not good:
        raise DataError(
            f"{key}: expected rows in {one_line(source)}, got "
            + (f"{skipped} unusable ones ({first})" if skipped else "none")
            + "; check the file and data columns"
        )
    _check_columns(columns, seen, source, key)
    return Rows(tuple(good), skipped, first)


def _check_columns(columns: ColumnsPlan, seen: Collection[str], source: str, key: str) -> None:
    """Raises `DataError` for a name in `columns` that no row has: parts that a row may lack would
    be passed over without a word."""
    for part, name in columns:
        if name is not None and name not in seen:
            raise DataError(
                f"{key.rpartition('.')[0]}.columns.{part}: expected a column of "
                f"{one_line(source)}, got {one_line(name, 60)!r}, which no row has; it has "
                f"{_list(sorted(seen))}"
            )


def skip_or_refuse(where: str, bad: BadRow, on_bad_row: Literal["refuse", "skip"]) -> None:
    """Raises `DataError` for a bad row that the plan does not skip."""
    if on_bad_row == "refuse":
        raise DataError(f"{where}: {bad}; mend the row, or set data.on_bad_row: skip")


# -- forms ---------------------------------------------------------------------------------


def _row(
    fields: Any,
    where: str,
    digest: bytes,
    columns: ColumnsPlan,
    label_column: str | None,
    source: str,
    remarks: Remarks,
) -> tuple[Row, set[str]]:
    """The row, and the columns that it is made of."""
    if not isinstance(fields, dict):
        hint = " (a file that is one list ends in .json)" if isinstance(fields, list) else ""
        raise BadRow(f"expected an object with named fields, got {type(fields).__name__}{hint}")
    label, used = source, set[str]()
    if label_column is not None:
        if fields.get(label_column) is None:
            raise BadRow(f"expected the column {label_column} to split by, found none")
        label = str(fields[label_column])
        used.add(label_column)
    name = _turns_column(fields, columns)
    if name is not None:
        turns = read_turns(fields.get(name), name)
        used.add(name)
    else:
        turns = _question_and_answer(fields, columns, used)
    turns = _with_system(turns, fields, columns, used)
    tools = _tools(fields, columns, used)
    last = max((k for k, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
    cut, turns = last < len(turns), turns[:last]
    shown = name or "the row"
    if not {"user", "tool"} & {turn.role for turn in turns} or not last:
        raise BadRow(f"expected a user's turn and an assistant's answer in {shown}")
    if not any(turn.learnt for turn in turns if turn.role == "assistant"):
        raise BadRow(f"expected an answer with loss in {shown}, got weight 0 on all")
    if cut:
        remarks.row(AFTER_LAST, where)
    return Row(turns, where, label, tools, digest), used


def _turns_column(fields: dict[str, Any], columns: ColumnsPlan) -> str | None:
    """The column of turns, or None for a row of question and answer."""
    if columns.messages or columns.prompt or columns.response:
        return columns.messages
    present = [name for name in _TURNS if carries_meaning(fields.get(name))]
    _only_one(fields, present, "column of turns", "messages")
    if present:
        return present[0]
    # An empty list of turns says more in an error than a prompt that is not there.
    empty = [name for name in _TURNS if name in fields]
    return empty[0] if empty and not any(name in fields for name in _PROMPTS) else None


def _only_one(fields: dict[str, Any], names: list[str], what: str, key: str) -> None:
    # Of most rows there is one or none, and writing text as JSON takes as long as all else here.
    if len(names) > 1 and len({json.dumps(fields[name], default=str) for name in names}) > 1:
        raise BadRow(
            f"expected one {what}, found {' and '.join(names)}; say which in columns.{key}"
        )


def _question_and_answer(
    fields: dict[str, Any], columns: ColumnsPlan, used: set[str]
) -> tuple[Turn, ...]:
    response = columns.response or _usual(fields, _RESPONSES, "a response", "response", used)
    prompt, extra = _prompt(fields, columns, used)
    used |= {prompt, response}
    if isinstance(fields.get(prompt), list) and isinstance(fields.get(response), list):
        # TRL's form: only the completion is learnt, and no text follows the prompt.
        used -= {*_INPUTS, columns.input or ""} - {prompt, response}
        asked = tuple(replace(turn, learnt=False) for turn in read_turns(fields[prompt], prompt))
        return (*asked, *read_turns(fields[response], response))
    question = _text(fields, prompt, required=True)
    answer = _text(fields, response, required=True)
    more = ""
    if extra is not None:
        used.add(extra)
        more = _text(fields, extra, required=False)
    user = f"{question}\n\n{more}" if more.strip() else question
    return (
        *_history(fields, columns, used),
        Turn("user", user),
        Turn("assistant", answer),
    )


def _usual(
    fields: dict[str, Any], names: tuple[str, ...], what: str, key: str, used: set[str]
) -> str:
    """The one column of `names` that says something. Raises `BadRow` for none, and for two."""
    present = [name for name in names if carries_meaning(fields.get(name))]
    _only_one(fields, present, f"column for {what}", key)
    if present:
        used |= set(present)
        return present[0]
    empty = [name for name in names if name in fields]
    if empty:
        return empty[0]
    hint = ""
    if {"chosen", "rejected"} <= fields.keys():
        hint = ": a preference set; to learn the chosen answers say so in columns"
    raise BadRow(
        f"expected {what} in one of {', '.join(names)} (or messages), found columns "
        f"{_list(fields)}{hint}"
    )


def _prompt(fields: dict[str, Any], columns: ColumnsPlan, used: set[str]) -> tuple[str, str | None]:
    """The column of the prompt, and that of the text which follows it, if any."""
    taken = {name for _, name in columns if name}
    inputs = [
        name
        for name in _INPUTS
        if name not in taken
        and carries_meaning(fields.get(name))
        # The usual name of a retrieved text is also that of lists and structs, which are not it.
        and (name == "input" or isinstance(fields[name], str))
    ]
    extra = columns.input
    if extra is not None and extra not in fields:
        raise BadRow(f"expected the column {extra}, found columns {_list(fields)}")
    prompts = [name for name in _PROMPTS if carries_meaning(fields.get(name))]
    if columns.prompt is not None:
        prompt = columns.prompt
    elif prompts in (["instruction", "question"], ["instruction", "query"]) and not (
        inputs or extra or fields["instruction"] == fields[prompts[1]]
    ):
        # What to do, and what to do it with.
        return prompts[0], prompts[1]
    elif not prompts and inputs == ["input"] and not any(name in fields for name in _PROMPTS):
        return "input", extra
    else:
        prompt = _usual(fields, _PROMPTS, "a prompt", "prompt", used)
    if extra is None:
        _only_one(fields, inputs, "column to follow the prompt", "input")
        used |= set(inputs)
        extra = inputs[0] if inputs else None
    return prompt, extra


def _history(fields: dict[str, Any], columns: ColumnsPlan, used: set[str]) -> tuple[Turn, ...]:
    """Alpaca's earlier rounds; they are learnt too. Text of that name is another thing."""
    name = columns.history or "history"
    value = fields.get(name)
    as_json = isinstance(value, str) and value.lstrip().startswith("[[")
    if not carries_meaning(value) or not (columns.history or as_json or isinstance(value, list)):
        return ()
    used.add(name)
    rounds = list_in(value, name, "rounds")
    if all(isinstance(turn, dict) for turn in rounds):
        return read_turns(rounds, name)
    return tuple(turn for pair in rounds for turn in round_of(pair, name))


def _with_system(
    turns: tuple[Turn, ...], fields: dict[str, Any], columns: ColumnsPlan, used: set[str]
) -> tuple[Turn, ...]:
    name = columns.system or "system"
    if columns.system is not None and name not in fields:
        raise BadRow(f"expected the column {name}, found columns {_list(fields)}")
    if name in used:
        return turns
    system = _text(fields, name, required=False)
    used.add(name)
    if not system.strip():
        return turns
    if turns[0].role in ("system", "developer"):
        if turns[0].content != system:
            raise BadRow(f"expected one system text, got one in {name} and one in the turns")
        return turns
    return (Turn("system", system), *turns)


def _tools(fields: dict[str, Any], columns: ColumnsPlan, used: set[str]) -> str:
    name = columns.tools or "tools"
    value = fields.get(name)
    as_text = isinstance(value, str) and not value.lstrip().startswith("[")
    if name in used or not carries_meaning(value) or (as_text and columns.tools is None):
        return ""
    used.add(name)
    tools = list_in(value, name, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"expected a list of objects in {name}, got something else in it")
    for text in texts_in(tools):
        unicode_text(text, name)
    try:
        return json.dumps(tools, ensure_ascii=False) if tools else ""
    except TypeError as error:
        raise BadRow(f"expected text, numbers and lists in {name}, but {error}") from None


def _list(names: Collection[str]) -> str:
    shown = [name if name == one_line(name) else repr(name) for name in map(str, names)]
    return one_line(", ".join(shown[:8]), 160) or "none"


def _text(fields: dict[str, Any], name: str, *, required: bool) -> str:
    value = fields.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"expected text in {name}, got {type(value).__name__}")
    if required and not value.strip():
        raise BadRow(f"expected text in {name}, got an empty one")
    return unicode_text(value, name)
