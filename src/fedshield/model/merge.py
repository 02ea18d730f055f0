"""A base model with an adapter merged in, as a folder that transformers loads by itself.

The merge starts from the base's files, not from the model in memory: names, shards, dtypes, config
and tokenizer stay the base's, and only tensors that the adapter changes are computed anew, in
float64, rounded once. It does not matter in which precision the run had loaded the base, and no
more than one shard is in memory.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshield.disk import whole_folder
from fedshield.errors import ModelError, RunFolderError
from fedshield.model import portable
from fedshield.model.adapter import AdapterHost
from fedshield.model.answers import end_ids
from fedshield.model.base import BaseModel
from fedshield.model.builtin import tiny
from fedshield.model.weight_files import INDEX, Changes, DType, WeightFiles
from fedshield.types import AdapterState

#: Kept beside the weights: under which terms the base may be handed on.
_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Merged:
    """What a merge wrote. `dtypes`: of the tensors that the adapter changed; `rounding`: the norm
    of what rounding to them took or added, over the norm of the adapter's change; `unmoved`: the
    share of changed values that rounding put back to the base's."""

    dtypes: tuple[str, ...]
    rounding: float
    unmoved: float

    def in_words(self) -> str:
        """One sentence."""
        return (
            f"merged weights are {' and '.join(self.dtypes)}: rounding to that moved them by "
            f"{self.rounding:.2%} of the adapter's own change (norms), and left {self.unmoved:.2%} "
            "of the changed values as they were in the base"
        )


def save_merged(
    base: BaseModel,
    host: AdapterHost,
    state: AdapterState,
    out: Path,
    dtype: DType = "auto",
    named: str = "",
) -> Merged:
    """Write the base model with the adapter merged in; transformers 4 and 5 load it by themselves.

    `dtype` of the floating-point weights: `auto` keeps each tensor's of the base's files. `named`:
    what the card calls the base model; its own name by default. Raises `RunFolderError` if `out`
    has files or the disk is too small, `ModelError` for files that the adapter cannot be added to.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: expected a new or empty folder, got another; choose another")
    host.write(state)
    folder = base.folder or tiny.ensure()
    files = WeightFiles(folder)
    changes = Changes(host, files)
    num_bytes = files.num_bytes(dtype) + sum(path.stat().st_size for path in _beside(folder))
    with whole_folder(out, num_bytes) as part:
        merged = _write_weights(files, changes, part, dtype)
        _write_configs(base, folder, part, None if dtype == "auto" else dtype)
        card = _card(named or base.name, base, state, merged)
        (part / "README.md").write_text(card, encoding="utf-8")
    return merged


# -- weights -------------------------------------------------------------------------------------


def _write_weights(files: WeightFiles, changes: Changes, part: Path, dtype: DType) -> Merged:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    error = norm = 0.0
    moved = unmoved = total = 0
    dtypes: set[str] = set()
    for name, tensors in files.names().items():
        written: dict[str, Any] = {}
        with safe_open(files.folder / name, framework="pt") as file:
            # Block after block, so that each block's change is computed once.
            for tensor in sorted(tensors, key=lambda one: changes.block_of.get(one, "")):
                before = file.get_tensor(tensor)
                target = before.dtype
                if dtype != "auto" and before.is_floating_point():
                    target = getattr(torch, dtype)
                delta = changes.of(tensor)
                if delta is None:
                    after = before.to(target)
                else:
                    exact = before.double() + delta.double()
                    after = exact.to(target)
                    error += float((after.double() - exact).square().sum())
                    norm += float(delta.double().square().sum())
                    changed = delta != 0
                    moved += int(changed.sum())
                    unmoved += int((changed & (after.double() == before.double())).sum())
                    dtypes.add(str(target).removeprefix("torch."))
                if target != before.dtype or delta is not None:
                    _check_range(tensor, before, after)
                written[tensor] = after.contiguous()
                total += after.numel() * after.element_size()
            metadata = file.metadata() or {"format": "pt"}
        save_file(written, part / name, metadata=metadata)
        (part / name).chmod(0o644)  # safetensors writes it 0600
    if files.index:
        index = dict(files.index)
        index["metadata"] = {**index.get("metadata", {}), "total_size": total}
        portable.write_json(part / INDEX, index)
    rounding = math.sqrt(error / norm) if norm else 0.0
    return Merged(tuple(sorted(dtypes)), rounding, unmoved / moved if moved else 0.0)


def _check_range(name: str, before: Any, after: Any) -> None:
    if bool(after.isfinite().all()) or not bool(before.isfinite().all()):
        return
    raise ModelError(
        f"--dtype: expected one that holds the merged weights, got {name} with values beyond "
        f"{str(after.dtype).removeprefix('torch.')}; choose bfloat16 or float32"
    )


# -- what lies beside the weights ----------------------------------------------------------------


def _beside(folder: Path) -> list[Path]:
    """The base's other files that a merged model keeps."""
    names = ("config.json", "generation_config.json", INDEX, *portable.TOKENIZER_FILES)
    paths = [folder / name for name in names]
    paths += [path for pattern in _TERMS for path in folder.glob(pattern)]
    paths += [path for name in portable.TEMPLATE_FOLDERS for path in (folder / name).glob("*")]
    return sorted({path for path in paths if path.is_file()})


def _write_configs(base: BaseModel, folder: Path, part: Path, dtype: str | None) -> None:
    ends = end_ids(base)
    before = portable.read_json(folder / "config.json")
    config = portable.model_config(before, ends, dtype)
    portable.write_json(part / "config.json", config)
    generation = portable.read_json(folder / "generation_config.json")
    portable.write_json(
        part / "generation_config.json", portable.generation_config(generation, before, ends)
    )
    portable.copy_tokenizer(folder, part, other_template(base, folder))
    for pattern in _TERMS:
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, part / path.name)


def other_template(base: BaseModel, folder: Path) -> str | None:
    """The chat template that was used instead of the tokenizer's own; None where that one was."""
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(folder, local_files_only=True).chat_template
    used = base.tokenizer.chat_template
    return None if used == own else str(used)


def _card(named: str, base: BaseModel, state: AdapterState, merged: Merged) -> str:
    note = f" ({base.note})" if base.note else ""
    words = merged.in_words()
    ends = base.tokenizer.convert_ids_to_tokens(list(end_ids(base)))
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [merge, federated-learning, fedshield]",
            "---",
            f"# {named}{note} with a FedShield adapter merged in",
            "",
            f"- Base model sha256: {base.sha256}",
            f"- Adapter sha256 (FedShield's digest): {state.sha256()}",
            f"- {words[0].upper()}{words[1:]}.",
            f"- An answer ends with: {', '.join(f'`{token}`' for token in ends)}.",
            "- Weights, tokenizer and settings are the base's but for that; the folder loads in",
            "  transformers 4.57 and 5.",
            "",
        ]
    )
