"""Conversations as the model's text: the tokenizer's chat template, or a stated fallback.

Loss is on the assistant's turns only. Where a turn's answer lies is found in the rendered text
and carried to tokens by the tokenizer's offsets, so that it holds for any template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedshield.errors import ModelError

Message = dict[str, str]

#: Used when the tokenizer has no template, or the plan says `chat_template: fallback`. It asks
#: with no space at the end: many tokenizers make one token of a space and the word after it.
FALLBACK_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token + '\\n' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + '\\n' }}"
    "{% else %}{{ 'User: ' + m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Tokens:
    """One tokenised conversation. `labels` is -100 where no loss is taken."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    num_dropped: int

    @property
    def num_response(self) -> int:
        return sum(label != -100 for label in self.labels)


def use_template(tokenizer: Any, choice: str) -> str:
    """Settle the template on the tokenizer; returns 'tokenizer' or 'fallback'."""
    if choice == "auto" and tokenizer.chat_template:
        return "tokenizer"
    if tokenizer.eos_token is None:
        raise ModelError("model: the tokenizer has no end-of-text token; add one to its config")
    # A template writes all special tokens itself: also the first one, where texts begin with it.
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + FALLBACK_TEMPLATE
    return "fallback"


def render(tokenizer: Any, messages: list[Message], *, generate: bool = False) -> str:
    """The conversation's text. Raises `ModelError` if the template refuses it."""
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        )
    except Exception as error:
        raise ModelError(
            f"chat template: refused roles {[m['role'] for m in messages]} "
            f"({str(error).splitlines()[0][:100] if str(error) else type(error).__name__}); "
            "set model.chat_template: fallback"
        ) from None


def tokenise(tokenizer: Any, messages: list[Message], max_length: int) -> Tokens:
    """Tokens and labels of a conversation, cut after `max_length` tokens (the number cut is
    in `num_dropped`). Raises `ModelError` if the answers cannot be found in the text."""
    text = render(tokenizer, messages)
    spans = [
        _answer_span(tokenizer, messages, turn, text)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    # A token that the answer shares with the prompt's last white space is the answer's.
    labels = [
        token
        if any(low < end <= high and not text[start:low].strip() for low, high in spans)
        else -100
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return Tokens(
        tuple(ids[:max_length]), tuple(labels[:max_length]), max(0, len(ids) - max_length)
    )


def _answer_span(tokenizer: Any, messages: list[Message], turn: int, text: str) -> tuple[int, int]:
    upto = render(tokenizer, messages[: turn + 1])
    asked = render(tokenizer, messages[:turn], generate=True)
    if text.startswith(upto):
        if upto.startswith(asked):
            return len(asked), len(upto)
        # Asking writes what answering does not (say, the start of a thought): from the answer on.
        before = render(tokenizer, messages[:turn])
        if upto.startswith(before):
            content = messages[turn]["content"].strip()
            shared = _shared_length(asked, upto)
            at = upto.find(content, max(len(before), shared - len(content)))
            if at >= 0:
                return at, len(upto)
    raise ModelError(
        "chat template: does not render turns one after the other, so answers cannot be told "
        "from prompts; set model.chat_template: fallback"
    )


def _shared_length(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
