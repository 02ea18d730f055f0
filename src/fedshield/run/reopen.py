"""Opening what a run left: its base model with the adapter of its last completed round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedshield.disk import whole_folder
from fedshield.errors import RunFolderError
from fedshield.model.adapter import AdapterHost, ordinary
from fedshield.model.base import BaseModel
from fedshield.model.chat import use_template
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder, chat_date
from fedshield.run.settings import load_base
from fedshield.run.whereabouts import check_model_there, model_to_name, whereabouts
from fedshield.types import AdapterState


def open_finished(
    path: Path,
    *,
    full_precision: bool = False,
    site: str | None = None,
    model: str | None = None,
) -> tuple[BaseModel, AdapterHost, AdapterState, list[str]]:
    """The run's base model, adapter host and adapter, and notes for the user.

    `site`: whose, where each site has an adapter of its own; in a site's kit, its own by default.
    `model`: where the base model is, if not where the plan or the kit's policy says.
    `full_precision` loads a quantised base unquantised, as merging needs. Raises
    `RunFolderError` if the run has no adapter or the base model is another one.
    """
    folder = RunFolder.open(path)
    weights, plan = adapter_file(folder, site, model)
    check_model_there(plan, model)
    notes: list[str] = []
    quantised = plan.model.quantization != "none"
    if full_precision and quantised:
        notes.append(
            f"the base was trained on in {plan.model.quantization}; the merge uses it unquantised"
        )
        plan = plan.model_copy(
            update={"model": plan.model.model_copy(update={"quantization": "none"})}
        ).with_base_dir(plan.base_dir)
    base = load_base(plan)
    expected = folder.state().get("base_model_sha256")
    if base.sha256 != expected:
        raise RunFolderError(
            f"{path}: expected the run's base model {str(expected)[:16]}, got {base.sha256[:16]} "
            f"({plan.model.name}); say with --model where the same model files are"
        )
    notes += base.notes
    use_template(base.tokenizer, plan.model.chat_template, chat_date(folder.state()))
    host = AdapterHost(base.model, ordinary(plan.adapter), base.sha256)
    try:
        tensors = load_file(weights)
        state = host.from_lora(tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunFolderError(f"{weights}: cannot be read ({error}); restore it") from None
    return base, host, state, [*notes, *host.notes]


def adapter_file(
    folder: RunFolder, site: str | None, model: str | None = None
) -> tuple[Path, Plan]:
    """The weights of the run's adapter, and the plan with this machine's places in it
    (`whereabouts`). Raises `RunFolderError` if there is no adapter, or `site` does not fit."""
    place = whereabouts(folder, model)
    plan, path = place.plan, folder.path
    personal = plan.adapter.train == "share-a"
    names = plan.data.site_names()
    if personal and site is None:
        site = place.site
    if (site is None) == personal or (site is not None and site not in names):
        wanted = f"--site with one of {', '.join(names)}" if personal else "no --site"
        raise RunFolderError(
            f"{path}: expected {wanted} (adapter.train is {plan.adapter.train}), got {site}"
        )
    weights = path / "adapter" / (site or "") / "adapter_model.safetensors"
    if not weights.is_file():
        if "jobs" in folder.state():
            raise RunFolderError(
                f"{path}: expected a site's run with adapter/, got what the coordinator knows of "
                "one; the adapter is in each site's kit, under runs/"
            )
        raise RunFolderError(
            f"{path}: expected a finished run with adapter/, found none; finish it with: "
            f"fedshield run --resume {path}"
        )
    return weights, plan


def copy_adapter(path: Path, out: Path, base: str | None = None, site: str | None = None) -> str:
    """The adapter of the run in folder `path` as it may be handed on, in `out`: its config names
    the base model by `base`, or by `model_to_name`, and no folder of this machine. Returns that
    name. Raises `RunFolderError` as `adapter_file`, and if `out` has files."""
    folder = RunFolder.open(path)
    weights, _ = adapter_file(folder, site)
    name = base or model_to_name(folder.plan())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: expected a new or empty folder, got another; choose another")
    files = [file for file in weights.parent.iterdir() if file.is_file()]
    with whole_folder(out, sum(file.stat().st_size for file in files)) as part:
        for file in files:
            shutil.copyfile(file, part / file.name)
        config = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = name
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (part / "adapter_config.json").write_text(text, encoding="utf-8")
    return name
