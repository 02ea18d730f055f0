"""An exhaustive model of sums across sessions, runs, plans, kills and restored ledgers.

The last of K sites colludes with the coordinator (c = 1). The worst case of training is taken: what
an honest site puts in is one fixed vector for each version of its part, whatever the base, round,
seed or plan. So an opened sum is a row of coefficients over the honest sites' versions; the
colluder's column is struck out.

One step is one session's sum, or one site restored from a backup of any age (once in a history).
The coordinator chooses the plan, the run's name, the phase and round, where it starts, who is
absent, who is killed before its row or its receipt, who hears the announcement and who takes a
result. The colluder chooses the version that it claims and, by what it puts in and answers, which
of two results each honest site opens. A step asks the project's own functions: `first_refusal`, a
`Ledger` (in memory) for heads, receipts and starts, and the quorums of `quorum.resolve`.

Left out: that a sum is tried at most 8 times (R8), and budgets (R5), which only take steps away. A
session in which no row is written changes only what peers saw, which takes steps away too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from model_sites import COLLUDING, COUNTS, KINDS, Ask, Entry, Site, Sites

from fedshield.errors import ProtocolError
from fedshield.ledger.file import Receipt
from fedshield.protocol import contexts
from reference.span import isolated

#: The sites' and the opened sums' numbers in the model's table: states are many, and small.
State = tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """`violation`: '' or what was violated, and `trace`: the steps that led there."""

    states: int
    transitions: int
    violation: str = ""
    trace: tuple[str, ...] = ()


@dataclass
class Model(Sites):
    """K sites, one of which colludes, and `rounds` rounds of each of `plans` (names of `KINDS`).
    `votes`: Q, None for the default. `backups`: 'between' sessions, or at 'any' time.
    `receipt_heads`: whether a receipt carries the head of the ledger that holds it, so that whoever
    takes the result has seen it."""

    def __post_init__(self) -> None:
        self.honest = tuple(range(self.num_sites - 1))
        self.rules = self.roster.rules
        #: The honest ones of each batch: with membership fixed there is one.
        self.batches = [
            tuple(int(site) for site in batch if int(site) in self.honest)
            for batch in self.roster.batches or (self.roster.names(),)
        ]
        if self.votes is not None:  # fewer than a plan may have
            self.rules = replace(self.rules, votes=self.votes)
        #: Sites that every plan treats alike may be exchanged: the places of each class.
        kinds = [KINDS[plan] for plan in self.plans]
        weighs = any(kind.weights == "private" for kind in kinds)
        classes: dict[object, list[int]] = {}
        for site in self.honest:
            seen = [(site in kind.changed, site in kind.muted) for kind in kinds]
            batch = self.roster.batch(str(site))
            classes.setdefault((*seen, batch, COUNTS[self.num_sites][site] * weighs), []).append(
                site
            )
        self.alike = [places for places in classes.values() if len(places) > 1]
        self.sets = [
            members
            for size in range(1, self.num_sites + 1)
            for members in combinations(range(self.num_sites), size)
            if set(members) & set(self.honest) and self._is_session(members)
        ]

    def _is_session(self, members: Sequence[int]) -> bool:
        """Whether an honest site begins a session with these: of its roster's whole batches."""
        try:
            contexts.check_whole(self.roster, [str(site) for site in members])
        except ProtocolError:
            return False
        return True

    # -- states ----------------------------------------------------------------------------

    def explore(self, limit: int | None = None) -> Outcome:
        """Every state that can be reached, up to the first violation. Raises `RuntimeError` where
        there are more than `limit`."""
        start = (*(self.number(Site()) for _ in self.honest), self.number(frozenset()))
        parents: dict[State, State | None] = {start: None}
        todo = deque([start])
        transitions = 0
        while todo:
            state = todo.popleft()
            for after, _ in self.steps(state):
                transitions += 1
                if after in parents:
                    continue
                parents[after] = state
                if violation := self.violation(after):
                    trace = self._trace(parents, after)
                    return Outcome(len(parents), transitions, violation, trace)
                todo.append(after)
            if limit is not None and len(parents) > limit:
                raise RuntimeError(f"expected at most {limit} states, got {len(parents)}")
        return Outcome(len(parents), transitions)

    def _trace(self, parents: dict[State, State | None], state: State) -> tuple[str, ...]:
        lines: list[str] = []
        while (before := parents[state]) is not None:
            lines.append(next(str(what) for after, what in self.steps(before) if after == state))
            state = before
        return tuple(reversed(lines))

    def _state(self, sites: list[int], opened: int) -> State:
        """One state for all that differ by an exchange of sites that the plans treat alike."""
        if self.alike and all(self.once(self._is_whole, one) for one in (*sites, opened)):
            for places in self.alike:
                ordered = sorted(sites[place] for place in places)
                for place, one in zip(places, ordered, strict=True):
                    sites[place] = one
        return (*sites, opened)

    def _is_whole(self, number: int) -> bool:
        """Whether all sums of a site, or a set of sums, are over whole batches."""
        thing = self._things[number]
        rows = thing.ledger if isinstance(thing, Site) else thing
        return all(
            not 0 < len(set(batch) & set(row.members)) < len(batch)
            for row in rows
            if isinstance(row, Ask)
            for batch in self.batches
        )

    def violation(self, state: State) -> str:
        *numbers, opened = state
        if (alone := self.once(self._alone, opened)) is not None:
            return f"secrecy: site {alone} alone"
        sites = [self._things[number] for number in numbers]
        # Batches that are kept apart may differ: what their sites take is of different sums.
        for batch in self.batches:
            if _doubled(frozenset().union(*(sites[index].taken for index in batch))):
                return "agreement: two results of one sum are installed"
        if any(_doubled(set(site.ledger)) for site in sites):
            return "receipts: a site signed for two results of one sum"
        return ""

    def _alone(self, opened: int) -> int | None:
        return isolated([self.coefficients(ask) for ask in self._things[opened]])

    def coefficients(self, ask: Ask) -> dict[tuple[int, str], int]:
        """The row of an opened sum: (honest site, which of its vectors) -> coefficient."""
        kind = KINDS[ask.plan]
        row = {}
        for site in set(ask.members) & set(self.honest) - kind.muted:
            if ask.base == "crafted" and site != self.honest[-1]:
                continue  # the start mutes all but one
            if not ask.number:
                row[site, "count"] = 1
                continue
            version = "new" if site in kind.changed else "old"
            row[site, version] = COUNTS[self.num_sites][site] if kind.weights == "private" else 1
        return row

    # -- steps -----------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[State, object]]:
        """What can happen next, and what to say of it."""
        *sites, opened = state
        if not any(self._things[site].restored for site in sites):
            for index, site in enumerate(sites):
                for lines, restored in self.once(self._backups, index, site):
                    after = [self.once(self._no_more_backups, one) for one in sites]
                    after[index] = restored
                    yield self._state(after, opened), ("restored", index, "to line", lines)
        for ask in self._asks(sites):
            for after, opens, what in self._session(sites, ask):
                now = self.once(self._with_sum, opened, ask) if opens else opened
                yield self._state(after, now), (*ask, *what)

    def _with_sum(self, opened: int, ask: Ask) -> int:
        return self.number(self._things[opened] | {ask})

    def _asks(self, sites: Sequence[int]) -> Iterator[Ask]:
        places: set[tuple[str, int | str]] = set()
        for site in sites:
            places |= self.once(self._places, site)
        for plan in self.plans:
            private = KINDS[plan].weights == "private"
            claims = (False, True) if KINDS[plan].changed else (False,)
            starts = [(1, ""), (1, "crafted"), *((0, "") for _ in range(private))]
            for base in sorted(str(where) for of, where in places if of == plan):
                if "/" in base:
                    starts.append((base.count("/") + 1, base))
            for run in range(self.runs):
                if run and (plan, run - 1) not in places:
                    continue  # names are alike: the first is used first
                for (number, base), members, claim in product(starts, self.sets, claims):
                    # A tally is over the whole roster where weights are shares of it.
                    is_partial = self.membership == "batches" and len(members) < self.num_sites
                    if number <= self.rounds and (number or not is_partial):
                        yield Ask(plan, run, number, base, members, claim)

    def _places(self, number: int) -> set[tuple[str, int | str]]:
        """The (plan, result) that a site can start from, the (plan, run) that it has rows of."""
        site = self._things[number]
        places = {(row.plan, row.run) for row in site.ledger if isinstance(row, Ask)}
        return places | {(one.plan, one.result) for one in site.taken if one.phase == "round"}

    def _session(
        self, sites: list[int], ask: Ask
    ) -> Iterator[tuple[list[int], bool, tuple[object, ...]]]:
        """What a session of one sum can come to: the sites after it, whether the sum was opened,
        and what to say of it."""
        members = [index for index in self.honest if index in ask.members]
        if ask.base not in ("", "crafted") and not all(
            (ask.plan, ask.base) in self.once(self._places, sites[index]) for index in members
        ):
            return
        joined = list(sites)
        written = {}
        for index in members:
            joined[index] = self.once(self._seen, sites[index])
            entered = self.once(self._enter, index, joined[index], ask)
            if entered is not None:
                written[index] = entered
        for size in range(1, len(written) + 1):
            for writing in combinations(written, size):
                after = list(joined)
                for index in writing:
                    after[index] = written[index]
                if len(writing) == len(members):
                    yield from self._opened(after, ask, members)
                yield after, False, ("rows", writing)

    def _opened(
        self, sites: list[int], ask: Ask, members: Sequence[int]
    ) -> Iterator[tuple[list[int], bool, tuple[object, ...]]]:
        """All uploaded. Some hear the announcement and vote: a sum opens on the votes that the
        quorums ask for, the colluders' among them. Who hears it has seen the others' heads: of one
        alone nobody has. Some of several are as all, of whom some are killed."""
        one = [[index] for index in members] if self.rules.votes <= COLLUDING + 1 else []
        for voting in (*one, members)[: None if len(members) > 1 else 1]:
            heard = list(sites)
            for index in members:
                if set(voting) - {index}:
                    heard[index] = self.once(self._seen, sites[index])
            yield from self._receipts(heard, ask, voting)

    def _receipts(
        self, sites: list[int], ask: Ask, voting: Sequence[int]
    ) -> Iterator[tuple[list[int], bool, tuple[object, ...]]]:
        """Each of `voting` opens one of two results and signs for it, unless it signed for another
        before or is killed first. Then any of those with a certificate take theirs, and with them
        any that signed for another before and opened this one now."""
        path = ask.base or (ask.plan if ask.number else f"tally of {ask.plan}")
        named = [Receipt(ask.plan, ask.phase, ask.number, f"{path}/{place}") for place in (0, 1)]
        # Two results that no ledger knows of are alike.
        is_known = any(named[0] in self._things[site].ledger for site in sites)
        options = [self.once(self._signable, index, sites[index], *named) for index in voting]
        for choice in product(*options):
            first = next((one for one, _ in choice if one is not None), None)
            if first == named[1] and not is_known:
                continue
            signed = list(sites)
            signers: dict[Receipt, list[int]] = {}
            for index, (receipt, after) in zip(voting, choice, strict=True):
                signed[index] = after
                if receipt is not None:
                    signers.setdefault(receipt, []).append(index)
            certified = [
                (receipt, of) for receipt, of in signers.items() if self._is_certified(ask, of)
            ]
            certain = [(index, receipt) for receipt, of in certified for index in of]
            certain += [
                (index, receipt)
                for receipt, _ in certified
                for index in set(voting) - {one for some in signers.values() for one in some}
                if self.once(self._take_certified, index, sites[index], receipt) is not None
            ]
            for size in range(len(certain) + 1):
                for taking in combinations(certain, size):
                    yield self._taken(signed, signers, taking), True, (signers, taking)

    def _is_certified(self, ask: Ask, signers: Sequence[int]) -> bool:
        """Whether these and the colluder, if it is in the sum, are enough."""
        if self.membership == "fixed":
            return len(signers) + COLLUDING >= contexts.least_opened(self.rules)
        colluding = self.num_sites - 1 in ask.members
        return len(signers) + colluding >= contexts.least_opened(self.rules, len(ask.members))

    def _taken(
        self,
        sites: list[int],
        signers: Mapping[Receipt, Sequence[int]],
        taking: Sequence[tuple[int, Receipt]],
    ) -> list[int]:
        after = list(sites)
        for index, receipt in taking:
            if index in signers[receipt]:
                after[index] = self.once(self._take, after[index], receipt)
            else:
                after[index] = self.once(self._take_certified, index, after[index], receipt)
            for other in signers[receipt] if self.receipt_heads else ():
                if other != index:
                    after[other] = self.once(self._seen, after[other])
        return after


def _doubled(lines: Iterable[Entry]) -> bool:
    """Whether there are two receipts for one (plan, phase, round)."""
    keys = [line[:3] for line in lines if isinstance(line, Receipt)]
    return len(set(keys)) < len(keys)
