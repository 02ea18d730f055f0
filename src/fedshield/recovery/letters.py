"""What one site tells another whose ledger was lost: its question, and the answers to it, as files.

A row is written before its upload leaves. So each honest member of the batch has a row of every
sum that was opened, and tells of it. Members of other batches do not: their rows name their own. An
answer names the question that it is to; one to an older
question could lack the latest sums. Nothing in an answer is the teller's own but the head of its
ledger: no record, no count and no curve, which would tell its number of rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from fedshield.enrolment.files import Kind, RosterError, read_document, to_text
from fedshield.enrolment.forms import (
    Flag,
    Form,
    Hex32,
    Hex64,
    Listed,
    MaybeHex32,
    Texts,
    hexadecimal,
)
from fedshield.errors import UserError
from fedshield.ledger.entries import Receipt
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import HALF_BYTES, LOST, Membership, Row, Version
from fedshield.plan.data import MAX_SITES
from fedshield.protocol.statements import is_signed
from fedshield.protocol.wire import codec
from fedshield.recovery.question import NONCE_BYTES

Sign = Callable[[bytes], bytes]
#: Larger numbers of rounds or steps no plan has.
_MAX_NUMBER = 2**31


class RecoveryError(UserError):
    """What others said of a lost ledger that cannot be used."""


@dataclass(frozen=True)
class ToldRow:
    """A sum as another member of it knows it: fields as of `Row`; `versions`: by site, in order;
    `recovered`: the teller itself knows it from what others told of its own lost ledger."""

    plan: str
    roster: str
    run: str
    phase: str
    round_number: int
    base: str
    batch: tuple[str, ...]
    sites: tuple[str, ...]
    colluding: int
    membership: Membership
    weights: str
    steps: int
    versions: tuple[tuple[str, Version], ...]
    recovered: bool = False

    @classmethod
    def of(cls, row: Row, about: str) -> Self:
        """`about`: the first key of the site that is told."""
        return cls(
            row.plan,
            row.roster,
            row.run,
            row.phase,
            row.round_number,
            row.base,
            (about,) if row.membership == "open" else tuple(sorted(row.batch)),
            tuple(sorted(row.sites)),
            row.colluding,
            row.membership,
            row.scale.weights,
            row.scale.steps,
            tuple(sorted(row.versions.items())),
            row.recovered,
        )

    @property
    def key(self) -> tuple[str, str, int]:
        """What is summed once, for ever (rule R4)."""
        return self.plan, self.phase, self.round_number

    @property
    def own_sum(self) -> Self:
        """The sum alone, however the teller knows it."""
        return replace(self, recovered=False)

    @property
    def who_tells(self) -> tuple[str, ...]:
        """Those who tell a member of its batch of it (`rows_about`), if they are honest."""
        return self.sites if self.membership == "open" else self.batch

    def version_of(self, site: str) -> Version:
        return dict(self.versions)[site]

    def fields(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "roster": self.roster or None,
            "run": self.run,
            "phase": self.phase,
            "round": self.round_number,
            "base": self.base or None,
            "batch": [*self.batch],
            "sites": {site: version.to_bytes().hex() for site, version in self.versions},
            "colluding": self.colluding,
            "membership": self.membership,
            "weights": self.weights,
            "steps": self.steps,
            "recovered": self.recovered,
        }


@dataclass(frozen=True)
class Question:
    """`nonce`: the number that answers repeat; `about`: the first key of the site that asks."""

    nonce: bytes
    about: str
    signature: bytes = b""

    def signed(self, sign: Sign) -> Question:
        return Question(self.nonce, self.about, sign(_message("ledger question 1", self._fields())))

    def is_signed(self, public: bytes) -> bool:
        return is_signed(_message("ledger question 1", self._fields()), self.signature, public)

    def to_text(self) -> str:
        values = self._fields() | {"signature": self.signature.hex()}
        return to_text("ledger question 1", values)

    @classmethod
    def read(cls, path: Path) -> Question:
        """Raises `RosterError`."""
        fields, _ = read_document(path, "ledger question 1")
        try:
            form = QuestionForm.parse(fields)
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None
        return cls(bytes.fromhex(form.nonce), form.about, bytes.fromhex(form.signature))

    def _fields(self) -> dict[str, Any]:
        return {"nonce": self.nonce.hex(), "about": self.about}


@dataclass(frozen=True)
class Answer:
    """`teller`, `about`: the first keys of both; `head`: the statement of the teller's own head,
    empty where it has no ledger yet; `heads`: by first key, the last statement of each site that it
    remembers, the asker among them; `rows`: of sums that the asker was in; `results`: of these."""

    nonce: bytes
    teller: str
    about: str
    head: bytes
    heads: Mapping[str, bytes]
    rows: tuple[ToldRow, ...]
    results: tuple[Receipt, ...]
    signature: bytes = b""

    def signed(self, sign: Sign) -> Answer:
        signature = sign(_message("ledger answer 1", self._fields()))
        return Answer(**{**vars(self), "signature": signature})

    def is_signed(self, public: bytes) -> bool:
        return is_signed(_message("ledger answer 1", self._fields()), self.signature, public)

    def to_text(self) -> str:
        return to_text("ledger answer 1", self._fields() | {"signature": self.signature.hex()})

    @classmethod
    def read(cls, path: Path) -> Answer:
        """Every type and length is checked here, and nothing else is trusted: whether it is signed,
        by whom, and to which question. Raises `RosterError`."""
        fields, _ = read_document(path, "ledger answer 1")
        try:
            answer = AnswerForm.parse(fields).answer()
            strangers = [
                row
                for row in answer.rows
                if answer.about not in row.sites or answer.about not in row.batch
            ]
            if strangers or not all(_is_identity(site) for site in answer.heads):
                raise RosterError(
                    "rows: expected sums of the batch of the site that asked, and heads by first "
                    "keys, got others; ask for the file again"
                )
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None
        return answer

    def _fields(self) -> dict[str, Any]:
        return {
            "nonce": self.nonce.hex(),
            "teller": self.teller,
            "about": self.about,
            "head": self.head.hex(),
            "heads": {site: one.hex() for site, one in sorted(self.heads.items())},
            "rows": [row.fields() for row in self.rows],
            "results": [_result_fields(one) for one in self.results],
        }


def rows_about(ledger: Ledger, about: str) -> tuple[tuple[ToldRow, ...], tuple[Receipt, ...]]:
    """What a ledger holds of the sums of another site, each once, and their results. What stands
    for rounds that nobody told of is no sum, and is not told on. Nor are rows that name another
    batch than that site's: taken for its own they would refuse all its later sums (R1)."""
    rows = [row for row in ledger.rows if about in row.sites and row.phase != LOST]
    taken = ledger.receipts | ledger.certified
    keys = sorted({row.key for row in rows} & taken.keys())
    told = dict.fromkeys(
        ToldRow.of(row, about) for row in rows if row.membership == "open" or about in row.batch
    )
    return tuple(told), tuple(taken[key] for key in keys)


