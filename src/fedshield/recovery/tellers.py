"""What the others' word is worth to a site whose ledger was lost: who tells of a sum, which sums
liars can have made up, and which results are certain. At most c of them lie. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from fedshield.ledger.entries import Receipt
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import LOST
from fedshield.recovery.letters import Answer, ToldRow

Key = tuple[str, str, int]


class Doubtful(NamedTuple):
    """A sum that liars alone can have made up, or that one who was in it leaves out. By first keys,
    `own`: who tells of it by a row of its own; `heard`: who knows it only from what others told in
    a recovery; `silent`: who was in it and does not tell of it."""

    told: ToldRow
    own: tuple[str, ...]
    heard: tuple[str, ...]
    silent: tuple[str, ...]


#: Who tells of a sum of a site (its first key) by a row of its own, and who heard of it.
Tellers = dict[tuple[str, ToldRow], tuple[list[str], list[str]]]


def by_sum(answers: Sequence[Answer]) -> Tellers:
    """Each sum once, with everyone who tells of it, in order."""
    tellers: Tellers = {}
    for answer in answers:
        # What is told both ways, of before and after the teller's loss, is its own.
        for told in sorted(answer.rows, key=lambda row: row.recovered):
            own, heard = tellers.setdefault((answer.about, told.own_sum), ([], []))
            if answer.teller not in own:
                (heard if told.recovered else own).append(answer.teller)
    return tellers


def doubtful(tellers: Tellers, answers: Sequence[Answer], colluding: int) -> tuple[Doubtful, ...]:
    """Sums that the operator has to ask about.

    Args:
        tellers: of each sum (`by_sum`).
        answers: the same, checked.
        colluding: how many of the others lie at most.
    """
    asked = dict.fromkeys((answer.about, answer.teller) for answer in answers)
    found: list[Doubtful] = []
    for (about, told), (own, heard) in tellers.items():
        silent = [
            teller
            for site, teller in asked
            if site == about and teller in told.who_tells and teller not in (*own, *heard)
        ]
        most = max(colluding, told.colluding)  # of a larger c more are named
        size = min(len(told.sites), len(told.who_tells))
        if silent or len(own) <= most or size < most + 2:
            found.append(Doubtful(told, tuple(own), tuple(heard), tuple(silent)))
    return tuple(found)


def results_of(older: Ledger, answers: Sequence[Answer], colluding: int) -> tuple[Receipt, ...]:
    """Results that so many other members of the sum tell that no other one has a certificate. They
    are taken as what others certify: what this site signed for is not known.

    Args:
        older: the older copy of the ledger.
        answers: of all others, checked.
        colluding: how many of the others lie at most.
    """
    rows: dict[Key, list[ToldRow]] = {}
    for told in (
        *(ToldRow.of(row, row.own) for row in older.rows if row.phase != LOST),
        *(row for answer in answers for row in answer.rows),
    ):
        rows.setdefault(told.key, []).append(told)
    said: dict[Receipt, set[str]] = {}
    for answer in answers:
        for one in answer.results:
            said.setdefault(one, set()).add(answer.teller)
    everyone = {answer.about for answer in answers} | {answer.teller for answer in answers}
    enough = [
        one
        for one, by in said.items()
        if one.key in rows
        and all(_is_certain(row, by, everyone, colluding) for row in rows[one.key])
    ]
    # Of two results that so many tell, nobody can say which is right.
    twice = Counter(one.key for one in enough)
    taken = older.receipts | older.certified
    return tuple(sorted(one for one in enough if twice[one.key] == 1 and taken.get(one.key) != one))


def _is_certain(
    row: ToldRow, tellers: Collection[str], everyone: Collection[str], colluding: int
) -> bool:
    """Whether a result has so many tellers beside this site that no other one of the sum can have a
    certificate. With K sites and c liars that is (K + c) // 2 + 1 receipts. This site's own may be
    among them, and m tellers rule it out if they share c + 1 with the (K + c) // 2 others of it,
    out of K - 1: m >= (K + c) / 2. With membership open K is the roster's: all that are known at
    most."""
    sites = set(everyone if row.membership == "open" else row.sites)
    return 2 * len(sites.intersection(tellers)) >= len(sites) + max(colluding, row.colluding)
