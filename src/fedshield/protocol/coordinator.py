"""The coordinator: it tells sites when to act, adds what it cannot read, and hands back the sum.

It holds public material only: signing keys of the roster, the scheme's public context, and
ciphertexts as they pass. Nothing that this module imports can hold a key that opens anything
(a test follows its imports). Blocks are pulled one at a time, added and dropped, so its memory
is one aggregate, however many sites there are.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fedshield.crypto.scheme import Adder, adder
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.plan import Plan
from fedshield.protocol import envelope, messages
from fedshield.protocol.envelope import Binding, Sign
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.session import (
    ROUND,
    SETUP,
    WEIGHTS,
    read_joins,
    read_uploads,
    session_context,
    setup_context,
    upload_digest,
)
from fedshield.protocol.sites import Sites
from fedshield.types import EncryptedSum

_M = TypeVar("_M", bound=messages.Message)


@dataclass(frozen=True)
class RoundOutcome:
    """What the coordinator knows of a finished round: no value of any model."""

    round_number: int
    aggregate_sha256: str
    aggregate_s: float


class Coordinator:
    """Runs the protocol over `sites`. `sign` signs as the roster's coordinator."""

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        sites: Sites,
        sign: Sign,
        timeout_s: float | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._roster = roster
        self._sites = sites
        self._sign = sign
        self._timeout_s = timeout_s
        self._progress = progress
        self._binding = Binding(bytes(32), 0, SETUP)
        self._adder: Adder | None = None
        self._receipts: dict[str, bytes] = {}
        self.completed_rounds = 0

    # -- a session -------------------------------------------------------------------------

    def start(self) -> None:
        """Invite, agree on a context, have the run's keys made and passed on, sum the weights,
        and measure where the model stands. Raises `RoundFailed` if any site fails."""
        self._binding, self._receipts = Binding(bytes(32), 0, SETUP), {}
        session = os.urandom(16)
        invite = messages.Invite(session, self._plan.canonical(), self._roster.encode())
        setup = Binding(setup_context(self._plan.sha256(), self._roster, session), 0, SETUP)
        raw = self._call_raw(dict.fromkeys(self._roster.names(), invite))
        self._binding = setup
        with _refusing():
            joins = read_joins(raw, setup, self._roster)
        begin = messages.Begin(raw)
        context = session_context(setup, joins)
        after = Binding(context, 0, SETUP)
        for site, ready in self._all(begin, messages.Ready, replies_in=after).items():
            if ready.context != context:
                raise RoundFailed(f"{site} derived another session; start again")
        self.completed_rounds = min(join.completed_rounds for join in joins.values())
        self._share_keys()
        if self._plan.scheme.weights == "private":
            self._sum_once(WEIGHTS, 0)
        self._all(messages.Evaluate(), messages.Done)

    def _share_keys(self) -> None:
        maker, *others = self._roster.names()
        offers = self._call({maker: messages.MakeKey()}, messages.KeyOffer)
        offer = offers[maker]
        scheme = self._plan.scheme
        with _refusing():
            self._adder = adder(scheme.name, scheme.parameter_set, offer.public)
        if set(offer.boxes) != set(others):
            raise RoundFailed(f"{maker} did not make a key for every site; start again")
        if others:
            take = {site: messages.TakeKey(offer.boxes[site]) for site in others}
            self._call(take, messages.Done)

    def round(self, round_number: int) -> RoundOutcome:
        """One round: local work, sum, opening at the sites, evaluation. Raises `RoundFailed`;
        no site then has a model that the others could not open: those that opened stand a round
        ahead, and a new session goes on from the earliest."""
        outcome = self._sum_once(ROUND, round_number)
        self.completed_rounds = round_number
        self._progress("evaluate")
        self._all(messages.Evaluate(), messages.Done)
        return outcome

    def finish(self) -> None:
        """Have every site compare the last receipts and forget the session's keys."""
        self._all(messages.Finish(self._receipts), messages.Done)

    # -- summing ---------------------------------------------------------------------------

    def _sum_once(self, phase: str, round_number: int) -> RoundOutcome:
        receipts, self._receipts = self._receipts, {}
        self._binding = Binding(self._binding.context, round_number, phase)
        self._progress("work")
        work = messages.Work(receipts)
        raw = self._call_raw(dict.fromkeys(self._roster.names(), work))
        with _refusing():
            uploads = read_uploads(raw, self._binding, self._roster)
        self._progress("aggregate")
        started = time.perf_counter()
        total = self._aggregate(uploads)
        announce = messages.Announce(
            raw, tuple(hashlib.sha256(block).digest() for block in total.blocks)
        )
        aggregate_s = time.perf_counter() - started
        self._all(announce, messages.Done)
        for index, block in enumerate(total.blocks):
            self._all(messages.Deliver(index, block), messages.Done)
        self._progress("open")
        self._receipts = self._call_raw(dict.fromkeys(self._roster.names(), messages.Open()))
        receipts_read = self._read_all(self._receipts, messages.Receipt, self._binding)
        if len({receipt.model_tag for receipt in receipts_read.values()}) != 1:
            raise RoundFailed("the sites opened different sums; the run stops here")
        digest = hashlib.sha256(b"".join(announce.block_digests)).hexdigest()
        return RoundOutcome(round_number, digest, aggregate_s)

    def _aggregate(self, uploads: Mapping[str, messages.Upload]) -> EncryptedSum:
        first = next(iter(uploads.values()))
        for site, upload in uploads.items():
            if upload.key_id != first.key_id or upload.layout_tag != first.layout_tag:
                raise RoundFailed(f"{site} used another key or layout than the others")
            if len(upload.block_digests) != len(first.block_digests):
                raise RoundFailed(f"{site} announced a different number of blocks")
        assert self._adder is not None, "start() comes first"
        blocks: list[bytes] = []
        for index in range(len(first.block_digests)):
            total: object | None = None
            for site, upload in uploads.items():
                block = self._call({site: messages.Fetch(index)}, messages.Block)[site]
                if hashlib.sha256(block.data).digest() != upload.block_digests[index]:
                    raise RoundFailed(f"{site}: block {index} is not the one it announced")
                try:
                    total = self._adder.add(total, block.data)
                except CryptoError as error:
                    raise RoundFailed(f"{site}: block {index}: {error}") from None
            blocks.append(self._adder.result(total))
        return EncryptedSum(
            scheme=self._plan.scheme.name,
            key_id=first.key_id,
            context=self._binding.context,
            layout_tag=first.layout_tag,
            contributors={site: upload_digest(upload) for site, upload in uploads.items()},
            blocks=tuple(blocks),
        )

    # -- calling ---------------------------------------------------------------------------

    def _call_raw(self, commands: Mapping[str, messages.Message]) -> dict[str, bytes]:
        sealed: dict[int, bytes] = {}
        args: dict[str, bytes] = {}
        for site, command in commands.items():
            if id(command) not in sealed:
                sealed[id(command)] = envelope.seal(
                    command.kind, self._binding, COORDINATOR, command.to_body(), self._sign
                )
            args[site] = sealed[id(command)]
        method = next(iter(commands.values())).kind
        replies = self._sites.call(method, args, self._timeout_s)
        missing = {site: "no answer" for site in args if site not in replies.ok}
        if missing or replies.failed:
            failed = missing | dict(replies.failed)
            why = ", ".join(f"{site} ({code})" for site, code in sorted(failed.items()))
            raise RoundFailed(
                f"{method}: no answer from {why}; the model of the last round is kept"
            )
        return {site: replies.ok[site] for site in args}

    def _read_all(
        self, raw: Mapping[str, bytes], kind: type[_M], binding: Binding
    ) -> dict[str, _M]:
        with _refusing():
            return {
                site: kind.from_body(
                    envelope.unseal(data, kind.kind, binding, site, self._roster.public(site))
                )
                for site, data in raw.items()
            }

    def _call(
        self,
        commands: Mapping[str, messages.Message],
        kind: type[_M],
        replies_in: Binding | None = None,
    ) -> dict[str, _M]:
        raw = self._call_raw(commands)
        self._binding = replies_in or self._binding
        return self._read_all(raw, kind, self._binding)

    def _all(
        self, command: messages.Message, kind: type[_M], replies_in: Binding | None = None
    ) -> dict[str, _M]:
        return self._call(dict.fromkeys(self._roster.names(), command), kind, replies_in)


@contextmanager
def _refusing() -> Iterator[None]:
    """What a site sent and the coordinator cannot use ends the round, not the process."""
    try:
        yield
    except (ProtocolError, CryptoError) as error:
        raise RoundFailed(f"a site's answer was refused: {error}") from None
