"""Turns of a conversation, in the forms of public chat sets: OpenAI's, ShareGPT's and TRL's.

Role and content are brought to one form. Every other key of a turn goes on to the chat template,
which may write it (`reasoning_content`, `tool_calls`, `name`); what it does not write is named.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from fedshield.data.remarks import carries_meaning
from fedshield.data.text_files import BadRow, parse_json
from fedshield.model.chat import Message
from fedshield.notes import one_line

_ROLES = {
    **dict.fromkeys(("system", "developer"), None),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "function_call": "assistant",
}
_WEIGHTS = ("weight", "train", "training", "loss")
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_OWN_KEYS = {"role", "content", "from", "value", *_WEIGHTS, *_THOUGHTS}
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Turn:
    """One turn. `learnt`: whether an assistant's turn has loss. `more`: its other keys, as the JSON
    text of an object, for the template. `thought_key`: what the file calls the thought in it; ''
    for none."""

    role: str
    content: str
    learnt: bool = True
    more: str = "{}"
    thought_key: str = field(default="", compare=False)

    def as_message(self) -> Message:
        return {"role": self.role, "content": self.content, **json.loads(self.more)}


def unicode_text(text: str, name: str) -> str:
    """The text as it stands. JSON can spell half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"expected Unicode text in {name}, got half a surrogate pair") from None
    return text


