"""The check on one row: it leaves no trace, and names what would spoil a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedshield.errors import ModelError
from fedshield.model import base
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.model.chat import Tokens
from fedshield.model.check import check_ids, check_model
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base

MakePlan = Callable[..., Plan]
ROW = Tokens(tuple(range(5, 25)), (-100,) * 8 + tuple(range(13, 25)), 0)


def ready(make_plan: MakePlan, **changes: Any) -> tuple[BaseModel, AdapterHost]:
    plan = make_plan({"adapter.targets": "all-linear"} | changes)
    loaded = load_base(plan)
    return loaded, AdapterHost(loaded.model, plan.adapter, loaded.sha256)


def refused(loaded: BaseModel, host: AdapterHost, rows: tuple[Tokens, ...] = (ROW,)) -> str:
    before = host.read().tobytes()
    with pytest.raises(ModelError) as caught:
        check_model(loaded, host, rows)
    message = str(caught.value)
    assert "\n" not in message
    assert ": expected" in message
    assert host.read().tobytes() == before  # put back after a failure too
    return message


@pytest.mark.parametrize("train", ["ab", "core"])
@pytest.mark.parametrize("rows", [(ROW,), ()])
def test_a_good_model_passes_and_nothing_is_left_behind(
    make_plan: MakePlan, train: str, rows: tuple[Tokens, ...]
) -> None:
    loaded, host = ready(make_plan, **{"adapter.train": train, "adapter.dropout": 0.5})
    torch.manual_seed(9)
    np.random.seed(9)
    before = host.read().tobytes(), torch.get_rng_state(), np.random.get_state()[1].copy()
    trained = {name for name, p in host.model.named_parameters() if p.requires_grad}
    assert check_model(loaded, host, rows) == ()
    assert host.read().tobytes() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()
    assert {name for name, p in host.model.named_parameters() if p.requires_grad} == trained
    assert all(parameter.grad is None for parameter in host.model.parameters())
    assert not any(module.training for module in host.model.modules())


def test_a_token_outside_the_embeddings_is_named(make_plan: MakePlan) -> None:
    loaded, host = ready(make_plan)
    size = loaded.model.get_input_embeddings().weight.shape[0]
    check_ids(loaded, [replace(ROW, input_ids=(size - 1,))])
    loaded.tokenizer.add_tokens(["<|new|>"] * 1)
    while len(loaded.tokenizer) <= size:
        loaded.tokenizer.add_tokens([f"<|new {len(loaded.tokenizer)}|>"])
    bad = replace(ROW, input_ids=(*ROW.input_ids, size))
    message = refused(loaded, host, (ROW, bad))
    assert f"expected token ids below {size}" in message
    assert f"got {size} ({loaded.tokenizer.convert_ids_to_tokens(size)})" in message


def test_a_model_that_sees_later_tokens_is_refused(make_plan: MakePlan) -> None:
    loaded, host = ready(make_plan)

    def mix(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.05 * output.mean(dim=1, keepdim=True)

    loaded.model.get_input_embeddings().register_forward_hook(mix)
    assert "earlier predictions change with later tokens" in refused(loaded, host)


def test_a_layer_outside_the_pass_is_named(make_plan: MakePlan) -> None:
    loaded, host = ready(make_plan)
    layer = host.model.get_base_model().model.layers[1].mlp

    def around(*_: Any) -> torch.Tensor:
        return torch.zeros(())

    layer.forward = around
    message = refused(loaded, host)
    assert "got model.layers.1.mlp.down_proj (6 of 28 tensors get no gradient)" in message
    assert "leave out down_proj, gate_proj, up_proj" in message


def test_a_loss_that_is_not_finite(make_plan: MakePlan) -> None:
    loaded, host = ready(make_plan)
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(3e38)
    message = refused(loaded, host)
    assert "expected a finite loss of one row, got" in message
    assert "in float32; use undamaged weights" in message


def test_a_gradient_of_zero_is_noted(make_plan: MakePlan) -> None:
    loaded, host = ready(make_plan)
    layer = host.model.get_base_model().model.layers[0].mlp
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 0.0
    (note,) = check_model(loaded, host, (ROW,))
    assert note.startswith("6 of 28 adapter tensors have a gradient of zero")


@pytest.mark.parametrize("kind", [ValueError, AttributeError, KeyError, ZeroDivisionError])
def test_an_error_of_the_model_itself_is_one_line(
    make_plan: MakePlan, kind: type[Exception]
) -> None:
    loaded, host = ready(make_plan)

    def fail(*_: Any) -> torch.Tensor:
        raise kind("no such kernel")

    host.model.get_base_model().model.layers[0].mlp.forward = fail
    message = refused(loaded, host)
    assert f"{kind.__name__}: " in message
    assert "no such kernel" in message


def test_padding_has_an_id_that_exists(make_plan: MakePlan) -> None:
    loaded, _ = ready(make_plan)
    size = loaded.model.get_input_embeddings().weight.shape[0]
    tokenizer = loaded.tokenizer
    assert base.padding_id(tokenizer, loaded.model) == (tokenizer.pad_token_id, ())
    while len(tokenizer) <= size:
        tokenizer.add_tokens([f"<|new {len(tokenizer)}|>"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(size)
    used, (note,) = base.padding_id(tokenizer, loaded.model)
    assert used == tokenizer.eos_token_id
    assert f"pads with id {size}, and the embeddings have {size} rows" in note
    tokenizer.pad_token = tokenizer.eos_token = None
    used, (note,) = base.padding_id(tokenizer, loaded.model)
    assert used == 0
    assert "no padding and no end-of-text token" in note


def test_without_an_end_of_text_the_chats_end_is_named(make_plan: MakePlan) -> None:
    loaded, host = ready(make_plan)
    loaded.tokenizer.eos_token = None
    (note,) = check_model(loaded, host, (ROW,))
    assert "no end-of-text token; answers end with the chat's <|im_end|>" in note
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    )
    (note,) = check_model(loaded, host, (ROW,))
    assert "generation stops at its limit of tokens" in note


def test_an_end_token_that_is_ordinary_text_is_noted(make_plan: MakePlan) -> None:
    """As after a tokenizer was exchanged and the settings for generation were not."""
    loaded, host = ready(make_plan)
    settings, letter = loaded.model.generation_config, loaded.tokenizer("e")["input_ids"][0]
    usual = loaded.tokenizer.eos_token_id
    for given in (None, usual, [usual], 10**6):
        settings.eos_token_id = given
        assert check_model(loaded, host, (ROW,)) == ()
    for given in (letter, [usual, letter]):
        settings.eos_token_id = given
        (note,) = check_model(loaded, host, (ROW,))
        assert f"end an answer at id {letter} ('e'), which is no special token" in note
