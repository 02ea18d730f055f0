"""A model's weights, loaded from its folder: every tensor has its place, every place its tensor.

The model that runs must be the one that the folder holds. transformers fills what is missing with
random numbers and drops what has no place, with a warning; both are refused here, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedshield.errors import ModelError
from fedshield.model.checkpoint_files import Headers
from fedshield.model.locate import first_line
from fedshield.notes import library_words

#: Buffers that older versions saved, which every class computes by itself.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|masked_bias|(^|\.)position_ids)$")
#: The same, of GPT-2's time: a square mask under a bias's name.
_MASK = re.compile(r"(attn|attention)\.bias$")


def load_weights(
    folder: Path, what: str, headers: Headers, dtype: Any, device: str, quantisation: Any = None
) -> tuple[Any, tuple[str, ...]]:
    """The model with the folder's weights, on `device`, and notes on what of them is not used and
    what transformers warned of. `headers`: of `check_files`; `quantisation`: transformers' config
    for it, or None. Raises `ModelError` unless every tensor has its place and every place its
    tensor, all finite."""
    from transformers import AutoModelForCausalLM

    extra: dict[str, Any] = {}
    if quantisation is not None:
        extra = {"quantization_config": quantisation, "device_map": {"": device}}
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    with library_words() as words:
        try:
            model, info = from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **extra,
            )
        except Exception as error:
            raise ModelError(f"{what}: {_why_not(folder, headers, error)}") from None
    _refuse_keys(info, headers, what, _output_layer(model))
    _check_tied(model, headers, what)
    _check_finite(model, what)
    notes = [*_left_out(model, headers), *(f"transformers: {word}" for word in words)]
    return (model if extra else model.to(device)), tuple(notes)


def _why_not(folder: Path, headers: Headers, error: Exception) -> str:
    """Why a model was not loaded: a config that makes no model, or the first tensor whose shape is
    not the config's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with library_words(), torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            model = build(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as refusal:
        return (
            f"expected a config.json that transformers can build the model from, got "
            f"{first_line(refusal)}; mend it, or take another version of transformers"
        )
    got = first_line(error)
    for name, tensor in model.state_dict().items():
        if name in headers and headers[name][0] != tuple(tensor.shape):
            got = (
                f"{name} of shape {list(headers[name][0])} where the config needs "
                f"{list(tensor.shape)}"
            )
            break
    return f"expected weights that fit its config, got {got}; the folder is damaged or no causal LM"


def _output_layer(model: Any) -> str:
    """The name of the output layer's weight; '' where it has none of its own."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if weight is None or weight is model.get_input_embeddings().weight:
        return ""
    named = model.named_parameters(remove_duplicate=False)
    return next((name for name, parameter in named if parameter is weight), "")


def _refuse_keys(info: Mapping[str, Any], headers: Headers, what: str, output: str) -> None:
    missing = sorted(info["missing_keys"])
    unexpected = sorted(name for name in info["unexpected_keys"] if not _computed(name, headers))
    too_many = f"; and {unexpected[0]} has no place ({len(unexpected)} such)" if unexpected else ""
    if missing == [output]:  # the files of a tied model, or of one without its head
        raise ModelError(
            f"{what}: expected weights for the whole model, got none for its output layer, "
            f"{output}; complete the folder, or set tie_word_embeddings to true in config.json if "
            "that layer is the embeddings"
        )
    if missing:  # transformers would fill them with random numbers and go on
        raise ModelError(
            f"{what}: expected weights for the whole model, got none for {missing[0]} "
            f"({len(missing)} missing){too_many}; complete the folder"
        )
    if unexpected:
        more = f", {unexpected[1]}" if len(unexpected) > 1 else ""
        raise ModelError(
            f"{what}: expected a place for every tensor of the folder, got none for "
            f"{unexpected[0]}{more} ({len(unexpected)} would not be used); config.json is of "
            "another model, or the weights hold more than a causal LM"
        )


def _computed(name: str, headers: Headers) -> bool:
    """Whether it is a buffer that the class computes by itself."""
    if _COMPUTED.search(name):
        return True
    shapes = [shape for full, (shape, _) in headers.items() if full.endswith(name)]
    return bool(_MASK.search(name)) and all(
        len(shape) > 1 and shape[-1] == shape[-2] for shape in shapes
    )


def _left_out(model: Any, headers: Headers) -> Iterable[str]:
    """What the class drops by a rule of its own, without a warning."""
    rules = [str(rule) for rule in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    if not rules:
        return
    dropped = re.compile("|".join(f"({rule})" for rule in rules))
    places = model.state_dict()
    names = sorted(
        name
        for name in headers
        if dropped.search(name) and name not in places and not _computed(name, headers)
    )
    if names:
        yield (
            f"{len(names)} tensors of the model's folder are not used by "
            f"{type(model).__name__}: {names[0]}" + (" and others" if len(names) > 1 else "")
        )


def _check_tied(model: Any, headers: Headers, what: str) -> None:
    """An output layer of its own under a config that ties it: other versions of transformers drop
    it."""
    import torch

    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or not getattr(model, "_tied_weights_keys", None):
        return
    if not model.config.get_text_config().tie_word_embeddings or output.weight is inputs.weight:
        return
    if output.weight.shape == inputs.weight.shape and torch.equal(output.weight, inputs.weight):
        return
    name = next(name for name, weight in model.named_parameters() if weight is output.weight)
    if name in headers:
        raise ModelError(
            f"{what}: expected an output layer that is the embeddings (tie_word_embeddings in "
            f"config.json), got another {name} in its weights; set tie_word_embeddings to false "
            "there if the weights are right"
        )


def _check_finite(model: Any, what: str) -> None:
    import torch

    odd = []
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            low, high = torch.aminmax(parameter.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                odd.append(name)
    if odd:
        raise ModelError(
            f"{what}: expected finite weights, got NaN or infinity in {odd[0]} ({len(odd)} such); "
            "the folder is damaged or was saved after a failed training"
        )
