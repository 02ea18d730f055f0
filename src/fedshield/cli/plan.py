"""`fedshield plan`: what a run will cost and promise, before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from fedshield.cli.words import (
    JsonOption,
    SetOption,
    human_bytes,
    human_duration,
    out_console,
    print_notes,
)

if TYPE_CHECKING:
    from fedshield.choices import Choice
    from fedshield.cost import Cost
    from fedshield.plan import Plan


def plan(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML).")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a plan and print what its run will cost, without loading weights or data."""
    from fedshield.choices import choices
    from fedshield.cost import estimate
    from fedshield.planfile import load_plan
    from fedshield.reference import DEFINITION

    loaded, notes = load_plan(path, overrides or ())
    print_notes(notes)
    cost = estimate(loaded)
    others = list(choices(loaded))
    if as_json:
        print(json.dumps(cost.to_json() | {"choices": [asdict(one) for one in others]}, indent=1))
        return
    for name, value in _cost_lines(loaded, cost):
        out_console.print(f"{name:<24} {value}", markup=False)
    if others:
        out_console.print(_choice_table(others))
        out_console.print(
            DEFINITION
            if any(choice.of_paper is not None for choice in others)
            else "Of the paper's: not said, the base model has not the layers q_proj and v_proj.",
            markup=False,
        )


def _choice_table(others: Sequence[Choice]) -> Table:
    """A row for each way to train, a column for each width of a value."""
    widths = sorted({one.bits for one in others}, reverse=True)
    table = Table(
        title="adapter.train and encoding.bits under rlwe: up per site and round, of the paper's",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    for name in ("train", "values", *(f"{bits} bit" for bits in widths)):
        table.add_column(name, no_wrap=True, justify="left" if name == "train" else "right")
    for train in dict.fromkeys(one.train for one in others):
        cells = {one.bits: one for one in others if one.train == train}
        row = [train, f"{next(iter(cells.values())).values:,}"]
        for bits in widths:
            if bits not in cells:
                row.append("-")
                continue
            part = cells[bits].of_paper
            row.append(
                human_bytes(cells[bits].upload_bytes) + ("" if part is None else f"\n1/{part:,.0f}")
            )
        table.add_row(*row)
    return table


def _cost_lines(loaded: Plan, cost: Cost) -> list[tuple[str, str]]:
    scheme = f"{cost.scheme} {cost.scheme_parameters}".strip()
    unprotected = ": NO protection, the coordinator reads every update"
    ups, downs = cost.upload_bytes_per_site_round, cost.download_bytes_per_site_round
    where = f"this machine's {cost.device} ({cost.precision}), all sites one after the other"
    if loaded.model.quantization != "none" and cost.device == "cpu":
        where += f"; a {loaded.model.quantization} run needs CUDA"
    return [
        ("plan", f"{cost.name}: {cost.sites} sites, {cost.rounds} rounds"),
        (
            "scheme",
            scheme + (f", {cost.security_bits} bits" if cost.security_bits else unprotected),
        ),
        *([("who may open", cost.quorums)] if cost.quorums else []),
        *([("privacy", _privacy_words(cost.privacy, cost.rounds))] if cost.privacy else []),
        ("base model", f"{loaded.model.name}, {cost.base_model_values:,} values"),
        ("trainable values", f"{cost.trainable_values:,}"),
        ("up per site and round", human_bytes(ups[-1])),
        ("down per site and round", human_bytes(downs[-1])),
        (
            "up in total",
            f"{human_bytes(cost.total_upload_bytes)} (plain float32: "
            f"{human_bytes(cost.plaintext_float32_upload_bytes)})",
        ),
        ("down in total", human_bytes(cost.total_download_bytes)),
        ("peak memory, about", human_bytes(cost.peak_memory_bytes)),
        ("time, about", f"{human_duration(cost.estimated_s)} on {where}"),
        ("plan hash", cost.plan_sha256),
    ]


def _privacy_words(found: dict[str, Any], rounds: int) -> str:
    """What a plan promises, in one line."""
    if found["epsilon"] is None:
        return (
            f"of each {found['unit']}; epsilon is known when rows are read: give each source's rows"
        )
    text = (
        f"of each {found['unit']}: epsilon {found['epsilon']:.3g} at delta {found['delta']:g} "
        f"after {found['rounds_within_limit']} rounds, noise multiplier "
        f"{found['noise_multiplier']:.3g}, {found['mechanism']}"
    )
    if found["rounds_within_limit"] < rounds:
        text += f"; the limit of {found['limit']:g} ends the run there, {rounds} are planned"
    return text
