"""`core` adapters: orthonormal factors, an exact mean of products, and a plain LoRA outside."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from fedshield.errors import ModelError
from fedshield.model import lora_xs
from fedshield.model.adapter import AdapterHost, initial_state, ordinary
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens
from fedshield.plan.load import parse_plan
from fedshield.plan.sections import AdapterPlan
from fedshield.site.gradient_factors import gradient_factors
from fedshield.types import AdapterState

TARGETS = ("q_proj", "k_proj", "v_proj", "down_proj")
Kind = Literal["svd", "gradient"]
kinds = pytest.mark.parametrize("kind", ["svd", "gradient"])


def adapter(kind: Kind, rank: int = 4) -> AdapterPlan:
    return AdapterPlan(
        rank=rank, alpha=8.0, dropout=0.0, targets=TARGETS, train="core", factors=kind
    )


@functools.cache
def given() -> lora_xs.Factors:
    """Of a gradient on a few rows."""
    plan = parse_plan(
        {
            "adapter": adapter("gradient").model_dump(mode="json"),
            "data": {"sites": {"a": {"source": "nowhere.jsonl"}}},
            "scheme": {"name": "plain"},
        },
        base_dir=Path(),
    )
    ids = np.random.default_rng(2).integers(256, size=(6, 24))
    rows = [Tokens(tuple(row), (-100, *row[1:]), 0) for row in ids.tolist()]
    return gradient_factors(plan, tiny.build(), rows, 256, "cpu")


def host(kind: Kind = "svd", rank: int = 4) -> AdapterHost:
    factors = given() if kind == "gradient" else None
    return AdapterHost(tiny.build(), adapter(kind, rank), "00" * 32, factors)


def random_state(one: AdapterHost, seed: int) -> AdapterState:
    values = np.random.default_rng(seed).standard_normal(one.spec.num_values)
    return AdapterState(values.astype(np.float32), one.spec)


def products(one: AdapterHost, state: AdapterState) -> dict[str, np.ndarray]:
    """Layer -> B A, float64."""
    tensors = one.as_lora(state)
    names = {name.rsplit(".lora_", 1)[0] for name in tensors}
    return {
        name: tensors[f"{name}.lora_B.weight"].astype(np.float64)
        @ tensors[f"{name}.lora_A.weight"].astype(np.float64)
        for name in names
    }


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_factors_are_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = torch.tensor(np.random.default_rng(3).standard_normal(shape))
    u, v = lora_xs.factors(weight, 3)
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(u.T @ u, eye, atol=1e-12)
    assert torch.allclose(v.T @ v, eye, atol=1e-12)
    best = torch.linalg.svd(weight)
    expected = best.U[:, :3] @ torch.diag(best.S[:3]) @ best.Vh[:3]
    assert torch.allclose(u @ (u.T @ weight @ v) @ v.T, expected, atol=1e-10)
    diagonal = torch.diagonal(u.T @ weight @ v)
    assert torch.allclose(diagonal, best.S[:3], atol=1e-10)
    largest = v.abs().argmax(dim=0)
    assert (v[largest, torch.arange(3)] > 0).all()


def test_factors_of_a_matrix_of_low_rank_are_still_orthonormal() -> None:
    weight = torch.outer(torch.arange(6.0), torch.ones(5))
    u, v = lora_xs.factors(weight, 3)
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(u.T @ u, eye, atol=1e-9)
    assert torch.allclose(v.T @ v, eye, atol=1e-9)


@kinds
def test_few_values_and_zero_at_the_start(kind: Kind) -> None:
    one = host(kind)
    assert {tensor.shape for tensor in one.spec.tensors} == {(4, 4)}
    assert len(one.spec.tensors) == 2 * len(TARGETS)
    state = initial_state(one.spec, 1)
    assert not state.values.any()
    ids = torch.arange(20).reshape(1, 20)
    one.write(state)
    with torch.inference_mode():
        with one.model.disable_adapter():
            base = one.model(input_ids=ids).logits
        assert torch.equal(one.model(input_ids=ids).logits, base)


@kinds
def test_only_the_core_is_trained(kind: Kind) -> None:
    one = host(kind)
    one.write(random_state(one, 1))
    chosen = one.trainable()
    assert sum(parameter.numel() for parameter in chosen) == one.spec.num_values
    loss = one.model(input_ids=torch.arange(20).reshape(1, 20)).logits.square().mean()
    loss.backward()
    with_gradient = [name for name, p in one.model.named_parameters() if p.grad is not None]
    assert with_gradient
    assert all(name.endswith(".core") for name in with_gradient)


@kinds
def test_the_mean_of_the_products_is_the_product_of_the_mean(kind: Kind) -> None:
    one = host(kind)
    states = [random_state(one, seed) for seed in range(3)]
    weights = (0.5, 0.3, 0.2)
    mean = sum(
        w * state.values.astype(np.float64) for w, state in zip(weights, states, strict=True)
    )
    merged = products(one, AdapterState(np.asarray(mean, dtype=np.float32), one.spec))
    each = [products(one, state) for state in states]
    for name, product in merged.items():
        expected = sum(w * one_[name] for w, one_ in zip(weights, each, strict=True))
        np.testing.assert_allclose(product, expected, atol=1e-5)


def test_the_mean_of_ab_is_not() -> None:
    """Control: for A and B averaged apart the same algebra fails."""
    plan = AdapterPlan(rank=4, alpha=8.0, dropout=0.0, targets=TARGETS, train="ab")
    one = AdapterHost(tiny.build(), plan, "00" * 32)
    states = [random_state(one, seed) for seed in range(2)]
    mean = (states[0].values + states[1].values) / 2
    merged = products(one, AdapterState(mean.astype(np.float32), one.spec))
    each = [products(one, state) for state in states]
    far = [np.abs(merged[name] - (each[0][name] + each[1][name]) / 2).max() for name in merged]
    assert min(far) > 0.5


def test_the_mean_of_b_is_exact_when_a_is_frozen() -> None:
    plan = AdapterPlan(rank=4, alpha=8.0, dropout=0.0, targets=TARGETS, train="b")
    one = AdapterHost(tiny.build(), plan, "00" * 32)
    start = initial_state(one.spec, 3)
    rng, states = np.random.default_rng(1), []
    for _ in range(2):
        values = start.values.copy()
        for tensor, place in zip(one.spec.tensors, one.spec.slices().values(), strict=True):
            if ".lora_B." in tensor.name:
                values[place] = rng.standard_normal(tensor.size)
        states.append(AdapterState(values, one.spec))
    mean = (states[0].values + states[1].values) / 2
    merged = products(one, AdapterState(mean.astype(np.float32), one.spec))
    each = [products(one, state) for state in states]
    for name, product in merged.items():
        np.testing.assert_allclose(product, (each[0][name] + each[1][name]) / 2, atol=1e-5)


@kinds
def test_it_leaves_as_an_ordinary_lora_and_comes_back_as_one(tmp_path: Path, kind: Kind) -> None:
    from peft import LoraConfig, PeftModel
    from safetensors.numpy import save_file

    one = host(kind)
    state = random_state(one, 4)
    tensors = one.as_lora(state)
    back = AdapterHost(tiny.build(), ordinary(adapter(kind)), "00" * 32)
    again = back.as_lora(back.from_lora(tensors))
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=sorted(TARGETS), task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        loaded = PeftModel.from_pretrained(tiny.build(), tmp_path)
    ids = torch.arange(30).reshape(1, 30)
    with torch.inference_mode():
        expected = one.model.eval()(input_ids=ids).logits
        for model in (loaded, back.model):
            assert torch.allclose(model.eval()(input_ids=ids).logits, expected, atol=1e-4)


@kinds
def test_merging_gives_the_same_model(kind: Kind) -> None:
    one = host(kind)
    one.write(random_state(one, 5))
    ids = torch.arange(30).reshape(1, 30)
    with torch.inference_mode():
        expected = one.model.eval()(input_ids=ids).logits
        merged = one.model.merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)


def test_other_factors_are_another_adapter() -> None:
    """A base whose weights differ gives other factors: the spec's digest tells."""
    changed = tiny.build()
    with torch.no_grad():
        changed.model.layers[0].self_attn.q_proj.weight.mul_(-1)
    assert AdapterHost(changed, adapter("svd"), "00" * 32).spec.sha256() != host().spec.sha256()
    assert host().spec.sha256() == host().spec.sha256()
    assert host("gradient").spec.sha256() != host().spec.sha256()
    assert host("gradient").factors_sha256 != host().factors_sha256
    plain = AdapterHost(tiny.build(), ordinary(adapter("svd")), "00" * 32)
    assert plain.factors_sha256 == ""


def test_a_rank_too_large_is_refused() -> None:
    with pytest.raises(ModelError, match=r"adapter\.rank: expected at most 32 for .*k_proj"):
        host(rank=40)
