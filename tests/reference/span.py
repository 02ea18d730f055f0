"""The promise across sums, checked exactly: what the span of opened rows gives of one site alone.

It is code of its own, not the product's: an oracle for the rules in `fedshield.ledger.rules`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import TypeVar

S = TypeVar("S", bound=Hashable)
C = TypeVar("C", bound=Hashable)

#: Ranks are taken mod this prime. They are those over the rationals unless a minor that is not 0
#: is a multiple of it, which coefficients below 100 were not chosen for.
PRIME = 2**61 - 1


def isolated(
    rows: Iterable[Mapping[tuple[S, C], int]], noised: Collection[tuple[S, C]] = ()
) -> S | None:
    """A site for which the span of `rows` has a vector that is zero at all other sites and not at
    it; None if there is no such site. `rows`: coefficients by (site, which of its vectors).
    `noised`: vectors that may be seen alone.

    There is one exactly where leaving out the site's columns lowers the rank: of the vectors of the
    span, those that are lost are zero everywhere else.
    """
    known = list(rows)
    columns = sorted({column for row in known for column in row}, key=repr)
    for site in sorted({column[0] for column in columns}, key=repr):
        others = [column for column in columns if column[0] != site]
        hidden = [one for one in columns if one[0] != site or one not in noised]
        if _rank_of(known, others) < _rank_of(known, hidden):
            return site
    return None


def _rank_of(rows: Iterable[Mapping[tuple[S, C], int]], columns: list[tuple[S, C]]) -> int:
    return rank({tuple(row.get(column, 0) for column in columns) for row in rows})


def rank(rows: Iterable[Iterable[int]]) -> int:
    """Of a matrix of integers, by elimination mod `PRIME`."""
    pivots: dict[int, list[int]] = {}
    for row in rows:
        left = [entry % PRIME for entry in row]
        for column in range(len(left)):
            if not left[column]:
                continue
            if column not in pivots:
                inverse = pow(left[column], -1, PRIME)
                pivots[column] = [entry * inverse % PRIME for entry in left]
                break
            factor = left[column]
            left = [
                (entry - factor * above) % PRIME
                for entry, above in zip(left, pivots[column], strict=True)
            ]
    return len(pivots)
