"""What is to be audited: a plan, or a finished run with its plan and adapter."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedshield.enrolment import KeyFile
from fedshield.errors import PlanError
from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan
from fedshield.report import facts
from fedshield.run.folder import RunFolder, chat_date
from fedshield.run.log_file import ROSTERS_FILE, read_rosters
from fedshield.run.whereabouts import check_model_there, whereabouts
from fedshield.seeds import SiteRandomness
from fedshield.types import AdapterSpec, AdapterState


@dataclass(frozen=True)
class Subject:
    """`run`: the run's folder, None for a plan; `privacy`: its epsilon and delta so far, if it has
    any; `site`: the only one whose data are here, in whose kit the run lies; None where all are;
    `history`: how the run went, one sentence each."""

    plan: Plan
    run: RunFolder | None
    privacy: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    site: str | None = None
    history: tuple[str, ...] = ()

    @property
    def folder(self) -> Path | None:
        """Where the report goes by default."""
        return None if self.run is None else self.run.path / "audit"

    @property
    def date(self) -> datetime.date | None:
        """The day on which the run began; None for a plan."""
        return None if self.run is None else chat_date(self.run.state())

    @property
    def completed(self) -> int | None:
        """Rounds of the run; None for a plan, or where none was completed."""
        if self.run is None:
            return None
        return max((row["round"] for row in self.run.metrics()), default=None)

    def drew(self) -> dict[str, SiteRandomness]:
        """What training in the run drew from, of the sites of which it is known here: of all in a
        demonstration, else of the one in whose kit the run lies, if its key is still the run's."""
        path = None if self.run is None else self.run.path / ROSTERS_FILE
        if self.run is None or path is None or not path.exists():
            return {}
        rosters = read_rosters(path)
        if all(roster.demo for roster in rosters):
            names = self.plan.data.site_names()
            return {name: SiteRandomness.of_demonstration(self.plan.seed, name) for name in names}
        if self.site is None:
            return {}
        # A run lies in KIT/runs/NAME.
        kit = self.run.path.resolve().parent.parent
        key = KeyFile.read(kit / f"{self.site}.key").key
        if any(roster.sites[self.site] != key.public for roster in rosters):
            return {}
        # The plan here may have this machine's places in it; the run's is the one that was agreed.
        randomness = SiteRandomness.of_site(key.secret, self.run.plan().sha256())
        return {self.site: randomness}

    def released(self, spec: AdapterSpec) -> AdapterState | None:
        """The adapter of the run's last completed round; None for a plan, or where no site has
        kept it."""
        if self.run is None:
            return None
        completed = self.completed
        for site in self.plan.data.site_names():
            store = self.run.site_store(site)
            if completed is not None and completed in store.rounds():
                return store.load(completed, spec)[0]
        return None


def from_path(path: Path, overrides: Sequence[str] = (), model: str | None = None) -> Subject:
    """A run folder or a plan file; `model`: where a run's base model is, if not where its plan or
    its kit's policy says. Raises `PlanError`, `PolicyError` or `RunFolderError`."""
    if not path.is_dir():
        if model is not None:
            raise PlanError("--model: expected none with a plan; use --set model.name=NAME")
        plan, notes = load_plan(path, overrides)
        return Subject(plan, None, notes=tuple(notes))
    if overrides:
        raise PlanError("--set: expected none with a run folder, whose plan is as it was run")
    run = RunFolder.open(path)
    privacy = run.state().get("privacy")
    place = whereabouts(run, model)
    check_model_there(place.plan, model)
    return Subject(
        place.plan,
        run,
        privacy if isinstance(privacy, dict) else {},
        site=place.site,
        history=_history(run),
    )


def _history(run: RunFolder) -> tuple[str, ...]:
    """How the run went, as its own report says; of one that is not finished, that it is not."""
    if not (run.path / "summary.json").is_file():
        return (f"The run is not finished: it is {run.state()['status']}.",)
    known = facts.of_summary(run.read_json("summary.json"))
    resumed = f"It was resumed {facts.resumed_words(known)}." if known.resumed else ""
    early = f"It ended at its privacy budget, {known.ended_early}." if known.ended_early else ""
    sentences = (facts.who_ran(known), *facts.lost_words(known), resumed, early)
    return tuple(sentence for sentence in sentences if sentence)
