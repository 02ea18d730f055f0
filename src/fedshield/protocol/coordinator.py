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
    check_round_key,
    contributors_digest,
    least_opened,
    least_sites,
    read_joins,
    read_signed,
    round_context,
    session_context,
    setup_context,
)
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
        self._threshold = plan.scheme.name == "rlwe"
        # Dealers that are left out of this sum because of their shares.
        self._blamed: dict[str, str] = {}
        # Dealer -> who has a good share of it.
        self._heard: dict[str, set[str]] = {}
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
        if self._threshold:
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
        rules, self._began_round = self._roster.rules, False
        self._calls.binding = Binding(self._session.context, round_number, phase)
        keys = self._calls.gather(self._calls.everyone(messages.Prepare()), messages.RoundKey)
        for site, (_, key) in list(keys.items()):
            try:
                check_round_key(site, key)
            except ProtocolError as error:
                self._calls.drop({site: f"its answer was refused: {error}"}, "prepare")
                del keys[site]
        self._calls.require("prepare", len(keys), self._least)
        raw_keys = {site: raw for site, (raw, _) in keys.items()}
        read = {site: key for site, (_, key) in keys.items()}
        wanted: Collection[str] | None
        if self._batches:
            self._bind(read)
            wanted = self._members
        else:
            wanted = self._bound(read)
        with _refusing():
            check_distinct(read)
        if self._batches and phase == ROUND:
            self._calls.gather(self._calls.everyone(messages.Train()), messages.Done)
            self._calls.require("train", len(self.active), self._least)
            # From here on a site may have written its row, and takes part with this set only.
            self._began_round = True
        summing = Binding(round_context(self._calls.binding, read), round_number, phase)
        work = messages.Work(raw_keys)
        uploads = self._calls.gather(self._calls.everyone(work), messages.Upload, summing)
        self._calls.binding = summing
        raw = {site: data for site, (data, _) in uploads.items()}
        found = {site: upload for site, (_, upload) in uploads.items()}
        if wanted is not None:
            found = {site: found[site] for site in found if site in wanted}
            self._calls.require("work", len(found), len(wanted))
        self._calls.require("work", len(found), rules.min_cohort)
        self._same_shape(found)
        found = self._pass_shares(found, raw)
        started = time.perf_counter()
        found, blocks = self._aggregate(found)
        least = rules.min_cohort if wanted is None else len(wanted)
        self._calls.require("fetch", len(found), least, self._blamed)
        digests = tuple(hashlib.sha256(block).digest() for block in blocks)
        aggregate_s = time.perf_counter() - started
        answers = self._vote_and_answer({site: raw[site] for site in found}, found, digests)
        for index, block in enumerate(blocks):
            deliver = messages.Deliver(index, block)
            self._calls.gather(self._calls.everyone(deliver), messages.Done)
            self._calls.require("deliver", len(self.active), self._least_opened)
        opening: dict[str, messages.Message] = {}
        for site in self.active:
            boxes = {
                holder: answer.share
                if self._plan.scheme.open_to == "server"
                else answer.boxes[site]
                for holder, answer in answers.items()
                if holder != site and (answer.share or site in answer.boxes)
            }
            opening[site] = messages.Open(boxes, {holder: answers[holder].tag for holder in boxes})
        # A site that signed for another result before has no receipt to give now. It takes this one
        # by the others' receipts, if they are enough.
        receipts = self._calls.gather(opening, messages.Receipt, but="disagree")
        unsigned = dict.fromkeys(set(self.active) - set(receipts), "disagree")
        self._calls.require("open", len(receipts), self._least_opened, unsigned)
        self._receipts = {site: data for site, (data, _) in receipts.items()}
        if len({receipt.model_tag for _, receipt in receipts.values()}) != 1:
            raise RoundFailed("the sites opened different sums; no site takes its own")
        install = messages.Install(self._receipts)
        self._calls.gather(self._calls.everyone(install), messages.Done)
        self._calls.require("install", len(self.active), self._least_left)
        summed: dict[str, codec.Value] = {
            "contributors": contributors_digest(found).hex(),
            "aggregate": aggregate_digest(digests).hex(),
            "sites": [*sorted(found)],
            "bytes": sum(map(len, blocks)),
        }
        self._calls.note("summed", details=summed)
        digest = hashlib.sha256(b"".join(digests)).hexdigest()
        return RoundOutcome(round_number, digest, aggregate_s, tuple(sorted(found)))

    def _bound(self, keys: Mapping[str, messages.RoundKey]) -> set[str] | None:
        """The set that was voted for from this model before, if any: no other will be opened."""
        said = {site: tuple(sorted(key.bound)) for site, key in keys.items() if key.bound}
        bound = set(said.values())
        if not bound:
            return None
        names = " and ".join(
            f"{', '.join(one)} (so says {', '.join(site for site in said if said[site] == one)})"
            for one in sorted(bound)
        )
        if len(bound) > 1:
            raise RoundFailed(
                f"different sets were voted for from this model: {names}; it cannot go on"
            )
        wanted = set(bound.pop())
        if not wanted <= set(keys):
            raise RoundFailed(
                f"a sum over {names} was voted for from this model, and any other would give a "
                f"site away; {', '.join(sorted(wanted - set(keys)))} must be back first"
            )
        return wanted

    def _same_shape(self, uploads: dict[str, messages.Upload]) -> None:
        shapes = {
            site: (upload.key_id, upload.layout_tag, len(upload.block_digests))
            for site, upload in uploads.items()
        }
        usual, _ = Counter(shapes.values()).most_common(1)[0]
        for site in sorted(shapes):
            if shapes[site][:2] != usual[:2]:
                raise RoundFailed(f"{site} used another key or layout than the others")
            if shapes[site] != usual:
                raise RoundFailed(f"{site} announced a different number of blocks")

    def _pass_shares(
        self, uploads: dict[str, messages.Upload], raw: Mapping[str, bytes]
    ) -> dict[str, messages.Upload]:
        """Every dealer's sealed shares to their holders; the dealers that remain in the sum."""
        self._blamed, self._heard = {}, {}
        if not self._threshold:
            return uploads
        fetched = self._calls.gather(
            dict.fromkeys(uploads, messages.FetchShares()), messages.Shares
        )
        dealers = {site: uploads[site] for site in fetched}
        self._calls.require("fetch-shares", len(dealers), self._roster.rules.min_cohort)
        hold: dict[str, messages.Message] = {}
        for holder in self.active:
            shares = {
                dealer: found.boxes[holder]
                for dealer, (_, found) in fetched.items()
                if dealer != holder and holder in found.boxes
            }
            hold[holder] = messages.Hold({site: raw[site] for site in dealers}, shares)
        held = self._calls.gather(hold, messages.Held)
        complaints = {site: set(reply.complaints) for site, (_, reply) in held.items()}
        for holder in complaints:
            for dealer in set(fetched) - complaints[holder] - {holder}:
                self._heard.setdefault(dealer, set()).add(holder)
        content = [site for site in complaints if not complaints[site]]
        if len(content) >= self._least_answers:
            return dealers
        # Too few could answer: leave out those that were complained of.
        for dealer in sorted(set().union(*complaints.values())):
            holders = [holder for holder in complaints if dealer in complaints[holder]]
            self._blamed[dealer] = f"its shares were refused by {', '.join(sorted(holders))}"
        return {site: upload for site, upload in dealers.items() if site not in self._blamed}

    def _aggregate(
        self, uploads: Mapping[str, messages.Upload]
    ) -> tuple[dict[str, messages.Upload], list[bytes]]:
        """The sum over those whose blocks all came and fitted, and who they are."""
        assert self._adder is not None, "start() comes first"
        totals: list[object] = []
        added: dict[str, messages.Upload] = {}
        for site, upload in uploads.items():
            # A site that was lost while shares were passed on is not waited for again.
            blocks = self._pull(site, upload) if site in self.active else None
            if blocks is None:
                continue
            try:
                totals = [
                    self._adder.add(totals[index] if totals else None, block)
                    for index, block in enumerate(blocks)
                ]
            except CryptoError as error:
                # The running total may hold part of it: there is nothing whole to go on with.
                raise RoundFailed(f"{site}: {error}") from None
            added[site] = upload
        with _refusing():
            return added, [self._adder.result(total) for total in totals]

    def _pull(self, site: str, upload: messages.Upload) -> list[bytes] | None:
        blocks: list[bytes] = []
        for index, digest in enumerate(upload.block_digests):
            found = self._calls.gather({site: messages.Fetch(index)}, messages.Block)
            if site not in found:
                return None
            data = found[site][1].data
            if hashlib.sha256(data).digest() != digest:
                if not self._threshold:
                    raise RoundFailed(f"{site}: block {index} is not the one it announced")
                self._calls.drop({site: "digest"}, "fetch")
                return None
            blocks.append(data)
        return blocks

    def _vote_and_answer(
        self,
        raw: dict[str, bytes],
        uploads: dict[str, messages.Upload],
        digests: tuple[bytes, ...],
    ) -> dict[str, messages.Answer]:
        rules = self._roster.rules
        announce = messages.Announce(raw, digests)
        votes = self._calls.gather(self._calls.everyone(announce), messages.Vote)
        expected = contributors_digest(uploads) + aggregate_digest(digests)
        matching = {site: data for site, (data, vote) in votes.items() if vote.about == expected}
        others = {site: "voted for another sum" for site in votes if site not in matching}
        self._calls.drop(others, "announce")
        self._calls.require("announce", len(matching), max(rules.votes, self._least_answers))
        replies = self._calls.gather(
            {site: messages.Quorum(matching, self._unheard(site)) for site in matching},
            messages.Answer,
        )
        answers = {
            site: answer
            for site, (_, answer) in replies.items()
            if answer.boxes or answer.share or not self._threshold
        }
        lacking = {site: "lacks a share" for site in replies if site not in answers}
        self._check_tags(answers)
        self._calls.require("quorum", len(answers), self._least_answers, lacking)
        return answers

    def _check_tags(self, answers: dict[str, messages.Answer]) -> None:
        """Leaves out answers whose tag their holder did not sign: no site could take them."""
        refused: dict[str, str] = {}
        for site, answer in answers.items() if self._threshold else ():
            try:
                read_signed(answer.tag, messages.AnswerTag, self._calls.binding, site, self._roster)
            except ProtocolError as error:
                refused[site] = f"its answer was refused: {error}"
        for site in refused:
            del answers[site]
        self._calls.drop(refused, "quorum")

    def _unheard(self, site: str) -> dict[str, bytes]:
        """The others that have no good share of this site's, where there are shares."""
        if not self._threshold or self._plan.scheme.open_to == "server":
            return {}
        return dict.fromkeys(set(self.active) - self._heard.get(site, set()) - {site}, b"")

    # -- calling ---------------------------------------------------------------------------

    @property
    def _least(self) -> int:
        """Sites needed for a sum to be worth beginning: with membership batches all of a session
        that has begun."""
        return len(self._members) or least_sites(self._roster.rules)

    @property
    def _least_answers(self) -> int:
        return self._roster.rules.threshold or self._roster.rules.num_sites

    @property
    def _least_left(self) -> int:
        """Sites that must still be there once a result has its certificate: one that takes it is
        enough for it not to be lost."""
        return 1 if self._threshold else self._roster.rules.num_sites

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
