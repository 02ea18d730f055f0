"""A prompt's answers by the base model and with the adapter, each ended where a turn ends."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedshield import interrupt
from fedshield.errors import ModelError
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.model.chat import render
from fedshield.model.turns import turn_end_ids
from fedshield.notes import library_words
from fedshield.types import AdapterState

#: Settings of a base's generation_config.json that choose among likely tokens. Answers are greedy.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "num_beams", "penalty_alpha"),
)


def end_ids(base: BaseModel) -> tuple[int, ...]:
    """The tokens at which an answer ends, each once: those of the base's generation config, the
    tokenizer's end of text, and what the chat template writes right after an answer."""
    given = base.model.generation_config.eos_token_id
    of_config = given if isinstance(given, list) else [given]
    ids = [*of_config, base.tokenizer.eos_token_id, *turn_end_ids(base.tokenizer)]
    return tuple(dict.fromkeys(int(number) for number in ids if number is not None))


def answers(
    base: BaseModel,
    host: AdapterHost,
    state: AdapterState,
    prompts: Sequence[str],
    max_new_tokens: int,
    say: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Each prompt's greedy answer by the base model (`base`) and with the adapter (`tuned`).

    `cut` names those of the two that had not ended after `max_new_tokens` tokens, or where the
    model reads no further: the reply's `max_new_tokens`. `note` is told, once each, what of the
    base's generation settings is not used and what transformers warns of.

    Raises:
        ModelError: the chat template refuses a prompt, or it leaves no room for an answer.
    """
    settings, unused = _greedy(base, max_new_tokens)
    if unused:
        note(f"answers are greedy: {', '.join(unused)} of the base's generation settings not used")
    host.write(state)
    results: list[dict[str, Any]] = []
    with library_words() as warned, _in_force(host.model.get_base_model(), settings):
        for number, prompt in enumerate(prompts, start=1):
            interrupt.check()
            say(f"answering prompt {number} of {len(prompts)}")
            inputs, room = _asked(base, prompt)
            length = max_new_tokens if room is None else min(max_new_tokens, room)
            settings.max_new_tokens = length
            with host.model.disable_adapter():
                before, before_ended = _answer(base, host.model, inputs, settings)
            after, after_ended = _answer(base, host.model, inputs, settings)
            ended = {"base": before_ended, "tuned": after_ended}
            cut = [name for name, whole in ended.items() if not whole]
            results.append(
                {
                    "prompt": prompt,
                    "base": before,
                    "tuned": after,
                    "cut": cut,
                    "max_new_tokens": length,
                }
            )
    for text in warned:
        note(f"transformers, while answering: {text}")
    return results


@contextmanager
def _in_force(model: Any, settings: Any) -> Iterator[None]:
    """These as the model's own settings: `generate` fills in what it is not given from them."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before


def _greedy(base: BaseModel, max_new_tokens: int) -> tuple[Any, list[str]]:
    """The base's generation settings made greedy, and the names of those that it sets in vain."""
    import transformers

    settings = copy.deepcopy(base.model.generation_config)
    build: Any = transformers.GenerationConfig
    standard = build()
    unused = []
    for name in _SAMPLING:
        usual = getattr(standard, name, None)
        if getattr(settings, name, None) not in (None, usual):
            unused.append(name)
            setattr(settings, name, usual)
    if settings.do_sample:
        unused.insert(0, "do_sample")
    settings.do_sample = False
    settings.max_length = None
    settings.max_new_tokens = max_new_tokens
    settings.eos_token_id = list(end_ids(base)) or None
    settings.pad_token_id = base.pad_token_id
    return settings, unused


def check_prompts(base: BaseModel, prompts: Sequence[str]) -> None:
    """See before a run that the prompts of its report can be asked. The template must be settled.
    Raises `ModelError` for one that cannot."""
    for number, prompt in enumerate(prompts, start=1):
        try:
            _asked(base, prompt)
        except ModelError as error:
            raise ModelError(f"evaluation.prompts: prompt {number}: {error}") from None


def _asked(base: BaseModel, prompt: str) -> tuple[Any, int | None]:
    """The prompt's tokens as the model sees them, and how many more it reads; None: any number.
    Raises `ModelError` for a prompt that the chat template refuses, or that leaves no room."""
    text = render(base.tokenizer, [{"role": "user", "content": prompt}], generate=True)
    inputs = base.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    longest, length = base.max_positions, int(inputs["input_ids"].shape[1])
    if longest is None:
        return inputs, None
    if length >= longest:
        raise ModelError(
            f"expected fewer tokens than {base.name} reads ({longest}), so that an answer has "
            f"room, got {length}; shorten the prompt"
        )
    return inputs, longest - length


def _answer(base: BaseModel, model: Any, asked: Any, settings: Any) -> tuple[str, bool]:
    """The answer up to the first token that ends it, and whether there was one. Other special
    tokens stay in the text: they would not be in a good answer."""
    import torch

    inputs = asked.to(base.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=settings,
        )
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    ends = set(settings.eos_token_id or ())
    length = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return str(base.tokenizer.decode(tokens[:length])).strip(), length < len(tokens)
