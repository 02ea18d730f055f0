"""`fedshield run`: a plan from its beginning, or a run folder gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedshield.causes import can_go_on, explained
from fedshield.cli.console import SetOption, err_console, human_bytes, out_console, print_notes
from fedshield.cli.watch import Watch
from fedshield.errors import UserError

PlanArgument = Annotated[Path | None, typer.Argument(help="A plan (YAML). See examples/.")]


def run(
    plan: PlanArgument = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    overrides: SetOption = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    roster: Annotated[Path | None, typer.Option(help="A countersigned roster.")] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="The folder of its parties' keys; in one process, of their ledgers too."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="inprocess, or flare: a process for each site, NVIDIA FLARE.")
    ] = "inprocess",
) -> None:
    """Run a plan: every site trains, encrypts and uploads; only the sum is opened."""
    if (plan is None) == (resume is None):
        raise UserError("expected a plan, or --resume RUN, and not both; see fedshield run --help")
    if resume is not None and (out is not None or overrides):
        raise UserError("--resume goes on with the plan of the run: expected no --out and no --set")
    if (roster is None) != (keys is None):
        raise UserError("expected --roster and --keys together, or neither for a demonstration")
    from fedshield.plan.load import load_plan
    from fedshield.run.folder import folder_of
    from fedshield.run.parties import Enrolment

    how = _engine(engine)
    enrolment = Enrolment(roster, keys) if roster is not None and keys is not None else None
    if resume is not None:
        return _watched(resume, lambda events: how.resume(resume, events, enrolment))
    assert plan is not None
    loaded, notes = load_plan(plan, overrides or ())
    print_notes(notes)
    folder = out or folder_of(loaded)
    _watched(folder, lambda events: how.run(loaded, folder, events, enrolment))


def _engine(name: str) -> Any:
    if name == "inprocess":
        from fedshield.run import local

        return local
    if name == "flare":
        from fedshield.run.flare import simulate

        return simulate
    raise UserError(f"--engine: expected inprocess or flare, got {name[:40]!r}")


def _watched(path: Path, action: Callable[[Watch], Any]) -> None:
    watch = Watch(err_console)
    try:
        with watch:
            action(watch)
        _print_end(path)
    except (KeyboardInterrupt, Exception) as error:
        known = explained(error)
        if can_go_on(known) and (path / "run.json").exists():
            err_console.print(_what_next(path), markup=False)
        if known is error:
            raise
        raise known from error


def _what_next(path: Path) -> str:
    """A stop can come after a run's last file was written."""
    state = json.loads((path / "run.json").read_text(encoding="utf-8"))
    if state["status"] == "finished":
        return f"The run was finished before it could be stopped: {path} is complete."
    return f"To go on: fedshield run --resume {path}"


def _print_end(path: Path) -> None:
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    _print_summary(summary)
    out_console.print(f"report   {path / 'report.html'}", markup=False)
    out_console.print(f"adapter  {path / 'adapter'}", markup=False)


def _print_summary(summary: dict[str, Any]) -> None:
    from fedshield.report import facts

    known = facts.of_summary(summary)
    table = Table("site", "held-out loss before", "after", box=None, pad_edge=False)
    for site in [*summary["sites"], "mean"]:
        before, after = (
            found["mean"] if site == "mean" else found["sites"].get(site)
            for found in (summary["initial_heldout_loss"], summary["final_heldout_loss"])
        )
        table.add_row(site, _loss(before), _loss(after))
    out_console.print(table)
    compared = summary["mean_over"]
    if len(compared) < len(summary["sites"]):
        out_console.print(
            f"mean     over {', '.join(compared) or 'no site'}, which measured both", markup=False
        )
    out_console.print(
        f"{summary['rounds']} rounds, {len(summary['sites'])} sites, scheme {summary['scheme']} "
        f"{summary['scheme_parameters']}: {human_bytes(summary['upload_bytes'])} up, "
        f"{human_bytes(summary['download_bytes'])} down (plain float32 would be "
        f"{human_bytes(summary['plaintext_float32_upload_bytes'])} up), {summary['wall_s']:.0f} s"
        + (f", {facts.time_words(known)}" if known.resumed else ""),
        markup=False,
    )
    for sentence in facts.lost_words(known):
        out_console.print(f"lost     {sentence}", markup=False)
    if known.parties == facts.DEMONSTRATION:
        out_console.print("parties  a demonstration: all were simulated on one machine")
    elif known.parties == facts.ENROLLED:
        out_console.print("parties  of a countersigned roster, all on this one machine")
    if found := summary["privacy"]:
        out_console.print(
            f"privacy  epsilon {found['epsilon']:.3f} at delta {found['delta']:g} for each "
            f"{found['unit']}, {found['uploads']} uploads counted"
            + (f"; ended early: {summary['ended_early']}" if summary["ended_early"] else ""),
            markup=False,
        )


def _loss(value: float | None) -> str:
    """A lost site has not measured the end, or not even the beginning."""
    return "not measured" if value is None else f"{value:.4f}"
