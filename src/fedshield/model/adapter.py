"""LoRA on a base model, and the way between its tensors and one flat float32 vector.

PEFT is the source of truth for which tensors exist and what they are called; a spec is read
from a model with adapters attached, on the meta device if only sizes are wanted.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshield.errors import ModelError
from fedshield.plan import ALL_LINEAR, AdapterPlan
from fedshield.seeds import derive
from fedshield.types import AdapterSpec, AdapterState, Float32, TensorSpec

if TYPE_CHECKING:
    from fedshield.model.core import Factors


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


def attach(model: Any, adapter: AdapterPlan, given: Factors | None = None) -> tuple[Any, str]:
    """The model with LoRA layers, float32, the only ones that train; and a digest of frozen
    factors where the adapter has any (`core`), else ''. `given`: each target layer's factors,
    where they are not the base weight's own. Raises `ModelError` if a
    target names no layer: PEFT itself would pass over it in silence."""
    from peft import get_peft_model

    targets = names_of(target_layers(model, adapter))
    with warnings.catch_warnings():
        # PEFT asks transformers for a property by its old name, and says that it turns the
        # weights of GPT-2's layers round by itself; nothing a user could do.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        attached = get_peft_model(model, lora_config(adapter, targets))
    factors = ""
    if adapter.train == "core":
        from fedshield.model import core

        factors = core.install(attached, adapter.rank, given)
    return attached, factors


def target_layers(model: Any, adapter: AdapterPlan) -> dict[str, Any]:
    """The linear layers of the base model that get an adapter, by name; for `all-linear` all but
    the output's. Raises `ModelError` if a target names none."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    # An output layer that shares its weights with the embeddings would change them in a merge.
    tied = getattr(model.config, "tie_word_embeddings", False)
    every, output = adapter.targets == (ALL_LINEAR,), model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not (module is output and (tied or every))
    }
    if every:
        return layers
    leaves = names_of(layers)
    for target in adapter.targets:
        if target not in leaves:
            close = difflib.get_close_matches(target, leaves, n=1)
            raise ModelError(
                "adapter.targets: expected linear layers of this model with weights of their "
                f"own, got {target}; "
                + (f"did you mean {close[0]}?" if close else f"it has {', '.join(leaves)}")
            )
    return {
        name: layer for name, layer in layers.items() if name.rpartition(".")[2] in adapter.targets
    }


def names_of(layers: Iterable[str]) -> list[str]:
    """The last parts of the layers' names (`q_proj`), in order."""
    return sorted({name.rpartition(".")[2] for name in layers})


def ordinary(adapter: AdapterPlan) -> AdapterPlan:
    """The plan of the LoRA that a finished adapter is, whatever of it was trained: opening one
    needs no factors to be found again."""
    return adapter.model_copy(update={"train": "ab", "factors": "svd"})


class AdapterHost:
    """One base model with one adapter, whose values are swapped as sites take turns.

    `given`: the factors of `adapter.factors: gradient`, from `gradient.public_factors`; None for
    all other adapters. `factors_sha256`: their digest, '' where nothing is frozen. `notes`: what of
    the model gets no adapter though a reader would expect one, one sentence each.
    """

    notes: tuple[str, ...] = ()

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
        self.model, self.factors_sha256 = attach(model, adapter, given)
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
