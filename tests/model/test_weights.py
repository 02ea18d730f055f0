"""Loaded weights: every tensor of the folder has its place, every place its tensor, all finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedshield.errors import ModelError
from fedshield.model.builtin import tiny
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base

MakePlan = Callable[..., Plan]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(make_plan: MakePlan, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(make_plan({"model.name": str(folder)}))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tensors_without_a_place_are_refused(make_plan: MakePlan, folder: Path) -> None:
    """Of a checkpoint with biases under a config without: another model would run."""
    bias = {f"model.layers.{k}.self_attn.q_proj.bias": torch.ones(64) for k in range(2)}
    change_weights(folder, lambda tensors: tensors.update(bias))
    message = refused(make_plan, folder)
    assert "got none for model.layers.0.self_attn.q_proj.bias, model.layers.1.self_" in message
    assert "(2 would not be used)" in message
    change_config(folder, attention_bias=True)
    message = refused(make_plan, folder)  # the other biases now have a place and no tensor
    assert "k_proj.bias (6 missing)" in message


def test_a_config_of_fewer_layers_than_the_weights(make_plan: MakePlan, folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    message = refused(make_plan, folder)
    assert "got none for model.layers.1." in message
    assert "(9 would not be used)" in message


def test_buffers_that_old_versions_saved_are_no_weights(make_plan: MakePlan, folder: Path) -> None:
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.attn.masked_bias": torch.ones(1),
        "model.layers.0.attn.bias": torch.ones(1, 1, 16, 16),  # a causal mask
    }
    change_weights(folder, lambda tensors: tensors.update(old))
    loaded = load_base(make_plan({"model.name": str(folder)}))
    expected = tiny.build().state_dict()
    assert all(torch.equal(loaded.model.state_dict()[name], expected[name]) for name in expected)


def test_a_shape_that_does_not_fit_is_named(make_plan: MakePlan, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    message = refused(make_plan, folder)
    assert "model.norm.weight of shape [65] where the config needs [64]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(make_plan: MakePlan, folder: Path, value: float) -> None:
    def damage(tensors: Tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        tensors["model.norm.weight"][0] = value

    change_weights(folder, damage)
    message = refused(make_plan, folder)
    assert "got NaN or infinity in model.layers.1.mlp.up_proj.weight (2 such)" in message


def test_an_output_layer_that_the_config_ties_away(make_plan: MakePlan, folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    message = refused(make_plan, folder)
    assert "got another lm_head.weight in its weights; set tie_word_embeddings to false" in message

    def tie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_weights(folder, tie)  # the same values twice: no harm
    assert load_base(make_plan({"model.name": str(folder)})).notes == ()


def test_an_output_layer_that_is_not_there(make_plan: MakePlan, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert (
        "got none for its output layer, lm_head.weight; complete the folder, or set tie_"
        in refused(make_plan, folder)
    )


def test_embeddings_that_are_not_there(make_plan: MakePlan, folder: Path) -> None:
    """Of a tied model they are the output layer too, and the cure is another."""
    change_config(folder, tie_word_embeddings=True)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    change_weights(folder, lambda tensors: [tensors.pop(name) for name in names])
    assert "tie_word_embeddings" not in refused(make_plan, folder)


def test_a_config_that_makes_no_model(make_plan: MakePlan, folder: Path) -> None:
    change_config(folder, rope_parameters={"rope_type": "magic", "rope_theta": 1e4})
    message = refused(make_plan, folder)
    assert "expected a config.json that transformers can build the model from, got Key" in message
    assert "'magic'" in message


def test_what_transformers_warns_of_is_in_the_notes(
    make_plan: MakePlan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def warning(*args: Any, **keys: Any) -> Any:
        logging.getLogger("transformers.modeling_utils").warning("something odd of this model")
        return load(*args, **keys)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", warning)
    notes = load_base(make_plan({"model.name": str(folder)})).notes
    assert notes == ("transformers: something odd of this model",)
