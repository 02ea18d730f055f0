"""Many architectures, tiny and random: plain transformers and PEFT agree with what we compute.

Each goes the way of a run: a folder that is loaded and checked, `all-linear` adapters, and the
check on one row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from fedshield.model.adapter import AdapterHost
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens
from fedshield.model.check import check_model
from fedshield.model.loss import can_cut_logits, loss_sum
from fedshield.notes import library_words
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base
from fedshield.types import AdapterState

MakePlan = Callable[..., Plan]

GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SSM = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
#: model_type -> what its config needs to be tiny, and what `all-linear` leaves out, if anything.
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (COMMON, ""),
    "mistral": (COMMON, ""),
    "qwen2": (COMMON, ""),
    "qwen3": (COMMON | {"head_dim": 8}, ""),
    "gemma": (COMMON | {"head_dim": 8}, ""),
    "gemma2": (COMMON | {"head_dim": 8}, ""),
    "gemma3_text": (COMMON | {"head_dim": 8}, ""),
    "phi": (COMMON, ""),
    "phi3": (COMMON, ""),
    "olmo2": (COMMON, ""),
    "granite": (COMMON, ""),
    "starcoder2": (COMMON, ""),
    "stablelm": (COMMON, ""),
    "cohere": (COMMON, ""),
    "gpt2": (GPT, ""),
    "gpt_neox": (COMMON, ""),
    "opt": (COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}, ""),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, ""),
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, ""),
    "mixtral": (COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}, "experts."),
    "qwen3_moe": (
        COMMON
        | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "experts.",
    ),
    "mamba": (SSM, "mixer.out_proj"),
}


def save_folder(kind: str, folder: Path) -> None:
    """A model with weights wide enough that its answers differ, and the tiny tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny.tokenizer()
    ids = {"bos_token_id": 258, "eos_token_id": 258, "pad_token_id": 256}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **FAMILIES[kind][0], **ids)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows() -> list[Tokens]:
    generator = np.random.default_rng(3)
    lengths = ((12, 5), (20, 9))
    return [
        Tokens(tuple(ids), (-100,) * asked + tuple(ids[asked:]), 0)
        for length, asked in lengths
        for ids in [generator.integers(0, 250, length).tolist()]
    ]


def plain_loss(model: Any) -> float:
    """Row by row, without padding: next-token loss of the answers by transformers alone."""
    total = 0.0
    for row in rows():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].float()
        for place, label in enumerate(row.labels):
            if label != -100:
                total -= float(logits[place - 1].log_softmax(-1)[label])
    return total


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([rows()[1].input_ids])).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_reload_and_merge_agree_with_plain_libraries(
    make_plan: MakePlan, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    save_folder(kind, folder)
    plan = make_plan({"model.name": str(folder), "adapter.targets": "all-linear"})
    loaded = load_base(plan)
    with library_words():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    # Loss, of a padded batch.
    cut = can_cut_logits(loaded.model)
    with torch.no_grad():
        batch = loss_sum(loaded.model, rows(), loaded.pad_token_id, "cpu", cut)
    assert float(batch) == pytest.approx(plain_loss(plain), rel=1e-4)

    # The checks, with adapters on all linear layers.
    host = AdapterHost(loaded.model, plan.adapter, loaded.sha256)
    before = host.read()
    check_model(loaded, host, rows())
    assert host.read().tobytes() == before.tobytes()
    left_out = FAMILIES[kind][1]
    about_layers = [note for note in host.notes if note.startswith("all-linear")]
    assert bool(about_layers) == bool(left_out)
    assert all(left_out in note for note in about_layers)

    # PEFT on a model of its own, with our tensors.
    values = np.random.default_rng(5).normal(0, 0.05, host.spec.num_values).astype(np.float32)
    tensors = host.as_lora(AdapterState(values, host.spec))
    config: Any = LoraConfig(
        r=plan.adapter.rank,
        lora_alpha=int(plan.adapter.alpha),
        target_modules=host.targets,
        task_type="CAUSAL_LM",
    )
    with library_words():
        again = get_peft_model(plain, config).eval()
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    unexpected = set_peft_model_state_dict(again, state).unexpected_keys
    assert not unexpected
    ours = logits_of(host.model)
    torch.testing.assert_close(logits_of(again), ours, rtol=0, atol=1e-5)
    assert float((ours - logits_of_base(host)).abs().max()) > 1e-3  # the adapter does something

    merged = host.model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), ours, rtol=1e-4, atol=1e-4)


def logits_of_base(host: AdapterHost) -> torch.Tensor:
    with host.model.disable_adapter():
        return logits_of(host.model)
