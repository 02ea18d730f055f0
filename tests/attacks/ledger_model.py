"""An exhaustive model of sums across runs, plans, kills and restores, on the project's own rules.

K sites; the last one colludes with the coordinator (c = 1). The worst case of training is taken: a
site's update is one fixed vector in every sum, whatever the base, round, seed or plan. So an opened
sum is a row of coefficients over the honest sites, and the colluder's column is struck out.

Secrecy: no vector in the rational span of the opened rows is non-zero at exactly one honest site.
Agreement: no two honest sites hold different models of one plan and round.

What the coordinator may do, in every order: name a run, choose an approved plan, start from any
round that a site kept, leave sites out, kill a site after its ledger row was written, have a site
restored from its first backup; the colluder may vote and answer as it likes and shift its own
update, so that a sum has one of two results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, product

from fedshield.ledger import rules
from fedshield.ledger.rows import Consent, Row, Scale

#: Names of what can be switched off, each of which must then be missed.
PARTS = ("batch", "scale", "floors", "once", "certificate", "one receipt", "heads")

#: Of an honest site: run name, plan, round, base, set, receipt (a result, or None).
Entry = tuple[int, str, int, str, frozenset[int], int | None]
Bits = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """An honest site: its ledger, the results that it installed in each run, whether its kit was
    restored from a backup."""

    ledger: frozenset[Entry]
    kept: tuple[Bits, ...]
    restored: bool = False


@dataclass(frozen=True)
class State:
    """`runs`: each run name's plan, or None; `opened`: rows of coefficients; `heads`: what peers
    saw of each site's ledger at a join or a vote."""

    runs: tuple[str | None, ...]
    sites: tuple[Site, ...]
    opened: frozenset[Bits]
    heads: tuple[frozenset[Entry], ...]


