"""Where a base model lies: a folder or the hub's cache; its config, and the digest of its files.

Nothing is loaded here. Weights are read from safetensors only, never from pickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedshield.causes import missing_token
from fedshield.errors import ModelError
from fedshield.notes import library_words, one_line
from fedshield.plan import paths
from fedshield.plan.sections import BUILT_IN, SMOLLM2, ModelPlan

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


#: The folder of a tokenizer's further chat templates.
TEMPLATES = "additional_chat_templates"


def offline() -> bool:
    """Whether downloads at run time are forbidden."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def local_folder(name: str, base_dir: Path) -> Path | None:
    """The folder that a model's name means, or None for a hub name. `base_dir`: what a relative
    path starts from. Raises `ModelError`."""
    path = paths.resolve(name, base_dir)
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


def given_config(settings: ModelPlan, base_dir: Path) -> Path | None:
    """The `model.config` that costs are told from; None where there is none, and where the model
    has its own on this machine: a built-in or a folder. `base_dir`: what relative paths start
    from."""
    if settings.config is None or settings.name in BUILT_IN:
        return None
    if paths.resolve(settings.name, base_dir).is_dir():
        return None
    return paths.resolve(settings.config, base_dir)


def model_folder(
    settings: ModelPlan, base_dir: Path, say: Callable[[str], None], *, may_fetch: bool = True
) -> Path:
    """The folder of a model, fetched first where that is needed and allowed.

    Args:
        settings: which model.
        base_dir: what a relative path of it starts from.
        say: told of a download.
        may_fetch: whether there may be one.

    Raises:
        ModelError: no such model is on this machine or can be had.
    """
    name = settings.name
    if name == SMOLLM2:
        from fedshield.model.builtin import smollm2

        return smollm2.ensure(say=say, offline=None if may_fetch else True)
    folder = local_folder(name, base_dir)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    say(f"fetching {name} from the hub unless it is cached")
    try:
        return Path(
            snapshot_download(
                name,
                revision=settings.revision,
                local_files_only=offline() or not may_fetch,
                allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.jinja", "*.model"],
            )
        )
    except Exception as error:
        raise ModelError(hub_problem(name, error)) from None


def hub_problem(name: str, error: Exception) -> str:
    """One line on a hub name that gave no model."""
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
        f"{first_line(error)}; check the name and the network"
    )


def read_config(path: Path, what: str) -> Any:
    """The Hugging Face config in a file; no code that it names is run. Raises `ModelError`."""
    from transformers import AutoConfig

    if not path.is_file():
        raise ModelError(
            f"{what}: expected {path.name} in {path.parent.name or '.'}, found none; "
            + (
                "this folder holds an adapter: name the folder of its base model"
                if (path.parent / "adapter_config.json").is_file()
                else "point to a Hugging Face model folder"
            )
        )
    fields: Any = None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
        kind = fields["model_type"]
        with library_words():  # said again, and kept, when the weights are loaded
            return AutoConfig.for_model(**fields) if kind else None
    except Exception as error:  # transformers has its own for a field that does not fit
        if isinstance(fields, dict) and fields.get("auto_map"):
            raise ModelError(
                f"{what}: expected a model that transformers knows, got "
                f"{one_line(str(fields.get('model_type')), 60)} with code of its own (auto_map in "
                f"{path.name}), which is not run; choose another model"
            ) from None
        raise ModelError(
            f"{what}: expected a Hugging Face config with a known model_type and fields that "
            f"fit, got {first_line(error)}; mend or replace {path.name}"
        ) from None


def _special_float(fields: dict[str, Any]) -> Any:
    """A JSON object, or the number that transformers writes as one: infinity and NaN, which JSON
    does not have."""
    if fields.keys() == {"__float__"}:
        return float(fields["__float__"])
    return fields


def folder_sha256(folder: Path) -> str:
    """Digest over names and contents of weights, config and tokenizer files."""
    total = hashlib.sha256(b"fedshield base model 1")
    paths = [
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name in _HASHED
    ]
    # Of several chat templates one may be for rows with tools.
    paths += (folder / TEMPLATES).glob("*.jinja")
    for path in sorted(paths):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        name = path.relative_to(folder).as_posix()
        total.update(name.encode() + b"\0" + digest.digest())
    return total.hexdigest()


def first_line(error: BaseException) -> str:
    """The kind of an error and its text, as it can stand in a one-line message."""
    return f"{type(error).__name__}: {one_line(str(error), 160) or 'no further word'}"
