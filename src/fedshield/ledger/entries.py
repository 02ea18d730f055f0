"""A ledger's lines as JSON, and back."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from fedshield.ledger.history import Entered, Taken
from fedshield.ledger.rows import RECORD_BYTES, Row, Scale, Version
from fedshield.ledger.rules import Approval


class Receipt(NamedTuple):
    """A result of a sum. What this site signed for (R4: one for each key, for ever), or what it
    took since enough others signed for it."""

    plan: str
    phase: str
    round_number: int
    result: str

    @property
    def key(self) -> tuple[str, str, int]:
        """The sum that it is the result of."""
        return self[:3]


class Total(NamedTuple):
    """What all sites of a plan's roster count for together: every weight is a share of it. The
    first one stands for the plan."""

    plan: str
    total: int


class OpenedRound(NamedTuple):
    """What a round made of the model (`result`), and over whom its sum was, by first keys."""

    result: str
    sites: tuple[str, ...]


class Attested(NamedTuple):
    """Rounds that this site took by the word of the sites `by`, from round `first` on."""

    plan: str
    first: int
    rounds: tuple[OpenedRound, ...]
    by: tuple[str, ...]


_ROW = {field.name for field in dataclasses.fields(Row)}
#: Fields that rows of earlier versions do not have.
_LATER = {"roster", "recovered"}
_APPROVAL = {field.name for field in dataclasses.fields(Approval)}


class Forgotten(NamedTuple):
    """A head that this site's operator had it forget: whose (its first key), which, and when."""

    site: str
    length: int
    head: str
    when: str


class Answered(NamedTuple):
    """That this site told another (its first key), whose ledger was lost, of their sums: the
    question's number, hex, and when."""

    site: str
    nonce: str
    when: str


class Recovered(NamedTuple):
    """Where a ledger goes on that was lost after its line `after`: at line `line`, which lies
    beyond all that it ever signed. `nonce`: of its question, hex; `told`: by the first key of each
    site, the last line of the lost ones that the site remembered; `ended`: plans (SHA-256) that
    cannot go on, for lost lines of theirs nobody tells of; `when`: the time, for people; `taken`:
    what is signed of steps of the rosters that this site's kits were under when it was rebuilt
    (`history.Taken`)."""

    line: int
    after: int
    nonce: str
    told: Mapping[str, int]
    ended: tuple[str, ...]
    when: str
    taken: frozenset[Taken] = frozenset()


def of_row(row: Row, records: str) -> dict[str, Any]:
    """`records`: the digest of the line that holds the row's records."""
    return {"kind": "row", **dataclasses.asdict(row), "records": records}


def to_row(entry: Mapping[str, Any], records: Mapping[str, frozenset[bytes]]) -> Row:
    """`records`: by the digest of their line. Raises `KeyError` or `TypeError` for another
    entry."""
    fields = {name: entry[name] for name in _ROW if name in entry or name not in _LATER}
    return Row(
        **fields
        | {
            "batch": tuple(fields["batch"]),
            "sites": tuple(fields["sites"]),
            "curve": tuple(fields["curve"]),
            "scale": Scale(**fields["scale"]),
            "versions": {site: Version(*one) for site, one in fields["versions"].items()},
            "records": records[fields["records"]],
        }
    )


def of_approval(approval: Approval) -> dict[str, Any]:
    return {"kind": "approval", **dataclasses.asdict(approval)}


def to_approval(entry: Mapping[str, Any]) -> Approval:
    """Raises `KeyError` or `TypeError` for another entry."""
    entry = {"exposed": False, **entry}  # an earlier version knew of no exposure
    given = {name: entry[name] for name in _APPROVAL}
    lists = {name: tuple(given[name]) for name in ("tallies", "lines")}
    part = given["part"] and Version(*given["part"])
    return Approval(**given | lists | {"part": part, "exposed": bool(given["exposed"])})


def to_receipt(entry: Mapping[str, Any]) -> Receipt:
    """Raises `KeyError` for another entry."""
    return Receipt(**{name: entry[name] for name in Receipt._fields})


