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


class Statement(NamedTuple):
    """What a site signed of a step. `keys`: of its card, the first one first, that which signed
    last; `digest`: SHA-256 of the statement, hex."""

    keys: tuple[bytes, ...]
    digest: str


@dataclass(frozen=True)
class History:
    """What a countersigned roster says of itself and of those before it.

    `cuts`: the oldest first, that of today last; one that is the same as the one before it is not
    there twice. By the place of a cut, for the step from it to the next: `signed`: sites whose
    exposure is signed; `bound`: sites that signed that they go there; `statements`: what was signed
    of either. `named`: sites that this site's policy exposes; `names`: what
    people call the sites. Sites are known by the first key of their card."""

    cuts: tuple[Cut, ...] = ()
    signed: Mapping[int, frozenset[str]] = field(default_factory=dict)
    bound: Mapping[int, frozenset[str]] = field(default_factory=dict)
    statements: Mapping[int, tuple[Statement, ...]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> frozenset[str]:
        """Sites that signed that they are exposed."""
        return frozenset().union(*self.signed.values())

    def exposed(self) -> frozenset[str]:
        """Sites that count as open to everyone."""
        sites = {site for cut in self.cuts for batch in cut for site in batch}
        return (self.named | self.open()) & sites

    def isolated(self, colluding: int) -> tuple[tuple[str, ...], ...]:
        """Atoms with fewer than c + 2 sites that are not exposed, and at least one."""
        return short_atoms(self.cuts, self.exposed(), colluding)

    def namesakes(self) -> tuple[tuple[str, ...], ...]:
        """Sites of these cuts that have one name, two or more: under keys that were lost, or made
        up."""
        named: dict[str, list[str]] = {}
        for site in sorted({site for cut in self.cuts for batch in cut for site in batch}):
            if name := self.names.get(site):
                named.setdefault(name, []).append(site)
        return tuple(tuple(sites) for sites in named.values() if len(sites) > 1)

    def call(self, site: str) -> str:
        """What people call a site: its name, with what its first key begins with where two have
        that name; or that key alone."""
        name = self.names.get(site, "")
        if not name:
            return site[:16]
        namesakes = sum(one == name for one in self.names.values())
        return name if namesakes == 1 else f"{name}@{site[:16]}"

    def calls(self, sites: Iterable[str]) -> str:
        return ", ".join(sorted(map(self.call, sites)))


#: The place of a step, a site's first key, hex, and the digest of what it signed of that step.
Taken = tuple[int, str, str]


class Entered(NamedTuple):
    """That a site takes part under a roster: its chain of cuts, for these records. `asked_from`:
    from which cut on it saw that a quorum goes on to the next, None if it did not yet; `names`:
    what the sites are called; `signed`: those that signed that they are exposed; `taken`: the
    statements that it took, by step and site; `colluding`: the c that the quorums were for."""

    records: frozenset[bytes]
    cuts: tuple[Cut, ...]
    asked_from: int | None
    names: Mapping[str, str]
    signed: frozenset[str]
    taken: frozenset[Taken] = frozenset()
    colluding: int = 0


def chain(cuts: Iterable[Cut]) -> tuple[tuple[Cut, ...], tuple[int, ...]]:
    """Cuts that follow each other, without those that are as the one before them; and the place of
    each of the given ones among these.

    >>> chain([(("a",),), (("a",),), (("b",),)])
    (((('a',),), (('b',),)), (0, 0, 1))
    """
    chained: list[Cut] = []
    places: list[int] = []
    for cut in cuts:
        if not chained or chained[-1] != cut:
            chained.append(cut)
        places.append(len(chained) - 1)
    return tuple(chained), tuple(places)


def of_one(batch: Sequence[str]) -> History:
    """The history of a roster that nothing went before, of which this batch is all that counts.

    >>> of_one("ab").cuts
    ((('a', 'b'),),)
    """
    return History(((tuple(sorted(batch)),),))


def in_order(batches: Iterable[Iterable[str]]) -> Cut:
    """One form for one cut: sites sorted in each batch, batches by their first site.

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
    together: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for site in sorted(places):
        together.setdefault(tuple(places[site]), []).append(site)
    return tuple(sorted(tuple(sites) for sites in together.values()))


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
    """A chain that this site took part under and that `cuts` do not go on from; None if there is
    none."""
    return next((one.cuts for one in entered if tuple(cuts[: len(one.cuts)]) != one.cuts), None)


def signed_late(entered: Sequence[Entered], history: History, own: str) -> frozenset[str]:
    """Sites whose exposure is of a step that the site `own` went on after, and was not there then:
    whoever stole a key that its site had then could sign it. At the step with which `own` went
    itself others sign after it; whom its policy exposes is exposed without a signature. A site that
    lost its key went on under the key of then, which has the same name.

    Args:
        entered: the rosters that the line was under.
        history: what the roster of today says.
        own: first key of the site, hex.

    Returns:
        First keys, hex.
    """
    name = history.names.get(own)
    keys = {own} | {site for site, known in history.names.items() if name and known == name}
    return frozenset(
        site
        for one in entered
        for number in range(_steps_of(one, keys))
        for site in history.signed.get(number, frozenset()) - one.signed - history.named
    )


def _steps_of(entered: Entered, keys: Collection[str]) -> int:
    """The steps of a chain that the site with these first keys was there after: not the last one,
    if it went with that."""
    *_, last = entered.cuts
    went = bool(last) and not any(site in keys for batch in last for site in batch)
    return len(entered.cuts) - 1 - went


def first_place(rows: Sequence[Row], entered: Sequence[Entered], cuts: Sequence[Cut]) -> int:
    """The first cut of the chain that one of these rows can have been under, or that these records
    went on under.

    Args:
        rows: of one line.
        entered: the rosters that the line was under.
        cuts: the chain, the oldest first.

    Returns:
        A place in `cuts`; their number if there is none.
    """
    places = [number for row in rows if (number := place(row, cuts)) is not None]
    places += [len(one.cuts) - 1 for one in entered if tuple(cuts[: len(one.cuts)]) == one.cuts]
    return min(places, default=len(cuts))


def parting(entered: Sequence[Entered], cuts: Sequence[Cut]) -> int:
    """How many of these cuts a site counts for elsewhere: those before which one of its ledger's
    lines went on under another. So it counts once, whatever records it uses. `entered`: of all
    lines."""
    return max((_parting(one.cuts, cuts) for one in entered), default=0)


def _parting(known: Sequence[Cut], cuts: Sequence[Cut]) -> int:
    """Where two chains part, 0 where one is the beginning of the other."""
    pairs = zip(known, cuts, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), 0)


def goes(entered: Sequence[Entered], rows: Sequence[Row], history: History) -> Entered:
    """What a ledger remembers of a site that signs that it goes with the last of these cuts: that
    its records of those before went on under this chain.

    Args:
        entered: all of the ledger.
        rows: all of the ledger.
        history: of the roster that the site goes with.

    Raises:
        LookupError: where some went on under another cut: one only follows another.
    """
    before = history.cuts[:-1]
    if parting(entered, history.cuts):
        raise LookupError
    known = [row.records for row in rows if place(row, before) is not None]
    known += [one.records for one in entered if one.cuts[: len(before)] == before]
    return Entered(
        frozenset[bytes]().union(*known), history.cuts, None, history.names, history.open()
    )


class Unsupported(NamedTuple):
    """The place of a cut of which fewer than `needed` sites are known to go on to the next."""

    place: int
    going_on: int
    needed: int


def unsupported(
    history: History, first: int, places: Mapping[str, int], colluding: int, confirmed: int
) -> Unsupported | None:
    """The first step, from `first` on, of which no quorum is seen; None if there is none. A step
    from or to a roster with membership open has none: there is no cut that sums before and after it
    are over.

    Args:
        history: of the roster in force.
        first: the first cut that these records can have been under.
        places: of each site of the session, the first cut of the chain for which it counts
            (`parting`), as it signed it.
        colluding: c.
        confirmed: the place up to which this site has seen quorums before.
    """
    for number in range(max(first, confirmed), len(history.cuts) - 1):
        sites = {site for batch in history.cuts[number] for site in batch}
        joined = {site for site in sites if places.get(site, len(history.cuts)) <= number}
        going_on = len(joined | (history.bound.get(number, frozenset()) & sites))
        # So many that two such sets share an honest site, which follows one cut only.
        needed = (len(sites) + colluding) // 2 + 1
        if not sites or not history.cuts[number + 1] or going_on < needed:
            return Unsupported(number, going_on, needed)
    return None


def seen_up_to(entered: Sequence[Entered], first: int, colluding: int) -> int:
    """The place up to which quorums were seen before, of each step from `first` on.

    Args:
        entered: the rosters that the line was under.
        first: the first cut that these records can have been under.
        colluding: c that the quorums must hold against.
    """
    asked = ((one.asked_from, len(one.cuts) - 1) for one in entered if one.colluding >= colluding)
    return max((last for start, last in asked if start is not None and start <= first), default=0)


def named_in(history: History, names: Collection[str]) -> History:
    """With the sites that a policy exposes (`exposes`), by their names in any of the rosters, or
    as NAME@KEY, with what the first key begins with. Raises `LookupError` for what fits no site, or
    two: it, and what they are called so."""
    chosen = set()
    for given in names:
        name, _, key = given.partition("@")
        sites = [
            site for site, known in history.names.items() if known == name and site.startswith(key)
        ]
        if len(sites) != 1:
            raise LookupError(given, [f"{name}@{site[:16]}" for site in sites])
        chosen.update(sites)
    return replace(history, named=frozenset(chosen))
