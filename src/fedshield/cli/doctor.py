"""The command `fedshield doctor`. It prints, as `cli` does, which registers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedshield.cli.console import JsonOption, out_console, print_notes
from fedshield.errors import UserError

STYLES = {"ok": "green", "warning": "yellow", "FAILED": "red"}


def doctor(
    plan: Annotated[Path | None, typer.Option(help="The plan of the coming run.")] = None,
    site: Annotated[str | None, typer.Option(help="This site's name: its data are read.")] = None,
    policy: Annotated[Path | None, typer.Option(help="This site's policy.")] = None,
    roster: Annotated[Path | None, typer.Option(help="The roster.")] = None,
    key: Annotated[Path | None, typer.Option(help="This site's key file.")] = None,
    connect: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="A port that must answer.")
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="A folder with certificates and their keys.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="The right time (ISO 8601), or a file with it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Check this site before a run. Exit status 2 if anything would stop it."""
    from fedshield.doctor import site as examination
    from fedshield.plan.load import load_plan

    loaded, notes = (None, []) if plan is None else load_plan(plan)
    print_notes(notes)
    asked = examination.Site(
        loaded, site, policy, roster, key, tuple(connect or ()), certificates, time, out
    )
    found = []
    for one in examination.examine(asked):
        found.append(one)
        if not as_json:
            _say(one.state, f"{one.check}: expected {one.expected}, found {one.found}", one.todo)
    failed = [one for one in found if one.state == "FAILED"]
    left = examination.not_examined(asked)
    if as_json:
        rows = [one.to_json() for one in found]
        text = json.dumps({"ready": not failed, "findings": rows, "not_examined": left}, indent=1)
        out_console.print(text, markup=False)
    elif left:
        _say("not checked", ", ".join(left), "")
    if failed:
        first = failed[0]
        raise UserError(
            f"expected a site that is ready, {len(failed)} of {len(found)} checks failed, the "
            f"first: {first.check}: {first.found}" + (f"; {first.todo}" if first.todo else "")
        )


def _say(state: str, text: str, todo: str) -> None:
    more = f"; {todo}" if todo else ""
    out_console.print(f"{state:<13} {text}{more}", style=STYLES.get(state), markup=False)
