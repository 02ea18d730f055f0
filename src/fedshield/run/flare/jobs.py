"""A FLARE job that carries a plan and no code: both sides have the package installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedshield.plan.schema import Plan

#: What FLARE calls the state of a job -> what we call it.
JOBS = {
    "submitted": "waiting to start",
    "approved": "waiting to start",
    "dispatched": "starting",
    "running": "running",
    "finished:completed": "finished",
    "finished:aborted": "aborted",
}
#: All that our jobs name.
ALLOWED = ("nvflare.collab.runtime.", "fedshield.run.flare.objects.")


def write_job(
    folder: Path, name: str, run: str, plan: Plan, sites: Sequence[str] | None = None
) -> Path:
    """The job's folder, made in `folder`. Nothing in it is secret. `sites`: where it is to run;
    at all that are connected if left out. FLARE waits five minutes for one that is not there."""
    from nvflare.collab import CollabRecipe

    from fedshield.run.flare.objects import CoordinatorApp, SiteApp

    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True)
    recipe = CollabRecipe(
        job_name=name,
        server=CoordinatorApp(text, run),
        client=SiteApp(text, run),
        min_clients=1,
        sync_task_timeout=300,  # a busy site takes its time to import torch
    )
    recipe.export(str(folder))
    job = folder / name
    for custom in job.glob("*/custom"):
        # FLARE packs the sources of our classes; a site that refuses shipped code refuses them.
        shutil.rmtree(custom)
    if sites is not None:
        path = job / "meta.json"
        meta = json.loads(path.read_text(encoding="utf-8"))
        meta["deploy_map"] = {app: ["server", *sites] for app in meta["deploy_map"]}
        path.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return job


def allow_classes(resources: Path, *, only: bool = False) -> None:
    """Let FLARE build our objects and the Collab runtime: `class_allow_list` of its
    resources.json. With `only`, nothing else."""
    found: dict[str, Any] = {"format_version": 2}
    if resources.exists():
        found = json.loads(resources.read_text())
    listed = set() if only else set(found.get("class_allow_list", ()))
    found["class_allow_list"] = sorted((listed | set(ALLOWED)) - {"*"})
    found["class_list_enforcement_mode"] = "enforce"
    resources.parent.mkdir(parents=True, exist_ok=True)
    resources.write_text(json.dumps(found, indent=2) + "\n")
