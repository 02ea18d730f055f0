"""Whether a row can be used with this tokenizer and its chat template, and what they leave of it.

A row that the template refuses, or that spells one of the tokenizer's control tokens, is a bad row:
in the chat a control token would not be text but a command, such as the end of a turn. What the
template does not write of a row is found by rendering it with and without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedshield.data.remarks import Remarks, named
from fedshield.data.rows import Row
from fedshield.data.text_files import BadRow
from fedshield.data.turns import texts_in
from fedshield.errors import ModelError
from fedshield.model.chat import Message, Passage, passages, render
from fedshield.notes import one_line

TRIMMED = "the chat template trims white space around text"
SPLIT = "the chat template rewrites earlier answers: each of those has a text of its own"
ASKED = (
    "the chat template begins an answer that it asks for with {}, and leaves that out of answers "
    "that are given, which are learnt without it"
)
LAST_ONLY = (
    "the chat template rewrites earlier answers: they have no loss, since with privacy.unit "
    "example a conversation counts once"
)


@dataclass(frozen=True)
class Example:
    """A usable row and the texts that teach it; one, but where the template rewrites answers."""

    row: Row
    passages: tuple[Passage, ...]


class Reader:
    """Rows as the chat template writes them. `last_only`: a row is one text, whatever the template
    does. `remarks`: told of what is not used."""

    def __init__(self, tokenizer: Any, remarks: Remarks, *, last_only: bool = False) -> None:
        self._tokenizer = tokenizer
        self._remarks = remarks
        self._last_only = last_only
        self._marks = control_tokens(tokenizer)
        self._dropped: dict[tuple[tuple[object, ...], ...], tuple[str, ...]] = {}

    def example(self, row: Row) -> Example:
        """The row's texts. Raises `BadRow`; a `DataError` where the plan refuses unused keys."""
        messages, tools = row.as_messages(), row.as_tools()
        learnt = [turn.learnt for turn in row.turns]
        self._no_control_tokens([turn.content for turn in row.turns])
        try:
            messages = _calls_as_written(self._tokenizer, messages, tools)
            texts = passages(
                self._tokenizer, messages, tools=tools, learnt=learnt, last_only=self._last_only
            )
        except ModelError as error:
            self._no_silent_calls(messages, tools)
            raise BadRow(str(error)) from None
        used, unused = self._used(row, messages, tools, texts)
        self._no_control_tokens(used)
        for name in unused:
            self._remarks.unused(f"{name} (by the chat template)", row.where)
        self._left_out(row, messages, tools, texts)
        return Example(row, texts)

    def _no_control_tokens(self, texts: Sequence[str]) -> None:
        for text in texts:
            if mark := self._marks.search(text):
                raise BadRow(f"expected text without control tokens, got the tokenizer's {mark[0]}")

    # -- what the template does not write --------------------------------------------------

    def _used(
        self,
        row: Row,
        messages: Sequence[Message],
        tools: list[Any] | None,
        texts: Sequence[Passage],
    ) -> tuple[list[str], list[str]]:
        """Texts of the keys and tools that change what is written, and the names of the others.
        Raises `BadRow` for a turn of nothing but calls that are not written."""
        keys = sorted({key for message in messages for key in message} - {"role", "content"})
        used: list[str] = []
        if keys and not self._differs(_without(messages, keys), tools, texts):
            unused = keys
        else:
            unused = [
                key for key in keys if not self._differs(_without(messages, [key]), tools, texts)
            ]
        if "tool_calls" in unused:
            _refuse_silent_calls(messages)
        names = [
            f"{named('key', name)} of turns" for key in unused for name in _own_names(row, key)
        ]
        for key in set(keys) - set(unused):
            used += [text for item in messages for text in texts_in(item.get(key))]
        if tools is not None:
            if self._differs(messages, None, texts):
                used += texts_in(tools)
            else:
                names.append(named("column", "tools"))
        return used, names

    def _no_silent_calls(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Raises `BadRow` where a turn is nothing but calls, and the template does not write
        them."""
        without = _without(messages, ["tool_calls"])
        if without != messages:
            written = (render(self._tokenizer, turns, tools=tools) for turns in (messages, without))
            try:
                if len(set(written)) == 1:
                    _refuse_silent_calls(messages)
            except ModelError:  # the template refuses the row for a reason of its own
                return

    def _differs(
        self, messages: Sequence[Message], tools: list[Any] | None, texts: Sequence[Passage]
    ) -> bool:
        """Whether these turns would be written otherwise than as `texts`."""
        try:
            return any(
                render(self._tokenizer, messages[: one.turns], tools=tools) != one.text
                for one in texts
            )
        except ModelError:
            return True

    def _left_out(
        self,
        row: Row,
        messages: Sequence[Message],
        tools: list[Any] | None,
        texts: Sequence[Passage],
    ) -> None:
        """Name what is trimmed, left out, or split into several texts."""
        remarks, where = self._remarks, row.where
        contents = [turn.content for turn in row.turns]
        if any(text != text.strip() for text in contents):
            stripped = [{**item, "content": item["content"].strip()} for item in messages]
            if not self._differs(stripped, tools, texts) or any(
                not _written(text, texts) and _written(text.strip(), texts) for text in contents
            ):
                remarks.row(TRIMMED, where)
        missing = {
            turn.role
            for turn in row.turns
            if turn.content.strip() and not _written(turn.content.strip(), texts)
        }
        for role in sorted(missing | set(self._roles_not_written(messages, tools, texts))):
            remarks.row(
                f"the chat template leaves out text of the role {role}, or rewrites it", where
            )
        wanted = sum(turn.role == "assistant" and turn.learnt for turn in row.turns)
        if asked := next((one.asked for one in texts if one.asked), ""):
            remarks.row(ASKED.format(repr(one_line(asked, 40))), where)
        if len(texts) > 1:
            remarks.row(SPLIT, where)
        elif self._last_only and wanted > len(texts[0].learnt):
            remarks.row(LAST_ONLY, where)

    def _roles_not_written(
        self, messages: Sequence[Message], tools: list[Any] | None, texts: Sequence[Passage]
    ) -> tuple[str, ...]:
        """Roles whose text the template drops, by words that occur nowhere else: a short text
        can be in the rendering by chance. Asked once for rows that are built alike."""
        shape = (
            *((str(item["role"]), bool(item["content"]), *sorted(item)) for item in messages),
            (tools is not None, *(one.turns for one in texts)),
        )
        if shape not in self._dropped:
            probes = [
                f"qx{place}z" if item["content"] else "" for place, item in enumerate(messages)
            ]
            asked = [
                {**item, "content": probe} for item, probe in zip(messages, probes, strict=True)
            ]
            try:
                written = "".join(
                    render(self._tokenizer, asked[: one.turns], tools=tools) for one in texts
                )
            except ModelError:  # it looks into texts: what it says of the row itself stands
                written = "".join(probes)
            self._dropped[shape] = tuple(
                str(item["role"])
                for item, probe in zip(messages, probes, strict=True)
                if probe not in written
            )
        return self._dropped[shape]


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds any text that the tokenizer takes for one of its special tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = {*tokenizer.all_special_tokens, *added} - {""}
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _own_names(row: Row, key: str) -> list[str]:
    """The names that the file has for this key of its turns."""
    if key != "reasoning_content":
        return [key]
    return sorted({turn.thought_key for turn in row.turns} - {""})


def _refuse_silent_calls(messages: Sequence[Message]) -> None:
    """Raises `BadRow` for a turn of nothing but calls, which are not written."""
    for place, message in enumerate(messages, 1):
        if "tool_calls" in message and not message["content"].strip():
            raise BadRow(
                f"expected an answer in turn {place}, got tool_calls alone, which the chat "
                "template does not write"
            )


def _written(text: str, texts: Sequence[Passage]) -> bool:
    return any(text in one.text for one in texts)


def _without(messages: Sequence[Message], keys: Sequence[str]) -> list[Message]:
    return [{key: item[key] for key in item if key not in keys} for item in messages]


# -- calls of tools ------------------------------------------------------------------------


def _calls_as_written(
    tokenizer: Any, messages: list[Message], tools: list[Any] | None
) -> list[Message]:
    """The turns, with arguments of tool calls in the form that the template writes as JSON.

    Data sets give arguments as an object or as its JSON text; templates expect one of the two. The
    other is written wrongly: text in quotes with escapes, or an object in Python's spelling.
    """
    if not any("tool_calls" in message for message in messages):
        return messages
    forms = [messages, _with_arguments(messages, as_text=False)]
    forms.append(_with_arguments(messages, as_text=True))
    refusal: ModelError | None = None
    for form in forms:
        try:
            text = render(tokenizer, form, tools=tools)
        except ModelError as error:
            refusal = refusal or error
            continue
        if not any(_misspelt(arguments, text) for arguments in _arguments(form)):
            return form
    if refusal is not None:
        raise refusal
    raise ModelError(
        "the chat template writes the arguments of tool_calls neither as an object nor as text"
    )


def _functions(messages: Sequence[Message]) -> list[dict[str, Any]]:
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    functions = [call.get("function", call) if isinstance(call, dict) else None for call in calls]
    return [function for function in functions if isinstance(function, dict)]


def _arguments(messages: Sequence[Message]) -> list[Any]:
    return [function.get("arguments") for function in _functions(messages)]


def _misspelt(arguments: Any, text: str) -> bool:
    if isinstance(arguments, str):
        escaped = json.dumps(arguments, ensure_ascii=False)[1:-1]
        return escaped != arguments and escaped in text
    spelt = str(arguments)
    as_json = json.dumps(arguments, ensure_ascii=False)
    return isinstance(arguments, dict) and spelt != as_json and spelt in text


def _with_arguments(messages: Sequence[Message], *, as_text: bool) -> list[Message]:
    copy: list[Message] = json.loads(json.dumps(list(messages)))
    for function in _functions(copy):
        arguments = function.get("arguments")
        if as_text and isinstance(arguments, dict):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        elif not as_text and isinstance(arguments, str):
            try:
                parsed = json.loads(arguments)
            except ValueError:
                continue
            function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    return copy
