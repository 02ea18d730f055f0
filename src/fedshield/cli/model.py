"""The embedded base model, and what a finished run made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedshield.cli.console import (
    JsonOption,
    ModelOption,
    SiteOption,
    err_console,
    human_bytes,
    out_console,
    print_notes,
)
from fedshield.errors import UserError

RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2048)] = 96,
    site: SiteOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt with the base model and with the run's adapter."""
    from fedshield.model.answers import answers
    from fedshield.run.reopen import open_finished

    base, host, state, notes = open_finished(run, site=site, model=model)
    (answer,) = answers(base, host, state, [prompt], max_new_tokens, note=notes.append)
    print_notes(notes)
    if as_json:
        print(json.dumps(answer))
        return
    note = f" ({base.note})" if base.note else ""
    titles = {"base": f"{base.name}{note}:", "tuned": "\nwith the run's adapter:"}
    for name, title in titles.items():
        out_console.print(title, style="bold", markup=False)
        out_console.print(answer[name], markup=False)
        if name in answer["cut"]:
            cut = f"(cut at {answer['max_new_tokens']} tokens: the answer had not ended)"
            out_console.print(cut, style="dim", markup=False)


def export(
    run: RunArgument,
    merge: Annotated[
        Path | None, typer.Option(help="Folder for the base model with the adapter merged in.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder for the adapter alone, to hand on.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of merged weights: auto (the base's), float32, bfloat16, float16.")
    ] = "auto",
    base: Annotated[
        str | None, typer.Option(help="What --adapter calls the base model; else the plan's name.")
    ] = None,
    site: SiteOption = None,
    model: ModelOption = None,
) -> None:
    """Write a model or adapter that others can load: transformers and PEFT need nothing else."""
    from fedshield.model.weight_files import DTYPES

    if merge is None and adapter is None:
        raise UserError("expected --merge FOLDER or --adapter FOLDER, got neither")
    if base is not None and adapter is None:
        raise UserError("--base names the base model in an adapter: expected --adapter FOLDER")
    kinds = [kind for kind in DTYPES if kind == dtype]
    if not kinds:
        raise UserError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype[:40]!r}")
    if model is not None and merge is None:
        raise UserError(
            "--model is where a merge finds the base model: expected --merge FOLDER (an adapter "
            "names its base by --base)"
        )
    if merge is None and dtype != "auto":
        raise UserError("--dtype is of merged weights: expected --merge FOLDER")
    if adapter is not None:
        from fedshield.run.reopen import copy_adapter

        name = copy_adapter(run, adapter, base, site)
        out_console.print(f"adapter       {adapter} (for {name})", markup=False)
    if merge is not None:
        from fedshield.model.merge import save_merged
        from fedshield.run.folder import RunFolder
        from fedshield.run.reopen import open_finished
        from fedshield.run.whereabouts import model_to_name

        base_model, host, state, notes = open_finished(
            run, full_precision=True, site=site, model=model
        )
        print_notes(notes)
        named = model_to_name(RunFolder.open(run).plan())
        merged = save_merged(base_model, host, state, merge, kinds[0], named)
        size = sum(path.stat().st_size for path in merge.rglob("*") if path.is_file())
        out_console.print(merged.in_words(), markup=False)
        out_console.print(f"merged model  {merge} ({human_bytes(size)})", markup=False)


def fetch() -> None:
    """Build the embedded base model (smollm2-135m) in the user's cache, if it is not there."""
    from fedshield.model.builtin import smollm2

    path = smollm2.ensure(say=lambda text: err_console.print(text, style="dim", markup=False))
    out_console.print(str(path), markup=False)
