"""What a run releases: a PEFT adapter with its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from fedshield.durable import whole_folder
from fedshield.errors import ModelError
from fedshield.model import portable, tiny
from fedshield.model.adapter import AdapterHost, lora_config
from fedshield.model.base import BaseModel
from fedshield.model.merge import other_template
from fedshield.plan import Plan
from fedshield.types import AdapterState

#: Bytes of what lies beside an adapter's weights: its config, card and, at most, a tokenizer.
_BESIDE = 64_000


def save_adapter(
    base: BaseModel,
    host: AdapterHost,
    states: Mapping[str, AdapterState],
    plan: Plan,
    card: str,
    out: Path,
) -> None:
    """Write `out` so that `AutoPeftModelForCausalLM.from_pretrained(out)` loads it on this machine,
    and `PeftModel.from_pretrained(base, out)` anywhere: an ordinary LoRA adapter, whatever was
    trained. `states`: '' -> the adapter of all, or each site's name -> its own, each then in a
    folder of its name. A chat template that is not the base's own goes with the adapter. Raises
    `RunFolderError` where the disk has no room."""
    config = lora_config(plan.adapter, host.targets)
    config.inference_mode = True
    folder_of_base = base.folder or _built_in_folder()
    # An absolute path, since PEFT takes any other from wherever its user stands. It is of this
    # machine: `fedshield export --adapter` writes a copy to hand on.
    config.base_model_name_or_path = base.hub_name or str(folder_of_base or base.name)
    config.revision = base.revision
    config.target_modules = host.targets  # PEFT keeps a set: no order of its own
    template = None if folder_of_base is None else other_template(base, folder_of_base)
    num_bytes = sum(_BESIDE + 4 * state.spec.num_values for state in states.values())
    with whole_folder(out, num_bytes) as part:
        for name, state in states.items():
            folder = part / name
            folder.mkdir(exist_ok=True)
            tensors = host.as_lora(state)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(folder)
            if template is not None and folder_of_base is not None:
                portable.copy_tokenizer(folder_of_base, folder, template)
            (folder / "README.md").write_text(card, encoding="utf-8")


def _built_in_folder() -> Path | None:
    """Where `tiny-llama` lies as files; None where the cache cannot be written."""
    try:
        return tiny.ensure()
    except ModelError:
        return None


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
