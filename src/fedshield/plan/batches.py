"""Batches of sites (`membership: batches`): who is always summed together.

Sums are over whole batches only. Two honest sites of one batch are then in exactly the same sums,
so no combination of sums shows one of them without the other (rule R1, docs/protocol.md). A batch
has at least c + 2 sites, so that two of them are honest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fedshield.errors import PlanError

Batches = tuple[tuple[str, ...], ...]


def cut(names: Iterable[str], max_colluding: int) -> Batches:
    """The sorted names in as many batches of at least c + 2 as there can be, as equal as possible.

    >>> cut("gfedcba", 1)
    (('a', 'b', 'c', 'd'), ('e', 'f', 'g'))
    """
    ordered = sorted(names)
    number = max(1, len(ordered) // (max_colluding + 2))
    size, more = divmod(len(ordered), number)
    ends = [size * place + min(place, more) for place in range(number + 1)]
    return tuple(tuple(ordered[ends[at] : ends[at + 1]]) for at in range(number))


def in_order(batches: Iterable[Iterable[str]]) -> Batches:
    """One form for one cut: names sorted in each batch, batches by their first name.

    >>> in_order([["d", "c"], ["b", "a"]])
    (('a', 'b'), ('c', 'd'))
    """
    return tuple(sorted(tuple(sorted(batch)) for batch in batches))


def check(batches: Batches, names: Collection[str], max_colluding: int) -> None:
    """Whether the batches cut the names.

    Args:
        batches: as they were named.
        names: of all sites.
        max_colluding: c.

    Raises:
        PlanError: unless every name is in exactly one batch, of at least c + 2, and there are two
            batches or more.
    """
    listed = [name for batch in batches for name in batch]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    strange, left = sorted(set(listed) - set(names)), sorted(set(names) - set(listed))
    for what, wrong in (
        ("each site in one batch", f"{', '.join(twice)} in two" if twice else ""),
        ("only sites of the roster", f"{', '.join(strange)} too" if strange else ""),
        ("every site in a batch", f"none for {', '.join(left)}" if left else ""),
        ("at least two batches", "one" if len(batches) < 2 else ""),
    ):
        if wrong:
            raise PlanError(f"batches: expected {what}, got {wrong}; name all sites again")
    least = max_colluding + 2
    small = next((batch for batch in batches if len(batch) < least), None)
    if small is not None:
        raise PlanError(
            f"batches: expected at least c + 2 = {least} sites in each, got {len(small)} "
            f"({', '.join(small)}); put them into a larger one"
        )


def whole(batches: Batches, present: Collection[str]) -> tuple[str, ...]:
    """The sites of those batches that are there with all their sites, by name.

    >>> whole((("a", "b"), ("c", "d")), {"a", "b", "c"})
    ('a', 'b')
    """
    return tuple(sorted(name for batch in batches if set(batch) <= set(present) for name in batch))


def sitting_out(batches: Batches, present: Collection[str]) -> dict[str, str]:
    """Sites that are there while another of their batch is not: site -> why, in words.

    >>> sitting_out((("a", "b"), ("c", "d")), {"a", "b", "c"})
    {'c': 'its batch (c, d) sits out until d is back'}
    """
    found: dict[str, str] = {}
    for batch in batches:
        missing = [name for name in batch if name not in present]
        for name in set(batch) & set(present) if missing else ():
            found[name] = (
                f"its batch ({', '.join(batch)}) sits out until {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} back"
            )
    return dict(sorted(found.items()))


def in_words(batches: Sequence[Sequence[str]]) -> str:
    """The batches as people read them.

    >>> in_words([["a", "b"], ["c", "d"]])
    'a, b; c, d'
    """
    return "; ".join(", ".join(batch) for batch in batches)
