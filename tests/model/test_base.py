"""The base model: found, checked, hashed and loaded, from a folder and without a network."""

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
from fedshield.model import base
from fedshield.model.builtin import tiny
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base

MakePlan = Callable[..., Plan]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert ": expected" in message
    return message


def load_config(plan: Plan) -> Any:
    return base.load_config(plan.model, plan.base_dir)


def empty_model(plan: Plan) -> Any:
    return base.empty_model(plan.model, plan.base_dir)


def load_error(make_plan: MakePlan, name: Path | str) -> str:
    return refused(lambda: load_base(make_plan({"model.name": str(name)})))


# -- loading -------------------------------------------------------------------------------


def test_the_tiny_model_is_built_frozen(make_plan: MakePlan, no_network: None) -> None:
    found = load_base(make_plan())
    assert (found.name, found.note) == ("tiny-llama", "random weights, for tests")
    assert (found.device, found.precision) == ("cpu", "float32")
    assert found.sha256 == tiny.sha256(tiny.build())
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())


@pytest.mark.parametrize("offline", ["1", ""])
def test_a_folder_is_loaded_as_saved_without_a_network(
    make_plan: MakePlan,
    tiny_folder: Path,
    no_network: None,
    monkeypatch: pytest.MonkeyPatch,
    offline: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    found = load_base(make_plan({"model.name": str(tiny_folder)}))
    assert found.sha256 == base.folder_sha256(tiny_folder)
    assert found.note == ""
    assert not found.model.training
    original = tiny.build().state_dict()
    assert found.model.state_dict().keys() == original.keys()
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, original[name])
        assert not tensor.requires_grad
    text = "<|im_start|>naïve ½"
    assert found.tokenizer(text)["input_ids"] == tiny.tokenizer()(text)["input_ids"]
    assert found.tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_a_relative_folder_starts_at_the_plan(
    make_plan: MakePlan, folder: Path, tmp_path: Path
) -> None:
    plan = make_plan({"model.name": "model"}).with_base_dir(tmp_path)
    assert load_base(plan).sha256 == base.folder_sha256(folder)


@pytest.mark.parametrize("name", ["tiny-llama", "folder"])
def test_bf16_is_loaded_where_asked_for(make_plan: MakePlan, tiny_folder: Path, name: str) -> None:
    where = name if name == "tiny-llama" else str(tiny_folder)
    single = load_base(make_plan({"model.name": where}))
    half = load_base(make_plan({"model.name": where, "training.precision": "bf16"}))
    assert half.precision == "bfloat16"
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.sha256 == single.sha256  # of what is on disk, not of how it is held


def test_a_tokenizer_without_padding_pads_with_its_end_mark(
    make_plan: MakePlan, folder: Path
) -> None:
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["pad_token"]
    path.write_text(json.dumps(fields))
    found = load_base(make_plan({"model.name": str(folder)}))
    assert found.tokenizer.pad_token_id == found.tokenizer.eos_token_id == 258


# -- the digest ----------------------------------------------------------------------------


def test_the_digest_is_of_the_contents_not_of_the_place(folder: Path, tiny_folder: Path) -> None:
    first = base.folder_sha256(tiny_folder)
    assert base.folder_sha256(folder) == first
    (folder / "README.md").write_text("another word")
    assert base.folder_sha256(folder) == first


