"""The rows of a lost ledger, from an older copy of it, from what all others told, and from what the
site itself still has of the plans. Pure functions.

At least one of the others is honest and has every sum that was opened, so every row that anyone
tells is kept, side by side where they differ: a row too many refuses more, and lets nothing
through. What a sum spent comes from the site's own plans and records, never from what is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedshield.ledger.entries import Receipt
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import (
    LOST,
    UNKNOWN,
    Row,
    Scale,
    Unit,
    Version,
)
from fedshield.recovery.letters import Answer, RecoveryError, ToldRow
from fedshield.recovery.tellers import Doubtful, Tellers, by_sum, doubtful, results_of

Key = tuple[str, str, int]


@dataclass(frozen=True)
class OwnPart:
    """What this site has of a plan: `rounds`, `unit`, `weights`, `steps`: the plan's; `version` of
    what it would put in now, None where that cannot be read; of that `records`, their keyed hashes,
    and `count`, what they count for under `roster`; `curve`, `distance` of one round: of these
    records where the unit is an example, of any where it is a site, empty where there are none.
    The last three are as of `Row`."""

    rounds: int
    unit: Unit
    weights: str
    steps: int
    version: Version | None = None
    records: frozenset[bytes] = frozenset()
    count: int = UNKNOWN
    roster: str = ""
    curve: tuple[float, ...] = ()
    distance: float = 0.0


class Rebuilt(NamedTuple):
    """`rows`, `results`: what follows an older copy; `unbounded`: plans (SHA-256) of which nothing
    here says what their rounds spent, so epsilon is infinite; `uncounted`: those for which nothing
    says what this site counted for; `stopped`: those that cannot go on, since a sum of theirs would
    have to be repeated (one without a result, or a tally, which every session begins with);
    `doubtful`: sums that not all tell of who were in them, that at most c tell of by themselves, or
    that are over fewer than c + 2 sites (of this site's batch)."""

    rows: tuple[Row, ...]
    results: tuple[Receipt, ...]
    unbounded: tuple[str, ...]
    uncounted: tuple[str, ...]
    stopped: tuple[str, ...]
    doubtful: tuple[Doubtful, ...]


def rebuilt(
    older: Ledger,
    answers: Sequence[Answer],
    parts: Mapping[str, OwnPart],
    colluding: int,
    names: Mapping[str, str],
) -> Rebuilt:
    """What follows an older copy of a lost ledger.

    Args:
        older: the copy.
        answers: of all others, checked.
        parts: what this site has of each plan, by the plan's SHA-256, hex.
        colluding: how many of the others lie at most.
        names: of the others, by first key.

    Raises:
        RecoveryError: where two tell of different parts of this site in one sum.
    """
    tellers = by_sum(answers)
    _check_versions(older, tellers, names)
    # Without its receipt a sum is added: what this site signed for is lost, and it signs no other.
    known = {
        (row.own, ToldRow.of(row, row.own).own_sum)
        for row in older.rows
        if row.recovered or row.key in older.receipts
    }
    added = [
        _row(about, told, older, parts) for about, told in tellers if (about, told) not in known
    ]
    results = results_of(older, answers, colluding)
    rows = (*added, *_unseen([*older.rows, *added], older, parts))
    taken = {one.key for one in results} | older.receipts.keys() | older.certified.keys()
    return Rebuilt(
        rows,
        results,
        _plans(row for row in added if _is_unbounded(row, older, parts)),
        _plans(row for row in added if row.scale.count == UNKNOWN),
        _plans(
            row
            for row in (*older.rows, *added)
            if row.phase != LOST
            and (row.key not in taken or (row.recovered and row.phase != "round"))
        ),
        doubtful(tellers, answers, colluding),
    )


def ended(
    older: Ledger, rows: Sequence[Row], lines: Mapping[str, int], known: Iterable[str]
) -> tuple[str, ...]:
    """Plans with membership batches of which lines can be lost that no other site has: the total
    that weights are shares of, and the rounds that were taken by the word of others.

    Args:
        older: the copy.
        rows: what follows it.
        lines: by site, the last line of the lost ledger that it remembers.
        known: such plans that the site still has.

    Returns:
        SHA-256, hex. None where the copy holds all that was signed: no sum was entered, and nobody
        was told of a head, after it.
    """
    new = {row.key for row in rows if row.phase != LOST} - {row.key for row in older.rows}
    if not new and max(lines.values(), default=0) <= older.head.length:
        return ()
    found = {row.plan for row in (*older.rows, *rows) if row.membership == "batches"}
    found |= {*known, *older.totals, *(plan for plan, _ in older.attested)}
    return tuple(sorted(found))


def is_shown(
    older: Ledger, answers: Sequence[Answer], parts: Mapping[str, OwnPart], holds: bool
) -> bool:
    """Whether an older copy is shown to be of the lost ledger: else its record key could be
    another, and what this site puts in would look changed to all, so that another's change passes
    for everyone's (R3).

    Args:
        older: the copy.
        answers: of all others, checked.
        parts: what this site has of each plan, by the plan's SHA-256, hex.
        holds: whether the copy holds a head that was signed, or goes with what lies beside the lost
            one.
    """
    own = {row.key: row.versions.get(row.own) for row in older.rows}
    told = [(row, row.version_of(answer.about)) for answer in answers for row in answer.rows]
    return (
        holds
        or not told
        or any(
            _same_rows(version, own.get(row.key))
            or (row.plan in parts and _same_rows(version, parts[row.plan].version))
            for row, version in told
        )
    )


def _same_rows(version: Version, other: Version | None) -> bool:
    """Whether the model read the same: as many rows, so the same count and the same curve. Of which
    records they were made only the other half says."""
    return other is not None and version.rows == other.rows


def _check_versions(
    older: Ledger,
    tellers: Tellers,
    names: Mapping[str, str],
) -> None:
    said: dict[tuple[str, Key], tuple[Version, str]] = {}
    for row in older.rows:
        if row.phase != LOST and row.own in row.versions:
            said[row.own, row.key] = row.versions[row.own], "the older copy"
    for (about, told), (own, heard) in tellers.items():
        version, who = told.version_of(about), names[[*own, *heard][0]]
        first, other = said.setdefault((about, told.key), (version, who))
        # The rows alone: an operator who rewrites the file between two tries, with the same rows,
        # is honest, and the second try has other sources. R3 asks nothing of it either
        # (`own_part`), and holds against each of the two rows, for both are kept. Of other rows
        # the update is another, which no second try may have (R4).
        if first.rows != version.rows:
            raise RecoveryError(
                f"expected one version of the rows that this site put into {_named(told)}, got "
                f"two, of {other} and of {who}: one of them is wrong, or two copies of this site "
                "were at work; ask both operators"
            )


def _row(about: str, told: ToldRow, older: Ledger, parts: Mapping[str, OwnPart]) -> Row:
    """A told sum with what this site knows of it."""
    part, version = parts.get(told.plan), told.version_of(about)
    now = part is not None and _same_rows(version, part.version)
    weights, steps = (told.weights, told.steps) if part is None else (part.weights, part.steps)
    before = [row for row in older.rows if row.versions.get(row.own) == version]
    alike = [one.records for one in parts.values() if one.version == version]
    records = next(filter(None, [*alike, *(row.records for row in before)]), frozenset())
    count = 0 if weights == "equal" else UNKNOWN
    for row in older.rows:
        # By R2 the lost sum was at the count of those before on its line, or was not entered.
        known = row.records and _same_rows(version, row.versions.get(row.own))
        if count == UNKNOWN and row.scale.weights == weights and known:
            count = row.scale.count
    if count == UNKNOWN and part is not None and now and told.roster == part.roster:
        count = part.count  # the roster caps it
    unit, curve, distance = _spent(told, version, older, part, now)
    return Row(
        plan=told.plan,
        run=told.run,
        phase=told.phase,
        round_number=told.round_number,
        base=told.base,
        own=about,
        batch=told.batch,
        sites=told.sites,
        colluding=told.colluding,
        membership=told.membership,
        scale=Scale(weights, count, steps),
        versions=dict(told.versions),
        content="",
        unit=unit,
        curve=curve if told.phase == "round" else (),
        distance=distance if told.phase == "round" else 0.0,
        records=records,
        roster=told.roster,
        recovered=True,
    )


def _spent(
    told: ToldRow, version: Version, older: Ledger, part: OwnPart | None, now: bool
) -> tuple[Unit, tuple[float, ...], float]:
    """Unit, curve and distance of a round: 'none' where nothing here says what it spent."""
    if part is not None and part.curve and (part.unit == "site" or now):
        return part.unit, part.curve, part.distance
    for row in older.rows:
        same = row.unit == "site" or _same_rows(version, row.versions.get(row.own))
        if row.plan == told.plan and row.phase == "round" and row.curve and same:
            return row.unit, row.curve, row.distance
    return "none", (), 0.0


def _unseen(rows: Sequence[Row], older: Ledger, parts: Mapping[str, OwnPart]) -> list[Row]:
    """What the plans' other rounds would have spent: whether some were entered that nobody tells of
    cannot be known. What a copy holds of this from an earlier loss counts already."""
    found: list[Row] = []
    counted = {row.plan for row in rows if row.phase == LOST}
    for plan in dict.fromkeys(row.plan for row in rows if row.curve and row.phase == "round"):
        rounds = 0  # of neither: an earlier loss, and the copy holds them all
        if plan in parts:
            rounds = parts[plan].rounds
        elif plan in older.past_approvals:
            rounds = older.past_approvals[plan].rounds
        seen = [row for row in rows if row.plan == plan and row.phase == "round" and row.curve]
        more = rounds - len({row.round_number for row in seen})
        if more > 0 and plan not in counted:
            worst = [max(values) for values in zip(*(row.curve for row in seen), strict=True)]
            each = [row.records for row in seen]
            found.append(
                dataclasses.replace(
                    seen[-1],
                    phase=LOST,
                    round_number=0,
                    content="",
                    curve=tuple(more * value for value in worst),
                    distance=more * max(row.distance for row in seen),
                    records=frozenset().union(*each) if all(each) else frozenset(),
                    recovered=True,
                )
            )
    return found


def _is_unbounded(row: Row, older: Ledger, parts: Mapping[str, OwnPart]) -> bool:
    """Whether a round's curve is missing though its plan may have had one."""
    unit: Unit | None = None
    if row.plan in parts:
        unit = parts[row.plan].unit
    elif row.plan in older.past_approvals:
        unit = older.past_approvals[row.plan].unit
    return row.phase == "round" and not row.curve and unit != "none"


def _plans(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.plan for row in rows))


def _named(told: ToldRow) -> str:
    if told.phase == "round":
        return f"round {told.round_number} of plan {told.plan[:12]}"
    return f"the {told.phase} of plan {told.plan[:12]}"