@dataclass(frozen=True)
class Outcome:
    states: int
    transitions: int
    complete: bool
    violation: str = ""
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    num_sites: int
    rounds: int
    plans: tuple[str, ...]
    off: frozenset[str] = field(default_factory=frozenset)
    names: int = 2

    @property
    def honest(self) -> int:
        return self.num_sites - 1

    @property
    def votes(self) -> int:
        """T = Q = c + 1."""
        return 2

    @property
    def receipts(self) -> int:
        """Q' = floor((K + c) / 2) + 1."""
        return (self.num_sites + 1) // 2 + 1

    # -- exploring -------------------------------------------------------------------------

    def explore(self, limit: int) -> Outcome:
        """Every state that can be reached, up to the first violation or `limit` states."""
        empty = Site(frozenset(), ((),) * self.names)
        start = State(
            (None,) * self.names,
            (empty,) * self.honest,
            frozenset(),
            (frozenset(),) * self.honest,
        )
        parents: dict[State, tuple[State | None, str]] = {start: (None, "")}
        todo = deque([start])
        transitions = 0
        while todo:
            state = todo.popleft()
            for label, after, violation in self._steps(state):
                transitions += 1
                if violation:
                    trace = (*_trace(parents, state), label)
                    return Outcome(len(parents), transitions, False, violation, trace)
                after = self._canonical(after)
                if after not in parents:
                    if len(parents) >= limit:
                        return Outcome(len(parents), transitions, False)
                    parents[after] = (state, label)
                    todo.append(after)
        return Outcome(len(parents), transitions, True)

    def _canonical(self, state: State) -> State:
        """Honest sites that the plans treat alike may be exchanged: one state stands for all."""
        if {"weights", "mute one", "mute all but one"} & set(self.plans):
            return state
        best = state
        best_key = None
        for order in _orders(self.honest):
            moved = _permuted(state, order, self.num_sites - 1)
            key = repr(_sortable(moved))
            if best_key is None or key < best_key:
                best, best_key = moved, key
        return best

    def _steps(self, state: State) -> Iterator[tuple[str, State, str]]:
        for index, site in enumerate(state.sites):
            if site.ledger and not site.restored:
                backup = Site(frozenset(), ((),) * self.names, restored=True)
                sites = _with(state.sites, index, backup)
                yield (
                    f"site {index} is restored from its first backup",
                    State(state.runs, sites, state.opened, state.heads),
                    "",
                )
        for name in range(self.names):
            plan_of_run = state.runs[name]
            for plan in self.plans if plan_of_run is None else (plan_of_run,):
                runs = (*state.runs[:name], plan, *state.runs[name + 1 :])
                for number in range(1, self.rounds + 1):
                    yield from self._sums(state, runs, name, plan, number)

    def _sums(
        self, state: State, runs: tuple[str | None, ...], name: int, plan: str, number: int
    ) -> Iterator[tuple[str, State, str]]:
        histories = {
            site.kept[name][: number - 1]
            for site in state.sites
            if len(site.kept[name]) >= number - 1
        }
        least = self.num_sites - 1 if "batch" in self.off else self.num_sites
        everyone = range(self.num_sites)
        for history in histories:
            base = "initial" if number == 1 else f"{plan} {history}"
            standing = [
                index
                for index, site in enumerate(state.sites)
                if site.kept[name][: number - 1] == history and len(site.kept[name]) >= number - 1
            ]
            for size in range(least, self.num_sites + 1):
                for members in map(frozenset, combinations(everyone, size)):
                    able = [
                        index
                        for index in standing
                        if self._enters(state, index, name, plan, number, base, members)
                    ]
                    # Who refuses uploads nothing, so a sum needs all of its honest members.
                    if able and members - {self.num_sites - 1} <= set(able):
                        asked = (name, plan, number, base, members)
                        yield from self._votes(state, runs, asked, history, able)

    def _enters(
        self,
        state: State,
        index: int,
        name: int,
        plan: str,
        number: int,
        base: str,
        members: frozenset[int],
    ) -> bool:
        ledger = state.sites[index].ledger
        if "heads" not in self.off:
            mine = {entry[:5] for entry in ledger}
            if not {entry[:5] for entry in state.heads[index]} <= mine:
                return False  # peers remember more than it does
        return self._allowed(index, ledger, (name, plan, number, base, members))

    def _allowed(
        self,
        index: int,
        ledger: frozenset[Entry],
        asked: tuple[int, str, int, str, frozenset[int]],
    ) -> bool:
        return _rules_allow(self.num_sites, self.off, index, ledger, asked)

    def _votes(
        self,
        state: State,
        runs: tuple[str | None, ...],
        asked: tuple[int, str, int, str, frozenset[int]],
        history: Bits,
        able: list[int],
    ) -> Iterator[tuple[str, State, str]]:
        name, plan, number, base, members = asked
        for fates in product(("away", "recorded", "counted"), repeat=len(able)):
            recorded = [index for index, fate in zip(able, fates, strict=True) if fate != "away"]
            counted = [index for index, fate in zip(able, fates, strict=True) if fate == "counted"]
            if not recorded:
                continue
            # The row is written before the upload: a sum is over sites that have written it.
            opens = len(counted) + 1 >= self.votes and members - {self.num_sites - 1} <= set(
                recorded
            )
            seen = tuple(
                known | site.ledger for known, site in zip(state.heads, state.sites, strict=True)
            )
            title = f"run {name} plan {plan} round {number} from {base} over {sorted(members)}"
            if not opens:
                sites = state.sites
                for index in recorded:
                    sites = self._written(sites, index, asked, None)
                after = State(runs, sites, state.opened, seen)
                yield f"{title}: recorded at {recorded}, not opened", after, ""
                continue
            opened = state.opened | {self._row(plan, members)}
            isolated = isolated_site(tuple(sorted(opened)), self.honest)
            secrecy = "" if isolated is None else f"secrecy: site {isolated} is isolated"
            for results in product((0, 1), repeat=len(counted)):
                for installs in product((False, True), repeat=len(counted)):
                    found = self._installed(
                        state, asked, history, recorded, counted, results, installs
                    )
                    if found is None:
                        continue
                    heads = list(seen)
                    for index in counted:
                        heads[index] = heads[index] | found[index].ledger
                    after = State(runs, found, opened, tuple(heads))
                    yield (
                        f"{title}: votes {counted}, results {results}, installs {installs}",
                        after,
                        secrecy or self._disagreement(after),
                    )

    def _written(
        self,
        sites: tuple[Site, ...],
        index: int,
        asked: tuple[int, str, int, str, frozenset[int]],
        receipt: int | None,
    ) -> tuple[Site, ...]:
        site = sites[index]
        old = {entry for entry in site.ledger if entry[:5] == asked}
        kept_receipt = next((entry[5] for entry in old if entry[5] is not None), None)
        entry = (*asked, receipt if kept_receipt is None else kept_receipt)
        return _with(sites, index, Site((site.ledger - old) | {entry}, site.kept, site.restored))

    def _installed(
        self,
        state: State,
        asked: tuple[int, str, int, str, frozenset[int]],
        history: Bits,
        recorded: list[int],
        counted: list[int],
        results: Bits,
        installs: tuple[bool, ...],
    ) -> tuple[Site, ...] | None:
        """The sites after those of `installs` took their result; None if one may not."""
        name, plan, number = asked[:3]
        sites = state.sites
        for index in recorded:
            sites = self._written(sites, index, asked, None)
        for index, result in zip(counted, results, strict=True):
            receipt = result
            if "one receipt" not in self.off:
                earlier = [
                    entry[5]
                    for entry in state.sites[index].ledger
                    if entry[1:3] == (plan, number) and entry[5] is not None
                ]
                receipt = earlier[0] if earlier else result
            sites = self._receipted(sites, index, asked, receipt)
        for index, result, install in zip(counted, results, installs, strict=True):
            if not install:
                continue
            said = {
                other
                for other, site in enumerate(sites)
                if any(entry[1:3] == (plan, number) and entry[5] == result for entry in site.ledger)
            }
            # The colluder says anything.
            if "certificate" not in self.off and len(said) + 1 < self.receipts:
                return None
            kept = list(sites[index].kept)
            kept[name] = (*history, result)
            site = Site(sites[index].ledger, tuple(kept), sites[index].restored)
            sites = _with(sites, index, site)
        return sites

    def _receipted(
        self,
        sites: tuple[Site, ...],
        index: int,
        asked: tuple[int, str, int, str, frozenset[int]],
        receipt: int,
    ) -> tuple[Site, ...]:
        if "one receipt" in self.off:
            site = sites[index]
            old = {entry for entry in site.ledger if entry[:5] == asked}
            ledger = (site.ledger - old) | {(*asked, receipt)}
            return _with(sites, index, Site(ledger, site.kept, site.restored))
        return self._written(sites, index, asked, receipt)

    def _disagreement(self, state: State) -> str:
        held: dict[tuple[str, int], set[Bits]] = {}
        for site in state.sites:
            for name, results in enumerate(site.kept):
                plan = state.runs[name]
                for number in range(1, len(results) + 1):
                    held.setdefault((str(plan), number), set()).add(results[:number])
        split = [key for key, models in held.items() if len(models) > 1]
        return f"agreement: two models of plan {split[0][0]}, round {split[0][1]}" if split else ""

    def _row(self, plan: str, members: frozenset[int]) -> Bits:
        """What each honest site's fixed vector is multiplied by in this sum."""
        row = [int(index in members) for index in range(self.honest)]
        if plan == "weights":
            row = [count(index) * entry for index, entry in enumerate(row)]
        if plan == "mute one":
            row[0] = 0
        if plan == "mute all but one":
            row = [entry if index == self.honest - 1 else 0 for index, entry in enumerate(row)]
        return tuple(row)


