"""A model's shape without torch: how many values it has, and its linear layers.

`fedshield plan` needs sizes only, and torch, transformers and PEFT take seconds to import. The
sizes of a few families follow from their config by short rules, which the tests compare with the
real modules. Whatever is not certain (another family, a key that is missing, a config with code or
quantisation of its own) has no shape here: the caller builds the modules on the meta device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshield.model.base import SMOLLM2_CONFIG, max_positions
from fedshield.model.builtin import tiny
from fedshield.model.locate import given_config
from fedshield.plan import paths
from fedshield.plan.sections import ALL_LINEAR, SMOLLM2, TINY_LLAMA, AdapterPlan, ModelPlan
from fedshield.types import AdapterSpec, TensorSpec

OUTPUT = "lm_head"
#: Keys that must be given as whole numbers: a family's own defaults are not repeated here.
_NEEDED = {
    "llama": (),
    "mistral": ("num_key_value_heads",),
    "qwen2": ("num_key_value_heads",),
    "qwen3": ("num_key_value_heads", "head_dim"),
}
_ALWAYS_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
#: What configs call the width between the two halves of a block.
_INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
#: A config with one of these is not described by its sizes alone.
_UNCERTAIN = ("auto_map", "quantization_config", "pruned_heads")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model. `values`: of all weights, shared ones once; `linear`: the
    linear layers by name, (out, in); `tied`: the output layer shares the embeddings' weights;
    `max_positions`: the longest text that it reads, in tokens, None where the config says none;
    `assumed`: what of a step's memory and time the config does not say, in words, each size with
    the number that is taken."""

    values: int
    width: int
    inner: int
    layers: int
    vocabulary: int
    max_positions: int | None
    tied: bool
    linear: Mapping[str, tuple[int, int]]
    assumed: tuple[str, ...] = ()

    def targets(self, adapter: AdapterPlan) -> dict[str, tuple[int, int]] | None:
        """The layers that get an adapter, or None if a target names none."""
        if adapter.targets == (ALL_LINEAR,):
            return {name: size for name, size in self.linear.items() if name != OUTPUT}
        able = {name: size for name, size in self.linear.items() if name != OUTPUT or not self.tied}
        leaves = {name.rpartition(".")[2] for name in able}
        if not leaves.issuperset(adapter.targets):
            return None
        return {
            name: size for name, size in able.items() if name.rpartition(".")[2] in adapter.targets
        }

    def adapter_spec(self, adapter: AdapterPlan) -> AdapterSpec | None:
        """What `model.adapter.empty_spec` says, or None where that has an error to tell."""
        layers = self.targets(adapter)
        if layers is None:
            return None
        tensors = []
        for name, (out_size, in_size) in layers.items():
            prefix, rank = f"base_model.model.{name}", adapter.rank
            if adapter.train == "core":
                if rank > min(out_size, in_size):
                    return None
                tensors.append(TensorSpec(f"{prefix}.lora_B.core", (rank, rank)))
            else:
                tensors.append(TensorSpec(f"{prefix}.lora_A.weight", (rank, in_size)))
                tensors.append(TensorSpec(f"{prefix}.lora_B.weight", (out_size, rank)))
        ordered = tuple(sorted(tensors, key=lambda tensor: tensor.name))
        return AdapterSpec(ordered, "", adapter.alpha / adapter.rank)


def shape_of(settings: ModelPlan, base_dir: Path) -> ModelShape | None:
    """The shape of a base model, or None where it is not certain. Reads a config.json that is on
    this machine and nothing else; raises nothing of its own. `base_dir`: what relative paths of
    `settings` start from."""
    fields = _config_fields(settings, base_dir)
    return None if fields is None else from_config(fields)


