"""Reading a plan: YAML, overrides, and errors that name the key, the value and the way out."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from fedshield.errors import PlanError
from fedshield.plan import SCHEME_PARAMETERS, Plan

#: What people coming from other tools type first, and where it lives here.
_ALIASES = {
    "lr": "training.learning_rate",
    "epochs": "rounds and training.steps",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "max_seq_length": "training.max_length",
    "sequence_length": "training.max_length",
    "clients": "data.sites",
    "num_clients": "data.num_sites",
    "num_rounds": "rounds",
    "device": "speed.device",
    "load_in_8bit": "model.quantization",
    "load_in_4bit": "model.quantization",
}


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-4 as a number (YAML 1.2)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            line = key_node.start_mark.line + 1
            raise PlanError(f"line {line}: expected a text key, got {key!r}; put it in quotes")
        if key in seen:
            raise PlanError(
                f"line {key_node.start_mark.line + 1}: key '{key}' is given twice; keep one of them"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise PlanError(f"{where}{line}: expected YAML, but {problem}; mend the file") from None


def load_plan(path: Path, overrides: Sequence[str] = ()) -> tuple[Plan, list[str]]:
    """Read, override and check a plan.

    `overrides` are `key.path=value` texts, the value read as YAML. Returns the plan and notes
    to show the user. Raises `PlanError`.
    """
    if path.is_dir():
        raise PlanError(f"{path}: expected a plan file (YAML), got a folder; name the file in it")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(f"{path}: expected a plan file, found none; check the path") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path}: expected YAML text in UTF-8, got other bytes") from None
    except OSError as error:
        raise PlanError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    raw = _parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        kind = "an empty file" if raw is None else type(raw).__name__
        raise PlanError(f"{path}: expected a mapping of plan keys, got {kind}; see examples/")
    notes = _apply_overrides(raw, overrides)
    return parse_plan(raw, base_dir=path.resolve().parent), notes


def parse_plan(raw: dict[str, Any], *, base_dir: Path) -> Plan:
    """Check a mapping as a plan. Raises `PlanError` with one line about the first problem."""
    try:
        # Through JSON, so that strict types mean the same for lists, tuples and YAML scalars.
        plan = Plan.model_validate_json(json.dumps(raw, allow_nan=True, default=str))
    except ValidationError as error:
        raise PlanError(_explain(error, raw)) from None
    return plan.with_base_dir(base_dir)


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    notes: list[str] = []
    paths: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PlanError(f"--set {text}: expected KEY=VALUE, as in --set training.steps=4")
        paths[key] = _parse_yaml(value, f"--set {key}")
    for key, value in paths.items():
        target: Any = raw
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[last] = value
    scheme = raw.get("scheme")
    if "scheme.name" in paths and "scheme.parameters" not in paths and isinstance(scheme, dict):
        old = scheme.get("parameters")
        if old is not None and old not in SCHEME_PARAMETERS.get(str(scheme.get("name")), ()):
            scheme["parameters"] = None
            notes.append(f"scheme.parameters={old} belongs to another scheme and was dropped")
    return notes


# -- explaining ----------------------------------------------------------------------------


def _explain(error: ValidationError, raw: dict[str, Any]) -> str:
    problems = error.errors(include_url=False)
    # An unknown key explains more than the missing one that it was meant to be.
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    loc = tuple(str(part) for part in first["loc"] if part != "[key]")
    key = ".".join(loc)
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key (value {_short(first['input'])}); {_nearest(loc)}{more}"
    if kind == "missing":
        return f"{key}: expected a value, got nothing; add the key{more}"
    if kind == "value_error":
        name, _, rest = str(context["error"]).partition("|")
        value, _, expected = rest.partition("|")
        full = ".".join([*loc, name]) if name else key
        return f"{full}: expected {expected}, got {value}{more}"
    if loc and loc[-1] and "[key]" in [str(part) for part in first["loc"]]:
        return (
            f"{'.'.join(loc[:-1])}: expected a site name of small letters, digits and dashes "
            f"(at most 31), got {_short(loc[-1])}; rename the site{more}"
        )
    expected = _expected(kind, context, first["msg"])
    return f"{key}: expected {expected}, got {_short(first['input'])}{more}"


def _expected(kind: str, context: dict[str, Any], message: str) -> str:
    simple = {
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "some text",
        "model_type": "a mapping of keys",
        "model_attributes_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "tuple_type": "a list",
    }
    if kind in simple:
        return simple[kind]
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    bounds = {
        "greater_than": ">",
        "greater_than_equal": ">=",
        "less_than": "<",
        "less_than_equal": "<=",
    }
    if kind in bounds:
        limit = next(iter(context.values()))
        return f"a number {bounds[kind]} {limit}"
    if kind == "too_short":
        return f"at least {context['min_length']} entries"
    return message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        yield (*prefix, name)
        for section in _sections(info.annotation):
            yield from _keys(section, (*prefix, name))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _sections(part)]


def _nearest(loc: tuple[str, ...]) -> str:
    level: list[type[BaseModel]] = [Plan]
    for part in loc[:-1]:
        found = [
            section
            for model in level
            if part in model.model_fields
            for section in _sections(model.model_fields[part].annotation)
        ]
        level = found or level  # a site name or list index stays on its section
    if loc[-1].lower() in _ALIASES:
        return f"did you mean {_ALIASES[loc[-1].lower()]}?"
    here = sorted({name for model in level for name in model.model_fields})
    close = difflib.get_close_matches(loc[-1], here, n=1, cutoff=0.6)
    if close:
        return f"did you mean {'.'.join([*loc[:-1], close[0]])}?"
    everywhere = {path[-1]: ".".join(path) for path in _keys(Plan)}
    close = difflib.get_close_matches(loc[-1], list(everywhere), n=1, cutoff=0.75)
    if close:
        return f"did you mean {everywhere[close[0]]}?"
    return f"expected one of {', '.join(here)}"
