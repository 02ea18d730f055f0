"""What a run releases: a PEFT adapter with its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save_file

from fedshield.disk import whole_folder
from fedshield.errors import ModelError
from fedshield.model import portable
from fedshield.model.adapter import AdapterHost, lora_config
from fedshield.model.base import BaseModel
from fedshield.model.builtin import tiny
from fedshield.model.merge import other_template
from fedshield.plan.sections import AdapterPlan
from fedshield.types import AdapterState

#: Bytes of what lies beside an adapter's weights: its config, card and, at most, a tokenizer.
_BESIDE = 64_000


def save_adapter(
    base: BaseModel,
    host: AdapterHost,
    states: Mapping[str, AdapterState],
    adapter: AdapterPlan,
    card: str,
    out: Path,
) -> None:
    """Write `out` so that `AutoPeftModelForCausalLM.from_pretrained(out)` loads it on this machine,
    and `PeftModel.from_pretrained(base, out)` anywhere: an ordinary LoRA adapter, whatever was
    trained. A chat template that is not the base's own goes with the adapter.

    Args:
        base: the base model that it goes with.
        host: where it was trained.
        states: '' -> the adapter of all, or each site's name -> its own, each then in a folder of
            its name.
        adapter: rank, scale and targets, for PEFT's config.
        card: the model card, Markdown.
        out: the new folder.

    Raises:
        RunFolderError: the disk has no room.
    """
    config = lora_config(adapter, host.targets)
    config.inference_mode = True
    folder_of_base = base.folder or _built_in_folder()
    # An absolute path, since PEFT takes any other from wherever its user stands. It is of this
    # machine: `fedshield export --adapter` writes a copy to hand on.
    config.base_model_name_or_path = base.hub_name or str(folder_of_base or base.name)
    config.revision = base.revision
    config.target_modules = host.targets  # PEFT keeps a set: no order of its own
    template = None if folder_of_base is None else other_template(base, folder_of_base)
    num_bytes = sum(_BESIDE + 4 * state.spec.num_values for state in states.values())
    with whole_folder(out, num_bytes) as part:
        for name, state in states.items():
            folder = part / name
            folder.mkdir(exist_ok=True)
            tensors = host.as_lora(state)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(folder)
            if template is not None and folder_of_base is not None:
                portable.copy_tokenizer(folder_of_base, folder, template)
            (folder / "README.md").write_text(card, encoding="utf-8")


def _built_in_folder() -> Path | None:
    """Where `tiny-llama` lies as files; None where the cache cannot be written."""
    try:
        return tiny.ensure()
    except ModelError:
        return None
