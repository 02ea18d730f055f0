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

from fedshield.cli.console import (
    JsonOption,
    SetOption,
    err_console,
    human_bytes,
    human_duration,
    out_console,
    print_notes,
)
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.cost import Cost
    from fedshield.cost.alternatives import Choice
    from fedshield.cost.estimate import PaceOf
    from fedshield.plan.schema import Plan


def plan(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML).")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    details: Annotated[bool, typer.Option(help="All figures, and what others would be.")] = False,
    measure: Annotated[bool, typer.Option(help="Time a shortened run here first.")] = False,
    like: Annotated[Path | None, typer.Option(help="Take the time from this run folder.")] = None,
    elsewhere: Annotated[
        bool, typer.Option(help="The run is not here: do not look for data files and memory.")
    ] = False,
) -> None:
    """Check a plan, and print what its run will cost and what would stop it. Exit status 2 if
    something would."""
    from fedshield.cost import look_ahead
    from fedshield.cost.alternatives import TRAIN, choices
    from fedshield.plan.load import load_plan
    from fedshield.update.paper_baseline import DEFINITION

    if measure and like is not None:
        raise UserError("expected --measure or --like RUN, not both")
    if measure and elsewhere:
        raise UserError("--measure times a run here: expected no --elsewhere")
    loaded, notes = load_plan(path, overrides or ())
    print_notes(notes)
    outlook = look_ahead(loaded, elsewhere=elsewhere, pace=_pace(loaded, measure, like))
    cost = outlook.cost
    others = list(choices(loaded)) if cost is not None and (details or as_json) else []
    if as_json:
        told = {} if cost is None else cost.to_json()
        told |= {"problems": list(outlook.problems), "notes": list(outlook.notes)}
        print(json.dumps(told | {"choices": [asdict(other) for other in others]}, indent=1))
    else:
        print_notes(outlook.notes)
        if cost is not None:
            for name, value in _first_lines(loaded, cost):
                out_console.print(f"{name:<24} {value}", markup=False)
            if details:
                for name, value in _details(loaded, cost):
                    out_console.print(f"{name:<24} {value}", markup=False)
            else:
                out_console.print("more: --details; the time more closely: --measure", style="dim")
        if others:
            out_console.print(_choice_table(others))
            if missing := set(TRAIN) - {other.train for other in others}:
                out_console.print(
                    f"Not with this plan's targets, rank and sites: {', '.join(sorted(missing))}.",
                    markup=False,
                )
            out_console.print(
                DEFINITION
                if any(choice.of_paper is not None for choice in others)
                else "Of the paper's: not said, the base model has no layers q_proj and v_proj.",
                markup=False,
            )
    for problem in outlook.problems:
        err_console.print(f"fedshield: {problem}", style="red", markup=False)
    if outlook.problems:
        raise typer.Exit(2)


def _pace(loaded: Plan, measure: bool, like: Path | None) -> PaceOf | None:
    """Where the seconds come from, if not from the rough rule."""
    if not measure and like is None:
        return None
    from fedshield.run import trial

    if like is not None:
        return lambda _, rough: trial.like(loaded, like, rough)

    def say(text: str) -> None:
        err_console.print(text, style="dim", markup=False)

    return lambda _, rough: trial.measured(loaded, say, rough)


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


def _first_lines(loaded: Plan, cost: Cost) -> list[tuple[str, str]]:
    """What a person asks first: how long, how much memory, how many bytes, who may open."""
    from fedshield.plan.floors import in_words as weighting

    scheme = f"{cost.scheme} {cost.scheme_parameters}".strip()
    opened = cost.quorums or f"every site of the {cost.sites}, with the key that all share"
    if cost.scheme == "plain":
        opened = "anyone: NO protection, the coordinator reads every update"
    where = f"{cost.device} ({cost.precision}), all sites one after the other"
    if loaded.model.quantization != "none" and cost.device == "cpu":
        where += f"; a {loaded.model.quantization} run needs CUDA"
    total = cost.total_upload_bytes + cost.total_download_bytes
    return [
        ("plan", f"{cost.name}: {cost.sites} sites, {cost.rounds} rounds, {loaded.model.name}"),
        ("time, about", f"{human_duration(cost.estimated_s)} on this machine's {where}"),
        ("", cost.time_basis),
        (
            "memory, about",
            f"{human_bytes(cost.peak_memory_bytes)} at a batch of {loaded.training.batch_size} "
            f"rows of up to {cost.batch_tokens} tokens",
        ),
        (
            "bytes",
            f"{human_bytes(total)} in all: {human_bytes(cost.upload_bytes_per_site_round[-1])} up "
            f"and {human_bytes(cost.download_bytes_per_site_round[-1])} down per site and round",
        ),
        ("scheme", scheme + (f", {cost.security_bits} bits" if cost.security_bits else "")),
        ("who may open", opened),
        ("weights", weighting(loaded)),
        *([("privacy", _privacy_words(cost.privacy, cost.rounds))] if cost.privacy else []),
    ]


def _details(loaded: Plan, cost: Cost) -> list[tuple[str, str]]:
    return [
        ("base model", f"{loaded.model.name}, {cost.base_model_values:,} values"),
        ("trainable values", f"{cost.trainable_values:,}"),
        (
            "up in total",
            f"{human_bytes(cost.total_upload_bytes)} (plain float32: "
            f"{human_bytes(cost.plaintext_float32_upload_bytes)})",
        ),
        ("down in total", human_bytes(cost.total_download_bytes)),
        ("plan hash", cost.plan_sha256),
    ]


def _privacy_words(found: dict[str, Any], rounds: int) -> str:
    """What a plan promises, in one line."""
    if found["epsilon"] is None:
        return f"of each {found['unit']}; epsilon is known when the training rows are counted"
    text = (
        f"of each {found['unit']}: epsilon {found['epsilon']:.3g} at delta {found['delta']:g} "
        f"after {found['rounds_within_limit']} rounds, noise multiplier "
        f"{found['noise_multiplier']:.3g}, {found['mechanism']}"
    )
    if "rows" in found:
        text += f", {found['rows']:,} training rows at the site with the fewest"
    if found["rounds_within_limit"] < rounds:
        text += f"; the limit of {found['limit']:g} ends the run there, {rounds} are planned"
    return text
