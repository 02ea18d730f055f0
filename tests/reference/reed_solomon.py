"""Decoding by trying every choice of as many values as fix a codeword, to compare with."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from reference.shamir import through


def nearest(
    points: tuple[int, ...], values: list[int], dimension: int, prime: int
) -> frozenset[int] | None:
    """Places off the codeword within floor((m - T) / 2), if there is one: every codeword that T
    values lie on is looked at, and any nearer one has more than T."""
    radius = (len(points) - dimension) // 2
    for chosen in combinations(range(len(points)), dimension):
        known = [(points[place], values[place]) for place in chosen]
        off = frozenset(
            place for place, x in enumerate(points) if through(known, x, prime) != values[place]
        )
        if len(off) <= radius:
            return off
    return None


def search(columns: dict[int, tuple[int, ...]], threshold: int, prime: int) -> Any:
    """The sum and whose answers are wrong, by trying every T; None if none is near enough."""
    for chosen in combinations(columns, threshold):

        def column(slot: int, x: int, chosen: Any = chosen) -> int:
            return through([(one + 1, columns[one][slot]) for one in chosen], x, prime)

        slots = range(len(next(iter(columns.values()))))
        wrong = {
            one
            for one, row in columns.items()
            if tuple(column(slot, one + 1) for slot in slots) != row
        }
        if len(wrong) <= (len(columns) - threshold) // 2:
            return tuple(column(slot, 0) for slot in slots), frozenset(wrong)
    return None