def from_config(fields: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a Hugging Face config says, or None where it is not certain."""
    family = fields.get("model_type")
    if family not in _NEEDED or any(fields.get(key) for key in _UNCERTAIN):
        return None
    numbers = [fields.get(key) for key in (*_ALWAYS_NEEDED, *_NEEDED[family])]
    numbers += [fields[key] for key in ("num_key_value_heads", "head_dim") if fields.get(key)]
    if not all(type(number) is int and number > 0 for number in numbers):
        return None
    width, inner, heads = (
        fields[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    layers, vocabulary = fields["num_hidden_layers"], fields["vocab_size"]
    if width % heads and not fields.get("head_dim"):
        return None
    head = fields.get("head_dim") or width // heads
    kept_heads = fields.get("num_key_value_heads") or heads
    flags = [
        fields.get(key, False) for key in ("attention_bias", "mlp_bias", "tie_word_embeddings")
    ]
    if not all(isinstance(flag, bool) for flag in flags):
        return None
    attention_bias, mlp_bias, tied = flags
    linear: dict[str, tuple[int, int]] = {}
    values = width + vocabulary * width * (1 if tied else 2)  # last norm, embeddings, output
    for layer in range(layers):
        for name, (out_size, in_size) in _block(width, inner, heads * head, kept_heads * head):
            linear[f"model.layers.{layer}.{name}"] = (out_size, in_size)
            values += out_size * in_size
            attends = name.startswith("self_attn.")
            biased = {
                "llama": attention_bias if attends else mlp_bias,
                "mistral": False,
                "qwen2": attends and not name.endswith("o_proj"),
                "qwen3": attends and attention_bias,
            }[family]
            values += out_size if biased else 0
        values += 2 * width + (2 * head if family == "qwen3" else 0)  # norms
    linear[OUTPUT] = (vocabulary, width)
    return ModelShape(
        values=values,
        width=width,
        inner=inner,
        layers=layers,
        vocabulary=vocabulary,
        max_positions=fields["max_position_embeddings"],
        tied=tied,
        linear=linear,
    )


def from_modules(model: Any) -> ModelShape:
    """The shape of a model whose modules are there, also on the meta device. What its config does
    not say is assumed, for estimates of memory and time only, and listed in `assumed`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config = model.config.get_text_config()
    output = getattr(model.get_output_embeddings(), "weight", None)
    inputs = getattr(model.get_input_embeddings(), "weight", None)
    linear: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            linear[name] = (module.weight.shape[1], module.weight.shape[0])
        elif isinstance(module, nn.Linear):
            linear[name] = (module.out_features, module.in_features)
    assumed: list[str] = []

    def size(names: tuple[str, ...], instead: int, why: str) -> int:
        for name in names:
            said = getattr(config, name, None)
            if type(said) is int and said > 0:
                return said
            if isinstance(said, list) and said and all(type(one) is int for one in said):
                instead, why = max(said), "the largest of its list"  # a layer has its own
                break
        assumed.append(f"{names[0]} {instead} ({why})")
        return instead

    rows, columns = (1, 1) if inputs is None else inputs.shape
    blocks = [len(part) for part in model.modules() if isinstance(part, nn.ModuleList)]
    width = size(("hidden_size",), columns, "the width of the embeddings")
    inner = size(_INNER, 4 * width, "4 times hidden_size")
    layers = size(("num_hidden_layers",), max(blocks, default=1), "the longest list of modules")
    vocabulary = size(("vocab_size",), rows, "the rows of the embeddings")
    if config.model_type not in _NEEDED:
        assumed.append("activations as in Llama's layers")
    return ModelShape(
        values=sum(parameter.numel() for parameter in model.parameters()),
        width=width,
        inner=inner,
        layers=layers,
        vocabulary=vocabulary,
        max_positions=max_positions(config),
        tied=output is not None and output is inputs,
        linear=linear,
        assumed=tuple(assumed),
    )


def _block(
    width: int, inner: int, queries: int, keys: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    yield "self_attn.q_proj", (queries, width)
    yield "self_attn.k_proj", (keys, width)
    yield "self_attn.v_proj", (keys, width)
    yield "self_attn.o_proj", (width, queries)
    yield "mlp.gate_proj", (inner, width)
    yield "mlp.up_proj", (inner, width)
    yield "mlp.down_proj", (width, inner)


def _config_fields(settings: ModelPlan, base_dir: Path) -> Mapping[str, Any] | None:
    name = settings.name
    if (given := given_config(settings, base_dir)) is not None:
        return _read(given)
    if name == TINY_LLAMA:
        return {"model_type": "llama", **tiny.CONFIG}
    if name == SMOLLM2:
        return SMOLLM2_CONFIG
    folder = paths.resolve(name, base_dir)
    if folder.is_dir():
        return _read(folder / "config.json")
    if folder.exists() or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=settings.revision)
    except ValueError:  # no name of the hub's
        return None
    return _read(Path(cached)) if isinstance(cached, str) else None


def _read(path: Path) -> Mapping[str, Any] | None:
    """None for a file that `load_config` will have a word to say about."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