def test_a_further_chat_template_is_part_of_the_digest(tmp_path: Path, tiny_folder: Path) -> None:
    """Rows with tools may be written by it, so sites must have the same one."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "additional_chat_templates").mkdir()
    assert base.folder_sha256(folder) == base.folder_sha256(tiny_folder)
    template = folder / "additional_chat_templates" / "tool_use.jinja"
    template.write_text("{{ messages }}")
    digests = {base.folder_sha256(folder), base.folder_sha256(tiny_folder)}
    template.write_text("{{ tools }}")
    assert len(digests | {base.folder_sha256(folder)}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_one_changed_byte_changes_the_digest(make_plan: MakePlan, folder: Path, name: str) -> None:
    plan = make_plan({"model.name": str(folder)})
    first = load_base(plan).sha256
    path = folder / name
    data = bytearray(path.read_bytes())
    if name.endswith(".safetensors"):
        data[-1] ^= 1
    else:
        data += b" "
    path.write_bytes(data)
    second = load_base(plan).sha256
    assert second == base.folder_sha256(folder) != first
    path.unlink()
    assert base.folder_sha256(folder) not in (first, second)


@pytest.mark.parametrize(
    "name",
    [
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.json",
    ],
)
def test_files_that_not_every_model_has_count_as_well(folder: Path, name: str) -> None:
    first = base.folder_sha256(folder)
    (folder / name).write_bytes(b"{}")
    assert base.folder_sha256(folder) != first


def test_files_do_not_pass_for_one_another(folder: Path) -> None:
    first = base.folder_sha256(folder)
    (folder / "chat_template.jinja").rename(folder / "chat_template.json")
    assert base.folder_sha256(folder) != first
    (folder / "chat_template.json").rename(folder / "chat_template.jinja")
    assert base.folder_sha256(folder) == first
    one, two = folder / "tokenizer_config.json", folder / "config.json"
    texts = one.read_bytes(), two.read_bytes()
    one.write_bytes(texts[1])
    two.write_bytes(texts[0])
    assert base.folder_sha256(folder) != first


# -- refusals ------------------------------------------------------------------------------


def test_pickled_weights_are_refused(make_plan: MakePlan, folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = load_error(make_plan, folder)
    assert "got pickled ones" in message
    assert "save_pretrained" in message
    # Nor are they taken where other weights lie beside them.
    save_file({"x": torch.ones(1)}, folder / "extra.safetensors", metadata={"format": "pt"})
    assert "expected model.safetensors, or shards" in load_error(make_plan, folder)


def test_a_folder_without_weights_is_refused(make_plan: MakePlan, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "found none" in load_error(make_plan, folder)


def test_weights_of_half_a_model_are_refused(make_plan: MakePlan, folder: Path) -> None:
    """transformers alone fills the rest with random numbers: other ones at every site."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    message = load_error(make_plan, folder)
    assert "model.layers.1.input_layernorm.weight (9 missing)" in message


@pytest.mark.parametrize("damage", ["shape", "cut"])
def test_weights_that_do_not_fit_are_refused(
    make_plan: MakePlan, folder: Path, damage: str
) -> None:
    path = folder / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors = load_file(path)
        tensors["model.norm.weight"] = torch.ones(65)
        save_file(tensors, path, metadata={"format": "pt"})
    assert "expected weights that fit its config" in load_error(make_plan, folder)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "model_type"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
        ('["llama"]', "TypeError"),
    ],
)
def test_a_config_that_is_none_is_refused(
    make_plan: MakePlan, folder: Path, text: str, hint: str
) -> None:
    (folder / "config.json").write_text(text)
    assert hint in load_error(make_plan, folder)


def test_a_folder_without_config_or_tokenizer_is_refused(make_plan: MakePlan, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "expected a tokenizer" in load_error(make_plan, folder)
    (folder / "config.json").unlink()
    assert "expected config.json in model, found none" in load_error(make_plan, folder)


def test_no_code_of_a_model_folder_is_run(make_plan: MakePlan, folder: Path) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}
    path.write_text(json.dumps(fields))
    (folder / "odd.py").write_text("raise SystemExit('was run')")
    assert "odd" in load_error(make_plan, folder)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent", "a/b/c"])
def test_a_path_that_is_not_there_is_named(
    make_plan: MakePlan, no_network: None, name: str
) -> None:
    message = load_error(make_plan, name)
    assert message.startswith(f"model.name {name}: expected a model folder, found none")
    assert "smollm2-135m, tiny-llama" in message


def test_a_file_is_no_folder(make_plan: MakePlan, folder: Path) -> None:
    assert "got a file" in load_error(make_plan, folder / "model.safetensors")


