"""The examples in docstrings, run; and which functions must have one, or say what they take."""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fedshield"
#: Rooms in which every public pure function has an example, and none may come without one.
SHOWN = ("plan", "crypto", "ledger", "seeds.py", "checks.py", "certificates.py", "report/units.py")
#: Rooms in which every public function with three or more parameters says what they are.
EXPLAINED = ("crypto", "ledger", "enrolment", "recovery")
#: What the parameters and results of a pure function are made of.
PLAIN = {
    *("int", "float", "str", "bytes", "bool", "None", "object", "Any", "Literal"),
    *("tuple", "list", "dict", "set", "frozenset", "Sequence", "Mapping", "Collection", "Iterable"),
    *("Int64", "Float32", "Float64", "UInt8", "UInt64", "NDArray", "np", "ndarray"),
    *("Batches", "Cut", "Membership", "Server"),
}
#: Decorators of what is compiled: `reference.py` has the same functions in numpy.
COMPILED = {"jit", "inline", "intrinsic"}
ELSEWHERE = "See reference.py."


def files(*rooms: str) -> list[Path]:
    """The sources of rooms: folders, or single files."""
    places = [SOURCE / room for room in rooms]
    assert all(place.exists() for place in places)
    return sorted(
        path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))
    )


WITH_EXAMPLES = [path for path in files(".") if ">>> " in path.read_text()]


@pytest.mark.parametrize(
    "path", WITH_EXAMPLES, ids=[str(path.relative_to(SOURCE)) for path in WITH_EXAMPLES]
)
def test_the_examples_of_a_module_hold(path: Path) -> None:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    result = doctest.testmod(importlib.import_module(".".join(parts)))
    assert result.attempted > 0
    assert result.failed == 0


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions, and methods of public classes, whose names do not begin with '_'."""

    def within(nodes: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in nodes:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from within(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                decorators = {ast.unparse(each).split("(")[0] for each in node.decorator_list}
                if not decorators & COMPILED:
                    yield prefix + node.name, node

    yield from within(ast.parse(path.read_text()).body, "")


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    given = function.args
    rest = [given.vararg] if given.vararg else []
    every = [*given.posonlyargs, *given.args, *rest, *given.kwonlyargs]
    return [one for one in every if one.arg not in ("self", "cls")]


def names_in(annotation: ast.expr | None) -> set[str]:
    nodes = ast.walk(annotation) if annotation is not None else ()
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def is_pure(name: str, function: ast.FunctionDef) -> bool:
    """Plain values in and out. What writes into an `out` has nothing to show in a line."""
    given = parameters(function)
    if "." in name or any(one.arg == "out" for one in given):
        return False
    if function.returns is None or ast.unparse(function.returns) == "None":
        return False
    annotations = [*(one.annotation for one in given), function.returns]
    return set[str]().union(*map(names_in, annotations)) <= PLAIN


def line_of(path: Path, name: str, function: ast.FunctionDef) -> str:
    return f"{path.relative_to(SOURCE)}:{function.lineno} {name}"


def test_pure_functions_have_an_example() -> None:
    """Rule 11 of the house. A room that is done goes into `SHOWN`, and stays done."""
    missing = [
        line_of(path, name, function)
        for path in files(*SHOWN)
        for name, function in public_functions(path)
        if is_pure(name, function)
        and ">>> " not in (doc := ast.get_docstring(function) or "")
        and doc != ELSEWHERE
    ]
    assert not missing, "\n".join(missing)


def test_functions_of_three_parameters_say_what_they_take() -> None:
    """Rule 5 of the house. A room that is done goes into `EXPLAINED`, and stays done."""
    missing = []
    for path in files(*EXPLAINED):
        for name, function in public_functions(path):
            given = [one.arg for one in parameters(function)]
            doc = ast.get_docstring(function) or ""
            if len(given) < 3 or doc == ELSEWHERE:
                continue
            section = doc.partition("\nArgs:\n")[2]
            told = [one for one in given if f"{one}:" in section or f"{one}," in section]
            if told != given:
                missing.append(f"{line_of(path, name, function)}: {sorted({*given} - {*told})}")
    assert not missing, "\n".join(missing)


def test_the_search_would_find_one() -> None:
    """Control: a pure function, and one that only looks like it."""
    (pure,) = ast.parse("def double(number: int) -> int: return 2 * number").body
    (not_pure,) = ast.parse("def size(path: Path) -> int: return path.stat().st_size").body
    assert isinstance(pure, ast.FunctionDef)
    assert isinstance(not_pure, ast.FunctionDef)
    assert is_pure("double", pure)
    assert not is_pure("size", not_pure)
    assert not is_pure("Number.double", pure)
