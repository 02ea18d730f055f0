"""A merged model: loaded by transformers alone, of this line and the one before, it computes what
the base computes with the adapter."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedshield.errors import ModelError, RunFolderError
from fedshield.model import base, merge, portable
from fedshield.model.adapter import AdapterHost
from fedshield.model.builtin import tiny
from fedshield.notes import library_words
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base
from fedshield.types import AdapterState

MakePlan = Callable[..., Plan]

ROOT = Path(__file__).parents[2]
IDS = torch.arange(2, 202)[None] % 256
ALPHAS = pytest.mark.parametrize("alpha", [8, 7.5, 0.3])


def host_of(plan: Plan, spread: float = 0.2) -> tuple[base.BaseModel, AdapterHost, AdapterState]:
    """The base, a host on it and a state far from zero."""
    loaded = load_base(plan)
    host = AdapterHost(loaded.model, plan.adapter, loaded.sha256)
    values = np.random.default_rng(3).standard_normal(host.spec.num_values) * spread
    return loaded, host, AdapterState(values.astype(np.float32), host.spec)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(IDS).logits.float()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loaded_by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def edit(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


# -- what it computes ----------------------------------------------------------------------


@ALPHAS
@pytest.mark.parametrize("source", ["tiny-llama", "folder"])
def test_transformers_alone_loads_the_merged_model(
    make_plan: MakePlan, tmp_path: Path, tiny_folder: Path, alpha: float, source: str
) -> None:
    from transformers import AutoTokenizer

    name = str(tiny_folder) if source == "folder" else source
    plan = make_plan({"model.name": name, "adapter.alpha": alpha})
    loaded, host, state = host_of(plan)
    host.write(state)
    expected = logits(host.model)
    out = tmp_path / "merged"
    merge.save_merged(loaded, host, state, out)
    assert not [name for name in left_in(out) if "adapter" in name or name.endswith(".bin")]
    merged = loaded_by_transformers(out)
    assert merged.state_dict().keys() == tiny.build().state_dict().keys()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    assert (expected - logits(tiny.build())).abs().max() > 0.01
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer("<|im_start|>é")["input_ids"] == [257, 127, 102]
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    # And it is a base model for the next run.
    again = load_base(make_plan({"model.name": str(out)}))
    assert torch.equal(logits(again.model), logits(merged))


def merged_family(name: str, folder: Path, make_plan: MakePlan, **save: Any) -> torch.Tensor:
    """Writes `folder`/base and `folder`/merged; returns the logits with the adapter, by PEFT."""
    with library_words():
        families.write(name, folder / "base", **save)
        plan = make_plan({"model.name": str(folder / "base"), "adapter.targets": "all-linear"})
        loaded, host, state = host_of(plan, spread=0.1)
        host.write(state)
        expected = logits(host.model)
        with host.model.disable_adapter():
            assert (logits(host.model) - expected).abs().max() > 0.01
        merge.save_merged(loaded, host, state, folder / "merged")
    return expected


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_architecture_merges_right(make_plan: MakePlan, tmp_path: Path, name: str) -> None:
    """Experts are in one tensor in the model and in one each in its files; GPT-2's layers are
    turned round; some files leave out a prefix."""
    expected = merged_family(name, tmp_path, make_plan)
    with library_words():
        merged = loaded_by_transformers(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert {key: value.shape for key, value in before.items()} == {
        key: value.shape for key, value in after.items()
    }
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_files_of_a_bare_gpt2_keep_their_names(make_plan: MakePlan, tmp_path: Path) -> None:
    with library_words():
        families.write("gpt2", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    bare = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    plan = make_plan({"model.name": str(tmp_path / "base"), "adapter.targets": ["c_attn"]})
    with library_words():
        loaded, host, state = host_of(plan)
        host.write(state)
        expected = logits(host.model)
        merge.save_merged(loaded, host, state, tmp_path / "merged")
        merged = loaded_by_transformers(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == bare.keys()


def test_shards_stay_as_they_are(make_plan: MakePlan, tmp_path: Path) -> None:
    expected = merged_family("llama", tmp_path, make_plan, max_shard_size="40KB")
    shards = [name for name in left_in(tmp_path / "base") if name.endswith(".safetensors")]
    assert len(shards) > 2
    kept = [name for name in left_in(tmp_path / "merged") if name.endswith(".safetensors")]
    assert kept == shards
    torch.testing.assert_close(
        logits(loaded_by_transformers(tmp_path / "merged")), expected, rtol=0, atol=1e-4
    )
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    sizes = [
        value.nbytes for name in kept for value in load_file(tmp_path / "merged" / name).values()
    ]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_the_state_given_is_merged_not_the_one_in_the_model(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    loaded, host, state = host_of(make_plan())
    zero = AdapterState(np.zeros_like(state.values), state.spec)
    host.write(state)
    merged = merge.save_merged(loaded, host, zero, tmp_path / "merged")
    assert (merged.rounding, merged.unmoved) == (0.0, 0.0)
    again = load_base(make_plan({"model.name": str(tmp_path / "merged")}))
    assert torch.equal(logits(again.model), logits(tiny.build()))


def test_files_that_are_not_the_models_are_refused(
    make_plan: MakePlan, tmp_path: Path, tiny_folder: Path
) -> None:
    """Changed after they were loaded: adding to them would be another model."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    loaded, host, state = host_of(make_plan({"model.name": str(tmp_path / "base")}))
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"layers\.1\.self_attn\.q_proj\.weight .* use the adapter"
    ):
        merge.save_merged(loaded, host, state, tmp_path / "merged")
    assert left_in(tmp_path) == ["base"]


