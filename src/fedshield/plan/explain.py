"""What pydantic says of a file, in one line: the key, what was expected, and what is there.

A plan and a policy are their reader's own, and the line shows the value (`explain`). A file of
enrolment can hold a key, and its line shows none (`enrolment.files`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from fedshield.errors import InvalidKey


class Problem(NamedTuple):
    """What pydantic says of one value. `kind`: its name of the mistake; `loc`: keys and places in
    lists, from the root; `num_others`: further problems in the same file."""

    kind: str
    loc: tuple[str | int, ...]
    context: Mapping[str, Any]
    value: object
    message: str
    num_others: int

    @property
    def invalid(self) -> InvalidKey | None:
        """What a check of the section itself said, if it was one."""
        wrong = self.context.get("error")
        return wrong if isinstance(wrong, InvalidKey) else None


def first_problem(error: ValidationError) -> Problem:
    """The problem to tell: an unknown key explains more than the missing one that it was meant to
    be."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    return Problem(
        first["type"],
        first["loc"],
        first.get("ctx", {}),
        first["input"],
        first["msg"],
        len(problems) - 1,
    )


def shown(text: str) -> str:
    """A key or path as it can stand in one line.

    >>> shown("training.steps"), shown("two\\nlines")
    ('training.steps', "'two\\\\nlines'")
    """
    return text if text and text.isprintable() else repr(text)


def short(value: object) -> str:
    """A value of a file in at most 60 characters.

    >>> short("a" * 70)[-5:]
    'aa...'
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def explain(
    error: ValidationError, root: type[BaseModel], aliases: Mapping[str, str] | None = None
) -> str:
    """One line about the first problem: key, expected, got.

    Args:
        error: what pydantic says.
        root: the model that was checked; its keys are proposed for an unknown one.
        aliases: what people type (small letters) -> the key that they mean.

    Returns:
        The line, without the file's name. It shows the value, which must be no secret.
    """
    problem = first_problem(error)
    kind, loc = problem.kind, tuple(str(part) for part in problem.loc)
    key = ".".join(map(shown, loc)) or "plan"
    more = f" ({problem.num_others} more)" if problem.num_others else ""
    if kind == "extra_forbidden":
        got = short(problem.value)
        return f"{key}: unknown key (value {got}); {_nearest(loc, root, aliases or {})}{more}"
    if kind == "missing":
        return f"{key}: expected a value, got nothing; add the key{more}"
    if wrong := problem.invalid:
        fix = f"; {wrong.fix}" if wrong.fix else ""
        full = ".".join([*loc, *([wrong.key] if wrong.key else [])])
        return f"{full}: expected {wrong.expected}, got {wrong.got}{fix}{more}"
    if kind == "string_pattern_mismatch" and loc[-1] == "[key]":  # pydantic's mark, not a key
        return (
            f"{'.'.join(loc[:-2])}: expected a site name of small letters, digits and dashes "
            f"(at most 31), got {short(loc[-2])}; rename the site{more}"
        )
    expected = _expected(kind, problem.context, problem.message)
    return f"{key}: expected {expected}, got {short(problem.value)}{more}"


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
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
        "json_invalid": "keys nested less deeply",
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


def _keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        yield (*prefix, name)
        for section in _sections(info.annotation):
            yield from _keys(section, (*prefix, name))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _sections(part)]


def _nearest(loc: tuple[str, ...], root: type[BaseModel], aliases: Mapping[str, str]) -> str:
    level: list[type[BaseModel]] = [root]
    for part in loc[:-1]:
        found = [
            section
            for model in level
            if part in model.model_fields
            for section in _sections(model.model_fields[part].annotation)
        ]
        level = found or level  # a site name or list index stays on its section
    if loc[-1].lower() in aliases:
        return f"did you mean {aliases[loc[-1].lower()]}?"
    here = sorted({name for model in level for name in model.model_fields})
    close = difflib.get_close_matches(loc[-1], here, n=1, cutoff=0.6)
    if close:
        return f"did you mean {'.'.join([*loc[:-1], close[0]])}?"
    everywhere = {path[-1]: ".".join(path) for path in _keys(root)}
    close = difflib.get_close_matches(loc[-1], list(everywhere), n=1, cutoff=0.75)
    if close:
        return f"did you mean {everywhere[close[0]]}?"
    return f"expected one of {', '.join(here)}"
