"""The first steps of a run, to know its pace: `fedshield plan --measure`.

What is timed is the run itself, shortened: one round of a few steps at every site, fewer held-out
rows, one prompt. It leaves nothing behind. The speeds are
those of now, beside whatever else this machine does.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedshield.cost.time import Pace, of_run, scaled
from fedshield.errors import RunFolderError
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder

#: Steps of each site, the first of all left out: it also warms up.
STEPS = 3
#: Most held-out rows of each site: several, since rows differ in length.
HELDOUT_ROWS = 8

#: The rough pace of a plan, see `cost.time.rough`.
Rough = Callable[[Plan], Pace]


class _Clock:
    """`Events` that keep the time: of each step, and of the first command to a site."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = time.perf_counter()
        self.steps: list[tuple[str, float]] = []

    def note(self, text: str) -> None:
        self._say(text)

    def phase(self, round_number: int, phase: str, site: str) -> None:
        self._last = time.perf_counter()

    def step(self, round_number: int, site: str, step: int, steps: int, loss: float) -> None:
        now = time.perf_counter()
        self.steps.append((site, now - self._last))
        self._last = now

    def round_done(self, round_number: int, rows: Sequence[dict[str, Any]]) -> None:
        pass


def shortened(plan: Plan) -> Plan:
    """The trial's plan: the same model, adapter, scheme and rows, less of everything else."""
    held = max(HELDOUT_ROWS, plan.speed.eval_batch_size)
    sites = {
        name: source.model_copy(
            update={"heldout_rows": source.heldout_rows and min(source.heldout_rows, held)}
        )
        for name, source in plan.data.sites.items()
    }
    changes = {
        "rounds": 1,
        "data": plan.data.model_copy(
            update={"sites": sites, "heldout_rows": min(plan.data.heldout_rows, held)}
        ),
        "training": plan.training.model_copy(update={"steps": min(plan.training.steps, STEPS)}),
        "pruning": plan.pruning.model_copy(update={"start_round": None, "target_round": None}),
        "evaluation": plan.evaluation.model_copy(update={"prompts": plan.evaluation.prompts[:1]}),
    }
    return plan.model_copy(update=changes).with_base_dir(plan.base_dir)


def measured(plan: Plan, say: Callable[[str], None], rough: Rough) -> Pace:
    """The pace of `plan` from a trial here. Raises what a run raises."""
    from fedshield.run import local

    short = shortened(plan)
    clock = _Clock(say)
    with tempfile.TemporaryDirectory(prefix="fedshield-trial-") as parent:
        began = time.perf_counter()
        folder = local.run(short, Path(parent) / "trial", clock)
        whole = time.perf_counter() - began
        pace = of_run(short, folder.state(), _summary(folder), folder.metrics())
        sessions_s = float(folder.state()["wall_s"])
    steps = [seconds for _, seconds in clock.steps]
    warmed = steps[1:] or steps
    step = sum(warmed) / len(warmed)
    # Imports count once, and so does what the first step takes longer.
    preparing = whole - sessions_s + max(0.0, steps[0] - step)
    carried = scaled(replace(pace, step=step), rough(short), rough(plan))
    # Neither depends on what was shortened.
    return replace(
        carried,
        preparing=preparing,
        session=pace.session,
        finishing=pace.finishing,
        basis=f"measured here just now, {len(warmed)} steps of a shortened run",
    )


def _summary(folder: RunFolder) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    return summary


def like(plan: Plan, path: Path, rough: Rough) -> Pace:
    """The pace of `plan` from the finished run in the folder `path`, carried over by what the two
    differ in. Raises `RunFolderError` for a run that does not say it."""
    folder = RunFolder.open(path)
    state = folder.state()
    if state["status"] != "finished" or state.get("engine", "inprocess") != "inprocess":
        raise RunFolderError(
            f"--like {path}: expected a finished run of the in-process engine, got one that is "
            f"{state['status']} ({state.get('engine', 'inprocess')}); give another, or --measure"
        )
    if "prepare_s" not in state or state["sessions"] != 1:
        raise RunFolderError(
            f"--like {path}: expected a run of one session by this version of FedShield, got "
            f"{state['sessions']} sessions or an older one; give another, or --measure"
        )
    ran = folder.plan()
    pace = scaled(of_run(ran, state, _summary(folder), folder.metrics()), rough(ran), rough(plan))
    return replace(pace, basis=f"as in the run {path.name}, carried over to this plan")
