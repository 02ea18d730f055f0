"""What every command shares: the two consoles, options that several take, numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fedshield.cli.terminal import visible
from fedshield.errors import UserError


class SafeConsole(Console):
    """A console on which no text acts (`visible`)."""

    def render_str(self, text: str, **given: Any) -> Text:
        return super().render_str(visible(text), **given)


out_console = SafeConsole(highlight=False, soft_wrap=True, emoji=False)
err_console = SafeConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the plan: --set training.steps=4"),
]
SiteOption = Annotated[str | None, typer.Option(help="Whose adapter, where each has its own.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="The base model's folder or hub name, if not the plan's or the policy's."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def say(label: str, text: str) -> None:
    """One line of what a command tells: a label, and what it is of."""
    out_console.print(f"{label:<13} {text}", markup=False)


def typed(question: str) -> str:
    """What the operator types."""
    given: str = typer.prompt(question, default="", show_default=False, prompt_suffix=" ")
    return given.strip()


def must_type(question: str, wanted: str, otherwise: str) -> None:
    """Raises `UserError` for any other answer. `otherwise`: what then was not done."""
    given = typed(question)
    if given != wanted:
        raise UserError(f"expected {wanted}, got {given[:40]!r}; {otherwise}")


def print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        err_console.print(f"note: {note}", markup=False)


def human_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 200_000 else f"{seconds / 86400:.0f} days"
