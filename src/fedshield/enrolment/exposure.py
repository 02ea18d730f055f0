"""A site's own word that its updates may be had by subtraction.

Who goes or joins alone is in some sums and not in others, and their difference is its update. So
the one at risk signs, with the key of its card; those who stay cannot agree for it. The statement
names the roster that is left or joined, and the site's batch before and after, and holds for that
step of that consortium only: in another one, or at another step, nobody takes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from fedshield.enrolment.cards import Card, CardForm, KeyFile
from fedshield.enrolment.files import RosterError, check_identity, read_document, to_text
from fedshield.enrolment.forms import Form, Hex32, Hex64, MaybeHex32, Text, Texts
from fedshield.enrolment.replacement import is_signed
from fedshield.protocol.wire import codec

#: `leaving`: goes with c + 1 others or more, and is not exposed by it; `announced`: in advance, by
#: whoever goes later from a roster with `departure: announced`.
Kind = Literal["going", "leaving", "joining", "announced"]
KINDS: tuple[Kind, ...] = ("going", "leaving", "joining", "announced")


@dataclass(frozen=True)
class Exposure:
    """One step of one site. `card`: its card then; `consortium`, `roster`: SHA-256 of the contents
    of the consortium's first roster and of the one that is followed; `before`, `after`: its batch
    in that one and in the next, by first keys (hex): of who goes, the others of its batch who stay
    are `after`, nothing where it signs in advance; of who joins, those who were there are `before`.
    `following`: of who goes, SHA-256 of the batches of all these rosters, the next one's with them
    (`lineage.chain_digest`), which it signs for no other next one; else nothing.

    One that the card's key did not sign cannot be made: `RosterError`."""

    kind: Kind
    card: Card
    consortium: bytes
    roster: bytes
    before: tuple[str, ...]
    after: tuple[str, ...]
    following: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RosterError(
                f"exposure of {self.card.name}: expected {', '.join(KINDS)}, got "
                f"{str(self.kind)[:40]!r}; ask its site for it again"
            )
        message = _message(
            *(self.kind, self.card, self.consortium, self.roster),
            *(self.before, self.after, self.following),
        )
        if not is_signed(message, self.signature, self.card.public):
            raise RosterError(
                f"exposure of {self.card.name}: expected a statement signed by the key of its card "
                f"({self.card.public.hex()[:16]}), got another signature: it was changed or "
                f"forged; ask {self.card.name} what it signed"
            )

    @classmethod
    def sign(
        cls,
        key_file: KeyFile,
        kind: Kind,
        consortium: bytes,
        roster: bytes,
        before: Sequence[str],
        after: Sequence[str],
        following: bytes = b"",
    ) -> Exposure:
        """Signed by the site itself.

        Args:
            key_file: of the site.
            kind: what it does.
            consortium: SHA-256 of the content of the consortium's first roster, 32 bytes.
            roster: SHA-256 of the content of the roster that is followed, 32 bytes.
            before: its batch in that one, by first keys (hex).
            after: its batch in the next, by first keys (hex).
            following: SHA-256 of the batches of all these rosters, 32 bytes; nothing for no one
                next roster.
        """
        card = key_file.card()
        message = _message(kind, card, consortium, roster, before, after, following)
        signature = key_file.key.sign(message)
        return cls(
            *(kind, card, consortium, roster),
            *(tuple(before), tuple(after), following, signature),
        )

    @property
    def exposes(self) -> bool:
        """Whether its site's updates may be had by subtraction: not if it goes hidden by others."""
        return self.kind != "leaving"

    def content(self) -> list[codec.Value]:
        """What of it is under the countersignatures of a roster."""
        value: list[codec.Value] = [self.kind, self.card.content(), self.consortium, self.roster]
        return [*value, [*self.before], [*self.after], self.following, self.signature]

    def sha256(self) -> bytes:
        return hashlib.sha256(codec.encode(self.content())).digest()

    def fields(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "card": self.card.fields(),
            "consortium": self.consortium.hex(),
            "roster": self.roster.hex(),
            "before": [*self.before],
            "after": [*self.after],
            "following": self.following.hex() or None,
            "signature": self.signature.hex(),
        }

    def to_text(self) -> str:
        return to_text("exposure 1", self.fields())

    @classmethod
    def read(cls, path: Path) -> Exposure:
        fields, _ = read_document(path, "exposure 1")
        try:
            return ExposureForm.parse(fields).exposure()
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None


class ExposureForm(Form):
    """A statement in its file or in a roster."""

    kind: Text
    card: CardForm
    consortium: Hex32
    roster: Hex32
    before: Texts
    after: Texts
    following: MaybeHex32
    signature: Hex64

    def exposure(self, where: str = "") -> Exposure:
        """`where`: what the names of its keys begin with. Raises `RosterError` for one that is not
        signed."""
        card = self.card.card()
        for key, sites in (("before", self.before), ("after", self.after)):
            for site in sites:
                check_identity(site, where + key)
        return Exposure(
            cast(Kind, self.kind),  # which it checks
            card,
            bytes.fromhex(self.consortium),
            bytes.fromhex(self.roster),
            self.before,
            self.after,
            bytes.fromhex(self.following or ""),
            bytes.fromhex(self.signature),
        )


def _message(
    kind: str,
    card: Card,
    consortium: bytes,
    roster: bytes,
    before: Sequence[str],
    after: Sequence[str],
    following: bytes,
) -> bytes:
    value: list[codec.Value] = ["fedshield exposure 1", kind, card.name, card.first_public().hex()]
    return codec.encode([*value, consortium, roster, [*before], [*after], following])
