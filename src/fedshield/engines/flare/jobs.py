"""A FLARE job that carries a plan and no code: both sides have the package installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedshield.plan import Plan

#: Beyond FLARE's own list: what our jobs name.
ALLOWED = ("nvflare.collab.", "fedshield.engines.flare.objects.")


def write_job(folder: Path, name: str, run: str, plan: Plan) -> Path:
    """The job's folder, made in `folder`. Nothing in it is secret."""
    from nvflare.collab import CollabRecipe

    from fedshield.engines.flare.objects import CoordinatorApp, SiteApp

    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True)
    recipe = CollabRecipe(
        job_name=name,
        server=CoordinatorApp(text, run),
        client=SiteApp(text, run),
        min_clients=1,
    )
    recipe.export(str(folder))
    job = folder / name
    for custom in job.glob("*/custom"):
        # FLARE packs the sources of our classes; a site that refuses shipped code refuses them.
        shutil.rmtree(custom)
    return job


def allow_classes(resources: Path) -> None:
    """Let a FLARE site build our objects and FLARE's own, and nothing else: `class_allow_list` of
    its resources.json. What else is in the file stays."""
    from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

    found = json.loads(resources.read_text()) if resources.exists() else {"format_version": 2}
    listed = found.get("class_allow_list", list(DEFAULT_CLASS_ALLOW_LIST))
    found["class_allow_list"] = sorted({*listed, *ALLOWED} - {"*"})
    resources.parent.mkdir(parents=True, exist_ok=True)
    resources.write_text(json.dumps(found, indent=2) + "\n")
