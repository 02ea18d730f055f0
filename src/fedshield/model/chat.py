"""Conversations as the model's text: the tokenizer's chat template, or a stated fallback.

Loss is on the assistant's turns only. Where a turn's answer lies is found in the rendered text
and carried to tokens by the tokenizer's offsets, so that it holds for any template. Texts are
written as they stand: what a template trims or leaves out is the template's doing.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedshield.errors import ModelError
from fedshield.model.clock import at_date, writes_chance, writes_date
from fedshield.notes import one_line

#: `role` and `content`, and whatever else the template may write of a turn.
Message = dict[str, Any]

#: Used when the tokenizer has no template, or the plan says `chat_template: fallback`. It asks
#: with no space at the end: many tokenizers make one token of a space and the word after it.
FALLBACK_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token + '\\n' }}"
    "{% elif m['role'] in ('system', 'developer') %}{{ m['content'] + '\\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\\n' }}"
    "{% else %}{{ raise_exception('the fallback template has no role ' + m['role']) }}{% endif %}"
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


@dataclass(frozen=True)
class Passage:
    """The rendered text of a conversation's first `turns` turns, and the parts of it that have
    loss: (start, end) in characters. `asked`: what the template writes to ask for an answer and
    leaves out where the answer follows, of the first such answer; '' where there is none."""

    text: str
    turns: int
    learnt: tuple[tuple[int, int], ...]
    asked: str = ""


def use_template(tokenizer: Any, choice: str, date: datetime.date | None = None) -> str:
    """Settle the template on the tokenizer; returns 'tokenizer' or 'fallback'. `date`: what a
    template that asks for today's date is told; None: today. Raises `ModelError`."""
    tokenizer.chat_date = date or datetime.date.today()
    template = tokenizer.chat_template
    if choice == "auto" and template:
        texts = template.values() if isinstance(template, dict) else (template,)
        if any(map(writes_chance, texts)):
            raise ModelError(
                "chat template: expected the same text for the same row, got a template that "
                "draws at random; set model.chat_template: fallback"
            )
        return "tokenizer"
    if tokenizer.eos_token is None:
        raise ModelError(
            "model: expected an end-of-text token, with which the fallback chat template ends "
            "answers, got a tokenizer with none; set eos_token in tokenizer_config.json, or give "
            "it a chat template"
        )
    # A template writes all special tokens itself: also the first one, where texts begin with it.
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + FALLBACK_TEMPLATE
    return "fallback"


def date_in(tokenizer: Any) -> datetime.date | None:
    """The date that the settled template writes into every text; None if it writes none."""
    template = tokenizer.get_chat_template()
    return _date(tokenizer) if writes_date(template) else None


def _date(tokenizer: Any) -> datetime.date:
    return getattr(tokenizer, "chat_date", None) or datetime.date.today()


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    generate: bool = False,
) -> str:
    """The conversation's text; with `generate` up to where an answer begins. Raises `ModelError` if
    the template refuses it."""
    try:
        template = tokenizer.get_chat_template(tools=tools)
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=at_date(template, _date(tokenizer)),
                tokenize=False,
                add_generation_prompt=generate,
            )
        )
    except Exception as error:
        roles = one_line(", ".join(str(message["role"]) for message in messages), 80)
        why = one_line(str(error), 120) or type(error).__name__
        raise ModelError(f"the chat template refuses the turns {roles} ({why})") from None


