"""What the command line shows while a run is under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedshield.cli.console import human_bytes

if TYPE_CHECKING:
    from rich.console import Console


class Watch:
    """Progress bars on a terminal; one line per site and round everywhere."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(text, style="dim", markup=False)

    def phase(self, round_number: int, phase: str, site: str) -> None:
        if self._task is not None:
            self._progress.update(
                self._task, description=f"round {round_number} {site}: {phase}", detail=""
            )

    def step(self, round_number: int, site: str, step: int, steps: int, loss: float) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", total=None, detail="")
        self._progress.update(
            self._task,
            description=f"round {round_number} {site}: training",
            completed=step,
            total=steps,
            detail=f"loss {loss:.3f}",
        )

    def round_done(self, round_number: int, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            seconds = " ".join(f"{phase} {s:.2f}" for phase, s in row["wall_s"].items())
            self._progress.console.print(
                f"round {round_number:>3}  {row['site']:<12} train {_loss(row['train_loss'])}  "
                f"held-out {row['heldout_loss_before']:.4f} -> {row['heldout_loss_after']:.4f}  "
                f"up {human_bytes(row['upload_bytes'])}  "
                f"down {human_bytes(row['download_bytes'])}  "
                f"pruned {100 * row['pruning_rate']:.0f} %"
                + (f"  clipped {row['clipped_values']}" if row["clipped_values"] else "")
                + ("" if row["epsilon"] is None else f"  epsilon {row['epsilon']:.3f}")
                + f"  seconds: {seconds}",
                markup=False,
            )


def _loss(value: float | None) -> str:
    """A round in which no row was drawn has no training loss."""
    return "none" if value is None else f"{value:.4f}"