# -- precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bases_precision_stays_whatever_the_run_computed_in(
    make_plan: MakePlan, tmp_path: Path, dtype: torch.dtype, precision: str
) -> None:
    """Rounded once, from the exact sum of the file's weight and the adapter's change."""
    families.write("llama", tmp_path / "base", dtype)
    plan = make_plan({"model.name": str(tmp_path / "base"), "training.precision": precision})
    loaded, host, state = host_of(plan, spread=0.02)
    tensors = host.as_lora(state)
    merged = merge.save_merged(loaded, host, state, tmp_path / "merged")
    name = "model.layers.0.self_attn.q_proj"
    factors = [
        torch.from_numpy(tensors[f"base_model.model.{name}.lora_{factor}.weight"]).double()
        for factor in "BA"
    ]
    delta = plan.adapter.alpha / plan.adapter.rank * factors[0] @ factors[1]
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in after.values()} == {dtype}
    exact = before[f"{name}.weight"].double() + delta
    torch.testing.assert_close(
        after[f"{name}.weight"],
        exact.to(dtype),
        rtol=0,
        atol=1e-6 if dtype is torch.float32 else 0.01,
    )
    assert merged.dtypes == (str(dtype).removeprefix("torch."),)
    lost = (after[f"{name}.weight"].double() - exact).norm() / delta.norm()
    assert merged.rounding == pytest.approx(float(lost), rel=0.5)
    low, high = {torch.float32: (0, 1e-4), torch.float16: (1e-3, 0.2), torch.bfloat16: (0.02, 1)}[
        dtype
    ]
    assert low <= merged.rounding <= high
    assert (merged.unmoved > 0.005) == (dtype is not torch.float32)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert merged.in_words()[1:] in card
    assert f"by {merged.rounding:.2%} of the adapter's own change" in card


def test_another_precision_when_asked_for(make_plan: MakePlan, tmp_path: Path) -> None:
    families.write("llama", tmp_path / "base", torch.bfloat16)
    loaded, host, state = host_of(make_plan({"model.name": str(tmp_path / "base")}))
    merge.save_merged(loaded, host, state, tmp_path / "auto")
    exact = merge.save_merged(loaded, host, state, tmp_path / "merged", "float32")
    assert exact.rounding < 1e-6
    model = loaded_by_transformers(tmp_path / "merged")
    assert model.dtype == torch.float32
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    assert loaded_by_transformers(tmp_path / "auto").dtype == torch.bfloat16


def test_weights_beyond_float16_are_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    families.write("llama", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    loaded, host, state = host_of(make_plan({"model.name": str(tmp_path / "base")}))
    with pytest.raises(
        ModelError, match=r"--dtype: .*model\.norm\.weight with values beyond float16"
    ):
        merge.save_merged(loaded, host, state, tmp_path / "merged", "float16")
    assert left_in(tmp_path) == ["base"]


# -- what lies beside the weights ----------------------------------------------------------


def test_the_bases_own_files_stay_byte_for_byte(make_plan: MakePlan, tmp_path: Path) -> None:
    """A folder as transformers 4 wrote it, with terms of use; what is not the model's stays out."""
    folder = tmp_path / "base"
    families.write("llama", folder)
    edit(folder / "config.json", rope_parameters=..., rope_theta=5e5, rope_scaling=None)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", backend=...)
    (folder / "LICENSE").write_text("terms")
    (folder / "README.md").write_text("the base's card")
    (folder / "notes.txt").write_text("private")
    loaded, host, state = host_of(make_plan({"model.name": str(folder)}))
    merge.save_merged(loaded, host, state, tmp_path / "merged", named="ward-base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"):
        assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes(), name
    assert "notes.txt" not in left_in(tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "# ward-base with a FedShield adapter" in card
    assert str(tmp_path) not in card
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "merged")
    )
    assert after == before | {"torch_dtype": "float32"}


