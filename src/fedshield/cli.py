"""The command line: parse, call, print. Nothing else prints, but for the other `cli_*`.

Exit status: 0 done, 1 a run failed, 2 something that the user can mend, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fedshield import (
    __version__,
    cli_audit,
    cli_consortium,
    cli_doctor,
    cli_log,
    cli_roster,
    cli_site,
)
from fedshield.cli_watch import Watch, human_bytes, human_duration
from fedshield.errors import FedShieldError, UserError

if TYPE_CHECKING:
    from fedshield.choices import Choice
    from fedshield.cost import Cost
    from fedshield.plan import Plan

app = typer.Typer(
    name="fedshield",
    help="Fine-tune one language model together, without showing anyone your data or your update.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="The embedded base model.", no_args_is_help=True)
app.add_typer(model_app, name="model")
bench_app = typer.Typer(help="Measure it here.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.command()(cli_roster.keygen)
app.command()(cli_audit.audit)
app.add_typer(cli_roster.roster_app, name="roster")
app.add_typer(cli_site.site_app, name="site")
app.add_typer(cli_log.log_app, name="log")
app.command()(cli_doctor.doctor)
app.add_typer(cli_consortium.consortium_app, name="consortium")
cli_site.site_app.command("request")(cli_consortium.request)
cli_site.site_app.command("install")(cli_consortium.install)
cli_site.site_app.command("start")(cli_consortium.start_site)
app.add_typer(cli_consortium.server_app, name="server")
app.command()(cli_consortium.submit)
app.command()(cli_consortium.status)
out_console = Console(highlight=False, soft_wrap=True, emoji=False)
err_console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

STOPPED = 130

PlanArgument = Annotated[Path | None, typer.Argument(help="A plan (YAML). See examples/.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the plan: --set training.steps=4"),
]
SiteOption = Annotated[str | None, typer.Option(help="Whose adapter, where each has its own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]


def main() -> None:
    """Entry point: every error that is ours becomes one line and an exit status."""
    try:
        # typer hands back the status of an Exit, and of a Ctrl-C (130), as a number.
        status = app(standalone_mode=False)
        if status == STOPPED:
            _say_error("stopped")
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _say_error(str(error))
        sys.exit(2)
    except FedShieldError as error:
        _say_error(str(error))
        sys.exit(1)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _say_error("stopped")
        sys.exit(STOPPED)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
            if error.format_message():  # empty when the help was asked for by giving nothing
                _say_error(f"{error.format_message()}; see fedshield --help")
            sys.exit(2)
        raise


def _say_error(text: str) -> None:
    err_console.print("fedshield: " + " ".join(text.split()), style="red", markup=False)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out_console.print(f"fedshield {__version__}")
        raise typer.Exit()


# -- run -----------------------------------------------------------------------------------


@app.command()
def run(
    plan: PlanArgument = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    overrides: SetOption = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    roster: Annotated[Path | None, typer.Option(help="A countersigned roster.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The folder of its parties' keys.")] = None,
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
    from fedshield.engines.members import Enrolment
    from fedshield.planfile import load_plan

    how = _engine(engine)
    enrolment = Enrolment(roster, keys) if roster is not None and keys is not None else None
    if resume is not None:
        return _watched(resume, lambda events: how.resume(resume, events, enrolment))
    assert plan is not None
    loaded, notes = load_plan(plan, overrides or ())
    _print_notes(notes)
    folder = out or _default_out(loaded)
    _watched(folder, lambda events: how.run(loaded, folder, events, enrolment))


def _engine(name: str) -> Any:
    if name == "inprocess":
        from fedshield.engines import inprocess

        return inprocess
    if name == "flare":
        from fedshield.engines.flare import simulate

        return simulate
    raise UserError(f"--engine: expected inprocess or flare, got {name[:40]!r}")


def _default_out(plan: Plan) -> Path:
    from fedshield.runfolder import default_folder

    if plan.output.dir is not None:
        return plan.resolve(plan.output.dir)
    return default_folder(plan.name)


def _watched(path: Path, action: Callable[[Watch], Any]) -> None:
    watch = Watch(err_console)
    try:
        with watch:
            action(watch)
    except (KeyboardInterrupt, FedShieldError) as error:
        if not isinstance(error, UserError) and (path / "run.json").exists():
            err_console.print(f"To go on: fedshield run --resume {path}", markup=False)
        raise
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    _print_summary(summary)
    out_console.print(f"report   {path / 'report.html'}", markup=False)
    out_console.print(f"adapter  {path / 'adapter'}", markup=False)


def _print_summary(summary: dict[str, Any]) -> None:
    table = Table("site", "held-out loss before", "after", box=None, pad_edge=False)
    for site in [*summary["sites"], "mean"]:
        before, after = (
            found["mean"] if site == "mean" else found["sites"].get(site)
            for found in (summary["initial_heldout_loss"], summary["final_heldout_loss"])
        )
        table.add_row(site, _loss(before), _loss(after))
    out_console.print(table)
    out_console.print(
        f"{summary['rounds']} rounds, {len(summary['sites'])} sites, scheme {summary['scheme']} "
        f"{summary['scheme_parameters']}: {human_bytes(summary['upload_bytes'])} up, "
        f"{human_bytes(summary['download_bytes'])} down (plain float32 would be "
        f"{human_bytes(summary['plaintext_float32_upload_bytes'])} up), {summary['wall_s']:.0f} s",
        markup=False,
    )
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


# -- plan ----------------------------------------------------------------------------------


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML).")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a plan and print what its run will cost, without loading weights or data."""
    from fedshield.choices import choices
    from fedshield.cost import estimate
    from fedshield.planfile import load_plan

    loaded, notes = load_plan(path, overrides or ())
    _print_notes(notes)
    cost = estimate(loaded)
    others = list(choices(loaded))
    if as_json:
        print(json.dumps(cost.to_json() | {"choices": [asdict(one) for one in others]}, indent=1))
        return
    for name, value in _cost_lines(loaded, cost):
        out_console.print(f"{name:<24} {value}", markup=False)
    if others:
        out_console.print(_choice_table(others))


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