def passages(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    learnt: Sequence[bool] | None = None,
    last_only: bool = False,
) -> tuple[Passage, ...]:
    """The texts that teach a conversation's answers, each once; nearly always one text.

    A template may write an answer otherwise once a later turn follows (a thought in the last answer
    only). Such an answer gets a text of its own, which ends with it: what the model will have
    written when it was that answer's turn.

    Args:
        messages: the turns; those of the assistant are the answers.
        tools: for the template.
        learnt: of each turn, whether it has loss if it is an answer; None: all.
        last_only: one text, that of the last answer; rewritten ones have no loss.

    Raises:
        ModelError: the template refuses the turns, or an answer cannot be found in its text.
    """
    asked_for = [True] * len(messages) if learnt is None else learnt
    rest = [
        turn
        for turn, message in enumerate(messages)
        if message["role"] == "assistant" and asked_for[turn]
    ]
    texts: list[Passage] = []
    upto = len(messages)
    while rest:
        text = render(tokenizer, messages[:upto], tools=tools)
        spans = {
            turn: span
            for turn in rest
            if turn < upto and (span := _answer_span(tokenizer, messages, turn, upto, text, tools))
        }
        if spans:
            learnt_parts = tuple((start, end) for start, end, _ in spans.values())
            asked = next((asked for _, _, asked in spans.values() if asked), "")
            texts.append(Passage(text, upto, learnt_parts, asked))
        elif upto == rest[-1] + 1:
            raise _inseparable(tokenizer, messages[:upto], text, tools)
        rest = [turn for turn in rest if turn not in spans]
        if last_only and texts:
            break
        upto = rest[-1] + 1 if rest else 0
    return tuple(reversed(texts))


def _inseparable(
    tokenizer: Any, messages: Sequence[Message], text: str, tools: list[Any] | None
) -> ModelError:
    """Why the last answer cannot be told from what comes before it in `text`."""
    if len(messages) > 1:
        try:
            render(tokenizer, messages[:-1], tools=tools, generate=True)
        except ModelError as refusal:
            return refusal
    answer = str(messages[-1].get("content", "")).strip()
    if answer and text.rstrip().rfind(answer) > 0:
        why = "writes the turns before the last answer otherwise once the answer follows"
    else:
        why = "does not write the last answer as it stands"
    return ModelError(f"the chat template {why}, so answer and prompt cannot be told apart")


def encode(tokenizer: Any, passage: Passage, max_length: int) -> Tokens:
    """Tokens and labels of a text, cut after `max_length` tokens; `num_dropped` says how many."""
    text = passage.text
    # Not `verbose`: the tokenizer would warn of a length before it is cut.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    # A token that the answer shares with the prompt's last white space is the answer's.
    labels = [
        token
        if any(low < end <= high and not text[start:low].strip() for low, high in passage.learnt)
        else -100
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return Tokens(
        tuple(ids[:max_length]), tuple(labels[:max_length]), max(0, len(ids) - max_length)
    )


def tokenise(tokenizer: Any, messages: Sequence[Message], max_length: int) -> Tokens:
    """Tokens and labels of a conversation as one text, cut after `max_length` tokens. Raises
    `ModelError` if the answers cannot be found in the text."""
    (passage,) = passages(tokenizer, messages, last_only=True)
    return encode(tokenizer, passage, max_length)


def _answer_span(
    tokenizer: Any,
    messages: Sequence[Message],
    turn: int,
    end: int,
    text: str,
    tools: list[Any] | None,
) -> tuple[int, int, str] | None:
    """Where in `text`, the rendered `messages[:end]`, the answer of `turn` lies, and what asking
    writes and answering does not; None where the text does not begin with the conversation up to
    the answer."""
    upto = text if turn + 1 == end else _rendered(tokenizer, messages[: turn + 1], tools)
    if upto is None or not text.startswith(upto):
        return None
    if turn:
        asked = _rendered(tokenizer, messages[:turn], tools, generate=True)
        if asked is None:
            return None
        if upto.startswith(asked):
            return len(asked), len(upto), ""
        # Asking writes what answering does not (say, the start of a thought): from the answer on.
        before = _rendered(tokenizer, messages[:turn], tools)
        if before is None or not upto.startswith(before):
            return None
    else:  # an answer to nothing, such as a greeting
        asked = before = ""
    thought, content = (
        str(messages[turn].get(key, "")) for key in ("reasoning_content", "content")
    )
    for wanted in (thought, thought.strip(), content, content.strip()):
        shared = _shared_length(asked, upto)
        at = upto.find(wanted, max(len(before), shared - len(wanted)))
        if wanted and at >= 0:
            return at, len(upto), asked[_shared_length(asked, upto) :]
    return None


def _rendered(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: list[Any] | None,
    *,
    generate: bool = False,
) -> str | None:
    """The text of a conversation's beginning; None where the template refuses it."""
    try:
        return render(tokenizer, messages, tools=tools, generate=generate)
    except ModelError:
        return None


def _shared_length(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