def of_attested(attested: Attested) -> dict[str, Any]:
    """Sets of sites once each: they seldom change."""
    sets = list(dict.fromkeys(one.sites for one in attested.rounds))
    rounds = [[one.result, sets.index(one.sites)] for one in attested.rounds]
    return {"kind": "attested", **attested._asdict(), "sets": sets, "rounds": rounds}


def to_attested(entry: Mapping[str, Any]) -> Attested:
    """Raises `KeyError`, `TypeError`, `ValueError` or `IndexError` for another entry."""
    sets = [tuple(one) for one in entry["sets"]]
    rounds = tuple(OpenedRound(str(result), sets[place]) for result, place in entry["rounds"])
    return Attested(entry["plan"], entry["first"], rounds, tuple(entry["by"]))


def to_total(entry: Mapping[str, Any]) -> Total:
    """Raises `KeyError` for another entry."""
    return Total(**{name: entry[name] for name in Total._fields})


def of_entered(entered: Entered, records: str) -> dict[str, Any]:
    """`records`: the digest of the line that holds its records."""
    return {
        "kind": "entered",
        **entered._asdict(),
        "records": records,
        "names": {**entered.names},
        "signed": sorted(entered.signed),
        "taken": sorted(entered.taken),
    }


def to_entered(entry: Mapping[str, Any], records: Mapping[str, frozenset[bytes]]) -> Entered:
    """Raises `KeyError` or `TypeError` for another entry."""
    cuts = tuple(tuple(tuple(batch) for batch in cut) for cut in entry["cuts"])
    taken = _to_taken(entry["taken"])
    about = (entry["asked_from"], dict(entry["names"]), frozenset(entry["signed"]), taken)
    return Entered(records[entry["records"]], cuts, *about, int(entry["colluding"]))


def of_records(records: Collection[bytes]) -> dict[str, Any]:
    """Keyed hashes of records as one line holds them, in order.

    >>> of_records([b"01234567"])
    {'kind': 'records', 'hashes': 'MDEyMzQ1Njc='}
    """
    return {"kind": "records", "hashes": base64.b64encode(b"".join(sorted(records))).decode()}


def to_records(entry: Mapping[str, Any]) -> frozenset[bytes]:
    """The inverse of `of_records`. Raises `KeyError`, `TypeError` or `ValueError` for another
    entry.

    >>> to_records(of_records([b"01234567", b"89abcdef"])) == {b"01234567", b"89abcdef"}
    True
    """
    packed = base64.b64decode(entry["hashes"], validate=True)
    places = range(0, len(packed), RECORD_BYTES)
    return frozenset(packed[at : at + RECORD_BYTES] for at in places)


def of_forgotten(forgotten: Forgotten) -> dict[str, Any]:
    return {"kind": "forgotten", **forgotten._asdict()}


def to_forgotten(entry: Mapping[str, Any]) -> Forgotten:
    """Raises `KeyError` for another entry."""
    return Forgotten(**{name: entry[name] for name in Forgotten._fields})


def of_answered(answered: Answered) -> dict[str, Any]:
    return {"kind": "answered", **answered._asdict()}


def to_answered(entry: Mapping[str, Any]) -> Answered:
    """Raises `KeyError` for another entry."""
    return Answered(**{name: entry[name] for name in Answered._fields})


def of_recovered(recovered: Recovered) -> dict[str, Any]:
    return {"kind": "recovered", **recovered._asdict(), "taken": sorted(recovered.taken)}


def to_recovered(entry: Mapping[str, Any]) -> Recovered:
    """Raises `KeyError`, `TypeError` or `ValueError` for another entry."""
    fields = {name: entry[name] for name in Recovered._fields}
    taken = _to_taken(entry["taken"])
    return Recovered(**fields | {"ended": tuple(fields["ended"]), "taken": taken})


def _to_taken(value: Any) -> frozenset[Taken]:
    return frozenset((int(at), str(site), str(digest)) for at, site, digest in value)
