"""Config files that transformers 4 reads like transformers 5. What each setting was called in
version 4 is from the configs that hubs hold, and is tried out by `make compat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedshield.model import portable


@pytest.mark.parametrize(
    ("fields", "old"),
    [
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            {"rope_theta": 5e5},
        ),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4},
            },
            {"rope_theta": 5e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            {
                "model_type": "phi",
                "rope_parameters": {
                    **{"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
                },
            },
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "model_type": "gpt_neox",
                "rope_parameters": {
                    **{"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
                },
            },
            {"rotary_emb_base": 1e4, "rotary_pct": 0.25},
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        ({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None}, {}),
        ({"model_type": "gpt2"}, {}),
        ({"model_type": "qwen3_moe", "num_local_experts": 8}, {"num_experts": 8}),
        ({"model_type": "mixtral", "num_local_experts": 8}, {}),
    ],
)
def test_rotary_settings_stand_under_both_names(
    fields: dict[str, Any], old: dict[str, Any]
) -> None:
    assert portable.model_config(fields, (), None) == {**fields, **old}
    inside = {"model_type": "pair", "text_config": fields}
    written = portable.model_config(inside, (), None)
    assert written == {"model_type": "pair", "text_config": {**fields, **old}}


def test_the_end_tokens_and_the_dtype_are_written_where_they_stand() -> None:
    base = {
        "model_type": "pair",
        "dtype": "float32",
        "text_config": {"model_type": "llama", "eos_token_id": 2, "torch_dtype": "float32"},
    }
    assert portable.model_config(base, (2, 5), "bfloat16") == {
        "model_type": "pair",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "eos_token_id": [2, 5],
        "text_config": {
            "model_type": "llama",
            "eos_token_id": [2, 5],
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        },
    }


def test_a_tokenizer_that_transformers_5_wrote_is_one_that_4_knows(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    fields = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "is_local": True,
        "local_files_only": True,
        "extra_special_tokens": ["<a>"],
        "eos_token": "</s>",
    }
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(fields))
    portable.copy_tokenizer(tmp_path / "base", tmp_path / "out", None)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "eos_token": "</s>",
    }


def test_another_template_takes_the_place_of_every_own_one(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    (base / "additional_chat_templates").mkdir(parents=True)
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("own")
    (base / "chat_template.jinja").write_text("own")
    (base / "chat_template.json").write_text('{"chat_template": "own"}')
    (base / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    out.mkdir()
    portable.copy_tokenizer(base, out, "ours")
    assert sorted(path.name for path in out.iterdir()) == [
        *("chat_template.jinja", "tokenizer_config.json")
    ]
    assert (out / "chat_template.jinja").read_text() == "ours"
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"chat_template": "ours"}
