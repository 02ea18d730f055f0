"""The files of a model's folder, checked before any weight is loaded.

They hold one set of safetensors: whole, unquantised, under the tensors' own names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from fedshield.errors import ModelError
from fedshield.model.locate import first_line

#: A tensor's name -> its shape and dtype, as the file's header has them.
Headers = Mapping[str, tuple[tuple[int, ...], str]]

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
#: What wrappers write before every tensor's name, and who they are.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "PEFT",
}
_FLOATS = {"F64", "F32", "F16", "BF16"}


def check_files(folder: Path, what: str) -> tuple[Headers, tuple[str, ...]]:
    """The tensors that a load will read, and notes on files that it will not. Raises `ModelError`
    for a folder whose files do not make up one model; `what` begins its text."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{what}: expected a base model alone, got an adapter beside its weights "
            "(adapter_config.json); merge it first (PEFT's merge_and_unload, then save_pretrained),"
            " or move the adapter's files out"
        )
    files = sorted(folder.glob("*.safetensors"))
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt")
    )
    if not files:
        _refuse_other_formats(folder, others, what)
    read = _files_to_read(folder, what)
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in read:
        for tensor, facts in _header(folder / name, what).items():
            if tensor in headers:
                raise ModelError(
                    f"{what}: expected each tensor once, got {tensor} in two files ({name} is the "
                    "second); remove one"
                )
            headers[tensor] = facts
    _check_index(folder, read, headers, what)
    _check_names(headers, what)
    _check_dtypes(headers, what)
    _check_generation_config(folder, what)
    unread = [path.name for path in files if path.name not in read] + others
    shards = [name for name in unread if _SHARD.search(name) and name.startswith("model")]
    if shards:
        raise ModelError(
            f"{what}: expected {', '.join(read[:2])} to be all weights, got {shards[0]} beside "
            f"({len(shards)} such files), which would not be read; remove one set of weights"
        )
    note = f"files of the model's folder that are not read: {', '.join(unread)}"
    return headers, (note,) if unread else ()


def _refuse_other_formats(folder: Path, others: list[str], what: str) -> None:
    if any(name.endswith(".gguf") for name in others):
        raise ModelError(
            f"{what}: expected *.safetensors weights, got GGUF ones, which are quantised; use the "
            "model that they were made from"
        )
    if others:
        raise ModelError(
            f"{what}: expected *.safetensors weights, got pickled ones; convert them "
            "with save_pretrained, pickles are not read"
        )
    raise ModelError(
        f"{what}: expected *.safetensors weights in {folder.name}, found none; complete the folder"
    )


def _files_to_read(folder: Path, what: str) -> list[str]:
    """The files that transformers reads: the single one if it is there, else those of the index."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = folder / _INDEX
    if not index.is_file():
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        raise ModelError(
            f"{what}: expected model.safetensors, or shards with {_INDEX}, got {names[0]} "
            f"({len(names)} files); complete the folder"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{what}: expected an index of shards in {_INDEX}, got {first_line(error)}; replace it"
        ) from None
    absent = [name for name in names if "/" in name or not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{what}: expected the {len(names)} files of {_INDEX}, got none named {absent[0]} "
            f"({len(absent)} missing); complete the folder"
        )
    return names


def _check_index(folder: Path, read: list[str], headers: Headers, what: str) -> None:
    """A single file beside an index, and shards, hold the tensors that the index names."""
    index = folder / _INDEX
    if not index.is_file():
        return
    try:
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        listed = set()
    differ = sorted(listed ^ set(headers))
    if differ:
        raise ModelError(
            f"{what}: expected {_INDEX} and {', '.join(read[:2])} to name the same tensors, got "
            f"{differ[0]} in one alone ({len(differ)} differ); remove one set of weights"
        )


def _header(path: Path, what: str) -> dict[str, tuple[tuple[int, ...], str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{what}: expected weights that fit its config, got a damaged {path.name} "
            f"({first_line(error)}); fetch or copy it again"
        ) from None


def _check_names(headers: Headers, what: str) -> None:
    for prefix, wrapper in _WRAPPERS.items():
        wrapped = [name for name in headers if name.startswith(prefix)]
        if wrapped:
            raise ModelError(
                f"{what}: expected the tensors' own names, got {wrapped[0]} ({len(wrapped)} with "
                f"{prefix}, saved from within {wrapper}); save the model inside it again, or take "
                "the prefix off"
            )


def _check_dtypes(headers: Headers, what: str) -> None:
    odd = [
        f"{name} in {dtype}"
        for name, (_, dtype) in headers.items()
        if name.endswith("weight") and dtype not in _FLOATS
    ]
    if odd:
        raise ModelError(
            f"{what}: expected floating-point weights (float16, bfloat16 or more), got {odd[0]} "
            f"({len(odd)} such); quantised weights are not read, use the model they were made from"
        )


def _check_generation_config(folder: Path, what: str) -> None:
    """transformers passes over one that it cannot read, without a word."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise TypeError("no object")
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{what}: expected settings in generation_config.json, got {first_line(error)}; "
            "mend or remove it"
        ) from None
