"""Submitting a run to a consortium, and who is there: `fedshield submit` and `fedshield status`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedshield.cli.words import JsonOption, err_console, out_console
from fedshield.errors import FedShieldError, UserError


def submit(
    plan: Annotated[Path | None, typer.Argument(help="A plan (YAML).")] = None,
    kit: Annotated[
        Path | None, typer.Option(help="The kit that submits: the consortium's admin folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of what the coordinator knows.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the plan.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this folder's run.")] = None,
) -> None:
    """Run a plan at a consortium's sites, and follow it. The adapter stays with the sites."""
    from fedshield.engines.flare import submit as submitting
    from fedshield.planfile import load_plan
    from fedshield.runfolder import default_folder

    if (plan is None) == (resume is None) or kit is None:
        raise UserError("expected --kit, and a plan or --resume; see fedshield submit --help")
    if resume is not None:
        if out is not None or overrides:
            raise UserError("--resume goes on with the run's own plan: expected no --out, no --set")
        _followed(resume, lambda watch: submitting.resume(resume, kit, watch))
        return
    assert plan is not None
    loaded, notes = load_plan(plan, overrides or ())
    for note in notes:
        err_console.print(f"note: {note}", markup=False)
    folder = out or default_folder(loaded.name)
    _followed(folder, lambda watch: submitting.submit(loaded, kit, folder, watch))


def status(
    kit: Annotated[Path, typer.Option(help="The consortium's admin folder.")],
    as_json: JsonOption = False,
) -> None:
    """Who is connected, and what runs."""
    import json

    from fedshield.engines.flare import submit as submitting

    found = submitting.status(kit)
    if as_json:
        out_console.print(json.dumps(found, indent=1), markup=False)
        return
    _say("server", found["server"])
    for site in found["sites"]:
        _say("site", site)
    for job in found["jobs"]:
        _say("job", f"{job['id']}  {job['name']}  {job['status']}")


def _followed(path: Path, action: Callable[[Any], Any]) -> None:
    from fedshield.cli.watch import Watch

    watch = Watch(err_console)
    try:
        with watch:
            action(watch)
    except (KeyboardInterrupt, FedShieldError) as error:
        if not isinstance(error, UserError) and (path / "run.json").exists():
            err_console.print(f"To go on: fedshield submit --resume {path} --kit KIT", markup=False)
        raise
    _say("done", f"{path}: the adapter and each site's report are in the sites' kits, under runs/")


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<12} {text}", markup=False)