def _result_fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "plan": receipt.plan,
        "phase": receipt.phase,
        "round": receipt.round_number,
        "result": receipt.result,
    }


# -- as they are in a file -----------------------------------------------------------------------


def _number(limit: int) -> Any:
    return Field(ge=0, lt=limit, description=f"a number from 0 to {limit - 1}")


def _one_of(*values: str) -> Any:
    return Field(description=f"one of {', '.join(values)}")


Phase = Annotated[Literal["round", "weights"], _one_of("round", "weights")]
#: At most 256 bytes; whether it is a statement is asked later.
Head = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,256}$", description="a signed head")]
Number = Annotated[int, _number(_MAX_NUMBER)]
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$"


class RowForm(Form):
    """A row in an answer."""

    plan: Hex32
    roster: MaybeHex32
    run: Annotated[str, Field(pattern=RUN_NAME, description="a run's name")]
    phase: Phase
    round: Number
    base: MaybeHex32
    batch: Texts
    sites: dict[str, Annotated[str, hexadecimal(2 * HALF_BYTES)]]
    colluding: Annotated[int, _number(MAX_SITES)]
    membership: Annotated[Membership, _one_of("fixed", "batches", "open")]
    weights: Annotated[Literal["private", "public", "equal"], _one_of("private", "public", "equal")]
    steps: Number
    recovered: Flag

    def told_row(self, where: str) -> ToldRow:
        """`where`: the keys to this row. Raises `RosterError` for what is in no ledger."""
        for name, listed in (("batch", self.batch), ("sites", tuple(self.sites))):
            if (
                not 1 <= len(listed) <= MAX_SITES
                or [*listed] != sorted(set(listed))
                or not all(_is_identity(site) for site in listed)
            ):
                raise RosterError(
                    f"{where}.{name}: expected 1 to {MAX_SITES} first keys in order, got "
                    "something else; ask for the file again"
                )
        is_round = self.phase == "round"
        if is_round != bool(self.base) or is_round != bool(self.round):
            raise RosterError(
                f"{where}.base: expected one for a round, and for rounds only, got "
                "something else; ask for the file again"
            )
        versions = {
            site: Version.from_bytes(bytes.fromhex(raw)) for site, raw in self.sites.items()
        }
        return ToldRow(
            plan=self.plan,
            roster=self.roster or "",
            run=self.run,
            phase=self.phase,
            round_number=self.round,
            base=self.base or "",
            batch=self.batch,
            sites=tuple(versions),
            colluding=self.colluding,
            membership=self.membership,
            weights=self.weights,
            steps=self.steps,
            versions=tuple(versions.items()),
            recovered=self.recovered,
        )


class ResultForm(Form):
    """A result in an answer."""

    plan: Hex32
    phase: Phase
    round: Number
    result: Hex32

    def receipt(self) -> Receipt:
        return Receipt(self.plan, self.phase, self.round, self.result)


class QuestionForm(Form):
    """A question's file."""

    nonce: Annotated[str, hexadecimal(NONCE_BYTES)]
    about: Hex32
    signature: Hex64


class AnswerForm(Form):
    """An answer's file."""

    nonce: Annotated[str, hexadecimal(NONCE_BYTES)]
    teller: Hex32
    about: Hex32
    head: Head
    heads: dict[str, Head]
    rows: Listed[RowForm]
    results: Listed[ResultForm]
    signature: Hex64

    def answer(self) -> Answer:
        """Raises `RosterError`."""
        return Answer(
            bytes.fromhex(self.nonce),
            self.teller,
            self.about,
            bytes.fromhex(self.head),
            {site: bytes.fromhex(head) for site, head in self.heads.items()},
            tuple(form.told_row(f"rows.{at}") for at, form in enumerate(self.rows)),
            tuple(form.receipt() for form in self.results),
            bytes.fromhex(self.signature),
        )


def _is_identity(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _message(kind: Kind, fields: Mapping[str, Any]) -> bytes:
    """What is signed: nothing else that this key signs begins so."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return codec.encode([f"fedshield {kind}", hashlib.sha256(text.encode()).digest()])
