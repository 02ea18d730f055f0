"""The frozen base model: found, checked, hashed and loaded.

A name is a built-in (`smollm2-135m`, `tiny-llama`), a local folder, or a hub name. Weights are
read from safetensors only, never from pickles, and no code of a model repository is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshield.causes import missing_token
from fedshield.errors import ModelError
from fedshield.model import tiny
from fedshield.plan import BUILT_IN, SMOLLM2, TINY_LLAMA, Plan

SMOLLM2_NOTE = "SmolLM2-135M-Instruct, dequantised from Q4_1"
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")

#: Besides the weights: all that the model's shape, its tokens and its chat template are read from.
_HASHED = {
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
}

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
    and what of the folder is not used, one sentence each."""

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    note: str
    device: str
    precision: str
    notes: tuple[str, ...] = ()


def offline() -> bool:
    """Whether downloads at run time are forbidden."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def resolve_device(plan: Plan) -> str:
    """'cpu' or 'cuda[:k]'. Raises `ModelError` for a CUDA device that is not there."""
    wanted = plan.speed.device
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


def resolve_precision(plan: Plan, device: str) -> str:
    """'bfloat16' or 'float32'; 'auto' takes bfloat16 where the device computes in it."""
    wanted = plan.training.precision
    if wanted != "auto":
        return {"bf16": "bfloat16", "fp32": "float32"}[wanted]
    if plan.model.name == TINY_LLAMA:
        return "float32"
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # x86 without AMX computes bfloat16 at half the speed of float32 (docs/log.md, 2026-11-22).
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8", errors="replace") if flags.exists() else ""
    return "bfloat16" if re.search(r"\b(amx_bf16|bf16)\b", text) else "float32"


def load(plan: Plan, say: Callable[[str], None] = lambda _: None) -> BaseModel:
    """Load the plan's base model, frozen, in evaluation mode. Raises `ModelError`."""
    import torch

    device = resolve_device(plan)
    precision = resolve_precision(plan, device)
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it warns of is checked and said in one line
    dtype = getattr(torch, precision)
    name = plan.model.name
    if plan.model.quantization != "none":
        _check_quantization(plan, device)
    if name == TINY_LLAMA:
        model, tokenizer = tiny.build(), tiny.tokenizer()
        digest, note = tiny.sha256(model), "random weights, for tests"
        model = model.to(dtype).to(device)
    else:
        folder = _folder(plan, say)
        _check_folder(folder, name)
        tokenizer = _tokenizer(folder, name)
        model = _weights(folder, plan, dtype, device)
        say(f"hashing {name}")
        digest = folder_sha256(folder)
        note = SMOLLM2_NOTE if name == SMOLLM2 else ""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    model.eval()
    return BaseModel(model, tokenizer, name, digest, note, device, precision)


def inspect(plan: Plan) -> tuple[Any, str]:
    """The tokenizer and digest that `load` would give, of a model that is on this machine: its
    weights are hashed and not loaded, and nothing is downloaded. Raises `ModelError`."""
    name = plan.model.name
    if name == TINY_LLAMA:
        return tiny.tokenizer(), tiny.sha256(tiny.build())
    folder = _folder(plan, lambda _: None, may_fetch=False)
    _check_folder(folder, name)
    return _tokenizer(folder, name), folder_sha256(folder)


def load_config(plan: Plan) -> Any:
    """The model's Hugging Face config, without its weights. Raises `ModelError`."""
    from transformers import AutoConfig

    name = plan.model.name
    if plan.model.config is not None:
        return _read_config(plan.resolve(plan.model.config), "model.config")
    if name == TINY_LLAMA:
        return tiny.config()
    if name == SMOLLM2:
        fields = dict(SMOLLM2_CONFIG)
        return AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    local = _local_folder(plan)
    if local is not None:
        return _read_config(local / "config.json", f"model.name {name}")
    try:
        return AutoConfig.from_pretrained(
            name, revision=plan.model.revision, local_files_only=offline()
        )
    except Exception as error:
        raise ModelError(_hub_problem(name, error)) from None


