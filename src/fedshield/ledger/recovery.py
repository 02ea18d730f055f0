"""A ledger that was lost with its backups, rebuilt from what the other sites' ledgers hold.

The site asks with a fresh number; every other site of the roster answers it, signed, with the rows
of its own ledger that the lost site was in. A row is written before its upload leaves, so of every
sum that was opened each honest member of the batch has one: at least one of the others is honest,
and all are needed, so no such sum is missing. What they say apart is kept side by side: a row too
many refuses more, and lets nothing through. An answer to an older question, which could lack the
latest sums, is none to this one.

What only the lost site knew is not rebuilt. Of which records a row was: it counts for all. What it
sent: no sum is repeated. What it counted for: with weights by rows nothing more is summed. Its
record key is a new one, so what it puts in cannot be compared with before (R3 asks its operator).
Of what its records spent, the plan's full rounds are taken.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield.errors import UserError
from fedshield.ledger import entries
from fedshield.ledger.entries import Receipt
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import LOST, UNKNOWN, Row

FORMAT = "fedshield ledger rows 1"
QUESTION = "fedshield ledger question 1"
NONCE_BYTES = 32


class RecoveryError(UserError):
    """What others said of a lost ledger that cannot be used."""


@dataclass(frozen=True)
class Told:
    """What one site's ledger holds of the sums that another was in. `nonce`: of the question that
    it answers; `teller`, `about`: the first keys of both; `rounds`: of each plan, as approved."""

    nonce: bytes
    teller: str
    about: str
    rows: tuple[Row, ...]
    receipts: tuple[Receipt, ...]
    rounds: Mapping[str, int]


#: Whether a public key signed what was read.
Signed = Callable[[bytes], bool]


def question(nonce: bytes, about: str, sign: Callable[[bytes], bytes]) -> str:
    """As a file. `about`: the first key of the site whose ledger was lost."""
    fields = {"format": QUESTION, "nonce": nonce.hex(), "about": about}
    return _sealed(fields, sign)


def read_question(text: str, where: str) -> tuple[bytes, str, Signed]:
    """Nonce, and whose ledger was lost. Raises `RecoveryError`."""
    try:
        fields, signed = _opened(text, QUESTION)
        nonce, about = bytes.fromhex(fields["nonce"]), fields["about"]
        if len(nonce) != NONCE_BYTES or not isinstance(about, str):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecoveryError(
            f"{where}: expected another site's question (site ledger ask), got something else; ask "
            "for the file again"
        ) from None
    return nonce, about, signed


def told(ledger: Ledger, nonce: bytes, teller: str, about: str) -> Told:
    """What `ledger` holds of the sums of `about`, without what is the teller's own: its records,
    what it counted for and what it sent."""
    rows = [row for row in ledger.rows if about in row.sites]
    keys = {row.key for row in rows}
    taken = ledger.receipts | ledger.certified
    return Told(
        nonce,
        teller,
        about,
        _distinct(_from_outside(row, about) for row in rows),
        tuple(taken[key] for key in sorted(keys & set(taken))),
        {
            plan: approval.rounds
            for plan, approval in ledger.approvals.items()
            if plan in {key[0] for key in keys}
        },
    )


def _from_outside(row: Row, about: str) -> Row:
    """A row of another site's, as `about` would have it: as far as anyone else can know it."""
    count = 0 if row.scale.weights == "equal" else UNKNOWN
    batch = row.batch if row.membership != "open" else (about,)
    return dataclasses.replace(
        row,
        own=about,
        batch=batch,
        scale=dataclasses.replace(row.scale, count=count),
        content="",
        records=frozenset(),
        recovered=True,
    )


def write(found: Told, sign: Callable[[bytes], bytes]) -> str:
    """As a file: JSON with the teller's signature over what is in it."""
    fields = {
        "format": FORMAT,
        "nonce": found.nonce.hex(),
        "teller": found.teller,
        "about": found.about,
        "rows": [entries.of_row(row, "") for row in found.rows],
        "receipts": [one._asdict() for one in found.receipts],
        "rounds": dict(found.rounds),
    }
    return _sealed(fields, sign)


def read(text: str, where: str) -> tuple[Told, Signed]:
    """What `write` wrote. Raises `RecoveryError`."""
    try:
        fields, signed = _opened(text, FORMAT)
        about, rounds = fields["about"], fields["rounds"]
        rows = tuple(entries.to_row(one, {"": frozenset()}) for one in fields["rows"])
        if not all(type(number) is int and number >= 0 for number in rounds.values()):
            raise ValueError
        if any(row != _from_outside(row, about) or about not in row.sites for row in rows):
            raise ValueError
        found = Told(
            bytes.fromhex(fields["nonce"]),
            fields["teller"],
            about,
            rows,
            tuple(entries.to_receipt(one) for one in fields["receipts"]),
            rounds,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecoveryError(
            f"{where}: expected what another site's ledger holds (site ledger answer), got "
            "something else; ask for the file again"
        ) from None
    return found, signed


def rebuilt(answers: Sequence[Told], colluding: int) -> tuple[tuple[Row, ...], tuple[Receipt, ...]]:
    """The rows and results of a lost ledger, from the answers of all others, of whom at most
    `colluding` lie: every row that anyone tells, and a result of which c + 1 tell the same."""
    rows = _distinct(row for answer in answers for row in answer.rows)
    said = Counter(receipt for answer in answers for receipt in set(answer.receipts))
    enough = [receipt for receipt, tellers in said.items() if tellers > colluding]
    # Of two results that so many tell, nobody can say which was this site's.
    twice = Counter(receipt.key for receipt in enough)
    receipts = tuple(receipt for receipt in enough if twice[receipt.key] == 1)
    return (*rows, *_unseen(rows, answers)), receipts


def _distinct(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Each once, in the order in which they came."""
    return tuple({json.dumps(entries.of_row(row, "")): row for row in rows}.values())


def _unseen(rows: Sequence[Row], answers: Sequence[Told]) -> list[Row]:
    """What the plans' other rounds would have spent: that the site entered some which nobody saw
    cannot be told."""
    found: list[Row] = []
    by_plan: dict[str, Row] = {row.plan: row for row in rows if row.curve}
    for plan, row in by_plan.items():
        rounds = max((answer.rounds.get(plan, 0) for answer in answers), default=0)
        seen = len({one.round_number for one in rows if one.plan == plan and one.curve})
        if (more := rounds - seen) > 0:
            curve = tuple(more * value for value in row.curve)
            lost: dict[str, Any] = {"phase": LOST, "round_number": 0, "curve": curve}
            found.append(dataclasses.replace(row, **lost, distance=more * row.distance))
    return found


def _sealed(fields: Mapping[str, Any], sign: Callable[[bytes], bytes]) -> str:
    return json.dumps({"said": fields, "signature": sign(_message(fields)).hex()}, indent=1) + "\n"


def _opened(text: str, wanted: str) -> tuple[dict[str, Any], Signed]:
    """Raises `ValueError`, `KeyError`, `TypeError` or `RecursionError`."""
    document = json.loads(text)
    fields, signature = document["said"], bytes.fromhex(document["signature"])
    if set(document) != {"said", "signature"} or fields["format"] != wanted:
        raise ValueError
    message = _message(fields)

    def signed(public: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    return fields, signed


def _message(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
