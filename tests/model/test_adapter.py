"""The adapter as one vector: PEFT's names, exact both ways, the same start on every machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict

from fedshield.errors import ModelError
from fedshield.model.adapter import AdapterHost, empty_spec, initial_state
from fedshield.model.builtin import tiny
from fedshield.plan.sections import AdapterPlan
from fedshield.types import AdapterSpec, AdapterState, TensorSpec

SHA = "ab" * 32


def gpt2(dtype: torch.dtype = torch.float32) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=61,
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).to(dtype)


def qwen2(dtype: torch.dtype = torch.float32) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def llama(dtype: torch.dtype = torch.float32) -> Any:
    return tiny.build().to(dtype)


#: Build -> targets, with fan in and fan out of each.
FAMILIES: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, int]]]] = {
    "llama": (llama, {"q_proj": (64, 64), "v_proj": (64, 32), "down_proj": (128, 64)}),
    "gpt2": (gpt2, {"c_attn": (24, 72), "c_fc": (24, 96)}),
    "qwen2": (qwen2, {"q_proj": (32, 32), "k_proj": (32, 16), "gate_proj": (32, 48)}),
}
families = pytest.mark.parametrize("family", FAMILIES)


def plan_for(family: str, **changes: Any) -> AdapterPlan:
    keys = {"rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": tuple(FAMILIES[family][1])}
    return AdapterPlan(**(keys | changes))


def host_for(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> AdapterHost:
    return AdapterHost(FAMILIES[family][0](dtype), plan_for(family, **changes), SHA)


def random_state(spec: AdapterSpec, seed: int = 1) -> AdapterState:
    values = np.random.default_rng(seed).standard_normal(spec.num_values).astype(np.float32)
    return AdapterState(values, spec)


# -- names, shapes, exactness --------------------------------------------------------------


@families
def test_tensors_are_named_and_shaped_as_peft_saves_them(family: str) -> None:
    host = host_for(family)
    saved = get_peft_model_state_dict(host.model)
    assert {t.name: t.shape for t in host.spec.tensors} == {
        name: tuple(tensor.shape) for name, tensor in saved.items()
    }
    assert [t.name for t in host.spec.tensors] == sorted(saved)
    assert host.spec.base_model_sha256 == SHA


@families
def test_a_has_the_fan_in_and_b_the_fan_out_of_its_layer(family: str) -> None:
    for tensor in host_for(family).spec.tensors:
        target, side = tensor.name.split(".")[-3:-1]
        fan_in, fan_out = FAMILIES[family][1][target]
        assert tensor.shape == ((3, fan_in) if side == "lora_A" else (fan_out, 3))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back_exactly(family: str, dtype: torch.dtype) -> None:
    host = host_for(family, dtype)
    state = random_state(host.spec)
    host.write(random_state(host.spec, seed=2))
    host.write(state)
    assert host.read().dtype == np.float32
    assert host.read().tobytes() == state.values.tobytes()
    saved = get_peft_model_state_dict(host.model)
    for name, place in host.spec.slices().items():
        assert saved[name].dtype == torch.float32
        assert saved[name].numpy().reshape(-1).tobytes() == state.values[place].tobytes()


def test_what_is_read_is_a_copy() -> None:
    host = host_for("llama")
    host.write(random_state(host.spec))
    first = host.read()
    host.write(random_state(host.spec, seed=2))
    assert first.tobytes() == random_state(host.spec).values.tobytes()


@families
def test_only_the_adapter_trains(family: str) -> None:
    host = host_for(family, torch.bfloat16)
    trained = {id(p) for p in host.trainable()}
    assert len(trained) == len(host.spec.tensors)
    for parameter in host.model.parameters():
        assert parameter.requires_grad == (id(parameter) in trained)
        assert parameter.dtype == (torch.float32 if id(parameter) in trained else torch.bfloat16)


def test_a_state_of_another_adapter_is_refused() -> None:
    host = host_for("llama")
    others = [
        replace(host.spec, base_model_sha256="cd" * 32),
        replace(host.spec, scaling=1.0),
        host_for("llama", rank=2).spec,
    ]
    before = host.read()
    for spec in others:
        with pytest.raises(ModelError, match="made for this base model and plan"):
            host.write(random_state(spec))
    assert host.read().tobytes() == before.tobytes()


@families
def test_a_spec_from_shapes_alone_is_the_real_one(family: str) -> None:
    empty = _on_meta(family)
    assert all(parameter.is_meta for parameter in empty.parameters())
    spec = empty_spec(empty, plan_for(family))
    real = host_for(family).spec
    assert spec == replace(real, base_model_sha256="")


def _on_meta(family: str) -> Any:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(tiny.config()) if family == "llama" else FAMILIES[family][0]()


# -- what it computes ----------------------------------------------------------------------


@families
@pytest.mark.parametrize(("rank", "alpha"), [(3, 6.0), (4, 7.5), (8, 1.0)])
def test_a_layer_adds_scaling_times_b_a_x(family: str, rank: int, alpha: float) -> None:
    host = host_for(family, rank=rank, alpha=alpha)
    assert host.spec.scaling == alpha / rank
    state = random_state(host.spec)
    host.write(state)
    named = dict(host.model.named_modules())
    for name, place in host.spec.slices().items():
        if ".lora_A." not in name:
            continue
        layer = named[name.removesuffix(".lora_A.weight")]
        other = host.spec.slices()[name.replace(".lora_A.", ".lora_B.")]
        a = torch.tensor(state.values[place]).view(rank, -1)
        b = torch.tensor(state.values[other]).view(-1, rank)
        x = torch.randn(5, a.shape[1], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = layer.base_layer(x) + alpha / rank * (x @ a.T @ b.T)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("q_prj", "did you mean q_proj?"),
        ("V_proj", "did you mean v_proj?"),
        ("zzz", "it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"),
        ("embed_tokens", "it has"),
        ("mlp", "it has"),
    ],
)
def test_a_target_that_is_no_layer_gets_the_nearest(target: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        host_for("llama", targets=("q_proj", target))
    message = str(caught.value)
    assert f"got {target};" in message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_target_that_shares_the_embeddings_weights_is_refused(family: str) -> None:
    """Merged, it would change the embeddings as well."""
    for model in (FAMILIES[family][0](), _on_meta(family)):
        with pytest.raises(ModelError, match="weights of their own, got lm_head; it has"):
            AdapterHost(model, plan_for(family, targets=("lm_head",)), SHA)
    host_for("llama", targets=("lm_head",))  # has its own


# -- the start -----------------------------------------------------------------------------


@families
def test_the_start_is_no_change_with_a_in_its_bounds(family: str) -> None:
    spec = host_for(family, rank=8).spec
    state = initial_state(spec, 5)
    for tensor, place in zip(spec.tensors, spec.slices().values(), strict=True):
        values = state.values[place]
        if ".lora_B." in tensor.name:
            assert not values.any()
            continue
        bound = 1 / np.sqrt(tensor.shape[1])
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        # Uniform: its ends are reached nearly, its deviation is bound / sqrt(3).
        assert np.abs(values).max() > 0.9 * bound
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.15)
        assert abs(values.mean()) < 0.15 * bound


def test_the_start_has_the_same_spread_as_pefts_own() -> None:
    host = host_for("llama", rank=32)
    own, peft = initial_state(host.spec, 5).values, host.read()
    assert np.abs(peft).max() == pytest.approx(np.abs(own).max(), rel=0.01)
    assert np.array_equal(peft == 0, own == 0)


def test_the_start_is_a_known_answer() -> None:
    spec = AdapterSpec(
        (TensorSpec("x.lora_A.weight", (2, 4)), TensorSpec("x.lora_B.weight", (3, 2))), SHA, 2.0
    )
    state = initial_state(spec, 42)
    assert state.sha256() == "ea799a845dccb984d3cdaf389df83a9c26af2c9dd9e6f75ad8d20338ed7704ef"
    assert initial_state(spec, 43).sha256() != state.sha256()


def test_the_start_hangs_on_seed_and_name_only() -> None:
    spec = host_for("llama").spec
    turned = replace(spec, tensors=tuple(reversed(spec.tensors)), base_model_sha256="", scaling=9.0)
    np.random.seed(1)
    torch.manual_seed(1)
    global_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    one, two = initial_state(spec, 5), initial_state(turned, 5)
    assert (np.random.get_state()[1] == global_state[0]).all()
    assert torch.equal(torch.get_rng_state(), global_state[1])
    np.random.seed(2)
    torch.manual_seed(2)
    assert initial_state(spec, 5).values.tobytes() == one.values.tobytes()
    places, other = spec.slices(), turned.slices()
    seen = set()
    for name, place in places.items():
        values = one.values[place]
        assert values.tobytes() == two.values[other[name]].tobytes()
        if ".lora_A." in name:
            seen.add(values[:4].tobytes())
    assert len(seen) == 6  # each layer has its own


# -- all-linear ------------------------------------------------------------------------------

LINEAR = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
}


@families
def test_all_linear_is_every_layer_but_the_output(family: str) -> None:
    """Whether the output layer has weights of its own (llama here) or shares the embeddings'."""
    host = host_for(family, targets=("all-linear",))
    assert set(host.targets) == set(host.spec.layers()) == LINEAR[family]
    named = host_for(family, targets=tuple(LINEAR[family]))
    assert named.spec == host.spec
    linear = (torch.nn.Linear, type(_on_meta("gpt2").transformer.h[0].attn.c_attn))
    blocks = [
        name
        for name, module in FAMILIES[family][0]().named_modules()
        if isinstance(module, linear) and not name.endswith("lm_head")
    ]
    assert len(host.spec.tensors) == 2 * len(blocks)


