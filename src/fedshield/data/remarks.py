"""What of a source was not used, or not as it stands: counted while it is read, said in sentences.

A column, key or turn of a row that carries meaning is used, named, or refused: never dropped in
silence. `data.unused: refuse` makes an error of the first that is not used.
"""

from __future__ import annotations

import math
from typing import Any

from fedshield.errors import DataError

#: Sentences on columns and keys that are said in full; further ones share a sentence.
MOST_NAMED = 20


class Remarks:
    """Counts what is not used of one site's sources. `refuse`: the first is a `DataError`."""

    def __init__(self, *, refuse: bool = False) -> None:
        self._refuse = refuse
        self._unused: dict[str, int | None] = {}
        self._others: dict[str, tuple[int, str]] = {}
        self._sentences: list[str] = []

    def unused(self, name: str, where: str, rows: int | None = 1) -> None:
        """`name`, a column or a key, carries meaning in `rows` rows more and is not used. `rows`:
        None where nobody counted. Raises `DataError` if the plan refuses that."""
        if self._refuse:
            raise DataError(
                f"{where}: expected every column and key to be used (data.unused: refuse), got "
                f"{name}, which is not; take it out, name it in columns, or set data.unused: note"
            )
        before = self._unused.get(name, 0)
        self._unused[name] = None if before is None or rows is None else before + rows

    def row(self, what: str, where: str) -> None:
        """One row more of which `what` is true."""
        count, first = self._others.get(what, (0, where))
        self._others[what] = (count + 1, first)

    def say(self, sentence: str) -> None:
        """A remark that counts no rows."""
        self._sentences.append(sentence)

    def sentences(self) -> tuple[str, ...]:
        """Every remark, once."""
        unused = [f"{name} not used{_rows(count)}" for name, count in self._unused.items()]
        if len(unused) > MOST_NAMED:
            rest = list(self._unused)[MOST_NAMED:]
            unused = [*unused[:MOST_NAMED], f"also not used: {', '.join(rest)}"]
        others = [
            f"{what}{_rows(count)[:-1]}, first {first})"
            for what, (count, first) in self._others.items()
        ]
        return tuple(dict.fromkeys([*self._sentences, *unused, *others]))


def _rows(count: int | None) -> str:
    if count is None:
        return ""
    return f" ({count:,} row{'' if count == 1 else 's'})"


def carries_meaning(value: Any) -> bool:
    """Whether a value says anything: not null, not NaN, no blank text, no empty list or object."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple | dict | bytes):
        return len(value) > 0
    return True


def named(kind: str, name: object) -> str:
    """A column or key as a sentence names it, such as "column `category`"."""
    text = "".join(c if c.isprintable() else "?" for c in str(name))[:60]
    return f"{kind} `{text}`"
