"""Why a sum is made at a site: what goes into it, what all sites must agree on, what its result is.

`participant_sum` knows nothing of it: it moves one encoded vector. A sum with another purpose is
another class here and one line in `Participant`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from fedshield.errors import CryptoError, ProtocolError
from fedshield.protocol.contexts import ROUND, WEIGHTS
from fedshield.protocol.line import Line
from fedshield.site.ciphers import Cipher, Encoded, Parts, example_count
from fedshield.site.round import SiteModel
from fedshield.types import OpenedSum

#: Raises for a vector that this site's ledger would not admit to the sum.
Admit = Callable[[Encoded], None]


class SumTask(Protocol):
    """A sum's purpose. `phase` and `round_number` are in every context that the sum is bound to.

    `base`: what the sum starts from, as the journal knows it: from one base only one set is summed,
    for ever.
    """

    phase: str
    round_number: int
    base: str

    def encode(self, cipher: Cipher, admit: Admit) -> Encoded:
        """What this site puts in. Raises `ProtocolError` where a rule forbids it."""

    def starts_from(self) -> str:
        """Digest of what all sites start from, hex, as the ledger's row has it; '' for nothing."""

    def content_sha256(self, encoded: Encoded) -> str:
        """H(m) of rule R4, hex."""

    def parts(self) -> Parts:
        """Slices of the values and the quantisation range of each."""

    def take(
        self, opened: OpenedSum, contributors: tuple[str, ...]
    ) -> tuple[str, Callable[[], None]]:
        """The result's digest, hex, which receipts are for, and what takes the result. Raises
        `CryptoError` for a sum that this one cannot be."""


class WeightsTask:
    """The total of the sites' example counts, once a session. `taken`: told the total, and whether
    this site is in it."""

    phase = WEIGHTS
    round_number = 0

    def __init__(
        self, name: str, session: bytes, num_examples: int, taken: Callable[[int, bool], None]
    ) -> None:
        self.base = f"{WEIGHTS} {session.hex()}"
        self._name = name
        self._num_examples = num_examples
        self._taken = taken

    def encode(self, cipher: Cipher, admit: Admit) -> Encoded:
        encoded = cipher.encode_count(self._num_examples)
        admit(encoded)
        return encoded

    def starts_from(self) -> str:
        return ""

    def content_sha256(self, encoded: Encoded) -> str:
        return encoded.sha256()

    def parts(self) -> Parts:
        return []

    def take(
        self, opened: OpenedSum, contributors: tuple[str, ...]
    ) -> tuple[str, Callable[[], None]]:
        total, in_set = example_count(opened, len(contributors)), self._name in contributors
        if total < 1 or (in_set and total < self._num_examples):
            raise CryptoError("weights: the total is less than this site's own count", "weight")
        digest = hashlib.sha256(total.to_bytes(8, "big")).hexdigest()
        return digest, lambda: self._taken(total, in_set)


class RoundTask:
    """A round's update. `weight`: this site's share; `over_budget`: why the round would exceed the
    plan's privacy limit for these records, None where it would not (R5)."""

    phase = ROUND

    def __init__(
        self,
        model: SiteModel,
        line: Line,
        weight: float,
        over_budget: Callable[[], str | None],
    ) -> None:
        self.base = f"{ROUND} {model.state.sha256()}"
        self.round_number = model.completed_rounds + 1
        self._model = model
        self._line = line
        self._weight = weight
        self._over_budget = over_budget

    def encode(self, cipher: Cipher, admit: Admit) -> Encoded:
        """Trained, or as it was sent before."""
        # Before anything is trained, or what was encoded before is forgotten.
        why = self._over_budget()
        if why is not None:
            raise ProtocolError("budget", why)
        number, made_of = self.round_number, self._line.made_of
        self._line.check_not_taken(number)
        if self._line.may_have_sent(number):
            self._model.check_kept(number, self._weight, made_of)
        return self._model.contribution(number, cipher, self._weight, made_of, admit)

    def starts_from(self) -> str:
        return self._model.standing()

    def content_sha256(self, encoded: Encoded) -> str:
        return self._model.content_sha256(encoded)

    def parts(self) -> Parts:
        return self._model.parts()

    def take(
        self, opened: OpenedSum, contributors: tuple[str, ...]
    ) -> tuple[str, Callable[[], None]]:
        return self._model.opened(opened, self.round_number, self._weight, contributors)
