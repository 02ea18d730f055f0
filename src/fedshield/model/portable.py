"""The JSON files of a model folder, so that transformers 4 and 5 read the same model from them.

A merged model starts from the base's own files, byte for byte. What transformers 5 writes in a new
way only is written in the old way too: transformers 4 (4.57, which most servers bundle) would take
defaults for it without a word.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Fields = dict[str, Any]

#: Files of a tokenizer, by name; `chat_template.*` is among them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
#: Folders of further chat templates.
TEMPLATE_FOLDERS = ("additional_chat_templates",)
#: What transformers 5 leaves in tokenizer_config.json of how the tokenizer was loaded.
_LEAKED = ("is_local", "local_files_only", "backend")
#: What transformers 4 calls base and share of a partial rotation, where it has names of its own.
_ROPE_NAMES = {
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
}
#: Keys that transformers 5 writes by another name than 4 reads: model_type -> new -> old.
_EXPERTS = {"num_local_experts": "num_experts"}
_RENAMED = {
    "qwen3_moe": _EXPERTS,
    "qwen3_vl_moe_text": _EXPERTS,
    "qwen3_omni_moe_text": _EXPERTS,
}


def read_json(path: Path) -> Fields:
    """The object in a JSON file; {} where there is none."""
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return fields if isinstance(fields, dict) else {}


def write_json(path: Path, fields: Fields) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_config(config: Fields, end_ids: Sequence[int], dtype: str | None) -> Fields:
    """`config.json` of a merged model from its base's: `end_ids` end an answer, `dtype` is the
    weights' (None: as the base says), and each rotary setting stands under both names."""
    fields: Fields = _section({key: _section(value, dtype) for key, value in config.items()}, dtype)
    if end_ids:
        fields["eos_token_id"] = _one_or_more(end_ids)
        for section in fields.values():
            if isinstance(section, dict) and section.get("eos_token_id") is not None:
                section["eos_token_id"] = _one_or_more(end_ids)
    return fields


def _section(fields: Any, dtype: str | None) -> Any:
    """One level of a config: the model's own, or the one of its language part."""
    if not isinstance(fields, dict) or "model_type" not in fields:
        return fields
    named = dtype or fields.get("dtype") or fields.get("torch_dtype")
    renamed = _RENAMED.get(fields["model_type"], {})
    old_names = {old: fields[new] for new, old in renamed.items() if new in fields}
    old_names = {key: value for key, value in old_names.items() if key not in fields}
    old_names |= _old_rope(fields)
    return {**fields, **old_names, **({"dtype": named, "torch_dtype": named} if named else {})}


def _old_rope(fields: Fields) -> Fields:
    """Rotary settings as transformers 4 names them, where `fields` has them the new way only."""
    rope = fields.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    theta, share = _ROPE_NAMES.get(fields["model_type"], ("rope_theta", "partial_rotary_factor"))
    full = rope
    old: Fields = {}
    if isinstance(rope.get("full_attention"), dict):  # settings for each type of layer
        full = rope["full_attention"]
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and "rope_theta" in local:
            old["rope_local_base_freq"] = local["rope_theta"]
    if "rope_theta" in full:
        old[theta] = full["rope_theta"]
    if "partial_rotary_factor" in full:
        old[share] = full["partial_rotary_factor"]
    kind = full.get("rope_type", "default")
    if kind != "default":
        left = {key: value for key, value in full.items() if key != "rope_theta"}
        old["rope_scaling"] = left
    return {key: value for key, value in old.items() if fields.get(key) is None}


def generation_config(base: Fields, config: Fields, end_ids: Sequence[int]) -> Fields:
    """`generation_config.json` from the base's, or from its config where it has none."""
    fields = dict(base)
    if not fields:
        names = ("bos_token_id", "pad_token_id")
        fields = {name: config[name] for name in names if config.get(name) is not None}
    if end_ids:
        fields["eos_token_id"] = _one_or_more(end_ids)
    return fields


def _one_or_more(ids: Sequence[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def copy_tokenizer(base: Path, out: Path, template: str | None) -> None:
    """The tokenizer's files of folder `base` in `out`. `template`: the chat template that was used
    instead of the tokenizer's own; None where that one was."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    for name in TEMPLATE_FOLDERS:
        if template is None and (base / name).is_dir():
            shutil.copytree(base / name, out / name)
    path = out / "tokenizer_config.json"
    before = read_json(path)
    fields = _tokenizer_config(before)
    if template is not None:
        for name in ("chat_template.jinja", "chat_template.json"):
            (out / name).unlink(missing_ok=True)
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
        fields["chat_template"] = template
    if fields != before:
        write_json(path, fields)


def _tokenizer_config(fields: Fields) -> Fields:
    """With what transformers 4 can read: it knows no `TokenizersBackend`, and takes a list of
    extra tokens for an error."""
    fields = {key: value for key, value in fields.items() if key not in _LEAKED}
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = fields.get("extra_special_tokens")
    if isinstance(extra, list):
        del fields["extra_special_tokens"]
        if extra:
            fields.setdefault("additional_special_tokens", extra)
    return fields
