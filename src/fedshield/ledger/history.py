"""Sums over time: which sites stay hidden when a consortium's rosters change (rule R1).

Every roster cuts its sites into batches (one, where all are summed), and sums are over whole
batches. The *atoms* of several such cuts are their common refinement, where being in no batch is a
place too. Two honest sites of one atom are in exactly the same sums, each at its own fixed ratio,
so no combination of sums holds one of them without the other. An atom that has c + 2 sites, of
which c may collude, has two such sites. So it is enough that every atom is empty or has c + 2 sites
that are not exposed: what an exposed site put in counts as known to everyone, like a colluder's.

Rules for pairs of cuts are not enough: {1, 2, 3} and {4, 5, 6}, then {1..7}, differ by four sites
or three each, and the three sums give site 7 (docs/protocol.md, section 8).

The cuts are a chain: each follows one, and one follows each. Were two to follow one cut L, those
who are in neither could be left alone by three sums of which nobody knows all: L = {1..7},
{2, 3, 7} and {4, 5, 6, 7} give site 1, if 7 colludes. So a site that took part under a cut goes on
under one that follows it, once for ever (`not_continued`), and only where a quorum of the sites of
the one before goes on with it, or signed that it goes (`unsupported`): two quorums share an honest
site.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fedshield.ledger.rows import Row

#: Sites, by first keys, batch by batch, in order. Empty for a roster with membership open.
Cut = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class History:
    """What a countersigned roster says of itself and of those before it.

    `cuts`: the oldest first, that of today last; one that is the same as the one before it is not
    there twice. `signed`: sites whose exposure is signed in the roster; `bound`: of each place in
    `cuts`, the sites that signed that they go from it to the next; `named`: sites that this site's
    policy exposes; `names`: what people call the sites. Sites are known by the first key of their
    card."""

    cuts: tuple[Cut, ...] = ()
    signed: frozenset[str] = frozenset()
    bound: Mapping[int, frozenset[str]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)

    def exposed(self) -> frozenset[str]:
        """Sites that count as open to everyone."""
        sites = {site for cut in self.cuts for batch in cut for site in batch}
        return (self.named | self.signed) & sites

    def isolated(self, colluding: int) -> tuple[tuple[str, ...], ...]:
        """Atoms with fewer than c + 2 sites that are not exposed, and at least one."""
        return short_atoms(self.cuts, self.exposed(), colluding)

    def call(self, site: str) -> str:
        """What people call a site: its name, or what its first key begins with."""
        return self.names.get(site, site[:16])

    def calls(self, sites: Iterable[str]) -> str:
        return ", ".join(sorted(map(self.call, sites)))


class Entered(NamedTuple):
    """That a site takes part under a roster: its chain of cuts, for these records. `counted`: from
    which place on this site counts in quorums; `confirmed`: whether it saw that a quorum of each
    cut goes on to the next; `names`: what the sites are called; `recovered`: never."""

    records: frozenset[bytes]
    cuts: tuple[Cut, ...]
    confirmed: bool
    names: Mapping[str, str]
    recovered: bool = False


def chain(cuts: Iterable[Cut]) -> tuple[tuple[Cut, ...], tuple[int, ...]]:
    """Cuts that follow each other, without those that are as the one before them; and the place of
    each of the given ones among these.

    >>> chain([(("a",),), (("a",),), (("b",),)])
    (((('a',),), (('b',),)), (0, 0, 1))
    """
    found: list[Cut] = []
    places: list[int] = []
    for cut in cuts:
        if not found or found[-1] != cut:
            found.append(cut)
        places.append(len(found) - 1)
    return tuple(found), tuple(places)


def of_one(batch: Sequence[str]) -> History:
    """The history of a roster that nothing went before, of which this batch is all that counts.

    >>> of_one("ab").cuts
    ((('a', 'b'),),)
    """
    return History(((tuple(sorted(batch)),),))


def in_order(batches: Iterable[Iterable[str]]) -> Cut:
    """
    >>> in_order(["ca", "b"])
    (('a', 'c'), ('b',))
    """
    return tuple(sorted(tuple(sorted(batch)) for batch in batches))


def atoms(cuts: Iterable[Cut]) -> tuple[tuple[str, ...], ...]:
    """The common refinement of some cuts, in order: sites that are together in all of them.

    >>> atoms([(("a", "b"), ("c", "d")), (("a", "b", "c", "d", "e"),)])
    (('a', 'b'), ('c', 'd'), ('e',))
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for number, cut in enumerate(cuts):
        for cell, batch in enumerate(cut):
            for site in batch:
                places.setdefault(site, []).append((number, cell))
    found: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for site in sorted(places):
        found.setdefault(tuple(places[site]), []).append(site)
    return tuple(sorted(tuple(sites) for sites in found.values()))