def count(index: int) -> int:
    """Rows of an honest site, as its weight counts them; two sites have the same."""
    return (3, 3, 5, 7, 7)[index] if index else 3 + 2


@lru_cache(maxsize=1 << 20)
def _rules_allow(
    num_sites: int,
    off: frozenset[str],
    index: int,
    ledger: frozenset[Entry],
    asked: tuple[int, str, int, str, frozenset[int]],
) -> bool:
    """The project's rules on a site's ledger and a request."""
    rows = [_as_row(num_sites, index, entry[:5]) for entry in sorted(ledger, key=repr)]
    request = _as_row(num_sites, index, asked)
    plan = asked[1]
    examples = 0 if _is_mute(plan, index, num_sites) else 40
    refusals = {
        "batch": lambda: rules.whole_batch(rows, request, Consent()),
        "scale": lambda: rules.one_scale(rows, request),
        "floors": lambda: rules.enough_examples(examples, 8),
        "once": lambda: rules.once(rows, request),
    }
    return not any(refusal() for part, refusal in refusals.items() if part not in off)


def _is_mute(plan: str, index: int, num_sites: int) -> bool:
    return (plan == "mute one" and index == 0) or (
        plan == "mute all but one" and index != num_sites - 2
    )


def _as_row(num_sites: int, index: int, asked: tuple[int, str, int, str, frozenset[int]]) -> Row:
    name, plan, number, base, members = asked
    everyone = tuple(str(site) for site in range(num_sites))
    part = "fewer" if plan == "fewer rows" else "all"
    return Row(
        plan=plan,
        run=str(name),
        phase="round",
        round_number=number,
        base=base,
        own=str(index),
        batch=everyone,
        sites=tuple(str(site) for site in sorted(members)),
        colluding=1,
        membership="fixed",
        scale=Scale("private" if plan == "weights" else "equal", count(index), 1),
        versions=dict.fromkeys(everyone, part),
        content="the same in every sum",
    )


