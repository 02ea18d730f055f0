"""`fedshield audit`: attacks on what each party sees, and a privacy report. It prints, as `cli`
does, which registers it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from fedshield.cli.console import ModelOption, err_console, out_console, print_notes
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.audit.effort import Effort
    from fedshield.audit.findings import Audit


def audit(
    what: Annotated[Path, typer.Argument(metavar="RUN|PLAN", help="A run folder, or a plan.")],
    attacks: Annotated[
        str, typer.Option(help="Some of tokens,properties,membership,canaries.")
    ] = "tokens,properties,membership,canaries",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds whose updates are attacked.")] = 2,
    references: Annotated[
        int, typer.Option(min=15, help="Random secrets that each canary is ranked among.")
    ] = 255,
    canaries: Annotated[
        int, typer.Option(min=1, help="Canaries a site and number of repeats.")
    ] = 2,
    shadows: Annotated[bool, typer.Option(help="Train two shadow adapters.")] = True,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the plan.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; by default audit/ of a run.")
    ] = None,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Attack what each party really sees, before and after protection; write a privacy report."""
    from fedshield.audit import page
    from fedshield.audit.effort import Effort
    from fedshield.audit.subject import from_path
    from fedshield.audit.suite import audit as attack

    subject = from_path(what, overrides or (), model)
    for note in subject.notes:
        _note(note)
    folder = out or subject.folder
    if folder is None and not as_json:
        raise UserError("expected --out FOLDER for the report of a plan, or --json")
    effort = Effort(rounds=rounds, references=references, canaries=canaries, shadows=shadows)
    names = [name.strip() for name in attacks.split(",") if name.strip()]
    print_notes(without_effect(names, effort))
    found = attack(
        subject.plan,
        names,
        effort,
        subject.released,
        subject.completed,
        subject.privacy,
        subject.history,
        _note,
        subject.date,
        subject.site,
        subject.drew(),
    )
    if folder is not None:
        paths = page.write(found, folder)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    _print(found)
    out_console.print(f"report  {paths[1]}", markup=False)
    out_console.print(f"json    {paths[0]}", markup=False)


def without_effect(attacks: Sequence[str], effort: Effort) -> list[str]:
    """Options with a value of their own that no attack of these asks for."""
    from fedshield.audit.effort import Effort

    users = {
        "rounds": ("tokens", "properties"),
        "references": ("canaries",),
        "canaries": ("canaries",),
        "shadows": ("membership",),
    }
    return [
        f"--{option} has no effect: --attacks names no {' or '.join(attacks_of)}"
        for option, attacks_of in users.items()
        if getattr(effort, option) != getattr(Effort(), option) and not {*attacks_of} & {*attacks}
    ]


def _print(found: Audit) -> None:
    from fedshield.audit import statements
    from fedshield.audit.verdicts import verdicts

    table = Table("scheme", "party", "measured, with 95 % interval", box=box.SIMPLE_HEAD)
    for row in statements.who_learns_what(found):
        table.add_row(row.scheme, row.party, row.evidence.replace("; ", "\n"))
    if table.row_count:
        out_console.print(table)
    for verdict in verdicts(found):
        out_console.print(f"{verdict.party}: {verdict.title}. {verdict.text}", markup=False)
    for sentence in statements.not_protected(found):
        out_console.print(f"not protected: {sentence}", markup=False)
    for name, why in sorted(found.skipped.items()):
        out_console.print(f"not measured: {name}: {why}", markup=False)


def _note(text: str) -> None:
    err_console.print(text, style="dim", markup=False)
