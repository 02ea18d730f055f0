"""The built-in tiny model: the same every time, and able to carry any text."""

from __future__ import annotations

import pytest
import torch

from fedshield.model.builtin import tiny


def test_the_weights_are_the_same_whatever_ran_before() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = tiny.build()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = tiny.build()
    for (name, one), (other, two) in zip(
        first.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert name == other
        assert one.dtype == torch.float32
        assert torch.equal(one, two)
    assert tiny.sha256(first) == tiny.sha256(second)


def test_its_size_is_as_said() -> None:
    model = tiny.build()
    assert sum(p.numel() for p in model.parameters()) == 107_200
    assert len(model.model.layers) == 2
    assert model.config.vocab_size == len(tiny.tokenizer()) == 259


def test_every_weight_is_in_the_digest() -> None:
    model = tiny.build()
    found = {tiny.sha256(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        found.add(tiny.sha256(model))
    assert len(found) == 1 + len(list(model.parameters()))


def test_logits_depend_on_the_text_and_are_finite() -> None:
    model, tokenizer = tiny.build().eval(), tiny.tokenizer()
    with torch.inference_mode():
        one, two = (
            model(**tokenizer(text, return_tensors="pt")).logits[0, -1] for text in ("abc", "abd")
        )
    assert torch.isfinite(one).all()
    assert (one - two).abs().max() > 0.1


@pytest.mark.parametrize("text", ["plain", "naïve ½ 日本語 😀\n\t  x ", "\x00\x7f\u200b", ""])
def test_one_token_a_byte_and_back(text: str) -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_the_marks_are_single_tokens() -> None:
    tokenizer = tiny.tokenizer()
    for place, mark in enumerate(tiny.SPECIAL_TOKENS):
        assert tokenizer(mark)["input_ids"] == [256 + place]
    config = tiny.config()
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == config.bos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id
    assert tokenizer.eos_token_id == config.eos_token_id
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
