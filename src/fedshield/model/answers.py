"""A prompt's answers by the base model and with the adapter, each ended where a turn ends."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedshield import interrupt
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

    `cut` names those of the two that had not ended after `max_new_tokens` tokens. `note` is told,
    once each, what of the base's generation settings is not used and what transformers warns of.
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
            with host.model.disable_adapter():
                before, before_ended = _answer(base, host.model, prompt, settings)
            after, after_ended = _answer(base, host.model, prompt, settings)
            ended = {"base": before_ended, "tuned": after_ended}
            cut = [name for name, whole in ended.items() if not whole]
            results.append(
                {
                    "prompt": prompt,
                    "base": before,
                    "tuned": after,
                    "cut": cut,
                    "max_new_tokens": max_new_tokens,
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


def _answer(base: BaseModel, model: Any, prompt: str, settings: Any) -> tuple[str, bool]:
    """The answer up to the first token that ends it, and whether there was one. Other special
    tokens stay in the text: they would not be in a good answer."""
    import torch

    text = render(base.tokenizer, [{"role": "user", "content": prompt}], generate=True)
    inputs = base.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(base.device)
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