def test_a_fallback_template_leaves_with_the_merged_model(
    make_plan: MakePlan, tmp_path: Path, tiny_folder: Path
) -> None:
    from transformers import AutoTokenizer

    from fedshield.model.chat import use_template

    plan = make_plan({"model.name": str(tiny_folder), "model.chat_template": "fallback"})
    loaded, host, state = host_of(plan)
    use_template(loaded.tokenizer, "fallback")
    merge.save_merged(loaded, host, state, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged", local_files_only=True)
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "User: Hi\nAssistant:"


def test_the_merged_models_settings_end_where_the_chats_turns_end(
    make_plan: MakePlan, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    edit(folder / "config.json", eos_token_id=256)
    edit(folder / "generation_config.json", eos_token_id=256, temperature=0.7, do_sample=True)
    loaded, host, state = host_of(make_plan({"model.name": str(folder)}))
    merge.save_merged(loaded, host, state, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert config["eos_token_id"] == settings["eos_token_id"] == [256, 258]
    assert settings["temperature"] == 0.7  # the base's, and whoever uses it may want it
    (folder / "generation_config.json").unlink()
    merge.save_merged(loaded, host, state, tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 256, "pad_token_id": 256, "eos_token_id": [256, 258]}


# -- where it lands ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "full", "link"])
def test_a_merge_never_writes_over_anything(make_plan: MakePlan, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    else:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").write_text("precious")
        if kind == "link":
            out.symlink_to(tmp_path / "full")
        else:
            out = tmp_path / "full"
    loaded, host, state = host_of(make_plan())
    before = left_in(tmp_path)
    with pytest.raises(RunFolderError, match="expected a new or empty folder"):
        merge.save_merged(loaded, host, state, out)
    assert left_in(tmp_path) == before


def test_a_merge_goes_into_an_empty_folder_a_link_or_the_current_one(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, real, link = tmp_path / "here", tmp_path / "real", tmp_path / "link"
    here.mkdir()
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.chdir(here)
    for out, lies in ((tmp_path / "a" / "b", tmp_path / "a/b"), (link, real), (Path("."), here)):
        loaded, host, state = host_of(make_plan())
        merge.save_merged(loaded, host, state, out)
        assert "model.safetensors" in left_in(lies)
    assert link.is_symlink()


def test_an_exception_midway_leaves_no_merged_model(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, host, state = host_of(make_plan())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("midway")

    monkeypatch.setattr(portable, "copy_tokenizer", fail)
    with pytest.raises(RuntimeError, match="midway"):
        merge.save_merged(loaded, host, state, tmp_path / "merged")
    assert left_in(tmp_path) == []


# -- transformers of the line before -------------------------------------------------------

#: For that environment's python: prints, for each folder, the logits of the last token.
_OTHER = """
import json, sys, torch, transformers
answers = {"version": transformers.__version__}
for folder in sys.argv[1:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.inference_mode():
        answers[folder] = model(torch.arange(2, 202)[None] % 256).logits[0].float().tolist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers[folder + " tokens"] = tokenizer("<|im_start|>é")["input_ids"]
    answers[folder + " ends"] = model.generation_config.eos_token_id
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_transformers_4_computes_the_same(make_plan: MakePlan, tmp_path: Path) -> None:
    """In an environment of its own, which `make compat` makes."""
    python = os.environ.get("FEDSHIELD_TRANSFORMERS_4", str(ROOT / ".venv4" / "bin" / "python"))
    if not Path(python).is_file():
        pytest.fail(f"expected transformers 4 in {python}, found none; run: make compat")
    expected = {name: merged_family(name, tmp_path / name, make_plan) for name in families.FAMILIES}
    folders = {name: str(tmp_path / name / "merged") for name in expected}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", _OTHER, *folders.values()],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert re.match(r"4\.57\.", answers["version"])
    for name, folder in folders.items():
        difference = (torch.tensor(answers[folder]) - expected[name][0]).abs().max()
        assert difference < 1e-4, name
        assert answers[f"{folder} tokens"] == [257, 127, 102]
        assert answers[f"{folder} ends"] == 258
