"""Where a chat's turns end: what its template writes right after an assistant's answer.

A model that is tuned on a chat learns to end with that token. It need not be the tokenizer's
end-of-text token, so whoever generates must ask the template.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedshield.model.chat import render

_ANSWER = "zanswerz"


def turn_end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of the special tokens that the chat template writes right after an answer: of the
    last turn, then of one in the middle if it ends with another. Empty where plain text or nothing
    follows an answer; `turn_end_text` then says what. The template must be settled
    (`chat.use_template`). Raises `ModelError` if it refuses a question with an answer."""
    ends = [_end(tokenizer, text)[0] for text in _chats(tokenizer)]
    return tuple(dict.fromkeys(end for end in ends if end is not None))


def turn_end_text(tokenizer: Any) -> str:
    """The text that follows the last answer, white space stripped; '' if there is none. Raises
    `ModelError` if the template refuses a question with an answer."""
    return _end(tokenizer, next(_chats(tokenizer)))[1]


def _chats(tokenizer: Any) -> Iterator[str]:
    """The text of a chat that ends with the answer, then of one that goes on after it."""
    chat = [{"role": "user", "content": "Go on?"}, {"role": "assistant", "content": _ANSWER}]
    yield render(tokenizer, chat)
    yield render(tokenizer, [*chat, {"role": "user", "content": "Go on?"}])


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
