"""Where a chat's turns end: what its template writes right after an assistant's answer.

A model that is tuned on a chat learns to end with that token. It need not be the tokenizer's
end-of-text token, so whoever generates must ask the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedshield.errors import ModelError
from fedshield.model.chat import Message, render

_ANSWER = "zanswerz"
_SYSTEM: Message = {"role": "system", "content": "Be brief."}
_QUESTION: Message = {"role": "user", "content": "Go on?"}


def turn_end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of the special tokens that the chat template writes right after an answer: of the
    last turn, then of one in the middle if it ends with another. Empty where plain text or nothing
    follows an answer; `turn_end_text` then says what. The template must be settled
    (`chat.use_template`). Raises `ModelError` if it refuses a question with an answer."""
    ends = [_end(tokenizer, text)[0] for text in (_chat(tokenizer), _longer(tokenizer)) if text]
    return tuple(dict.fromkeys(end for end in ends if end is not None))


def turn_end_text(tokenizer: Any) -> str:
    """The text that follows the last answer, white space stripped; '' if there is none. Raises
    `ModelError` if the template refuses a question with an answer."""
    return _end(tokenizer, _chat(tokenizer))[1]


def _chat(tokenizer: Any) -> str:
    """The text of a chat that ends with the answer."""
    try:
        return render(tokenizer, [_QUESTION, {"role": "assistant", "content": _ANSWER}])
    except ModelError as refusal:
        # A template may want a system's turn first.
        chat = [_SYSTEM, _QUESTION, {"role": "assistant", "content": _ANSWER}]
        if (text := _rendered(tokenizer, chat)) is not None:
            return text
        raise refusal


def _longer(tokenizer: Any) -> str | None:
    """The text of a chat that goes on after the answer, up to another answer or, where the template
    takes no such chat, a question; None where it takes neither."""
    for system in ([], [_SYSTEM]):
        chat = [*system, _QUESTION, {"role": "assistant", "content": _ANSWER}, _QUESTION]
        for turns in ([*chat, {"role": "assistant", "content": "Yes."}], chat):
            if (text := _rendered(tokenizer, turns)) is not None:
                return text
    return None


def _rendered(tokenizer: Any, turns: Sequence[Message]) -> str | None:
    try:
        return render(tokenizer, turns)
    except ModelError:
        return None


def _end(tokenizer: Any, text: str) -> tuple[int | None, str]:
    """The special token right after the answer, and all text after it."""
    at = text.rfind(_ANSWER)
    if at < 0:  # a template that leaves answers out: `chat.tokenise` refuses it
        return None, ""
    after = at + len(_ANSWER)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if start >= after and text[start:end].strip():
            special = token in tokenizer.added_tokens_decoder
            return (token if special else None), text[after:].strip()
    return None, text[after:].strip()
