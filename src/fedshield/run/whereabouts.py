"""Where a run's model and data are, for whoever opens it after its end.

A run of one machine has them where its plan says. A run in a site's kit (KIT/runs/NAME) has them
where the site's policy says, wherever the kit lies by now. `--model` says it for either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedshield.enrolment.policy import POLICY_FILE, Policy
from fedshield.errors import RunFolderError
from fedshield.notes import one_line
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder


@dataclass(frozen=True)
class Whereabouts:
    """`plan`: to load the model and data by; `site`: whose kit the run lies in, None for a run
    whose sites were all on this machine."""

    plan: Plan
    site: str | None


def whereabouts(folder: RunFolder, model: str | None = None) -> Whereabouts:
    """The run's plan with this machine's places in it. `model`: where the base model is instead,
    a folder or a hub name. Raises `RunFolderError` for a kit of several sites, `PolicyError` for
    a policy that cannot be read."""
    plan = folder.plan()
    path = folder.path.resolve()
    kit = path.parent.parent
    site = _site_of(kit, plan) if path.parent.name == "runs" else None
    if site is not None:
        policy = Policy.read(kit / POLICY_FILE.format(site=site))
        plan = policy.local_plan(plan, site)
    if model is not None:
        given = Path(model).expanduser()
        name = str(given.resolve()) if given.exists() else model
        section = plan.model.model_copy(update={"name": name, "revision": None, "config": None})
        plan = plan.model_copy(update={"model": section}).with_base_dir(plan.base_dir)
    return Whereabouts(plan, site)


def check_model_there(plan: Plan, model: str | None) -> None:
    """See that the folder of the base model is in its place. `plan`: of `whereabouts`; `model`: as
    given to it. Raises `RunFolderError`."""
    name = plan.model.name
    if not _is_path(name) or plan.resolve(name).is_dir():
        return
    if model is not None:
        raise RunFolderError(
            f"--model: expected a model folder or a hub name, got {one_line(model)}, where "
            "there is no folder; check the path"
        )
    raise RunFolderError(
        f"expected the run's base model in {one_line(name)}, found no folder there; say with "
        "--model where it is"
    )


def model_to_name(plan: Plan) -> str:
    """The plan's base model by a name that may be told: of a folder, the last part of its path."""
    name = plan.model.name
    is_path = _is_path(name) or plan.resolve(name).is_dir()
    return plan.resolve(name).resolve().name if is_path else name


def _is_path(name: str) -> bool:
    """Whether a model of this name can be nothing but a folder."""
    return name.startswith(("/", ".", "~"))


def _site_of(kit: Path, plan: Plan) -> str | None:
    names = [
        name
        for name in plan.data.site_names()
        if (kit / POLICY_FILE.format(site=name)).is_file() and (kit / f"{name}.key").is_file()
    ]
    if len(names) > 1:
        raise RunFolderError(
            f"{kit}: expected the kit of one site of the run, got those of {', '.join(names)}; "
            "keep each site's in a folder of its own"
        )
    return names[0] if names else None
