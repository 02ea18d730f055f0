"""LoRA on a base model, and the way between its tensors and one flat float32 vector.

PEFT is the source of truth for which tensors exist and what they are called; a spec is read
from a model with adapters attached, on the meta device if only sizes are wanted.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshield.errors import ModelError
from fedshield.notes import library_words, one_line
from fedshield.plan.sections import ALL_LINEAR, AdapterPlan
from fedshield.seeds import derive
from fedshield.types import AdapterSpec, AdapterState, Float32, TensorSpec

if TYPE_CHECKING:
    from fedshield.model.lora_xs import Factors


def lora_config(adapter: AdapterPlan, targets: Sequence[str]) -> Any:
    """PEFT's configuration; `targets`: last parts of the layers' names."""
    from peft import LoraConfig

    build: Any = LoraConfig
    return build(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


#: What PEFT says that is known, and why nothing follows from it for a user.
_HANDLED = re.compile(
    "is_gradient_checkpointing"  # PEFT asks transformers for a property by its old name
    "|fan_in_fan_out is set to False"  # it turns the weights of GPT-2's layers round by itself
)
#: Layers whose weight the model uses without the layer, and PEFT does not know: an adapter there
#: would be trained on nothing.
_WEIGHT_ALONE = {(kind, "dt_proj") for kind in ("mamba", "falcon_mamba", "jamba")}


def attach(
    model: Any, adapter: AdapterPlan, given: Factors | None = None
) -> tuple[Any, str, tuple[str, ...]]:
    """LoRA layers on a base model.

    Args:
        given: each target layer's factors, where they are not the base weight's own.

    Returns:
        The model with LoRA layers, float32, the only ones that train; a digest of frozen factors
        where the adapter has any (`core`), else ''; and notes, one sentence each.

    Raises:
        ModelError: if a target names no layer (PEFT itself would pass over it in silence), or
            PEFT refuses one.
    """
    from peft import get_peft_model

    layers = target_layers(model, adapter)
    notes = _without_adapter(model, layers) if adapter.targets == (ALL_LINEAR,) else ()
    with library_words() as words:
        try:
            attached = get_peft_model(model, lora_config(adapter, names_of(layers)))
        except Exception as error:  # PEFT has a kind of its own for each thing that does not fit
            raise ModelError(
                f"adapter.targets: expected layers that take LoRA, got {', '.join(adapter.targets)}"
                f" ({type(error).__name__}: {one_line(str(error), 160)}); name other layers"
            ) from None
    notes += tuple(f"PEFT: {word}" for word in words if not _HANDLED.search(word))
    factors = ""
    if adapter.train == "core":
        from fedshield.model import lora_xs

        factors = lora_xs.install(attached, adapter.rank, given)
    return attached, factors, notes


def target_layers(model: Any, adapter: AdapterPlan) -> dict[str, Any]:
    """The linear layers of the base model that get an adapter, by name; for `all-linear` all that
    PEFT takes but the output's. Raises `ModelError` if a target names none."""
    # An output layer that shares its weights with the embeddings would change them in a merge.
    tied = getattr(model.config, "tie_word_embeddings", False)
    every, output = adapter.targets == (ALL_LINEAR,), model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if _is_linear(module) and not (module is output and (tied or every))
    }
    leaves = names_of(layers)
    refused = {leaf: why for leaf in leaves if (why := _why_no_lora(model, leaf))}
    layers = {name: layer for name, layer in layers.items() if _leaf(name) not in refused}
    leaves = names_of(layers)
    if every:
        if not layers:
            raise ModelError(
                "adapter.targets: expected a model with linear layers for all-linear, got "
                f"{type(model).__name__} with none; choose another model"
            )
        return layers
    for target in adapter.targets:
        if target in refused:
            raise ModelError(
                f"adapter.targets: expected layers that take LoRA, got {target}, "
                f"{refused[target]}; name others of {', '.join(leaves)}"
            )
        if target not in leaves:
            close = difflib.get_close_matches(target, leaves, n=1)
            raise ModelError(
                "adapter.targets: expected linear layers of this model with weights of their "
                f"own, got {target}; "
                + (f"did you mean {close[0]}?" if close else f"it has {', '.join(leaves)}")
            )
    return {name: layer for name, layer in layers.items() if _leaf(name) in adapter.targets}


