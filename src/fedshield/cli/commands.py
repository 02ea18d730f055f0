"""The commands' names, and how an error becomes one line and an exit status.

Signals are `entry`'s, which says what each status means.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fedshield import __version__
from fedshield.causes import explained
from fedshield.cli import (
    audit,
    bench,
    consortium,
    data,
    doctor,
    ledger,
    log,
    model,
    plan,
    recovery,
    rosters,
    run,
    site,
    submit,
)
from fedshield.cli.console import err_console, out_console
from fedshield.errors import FedShieldError, ResourceError, UserError

app = typer.Typer(
    name="fedshield",
    help="Fine-tune one language model together, without showing anyone your data or your update.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="The embedded base model.", no_args_is_help=True)
model_app.command()(model.fetch)
bench_app = typer.Typer(help="Measure it here.", no_args_is_help=True)
bench_app.command()(bench.crypto)
bench_app.command(hidden=True)(bench.crypto_row)
site.site_app.command()(consortium.request)
site.site_app.command()(consortium.install)
site.site_app.command("renew")(consortium.renew_site)
site.site_app.command("start")(consortium.start_site)
ledger.ledger_app.command()(recovery.ask)
ledger.ledger_app.command()(recovery.answer)
ledger.ledger_app.command()(recovery.recover)
site.site_app.add_typer(ledger.ledger_app, name="ledger")

app.add_typer(model_app, name="model")
app.add_typer(bench_app, name="bench")
app.command()(rosters.keygen)
app.command()(audit.audit)
app.add_typer(rosters.roster_app, name="roster")
app.add_typer(site.site_app, name="site")
app.add_typer(log.log_app, name="log")
app.command()(doctor.doctor)
app.add_typer(consortium.consortium_app, name="consortium")
app.add_typer(consortium.server_app, name="server")
app.command()(submit.submit)
app.command()(submit.status)
app.command()(run.run)
app.command()(plan.plan)
app.command()(data.data)
app.command()(model.generate)
app.command()(model.export)


def command() -> int:
    """Run the command that was typed: every error that is ours becomes one line and an exit status.
    Raises `KeyboardInterrupt` for a stop that was asked for."""
    try:
        # typer hands back the status of an Exit, and of a Ctrl-C (130), as a number.
        status = app(standalone_mode=False)
        return status if isinstance(status, int) else 0
    except UserError as error:
        _say_error(str(error))
        return 2
    except FedShieldError as error:
        _say_error(str(error))
        return 1
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
            if error.format_message():  # empty when the help was asked for by giving nothing
                _say_error(f"{error.format_message()}; see fedshield --help")
            return 2
        known = explained(error)
        if isinstance(known, ResourceError):
            _say_error(str(known))
            return 2
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
