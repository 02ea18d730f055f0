"""Factors from the gradient on public text: the best ones, the same again, and no one's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedshield.data.public import public_rows
from fedshield.errors import ModelError
from fedshield.model import base, lora_xs
from fedshield.model.adapter import AdapterHost, target_layers
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base
from fedshield.site.gradient_factors import gradient_factors, public_factors

MakePlan = Callable[..., Plan]
TARGETS = ["q_proj", "v_proj", "down_proj"]


def plan_of(make_plan: MakePlan, **changes: Any) -> Plan:
    """No site's data is where the plan says: whoever opened it would fail."""
    keys = {
        "adapter.train": "core",
        "adapter.factors": "gradient",
        "adapter.targets": TARGETS,
        "training.batch_size": 16,
        "data.sites": {"bank": {"source": "nowhere.jsonl"}},
    }
    return make_plan(keys | {key.replace("__", "."): value for key, value in changes.items()})


def exact(plan: Plan, model: Any, rows: list[Tokens]) -> dict[str, torch.Tensor]:
    """Layer -> the gradient of the mean loss over all response tokens (out, in), row by row."""
    layers = target_layers(model, plan.adapter)
    model.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    total = sum(row.num_response for row in rows)
    for row in rows:
        ids = torch.tensor([row.input_ids])
        labels = torch.tensor([row.labels])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits[0], labels[0, 1:], ignore_index=-100, reduction="sum"
        )
        (loss / total).backward()
    return {
        name: layer.weight.grad.double()
        if isinstance(layer, torch.nn.Linear)
        else layer.weight.grad.T.double()
        for name, layer in layers.items()
    }


def assert_best(found: lora_xs.Factors, gradients: dict[str, torch.Tensor], rank: int) -> None:
    assert found.keys() == gradients.keys()
    eye = torch.eye(rank, dtype=torch.float64)
    for name, gradient in gradients.items():
        u, v = found[name]
        assert torch.allclose(u.T @ u, eye, atol=1e-10)
        assert torch.allclose(v.T @ v, eye, atol=1e-10)
        best = torch.linalg.svdvals(gradient)[:rank]
        inner = u.T @ gradient @ v
        assert inner.norm() ** 2 > 0.98 * (best**2).sum(), name
        # Largest first, each with its own partner.
        assert inner.norm() ** 2 < 1.001 * (torch.diagonal(inner) ** 2).sum()
        assert torch.allclose(torch.diagonal(inner), best, rtol=0.05)
        assert (v[v.abs().argmax(dim=0), torch.arange(rank)] > 0).all()


def test_they_hold_nearly_all_that_any_of_their_rank_can(make_plan: MakePlan) -> None:
    plan = plan_of(make_plan)
    loaded = load_base(plan)
    rows = list(public_rows(loaded.tokenizer, plan.seed, plan.training.max_length))
    found = public_factors(plan, loaded)
    assert found is not None
    assert_best(found, exact(plan, tiny.build(), rows), rank=4)
    # Control: those of the weights do not.
    for name, gradient in exact(plan, tiny.build(), rows).items():
        u, v = lora_xs.factors(loaded.model.get_submodule(name).weight, 4)
        assert (u.T @ gradient @ v).norm() < 0.5 * gradient.norm()


def test_layers_that_keep_their_weights_turned_round(make_plan: MakePlan) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = 0
    torch.manual_seed(3)
    model = GPT2LMHeadModel(config).eval()
    plan = plan_of(make_plan, adapter__targets=["c_attn", "c_fc"], adapter__rank=2)
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in (9, 14, 20):
        ids = tuple(torch.randint(61, (length,), generator=draw).tolist())
        rows.append(Tokens(ids, (-100,) * 4 + ids[4:], 0))
    found = gradient_factors(plan, model, rows, 0, "cpu")
    assert_best(found, exact(plan, model, rows), rank=2)
    host = AdapterHost(model, plan.adapter, "00" * 32, found)
    with torch.no_grad():
        for tensor in host.trainable():
            tensor.normal_(generator=draw)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = host.model.eval()(input_ids=ids).logits
        merged = host.model.merge_and_unload()(input_ids=ids).logits
    assert torch.allclose(merged, expected, atol=1e-4)


def test_the_same_again_and_with_whatever_data(make_plan: MakePlan) -> None:
    """Bit for bit: also where a site has other rows, and with other rounds and rates."""
    spec_of: Callable[[Plan], str] = lambda plan: spec(plan, load_base(plan))  # noqa: E731
    first = spec_of(plan_of(make_plan))
    others = {"x": {"source": "sample:code"}, "y": {"source": "elsewhere.csv"}}
    assert spec_of(plan_of(make_plan)) == first
    changes = {"data__sites": others, "rounds": 9, "training__learning_rate": 0.3}
    assert spec_of(plan_of(make_plan, **changes)) == first
    assert spec_of(plan_of(make_plan, seed=8)) != first


def spec(plan: Plan, loaded: base.BaseModel) -> str:
    host = AdapterHost(loaded.model, plan.adapter, loaded.sha256, public_factors(plan, loaded))
    assert len(host.factors_sha256) == 64
    return host.spec.sha256()


def test_the_base_model_is_left_as_it_was(make_plan: MakePlan) -> None:
    plan = plan_of(make_plan)
    loaded = load_base(plan)
    public_factors(plan, loaded)
    assert tiny.sha256(loaded.model) == tiny.sha256(tiny.build())
    for module in loaded.model.modules():
        assert not module._forward_hooks
    for parameter in loaded.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_other_adapters_need_none(make_plan: MakePlan) -> None:
    plan = make_plan({"adapter.train": "core"})
    loaded = load_base(plan)
    assert public_factors(plan, loaded) is None
    with pytest.raises(ModelError, match="got some with svd"):
        AdapterHost(loaded.model, plan.adapter, loaded.sha256, {})


def test_a_host_without_the_factors_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(ModelError, match="got none with gradient"):
        AdapterHost(tiny.build(), plan_of(make_plan).adapter, "00" * 32)


def test_what_cannot_be_is_refused_before_or_after_the_passes(make_plan: MakePlan) -> None:
    loaded = load_base(plan_of(make_plan))
    with pytest.raises(ModelError, match=r"adapter\.rank: expected at most 32 for .*v_proj"):
        public_factors(plan_of(make_plan, adapter__rank=40), loaded)
    with pytest.raises(ModelError, match="did you mean q_proj"):
        public_factors(plan_of(make_plan, adapter__targets=["q_porj"]), loaded)
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"finite gradients of .*fp32, or use factors svd"):
        public_factors(plan_of(make_plan), loaded)