def list_in(value: Any, name: str, of_what: str) -> list[Any]:
    """A list, or one that a table holds as JSON text. Raises `BadRow`."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            raise BadRow(
                f"expected a list of {of_what} in {name}, got text that is no JSON list"
            ) from None
    if not isinstance(value, list):
        raise BadRow(f"expected a list of {of_what} in {name}, got {type(value).__name__}")
    return value


def read_turns(value: Any, name: str) -> tuple[Turn, ...]:
    """The turns in the column `name`, all of them. Raises `BadRow`: which turn, what is wrong."""
    turns = list_in(value, name, "turns")
    if not turns:
        raise BadRow(f"expected a list of turns in {name}, got an empty one")
    return tuple(_turn(turn, f"turn {place} of {name}") for place, turn in enumerate(turns, 1))


def round_of(value: Any, name: str) -> tuple[Turn, Turn]:
    """An earlier round: a list of question and answer. Raises `BadRow`."""
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_text, value))):
        raise BadRow(f"expected lists of question and answer in {name}, got {_kind(value)}")
    question, answer = (unicode_text(text, name) for text in value)
    return Turn("user", question), Turn("assistant", answer)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text" if value.strip() else "an empty text"
    return "nothing" if value is None else f"{type(value).__name__} {one_line(str(value), 40)}"


def _turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow(f"expected role and content in {where}, got {_kind(turn)}")
    role, own_role = _role(turn, where)
    content = _content(turn, where)
    more = {
        key: value for key, value in turn.items() if key not in _OWN_KEYS and carries_meaning(value)
    }
    if "role" in turn and carries_meaning(turn.get("from")):
        more["from"] = turn["from"]
    thought_key, thought = _thought(turn, where)
    if thought:
        more["reasoning_content"] = thought
    if own_role == "function_call":
        content, more["tool_calls"] = "", [_call(content, where)]
    if "tool_calls" in more:
        if role != "assistant":
            raise BadRow(f"expected tool_calls in an assistant's turn, got them in {where}")
        more["tool_calls"] = list_in(more["tool_calls"], f"tool_calls of {where}", "calls")
    if not content.strip() and role != "tool" and "tool_calls" not in more:
        raise BadRow(f"expected text in {where} ({own_role}), got an empty one")
    for text in texts_in(more):
        unicode_text(text, where)
    try:
        keys = json.dumps(more, ensure_ascii=False, sort_keys=True, default=_as_written)
    except TypeError as error:
        raise BadRow(f"expected text, numbers and lists in {where}, but {error}") from None
    learnt = _learnt(turn, role, where)
    return Turn(role, unicode_text(content, where), learnt, keys, thought_key)


def _as_written(value: Any) -> str:
    """Dates and decimals, which Parquet files hold in keys beside the text, as a template writes
    them. Raises `TypeError` for any other."""
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | Decimal):
        return str(value)
    raise TypeError(f"got {type(value).__name__}")


def _role(turn: dict[str, Any], where: str) -> tuple[str, str]:
    given = turn.get("role", turn.get("from"))
    if given is None:
        raise BadRow(f"expected a role in {where}, got keys {one_line(', '.join(turn), 80)}")
    name = given.lower() if isinstance(given, str) else ""
    if name not in _ROLES:
        raise BadRow(
            f"expected the role system, user, assistant or tool in {where}, got role "
            f"{one_line(str(given), 20)!r}"
        )
    return _ROLES[name] or name, name


def _content(turn: dict[str, Any], where: str) -> str:
    content, value = turn.get("content"), turn.get("value")
    if carries_meaning(content) and carries_meaning(value) and content != value:
        raise BadRow(f"expected content or value in {where}, got both, which differ")
    given = value if content is None or (value and not carries_meaning(content)) else content
    if given is None:
        if carries_meaning(turn.get("tool_calls")):
            return ""
        if "content" in turn or "value" in turn:
            raise BadRow(f"expected text in {where}, got content null (and no tool_calls)")
        raise BadRow(f"expected content in {where}, got keys {one_line(', '.join(turn), 80)}")
    if isinstance(given, str):
        return given
    if isinstance(given, list):
        return "".join(_part(part, where) for part in given)
    raise BadRow(f"expected text as the content of {where}, got {_kind(given)}")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRow(f"expected parts with a type in the content of {where}, got {_kind(part)}")
    kind = part.get("type", "text" if "text" in part else None)
    if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise BadRow(
            f"expected parts of text in the content of {where}, got a part of type "
            f"{one_line(str(kind), 30)!r}; only text is trained on"
        )
    others = [key for key, value in part.items() if key not in ("type", "text") and value]
    if others:
        raise BadRow(
            f"expected parts with type and text in the content of {where}, got also "
            f"{one_line(', '.join(map(str, others)), 60)}"
        )
    return str(part["text"])


def _thought(turn: dict[str, Any], where: str) -> tuple[str, str]:
    """The key as written, and the thought; both empty where there is none."""
    thoughts = {key: turn[key] for key in _THOUGHTS if carries_meaning(turn.get(key))}
    if not thoughts:
        return "", ""
    if len(set(map(str, thoughts.values()))) > 1:
        raise BadRow(f"expected one thought in {where}, got {' and '.join(thoughts)}, which differ")
    key, thought = next(iter(thoughts.items()))
    if not isinstance(thought, str):
        raise BadRow(f"expected text as {key} of {where}, got {_kind(thought)}")
    return key, thought


def _call(content: str, where: str) -> dict[str, Any]:
    try:
        call = parse_json(content)
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
        raise BadRow(
            f"expected a JSON object with name and arguments in {where} (function_call), got "
            "other text"
        )
    return {"type": "function", "function": call}


def _learnt(turn: dict[str, Any], role: str, where: str) -> bool:
    given = {key: turn[key] for key in _WEIGHTS if carries_meaning(turn.get(key))}
    if not given:
        return True
    for key, value in given.items():
        if value not in (0, 1, False, True) or isinstance(value, str):
            raise BadRow(f"expected {key} 0 or 1 in {where}, got {_kind(value)}")
    if len({bool(value) for value in given.values()}) > 1:
        raise BadRow(f"expected one weight in {where}, got {' and '.join(given)}, which differ")
    key, value = next(iter(given.items()))
    if value and role != "assistant":
        raise BadRow(
            f"expected loss on an assistant's turns only, got {key} {value} in {where} ({role})"
        )
    return bool(value)


def texts_in(value: Any) -> list[str]:
    """Every text within a JSON value, names of keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *texts_in(item))]
    if isinstance(value, Sequence):
        return [text for item in value for text in texts_in(item)]
    return []
