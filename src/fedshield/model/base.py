"""The frozen base model, checked, hashed and loaded (`locate` finds it, `weights` reads it).

A name is a built-in (`smollm2-135m`, `tiny-llama`), a local folder, or a hub name. Weights are
read from safetensors only, never from pickles, and no code of a model repository is run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshield.errors import ModelError
from fedshield.model.builtin import tiny
from fedshield.model.checkpoint_files import check_files
from fedshield.model.kinds import check_kind
from fedshield.model.locate import (
    first_line,
    folder_sha256,
    given_config,
    hub_problem,
    local_folder,
    model_folder,
    offline,
    read_config,
)
from fedshield.model.weights import load_weights
from fedshield.notes import library_words
from fedshield.plan.sections import SMOLLM2, TINY_LLAMA, ModelPlan

SMOLLM2_NOTE = "SmolLM2-135M-Instruct, dequantised from Q4_1"

# What `fedshield plan` needs to know of the embedded model before it has been built.
SMOLLM2_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class BaseModel:
    """A loaded base. `precision` is 'bfloat16' or 'float32'; `note` is said wherever the model
    is named; `sha256` is over its weights, config and tokenizer; `notes`: what a library warned of
    and what of the folder is not used, one sentence each; `pad_token_id`: for padding, an id that
    the embeddings have; `folder`: where its files lie on this machine, None for one that is built
    in memory; `hub_name`, `revision`: its name on the hub, '' for a folder or a built-in."""

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    note: str
    device: str
    precision: str
    pad_token_id: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    hub_name: str = ""
    revision: str | None = None

    @property
    def max_positions(self) -> int | None:
        return max_positions(self.model.config)


def max_positions(config: Any) -> int | None:
    """The longest text that a model of this config reads, in tokens; None where it says none."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def resolve_device(wanted: str) -> str:
    """'cpu' or 'cuda[:k]', of `speed.device`. Raises `ModelError` for a CUDA device that is not
    there."""
    if wanted == "cpu" or (wanted == "auto" and not _may_have_cuda()):
        return "cpu"
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(wanted.partition(":")[2] or 0)
        if index >= count:
            raise ModelError(
                f"speed.device: expected a CUDA device that is here ({count} found), got "
                f"{wanted}; use cpu or auto"
            )
    return wanted


def _may_have_cuda() -> bool:
    """False only where no driver of a GPU can be here: then torch need not be imported to ask."""
    if "torch" in sys.modules or not sys.platform.startswith("linux"):
        return True
    drivers = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")
    return any(os.path.exists(path) for path in drivers)


def resolve_precision(wanted: str, name: str, device: str) -> str:
    """The type that the base is computed in.

    Args:
        wanted: 'bf16', 'fp32', or 'auto', which takes bfloat16 where the device computes in it.
        name: of the model.
        device: as of `resolve_device`.

    Returns:
        'bfloat16' or 'float32'.
    """
    if wanted != "auto":
        return {"bf16": "bfloat16", "fp32": "float32"}[wanted]
    if name == TINY_LLAMA:
        return "float32"
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # x86 without AMX computes bfloat16 at half the speed of float32 (docs/log.md, 2026-11-22).
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8", errors="replace") if flags.exists() else ""
    return "bfloat16" if re.search(r"\b(amx_bf16|bf16)\b", text) else "float32"


def load(
    settings: ModelPlan,
    base_dir: Path,
    *,
    device: str,
    precision: str,
    say: Callable[[str], None] = lambda _: None,
    may_fetch: bool = True,
) -> BaseModel:
    """Load a base model, frozen, in evaluation mode.

    Args:
        settings: which model, and how it is quantised.
        base_dir: what a relative path of it starts from.
        device: `speed.device`, also 'auto'.
        precision: `training.precision`, also 'auto'.
        say: told of what takes time.
        may_fetch: whether it may be downloaded.

    Raises:
        ModelError: it is not there, or cannot be used.
    """
    import torch
    import transformers.utils.logging

    name = settings.name
    device = resolve_device(device)
    precision = resolve_precision(precision, name, device)
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    dtype = getattr(torch, precision)
    if settings.quantization != "none":
        _check_quantization(settings.quantization, device)
    folder: Path | None
    notes: tuple[str, ...] = ()
    if name == TINY_LLAMA:
        model, tokenizer = tiny.build(), tiny.tokenizer()
        digest, note = tiny.sha256(model), "random weights, for tests"
        model = model.to(dtype).to(device)
        folder, hub_name = None, ""
    else:
        what = f"model.name {name}"
        folder = model_folder(settings, base_dir, say, may_fetch=may_fetch).absolute()
        about_kind = check_kind(read_config(folder / "config.json", what), what, device)
        headers, about_files = check_files(folder, what)
        tokenizer, about_tokens = _tokenizer(folder, what)
        quantisation = None
        if settings.quantization != "none":
            quantisation = _quantization_config(settings.quantization, dtype)
        model, about_weights = load_weights(folder, what, headers, dtype, device, quantisation)
        say(f"hashing {name}")
        digest = folder_sha256(folder)
        note = SMOLLM2_NOTE if name == SMOLLM2 else ""
        hub_name = name if name != SMOLLM2 and local_folder(name, base_dir) is None else ""
        notes = (*about_kind, *about_files, *about_tokens, *about_weights)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    pad_token_id, about_padding = padding_id(tokenizer, model)
    model.requires_grad_(False)
    model.eval()
    return BaseModel(
        model,
        tokenizer,
        name,
        digest,
        note,
        device,
        precision,
        pad_token_id,
        tuple(dict.fromkeys((*notes, *about_padding))),
        folder,
        hub_name,
        settings.revision if hub_name else None,
    )


