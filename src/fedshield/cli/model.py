"""The embedded base model, and what a finished run made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedshield.cli.words import JsonOption, SiteOption, err_console, out_console, print_notes

RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]


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


def export(
    run: RunArgument,
    merge: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    site: SiteOption = None,
) -> None:
    """Write the base model with the adapter merged in; transformers loads it by itself."""
    from fedshield.engines.finished import open_finished
    from fedshield.model.export import save_merged

    base, host, state, notes = open_finished(run, full_precision=True, site=site)
    print_notes(notes)
    save_merged(base, host, state, merge)
    out_console.print(f"merged model  {merge}", markup=False)


def fetch() -> None:
    """Build the embedded base model (smollm2-135m) in the user's cache, if it is not there."""
    from fedshield.model import smollm2

    path = smollm2.ensure(say=lambda text: err_console.print(text, style="dim", markup=False))
    out_console.print(str(path), markup=False)
