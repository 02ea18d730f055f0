"""One honest site in the model of sums: what the project's own functions let it do.

A site is a value with a small number, so that the states made of it are small and each question is
asked once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedshield.ledger import entries
from fedshield.ledger.file import FORMAT, KEY_BYTES, Ledger, Receipt
from fedshield.ledger.rows import Row, Scale, Version
from fedshield.ledger.rules import Approval, Terms, first_refusal
from fedshield.plan.quorum import Membership, resolve
from fedshield.protocol.roster import Roster

COLLUDING = 1
ROSTER = "roster"
FLOOR = 8
RECORDS = frozenset({b"a record"})
#: Rows that the honest sites count for under `private` weights: the first two alike.
COUNTS = {3: (3, 5), 4: (3, 3, 5), 6: (3, 3, 5, 3, 5)}


class Kind(NamedTuple):
    """What a plan asks of the sites. `changed`: whose part is another version under it; `worded`:
    whether it also changes a word in every site's rows, which changes no update; `muted`: whose
    part has too few rows, so that it puts in nothing."""

    weights: str = "equal"
    changed: frozenset[int] = frozenset()
    worded: bool = False
    muted: frozenset[int] = frozenset()


KINDS = {
    "first": Kind(),
    "again": Kind(),
    "weights": Kind(weights="private"),
    "one changed": Kind(changed=frozenset({0})),
    "one changed, all worded": Kind(changed=frozenset({0}), worded=True),
    "all changed": Kind(changed=frozenset({0, 1, 2})),
    "one muted": Kind(muted=frozenset({0})),
}


def _version(records: str, worded: bool) -> Version:
    return Version(records, f"{records}, worded" if worded else records)


class Ask(NamedTuple):
    """A sum. `number`: the round, 0 for the tally of weights; `base`: the result it starts from, ''
    for the plan's own start; `claim`: whether the colluder says that its part changed."""

    plan: str
    run: int
    number: int
    base: str
    members: tuple[int, ...]
    claim: bool

    @property
    def phase(self) -> str:
        return "round" if self.number else "weights"


class Certified(NamedTuple):
    """A result that a site took by the receipts of others, its own being for another."""

    kind: str
    result: Receipt


#: A line of a site's ledger: a row, the result that a receipt was signed for, or one that was taken
#: without.
Entry = Ask | Receipt | Certified
Chain = tuple[Entry, ...]


class Site(NamedTuple):
    """An honest site. `ledger`: its lines; an honest peer has seen the head after the first `seen`
    of them, which are sorted, since no rule asks for their order. `taken`: what it installed, and
    can start from. `seen` is -1 once a site was restored; `restored`: whether this one was."""

    ledger: Chain = ()
    taken: frozenset[Receipt] = frozenset()
    seen: int = 0
    restored: bool = False


class MemoryLedger(Ledger):
    """A ledger whose lines are not written to disk."""

    def __init__(self) -> None:
        super().__init__(Path("memory"), -1)
        self._append({"kind": "begun", "format": FORMAT, "record_key": "00" * KEY_BYTES})

    def _append(self, entry: dict[str, Any]) -> None:
        entry = json.loads(json.dumps(entry))
        self._apply(entry, self._digest(entry))