# -- after a run ---------------------------------------------------------------------------


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2048)] = 96,
    site: SiteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with the base model and with the run's adapter."""
    from fedshield.engines.finished import open_finished
    from fedshield.model.export import answers

    base, host, state, _ = open_finished(run, site=site)
    (answer,) = answers(base, host, state, [prompt], max_new_tokens)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    note = f" ({base.note})" if base.note else ""
    out_console.print(f"{base.name}{note}:", style="bold", markup=False)
    out_console.print(answer["base"], markup=False)
    out_console.print("\nwith the run's adapter:", style="bold")
    out_console.print(answer["tuned"], markup=False)


@app.command()
def export(
    run: RunArgument,
    merge: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    site: SiteOption = None,
) -> None:
    """Write the base model with the adapter merged in; transformers loads it by itself."""
    from fedshield.engines.finished import open_finished
    from fedshield.model.export import save_merged

    base, host, state, notes = open_finished(run, full_precision=True, site=site)
    _print_notes(notes)
    save_merged(base, host, state, merge)
    out_console.print(f"merged model  {merge}", markup=False)


@model_app.command("fetch")
def model_fetch() -> None:
    """Build the embedded base model (smollm2-135m) in the user's cache, if it is not there."""
    from fedshield.model import smollm2

    path = smollm2.ensure(say=lambda text: err_console.print(text, style="dim", markup=False))
    out_console.print(str(path), markup=False)


@bench_app.command("crypto")
def bench_crypto(
    values: Annotated[int, typer.Option(help="Values of a site's update.")] = 1_000_000,
    sites: Annotated[int, typer.Option(help="Sites whose updates are summed.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads; one is what is measured.")] = 1,
    schemes: Annotated[str | None, typer.Option(help="Only these: plain,ckks,bfv,rlwe")] = None,
    bits: Annotated[int | None, typer.Option(help="Only rows of so many bits.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Bytes, speed and exactness of every scheme on the same work, one thread each."""
    from fedshield import bench

    if threads != 1:
        raise UserError(f"--threads: expected 1, got {threads}; every scheme is measured on one")
    chosen = schemes.split(",") if schemes else None
    if chosen is None or "bfv" in chosen:
        _print_notes(bench.missing_peers())
    rows = []
    for row in bench.crypto_rows(values, sites, schemes=chosen, bits=bits):
        rows.append(row)
        if not as_json:
            _print_bench_row(row, first=len(rows) == 1)
    if as_json:
        print(json.dumps(rows, indent=1))


@bench_app.command("crypto-row", hidden=True)
def bench_crypto_row(index: int, values: int, sites: int) -> None:
    """One row, in this process: what `bench crypto` starts for each scheme."""
    from fedshield import bench

    print(json.dumps(bench.measure(index, values, sites)))


def _print_bench_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        out_console.print(
            f"{row['values']:,} values, {row['sites']} sites, one thread; million values a second",
            markup=False,
        )
        out_console.print(
            "scheme  parameters                        bits  bytes/value  x float32  "
            "encrypt      add     open  exact  peak memory"
        )
    speeds = (row[f"{what}_values_per_s"] / 1e6 for what in ("encode_encrypt", "add", "open"))
    columns = [
        f"{row['scheme']:<7} {row['parameters']:<33} {row['bits']:>4}",
        f"{row['bytes_per_value']:>12.3f} {row['expansion_vs_float32']:>10.3f}",
        *(f"{speed:>8.2f}" for speed in speeds),
        f" {'yes' if row['exact'] else 'no':<5}  {human_bytes(row['peak_rss_bytes'])}",
    ]
    out_console.print(" ".join(columns), markup=False)


# -- words ---------------------------------------------------------------------------------


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        err_console.print(f"note: {note}", markup=False)


if __name__ == "__main__":
    main()
