"""The safetensors files of a base model, and what an adapter changes in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedshield.errors import ModelError
from fedshield.model import portable
from fedshield.model.adapter import AdapterHost

DType = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[DType, ...] = ("auto", "float32", "bfloat16", "float16")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: safetensors' names of floating-point dtypes: torch's, and bytes of a value.
_FLOATS = {"F64": ("float64", 8), "F32": ("float32", 4), "BF16": ("bfloat16", 2)}
_FLOATS["F16"] = ("float16", 2)
#: The first numbered part of a parameter's name: its layer.
_BLOCK = re.compile(r"(.*?\.\d+)\.")


class WeightFiles:
    """The safetensors files of a model folder. `tensors`: name -> its file, dtype and shape."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.index = {} if (folder / WEIGHTS).is_file() else portable.read_json(folder / INDEX)
        names = sorted(set(self.index.get("weight_map", {}).values())) or [WEIGHTS]
        self.tensors: dict[str, tuple[str, str, tuple[int, ...]]] = {}
        for name in names:
            if not (folder / name).is_file():
                raise ModelError(
                    f"base model: expected {name} in its folder, got none; complete the folder"
                )
            with safe_open(folder / name, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(tensor)
                    self.tensors[tensor] = (name, part.get_dtype(), tuple(part.get_shape()))

    def names(self) -> dict[str, list[str]]:
        """File -> the names of its tensors."""
        by_file: dict[str, list[str]] = {}
        for tensor, (file, _, _) in self.tensors.items():
            by_file.setdefault(file, []).append(tensor)
        return by_file

    def read(self, tensor: str) -> Any:
        from safetensors import safe_open

        with safe_open(self.folder / self.tensors[tensor][0], framework="pt") as file:
            return file.get_tensor(tensor)

    def num_bytes(self, dtype: DType) -> int:
        """Bytes of all files with floating-point values of this dtype."""
        before = sum((self.folder / name).stat().st_size for name in self.names())
        if dtype == "auto":
            return before
        width = dict(_FLOATS.values())[dtype]
        kinds = [(kind, shape) for _, kind, shape in self.tensors.values() if kind in _FLOATS]
        return before + sum(math.prod(shape) * (width - _FLOATS[kind][1]) for kind, shape in kinds)


class Changes:
    """What the adapter adds to each tensor of the base's files, a block of layers at a time.

    transformers may hold a tensor under another name than the file does, or several as one (the
    experts of a mixture). Its own way back from model to file is linear, so the change goes that
    way like the weight. The weights go it first: a tensor that does not come out as it is in the
    file is refused, and nothing is guessed.
    """

    def __init__(self, host: AdapterHost, files: WeightFiles) -> None:
        from peft.tuners.lora import LoraLayer

        self._model: Any = host.model.get_base_model()
        self._files = files
        layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        self._layers: dict[int, list[Any]] = {}
        for layer in layers:
            weight = layer.get_param() if hasattr(layer, "get_param") else layer.weight
            self._layers.setdefault(id(weight), []).append(layer)
        self._blocks: dict[str, dict[str, Any]] = {}
        for name, parameter in self._model.named_parameters():
            if "lora_" in name:
                continue
            plain = name.replace(".base_layer", "")
            match = _BLOCK.match(plain)
            self._blocks.setdefault(match[1] if match else plain, {})[plain] = parameter
        #: Tensor in a file -> the block that changes it.
        self.block_of: dict[str, str] = {}
        reached: set[int] = set()
        for block, parameters in self._blocks.items():
            own = {id(parameter) for parameter in parameters.values()} & self._layers.keys()
            if own:
                reached |= own
                self._place(block)
        if reached != self._layers.keys():
            raise ModelError(
                "base model: expected a weight of its own under each layer of the adapter, got "
                f"{len(self._layers.keys() - reached)} without; use the adapter with PEFT"
            )
        self._kept: tuple[str, dict[str, Any]] = ("", {})

    def of(self, tensor: str) -> Any:
        """The change of a tensor of the files, float32; None where there is none."""
        block = self.block_of.get(tensor)
        if block is None:
            return None
        if self._kept[0] != block:
            self._kept = (block, self._to_files(self._deltas(block)))
        return self._kept[1].get(tensor)

    def _place(self, block: str) -> None:
        """Find the block's tensors in the files, and see that they are the model's."""
        import torch

        # An adapter of zeros changes nothing, and its tensors are left as they are.
        deltas = self._to_files(self._deltas(block))
        changed = [name for name, delta in deltas.items() if delta.any()]
        weights = self._to_files(
            {name: parameter.detach().cpu() for name, parameter in self._wanted(block).items()}
        )
        for name in changed:
            weight = weights[name]
            kind = self._files.tensors[name][1] if name in self._files.tensors else "none"
            if kind not in _FLOATS or not torch.equal(
                self._files.read(name).to(weight.dtype), weight
            ):
                raise ModelError(
                    f"base model: expected {name} in its files as floating-point weights that the "
                    f"model computes with, got others ({kind}); a merge would be wrong, so use "
                    "the adapter with PEFT"
                )
            self.block_of[name] = block

    def _wanted(self, block: str) -> dict[str, Any]:
        """The block's parameters that are needed: all, where transformers converts any of them."""
        parameters = self._blocks[block]
        if getattr(self._model, "_weight_conversions", None):
            return parameters
        return {name: one for name, one in parameters.items() if id(one) in self._layers}

    def _deltas(self, block: str) -> dict[str, Any]:
        """The block's change by the model's names, float32, on the CPU; zeros where it has none."""
        import torch

        deltas = {}
        for name, parameter in self._wanted(block).items():
            delta = torch.zeros(parameter.shape)
            for layer in self._layers.get(id(parameter), ()):
                delta += layer.get_delta_weight("default").detach().float().cpu()
            deltas[name] = delta
        return deltas

    def _to_files(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        from transformers.core_model_loading import revert_weight_conversion

        if getattr(self._model, "_weight_conversions", None):
            tensors = revert_weight_conversion(self._model, dict(tensors))
        return {self._name_in_files(name, tensor): tensor for name, tensor in tensors.items()}

    def _name_in_files(self, name: str, tensor: Any) -> str:
        # Files of a bare model, as GPT-2's, leave out the prefix of the one with an output layer.
        prefix = f"{self._model.base_model_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self._files.tensors:
                if self._files.tensors[candidate][2] == tuple(tensor.shape):
                    return candidate
                break
        return name
