"""What leaves a run: loaded by PEFT and transformers alone, it computes what the run computed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedshield.errors import RunFolderError
from fedshield.model import base, export
from fedshield.model.adapter import AdapterHost, ordinary
from fedshield.model.builtin import tiny
from fedshield.model.chat import use_template
from fedshield.plan.schema import Plan
from fedshield.run.settings import load_base
from fedshield.types import AdapterState

MakePlan = Callable[..., Plan]

#: PEFT asks transformers for a property by its old name.
old_name = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = torch.tensor([[257, 10, 20, 30, 258], [40, 50, 60, 70, 80]])
SHA = "ab" * 32
ALPHAS = pytest.mark.parametrize("alpha", [8, 7.5, 0.3])


def host_of(plan: Plan) -> tuple[base.BaseModel, AdapterHost, AdapterState]:
    """The base, a host on it and a state far from zero."""
    loaded = load_base(plan)
    host = AdapterHost(loaded.model, plan.adapter, loaded.sha256)
    values = np.random.default_rng(3).standard_normal(host.spec.num_values) * 0.2
    return loaded, host, AdapterState(values.astype(np.float32), host.spec)


def save_adapter(
    loaded: base.BaseModel, host: AdapterHost, state: AdapterState, plan: Plan, card: str, out: Path
) -> None:
    export.save_adapter(loaded, host, {"": state}, plan.adapter, card, out)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(IDS).logits.float()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- the adapter ---------------------------------------------------------------------------


@old_name
@ALPHAS
def test_peft_alone_loads_the_adapter(make_plan: MakePlan, tmp_path: Path, alpha: float) -> None:
    from peft import PeftModel

    plan = make_plan({"adapter.alpha": alpha, "adapter.dropout": 0.25})
    loaded, host, state = host_of(plan)
    save_adapter(loaded, host, state, plan, "card", tmp_path / "adapter")
    alone = PeftModel.from_pretrained(tiny.build(), tmp_path / "adapter")
    host.write(state)
    expected = logits(host.model)
    assert torch.equal(logits(alone), expected)
    assert (expected - logits(tiny.build())).abs().max() > 0.01
    assert not any(p.requires_grad for p in alone.parameters())


@old_name
def test_peft_alone_loads_the_adapter_of_a_gpt2(tmp_path: Path, make_plan: MakePlan) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    families.write("gpt2", tmp_path / "base")
    targets = ["c_attn", "c_fc"]
    plan = make_plan({"model.name": str(tmp_path / "base"), "adapter.targets": targets})
    loaded, host, state = host_of(plan)
    host.write(state)
    save_adapter(loaded, host, state, plan, "card", tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base", local_files_only=True)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        alone = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(alone), logits(host.model), rtol=0, atol=1e-5)


def test_the_adapters_folder_holds_the_state_and_says_what_it_is(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSHIELD_CACHE", str(tmp_path / "cache"))
    targets = [f"{name}_proj" for name in ("v", "q", "k", "o", "up", "gate", "down")]
    plan = make_plan({"adapter.targets": targets, "adapter.alpha": 7.5})
    loaded, host, state = host_of(plan)
    out = tmp_path / "adapter"
    save_adapter(loaded, host, state, plan, "# A card: naïve\n", out)
    assert left_in(out) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (out / "README.md").read_text(encoding="utf-8") == "# A card: naïve\n"
    tensors = load_file(out / "adapter_model.safetensors")
    for name, place in state.spec.slices().items():
        assert tensors.pop(name).reshape(-1).tobytes() == state.values[place].tobytes()
    assert not tensors
    config = json.loads((out / "adapter_config.json").read_text())
    wanted = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(tmp_path / "cache" / "models" / "tiny-llama-v1"),
        "revision": None,
        "r": 4,
        "lora_alpha": 7.5,
        "inference_mode": True,
        "target_modules": sorted(targets),  # always in one order, so the bytes repeat
    }
    assert {key: config[key] for key in wanted} == wanted


@old_name
@pytest.mark.parametrize("train", ["ab", "b", "alternate", "core"])
def test_whatever_was_trained_is_ordinary_lora(
    make_plan: MakePlan, tmp_path: Path, train: str
) -> None:
    """Read back from its folder as one, it has the same values; PEFT alone computes the same."""
    from peft import PeftModel

    plan = make_plan({"adapter.train": train})
    loaded, host, state = host_of(plan)
    save_adapter(loaded, host, state, plan, "card", tmp_path / "adapter")
    alone = PeftModel.from_pretrained(tiny.build(), tmp_path / "adapter")
    host.write(state)
    expected = logits(host.model)
    torch.testing.assert_close(logits(alone), expected, rtol=0, atol=1e-5)
    assert (expected - logits(tiny.build())).abs().max() > 0.01
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    back = AdapterHost(tiny.build(), ordinary(plan.adapter), SHA)
    again = back.as_lora(back.from_lora(tensors))
    for name, values in host.as_lora(state).items():
        np.testing.assert_array_equal(again[name], values)


@old_name
def test_each_site_has_a_folder_of_its_own(make_plan: MakePlan, tmp_path: Path) -> None:
    from peft import PeftModel

    plan = make_plan({"adapter.train": "share-a"})
    loaded, host, state = host_of(plan)
    half = AdapterState(state.values / 2, state.spec)
    out = tmp_path / "adapter"
    states = {"bank": state, "hospital": half}
    export.save_adapter(loaded, host, states, plan.adapter, "card", out)
    assert left_in(out) == ["bank", "hospital"]
    for name, one in (("bank", state), ("hospital", half)):
        host.write(one)
        alone = PeftModel.from_pretrained(tiny.build(), out / name)
        assert torch.equal(logits(alone), logits(host.model))
        assert left_in(out / name) == [
            *("README.md", "adapter_config.json", "adapter_model.safetensors"),
        ]


# -- by AutoPeftModel, from anywhere ----------------------------------------------------------

_ALONE = """
import json, sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    print(json.dumps(model(torch.tensor(json.loads(sys.argv[2]))).logits.float().tolist()))
"""


@pytest.mark.parametrize("source", ["tiny-llama", "folder beside the plan"])
def test_auto_peft_model_loads_the_adapter_from_another_folder(
    make_plan: MakePlan,
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    monkeypatch.setenv("FEDSHIELD_CACHE", str(tmp_path / "cache"))
    plan = make_plan({"adapter.alpha": 7.5})
    if source != "tiny-llama":
        shutil.copytree(tiny_folder, tmp_path / "plans" / "base")
        section = plan.model.model_copy(update={"name": "base"})
        plan = plan.model_copy(update={"model": section}).with_base_dir(tmp_path / "plans")
    loaded, host, state = host_of(plan)
    save_adapter(loaded, host, state, plan, "# card", tmp_path / "adapter")
    host.write(state)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(tmp_path / "adapter"), json.dumps(IDS.tolist())],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer = torch.tensor(json.loads(done.stdout))
    torch.testing.assert_close(answer, logits(host.model), rtol=0, atol=1e-5)


def test_a_hub_name_is_recorded_as_it_is(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan()
    loaded, host, state = host_of(plan)
    of_hub = dataclasses.replace(loaded, hub_name="house/model", revision="v2")
    save_adapter(of_hub, host, state, plan, "card", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("house/model", "v2")


def test_a_fallback_template_leaves_with_the_adapter(
    make_plan: MakePlan, tmp_path: Path, tiny_folder: Path
) -> None:
    from transformers import AutoTokenizer

    plan = make_plan({"model.name": str(tiny_folder), "model.chat_template": "fallback"})
    loaded, host, state = host_of(plan)
    use_template(loaded.tokenizer, "fallback")
    save_adapter(loaded, host, state, plan, "card", tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter", local_files_only=True)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "User: Hi\nAssistant: Hello.<|im_end|>\n"
    assert tokenizer("é")["input_ids"] == loaded.tokenizer("é")["input_ids"]


def test_an_adapter_for_a_full_disk_is_one_line_and_nothing(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, host, state = host_of(make_plan())

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(export, "save_file", fail)
    with pytest.raises(RunFolderError, match=r"MB of free disk space, got .* the disk is full"):
        save_adapter(loaded, host, state, make_plan(), "card", tmp_path / "adapter")
    assert left_in(tmp_path) == []


# -- whole folders -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("midway"), KeyboardInterrupt()])
def test_an_exception_midway_leaves_the_earlier_adapter(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    plan = make_plan()
    loaded, host, state = host_of(plan)
    out = tmp_path / "adapter"
    config = type(export.lora_config(plan.adapter, host.targets))

    def fail(*_: object, **__: object) -> None:
        raise error

    for expected in ([], ["adapter"]):
        with monkeypatch.context() as patched:
            patched.setattr(config, "save_pretrained", fail)
            with pytest.raises(type(error)):
                save_adapter(loaded, host, state, plan, "new", out)
        assert left_in(tmp_path) == expected
        save_adapter(loaded, host, state, plan, "old", out)
    assert (out / "README.md").read_text() == "old"


def test_what_a_kill_left_is_swept_and_a_new_adapter_takes_the_place(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan()
    loaded, host, state = host_of(plan)
    out = tmp_path / "adapter"
    save_adapter(loaded, host, state, plan, "first", out)
    (out / "stale").write_text("")
    shutil.copytree(out, tmp_path / ".adapter.part")
    save_adapter(loaded, host, state, plan, "second", out)
    assert left_in(tmp_path) == ["adapter"]
    assert left_in(out) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (out / "README.md").read_text() == "second"
