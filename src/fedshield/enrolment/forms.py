"""The keys of a file of enrolment, by pydantic, and what a wrong one is answered with.

Each kind of file has its `Form` beside what it is read for. A form has the types of the keys alone:
whether a name, a number or a signature is a good one, the value that is made of it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, FailFast, Field, Strict, ValidationError
from pydantic.fields import FieldInfo

from fedshield.enrolment.files import RosterError
from fedshield.errors import InvalidKey
from fedshield.plan.data import Section
from fedshield.plan.explain import Problem, first_problem, shown

_OBJECT = "an object with keys"
Item = TypeVar("Item")
#: A list, which JSON has in a tuple's place; its first bad item ends the reading.
Listed = Annotated[tuple[Item, ...], Strict(False), FailFast(), Field(description="a list")]
Text = Annotated[str, Field(description="text")]
WholeNumber = Annotated[int, Field(description="a whole number")]
MaybeNumber = Annotated[int | None, Field(description="a whole number or null")]
Flag = Annotated[bool, Field(description="true or false")]
Texts = Annotated[Listed[str], Field(description="a list of texts")]
TextLists = Annotated[Listed[Texts], Field(description="a list of lists of texts")]


def hexadecimal(size: int) -> Any:
    """Of `size` bytes. pydantic's own reading of bytes takes capitals: two texts for one value."""
    digits = 2 * size
    words = f"{digits} digits of 0-9 and a-f"
    return Field(pattern=f"^[0-9a-f]{{{digits}}}$", description=words)


#: SHA-256 or a public key.
Hex32 = Annotated[str, hexadecimal(32)]
#: An Ed25519 signature, or both keys of a party.
Hex64 = Annotated[str, hexadecimal(64)]
MaybeHex32 = Annotated[Hex32 | None, Field(description="64 digits of 0-9 and a-f")]


def at_most(count: int) -> BeforeValidator:
    """Refuses a longer list before any of its items is read."""

    def check(items: Any) -> Any:
        if isinstance(items, list) and len(items) > count:
            raise InvalidKey("", len(items), f"at most {count}")
        return items

    return BeforeValidator(check)


class Form(Section):
    """The keys of one JSON object of a file. The `description` of a key is what an error says was
    expected there."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """From JSON as Python has it. Raises `RosterError`: the key, and never its value."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _refusal(first_problem(error), cls) from None


def unknown_key(path: Iterable[str | int]) -> RosterError:
    """What to raise for a key that nobody reads. `path`: the keys to it."""
    return RosterError(
        f"{_path(path)!r}: unknown key; all parties need the same version of FedShield, or the "
        "file was changed by hand"
    )


def missing_key(path: Iterable[str | int], expected: str) -> RosterError:
    """What to raise for a key that is not there. `path`: the keys to it."""
    return RosterError(f"{_path(path)}: expected {expected}, found none; ask for the file again")


def _path(keys: Iterable[str | int]) -> str:
    return ".".join(str(key)[:64] for key in keys)


def _refusal(problem: Problem, root: type[BaseModel]) -> RosterError:
    """As `plan.explain.explain`, for whoever cannot change the file, which may hold a secret."""
    if problem.kind == "extra_forbidden":
        return unknown_key(problem.loc)
    keys, expected = _expected(problem.loc, root)
    path = [shown(str(key)) for key in keys]
    if problem.kind == "missing":
        return missing_key(path, expected)
    got = "something else"
    if wrong := problem.invalid:
        expected, got = wrong.expected, wrong.got
    start = f"{_path(path)}: " if path else ""
    return RosterError(f"{start}expected {expected}, got {got}; ask for the file again")


def _expected(
    loc: tuple[str | int, ...], root: type[BaseModel]
) -> tuple[tuple[str | int, ...], str]:
    """What the deepest type on this way that says so wants, and the way to it: a list of texts is
    wrong as a whole, whichever of them is."""
    kind: Any = root
    deepest: tuple[str | int, ...] = ()
    expected = _OBJECT
    for at, part in enumerate(loc):
        kind, words = _within(kind, part)
        if words is not None:
            deepest, expected = loc[: at + 1], words
    return deepest, expected


def _within(kind: Any, part: str | int) -> tuple[Any, str | None]:
    """The type that a type has at this key or place, and its description."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields[str(part)]
        return _bare(field.annotation, field.description)
    values = get_args(kind)[1 if get_origin(kind) is dict else 0]
    return _bare(values, None)


def _bare(kind: Any, words: str | None) -> tuple[Any, str | None]:
    """A type without its annotations and without None; `words` go before its own description."""
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        described = [note.description for note in notes if isinstance(note, FieldInfo)]
        return _bare(kind, words or next(filter(None, reversed(described)), None))
    if get_origin(kind) is UnionType:
        return _bare(next(part for part in get_args(kind) if part is not NoneType), words)
    is_object = get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))
    return kind, words or (_OBJECT if is_object else None)