@pytest.mark.parametrize("what", [load_base, load_config], ids=["load", "load_config"])
def test_offline_a_hub_name_says_what_to_do(
    make_plan: MakePlan,
    no_network: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: Callable[[Plan], Any],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The hub's library reads the variable once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    plan = make_plan({"model.name": "some-owner/some-model"})
    message = refused(lambda: what(plan))
    assert "HF_HUB_OFFLINE is set" in message
    assert "fetch it first, or give a local folder" in message
    assert "tiny-llama" in message


# -- device, precision, quantisation -------------------------------------------------------


def test_the_device_asked_for_must_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert base.resolve_device("auto") == "cpu"
    for wanted in ("cuda", "cuda:1"):
        assert f"(0 found), got {wanted}" in refused(lambda name=wanted: base.resolve_device(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert base.resolve_device("auto") == "cuda"
    assert base.resolve_device("cuda:0") == "cuda:0"
    assert base.resolve_device("cpu") == "cpu"
    assert "(1 found), got cuda:1" in refused(lambda: base.resolve_device("cuda:1"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 amx_bf16 amx_tile", "bfloat16"),
        ("Features : asimd bf16 i8mm", "bfloat16"),
        ("flags : fpu avx2 avx512f avx512_bf16", "float32"),
        ("", "float32"),
    ],
)
def test_precision_auto_takes_bf16_where_the_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    read = Path.read_text

    def cpuinfo(path: Path, *args: Any, **keys: Any) -> str:
        return flags if str(path) == "/proc/cpuinfo" else read(path, *args, **keys)

    monkeypatch.setattr(Path, "read_text", cpuinfo)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert base.resolve_precision("auto", "smollm2-135m", "cpu") == expected


def test_precision_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for device in ("cpu", "cuda"):
        for asked, expected in (("bf16", "bfloat16"), ("fp32", "float32")):
            assert base.resolve_precision(asked, "tiny-llama", device) == expected
    assert base.resolve_precision("auto", "smollm2-135m", "cuda:0") == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert base.resolve_precision("auto", "smollm2-135m", "cuda:0") == "float32"
    assert base.resolve_precision("auto", "tiny-llama", "cpu") == "float32"


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantisation_needs_cuda(make_plan: MakePlan, tiny_folder: Path, quantization: str) -> None:
    plan = make_plan({"model.name": str(tiny_folder), "model.quantization": quantization})
    message = refused(lambda: load_base(plan))
    assert message.startswith("model.quantization: expected a CUDA device")
    assert f"for {quantization}, got cpu" in message


# -- shapes without weights ----------------------------------------------------------------


def test_the_embedded_models_shapes_are_known_before_it_is_built(
    make_plan: MakePlan, no_network: None
) -> None:
    model = empty_model(make_plan({"model.name": "smollm2-135m"}))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["model.embed_tokens.weight"] == (49152, 576)
    assert shapes["model.layers.29.self_attn.q_proj.weight"] == (576, 576)
    assert shapes["model.layers.29.self_attn.v_proj.weight"] == (192, 576)
    assert shapes["model.layers.29.mlp.down_proj.weight"] == (576, 1536)


def test_a_folders_shapes_need_no_weights(make_plan: MakePlan, folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    shapes = [
        {name: tuple(p.shape) for name, p in model.named_parameters()}
        for model in (
            empty_model(make_plan({"model.name": str(folder)})),
            empty_model(make_plan()),
            # A model that is not here, costed from a config that is.
            empty_model(
                make_plan({"model.name": "a/b", "model.config": str(folder / "config.json")})
            ),
            tiny.build(),
        )
    ]
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]


def test_a_config_with_infinity_as_transformers_writes_it(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    from transformers import Mamba2Config

    config = Mamba2Config(num_heads=4, head_dim=8, hidden_size=16, state_size=8, n_groups=1)
    assert config.time_step_limit[1] == float("inf")
    config.save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text()
    read = load_config(make_plan({"model.name": str(tmp_path)}))
    assert list(read.time_step_limit) == [0.0, float("inf")]


def test_a_model_that_sets_no_limit_to_its_texts(make_plan: MakePlan) -> None:
    loaded = load_base(make_plan())
    assert loaded.max_positions == 1024
    for none in (-1, 0):
        loaded.model.config.max_position_embeddings = none
        assert loaded.max_positions is None


def test_a_model_that_writes_no_text_is_refused(make_plan: MakePlan, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')
    plan = make_plan({"model.name": str(folder)})
    message = refused(lambda: empty_model(plan))
    assert "expected a causal language model, got ViTConfig" in message
