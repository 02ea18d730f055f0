"""`fedshield data`: rows of a site as the model will see them, before a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fedshield.cli.console import JsonOption, SetOption, out_console, print_notes
from fedshield.cli.terminal import visible
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.data.preview import Preview, ShownRow
    from fedshield.plan.schema import Plan


def data(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML).")],
    site: Annotated[str, typer.Option(help="Whose rows.")],
    rows: Annotated[int, typer.Option(min=0, max=1000, help="Training rows to show.")] = 5,
    kit: Annotated[
        Path | None, typer.Option(help="This site's kit: its policy's data and model are read.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a site's rows as the model will see them: what has loss, what is cut, what is not used.
    Reads the tokenizer and the data, no weights."""
    from fedshield.data.preview import preview
    from fedshield.model.base import load_tokenizer
    from fedshield.model.chat import use_template
    from fedshield.plan.floors import cap_note, floor, too_few
    from fedshield.plan.load import load_plan
    from fedshield.run.settings import data_setup

    plan, notes = load_plan(path, overrides or ())
    print_notes(notes)
    if kit is not None:
        plan = _at_site(plan, kit, site)
    tokenizer, words = load_tokenizer(plan.model, plan.base_dir)
    template = use_template(tokenizer, plan.model.chat_template)
    shown = preview(data_setup(plan), tokenizer, site, rows)
    told = len(shown.data.train)
    about_count = (too_few(plan.data, floor(plan), site, told), cap_note(plan, site, told))
    all_notes = [*words, *shown.data.notes, *(note for note in about_count if note is not None)]
    if as_json:
        print(json.dumps(_to_json(shown, site, template, all_notes), indent=1))
        return
    for row in shown.rows:
        print_row(row)
    for label, text in _counts(shown, template):
        out_console.print(f"{label:<14} {text}", markup=False)
    for note in all_notes:
        out_console.print(f"note           {note}", markup=False)


def _at_site(plan: Plan, kit: Path, site: str) -> Plan:
    from fedshield.enrolment import Policy
    from fedshield.enrolment.policy import POLICY_FILE

    policy = kit / POLICY_FILE.format(site=site)
    if not policy.is_file():
        raise UserError(
            f"--kit: expected {policy.name} in {kit}, found none; give the kit of {site}"
        )
    rules = Policy.read(policy)
    print_notes(rules.not_used(plan, site))
    return rules.local_plan(plan, site)


def print_row(row: ShownRow) -> None:
    """On a terminal what has loss is green and what is cut is struck out; elsewhere, and for those
    who see no colours, marks stand around them."""
    colours = out_console.is_terminal and out_console.color_system is not None
    part = "" if row.part == "train" else ", held out"
    cut = f", {row.tokens_cut} more are cut" if row.tokens_cut else ""
    out_console.print(
        f"{row.where}{part}: {row.tokens} tokens, {row.tokens_with_loss} with loss{cut}",
        style="bold",
        markup=False,
    )
    text = Text()
    for piece in row.pieces:
        words = visible(piece.text)  # a `Text` is printed as it is
        if piece.cut:
            text.append(words if colours else f"[cut: {words}]", style="dim strike")
        elif piece.loss:
            text.append(words if colours else f"[loss: {words}]", style="bold green")
        else:
            text.append(words)
    out_console.print(text)
    out_console.print()


def _counts(shown: Preview, template: str) -> list[tuple[str, str]]:
    data = shown.data
    why = f" (first: {data.first_skipped})" if data.first_skipped else ""
    return [
        ("source", data.source),
        ("chat template", template),
        ("rows", f"{len(data.train):,} to train on, {len(data.heldout):,} held out"),
        ("skipped", f"{data.skipped_rows:,}{why}"),
        ("duplicates", f"{data.duplicate_rows:,} equal to a held-out row, left out"),
        ("no answer", f"{data.no_response_rows:,} with none within max_length, left out"),
        ("cut", f"{data.truncated_rows:,} rows, {data.truncated_tokens:,} tokens"),
        ("tokens", f"{shown.tokens:,}, {shown.tokens_with_loss:,} with loss"),
        (
            "lengths",
            f"median {shown.median_length:,}, longest {shown.longest:,}, "
            f"training.max_length {shown.max_length:,}",
        ),
    ]


def _to_json(shown: Preview, site: str, template: str, notes: list[str]) -> dict[str, Any]:
    return {
        "site": site,
        "chat_template": template,
        "counts": shown.data.counts(),
        "tokens": shown.tokens,
        "tokens_with_loss": shown.tokens_with_loss,
        "median_length": shown.median_length,
        "longest": shown.longest,
        "max_length": shown.max_length,
        "notes": notes,
        "rows": [dataclasses.asdict(row) for row in shown.rows],
    }
