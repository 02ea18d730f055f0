"""One site's side of the protocol: from a coordinator's command to a signed reply.

Order of a session: join -> begin -> (make-key | take-key) -> weights -> for each round:
work -> fetch... -> announce -> deliver... -> open -> evaluate; then finish. A command out of
order, for another run, or not signed by the coordinator's key in the roster is refused.

What is trained and measured is behind `LocalWork`, so that nothing here knows a model.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from fedshield import encode, prune
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.scheme import SiteScheme
from fedshield.errors import CryptoError, ProtocolError
from fedshield.plan import Plan, learning_rate
from fedshield.protocol import envelope, messages, run_keys
from fedshield.protocol.envelope import Binding
from fedshield.protocol.journal import Journal
from fedshield.protocol.local import LocalWork, SiteRound, Store
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.session import (
    NONCE_BYTES,
    ROUND,
    SETUP,
    WEIGHTS,
    read_joins,
    read_uploads,
    session_context,
    setup_context,
    upload_digest,
)
from fedshield.types import AdapterState, EncodedUpdate, EncryptedUpdate

_M = TypeVar("_M", bound=messages.Message)


class Participant:
    """A site. `handle` is its only door."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        roster: Roster,
        key: SigningKey,
        work: LocalWork,
        store: Store,
        journal: Journal,
        state: AdapterState,
        completed_rounds: int,
        heldout_loss: float | None = None,
        observe: Callable[[SiteRound], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.state = state
        self.completed_rounds = completed_rounds
        self._plan = plan
        self._roster = roster
        self._key = key
        self._work = work
        self._store = store
        self._journal = journal
        self._observe = observe
        self._heldout_loss = heldout_loss
        self._record = SiteRound(completed_rounds, name)
        self._commands: dict[str, Callable[[bytes], messages.Message]] = {
            "invite": self._invite,
            "begin": self._begin,
            "make-key": self._make_key,
            "take-key": self._take_key,
            "work": self._contribute,
            "fetch": self._fetch,
            "announce": self._announce,
            "deliver": self._deliver,
            "open": self._open,
            "evaluate": self._evaluate,
            "finish": self._finish,
        }
        self._forget()

    def _forget(self) -> None:
        """Drop everything of a session, its keys first."""
        self._keys: run_keys.RunKeys | None = None
        self._run_key: RunKey | None = None
        self._peer_keys: dict[str, bytes] = {}
        self._binding = Binding(bytes(32), 0, SETUP)
        self._join: messages.Join | None = None
        self._weight = 0.0
        self._upload: tuple[EncryptedUpdate, EncodedUpdate, bytes] | None = None
        self._announced: messages.Announce | None = None
        self._delivered: list[bytes] = []
        self._receipt_tag = b""

    # -- the door --------------------------------------------------------------------------

    def handle(self, method: str, data: bytes) -> bytes:
        """The signed reply to a coordinator's signed command.

        Raises `ProtocolError` or `CryptoError`; the engine sends on the code, never the text.
        """
        if method not in self._commands:
            raise ProtocolError("kind", f"unknown command {method!r}")
        reply = self._commands[method](data)
        return envelope.seal(reply.kind, self._binding, self.name, reply.to_body(), self._key.sign)

    def _read(self, kind: type[_M], data: bytes) -> _M:
        body = envelope.unseal(
            data, kind.kind, self._binding, COORDINATOR, self._roster.coordinator
        )
        return kind.from_body(body)

    # -- opening a session -----------------------------------------------------------------

    def _invite(self, data: bytes) -> messages.Message:
        body = envelope.unseal(
            data, "invite", Binding(bytes(32), 0, SETUP), COORDINATOR, self._roster.coordinator
        )
        invite = messages.Invite.from_body(body)
        if invite.plan != self._plan.canonical():
            raise ProtocolError("context", "the coordinator's plan is not the one agreed here")
        if invite.roster != self._roster.encode():
            raise ProtocolError("context", "the coordinator's roster is not the one agreed here")
        self._forget()
        self._run_key = RunKey()
        public = self._plan.scheme.weights == "public"
        self._join = messages.Join(
            nonce=os.urandom(NONCE_BYTES),
            run_key=self._run_key.public,
            completed_rounds=self.completed_rounds,
            num_examples=encode.round_count(self._work.num_examples) if public else 0,
        )
        self._binding = Binding(
            setup_context(self._plan.sha256(), self._roster, invite.session), 0, SETUP
        )
        return self._join

    def _begin(self, data: bytes) -> messages.Message:
        begin = self._read(messages.Begin, data)
        joins = read_joins(begin.joins, self._binding, self._roster)
        if joins[self.name] != self._join:
            raise ProtocolError("disagree", "this site's own join was replaced")
        # Sites that were killed at different moments go on from the earliest round.
        if self.completed_rounds != min(join.completed_rounds for join in joins.values()):
            raise ProtocolError("round", "sites stand at different rounds; roll back to the least")
        self._peer_keys = {site: join.run_key for site, join in joins.items()}
        self._binding = Binding(session_context(self._binding, joins), 0, SETUP)
        if self._plan.scheme.weights == "equal":
            self._weight = 1.0 / len(joins)
        elif self._plan.scheme.weights == "public":
            total = sum(join.num_examples for join in joins.values())
            self._weight = joins[self.name].num_examples / total
        return messages.Ready(self._binding.context)

    def _make_key(self, data: bytes) -> messages.Message:
        self._read(messages.MakeKey, data)
        if self._keys is not None or self.name != run_keys.maker(self._roster):
            raise ProtocolError("repeated", "this site does not make the run's keys, or has")
        if self._run_key is None or not self._peer_keys:
            raise ProtocolError("repeated", "the session has not begun")
        self._keys = run_keys.make(self._plan)
        return run_keys.offer(
            self._keys,
            self._roster,
            self._run_key,
            self._peer_keys,
            self._binding,
            self._key.sign,
        )

    def _take_key(self, data: bytes) -> messages.Message:
        command = self._read(messages.TakeKey, data)
        if self._keys is not None or self._run_key is None or not self._peer_keys:
            raise ProtocolError("repeated", "the session has not begun, or the keys are here")
        self._keys = run_keys.take(
            command.box,
            self._plan,
            self._roster,
            self.name,
            self._run_key,
            self._peer_keys,
            self._binding,
        )
        return messages.Done()

    # -- one round -------------------------------------------------------------------------

    def _contribute(self, data: bytes) -> messages.Message:
        scheme = self._ready_scheme()
        weights = self._binding.phase == SETUP and self._plan.scheme.weights == "private"
        before = self._binding
        self._binding = (
            Binding(before.context, 0, WEIGHTS)
            if weights
            else Binding(before.context, self.completed_rounds + 1, ROUND)
        )
        try:
            command = self._read(messages.Work, data)
        except ProtocolError:
            self._binding = before
            raise
        if self._upload is not None:
            self._binding = before
            raise ProtocolError("repeated", "this site has an upload that is not summed yet")
        self._announced, self._delivered = None, []
        if self._receipt_tag:
            self._check_receipts(command.receipts, before)
        if weights:
            encoded = encode.encode_count(
                encode.round_count(self._work.num_examples),
                encode.weights_layout(scheme.parameters, scheme.number_format),
            )
        else:
            encoded = self._train_and_encode(scheme)
        with self._timed("encrypt"):
            blocks = tuple(scheme.encrypt(encoded.slots))
        upload = messages.Upload(
            key_id=scheme.key_id,
            layout_tag=self._tag(b"layout", encoded.layout.sha256()),
            block_digests=tuple(hashlib.sha256(block).digest() for block in blocks),
        )
        digest = upload_digest(upload)
        self._journal.upload(
            self._binding.context, self._binding.round_number, self._binding.phase, digest
        )
        encrypted = EncryptedUpdate(
            self._plan.scheme.name, scheme.key_id, self._binding.context, upload.layout_tag, blocks
        )
        self._upload = (encrypted, encoded, digest)
        return upload

    def _train_and_encode(self, scheme: SiteScheme) -> EncodedUpdate:
        round_number = self._binding.round_number
        self._record = SiteRound(round_number, self.name)
        with self._timed("train"):
            update, train_loss = self._work.train(self.state, round_number)
        with self._timed("prune"):
            pruned = prune.prune(update, self._plan, round_number)
        with self._timed("encode"):
            encrypting = self._plan.scheme.name == "ckks"
            encoded = encode.encode_update(
                pruned,
                self._weight,
                encode.update_layout(self.state.spec, scheme.parameters, scheme.number_format),
                grid_bits=self._plan.encoding.grid_bits if encrypting else None,
                slot_limit=scheme.parameters.sum_limit / (2 * len(self._roster.sites)),
            )
        self._record = replace(
            self._record,
            train_loss=train_loss,
            num_examples=update.num_examples,
            learning_rate=learning_rate(self._plan, round_number),
            pruning_rate=pruned.mask.rate,
            pruned_values=pruned.mask.num_pruned,
            clipped_values=encoded.num_clipped,
        )
        return encoded

    def _fetch(self, data: bytes) -> messages.Message:
        index = self._read(messages.Fetch, data).index
        encrypted = self._current_upload()[0]
        if not 0 <= index < len(encrypted.blocks):
            raise ProtocolError("size", f"block {index} of {len(encrypted.blocks)} was asked for")
        return messages.Block(index, encrypted.blocks[index])

    def _announce(self, data: bytes) -> messages.Message:
        command = self._read(messages.Announce, data)
        encrypted, encoded, digest = self._current_upload()
        uploads = read_uploads(command.uploads, self._binding, self._roster)
        # Only the whole roster is ever opened: a sum over fewer would tell more about each.
        if set(uploads) != set(self._roster.names()):
            missing = sorted(set(self._roster.names()) - set(uploads))
            raise ProtocolError("not-in-set", f"the sum leaves out {', '.join(missing)}")
        if upload_digest(uploads[self.name]) != digest:
            raise ProtocolError("digest", "this site's own upload was replaced")
        for site, upload in uploads.items():
            if not hmac.compare_digest(upload.layout_tag, encrypted.layout_tag):
                raise ProtocolError("layout", f"{site} laid its values out differently")
            if upload.key_id != encrypted.key_id:
                raise ProtocolError("scheme", f"{site} encrypted under another key")
        if len(command.block_digests) != encoded.layout.num_blocks:
            raise ProtocolError("size", "the sum has a wrong number of blocks")
        base = f"{self._binding.phase} {self.state.sha256()}"
        self._journal.open(base, list(uploads))
        self._announced, self._delivered = command, []
        return messages.Done()

    def _deliver(self, data: bytes) -> messages.Message:
        command = self._read(messages.Deliver, data)
        announced = self._announced
        if announced is None or command.index != len(self._delivered):
            raise ProtocolError("repeated", f"block {command.index} came out of turn")
        if command.index >= len(announced.block_digests):
            raise ProtocolError("size", f"block {command.index} was not announced")
        expected = announced.block_digests[command.index]
        if hashlib.sha256(command.block).digest() != expected:
            raise ProtocolError("digest", f"block {command.index} is not the one announced")
        self._delivered.append(command.block)
        return messages.Done()

    def _open(self, data: bytes) -> messages.Message:
        self._read(messages.Open, data)
        scheme = self._ready_scheme()
        encoded = self._current_upload()[1]
        announced = self._announced
        if announced is None or len(self._delivered) != len(announced.block_digests):
            raise ProtocolError("repeated", "there is nothing whole to open")
        # One try: what does not open is not asked for again, or each answer would tell a bit.
        delivered = self._delivered
        self._announced, self._delivered, self._upload = None, [], None
        with self._timed("open"):
            opened = encode.decode_sum(
                scheme.open(delivered, encoded.layout.num_slots), encoded.layout
            )
        if self._binding.phase == WEIGHTS:
            total = encode.decode_count(opened, len(self._roster.sites))
            self._take_weights(total)
            tagged = total.to_bytes(8, "big")
        else:
            state = encode.apply_sum(self.state, opened, self._plan.adapter.exchange)
            # Kept first: a site never stands at a round that it could not load again.
            self._store.save(self._binding.round_number, state)
            self.state, self.completed_rounds = state, self._binding.round_number
            tagged = bytes.fromhex(self.state.sha256())
        self._receipt_tag = self._tag(b"model", tagged)
        return messages.Receipt(self._receipt_tag)

    def _take_weights(self, total: int) -> None:
        own = encode.round_count(self._work.num_examples)
        if total < own:
            raise CryptoError("weights: the total is less than this site's own count")
        self._weight = own / total

    def _evaluate(self, data: bytes) -> messages.Message:
        self._read(messages.Evaluate, data)
        with self._timed("evaluate"):
            loss = self._work.evaluate(self.state)
        before = loss if self._heldout_loss is None else self._heldout_loss
        self._heldout_loss = loss
        self._observe(replace(self._record, heldout_loss_before=before, heldout_loss_after=loss))
        return messages.Done()

    def _finish(self, data: bytes) -> messages.Message:
        command = self._read(messages.Finish, data)
        binding = self._binding
        if self._receipt_tag:
            self._check_receipts(command.receipts, binding)
        self._forget()
        self._binding = binding  # the reply still belongs to this session
        return messages.Done()

    # -- helpers ---------------------------------------------------------------------------

    def _ready_scheme(self) -> SiteScheme:
        if self._keys is None:
            raise ProtocolError("scheme", "the run's keys are not here yet")
        return self._keys.scheme

    def _current_upload(self) -> tuple[EncryptedUpdate, EncodedUpdate, bytes]:
        if self._upload is None:
            raise ProtocolError("repeated", "this site has no upload in this round")
        return self._upload

    def _check_receipts(self, receipts: dict[str, bytes], binding: Binding) -> None:
        """Every site must have opened the same model in the round before."""
        for site in self._roster.names():
            if site not in receipts:
                raise ProtocolError("disagree", f"{site}'s receipt of the last round is missing")
            receipt = messages.Receipt.from_body(
                envelope.unseal(receipts[site], "receipt", binding, site, self._roster.public(site))
            )
            if not hmac.compare_digest(receipt.model_tag, self._receipt_tag):
                raise ProtocolError("disagree", f"{site} opened another model")

    def _tag(self, label: bytes, value: bytes) -> bytes:
        binding = self._binding
        message = label + binding.context + binding.round_number.to_bytes(8, "big") + value
        assert self._keys is not None
        return hmac.digest(self._keys.group_key, message, "sha256")

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._record.wall_s[phase] = self._record.wall_s.get(phase, 0.0) + (
            time.perf_counter() - start
        )
