"""Where a chat's turns end, by the template and not by the tokenizer's end-of-text token."""

from __future__ import annotations

from typing import Any

import pytest

from fedshield.errors import ModelError
from fedshield.model.builtin import tiny
from fedshield.model.chat import use_template
from fedshield.model.turns import turn_end_ids, turn_end_text

TURN = "<|im_end|>"
TEXT = "<|endoftext|>"


def tokenizer_with(template: str, eos: str = TEXT) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


def turns(after_answer: str, *, at_the_end: str = "") -> str:
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A: ' + m['content'] }}"
        + after_answer
        + "{% else %}{{ '<|im_start|>' + m['content'] }}{% endif %}{% endfor %}"
        + at_the_end
    )


@pytest.mark.parametrize(
    ("template", "ends", "text"),
    [
        (turns(TURN + "\n"), [TURN], TURN),
        (turns("\n" + TURN + "\n"), [TURN], TURN),
        (turns(" " + TEXT), [TEXT], TEXT),
        # The turn's end comes before the text's end: it is the first that a model writes.
        (turns(TURN + "\n", at_the_end=TEXT), [TURN], TURN + "\n" + TEXT),
        # The last answer ends otherwise than one in the middle.
        (
            turns("{% if loop.last %}" + TEXT + "{% else %}" + TURN + "{% endif %}"),
            [TEXT, TURN],
            TEXT,
        ),
        # Nothing after an answer but the next turn's beginning.
        (turns(""), ["<|im_start|>"], ""),
        # Plain text: no token of its own.
        (turns("\n### end"), [], "### end"),
    ],
)
def test_the_turn_ends_as_the_template_says(template: str, ends: list[str], text: str) -> None:
    tokenizer = tokenizer_with(template)
    assert turn_end_ids(tokenizer) == tuple(tokenizer.convert_tokens_to_ids(ends))
    assert turn_end_text(tokenizer) == text


def test_the_end_of_turn_need_not_be_the_end_of_text() -> None:
    tokenizer = tokenizer_with(turns(TURN + "\n"), eos=TEXT)
    assert turn_end_ids(tokenizer) == (tokenizer.convert_tokens_to_ids(TURN),)
    assert tokenizer.eos_token_id not in turn_end_ids(tokenizer)


def test_the_fallback_ends_with_the_end_of_text() -> None:
    tokenizer = tokenizer_with("", eos=TEXT)
    assert use_template(tokenizer, "fallback") == "fallback"
    assert turn_end_ids(tokenizer) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    "refused",
    [
        "messages | length % 2",  # an odd number of turns, as in chats of whole rounds
        "messages[-1].role == 'user'",  # a chat that ends with a question
        "messages[0].role != 'system'",  # a chat without a system's turn
        "messages | length > 2",  # a longer chat
    ],
)
def test_a_template_that_refuses_some_chats_still_says_how_a_turn_ends(refused: str) -> None:
    rule = "{% if " + refused + " %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = tokenizer_with(rule + turns(TURN + "\n"))
    assert turn_end_ids(tokenizer) == (tokenizer.convert_tokens_to_ids(TURN),)
    assert turn_end_text(tokenizer) == TURN


def test_a_template_that_refuses_every_chat_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"refuses the turns user, assistant \(no\)"):
        turn_end_ids(tokenizer_with("{{ raise_exception('no') }}"))