def _is_linear(module: Any) -> bool:
    """Whether it is a layer that gives its product alone. A router inherits from one, and gives
    its choice of experts as well."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and not type(module).__name__.endswith("Router")


def _leaf(name: str) -> str:
    """The last part of a layer's name; of a numbered one also what it is numbered in, since other
    modules have the same number (`list.0`)."""
    parts = name.split(".")
    at = len(parts) - 1
    while at and parts[at].isdigit():
        at -= 1
    return ".".join(parts[at:])


def _why_no_lora(model: Any, leaf: str) -> str:
    """Why LoRA does not work on a linear layer of this name in a model of this kind; '' where it
    does. PEFT is asked with a model of that one layer, because a refusal leaves a real one half
    changed."""
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    kind = model.config.model_type
    alone = f"whose weight a {kind} model uses without the layer"
    if (kind, leaf) in _WEIGHT_ALONE:
        return alone
    trial: Any = nn.Module()
    trial.config = model.config
    last = leaf.rpartition(".")[2]
    trial.add_module(last, nn.Linear(1, 1))
    build: Any = LoraConfig
    try:
        with library_words():  # the words of the real layers are kept
            inject_adapter_in_model(build(r=1, target_modules=[last]), trial)
    except ValueError:
        return (
            f"of a name that PEFT takes for the experts of a {kind} model"
            if _fused(model)
            else alone
        )
    return ""


def _fused(model: Any) -> bool:
    """Whether experts are kept in one tensor. By the names that their layers had before, PEFT means
    that tensor, and reaches no other layer of such a name: shared experts, a layer without
    experts."""
    return any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters())


def _without_adapter(model: Any, layers: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on the weights that `all-linear` leaves out, with their share: experts that are kept
    in one tensor, routers, convolutions, layers that PEFT refuses. Embeddings and the output layer
    do not count."""
    from torch import nn

    output = model.get_output_embeddings()
    total = out = 0
    kinds, linear = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or module is output:
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if name in layers or parameter.dim() < 2:
                size = _num_weights(module) if name in layers and leaf == "weight" else 0
            else:
                size = parameter.numel()
                parts = [part for part in (*name.split("."), leaf) if not part.isdigit()]
                kinds.add(".".join(parts[-3:-1] if leaf == "weight" else parts[-2:]))
                if _is_linear(module):
                    linear.add(_leaf(name))
                out += size
            total += size
    if not out:
        return ()
    why_not = {leaf: _why_no_lora(model, leaf) for leaf in sorted(linear)}
    refused = [
        (why, [leaf for leaf in why_not if why_not[leaf] == why])
        for why in dict.fromkeys(why_not.values())
    ]
    return (
        f"all-linear gives no adapter to {', '.join(sorted(kinds))} "
        f"({_percent(out / total)} of the layers' weights): no linear layers that take LoRA",
        *(f"of these {', '.join(leaves)} are linear layers, {why}" for why, leaves in refused),
    )


def _num_weights(layer: Any) -> int:
    """Of a linear layer, whose tensor is packed where it is quantised."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features * layer.out_features)
    return int(layer.weight.numel())


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share >= 0.01 else "below 1 %"


def names_of(layers: Iterable[str]) -> list[str]:
    """The last parts of the layers' names (`q_proj`), in order."""
    return sorted({_leaf(name) for name in layers})


def ordinary(adapter: AdapterPlan) -> AdapterPlan:
    """The plan of the LoRA that a finished adapter is, whatever of it was trained: opening one
    needs no factors to be found again."""
    return adapter.model_copy(update={"train": "ab", "factors": "svd"})


