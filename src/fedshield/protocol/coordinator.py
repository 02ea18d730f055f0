"""The coordinator: it tells sites when to act, adds what it cannot read, and hands back the sum.

It holds public material only: signing keys of the roster, the scheme's public parameters, and
ciphertexts as they pass. Nothing that this module imports can hold a key that opens anything
(a test follows its imports). One site's blocks are pulled, checked, added and dropped before the
next site's, so its memory is one upload and one aggregate, however many sites there are.

A site that fails or does not answer is out for the rest of the session. A sum goes on as long as
the roster's quorums can be met, else it stops and every site keeps the model that it has. With
membership batches a session is over whole batches, and each of its sums over all of them: where a
site is lost before a round's uploads are asked for, the next session goes on without its batch.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from fedshield.crypto.adders import adder
from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.crypto.scheme import Adder, rlwe_parameters
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.plan.batches import Batches, sitting_out, whole
from fedshield.plan.schema import Plan
from fedshield.protocol.caller import Caller
from fedshield.protocol.contexts import (
    ROUND,
    SETUP,
    WEIGHTS,
    aggregate_digest,
    check_distinct,
    contributors_digest,
    least_opened,
    least_sites,
    read_joins,
    session_context,
    setup_context,
)
from fedshield.protocol.coordinator_sum import CoordinatorSum, bound_set
from fedshield.protocol.log.entries import Log, plain_text, unlogged
from fedshield.protocol.muster import MAX_PARTS, attesting, muster
from fedshield.protocol.roster import Roster
from fedshield.protocol.transport import Sites
from fedshield.protocol.wire import codec, messages
from fedshield.protocol.wire.envelope import Binding, Sign

#: Gives the adder of a scheme, a parameter set, the run's public material and a packing.
AdderOf = Callable[[str, str, bytes, RlweParameters | None], Adder]


@dataclass(frozen=True)
class RoundOutcome:
    """What the coordinator knows of a finished round: no value of any model. `lost`: site -> at
    which message it was lost, and why, in this round."""

    round_number: int
    aggregate_sha256: str
    aggregate_s: float
    contributors: tuple[str, ...]
    lost: Mapping[str, str] = field(default_factory=dict)


class Coordinator:
    """Runs the protocol over `sites`. `sign` signs as the roster's coordinator; `log` takes what
    was asked, came back and was lost, each before the next message leaves; `adder_of` gives what
    adds the sites' blocks: in a dry run, what adds nothing."""

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        sites: Sites,
        sign: Sign,
        log: Log = unlogged,
        adder_of: AdderOf = adder,
    ) -> None:
        self._plan = plan
        self._roster = roster
        self._adder_of = adder_of
        self._calls = Caller(roster, sites, sign, log)
        self._session = self._calls.binding
        self._adder: Adder | None = None
        self._receipts: dict[str, bytes] = {}
        self.completed_rounds = 0
        self._by_shares = plan.scheme.traits.one_time_keys
        # With membership batches: who is in this session, who could be and is not, and who is lost
        # for as long as this process runs.
        self._members: tuple[str, ...] = ()
        self._sitting_out: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        # The only sites over which a round may be summed, where it was begun before.
        self._only: tuple[str, ...] = ()
        self._only_round = 0
        self._began_round = False
        # Who was lost when it was asked before a round whether it may go on.
        self._lost_between: dict[str, str] = {}

    @property
    def active(self) -> list[str]:
        """Sites that still answer."""
        return self._calls.active

    @property
    def lost(self) -> dict[str, str]:
        """The others: at which message, and why."""
        return self._calls.lost

    # -- a session -------------------------------------------------------------------------

    def start(self) -> None:
        """Invite, agree on a context, have the run's keys made and passed on, sum the weights,
        and measure where the model stands. Raises `RoundFailed` below the roster's quorums."""
        while True:
            session = os.urandom(16)
            self._calls.reset(session.hex(), self._gone)
            self._receipts, self._members, self._began_round = {}, (), False
            self._calls.note("session", details={"plan": self._plan.sha256()})
            try:
                with self._noted():
                    return self._start(session)
            except RoundFailed:
                if not self._goes_on_without():
                    raise

    def _start(self, session: bytes) -> None:
        invite = messages.Invite(session, self._plan.canonical(), self._roster.encode())
        setup = Binding(setup_context(self._plan.sha256(), self._roster, session), 0, SETUP)
        found = self._calls.gather(self._calls.everyone(invite), messages.Join, setup)
        self._calls.require("invite", len(found), self._least)
        found = self._in_whole_batches(found) if self._batches else self._furthest(found)
        raw = {site: data for site, (data, _) in found.items()}
        with _refusing():
            public = self._plan.scheme.weights == "public"
            joins = read_joins(raw, setup, self._roster, self._least, public=public)
        self._calls.binding = setup
        context = session_context(setup, joins)
        after = Binding(context, 0, SETUP)
        ready = self._calls.gather(dict.fromkeys(joins, messages.Begin(raw)), messages.Ready, after)
        self._calls.drop(
            {site: "context" for site, (_, reply) in ready.items() if reply.context != context},
            "begin",
        )
        self._require_weighed(set(joins))
        self._calls.require("begin", len(self.active), self._least)
        self._session = self._calls.binding = after
        stands = {site: join.completed_rounds for site, join in joins.items()}
        self.completed_rounds = max(stands.values())
        self._share_keys(min(joins))
        self._catch_up(stands)
        everyone = len(joins) == len(self._roster.sites)
        if self._plan.scheme.weights == "private" and (everyone or not self._batches):
            # With membership batches weights are shares of the whole roster: sites that were
            # weighed once remember the total.
            self._sum_once(WEIGHTS, 0)
        self._evaluate()

    def _require_weighed(self, present: Collection[str]) -> None:
        """Raises `RoundFailed` where sites that were never weighed refuse a session without the
        others (membership batches)."""
        weights, missing = self._plan.scheme.weights, set(self._roster.names()) - set(present)
        if not self._batches or weights == "equal" or not missing or self.active:
            return
        if all(self._calls.why(site) == "cohort" for site in present):
            raise RoundFailed(
                f"expected all sites once, to weigh them (scheme.weights {weights}: each weight is "
                f"a share of all rows), got none of {', '.join(sorted(missing))}; have them back "
                "for the first session, or agree on scheme.weights: equal"
            )

    def _furthest(
        self, found: dict[str, tuple[bytes, messages.Join]]
    ) -> dict[str, tuple[bytes, messages.Join]]:
        """Those that stand at the latest round that enough sites have; the others are out."""
        rounds = {site: join.completed_rounds for site, (_, join) in found.items()}
        for number in sorted(set(rounds.values()), reverse=True):
            here = {site: found[site] for site in rounds if rounds[site] == number}
            if len(here) >= self._least:
                self._calls.drop(dict.fromkeys(set(found) - set(here), "round"), "invite")
                return here
        self._refuse_rounds(rounds)

    def _refuse_rounds(self, rounds: Mapping[str, int]) -> NoReturn:
        stand = ", ".join(f"{site} {number}" for site, number in sorted(rounds.items()))
        raise RoundFailed(
            f"the sites stand at different rounds ({stand}) and no {self._least} of them at the "
            "same; take them back to a round that enough of them have kept"
        )

    def _share_keys(self, maker: str) -> None:
        """The first site of the session makes the run's keys; each other gets its box."""
        offers = self._calls.gather({maker: messages.MakeKey()}, messages.KeyOffer)
        if maker not in offers:
            raise RoundFailed(
                f"make-key: no answer from {maker} ({self._calls.why(maker)}); start again"
            )
        offer = offers[maker][1]
        scheme, encoding = self._plan.scheme, self._plan.encoding
        packing = None
        if self._by_shares:
            packing = rlwe_parameters(len(self._roster.sites), encoding.bits, encoding.headroom)
        with _refusing():
            self._adder = self._adder_of(scheme.name, scheme.parameter_set, offer.public, packing)
        others = [site for site in self.active if site != maker]
        if not set(others) <= set(offer.boxes):
            raise RoundFailed(f"{maker} did not make a key for every site; start again")
        take = {site: messages.TakeKey(offer.boxes[site]) for site in others}
        self._calls.gather(take, messages.Done)
        self._calls.require("take-key", len(self.active), self._least)

    def round(self, round_number: int) -> RoundOutcome:
        """One round: local work, sum, opening at the sites, evaluation. Raises `RoundFailed` if
        the quorums cannot be met; what was voted for stays bound (protocol.md, section 8)."""
        before = dict(self.lost)
        if self._only and self.completed_rounds + 1 == round_number > self._only_round:
            # The round that was bound to these sites is done: the others take it from them.
            self._only = ()
            self.start()
        while True:
            if self._batches and self.completed_rounds + 1 != round_number:
                raise RoundFailed(
                    f"expected sites at round {round_number - 1}, got those that are left at "
                    f"{self.completed_rounds}; go on from there: resume the run"
                )
            try:
                with self._noted():
                    outcome = self._sum_once(ROUND, round_number)
                    self.completed_rounds = round_number
                    self._evaluate()
                break
            except RoundFailed as failure:
                missing = sorted(set(self._members) - set(self.active))
                if self._began_round and missing:
                    raise RoundFailed(
                        f"{failure}; {self._bound_to(self._members, missing)}"
                    ) from None
                if not self._goes_on_without():
                    raise
                self.start()
        lost = {site: why for site, why in self.lost.items() if site not in before}
        lost, self._lost_between = self._lost_between | lost, {}
        return RoundOutcome(
            round_number, outcome.aggregate_sha256, outcome.aggregate_s, outcome.contributors, lost
        )

    def _evaluate(self) -> None:
        self._calls.gather(self._calls.everyone(messages.Evaluate()), messages.Done)
        self._calls.require("evaluate", len(self.active), self._least_left)

    def out_of_budget(self) -> list[str]:
        """Sites of the session that say that the plan's privacy leaves no room for another round.
        A hint, to end a run in good order: each site's rule R5 decides."""
        command = self._calls.everyone(messages.MayGoOn())
        before = dict(self.lost)
        with self._noted():
            found = self._calls.gather(command, messages.GoesOn)
        self._lost_between = {site: self.lost[site] for site in set(self.lost) - set(before)}
        return sorted(site for site, (_, said) in found.items() if not said.room)

    def finish(self) -> None:
        """Have every site compare the last receipts and forget the session's keys."""
        finish = messages.Finish(self._receipts)
        with self._noted():
            self._calls.gather(self._calls.everyone(finish), messages.Done)
            self._calls.require("finish", len(self.active), self._least_left)
        self._calls.note("closed", details={"completed_rounds": self.completed_rounds})

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """What ends a session before its time is in the log, as long as there is time to say so.
        A log that takes no more, full or interrupted in the middle of an entry, must not hide why
        the session ended: the next session's first entry shows that this one was not closed."""
        try:
            yield
        except RoundFailed as failure:
            with suppress(ProtocolError):
                self._calls.note("failed", details={"reason": plain_text(str(failure), 500)})
            raise
        except BaseException as error:
            with suppress(ProtocolError):
                self._calls.note("stopped", details={"reason": type(error).__name__})
            raise

    # -- membership batches ----------------------------------------------------------------

    @property
    def _batches(self) -> Batches:
        return self._roster.batches

    def _in_whole_batches(
        self, found: dict[str, tuple[bytes, messages.Join]]
    ) -> dict[str, tuple[bytes, messages.Join]]:
        """Those of whole batches, which are this session's; the others are out. Raises
        `RoundFailed` for too few of them."""
        rounds = {site: join.completed_rounds for site, (_, join) in found.items()}
        if missing := sorted(set(self._only) - set(found)):
            raise RoundFailed(self._bound_to(self._only, missing))
        session = muster(self._batches, rounds, self._roster.rules.max_colluding, self._only)
        if not session.present and rounds and not sitting_out(self._batches, rounds):
            self._refuse_rounds(rounds)
        self._calls.drop(session.out, "invite")
        self._sitting_out = session.out
        self._calls.require("invite", len(session.present), self._least)
        self._members = session.present
        return {site: found[site] for site in session.present}

    def _catch_up(self, stands: Mapping[str, int]) -> None:
        """The model of the last round, from a site that has it to those that have not."""
        behind = [site for site in stands if stands[site] < self.completed_rounds]
        if not behind:
            return
        there = sorted(set(stands) - set(behind))
        attest = messages.Attest()
        answers = self._calls.gather(dict.fromkeys(there, attest), messages.Attested)
        self._calls.require("attest", len(self.active), self._least)
        said = {site: (one.completed_rounds, one.tag) for site, (_, one) in answers.items()}
        agreeing = attesting(said, self.completed_rounds)
        if len(agreeing) <= self._roster.rules.max_colluding:
            raise RoundFailed(
                f"the sites at round {self.completed_rounds} ({', '.join(there)}) do not stand at "
                "the same model; their operators compare adapter_sha256 of their reports"
            )
        attested = {site: answers[site][0] for site in agreeing}
        # Any of them can give a wrong one, which is not taken: another session asks another.
        giver = agreeing[os.urandom(1)[0] % len(agreeing)]
        index, count = 0, 1
        while index < count:
            given = self._calls.gather({giver: messages.GiveModel(index)}, messages.ModelPart)
            self._calls.require("give-model", len(self.active), self._least)
            raw, part = given[giver]
            if not index:
                count = min(part.count, MAX_PARTS)  # sites know better, and refuse one too large
            take = messages.TakeModel(giver, raw, attested)
            self._calls.gather(dict.fromkeys(behind, take), messages.Taken)
            self._calls.require("take-model", len(self.active), self._least)
            index += 1

    def _goes_on_without(self) -> bool:
        """Whether another session can go on over the whole batches that are left: nothing of the
        round has left any site, so that nobody is bound to who was lost."""
        if not self._batches or not self._members or self._began_round:
            return False
        lost = {site: why for site, why in self.lost.items() if site not in self._sitting_out}
        is_new = set(lost) & set(self._members) or self._only not in ((), self._members)
        self._gone |= lost
        left = whole(self._batches, set(self._roster.names()) - set(self._gone))
        return bool(is_new) and len(left) >= least_sites(self._roster.rules)

    def _bind(self, keys: Mapping[str, messages.RoundKey]) -> None:
        """Raises `RoundFailed` where this round was begun over other sites than this session's;
        the next session is over those, if they are here."""
        said = {site: tuple(sorted(key.bound)) for site, key in keys.items() if key.bound}
        # One honest site among those that say the same. Who is bound to other sites and too few to
        # be believed refuses to train, and its batch sits out.
        least = self._roster.rules.max_colluding + 1
        voices = Counter(said.values())
        sets = sorted(one for one in voices if voices[one] >= least)
        if not sets or sets == [self._members]:
            return
        if len(sets) > 1:
            raise RoundFailed(
                f"this round was begun over different sites, so say {', '.join(said)}"
            )
        who = ", ".join(site for site in said if said[site] == sets[0])
        missing = sorted(set(sets[0]) - set(self._members))
        if not missing:
            self._only, self._only_round = sets[0], self.completed_rounds + 1
        raise RoundFailed(f"{self._bound_to(sets[0], missing)} (so say {who})")

    def _bound_to(self, sites: Collection[str], missing: Collection[str]) -> str:
        number = self.completed_rounds + 1
        then = f"; {', '.join(missing)} must be back first" if missing else ""
        return (
            f"round {number} was begun over {', '.join(sites)}, and is repeated over them only "
            f"(R4){then}"
        )

    # -- summing ---------------------------------------------------------------------------

    def _sum_once(self, phase: str, round_number: int) -> RoundOutcome:
        """Ask each message of a sum in turn; `CoordinatorSum` decides what follows from the
        replies."""
        assert self._adder is not None, "start() comes first"
        calls, rules, self._began_round = self._calls, self._roster.rules, False
        calls.binding = Binding(self._session.context, round_number, phase)
        summing = CoordinatorSum(
            self._roster,
            calls.binding,
            self._adder,
            by_shares=self._by_shares,
            open_to=self._plan.scheme.open_to,
        )
        keys = calls.gather(calls.everyone(messages.Prepare()), messages.RoundKey)
        for site, why in summing.take_keys(keys).items():
            calls.drop({site: why}, "prepare")
        calls.require("prepare", len(summing.keys), self._least)
        summing.only = self._only_sites(summing.keys)
        with _refusing():
            check_distinct(summing.keys)
        if self._batches and phase == ROUND:
            calls.gather(calls.everyone(messages.Train()), messages.Done)
            calls.require("train", len(self.active), self._least)
            # From here on a site may have written its row, and takes part with this set only.
            self._began_round = True
        uploads = calls.gather(calls.everyone(summing.work()), messages.Upload, summing.binding)
        calls.binding = summing.binding
        summing.take_uploads(uploads)
        least = max(rules.min_cohort, len(summing.only or ()))
        calls.require("work", len(summing.uploads), least)
        summing.check_shapes()
        if self._by_shares:
            self._pass_shares(summing)
        started = time.perf_counter()
        self._add(summing)
        calls.require("fetch", len(summing.uploads), least, summing.blamed)
        aggregate_s = time.perf_counter() - started
        self._vote_and_answer(summing)
        for block in summing.deliver():
            calls.gather(calls.everyone(block), messages.Done)
            calls.require("deliver", len(self.active), self._least_opened)
        # A site that signed for another result before has no receipt to give now. It takes this one
        # by the others' receipts, if they are enough.
        opening = summing.open(self.active)
        receipts = calls.gather(opening, messages.Receipt, but="disagree")
        unsigned = dict.fromkeys(set(self.active) - set(receipts), "disagree")
        calls.require("open", len(receipts), self._least_opened, unsigned)
        summing.take_receipts(receipts)
        self._receipts = summing.receipts
        calls.gather(calls.everyone(messages.Install(self._receipts)), messages.Done)
        calls.require("install", len(self.active), self._least_left)
        digests = summing.block_digests
        summed: dict[str, codec.Value] = {
            "contributors": contributors_digest(summing.uploads).hex(),
            "aggregate": aggregate_digest(digests).hex(),
            "sites": [*summing.contributors],
            "bytes": sum(map(len, summing.blocks)),
        }
        calls.note("summed", details=summed)
        digest = hashlib.sha256(b"".join(digests)).hexdigest()
        return RoundOutcome(round_number, digest, aggregate_s, summing.contributors)

    def _only_sites(self, keys: Mapping[str, messages.RoundKey]) -> frozenset[str] | None:
        """The only sites that this sum may be over, if it matters."""
        if not self._batches:
            return bound_set(keys)
        self._bind(keys)
        return frozenset(self._members)

    def _pass_shares(self, summing: CoordinatorSum) -> None:
        """Every dealer's sealed shares to their holders."""
        fetch = dict.fromkeys(summing.uploads, messages.FetchShares())
        summing.take_shares(self._calls.gather(fetch, messages.Shares))
        self._calls.require("fetch-shares", len(summing.uploads), self._roster.rules.min_cohort)
        summing.take_held(self._calls.gather(summing.hold(self.active), messages.Held))

    def _add(self, summing: CoordinatorSum) -> None:
        """The sum over those whose blocks all come and fit: one upload at a time."""
        added: set[str] = set()
        for site in summing.uploads:
            # A site that was lost while shares were passed on is not waited for again.
            blocks = self._pull(site, summing) if site in self.active else None
            if blocks is not None:
                summing.add(site, blocks)
                added.add(site)
        with _refusing():
            summing.close(added)

    def _pull(self, site: str, summing: CoordinatorSum) -> list[bytes] | None:
        blocks: list[bytes] = []
        for index in range(len(summing.uploads[site].block_digests)):
            reply = self._calls.gather({site: messages.Fetch(index)}, messages.Block)
            if site not in reply:
                return None
            block = reply[site][1].data
            if not summing.fits(site, index, block):
                self._calls.drop({site: "digest"}, "fetch")
                return None
            blocks.append(block)
        return blocks

    def _vote_and_answer(self, summing: CoordinatorSum) -> None:
        calls = self._calls
        votes = calls.gather(calls.everyone(summing.announce()), messages.Vote)
        calls.drop(summing.take_votes(votes), "announce")
        calls.require("announce", summing.num_votes, summing.least_votes)
        replies = calls.gather(summing.quorum(self.active), messages.Answer)
        refused, lacking = summing.take_answers(replies)
        calls.drop(refused, "quorum")
        missed = dict.fromkeys(lacking, "lacks a share")
        calls.require("quorum", len(summing.answers), summing.least_answers, missed)

    # -- calling ---------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        """Sites needed for a sum to be worth beginning: with membership batches all of a session
        that has begun."""
        return len(self._members) or least_sites(self._roster.rules)

    @property
    def _least_left(self) -> int:
        """Sites that must still be there once a result has its certificate: one that takes it is
        enough for it not to be lost."""
        return 1 if self._by_shares else self._roster.rules.num_sites

    @property
    def _least_opened(self) -> int:
        return least_opened(self._roster.rules, len(self._members) or None)


@contextmanager
def _refusing() -> Iterator[None]:
    """What a site sent and the coordinator cannot use ends the round, not the process."""
    try:
        yield
    except (ProtocolError, CryptoError) as error:
        raise RoundFailed(f"a site's answer was refused: {error}") from None
