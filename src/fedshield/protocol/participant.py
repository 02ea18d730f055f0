"""One site's side of the protocol: from a coordinator's command to a signed reply.

Order of a session: join -> begin -> (make-key | take-key) -> one sum of the weights -> for each
round one sum, then evaluate; last finish. A sum: prepare -> work -> fetch... -> fetch-shares ->
hold -> announce -> quorum -> deliver... -> open -> install (`participant_sum`). With membership
batches a site that was away takes the model after the keys (attest, give-model, take-model), and
`train` comes before `work`. A command out of order, for another run, or not signed by the
coordinator's key in the roster is refused.

What is trained and measured is behind `LocalWork`, so that nothing here knows a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.crypto.shares import Share
from fedshield.errors import CryptoError, ProtocolError
from fedshield.ledger.entries import OpenedRound
from fedshield.ledger.rows import Version
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import Spent
from fedshield.protocol import run_keys
from fedshield.protocol.catch_up import CatchUp, history_sha256
from fedshield.protocol.contexts import (
    NONCE_BYTES,
    ROUND,
    SETUP,
    check_whole,
    least_opened,
    least_sites,
    read_joins,
    read_signed,
    session_context,
    setup_context,
)
from fedshield.protocol.journal import Journal
from fedshield.protocol.line import Line
from fedshield.protocol.log import entries
from fedshield.protocol.participant_sum import Member, Summation, tag
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.sum_task import RoundTask, SumTask, WeightsTask
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.seeds import SiteRandomness
from fedshield.site.ciphers import Cipher, Encoded
from fedshield.site.interfaces import LocalWork, Sent, SiteRound, Store
from fedshield.site.round import SiteModel, standing_digest
from fedshield.site.schemes import SessionKeys, scheme_of
from fedshield.types import AdapterState, SiteMemory

_M = TypeVar("_M", bound=messages.Message)


class Inspector(Protocol):
    """Who sees what a site holds in memory while a round is made: its operator could. An audit is
    one; a run between organisations has none."""

    def took_keys(self, keys: run_keys.RunKeys) -> None:
        """The keys of the session."""

    def contributed(self, round_number: int, weight: float, sent: Sent) -> None:
        """What is about to leave, encrypted."""

    def held(self, round_number: int, shares: Mapping[str, Share]) -> None:
        """The shares that this site was dealt: dealer -> share."""


class Participant:
    """A site. `handle` is its only door. `randomness`: of its training and rounding; `secret`: 32
    bytes of the site's own, which harden every key that it makes against a poor generator;
    `example_cap`: most examples that it counts for; `line`: the rules over all sums of its records;
    `start`: digest of what the plan starts from; `log`: takes what the site did and refused, before
    a reply leaves."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        roster: Roster,
        key: SigningKey,
        work: LocalWork,
        store: Store,
        journal: Journal,
        line: Line,
        state: AdapterState,
        completed_rounds: int,
        randomness: SiteRandomness,
        memory: SiteMemory | None = None,
        heldout_loss: float | None = None,
        secret: bytes | None = None,
        example_cap: int | None = None,
        start: str = "",
        restart: bytes = b"",
        observe: Callable[[SiteRound], None] = lambda _: None,
        inspector: Inspector | None = None,
        log: entries.Log = entries.unlogged,
    ) -> None:
        if roster.rules != plan.rules():
            raise ProtocolError("context", "the roster's quorums are not the plan's")
        self.name = name
        self._model = SiteModel(
            name,
            plan,
            work,
            store,
            state,
            completed_rounds,
            memory,
            heldout_loss,
            example_cap,
            randomness=randomness,
        )
        self._plan = plan
        self._scheme = scheme_of(plan)
        self._roster = roster
        self._key = key
        self._journal = journal
        self._line = line
        self._start = start
        self._restart = restart
        self._secret = secret or os.urandom(32)
        self._observe = observe
        self._inspector = inspector
        self._log = log
        self._session_id = ""
        # What was wrong with peers' answers: in this command, and in the sum that is opened.
        self._noticed: dict[str, str] = {}
        self._faulty: dict[str, str] = {}
        self._commands: dict[str, Callable[[bytes], messages.Message]] = {
            "invite": self._invite,
            "begin": self._begin,
            "make-key": self._make_key,
            "take-key": self._take_key,
            "attest": self._attest,
            "give-model": self._give_model,
            "take-model": self._take_model,
            "prepare": self._prepare,
            "train": self._train,
            "work": self._contribute,
            "fetch": self._fetch,
            "fetch-shares": self._fetch_shares,
            "hold": self._hold,
            "announce": self._announce,
            "quorum": self._quorum,
            "deliver": self._deliver,
            "open": self._open,
            "install": self._install,
            "evaluate": self._evaluate,
            "may-go-on": self._may_go_on,
            "finish": self._finish,
        }
        self._forget()

    def _forget(self) -> None:
        """Drop everything of a session, its keys first."""
        self._keys: run_keys.RunKeys | None = None
        self._cipher: Cipher | None = None
        self._sum: Summation | None = None
        self._run_key: RunKey | None = None
        self._peer_keys: dict[str, PublicKey] = {}
        self._session = self._binding = Binding(bytes(32), 0, SETUP)
        self._join: messages.Join | None = None
        self._weight = 0.0
        self._worked = False
        self._weights_total = 0
        self._left_out_of_weights = False
        self._receipt_tag = b""
        self._versions: dict[str, Version] = {}
        self._models: CatchUp | None = None
        self._task: SumTask | None = None
        self._trained: Encoded | None = None
        # What takes the sum that was opened last; its result, and whether this site signed for it.
        self._opened: Callable[[], None] | None = None
        self._result, self._signed = "", False
        self._faulty = {}

    @property
    def state(self) -> AdapterState:
        return self._model.state

    @property
    def memory(self) -> SiteMemory:
        return self._model.memory

    @property
    def completed_rounds(self) -> int:
        return self._model.completed_rounds

    @property
    def spent(self) -> Spent | None:
        """What of the plan's privacy this site's records have spent, by its ledger; None where the
        plan protects no unit."""
        return self._line.spent(self._model.terms)

    @property
    def exhausted(self) -> bool:
        """Whether the next round would exceed the plan's limit for these records (R5), whatever the
        coordinator asks for. A round that was tried before was counted then."""
        spent, number = self.spent, self.completed_rounds + 1
        if spent is None or self._line.has_entered(Binding(bytes(32), number, ROUND)):
            return False
        return spent.exhausted

    # -- the door --------------------------------------------------------------------------

    def handle(self, method: str, data: bytes) -> bytes:
        """The signed reply to a coordinator's signed command.

        Raises `ProtocolError` or `CryptoError`; the engine sends on the code, never the text.
        """
        self._noticed = {}
        try:
            if method not in self._commands:
                raise ProtocolError("kind", f"unknown command {method!r}")
            reply = self._commands[method](data)
        except Exception as error:
            session, noticed = self._session_id, self._noticed
            self._log(entries.refused(method, data, session, self._binding, error, noticed))
            raise
        body = reply.to_body()
        sealed = envelope.seal(reply.kind, self._binding, self.name, body, self._key.sign)
        if method not in entries.UNLOGGED:
            session, noticed = self._session_id, self._noticed
            self._log(entries.answered(self.name, method, data, session, sealed, reply, noticed))
        return sealed

    def _read(self, kind: type[_M], data: bytes) -> _M:
        """First in every command: who cannot sign must not learn by a code what goes on here."""
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
        self._session_id = invite.session[:32].hex()
        self._model.begin()
        self._run_key = RunKey(self._secret)
        public = self._plan.scheme.weights == "public"
        follows_from = self._line.follow()  # a line of the ledger, so its head comes after
        self._join = messages.Join(
            nonce=os.urandom(NONCE_BYTES),
            run_key=self._run_key.public.to_bytes(),
            completed_rounds=self.completed_rounds,
            num_examples=self._model.num_examples if public else 0,
            version=self._line.version.to_bytes(),
            head=self._line.heads.statement(self._key.sign),
            heads=self._line.heads.statements(),
            restart=self._restart,
            follows_from=follows_from,
        )
        self._binding = Binding(
            setup_context(self._plan.sha256(), self._roster, invite.session), 0, SETUP
        )
        return self._join

    def _begin(self, data: bytes) -> messages.Message:
        begin = self._read(messages.Begin, data)
        least = least_sites(self._roster.rules)
        public = self._plan.scheme.weights == "public"
        joins = read_joins(begin.joins, self._binding, self._roster, least, public=public)
        if joins.get(self.name) != self._join:
            raise ProtocolError("disagree", "this site's own join was replaced")
        if {join.restart for join in joins.values()} != {self._restart}:
            raise ProtocolError("round", "the session's sites began from different standings")
        check_whole(self._roster, joins)
        standing = {join.completed_rounds for join in joins.values()}
        if not self._in_batches and standing != {self.completed_rounds}:
            raise ProtocolError("round", "the session's sites stand at different rounds")
        self._line.heads.compare(
            {site: join.head for site, join in joins.items()},
            {site: join.heads for site, join in joins.items()},
        )
        self._line.check_followed({site: join.follows_from for site, join in joins.items()})
        self._versions = {site: Version.from_bytes(join.version) for site, join in joins.items()}
        self._peer_keys = {site: PublicKey.from_bytes(join.run_key) for site, join in joins.items()}
        self._session = Binding(session_context(self._binding, joins), 0, SETUP)
        self._binding = self._session
        self._weigh(joins)
        return messages.Ready(self._binding.context)

    def _weigh(self, joins: dict[str, messages.Join]) -> None:
        """This site's weight, as far as it is known before the sums. With membership batches it is
        the share of the whole roster in every session: what a site puts into a sum must not depend
        on who else is in it, or sums over other sets are other equations (R2)."""
        weights, told = self._plan.scheme.weights, sum(join.num_examples for join in joins.values())
        sites = self._roster.sites if self._in_batches else joins
        if weights == "equal":
            self._weight = 1.0 / len(sites)
            return
        if not self._in_batches:
            if weights == "public":
                self._weight = joins[self.name].num_examples / told
            return
        everyone = len(joins) == len(sites)
        if weights == "private" and everyone:
            return  # by the tally, which is over all
        if weights == "public" and everyone:
            # Who is shown other joins has another total, and from then on no tag that fits the
            # others': that stops the plan, which the coordinator can do in any case.
            self._line.fix_total(told)
        total = self._line.total()
        if not total:
            missing = ", ".join(sorted(set(sites) - set(joins)))
            raise ProtocolError(
                "cohort",
                "expected all sites in the session that weighs them: each weight is a share of all "
                f"rows; have {missing} back, once",
            )
        if told > total:
            raise ProtocolError("rule", f"R2: expected at most {total:,} rows in all, got {told:,}")
        self._weights_total, self._weight = total, self._model.num_examples / total

    def _make_key(self, data: bytes) -> messages.Message:
        self._read(messages.MakeKey, data)
        if self._run_key is None or not self._peer_keys:
            raise ProtocolError("repeated", "the session has not begun")
        if self._keys is not None or self.name != run_keys.maker(self._peer_keys):
            raise ProtocolError("repeated", "this site does not make the run's keys, or has")
        keys = run_keys.make(self._scheme)
        self._take(keys)
        return run_keys.offer(
            keys,
            self._run_key,
            self._peer_keys,
            self._binding,
            self._key.sign,
        )

    def _take_key(self, data: bytes) -> messages.Message:
        command = self._read(messages.TakeKey, data)
        if self._keys is not None or self._run_key is None or not self._peer_keys:
            raise ProtocolError("repeated", "the session has not begun, or the keys are here")
        self._take(
            run_keys.take(
                command.box,
                self._scheme,
                self._roster,
                self.name,
                self._run_key,
                self._peer_keys,
                self._binding,
            )
        )
        return messages.Done()

    def _take(self, keys: run_keys.RunKeys) -> None:
        self._keys = keys
        if self._inspector is not None:
            self._inspector.took_keys(keys)
        session = SessionKeys(keys.scheme, keys.group_key, self._secret)
        self._cipher = self._scheme.cipher(session)

    # -- the model of the last round, to who was away ----------------------------------------

    def _attest(self, data: bytes) -> messages.Message:
        self._read(messages.Attest, data)
        return messages.Attested(self.completed_rounds, self._exchange().tag(self._history()))

    def _give_model(self, data: bytes) -> messages.Message:
        index = self._read(messages.GiveModel, data).index
        shared = self.memory.shared
        return self._exchange().give(index, self.state, shared, self._history())

    def _history(self) -> tuple[OpenedRound, ...]:
        """The rounds that led to where this site stands. Raises `ProtocolError` ('ledger') where
        its ledger does not end in the model that it holds."""
        history = self._line.history(self.completed_rounds)
        if history and history[-1].result != self._model.standing():
            raise ProtocolError(
                "ledger",
                f"expected the model that this site's ledger has after round {len(history)}, got "
                "another; restore the run folder",
            )
        return history

    def _take_model(self, data: bytes) -> messages.Message:
        """One part; with the last the model is taken, if c + 1 sites attest to it."""
        command, exchange = self._read(messages.TakeModel, data), self._exchange()
        if self._sum is not None:
            raise ProtocolError("repeated", "a model comes before a sum")
        here = self.completed_rounds
        try:
            taken = exchange.take(command, self.state.spec, self._history())
        except (CryptoError, ProtocolError):
            self._models = None  # another site may give it, from its first part
            raise
        if taken is None:
            return messages.Taken(here, b"")
        state, shared, history = taken.state, taken.shared, taken.history
        if standing_digest(state, replace(self.memory, shared=shared)) != history[-1].result:
            raise ProtocolError("disagree", "the model that was given is not the attested one")
        own = self._model.own_after(here + 1) if self._line.was_in(history, here) else None
        # This site may sign for no other results of those rounds, and starts from the last one (R4,
        # R7).
        self._line.take_attested(history, here, taken.by)
        self._model.take(state, shared, len(history), own)
        return messages.Taken(self.completed_rounds, taken.tag)

    def _exchange(self) -> CatchUp:
        if not self._in_batches:
            raise ProtocolError("kind", "models are handed over with membership batches only")
        keys, _ = self._ready()
        if self._models is None:
            group_key, sites = keys.group_key, self._versions
            self._models = CatchUp(self.name, self._roster, self._session, group_key, sites)
        return self._models

    # -- one sum ---------------------------------------------------------------------------

    def _prepare(self, data: bytes) -> messages.Message:
        task = self._next_task()
        wanted = Binding(self._session.context, task.round_number, task.phase)
        before, self._binding = self._binding, wanted
        try:
            self._read(messages.Prepare, data)
            keys, cipher = self._ready()
            if self._sum is not None:
                raise ProtocolError("repeated", "this site is in a sum that is not opened yet")
            if self._left_out_of_weights:
                raise ProtocolError("cohort", "this site's weight was not summed in this session")
            agreed = self._model.agreed() + self._weights_total.to_bytes(8, "big")
            if self._in_batches:
                # Batches that went on apart are not summed together, even from like models.
                agreed += history_sha256(self._history())
        except ProtocolError:
            self._binding = before
            raise
        # What was trained is of one round: in another it would be the same vector in two sums.
        self._trained, self._worked, self._task = None, False, task
        member = Member(
            self.name,
            self._roster,
            self._plan.scheme.open_to,
            self._journal,
            self._line,
            self._key.sign,
            keys.group_key,
            self._secret,
        )
        self._sum = Summation(member, cipher, wanted, task.base, agreed)
        return self._sum.round_key()

    def _next_task(self) -> SumTask:
        """What the next sum of this session is for: the weights first, where they are summed."""
        weighed = bool(self._weights_total) or self._left_out_of_weights
        if self._plan.scheme.weights == "private" and not weighed:
            session, count = self._session.context, self._model.num_examples
            return WeightsTask(self.name, session, count, self._take_total)
        return RoundTask(self._model, self._line, self._weight, self._over_budget)

    def _take_total(self, total: int, in_set: bool) -> None:
        if self._in_batches:
            self._line.fix_total(total)
        self._weights_total, self._left_out_of_weights = total, not in_set
        self._weight = self._model.num_examples / total

    def _train(self, data: bytes) -> messages.Message:
        """With membership batches the long part of a round, before anything that binds: the row is
        written, and the set fixed by it (R4), when `work` comes."""
        self._read(messages.Train, data)
        self._current()
        if not self._in_batches or self._task_now().phase != ROUND:
            raise ProtocolError("kind", "training alone is asked for with membership batches only")
        if self._worked:
            raise ProtocolError("repeated", "this round's update is in its sum already")
        # A refusal now costs a round; after the others wrote their rows it would stop the run.
        self._trained = self._encode(self._versions)
        return messages.Done()

    def _contribute(self, data: bytes) -> messages.Message:
        command = self._read(messages.Work, data)
        current = self._current()
        current.begin(command)
        self._binding = current.binding
        strangers = set(current.sites) - set(self._versions)
        if strangers:
            raise ProtocolError("not-in-set", f"{min(strangers)!r:.60} is not in this session")
        if self._in_batches and set(current.sites) != set(self._versions):
            missing = ", ".join(sorted(set(self._versions) - set(current.sites)))
            raise ProtocolError(
                "cohort", f"R1: expected a sum over the session's whole batches, without {missing}"
            )
        versions = {site: self._versions[site] for site in current.sites}
        encoded = self._trained or self._encode(versions)
        self._trained, self._worked = None, True
        self._line.enter(**self._row(encoded, versions))
        with self._model.timed("encrypt"):
            upload = current.contribute(encoded)
        if self._inspector is not None and self._binding.phase == ROUND:
            number = self._binding.round_number
            self._inspector.contributed(number, self._weight, self._model.sent())
        return upload

    def _encode(self, versions: dict[str, Version]) -> Encoded:
        """What this site puts into the sum; one that the ledger would admit to a sum over the sites
        of `versions`."""
        _, cipher = self._ready()
        return self._task_now().encode(
            cipher, lambda encoded: self._line.check(**self._row(encoded, versions))
        )

    def _row(self, encoded: Encoded, versions: dict[str, Version]) -> dict[str, Any]:
        """What the ledger is asked about this sum (`Line.enter`)."""
        task = self._task_now()
        return {
            "phase": task.phase,
            "round_number": task.round_number,
            "base": task.starts_from(),
            "content": task.content_sha256(encoded),
            "versions": versions,
            "count": self._model.num_examples,
            "first": self._start,
            "terms": self._model.terms,
        }

    def _over_budget(self) -> str | None:
        if not self.exhausted:
            return None
        assert self.spent is not None
        after = self.spent.epsilon_after(1)
        return (
            f"R5: epsilon would be {'infinite' if after is None else f'{after:.4g}'} over all "
            f"plans on these records, the plan's limit is {self.spent.terms.limit:g}"
        )

    def _task_now(self) -> SumTask:
        if self._task is None:
            raise ProtocolError("repeated", "this site is in no sum")
        return self._task

    def _fetch(self, data: bytes) -> messages.Message:
        index = self._read(messages.Fetch, data).index
        return messages.Block(index, self._current().fetch(index))

    def _fetch_shares(self, data: bytes) -> messages.Message:
        self._read(messages.FetchShares, data)
        return messages.Shares(self._current().shares())

    def _hold(self, data: bytes) -> messages.Message:
        command = self._read(messages.Hold, data)
        with self._model.timed("open"):
            held = self._current().hold(command)
        if self._inspector is not None and self._binding.phase == ROUND:
            self._inspector.held(self._binding.round_number, self._current().shares_held)
        return held

    def _announce(self, data: bytes) -> messages.Message:
        command = self._read(messages.Announce, data)
        return self._current().announce(command)

    def _quorum(self, data: bytes) -> messages.Message:
        command = self._read(messages.Quorum, data)
        with self._model.timed("open"):
            return self._current().quorum(command)

    def _deliver(self, data: bytes) -> messages.Message:
        command = self._read(messages.Deliver, data)
        self._current().deliver(command)
        return messages.Done()

    def _open(self, data: bytes) -> messages.Message:
        command = self._read(messages.Open, data)
        current = self._current()
        task = self._task_now()
        # One try: what does not open is not asked for again, or each answer would tell a bit. Its
        # keys go now, whatever comes of it.
        self._sum = None
        try:
            with self._model.timed("open"):
                opened = current.open(command, task.parts())
        except ProtocolError as error:
            if error.code == "repeated":  # out of turn: nothing was tried
                self._sum = current
            raise
        finally:
            self._noticed = self._faulty = current.faulty
        result, take = task.take(opened, current.contributors)
        # Kept before it is signed for: a site that signed for another result before sends no
        # receipt now, and takes this one only by those of the others.
        self._opened, self._result, self._signed = take, result, False
        self._receipt_tag = self._tag(b"receipt", result.encode())
        # Signed once for ever: of two results of one sum, no two certificates can be made.
        number = self._binding.round_number
        self._line.sign_receipt(self._binding.phase, number, result, current.contributors)
        self._signed = True
        return messages.Receipt(self._receipt_tag, self._line.heads.statement(self._key.sign))

    def _install(self, data: bytes) -> messages.Message:
        """Take what this site opened itself, once enough sites signed that they opened the same."""
        command = self._read(messages.Install, data)
        if self._opened is None:
            raise ProtocolError("repeated", "there is nothing opened to take")
        self._check_receipts(command.receipts, self._binding)
        if not self._signed:
            # First: its own receipt is for another result, and the next round starts from this one.
            number = self._binding.round_number
            self._line.take_certified(self._binding.phase, number, self._result)
        install, self._opened = self._opened, None
        install()
        return messages.Done()

    def _evaluate(self, data: bytes) -> messages.Message:
        self._read(messages.Evaluate, data)
        record, spent = self._model.evaluate(), self.spent
        record = replace(record, faulty_answers=self._faulty)
        self._observe(record if spent is None else replace(record, epsilon=spent.epsilon))
        return messages.Done()

    def _may_go_on(self, data: bytes) -> messages.Message:
        self._read(messages.MayGoOn, data)
        return messages.GoesOn(int(not self.exhausted))

    def _finish(self, data: bytes) -> messages.Message:
        command = self._read(messages.Finish, data)
        binding = self._binding
        if self._receipt_tag:
            self._check_receipts(command.receipts, binding)
        self._forget()
        self._binding = binding  # the reply still belongs to this session
        return messages.Done()

    # -- helpers ---------------------------------------------------------------------------

    @property
    def _in_batches(self) -> bool:
        return self._roster.rules.membership == "batches"

    def _ready(self) -> tuple[run_keys.RunKeys, Cipher]:
        if self._keys is None or self._cipher is None:
            raise ProtocolError("scheme", "the run's keys are not here yet")
        return self._keys, self._cipher

    def _current(self) -> Summation:
        if self._sum is None:
            raise ProtocolError("repeated", "this site is in no sum")
        return self._sum

    def _check_receipts(self, receipts: dict[str, bytes], binding: Binding) -> None:
        """A certificate of this site's own result: receipts of so many distinct sites that no other
        result can have one. Without this site's, where it signed for another result before."""
        least = least_opened(self._roster.rules, len(self._versions))
        if self.name in receipts and not self._signed:
            raise ProtocolError("disagree", "this site signed no receipt of this sum, but got one")
        seen: dict[str, bytes] = {}
        for site in sorted(receipts):
            if self._in_batches and site not in self._versions:
                raise ProtocolError("not-in-set", f"{site!r:.60} is not in this sum")
            receipt = read_signed(receipts[site], messages.Receipt, binding, site, self._roster)
            if receipt.model_tag != self._receipt_tag:
                raise ProtocolError("disagree", f"{site} opened another model")
            seen[site] = receipt.head
        self._line.heads.see_all(seen)
        if len(receipts) < least:
            raise ProtocolError(
                "disagree",
                f"expected {least} receipts of the last sum, got {len(receipts)}: what this site "
                "opened is not taken; the next session repeats the sum",
            )

    def _tag(self, label: bytes, value: bytes) -> bytes:
        assert self._keys is not None
        return tag(self._keys.group_key, self._binding, label, value)