class AdapterHost:
    """One base model with one adapter, whose values are swapped as sites take turns.

    `given`: the factors of `adapter.factors: gradient`, from `gradient_factors.public_factors`;
    None for all other adapters. `factors_sha256`: their digest, '' where nothing is frozen.
    `notes`: what of the model gets no adapter though a reader would expect one, a sentence each.
    """

    def __init__(
        self,
        model: Any,
        adapter: AdapterPlan,
        base_model_sha256: str,
        given: Factors | None = None,
    ) -> None:
        if (given is None) == (adapter.factors == "gradient"):
            raise ModelError(
                f"adapter: expected factors from outside with adapter.factors gradient and only "
                f"then, got {'none' if given is None else 'some'} with {adapter.factors}; give "
                "what gradient.public_factors finds"
            )
        self.targets = names_of(target_layers(model, adapter))
        self.model, self.factors_sha256, self.notes = attach(model, adapter, given)
        # Sites with other factors must not be added: they are part of what the adapter is for.
        of = base_model_sha256
        if self.factors_sha256:
            together = bytes.fromhex(base_model_sha256) + self.factors_sha256.encode()
            of = hashlib.sha256(together).hexdigest()
        self.spec, self._parameters = _read_spec(self.model, adapter, of)

    def write(self, state: AdapterState) -> None:
        """Put a state's values into the model."""
        import torch

        if state.spec.sha256() != self.spec.sha256():
            raise ModelError("adapter: expected one made for this base model and plan, got another")
        with torch.no_grad():
            for name, place in self.spec.slices().items():
                parameter = self._parameters[name]
                values = torch.tensor(state.values[place]).view(parameter.shape)
                parameter.copy_(values)

    def read(self) -> Float32:
        """The model's adapter values, float32, shape (spec.num_values,)."""
        return np.concatenate(
            [
                self._parameters[tensor.name].detach().float().cpu().numpy().reshape(-1)
                for tensor in self.spec.tensors
            ]
        ).astype(np.float32, copy=False)

    def trainable(self, names: Collection[str] | None = None) -> list[Any]:
        """The parameters of these tensors (all by default); the others are frozen."""
        chosen: list[Any] = []
        for tensor in self.spec.tensors:
            parameter = self._parameters[tensor.name]
            parameter.requires_grad_(names is None or tensor.name in names)
            if parameter.requires_grad:
                chosen.append(parameter)
        return chosen

    def as_lora(self, state: AdapterState) -> dict[str, Float32]:
        """The adapter as ordinary LoRA tensors: PEFT's name -> (rank, in) or (out, rank)."""
        self.write(state)
        found: dict[str, Float32] = {}
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                for factor in ("lora_A", "lora_B"):
                    weight = getattr(module, factor)["default"].weight
                    found[f"{name}.{factor}.weight"] = weight.detach().float().cpu().numpy().copy()
        return found

    def from_lora(self, tensors: Mapping[str, Float32]) -> AdapterState:
        """The state of an ordinary LoRA (`ordinary`) with these tensors, as `as_lora` gives them.
        Raises `KeyError` if one is missing."""
        values = [tensors[tensor.name].reshape(-1) for tensor in self.spec.tensors]
        return AdapterState(np.concatenate(values).astype(np.float32), self.spec)


def empty_spec(model: Any, adapter: AdapterPlan) -> AdapterSpec:
    """The spec of an adapter on a model whose weights are not here (meta device)."""
    return _read_spec(attach(model, adapter)[0], adapter, "")[0]


def _read_spec(
    model: Any, adapter: AdapterPlan, base_model_sha256: str
) -> tuple[AdapterSpec, dict[str, Any]]:
    # PEFT's state-dict key is the parameter's name without the adapter's name ('default').
    found = {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    tensors = tuple(TensorSpec(name, tuple(found[name].shape)) for name in sorted(found))
    scaling = adapter.alpha / adapter.rank
    return AdapterSpec(tensors, base_model_sha256, scaling), found


def initial_state(spec: AdapterSpec, seed: int) -> AdapterState:
    """The adapter that every site starts from: A uniform in +-1/sqrt(fan in) (LoRA's Kaiming
    rule, arXiv 2106.09685 and PEFT), B zero; from the plan's seed, on any device alike."""
    values = np.zeros(spec.num_values, dtype=np.float32)
    for tensor, place in zip(spec.tensors, spec.slices().values(), strict=True):
        if ".lora_A." in tensor.name:
            generator = np.random.Generator(np.random.Philox(derive(seed, "init", tensor.name)))
            bound = tensor.shape[1] ** -0.5
            values[place] = generator.uniform(-bound, bound, tensor.size).astype(np.float32)
    return AdapterState(values, spec)
