"""Reading a plan: YAML and overrides. `explain` has the errors of its keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fedshield.errors import PlanError
from fedshield.plan.effect import without_effect
from fedshield.plan.explain import explain, short, shown
from fedshield.plan.schema import YAML_FLOAT, Plan
from fedshield.plan.sections import RLWE_KEYS, SchemePlan, traits_of

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
    """Safe YAML of what JSON can say: 1e-4 is a number and a date is text, as in YAML 1.2.
    Refused are a key given twice, tags, and aliases (a few of them can stand for gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise PlanError(f"{where}: expected no YAML alias, got *{event.anchor}; write it out")
        if event.tag is not None:
            raise PlanError(f"{where}: expected no YAML tag, got {event.tag!r}; leave it out")
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            line = key_node.start_mark.line + 1
            raise PlanError(f"line {line}: expected a text key, got {short(key)}; put it in quotes")
        if key in seen:
            raise PlanError(
                f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one of them"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(*YAML_FLOAT)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def parse_yaml(text: str, where: str) -> Any:
    """What strict YAML says, see `_Loader`. `where` begins the line of a `PlanError`.

    >>> parse_yaml("{rate: 1e-4, day: 2026-03-01}", "plan.yaml")
    {'rate': 0.0001, 'day': '2026-03-01'}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except PlanError as error:
        raise PlanError(f"{where}, {error}") from None
    except RecursionError:
        raise PlanError(f"{where}: expected YAML, but it is nested too deeply; mend it") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        problem = problem.removeprefix("but ")
        raise PlanError(f"{where}{line}: expected YAML, but {problem}; mend it") from None


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file. `kind`: what it should be, `plan` or `policy`. Raises
    `PlanError`."""
    where = shown(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise PlanError(
            f"{where}: expected a {kind} file (YAML), got a folder; name the file in it"
        ) from None
    except FileNotFoundError:
        raise PlanError(f"{where}: expected a {kind} file, found none; check the path") from None
    except UnicodeDecodeError:
        raise PlanError(
            f"{where}: expected YAML text in UTF-8, got other bytes; convert the file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{where}: cannot be read ({reason}); check the file") from None
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        got = "an empty file" if raw is None else type(raw).__name__
        raise PlanError(f"{where}: expected a mapping of {kind} keys, got {got}; see examples/")
    return raw


def load_plan(path: Path, overrides: Sequence[str] = ()) -> tuple[Plan, list[str]]:
    """Read, override and check a plan.

    `overrides` are `key.path=value` texts, the value read as YAML. Returns the plan and notes
    to show the user. Raises `PlanError`.
    """
    raw = read_mapping(path, "plan")
    notes = _apply_overrides(raw, overrides)
    plan = parse_plan(raw, base_dir=path.resolve().parent)
    return plan, [*notes, *without_effect(plan)]


def parse_plan(raw: dict[str, Any], *, base_dir: Path) -> Plan:
    """Check a mapping as a plan. Raises `PlanError` with one line about the first problem."""
    try:
        # Through JSON, so that strict types mean the same for lists, tuples and YAML scalars.
        plan = Plan.model_validate_json(json.dumps(raw, ensure_ascii=False).encode())
    except ValidationError as error:
        raise PlanError(explain(error, Plan, _ALIASES)) from None
    except (TypeError, ValueError, RecursionError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlanError(
            f"plan: expected text, numbers, lists and mappings, but {problem}; mend it"
        ) from None
    return plan.with_base_dir(base_dir)


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    notes: list[str] = []
    paths: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PlanError(
                f"--set {shown(text)}: expected KEY=VALUE, as in --set training.steps=4"
            )
        for lost in [other for other in paths if f"{other}.".startswith(f"{key}.")]:
            notes.append(
                f"--set {shown(lost)}={_short_text(paths.pop(lost))} is not used: "
                f"--set {shown(key)} comes after it"
            )
        paths[key] = parse_yaml(value, f"--set {shown(key)}")
    for key, value in paths.items():
        target: Any = raw
        *parents, last = key.split(".")
        for parent in parents:
            place = _place(target, parent, key)
            if isinstance(target, dict) and not isinstance(target.get(place), dict | list):
                target[place] = {}
            target = target[place]
        target[_place(target, last, key)] = value
    scheme = raw.get("scheme")
    if "scheme.name" in paths and isinstance(scheme, dict):
        for key in _of_another_scheme(scheme):
            # What was set beside the scheme was meant for it: an error, and not dropped.
            if f"scheme.{key}" not in paths:
                old = shown(str(scheme.pop(key)))
                notes.append(f"scheme.{key}={old} belongs to another scheme and was dropped")
    return notes


def _short_text(value: Any) -> str:
    return short(value) if not isinstance(value, str) else short(value)[1:-1]


def _of_another_scheme(scheme: dict[str, Any]) -> list[str]:
    """Keys with a value that the scheme named beside them does not have."""
    name, found = str(scheme.get("name")), []
    parameters = scheme.get("parameters")
    traits = traits_of(name)
    if parameters is not None and parameters not in traits.parameter_sets:
        found.append("parameters")
    if not traits.one_time_keys:
        fields = SchemePlan.model_fields
        found += [
            key for key in RLWE_KEYS if scheme.get(key, fields[key].default) != fields[key].default
        ]
    return found


def _place(target: Any, part: str, key: str) -> str | int:
    """Where `part` of an override's `key` lies in `target`: a key, or a place in a list."""
    if not isinstance(target, list):
        return part
    if part.isdecimal() and len(part) < 9 and int(part) < len(target):
        return int(part)
    raise PlanError(
        f"--set {shown(key)}: expected a place in a list of {len(target)} (from 0), got "
        f"{shown(part)}; set the whole list"
    )