def padding_id(tokenizer: Any, model: Any) -> tuple[int, tuple[str, ...]]:
    """An id that the embeddings have, for rows that are shorter than their batch: the tokenizer's
    own, else its end or its first token. Padding is masked, so that which does not matter; a note
    says so where it is not the tokenizer's own."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    own = tokenizer.pad_token_id
    if own is not None and own < rows:
        return int(own), ()
    end = tokenizer.eos_token_id
    used = int(end) if end is not None and end < rows else 0
    why = (
        "has no padding and no end-of-text token"
        if own is None
        else f"pads with id {own}, and the embeddings have {rows} rows"
    )
    return used, (f"the tokenizer {why}: padding, which is masked, uses id {used}",)


def inspect(settings: ModelPlan, base_dir: Path, device: str) -> tuple[Any, str]:
    """The tokenizer and the digest (hex) that `load` would give, of a model on this machine:
    its weights are hashed and not loaded, and nothing is downloaded. Raises `ModelError`.

    Args:
        settings: which model.
        base_dir: what a relative path of it starts from.
        device: `speed.device`; not every kind of model can be used on each.
    """
    name = settings.name
    if name == TINY_LLAMA:
        return tiny.tokenizer(), tiny.sha256(tiny.build())
    what = f"model.name {name}"
    folder = model_folder(settings, base_dir, lambda _: None, may_fetch=False)
    check_kind(read_config(folder / "config.json", what), what, resolve_device(device))
    check_files(folder, what)
    return _tokenizer(folder, what)[0], folder_sha256(folder)


def load_tokenizer(settings: ModelPlan, base_dir: Path) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer that `load` would give, of a model that is on this machine, and what its
    library says of it; its weights need not be here. Raises `ModelError`."""
    if settings.name == TINY_LLAMA:
        return tiny.tokenizer(), ()
    folder = model_folder(settings, base_dir, lambda _: None, may_fetch=False)
    return _tokenizer(folder, f"model.name {settings.name}")


def load_config(settings: ModelPlan, base_dir: Path) -> Any:
    """The model's Hugging Face config, without its weights. Raises `ModelError`."""
    from transformers import AutoConfig

    name = settings.name
    if (given := given_config(settings, base_dir)) is not None:
        return read_config(given, "model.config")
    if name == TINY_LLAMA:
        return tiny.config()
    if name == SMOLLM2:
        fields = dict(SMOLLM2_CONFIG)
        return AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    local = local_folder(name, base_dir)
    if local is not None:
        return read_config(local / "config.json", f"model.name {name}")
    try:
        return AutoConfig.from_pretrained(
            name, revision=settings.revision, local_files_only=offline()
        )
    except Exception as error:
        raise ModelError(hub_problem(name, error)) from None


def empty_model(settings: ModelPlan, base_dir: Path) -> Any:
    """The model's modules on the meta device: shapes without weights. Raises `ModelError`."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(settings, base_dir)
    check_kind(config, f"model.name {settings.name}")
    try:
        with library_words(), torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            return build(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model.name {settings.name}: expected a causal language model, got "
            f"{type(config).__name__} ({first_line(error)}); choose another model"
        ) from None


# -- loading -------------------------------------------------------------------------------


def _tokenizer(folder: Path, what: str) -> tuple[Any, tuple[str, ...]]:
    """The folder's tokenizer, and what transformers says of it. Raises `ModelError`."""
    from transformers import AutoTokenizer

    with library_words() as words:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise ModelError(
                f"{what}: expected a tokenizer in the folder, got {first_line(error)}; add "
                "tokenizer.json"
            ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            f"{what}: expected a fast tokenizer (tokenizer.json), got a slow one; "
            "convert it with transformers"
        )
    return tokenizer, tuple(f"transformers: {word}" for word in words)


def _check_quantization(wanted: str, device: str) -> None:
    if not device.startswith("cuda"):
        raise ModelError(
            f"model.quantization: expected a CUDA device for {wanted}, got {device}; "
            "use quantization: none, or run where CUDA is present"
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ModelError(
            f"model.quantization: expected the package bitsandbytes for {wanted}, found none; "
            "pip install 'fedshield[cuda]'"
        ) from None


def _quantization_config(wanted: str, dtype: Any) -> Any:
    import transformers

    build: Any = transformers.BitsAndBytesConfig
    if wanted == "8bit":
        return build(load_in_8bit=True)
    return build(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
