"""What leaves a run: a PEFT adapter with its model card, a merged model, and answers."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from fedshield.errors import RunFolderError
from fedshield.model.adapter import AdapterHost, lora_config
from fedshield.model.base import BaseModel
from fedshield.model.chat import render
from fedshield.plan import Plan
from fedshield.types import AdapterState


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder that appears complete or not at all, in place of an earlier one."""
    out = out.resolve()
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise RunFolderError(
            f"{out}: expected a place to write to, but {error.strerror}; choose another"
        ) from None
    try:
        yield part
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_adapter(
    host: AdapterHost, states: Mapping[str, AdapterState], plan: Plan, card: str, out: Path
) -> None:
    """Write `out` so that `PeftModel.from_pretrained(base, out)` loads it: an ordinary LoRA
    adapter, whatever was trained. `states`: '' -> the adapter of all, or each site's name -> its
    own, each then in a folder of its name."""
    config = lora_config(plan.adapter, host.targets)
    config.inference_mode = True
    config.base_model_name_or_path = plan.model.name
    config.revision = plan.model.revision
    config.target_modules = host.targets  # PEFT keeps a set: no order of its own
    with _whole_folder(out) as part:
        for name, state in states.items():
            folder = part / name
            folder.mkdir(exist_ok=True)
            tensors = host.as_lora(state)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(folder)
            (folder / "README.md").write_text(card, encoding="utf-8")


def save_merged(base: BaseModel, host: AdapterHost, state: AdapterState, out: Path) -> None:
    """Write the base model with the adapter merged in; transformers loads it by itself.

    The adapter is removed from `host` by this. Raises `RunFolderError` if `out` has files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: expected a new or empty folder, got another; choose another")
    host.write(state)
    merged = host.model.merge_and_unload()
    with _whole_folder(out) as part:
        merged.save_pretrained(part)
        base.tokenizer.save_pretrained(part)


def answers(
    base: BaseModel,
    host: AdapterHost,
    state: AdapterState,
    prompts: Sequence[str],
    max_new_tokens: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, str]]:
    """Each prompt's greedy answer by the base model and with the adapter."""
    host.write(state)
    found = []
    for number, prompt in enumerate(prompts, start=1):
        say(f"answering prompt {number} of {len(prompts)}")
        with host.model.disable_adapter():
            before = _answer(base, host.model, prompt, max_new_tokens)
        after = _answer(base, host.model, prompt, max_new_tokens)
        found.append({"prompt": prompt, "base": before, "tuned": after})
    return found


def _answer(base: BaseModel, model: Any, prompt: str, max_new_tokens: int) -> str:
    import torch

    text = render(base.tokenizer, [{"role": "user", "content": prompt}], generate=True)
    inputs = base.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(base.device)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generation settings of the base model, not ours
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=base.tokenizer.pad_token_id,
        )
    new = output[0, inputs["input_ids"].shape[1] :]
    return str(base.tokenizer.decode(new, skip_special_tokens=True)).strip()
