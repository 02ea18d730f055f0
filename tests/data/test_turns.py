"""Turns of public chat sets: each form is read whole, each wrong one is named for what it is."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest

from fedshield.data.text_files import BadRow
from fedshield.data.turns import Turn, read_turns, texts_in

ASK = {"role": "user", "content": "Is bed 4 free?"}
CALL = {"type": "function", "function": {"name": "beds", "arguments": {"ward": 4}}}


def turns(*given: dict[str, Any]) -> tuple[Turn, ...]:
    return read_turns(list(given), "messages")


def refused(*given: Any) -> str:
    with pytest.raises(BadRow) as caught:
        read_turns(list(given), "messages")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("human", "user"),
        ("User", "user"),
        ("gpt", "assistant"),
        ("model", "assistant"),
        ("function", "tool"),
        ("observation", "tool"),
        ("developer", "developer"),
        ("system", "system"),
    ],
)
def test_names_of_roles(name: str, role: str) -> None:
    (turn,) = turns({"from": name, "value": "text"})
    assert (turn.role, turn.content) == (role, "text")


def test_text_stays_as_it_stands() -> None:
    text = "    if x:\n        return 1\n"
    assert turns({"role": "assistant", "content": text})[0].content == text


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Is bed "}, {"type": "text", "text": "4 free?"}]
    assert turns({"role": "user", "content": parts}) == turns(ASK)


def test_other_keys_go_on_to_the_template() -> None:
    (turn,) = turns({"role": "user", "name": "Ada", "content": "Hi", "score": 3, "note": None})
    assert turn.as_message() == {"role": "user", "content": "Hi", "name": "Ada", "score": 3}


def test_dates_and_decimals_beside_the_text_go_on_as_a_template_writes_them() -> None:
    """As in chats that were logged with the time of each turn, and stored as Parquet."""
    said = datetime.datetime(2024, 5, 1, 12, 30)
    (turn,) = turns({"role": "user", "content": "Hi", "at": said, "price": Decimal("1.50")})
    assert turn.as_message() == {
        "role": "user",
        "content": "Hi",
        "at": "2024-05-01 12:30:00",
        "price": "1.50",
    }
    assert "expected text, numbers and lists in turn 1" in refused(
        {"role": "user", "content": "Hi", "raw": b"\xff"}
    )


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_under_each_of_its_names(key: str) -> None:
    (turn,) = turns({"role": "assistant", "content": "4", key: "twice two"})
    assert turn.as_message()["reasoning_content"] == "twice two"


def test_calls_beside_no_text() -> None:
    (turn,) = turns({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert turn.as_message() == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_sharegpts_function_call_is_a_call() -> None:
    text = json.dumps({"name": "beds", "arguments": {"ward": 4}})
    (turn,) = turns({"from": "function_call", "value": text})
    assert turn.as_message() == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("keys", "learnt"),
    [
        ({"weight": 0}, False),
        ({"weight": 1.0}, True),
        ({"train": False}, False),
        ({"loss": True}, True),
        ({"weight": None}, True),
    ],
)
def test_weights_of_answers(keys: dict[str, Any], learnt: bool) -> None:
    (turn,) = turns({"role": "assistant", "content": "Yes.", **keys})
    assert turn.learnt is learnt
    assert turn.more == "{}"


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"role": "assistant", "content": "a", "weight": 0.5}, "expected weight 0 or 1 in turn 2"),
        ({"role": "assistant", "content": "a", "weight": "1"}, "expected weight 0 or 1 in turn 2"),
        ({"role": "user", "content": "a", "weight": 1}, "expected loss on an assistant's turns"),
        ({"role": "assistant", "content": "a", "weight": 1, "train": False}, "which differ"),
        ({"role": "assistant", "content": ""}, "in turn 2 of messages (assistant), got an empty"),
        ({"role": "assistant", "content": None}, "got content null (and no tool_calls)"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "in an assistant's turn"),
        ({"role": "user", "content": "a", "value": "b"}, "got both, which differ"),
        ({"role": "assistant", "content": "a", "thinking": "b", "reasoning": "c"}, "one thought"),
        ({"from": "function_call", "value": "beds(4)"}, "a JSON object with name and arguments"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "a part of type 'input_audio'"),
        ({"role": "user", "content": {"text": "a"}}, "as the content of turn 2 of messages, got d"),
        ({"role": 7, "content": "a"}, "got role '7'"),
    ],
)
def test_what_is_wrong_is_named(turn: dict[str, Any], says: str) -> None:
    assert says in refused(ASK, turn)


def test_texts_of_a_value_are_all_found() -> None:
    value = {"a": ["b", {"c": "d"}], "e": 1}
    assert texts_in(value) == ["a", "b", "c", "d", "e"]