def short_atoms(
    cuts: Iterable[Cut], exposed: Collection[str], colluding: int
) -> tuple[tuple[str, ...], ...]:
    """Of each atom that has one to c + 1 sites that are not exposed, those sites.

    Args:
        cuts: of all rosters under which sums were or may be made.
        exposed: sites that count as known to everyone.
        colluding: c, the sites that may collude with the coordinator.

    >>> short_atoms([(("a", "b", "c", "d"),), (("a", "b", "c"),)], (), 1)
    (('d',),)
    >>> short_atoms([(("a", "b", "c", "d"),), (("a", "b", "c"),)], ("d",), 1)
    ()
    """
    hidden = (tuple(site for site in atom if site not in exposed) for atom in atoms(cuts))
    return tuple(sites for sites in hidden if 0 < len(sites) < colluding + 2)


def place(row: Row, cuts: Sequence[Cut]) -> int | None:
    """The first cut that a row can have been under: this site's batch is one of its batches, and
    the sites of the sum are whole batches. None for none."""
    batch = tuple(sorted(row.batch))
    for number, cut in enumerate(cuts):
        if batch in cut and _is_whole(cut, set(row.sites)):
            return number
    return None


def _is_whole(cut: Cut, sites: set[str]) -> bool:
    inside = {site for batch in cut if set(batch) <= sites for site in batch}
    return inside == sites


def undeclared(rows: Sequence[Row], cuts: Sequence[Cut]) -> Row | None:
    """A row that can have been under none of these cuts; None for none. Then two sites of one atom
    need not be in the same sums."""
    return next((row for row in rows if place(row, cuts) is None), None)


def not_continued(entered: Sequence[Entered], cuts: Sequence[Cut]) -> tuple[Cut, ...] | None:
    """The longest chain that this site took part under, if `cuts` do not go on from it; None if
    they do."""
    known = max((one.cuts for one in entered), key=len, default=())
    return None if tuple(cuts[: len(known)]) == known else known


def first_place(rows: Sequence[Row], entered: Sequence[Entered], cuts: Sequence[Cut]) -> int:
    """The first cut of the chain that a site is bound to follow by its ledger: the first that one
    of its rows can have been under, or that it entered; the number of cuts if there is none.
    `rows`, `entered`: those since a ledger was rebuilt, if it was: what it was bound to before is
    not known."""
    places = [number for row in rows if (number := place(row, cuts)) is not None]
    places += [len(one.cuts) - 1 for one in entered]
    return min(places, default=len(cuts))


class Unsupported(NamedTuple):
    """The place of a cut of which fewer than `needed` sites are known to go on to the next."""

    place: int
    found: int
    needed: int


def unsupported(
    history: History, first: int, places: Mapping[str, int], colluding: int, confirmed: int
) -> Unsupported | None:
    """The first step, from `first` on, of which no quorum is seen; None if there is none.

    Args: `places`: of each site of the session, the first cut of the chain that its ledger binds it
    to (`first_place`), as it signed it; `confirmed`: the place up to which this site has seen
    quorums before. A step from or to a roster with membership open has none: there is no cut that
    sums before and after it are over."""
    for number in range(max(first, confirmed), len(history.cuts) - 1):
        sites = {site for batch in history.cuts[number] for site in batch}
        going_on = {site for site in sites if places.get(site, len(history.cuts)) <= number}
        found = len(going_on | (history.bound.get(number, frozenset()) & sites))
        # So many that two such sets share an honest site, which follows one cut only.
        needed = (len(sites) + colluding) // 2 + 1
        if not sites or not history.cuts[number + 1] or found < needed:
            return Unsupported(number, found, needed)
    return None


def named_in(history: History, names: Collection[str]) -> History:
    """With the sites that a policy exposes (`exposes`), by their names in any of the rosters.
    Raises `LookupError` for a name of no site, or of two."""
    chosen = set()
    for name in names:
        sites = [site for site, known in history.names.items() if known == name]
        if len(sites) != 1:
            raise LookupError(name, sites)
        chosen.update(sites)
    return replace(history, named=frozenset(chosen))