@dataclass
class Sites:
    """The honest sites of K, of which one colludes, and what `plans` (names of `KINDS`) ask of
    them. `membership`: 'batches' are the roster's own cut of the sites in order."""

    num_sites: int
    rounds: int
    plans: tuple[str, ...]
    runs: int = 2
    votes: int | None = None
    backups: Literal["between", "any"] = "between"
    receipt_heads: bool = True
    membership: Membership = "fixed"
    _things: list[Any] = field(default_factory=list)
    _numbers: dict[Any, int] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def roster(self) -> Roster:
        rules = resolve(self.num_sites, max_colluding=COLLUDING, membership=self.membership)
        keys = {str(site): bytes([site]) * 32 for site in range(self.num_sites)}
        return Roster(keys, b"\xff" * 32, rules, demo=True)

    def number(self, thing: Any) -> int:
        if (known := self._numbers.get(thing)) is None:
            known = self._numbers[thing] = len(self._things)
            self._things.append(thing)
        return known

    def once(self, ask: Callable[..., Any], *given: Any) -> Any:
        """What `ask` gives, asked once: the same few sites are in many states."""
        key = (ask.__name__, *given)
        if key not in self._known:
            self._known[key] = ask(*given)
        return self._known[key]

    def _seen(self, number: int) -> int:
        """A site whose ledger's head an honest peer has seen, while that can come to matter."""
        site = self._things[number]
        ledger = tuple(sorted(site.ledger, key=lambda line: (len(line), line)))
        return self.number(site._replace(ledger=ledger, seen=-1 if site.seen < 0 else len(ledger)))

    def _no_more_backups(self, number: int) -> int:
        ledger = self._things[self._seen(number)].ledger
        return self.number(self._things[number]._replace(ledger=ledger, seen=-1))

    def _backups(self, index: int, number: int) -> list[tuple[int, int]]:
        """The number of lines and the site, for each backup that nobody finds out. Who is found out
        is in no further sum; nor then is anybody else, by R1."""
        site = self._things[number]
        found = []
        for lines in range(len(site.ledger)):
            if self.backups == "between" and not isinstance(site.ledger[lines], Ask):
                continue  # a session writes its row before each receipt
            ledger = site.ledger[:lines]
            seen = self.ledger(index, site.ledger[: site.seen])
            if not self.ledger(index, ledger).holds(seen.head):
                continue
            known = {one for one in ledger if isinstance(one, Receipt)}
            known |= {one.result for one in ledger if isinstance(one, Certified)}
            restored = self._no_more_backups(self.number(Site(ledger, site.taken & known)))
            restored = self.number(self._things[restored]._replace(restored=True))
            found.append((lines, restored))
        return found

    def _enter(self, index: int, number: int, ask: Ask) -> int | None:
        """The site with the row written; None if it refuses."""
        site = self._things[number]
        ledger, kind = self.ledger(index, site.ledger), KINDS[ask.plan]
        terms = Terms(
            min_examples=FLOOR,
            examples=FLOOR - 1 if index in kind.muted else FLOOR,
            starts=ledger.results(ask.plan) | {f"start of {ask.plan}"},
        )
        tallies = ("weights",) if kind.weights == "private" else ()
        approval = Approval(ask.plan, ROSTER, "model", self.rounds, tallies)
        request = self.row(index, ask)
        if first_refusal(ledger.rows, request, terms, approval, ROSTER, tries=0) is not None:
            return None
        rows = () if ask in site.ledger else (ask,)
        return self.number(site._replace(ledger=(*site.ledger, *rows)))

    def _signable(
        self, index: int, number: int, *results: Receipt
    ) -> list[tuple[Receipt | None, int]]:
        """What a site may sign for, None for nothing, and the site after it. One that signed before
        opens that result again, or another one that it does not sign for."""
        site = self._things[number]
        found: list[tuple[Receipt | None, int]] = []
        for wanted in results:
            ledger = MemoryLedger()
            ledger.receipts = dict(self.ledger(index, site.ledger).receipts)
            if ledger.add_receipt(wanted) == wanted:
                lines = () if wanted in site.ledger else (wanted,)
                found.append((wanted, self.number(site._replace(ledger=(*site.ledger, *lines)))))
        return [(None, number), *found]

    def _take_certified(self, index: int, number: int, wanted: Receipt) -> int | None:
        """The site after it took a result that others signed for; None where it signed for this one
        itself, or for none, or took another so before."""
        site = self._things[number]
        ledger = MemoryLedger()
        known = self.ledger(index, site.ledger)
        if known.receipts.get(wanted.key, wanted) == wanted:
            return None
        ledger.certified = dict(known.certified)
        if ledger.add_certified(wanted) != wanted:
            return None
        line = Certified("certified", wanted)
        lines = () if line in site.ledger else (line,)
        return self._take(self.number(site._replace(ledger=(*site.ledger, *lines))), wanted)

    def _take(self, number: int, receipt: Receipt) -> int:
        site = self._things[number]
        return self.number(site._replace(taken=site.taken | {receipt}))

    def ledger(self, index: int, lines: Chain) -> Ledger:
        """Site `index`'s ledger with these lines."""
        return self.once(self._ledger, index, lines)

    def _ledger(self, index: int, lines: Chain) -> Ledger:
        ledger = MemoryLedger()
        ledger._append(entries.of_records(RECORDS))
        records = ledger.head.digest
        for line in lines:
            if isinstance(line, Ask):
                ledger._append(entries.of_row(self.row(index, line), records))
            elif isinstance(line, Receipt):
                ledger._append({"kind": "receipt", **line._asdict()})
            else:
                ledger._append({"kind": "certified", **line.result._asdict()})
        return ledger

    def row(self, index: int, ask: Ask) -> Row:
        kind = KINDS[ask.plan]
        roster = range(self.num_sites)
        changed = kind.changed | {roster[-1]} if ask.claim else kind.changed
        return Row(
            plan=ask.plan,
            run=str(ask.run),
            phase=ask.phase,
            round_number=ask.number,
            base=ask.base or f"start of {ask.plan}" if ask.number else "",
            own=str(index),
            batch=self.roster.batch(str(index)),
            sites=tuple(map(str, ask.members)),
            colluding=COLLUDING,
            membership=self.membership,
            scale=Scale(
                kind.weights, COUNTS[self.num_sites][index] if kind.weights == "private" else 0, 1
            ),
            versions={
                str(one): _version("new" if one in changed else "old", kind.worded)
                for one in ask.members
            },
            content="the same in every sum",
            records=RECORDS,
        )
