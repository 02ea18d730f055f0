"""The card in an adapter's folder: which data, rounds and protection made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedshield.plan.schema import Plan
from fedshield.report import facts
from fedshield.report.facts import Facts


def model_card(plan: Plan, summary: dict[str, Any]) -> str:
    """The card in the adapter's folder: which data, rounds and protection made it."""
    known = facts.of_summary(summary)
    model = str(summary["model"]["name"])
    header = {
        "base_model": model,
        "library_name": "peft",
        "tags": ["lora", "federated-learning", "fedshield"],
    }
    initial, final = summary["initial_heldout_loss"], summary["final_heldout_loss"]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        "---",
        f"# {plan.name}",
        "",
        f"A LoRA adapter (rank {plan.adapter.rank}, alpha {plan.adapter.alpha:g}, on "
        f"{', '.join(summary['adapter']['targets'])}) for {known.model}"
        + f", made by {len(summary['sites'])} sites with FedShield "
        + f"{summary['versions']['fedshield']}.",
        "",
        "## How it was made",
        f"- Rounds: {summary['rounds']} of {summary['rounds_planned']}, "
        f"{plan.training.steps} local steps each."
        + (f" It ended at its privacy budget, {known.ended_early}." if known.ended_early else ""),
        *(f"- {sentence}" for sentence in _went(known)),
        f"- Protection of updates on the way: {protection(plan)}",
        _leak(summary.get("privacy")),
        f"- Base model sha256: {summary['model']['sha256']}",
        f"- Adapter sha256 (FedShield's digest): {summary['adapter_sha256']}",
        f"- Plan sha256: {summary['plan_sha256']}",
    ]
    if summary.get("privacy"):
        # They are exact, and whoever has the card has the adapter.
        lines.append("- Losses and counts of rows are not noised: not here.")
        return "\n".join(lines + _notes(known)) + "\n"
    lines += [
        "",
        "## Data and held-out loss (mean per response token)",
        "",
        "| site | source | training rows | before | after |",
        "|---|---|---|---|---|",
    ]
    for site in [known.own_site] if known.own_site else known.sites:
        data = summary["data"][site]
        lines.append(
            f"| {site} | {data['source']} | {data['train_rows']} | "
            f"{_number(initial['sites'].get(site))} | {_number(final['sites'].get(site))} |"
        )
    return "\n".join(lines + _notes(known)) + "\n"


def _notes(known: Facts) -> list[str]:
    """What a reader must know of how it came about, a section of its own."""
    return ["", "## Notes", "", *(f"- {note}" for note in known.notes)] if known.notes else []


def _went(known: Facts) -> list[str]:
    """Who took part, what was lost, and whether it was resumed."""
    sentences = [facts.who_ran(known), facts.whose_figures(known), *facts.lost_words(known)]
    sentences += facts.exposed_words(known)
    if known.resumed:
        sentences.append(f"The run was resumed {facts.resumed_words(known)}.")
    return [sentence for sentence in sentences if sentence]


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
    if not plan.scheme.traits.encrypted:
        return "none; the coordinator could read every site's update."
    if plan.scheme.traits.one_time_keys:
        rules = plan.rules()
        colluding = (
            f"in one sum, up to {rules.max_colluding} sites colluding with the coordinator learn "
            "no single update"
            if rules.max_colluding
            else "the coordinator alone learns no single update, with any site's help it may"
        )
        opens = (
            " The plan opens each sum to the coordinator as well."
            if plan.scheme.open_to == "server"
            else ""
        )
        if rules.membership == "open":
            opens += (
                " Sums may be over fewer than all sites: a site's own update, noised for each "
                "training row, can be had as the difference of two of them."
            )
        if rules.membership == "batches":
            opens += (
                " Sums were over whole batches of sites: the coordinator saw which batch was away, "
                "and the sum of a single batch can be had as the difference of two of them."
            )
        return (
            f"one-time ring-LWE keys; sums over at least {rules.min_cohort} sites were opened by "
            f"{rules.threshold} of {rules.num_sites}; {colluding}, under the assumptions of "
            f"SECURITY.md.{opens}"
        )
    return (
        f"CKKS ({plan.scheme.parameter_set} set), one key per session, held by all sites; the "
        "coordinator could not read updates by itself, any one site together with it could."
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
