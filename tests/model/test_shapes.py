"""Sizes by rule against the real modules: of every family that the rules serve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedshield.errors import ModelError
from fedshield.model import shapes
from fedshield.model.adapter import empty_spec
from fedshield.model.base import empty_model
from fedshield.plan.load import load_plan, parse_plan
from fedshield.plan.schema import Plan
from fedshield.plan.sections import AdapterPlan

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, biased and tied": {
        "model_type": "llama",
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "llama, wide heads": {"model_type": "llama", "mlp_bias": True, "head_dim": 24},
    "llama, all heads": {"model_type": "llama", "num_key_value_heads": 4},
    "mistral": {"model_type": "mistral", "head_dim": 32},
    "mistral, tied": {"model_type": "mistral", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 48},
    "qwen3, biased": {"model_type": "qwen3", "attention_bias": True, "tie_word_embeddings": True},
}
ADAPTERS = {
    "q and v": AdapterPlan(rank=4),
    "all": AdapterPlan(rank=4, targets=("all-linear",)),
    "core": AdapterPlan(rank=4, targets=("all-linear",), train="core"),
    "output too": AdapterPlan(rank=2, targets=("lm_head", "up_proj")),
}


def modules(fields: dict[str, Any]) -> Any:
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        return build(AutoConfig.for_model(**fields))


@pytest.mark.parametrize("case", CONFIGS)
def test_the_rules_say_what_the_modules_are(case: str) -> None:
    fields = SMALL | CONFIGS[case]
    shape = shapes.from_config(fields)
    assert shape is not None
    assert shape == shapes.from_modules(modules(fields))
    for adapter in ADAPTERS.values():
        if shape.tied and "lm_head" in adapter.targets:
            assert shape.adapter_spec(adapter) is None
            with pytest.raises(ModelError, match="got lm_head"):
                empty_spec(modules(fields), adapter)
        else:
            assert shape.adapter_spec(adapter) == empty_spec(modules(fields), adapter)


LIKE_LLAMA = "activations as in Llama's layers"


@pytest.mark.parametrize(
    ("fields", "inner", "assumed"),
    [
        ({"model_type": "gpt2"}, 128, ("intermediate_size 128 (4 times hidden_size)",)),
        ({"model_type": "gpt2", "n_inner": 80}, 80, ()),
        ({"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 32}, 96, ()),
        ({"model_type": "gptj", "rotary_dim": 4}, 128, None),
    ],
    ids=str,
)
def test_what_a_config_does_not_say_is_named_with_what_is_taken(
    fields: dict[str, Any], inner: int, assumed: tuple[str, ...] | None
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 70}
    shape = shapes.from_modules(modules(fields | sizes))
    assert shape.inner == inner
    assert (shape.width, shape.layers, shape.vocabulary) == (32, 2, 70)
    if assumed is None:
        assumed = (f"intermediate_size {inner} (4 times hidden_size)",)
    assert shape.assumed == (*assumed, LIKE_LLAMA)


def test_no_size_is_assumed_without_a_word() -> None:
    """A config that says none of them, and one with a list for its layers."""
    model = modules(SMALL | {"model_type": "llama", "tie_word_embeddings": True})
    whole = shapes.from_modules(model)
    assert whole.assumed == ()

    def said(**fields: Any) -> shapes.ModelShape:
        config = SimpleNamespace(model_type="llama", max_position_embeddings=128, **fields)
        config.get_text_config = lambda: config
        model.config = config
        return shapes.from_modules(model)

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    listed = said(intermediate_size=[96, 80], **sizes)
    assert (listed.inner, listed.assumed) == (
        96,
        ("intermediate_size 96 (the largest of its list)",),
    )
    shape = said()
    assert shape.assumed == (
        "hidden_size 64 (the width of the embeddings)",
        "intermediate_size 256 (4 times hidden_size)",
        "num_hidden_layers 2 (the longest list of modules)",
        "vocab_size 300 (the rows of the embeddings)",
    )
    assert (shape.width, shape.inner, shape.layers, shape.vocabulary) == (64, 256, 2, 300)
    assert (shape.values, shape.tied, shape.linear) == (whole.values, True, whole.linear)


@pytest.mark.parametrize("name", ["quickstart.yaml", "tiny.yaml", "paper.yaml"])
def test_the_examples_models_are_what_their_modules_are(name: str) -> None:
    plan, _ = load_plan(EXAMPLES / name)
    shape = shapes.shape_of(plan.model, plan.base_dir)
    assert shape is not None
    assert shape == shapes.from_modules(empty_model(plan.model, plan.base_dir))
    assert shape.adapter_spec(plan.adapter) == empty_spec(
        empty_model(plan.model, plan.base_dir), plan.adapter
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2"},
        {"model_type": "mixtral"},
        {"hidden_size": None},
        {"num_hidden_layers": "2"},
        {"num_attention_heads": 4.0},
        {"vocab_size": True},
        {"attention_bias": "yes"},
        {"auto_map": {"AutoModelForCausalLM": "own.Model"}},
        {"quantization_config": {"bits": 4}},
        {"model_type": "qwen3", "head_dim": None},
        {"model_type": "mistral", "num_key_value_heads": None},
        {"num_attention_heads": 5, "head_dim": None},
    ],
    ids=str,
)
def test_what_is_not_certain_has_no_shape(changes: dict[str, Any]) -> None:
    assert shapes.from_config(SMALL | {"model_type": "llama"}) is not None
    assert shapes.from_config(SMALL | {"model_type": "llama"} | changes) is None


def test_errors_are_left_to_the_modules(tmp_path: Path) -> None:
    """A target that is not there, a rank that does not fit, a file that is no config."""
    shape = shapes.from_config(SMALL | {"model_type": "llama"})
    assert shape is not None
    assert shape.adapter_spec(AdapterPlan(targets=("q_porj",))) is None
    assert shape.adapter_spec(AdapterPlan(rank=33, targets=("k_proj",), train="core")) is None
    (tmp_path / "config.json").write_text("[]")
    settings = folder_plan(tmp_path).model
    assert shapes.shape_of(settings, tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "llama"}))
    assert shapes.shape_of(settings, tmp_path) == shape
    (tmp_path / "config.json").unlink()
    assert shapes.shape_of(settings, tmp_path) is None


def folder_plan(folder: Path) -> Plan:
    raw = {
        "model": {"name": str(folder)},
        "scheme": {"name": "plain"},
        "data": {"sites": {"a": {"source": "sample:maths"}}},
    }
    return parse_plan(raw, base_dir=folder)


@pytest.mark.parametrize("name", ["quickstart.yaml", "tiny.yaml", "paper.yaml"])
def test_the_command_imports_nothing_heavy(name: str) -> None:
    """Seconds of imports, for sizes that follow from a config: in a process of its own, of which
    the modules that were loaded are asked."""
    heavy = {"torch", "transformers", "peft", "tenseal", "numba", "matplotlib", "datasets", "scipy"}
    code = (
        "import sys\nfrom fedshield.cli.commands import app\n"
        f"app(['plan', {str(EXAMPLES / name)!r}, '--details', '--set', 'speed.device=cpu'],"
        " standalone_mode=False)\n"
        f"print('loaded:', *sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded:"
