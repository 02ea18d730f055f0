"""Opening what a run left: its base model with the adapter of its last completed round."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedshield.errors import RunFolderError
from fedshield.model.adapter import AdapterHost, ordinary
from fedshield.model.base import BaseModel, load
from fedshield.model.chat import use_template
from fedshield.runfolder import RunFolder, chat_date
from fedshield.types import AdapterState


def open_finished(
    path: Path, *, full_precision: bool = False, site: str | None = None
) -> tuple[BaseModel, AdapterHost, AdapterState, list[str]]:
    """The run's base model, adapter host and adapter, and notes for the user.

    `site`: whose, where each site has an adapter of its own. `full_precision` loads a quantised
    base unquantised, as merging needs. Raises
    `RunFolderError` if the run has no adapter or the base model is another one.
    """
    folder = RunFolder.open(path)
    plan = folder.plan()
    notes: list[str] = []
    quantised = plan.model.quantization != "none"
    if full_precision and quantised:
        notes.append(
            f"the base was trained on in {plan.model.quantization}; the merge uses it unquantised"
        )
        plan = plan.model_copy(
            update={"model": plan.model.model_copy(update={"quantization": "none"})}
        ).with_base_dir(plan.base_dir)
    personal = plan.adapter.train == "share-a"
    names = plan.data.site_names()
    if (site is None) == personal or (site is not None and site not in names):
        wanted = f"--site with one of {', '.join(names)}" if personal else "no --site"
        raise RunFolderError(
            f"{path}: expected {wanted} (adapter.train is {plan.adapter.train}), got {site}"
        )
    weights = path / "adapter" / (site or "") / "adapter_model.safetensors"
    if not weights.is_file():
        raise RunFolderError(
            f"{path}: expected a finished run with adapter/, found none; finish it with: "
            f"fedshield run --resume {path}"
        )
    base = load(plan)
    expected = folder.state().get("base_model_sha256")
    if base.sha256 != expected:
        raise RunFolderError(
            f"{path}: expected the run's base model {str(expected)[:16]}, got {base.sha256[:16]}; "
            "use the same model files"
        )
    use_template(base.tokenizer, plan.model.chat_template, chat_date(folder.state()))
    host = AdapterHost(base.model, ordinary(plan.adapter), base.sha256)
    try:
        tensors = load_file(weights)
        state = host.from_lora(tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunFolderError(f"{weights}: cannot be read ({error}); restore it") from None
    return base, host, state, notes
