"""The card in an adapter's folder: which data, rounds and protection made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedshield.plan import Plan


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
