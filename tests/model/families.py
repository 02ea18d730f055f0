"""Random models of many architectures, as folders that transformers writes today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fedshield.model.builtin import tiny

_SIZE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "tie_word_embeddings": True}
_LLAMA_3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}
_YARN = {
    **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
    "original_max_position_embeddings": 64,
}

#: Name -> model_type and what its config has besides the size. Rotary settings differ from each
#: architecture's defaults, so that a reader who misses them computes something else.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama-3.1": ("llama", {"rope_parameters": _LLAMA_3}),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}},
    ),
    "mistral": (
        "mistral",
        {"sliding_window": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": _YARN}),
    "qwen3": (
        "qwen3",
        {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3-moe": ("qwen3_moe", {"head_dim": 8, **_EXPERTS}),
    "gemma2": (
        "gemma2",
        {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
            },
        },
    ),
    "phi3": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}),
    "phi": (
        "phi",
        {
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.75}
            }
        },
    ),
    "gpt-neox": (
        "gpt_neox",
        {
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5}
            }
        },
    ),
    "stablelm": (
        "stablelm",
        {
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5}
            }
        },
    ),
    "falcon": (
        "falcon",
        {
            "alibi": False,
            "new_decoder_architecture": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        },
    ),
    "olmo2": ("olmo2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "granite": ("granite", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "starcoder2": ("starcoder2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "gpt2": ("gpt2", _GPT2),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
}


def write(name: str, folder: Path, dtype: torch.dtype = torch.float32, **save: Any) -> None:
    """A random model of the family and the tiny tokenizer, in `folder`. Call it within
    `library_words`: transformers has words on some of them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, changes = FAMILIES[name]
    config = AutoConfig.for_model(kind, **{**_SIZE, **changes})
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        build: Any = AutoModelForCausalLM.from_config
        model = build(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                spread = 1.0 if "embed" in parameter_name else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    model.to(dtype).save_pretrained(folder, **save)
    tiny.tokenizer().save_pretrained(folder)
