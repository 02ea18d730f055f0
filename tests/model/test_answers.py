"""Answers: greedy, by the base and with the adapter, ended where a turn of the chat ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedshield.errors import ModelError
from fedshield.model import base
from fedshield.model.adapter import AdapterHost
from fedshield.model.answers import answers, check_prompts, end_ids
from fedshield.model.builtin import tiny
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base
from fedshield.types import AdapterState

MakePlan = Callable[..., Plan]

END_OF_TEXT, TURN_START, TURN_END = 256, 257, 258


def host_of(plan: Plan) -> tuple[base.BaseModel, AdapterHost, AdapterState]:
    loaded = load_base(plan)
    host = AdapterHost(loaded.model, plan.adapter, loaded.sha256)
    values = np.random.default_rng(3).standard_normal(host.spec.num_values) * 0.2
    return loaded, host, AdapterState(values.astype(np.float32), host.spec)


def test_answers_are_of_the_base_and_of_the_adapter(make_plan: MakePlan) -> None:
    loaded, host, state = host_of(make_plan())
    zero = AdapterState(np.zeros_like(state.values), state.spec)
    host.write(zero)
    said: list[str] = []
    prompts = ["Define angina.", "naïve?"]
    replies = answers(loaded, host, state, prompts, 12, said.append)
    assert [reply["prompt"] for reply in replies] == prompts
    assert said == ["answering prompt 1 of 2", "answering prompt 2 of 2"]
    for reply, prompt in zip(replies, prompts, strict=True):
        with_zero = answers(loaded, host, zero, [prompt], 12)[0]
        assert with_zero["base"] == with_zero["tuned"] == reply["base"]
        assert reply["tuned"] != reply["base"]
        assert reply["base"] == greedy(tiny.build().eval(), prompt, 12)
        host.write(state)
        assert reply["tuned"] == greedy(host.model, prompt, 12)


def greedy(model: Any, prompt: str, length: int) -> str:
    """The most likely token again and again, all logits each time."""
    tokenizer = tiny.tokenizer()
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + length:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                return str(tokenizer.decode(ids[start:-1])).strip()
    return str(tokenizer.decode(ids[start:])).strip()


class Scripted:
    """In place of a model's `generate`: gives these tokens until one that it is told to end at."""

    def __init__(self, script: list[int]) -> None:
        self.script = script

    def generate(self, input_ids: Any, generation_config: Any, **_: Any) -> Any:
        tokens = []
        for token in self.script[: generation_config.max_new_tokens]:
            tokens.append(token)
            if token in generation_config.eos_token_id:
                break
        return torch.cat([input_ids, torch.tensor([tokens])], dim=1)


def scripted(
    loaded: base.BaseModel, host: AdapterHost, state: AdapterState, text: str, ends: list[int]
) -> dict[str, Any]:
    """The reply to a model that says `text` and then these tokens."""
    script = [*tiny.tokenizer()(text)["input_ids"], *ends]
    host.model.generate = Scripted(script).generate
    return answers(loaded, host, state, ["Say it"], 8)[0]


@pytest.mark.parametrize("of_config", [END_OF_TEXT, [END_OF_TEXT], None])
def test_an_answer_ends_at_the_turns_end_whatever_the_bases_settings_say(
    make_plan: MakePlan, of_config: Any
) -> None:
    loaded, host, state = host_of(make_plan())
    loaded.model.generation_config.eos_token_id = of_config
    loaded.tokenizer.eos_token = "<|endoftext|>"
    assert end_ids(loaded) == (END_OF_TEXT, TURN_END)
    for end in (TURN_END, END_OF_TEXT):
        reply = scripted(loaded, host, state, "ok", [end, *[ord("x")] * 20])
        assert (reply["base"], reply["tuned"], reply["cut"]) == ("ok", "ok", [])


def test_an_answer_that_does_not_end_is_said_to_be_cut(make_plan: MakePlan) -> None:
    """Marks that the model writes within an answer are shown."""
    loaded, host, state = host_of(make_plan())
    reply = scripted(loaded, host, state, "ok", [TURN_START] * 30)
    assert reply["tuned"] == "ok" + 6 * "<|im_start|>"
    assert (reply["cut"], reply["max_new_tokens"]) == (["base", "tuned"], 8)


def test_settings_of_the_base_that_are_not_used_are_named(make_plan: MakePlan) -> None:
    loaded, host, state = host_of(make_plan())
    settings = loaded.model.generation_config
    settings.do_sample, settings.temperature, settings.top_p = True, 0.6, 0.95
    notes: list[str] = []
    sampled = answers(loaded, host, state, ["Hi"], 4, note=notes.append)
    assert notes == [
        "answers are greedy: do_sample, temperature, top_p of the base's generation settings "
        "not used"
    ]
    assert (settings.do_sample, settings.temperature) == (True, 0.6)  # the base stays as it was
    settings.do_sample = settings.temperature = settings.top_p = None
    notes.clear()
    assert answers(loaded, host, state, ["Hi"], 4, note=notes.append) == sampled
    assert notes == []


def test_what_transformers_warns_of_while_answering_is_told(make_plan: MakePlan) -> None:
    import warnings

    loaded, host, state = host_of(make_plan())
    generate = host.model.generate

    def warn(**kwargs: Any) -> Any:
        warnings.warn("this\nmay matter", stacklevel=1)
        return generate(**kwargs)

    host.model.generate = warn
    notes: list[str] = []
    answers(loaded, host, state, ["Hi"], 2, note=notes.append)
    assert notes == ["transformers, while answering: this may matter"]


def test_a_padding_id_of_the_base_is_used(make_plan: MakePlan) -> None:
    loaded, host, state = host_of(make_plan())
    given: list[int] = []
    generate = host.model.generate

    def watch(**kwargs: Any) -> Any:
        given.append(kwargs["generation_config"].pad_token_id)
        return generate(**kwargs)

    host.model.generate = watch
    answers(dataclasses.replace(loaded, pad_token_id=7), host, state, ["Hi"], 2)
    assert given == [7, 7]


def test_an_answer_ends_where_the_model_reads_no_further(make_plan: MakePlan) -> None:
    """With learnt positions (GPT-2, OPT) a longer text is an error in the midst of the model."""
    loaded, host, state = host_of(make_plan())
    asked = len(
        loaded.tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n").input_ids
    )
    config = loaded.model.config
    lengths: list[int] = []
    generate = host.model.generate

    def watch(**kwargs: Any) -> Any:
        output = generate(**kwargs)
        lengths.append(output.shape[1])
        return output

    host.model.generate = watch
    config.max_position_embeddings = asked + 5
    longer = "Hi" + "!" * 4
    short, long = answers(loaded, host, state, ["Hi", longer], 9)
    assert [short["max_new_tokens"], long["max_new_tokens"]] == [5, 1]
    assert max(lengths) <= asked + 5
    config.max_position_embeddings = asked
    with pytest.raises(ModelError, match=rf"reads \({asked}\), .* got {asked}; shorten the prompt"):
        answers(loaded, host, state, ["Hi"], 9)


def test_prompts_that_cannot_be_asked_are_refused_before_a_run(make_plan: MakePlan) -> None:
    loaded, _, _ = host_of(make_plan())
    check_prompts(loaded, ["Hi", "x" * 900])
    with pytest.raises(ModelError, match=r"evaluation\.prompts: prompt 2: expected fewer tokens"):
        check_prompts(loaded, ["Hi", "x" * 2000])
    loaded.tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ModelError, match=r"evaluation\.prompts: prompt 1: .* \(system first\)"):
        check_prompts(loaded, ["Hi"])
    check_prompts(loaded, [])
