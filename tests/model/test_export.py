"""What leaves a run: loaded by PEFT and transformers alone, it computes what the run computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedshield.errors import RunFolderError
from fedshield.model import base, export, tiny
from fedshield.model.adapter import AdapterHost, ordinary
from fedshield.plan import Plan
from fedshield.types import AdapterState

MakePlan = Callable[..., Plan]

#: PEFT asks transformers for a property by its old name.
old_name = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = torch.tensor([[257, 10, 20, 30, 258], [40, 50, 60, 70, 80]])
SHA = "ab" * 32
ALPHAS = pytest.mark.parametrize("alpha", [8, 7.5, 0.3])


def host_of(plan: Plan) -> tuple[base.BaseModel, AdapterHost, AdapterState]:
    """The base, a host on it and a state far from zero."""
    loaded = base.load(plan)
    host = AdapterHost(loaded.model, plan.adapter, loaded.sha256)
    values = np.random.default_rng(3).standard_normal(host.spec.num_values) * 0.2
    return loaded, host, AdapterState(values.astype(np.float32), host.spec)


def save_adapter(
    loaded: base.BaseModel, host: AdapterHost, state: AdapterState, plan: Plan, card: str, out: Path
) -> None:
    export.save_adapter(host, {"": state}, plan, card, out)


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
    _, host, state = host_of(plan)
    save_adapter(host, state, plan, "card", tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny.build(), tmp_path / "adapter")
    host.write(state)
    expected = logits(host.model)
    assert torch.equal(logits(loaded), expected)
    assert (expected - logits(tiny.build())).abs().max() > 0.01
    assert not any(p.requires_grad for p in loaded.parameters())


@old_name
def test_peft_alone_loads_the_adapter_of_a_gpt2(tmp_path: Path, make_plan: MakePlan) -> None:
    from peft import PeftModel
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=259,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = make_plan({"adapter.targets": ["c_attn", "c_fc"]})
    host = AdapterHost(model, plan.adapter, "")
    values = np.random.default_rng(3).standard_normal(host.spec.num_values) * 0.2
    state = AdapterState(values.astype(np.float32), host.spec)
    host.write(state)
    save_adapter(host, state, plan, "card", tmp_path / "adapter")
    fresh = GPT2LMHeadModel(config)
    fresh.load_state_dict(weights)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(host.model))


def test_the_adapters_folder_holds_the_state_and_says_what_it_is(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    targets = [f"{name}_proj" for name in ("v", "q", "k", "o", "up", "gate", "down")]
    plan = make_plan({"adapter.targets": targets, "adapter.alpha": 7.5})
    _, host, state = host_of(plan)
    out = tmp_path / "adapter"
    save_adapter(host, state, plan, "# A card: naïve\n", out)
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
        "base_model_name_or_path": "tiny-llama",
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
    _, host, state = host_of(plan)
    save_adapter(host, state, plan, "card", tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny.build(), tmp_path / "adapter")
    host.write(state)
    expected = logits(host.model)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
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
    _, host, state = host_of(plan)
    half = AdapterState(state.values / 2, state.spec)
    out = tmp_path / "adapter"
    export.save_adapter(host, {"bank": state, "hospital": half}, plan, "card", out)
    assert left_in(out) == ["bank", "hospital"]
    for name, one in (("bank", state), ("hospital", half)):
        host.write(one)
        loaded = PeftModel.from_pretrained(tiny.build(), out / name)
        assert torch.equal(logits(loaded), logits(host.model))
        assert left_in(out / name) == [
            *("README.md", "adapter_config.json", "adapter_model.safetensors"),
        ]


# -- the merged model ----------------------------------------------------------------------


@ALPHAS
@pytest.mark.parametrize("source", ["tiny-llama", "folder"])
def test_transformers_alone_loads_the_merged_model(
    make_plan: MakePlan, tmp_path: Path, tiny_folder: Path, alpha: float, source: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = str(tiny_folder) if source == "folder" else source
    plan = make_plan({"model.name": name, "adapter.alpha": alpha})
    loaded, host, state = host_of(plan)
    host.write(state)
    expected = logits(host.model)
    out = tmp_path / "merged"
    export.save_merged(loaded, host, state, out)
    assert not [name for name in left_in(out) if "adapter" in name or name.endswith(".bin")]
    merged = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert {type(module).__name__ for module in merged.modules()} == {
        type(module).__name__ for module in tiny.build().modules()
    }
    assert merged.state_dict().keys() == tiny.build().state_dict().keys()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    assert (expected - logits(tiny.build())).abs().max() > 0.01
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer("<|im_start|>é")["input_ids"] == [257, 127, 102]
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    # And it is a base model for the next run.
    again = base.load(make_plan({"model.name": str(out)}))
    assert torch.equal(logits(again.model), logits(merged))


def test_the_state_given_is_merged_not_the_one_in_the_model(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    loaded, host, state = host_of(make_plan())
    zero = AdapterState(np.zeros_like(state.values), state.spec)
    host.write(state)
    export.save_merged(loaded, host, zero, tmp_path / "merged")
    again = base.load(make_plan({"model.name": str(tmp_path / "merged")}))
    assert torch.equal(logits(again.model), logits(tiny.build()))


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
        export.save_merged(loaded, host, state, out)
    assert left_in(tmp_path) == before
    assert (out if kind == "file" else out / "file").read_text() == "precious"


def test_a_merge_goes_into_an_empty_or_the_current_folder(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, real, link = tmp_path / "here", tmp_path / "real", tmp_path / "link"
    here.mkdir()
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.chdir(here)
    for out, found in ((tmp_path / "a" / "b", tmp_path / "a/b"), (link, real), (Path("."), here)):
        loaded, host, state = host_of(make_plan())
        export.save_merged(loaded, host, state, out)
        assert "model.safetensors" in left_in(found)
    assert link.is_symlink()


# -- whole folders -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("midway"), KeyboardInterrupt()])
def test_an_exception_midway_leaves_the_earlier_adapter(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    plan = make_plan()
    _, host, state = host_of(plan)
    out = tmp_path / "adapter"
    config = type(export.lora_config(plan.adapter, host.targets))

    def fail(*_: object, **__: object) -> None:
        raise error

    for expected in ([], ["adapter"]):
        with monkeypatch.context() as patched:
            patched.setattr(config, "save_pretrained", fail)
            with pytest.raises(type(error)):
                save_adapter(host, state, plan, "new", out)
        assert left_in(tmp_path) == expected
        save_adapter(host, state, plan, "old", out)
    assert (out / "README.md").read_text() == "old"


def test_an_exception_midway_leaves_no_merged_model(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, host, state = host_of(make_plan())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("midway")

    monkeypatch.setattr(type(loaded.tokenizer), "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="midway"):
        export.save_merged(loaded, host, state, tmp_path / "merged")
    assert left_in(tmp_path) == []


def test_what_a_kill_left_is_swept_and_a_new_adapter_takes_the_place(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = make_plan()
    _, host, state = host_of(plan)
    out = tmp_path / "adapter"
    save_adapter(host, state, plan, "first", out)
    (out / "stale").write_text("")
    shutil.copytree(out, tmp_path / ".adapter.part")
    save_adapter(host, state, plan, "second", out)
    assert left_in(tmp_path) == ["adapter"]
    assert left_in(out) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (out / "README.md").read_text() == "second"


# -- answers -------------------------------------------------------------------------------


def test_answers_are_of_the_base_and_of_the_adapter(make_plan: MakePlan) -> None:
    plan = make_plan()
    loaded, host, state = host_of(plan)
    zero = AdapterState(np.zeros_like(state.values), state.spec)
    host.write(zero)
    said: list[str] = []
    prompts = ["Define angina.", "naïve?"]
    found = export.answers(loaded, host, state, prompts, 12, said.append)
    assert [answer["prompt"] for answer in found] == prompts
    assert said == ["answering prompt 1 of 2", "answering prompt 2 of 2"]
    for answer, prompt in zip(found, prompts, strict=True):
        with_zero = export.answers(loaded, host, zero, [prompt], 12)[0]
        assert with_zero["base"] == with_zero["tuned"] == answer["base"]
        assert answer["tuned"] != answer["base"]
        assert answer["base"] == greedy(tiny.build().eval(), prompt, 12)
        host.write(state)
        assert answer["tuned"] == greedy(host.model, prompt, 12)


def greedy(model: Any, prompt: str, length: int) -> str:
    """The most likely token again and again, all logits each time."""
    tokenizer = tiny.tokenizer()
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + length:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()
