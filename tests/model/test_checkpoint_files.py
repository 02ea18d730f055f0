"""The files of a model's folder: one whole set of safetensors, or a line that says what is not."""

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
from fedshield.model.checkpoint_files import check_files

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_files(folder, "model.name m")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.name m: expected")
    return message


def shard(folder: Path) -> dict[str, str]:
    """Two shards with their index in place of the one file; returns the index's map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    where = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        where |= dict.fromkeys(part, file)
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    write_index(folder, where)
    return where


def write_index(folder: Path, where: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shapes_and_dtypes_are_as_saved(folder: Path) -> None:
    headers, notes = check_files(folder, "model.name m")
    tensors = load_file(folder / "model.safetensors")
    assert {name: shape for name, (shape, _) in headers.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert {dtype for _, dtype in headers.values()} == {"F32"}
    assert notes == ()
    shard(folder)
    assert check_files(folder, "model.name m") == (headers, ())


def test_files_that_are_not_read_are_named(folder: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.safetensors", "tiny.gguf"):
        (folder / name).write_bytes(b"")
    _, (note,) = check_files(folder, "model.name m")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "tiny.gguf"):
        assert name in note


def test_gguf_alone_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny.gguf")
    assert "got GGUF ones" in refused(folder)


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    """transformers would load it along with the base, silently."""
    (folder / "adapter_config.json").write_text("{}")
    message = refused(folder)
    assert "adapter beside its weights (adapter_config.json)" in message
    assert "merge_and_unload" in message


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def no_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()


def index_of_another(folder: Path) -> None:
    where = shard(folder)
    write_index(folder, where | {"model.extra.weight": "model-00001-of-00002.safetensors"})


def index_without_a_map(folder: Path) -> None:
    shard(folder)
    write_index(folder, None)


def an_extra_shard(folder: Path) -> None:
    shard(folder)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00003-of-00003.safetensors"
    )


def two_sets(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def the_same_tensor_twice(folder: Path) -> None:
    shard(folder)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    )


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (lose_a_shard, "got none named model-00002-of-00002.safetensors (1 missing)"),
        (no_index, f"or shards with {INDEX}, got model-00001-of-00002.safetensors (2 files)"),
        (index_of_another, "got model.extra.weight in one alone (1 differ)"),
        (index_without_a_map, "expected an index of shards"),
        (an_extra_shard, "got model-00003-of-00003.safetensors beside"),
        (two_sets, "got model-00001-of-00002.safetensors beside (2 such files)"),
        (the_same_tensor_twice, "in two files"),
    ],
)
def test_shards_that_are_not_one_whole(
    folder: Path, damage: Callable[[Path], None], hint: str
) -> None:
    damage(folder)
    assert hint in refused(folder)


def test_a_file_cut_short_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "got a damaged model.safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("module.", "DataParallel"), ("_orig_mod.", "torch.compile"), ("base_model.model.", "PEFT")],
)
def test_a_wrappers_prefix_is_named(folder: Path, prefix: str, wrapper: str) -> None:
    path = folder / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    message = refused(folder)
    assert f"with {prefix}, saved from within {wrapper}" in message


def test_weights_of_eight_bits_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path, metadata={"format": "pt"})
    assert f"got {name} in F8_E4M3 (1 such)" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_generation_settings_that_cannot_be_read(folder: Path, text: str) -> None:
    """transformers passes over them without a word."""
    (folder / "generation_config.json").write_text(text)
    assert "expected settings in generation_config.json" in refused(folder)
