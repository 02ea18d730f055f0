"""A ledger's rows: one for each sum that a site was asked to enter, as far as the site can tell it.

A row says over whom a sum was, from what it started, by which scale it was weighted and what this
site put in, all by digests. It is written before the upload leaves. So a row stands for a sum that
was opened, whether or not it was.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, Self, TypeVar

Unit = Literal["none", "example", "site"]
Membership = Literal["fixed", "batches", "open"]

#: What a site counted for in a row that others told it of (`recovery`), with weights by rows and
#: where nothing of its own says so.
UNKNOWN = -1
#: The phase of a row that stands for a plan's rounds which nobody told of (`recovery`).
LOST = "lost"
#: Bytes of each half of a version.
HALF_BYTES = 32
#: Bytes of a record's keyed hash: 8, so that 2^20 records collide with chance 2^-25.
RECORD_BYTES = 8


class Version(NamedTuple):
    """What a site puts into a sum (R3), hex: HMACs of the source records that it trains on, and of
    the rows that the model reads of them. They are two, because a plan can change the rows of
    every site by a word of its template, while one site alone changes its records."""

    sources: str
    rows: str

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """As it travels: both halves, 32 bytes each. Raises `ValueError`."""
        if len(raw) != 2 * HALF_BYTES:
            raise ValueError(len(raw))
        return cls(raw[:HALF_BYTES].hex(), raw[HALF_BYTES:].hex())

    def to_bytes(self) -> bytes:
        return bytes.fromhex(self.sources + self.rows)


@dataclass(frozen=True)
class Scale:
    """What a site's part of a sum is multiplied by. On one line it never changes (rule R2)."""

    weights: str
    count: int
    steps: int


@dataclass(frozen=True)
class Row:
    """One sum, as one site knows it. Sites are named by the first key of their card, hex.

    `plan`, `base`, `content`: SHA-256, hex, of the plan, of what the sum starts from ('' for a
    tally), and of this site's encoded integers with their noise. `run`: the run's name. `batch`:
    this site's batch, `sites`: everyone in the sum. `colluding`: c of the roster. `own`: the key of
    this site. `versions`: what each member of the batch said of its own part (rule R3).
    `records`: keyed hashes of the raw records that entered. `curve`: Renyi divergence at each order
    of `privacy.accounting.WHOLE_ORDERS`, and `distance` the total variation between its noise and
    what that stands for; empty and 0 where no unit is protected, or where the sum is a tally.
    `roster`: SHA-256, hex, of the countersigned roster's content; empty for none, or in a row of an
    earlier version.
    `recovered`: rebuilt from what others told (`recovery`): what this site sent is not known, and
    without `records` neither is of which; then it counts for all of them.
    """

    plan: str
    run: str
    phase: str
    round_number: int
    base: str
    own: str
    batch: tuple[str, ...]
    sites: tuple[str, ...]
    colluding: int
    membership: Membership
    scale: Scale
    versions: Mapping[str, Version]
    content: str
    unit: Unit = "none"
    curve: tuple[float, ...] = ()
    distance: float = 0.0
    records: frozenset[bytes] = field(default_factory=frozenset, repr=False)
    roster: str = ""
    recovered: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What is summed once, for ever (rule R4)."""
        return self.plan, self.phase, self.round_number


@dataclass(frozen=True)
class Consent:
    """What a site's own operator agreed to, by hand, at the site's terminal. `part`: what it may
    put in though only this site may have changed that (R3), half by half; `exposed`: whether
    it takes part though its updates can be had by subtraction (R1)."""

    part: Version | None = None
    exposed: bool = False


def record_hash(key: bytes, record: bytes) -> bytes:
    """The keyed hash of a raw record, 8 bytes. `record`: its bytes before columns, templates and
    cuts.

    >>> len(record_hash(bytes(32), b"a row")), record_hash(bytes(32), b"") == record_hash(b"k", b"")
    (8, False)
    """
    return hmac.digest(key, b"fedshield ledger record 1" + record, "sha256")[:RECORD_BYTES]


def part_version(key: bytes, sources: bytes, rows: bytes) -> Version:
    """A site's version of what it puts in (R3): two HMACs, which tell nobody what it is.

    It changes if what enters changes, by whatever key of a plan, and only then: a setting that
    alters nothing would let one site's real change pass for everyone's. The key is that of the
    records: a site that replaces its signing key puts in the same as before.

    Args:
        key: the ledger's record key, 32 bytes.
        sources: digest of the source records that the site trains on.
        rows: digest of the rows as the model reads them.

    Returns:
        HMAC-SHA256 of each, hex.
    """
    return Version(
        hmac.digest(key, b"fedshield ledger sources 1" + sources, "sha256").hex(),
        hmac.digest(key, b"fedshield ledger rows 1" + rows, "sha256").hex(),
    )


class OfRecords(Protocol):
    """What a ledger holds of some records: a row, and what else is of a line."""

    @property
    def records(self) -> frozenset[bytes]: ...


_T = TypeVar("_T", bound=OfRecords)


def is_one_line(rows: Sequence[Row]) -> bool:
    """Whether nobody knows the records of some row any more. It can share one with every other, so
    all of the ledger is one line."""
    return any(row.recovered and not row.records for row in rows)


def line_of(rows: Sequence[Row], records: Collection[bytes]) -> tuple[Row, ...]:
    """The rows on the line of `records`."""
    return tuple(rows) if is_one_line(rows) else sharing(rows, records)


def sharing(held: Sequence[_T], records: Collection[bytes]) -> tuple[_T, ...]:
    """Of what a ledger holds that which shares a record with `records`, or with such, and so on.
    Each set of records is looked at once, for the rows of a run have the same one."""
    known, left = set(records), {one.records for one in held}
    line: set[frozenset[bytes]] = set()
    while joining := {records for records in left if not known.isdisjoint(records)}:
        line |= joining
        left -= joining
        known.update(*joining)
    return tuple(one for one in held if one.records in line)


def largest_colluding(rows: Sequence[Row], colluding: int) -> int:
    """c of a line that goes on with `colluding`: the largest that its records were used with."""
    return max([colluding, *(row.colluding for row in rows)])


def released(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of rounds, by sums: a row that was repeated (R4) is one release, for the same bytes
    left again. Tallies are not among them: a count is no training row's."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.phase in ("round", LOST):
            found.setdefault(row.key, []).append(row)
    return list(found.values())


def line_curve(rows: Sequence[Row], unit: Unit) -> tuple[tuple[float, ...], float] | None:
    """The sum of the Renyi curves of `rows` (R5), and of their distances; None for infinite: a sum
    that does not protect `unit`. What protects a whole site protects each of its examples, and
    not the other way round. Of rows of one sum that differ the largest counts, order by order."""
    protects = {"site": ("site",), "example": ("site", "example")}.get(unit, ())
    sums = released(rows)
    if any(row.unit not in protects or not row.curve for tries in sums for row in tries):
        return None
    curves = [
        [max(values) for values in zip(*(row.curve for row in tries), strict=True)]
        for tries in sums
    ]
    curve = tuple(math.fsum(values) for values in zip(*curves, strict=True))
    return curve, math.fsum(max(row.distance for row in tries) for tries in sums)
