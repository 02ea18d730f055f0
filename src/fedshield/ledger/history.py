"""Sums over time: which sites stay hidden when a consortium's rosters change (rule R1).

Every roster cuts its sites into batches (one, where all are summed), and sums are over whole
batches. The *atoms* of several such cuts are their common refinement, where being in no batch is a
place too. Two honest sites of one atom are in exactly the same sums, each at its own fixed ratio,
so no combination of sums holds one of them without the other. An atom that has c + 2 sites, of
which c may collude, has two such sites. So it is enough that every atom is empty or has c + 2 sites
that are not exposed: what an exposed site put in counts as known to everyone, like a colluder's.

Rules for pairs of cuts are not enough: {1, 2, 3} and {4, 5, 6}, then {1..7}, differ by four sites
or three each, and the three sums give site 7 (docs/protocol.md, section 8).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fedshield.ledger.rows import Row

#: Sites, by first keys, batch by batch. Empty for a roster with membership open, which has none.
Cut = tuple[tuple[str, ...], ...]


class Past(NamedTuple):
    """One roster: the SHA-256 of its content, hex ('' in a demonstration), and its batches."""

    roster: str
    cut: Cut


@dataclass(frozen=True)
class History:
    """What a countersigned roster says of itself and of those before it, the oldest first.

    `consortium`: content SHA-256, hex, of the first roster; `signed`: sites whose exposure is
    signed in the roster; `named`: sites that this site's policy exposes; `names`: what people call
    the sites; `gone`: of those who signed and are not in the roster any more, by name, all keys of
    the card that signed. Sites are known by the first key of their card."""

    today: Past = field(default_factory=lambda: Past("", ()))
    earlier: tuple[Past, ...] = ()
    consortium: str = ""
    signed: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    def exposed(self, rows: Sequence[Row]) -> frozenset[str]:
        """Sites that count as open to everyone, for a line of these rows: who once counted so does
        for ever, whatever rosters and policies say later. What was signed in one consortium is
        worth nothing in another one's sums."""
        known = self.named.union(*(row.exposed for row in rows))
        foreign = any(row.consortium != self.consortium for row in rows)
        found = known if foreign else known | self.signed
        return found & {site for cut in self.since(rows) for batch in cut for site in batch}

    def since(self, rows: Sequence[Row]) -> tuple[Cut, ...]:
        """The cuts that bear on a line of these rows: from the first roster that one of them was
        under on, and today's. Records that were in no sum have today's only."""
        places = {past.roster: at for at, past in reversed([*enumerate(self.earlier)])}
        places.setdefault(self.today.roster, len(self.earlier))
        # A roster that is not listed and cut this site's batch as today's does may be older.
        first = min((places.get(row.roster, 0) for row in rows), default=len(self.earlier))
        return tuple(past.cut for past in (*self.earlier[first:], self.today))

    def isolated(self, rows: Sequence[Row], colluding: int) -> tuple[tuple[str, ...], ...]:
        """Atoms with fewer than c + 2 sites that are not exposed, and at least one."""
        return short_atoms(self.since(rows), self.exposed(rows), colluding)

    def call(self, site: str) -> str:
        """What people call a site: its name, or what its first key begins with."""
        return self.names.get(site, site[:16])

    def calls(self, sites: Iterable[str]) -> str:
        return ", ".join(sorted(map(self.call, sites)))


def of_one(batch: Sequence[str]) -> History:
    """The history of a roster that nothing went before, of which this batch is all that counts.

    >>> of_one("ab").today.cut
    (('a', 'b'),)
    """
    return History(Past("", (tuple(batch),)))


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


def undeclared(rows: Sequence[Row], request: Row, history: History) -> Row | None:
    """A row whose batch is no union of batches of the roster that it was under, as that is listed
    here; or that was under a roster that is not listed, and not over today's batch. None for
    none. Then two sites of one atom need not be in the same sums."""
    cuts = {past.roster: past.cut for past in (*history.earlier, history.today) if past.roster}
    for row in rows:
        cut = cuts.get(row.roster)
        if cut is None:
            if set(row.batch) != set(request.batch):
                return row
        elif not _is_whole(cut, set(row.batch)):
            return row
    return None


def _is_whole(cut: Cut, sites: set[str]) -> bool:
    inside = {site for batch in cut if set(batch) <= sites for site in batch}
    return inside == sites


def named_in(history: History, names: Collection[str]) -> History:
    """With the sites that a policy exposes (`exposes`), by their names in any of the rosters."""
    chosen = frozenset(site for site, name in history.names.items() if name in names)
    return replace(history, named=chosen)