def empty_model(plan: Plan) -> Any:
    """The model's modules on the meta device: shapes without weights. Raises `ModelError`."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(plan)
    try:
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            return build(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model.name {plan.model.name}: expected a causal language model, got "
            f"{type(config).__name__} ({_first_line(error)}); choose another model"
        ) from None


# -- finding -------------------------------------------------------------------------------


def _local_folder(plan: Plan) -> Path | None:
    """The folder that `model.name` means, or None for a hub name. Raises `ModelError`."""
    name = plan.model.name
    path = plan.resolve(name)
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"model.name {name}: expected a model folder, got a file; name its folder")
    if name.startswith((".", "/", "~")) or not _HUB_NAME.match(name):
        raise ModelError(
            f"model.name {name}: expected a model folder, found none; check the path, or use a "
            f"hub name or one of {', '.join(BUILT_IN)}"
        )
    return None


def _folder(plan: Plan, say: Callable[[str], None], *, may_fetch: bool = True) -> Path:
    name = plan.model.name
    if name == SMOLLM2:
        from fedshield.model import smollm2

        return smollm2.ensure(say=say, offline=None if may_fetch else True)
    local = _local_folder(plan)
    if local is not None:
        return local
    from huggingface_hub import snapshot_download

    say(f"fetching {name} from the hub unless it is cached")
    try:
        return Path(
            snapshot_download(
                name,
                revision=plan.model.revision,
                local_files_only=offline() or not may_fetch,
                allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.model"],
            )
        )
    except Exception as error:
        raise ModelError(_hub_problem(name, error)) from None


def _hub_problem(name: str, error: Exception) -> str:
    if (refused := missing_token(error)) is not None:
        return f"model.name {name}: {refused}"
    close = f" (or a built-in: {', '.join(BUILT_IN)})"
    if offline():
        return (
            f"model.name {name}: expected it in the local hub cache because HF_HUB_OFFLINE is set, "
            f"found none; fetch it first, or give a local folder{close}"
        )
    return (
        f"model.name {name}: expected a folder or a model on the hub{close}, got "
        f"{type(error).__name__}: {_first_line(error)}; check the name and the network"
    )


def _check_folder(folder: Path, name: str) -> None:
    _read_config(folder / "config.json", f"model.name {name}")
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"model.name {name}: expected *.safetensors weights, got pickled ones; convert them "
            "with save_pretrained, pickles are not read"
        )
    raise ModelError(
        f"model.name {name}: expected *.safetensors weights in {folder.name}, found none; "
        "complete the folder"
    )


def _read_config(path: Path, what: str) -> Any:
    from transformers import AutoConfig

    if not path.is_file():
        raise ModelError(
            f"{what}: expected {path.name} in {path.parent.name or '.'}, found none; "
            "point to a Hugging Face model folder"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields["model_type"]
        return AutoConfig.for_model(**fields) if kind else None
    except Exception as error:  # transformers has its own for a field that does not fit
        raise ModelError(
            f"{what}: expected a Hugging Face config with a known model_type, got "
            f"{type(error).__name__}: {_first_line(error)}; mend or replace {path.name}"
        ) from None


def folder_sha256(folder: Path) -> str:
    """Digest over names and contents of weights, config and tokenizer files."""
    total = hashlib.sha256(b"fedshield base model 1")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in _HASHED:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            total.update(path.name.encode() + b"\0" + digest.digest())
    return total.hexdigest()


# -- loading -------------------------------------------------------------------------------


def _tokenizer(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"model.name {name}: expected a tokenizer in the folder, got {type(error).__name__}: "
            f"{_first_line(error)}; add tokenizer.json"
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            f"model.name {name}: expected a fast tokenizer (tokenizer.json), got a slow one; "
            "convert it with transformers"
        )
    return tokenizer


def _weights(folder: Path, plan: Plan, dtype: Any, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    extra: dict[str, Any] = {}
    if plan.model.quantization != "none":
        extra["quantization_config"] = _quantization_config(plan, dtype)
        extra["device_map"] = {"": device}
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, found = from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    except Exception as error:
        raise ModelError(
            f"model.name {plan.model.name}: expected weights that fit its config, got "
            f"{type(error).__name__}: {_first_line(error)}; the folder is damaged or no causal LM"
        ) from None
    if found["missing_keys"]:  # transformers would fill them with random numbers and go on
        missing = sorted(found["missing_keys"])
        raise ModelError(
            f"model.name {plan.model.name}: expected weights for the whole model, got none for "
            f"{missing[0]} ({len(missing)} missing); complete the folder"
        )
    return model if extra else model.to(device)


def _check_quantization(plan: Plan, device: str) -> None:
    wanted = plan.model.quantization
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


def _quantization_config(plan: Plan, dtype: Any) -> Any:
    import transformers

    build: Any = transformers.BitsAndBytesConfig
    if plan.model.quantization == "8bit":
        return build(load_in_8bit=True)
    return build(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or "no further word"
