"""Submitting a run to a consortium, and who is there: `fedshield submit` and `fedshield status`."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedshield.causes import can_go_on, explained
from fedshield.cli.console import JsonOption, err_console, human_duration, out_console, print_notes
from fedshield.errors import UserError


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
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for sites that are not connected.")
    ] = 30.0,
) -> None:
    """Run a plan at a consortium's sites, and follow it. The adapter stays with the sites."""
    from fedshield.plan.effect import without_effect_at_sites
    from fedshield.plan.load import load_plan
    from fedshield.run.flare import submit as submitting
    from fedshield.run.folder import folder_of

    if (plan is None) == (resume is None) or kit is None:
        raise UserError("expected --kit, and a plan or --resume; see fedshield submit --help")
    if resume is not None:
        if out is not None or overrides:
            raise UserError("--resume goes on with the run's own plan: expected no --out, no --set")
        _followed(resume, kit, lambda watch: submitting.resume(resume, kit, watch, wait))
        return
    assert plan is not None
    loaded, notes = load_plan(plan, overrides or ())
    print_notes([*notes, *without_effect_at_sites(loaded)])
    folder = out or folder_of(loaded)
    _followed(folder, kit, lambda watch: submitting.submit(loaded, kit, folder, watch, wait))


def status(
    kit: Annotated[
        Path, typer.Option(help="The consortium's admin folder; at a site, the site's own kit.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Who is connected, what runs, and what it waits for."""
    import json

    from fedshield.run.flare import status as looking

    at_site = looking.is_site_kit(kit)
    seen = looking.of_site(kit) if at_site else looking.of_consortium(kit)
    if as_json:
        out_console.print(json.dumps(seen, indent=1), markup=False)
        return
    if at_site:
        _say("site", f"{seen['site']}: {_process(seen)}")
    else:
        _say("server", seen["server"])
        for site, party in seen["parties"].items():
            _say("site", f"{site}  {party['words']}")
        named = {run.get("job") for run in seen["runs"]}
        for sentence in seen["problems"]:
            _say("problem", sentence)
        for job in seen["jobs"]:
            if job["id"] not in named:
                _say("job", f"{job['id']}  {job['name']}  {job['status']}")
    for run in seen["runs"]:
        _say("run", f"{run['run']}  {_standing(run)}")
    if seen["runs_not_listed"]:
        _say("", f"and {seen['runs_not_listed']} earlier runs that are over, under runs/")
    for sentence in seen["certificates"]:
        _say("certificate", sentence)


def _process(seen: dict[str, Any]) -> str:
    if seen["process"] != "running":
        return "not running; start it with: fedshield site start"
    if seen["since"] is None:
        return "running, not connected to the server yet"
    state = "connected to" if seen["connected"] else "no connection to"
    return f"running, {state} the server since {_clock(seen['since'])}"


def _standing(run: dict[str, Any]) -> str:
    """Where a run stands, in one line."""
    from fedshield.run.progress import ago

    parts = [run["status"]]
    if "round" in run:
        parts.append(f"round {run['round']} of {run['rounds']}")
    if "phase" in run:
        parts.append(f"{run['phase']} since {_clock(run['since'])}")
        if run["waiting"]:
            parts.append(f"waiting for {', '.join(run['waiting'])}")
        if run["heard"] is not None:
            parts.append(f"last message {ago(run['heard'])}")
        parts += [f"{site} is lost ({why})" for site, why in sorted(run["lost"].items())]
        if run["left_s"]:
            parts.append(f"about {human_duration(run['left_s'])} left")
    if run.get("reason"):
        parts.append(run["reason"])
    return "; ".join(parts)


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def _followed(path: Path, kit: Path, action: Callable[[Any], Any]) -> None:
    from fedshield.cli.watch import Watch

    watch = Watch(err_console)
    try:
        with watch:
            action(watch)
    except (KeyboardInterrupt, Exception) as error:
        known = explained(error)
        if can_go_on(known) and (path / "run.json").exists():
            err_console.print(
                f"To go on: fedshield submit --resume {path} --kit {kit}", markup=False
            )
        if known is error:
            raise
        raise known from error
    _say("done", f"{path}: the adapter and each site's report are in the sites' kits, under runs/")


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<12} {text}", markup=False)