@lru_cache(maxsize=1 << 20)
def isolated_site(rows: tuple[Bits, ...], num_honest: int) -> int | None:
    """The first honest site whose unit vector is in the rational span of `rows`; None if there is
    none. It is exactly where leaving its column out lowers the rank."""
    full = _rank([list(row) for row in rows])
    for site in range(num_honest):
        if _rank([[*row[:site], *row[site + 1 :]] for row in rows]) < full:
            return site
    return None


def _rank(rows: list[list[int]]) -> int:
    matrix = [[Fraction(entry) for entry in row] for row in rows]
    rank = 0
    for column in range(len(matrix[0]) if matrix else 0):
        pivot = next((at for at in range(rank, len(matrix)) if matrix[at][column]), None)
        if pivot is None:
            continue
        matrix[rank], matrix[pivot] = matrix[pivot], matrix[rank]
        for at in range(rank + 1, len(matrix)):
            factor = matrix[at][column] / matrix[rank][column]
            matrix[at] = [
                entry - factor * top for entry, top in zip(matrix[at], matrix[rank], strict=True)
            ]
        rank += 1
    return rank


def _with(sites: tuple[Site, ...], index: int, site: Site) -> tuple[Site, ...]:
    return (*sites[:index], site, *sites[index + 1 :])


@lru_cache(maxsize=8)
def _orders(num_honest: int) -> tuple[tuple[int, ...], ...]:
    from itertools import permutations

    return tuple(permutations(range(num_honest)))


def _permuted(state: State, order: tuple[int, ...], colluder: int) -> State:
    """The state with honest site `order[k]` in place k."""
    place = {old: new for new, old in enumerate(order)} | {colluder: colluder}

    def entries(ledger: frozenset[Entry]) -> frozenset[Entry]:
        return frozenset(
            (*entry[:4], frozenset(place[member] for member in entry[4]), entry[5])
            for entry in ledger
        )

    sites = tuple(
        Site(entries(state.sites[old].ledger), state.sites[old].kept, state.sites[old].restored)
        for old in order
    )
    opened = frozenset(tuple(row[old] for old in order) for row in state.opened)
    heads = tuple(entries(state.heads[old]) for old in order)
    return State(state.runs, sites, opened, heads)


def _sortable(state: State) -> object:
    def entries(ledger: frozenset[Entry]) -> list[object]:
        return sorted(
            (
                (*entry[:4], sorted(entry[4]), -1 if entry[5] is None else entry[5])
                for entry in ledger
            ),
        )

    return (
        [(entries(site.ledger), site.kept, site.restored) for site in state.sites],
        sorted(state.opened),
        [entries(head) for head in state.heads],
    )


def _trace(parents: dict[State, tuple[State | None, str]], state: State) -> tuple[str, ...]:
    labels: list[str] = []
    at: State | None = state
    while at is not None:
        at, label = parents[at]
        labels.append(label)
    return tuple(label for label in reversed(labels) if label)