def mixture() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config)


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4)
    )


def test_what_all_linear_leaves_out_is_noted_with_its_share() -> None:
    experts, router = 3 * 4 * 32 * 48, 4 * 32
    attention = 2 * 32 * 32 + 2 * 32 * 16
    share = (experts + router) / (experts + router + attention)
    (note,) = AdapterHost(mixture(), plan_for("llama", targets=("all-linear",)), SHA).notes
    assert note.startswith("all-linear gives no adapter to experts.down_proj, experts.gate_up_proj")
    assert f"({share:.0%}".replace("%", " %") + " of the layers' weights)" in note
    # A choice of the user's own needs no word; nor does a model that is covered.
    assert AdapterHost(mixture(), plan_for("llama", targets=("q_proj",)), SHA).notes == ()
    assert host_for("llama", targets=("all-linear",)).notes == ()


def test_layers_that_cannot_take_lora_are_left_out_or_refused() -> None:
    host = AdapterHost(mamba(), plan_for("llama", targets=("all-linear",)), SHA)
    assert host.targets == ["in_proj", "x_proj"]
    assert any("mixer.dt_proj, mixer.out_proj" in note for note in host.notes)
    for target in ("out_proj", "dt_proj"):
        with pytest.raises(ModelError, match=f"got {target}, .* name others of in_proj, x_proj"):
            AdapterHost(mamba(), plan_for("llama", targets=(target,)), SHA)


_SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
}


def small(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    build: Any = AutoModelForCausalLM.from_config
    return build(AutoConfig.for_model(kind, **_SMALL, **changes))


def test_shared_experts_are_linear_layers_whose_names_peft_gives_to_the_experts() -> None:
    model = small(
        "deepseek_v3",
        **{"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1},
        **{"moe_intermediate_size": 16, "first_k_dense_replace": 1},
        **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    )
    host = AdapterHost(model, plan_for("llama", targets=("all-linear",)), SHA)
    names = [tensor.name for tensor in host.spec.tensors]
    assert not any("expert." in name or "experts." in name for name in names)
    left_out, why = host.notes
    assert "mlp.down_proj" in left_out  # of the layer without experts
    assert "shared_experts.down_proj" in left_out
    assert why == (
        "of these down_proj, gate_proj, up_proj are linear layers, of a name that PEFT takes for "
        "the experts of a deepseek_v3 model"
    )
    with pytest.raises(ModelError, match="got up_proj, of a name that PEFT takes for the experts"):
        AdapterHost(model, plan_for("llama", targets=("up_proj",)), SHA)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("phimoe", {"num_local_experts": 2}),
        ("llama4_text", {"num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8}),
    ],
)
def test_a_router_that_inherits_from_a_linear_layer_is_none(
    kind: str, changes: dict[str, Any]
) -> None:
    """It gives more than a product, and PEFT's layer around it fails in the first pass."""
    model = small(kind, **changes)
    host = AdapterHost(model, plan_for("llama", targets=("all-linear",)), SHA)
    assert not any("router" in tensor.name for tensor in host.spec.tensors)
    assert "router" in host.notes[0]
    ids = torch.tensor([[1, 2, 3]])
    assert host.model(input_ids=ids).logits.shape == (1, 3, 61)


def test_numbered_layers_are_named_with_what_they_are_numbered_in() -> None:
    """A number alone is the name of whole blocks too, which take no LoRA."""
    from transformers import CTRLConfig, CTRLLMHeadModel

    config = CTRLConfig(vocab_size=61, n_embd=32, dff=48, n_layer=2, n_head=2, n_positions=64)
    host = AdapterHost(CTRLLMHeadModel(config), plan_for("llama", targets=("all-linear",)), SHA)
    assert host.targets == ["Wk", "Wq", "Wv", "dense", "ffn.0", "ffn.2"]
    assert len(host.spec.tensors) == 2 * 2 * 6  # A and B, two blocks


def test_what_peft_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("not\nthis one")

    monkeypatch.setattr("peft.get_peft_model", refuse)
    with pytest.raises(ModelError) as caught:
        host_for("llama")
    assert "(ValueError: not this one); name other layers" in str(caught.value)
