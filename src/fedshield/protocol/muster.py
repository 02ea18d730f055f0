"""Who is in a session with membership batches: whole batches, that can stand at one round.

Pure functions of what the sites say; what they decide, every site checks again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedshield.plan.batches import Batches, sitting_out, whole

#: Most parts of a model that are passed on. A site takes no more than its adapter can have.
MAX_PARTS = 1 << 14


@dataclass(frozen=True)
class Muster:
    """`present`: who is in the session, by name; `out`: who is there and is not, and why."""

    present: tuple[str, ...]
    out: dict[str, str]


def muster(
    batches: Batches, rounds: Mapping[str, int], max_colluding: int, only: Collection[str] = ()
) -> Muster:
    """Args: `rounds`: the round that each site which is there stands at; `only`: the sites over
    which the next round must be repeated, if it must.

    The session goes on from the latest round at which c + 1 sites stand, so that one honest site
    vouches for it; a site further on has its batch sit out. Who is behind takes the model.
    """
    out = sitting_out(batches, rounds)
    left = {site: rounds[site] for site in whole(batches, rounds)}
    if only:
        for site in sorted(set(left) - set(only)):
            out[site] = "the next round was begun without its batch, and is repeated so first (R4)"
            del left[site]
    while left:
        standing = Counter(left.values())
        known = [number for number in standing if standing[number] > max_colluding]
        ahead = sorted(site for site in left if left[site] > max(known, default=-1))
        if not ahead:
            break
        for batch in batches:
            if set(batch) & set(ahead):
                for site in set(batch) & set(left):
                    out[site] = (
                        f"its batch sits out: {', '.join(sorted(set(batch) & set(ahead)))} stands "
                        "at a round that too few others have; go on from an earlier one"
                    )
                    del left[site]
    return Muster(tuple(sorted(left)), dict(sorted(out.items())))


def attesting(said: Mapping[str, tuple[int, bytes]], completed_rounds: int) -> tuple[str, ...]:
    """The largest group of sites that attest to one model after this round, by name. `said`: site
    -> the round and the tag that it signed."""
    groups: dict[bytes, list[str]] = {}
    for site, (number, tag) in sorted(said.items()):
        if number == completed_rounds:
            groups.setdefault(tag, []).append(site)
    largest: list[str] = max(groups.values(), key=len, default=[])
    return tuple(largest)
