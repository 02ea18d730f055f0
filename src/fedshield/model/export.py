"""What leaves a run: a PEFT adapter with its model card, a merged model, and answers."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from fedshield import interrupt
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
        with interrupt.held():
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


def model_card(plan: Plan, summary: dict[str, Any]) -> str:
    """The card in the adapter's folder: which data, rounds and protection made it."""
    header = {
        "base_model": plan.model.name,
        "library_name": "peft",
        "tags": ["lora", "federated-learning", "fedshield"],
    }
    note = summary["model"]["note"]
    initial, final = summary["initial_heldout_loss"], summary["final_heldout_loss"]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        "---",
        f"# {plan.name}",
        "",
        f"A LoRA adapter (rank {plan.adapter.rank}, alpha {plan.adapter.alpha:g}, on "
        f"{', '.join(summary['adapter']['targets'])}) for {plan.model.name}"
        + (f" ({note})" if note else "")
        + f", made by {len(summary['sites'])} sites with FedShield "
        + f"{summary['versions']['fedshield']}.",
        "",
        "## How it was made",
        f"- Rounds: {summary['rounds']} of {summary['rounds_planned']}, "
        f"{plan.training.steps} local steps each.",
        f"- Protection of updates on the way: {protection(plan)}",
        _leak(summary.get("privacy")),
        f"- Base model sha256: {summary['model']['sha256']}",
        f"- Adapter sha256 (FedShield's digest): {summary['adapter_sha256']}",
        f"- Plan sha256: {summary['plan_sha256']}",
    ]
    if summary.get("privacy"):
        # They are exact, and whoever has the card has the adapter.
        return "\n".join([*lines, "- Losses and counts of rows are not noised: not here."]) + "\n"
    lines += [
        "",
        "## Data and held-out loss (mean per response token)",
        "",
        "| site | source | training rows | before | after |",
        "|---|---|---|---|---|",
    ]
    for site in summary["sites"]:
        # Between organisations a site knows its own rows and figures only.
        data = summary["data"].get(site, {"source": "not told", "train_rows": "not told"})
        lines.append(
            f"| {site} | {data['source']} | {data['train_rows']} | "
            f"{_number(initial['sites'].get(site))} | {_number(final['sites'].get(site))} |"
        )
    return "\n".join(lines) + "\n"


def _leak(privacy: Mapping[str, Any] | None) -> str:
    """What the adapter itself may tell."""
    if not privacy:
        return (
            "- This adapter itself is not protected: it can tell something about its training "
            "data (membership inference). No differential privacy was used."
        )
    return (
        f"- Differential privacy: epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:g} "
        f"for each {privacy['unit']} ({privacy['mechanism']}; neighbours: "
        f"{privacy['neighbours']}). What many of them have in common is not protected."
    )


def protection(plan: Plan) -> str:
    """One sentence on what the plan's scheme does, with its limit."""
    if plan.scheme.name == "plain":
        return "none; the coordinator could read every site's update."
    if plan.scheme.name == "rlwe":
        rules = plan.rules()
        return (
            f"one-time ring-LWE keys; sums over at least {rules.min_cohort} sites were opened by "
            f"{rules.threshold} of {rules.num_sites}; up to {rules.max_colluding} sites colluding "
            "with the coordinator learn no single update, under the assumptions of SECURITY.md."
        )
    return (
        f"CKKS ({plan.scheme.parameter_set} set), one key per run held by all sites; the "
        "coordinator could not read updates by itself, any one site together with it could."
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


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
        interrupt.check()
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
