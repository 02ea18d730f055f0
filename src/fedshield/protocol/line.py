"""One body of records in one run: what a site asks its ledger, and what it signs of it.

The coordinator chooses the run's name, where it starts, who is away and which plan is sent. None of
that chooses what a site remembers: the ledger belongs to the records (docs/protocol.md, "Across
sums"). `Line.enter` writes a row before an upload leaves; a sum that breaks a rule is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedshield.errors import ProtocolError
from fedshield.ledger import heads
from fedshield.ledger.entries import Attested, OpenedRound, Total
from fedshield.ledger.file import Ledger, Receipt
from fedshield.ledger.heads import RESTORE
from fedshield.ledger.history import (
    Entered,
    History,
    Taken,
    first_place,
    parting,
    seen_up_to,
    unsupported,
)
from fedshield.ledger.rows import (
    Consent,
    Row,
    Scale,
    Unit,
    Version,
    is_one_line,
    largest_colluding,
    line_curve,
    line_of,
    part_version,
    sharing,
)
from fedshield.ledger.rules import (
    Terms,
    first_refusal,
    followed,
    goes_on,
    one_scale,
    permitted,
    whole_batch,
)
from fedshield.plan.floors import floor
from fedshield.plan.schema import Plan
from fedshield.privacy.accounting import WHOLE_ORDERS
from fedshield.privacy.guarantee import Earlier, Spent
from fedshield.privacy.guarantee import Terms as PrivacyTerms
from fedshield.protocol.contexts import ROUND, WEIGHTS, least_opened
from fedshield.protocol.peer_heads import PeerHeads
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire.envelope import Binding


@dataclass(frozen=True)
class Records:
    """What of a site's records enters a plan's sums. `hashes`: of the raw records, keyed with the
    ledger's key (`ledger.rows.record_hash`); `examples`: rows that carry loss; `sources`, `rows`:
    digests of the raw records that these are made of, and of them as the model reads them."""

    hashes: frozenset[bytes] = field(repr=False)
    examples: int
    sources: bytes = field(repr=False)
    rows: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.hashes:
            raise ProtocolError("ledger", "a site without records has no line to keep")


class Exposures(NamedTuple):
    """`open`: sites whose updates can be had by subtracting sums, since they or their peers chose
    so; `noised`: those of whom that holds with the noise of `unit: example`; `own`: whether this
    site is among `open`."""

    open: tuple[str, ...]
    noised: tuple[str, ...]
    own: bool


class Line:
    """The rules of one site in one run of a plan. `run`: the run's name.

    Raises `ProtocolError` ('rule') for what the operator must approve first."""

    def __init__(
        self, ledger: Ledger, name: str, plan: Plan, roster: Roster, run: str, records: Records
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._plan = plan
        self._plan_sha256 = plan.sha256()
        self._roster = roster
        self._run = run
        self._records = records
        self.version = part_version(ledger.record_key, records.sources, records.rows)
        self.heads = PeerHeads(ledger, name, roster)

    # -- what this site's records have been in ---------------------------------------------

    def rows(self) -> tuple[Row, ...]:
        """The rows of this line, the oldest first."""
        return line_of(self._ledger.rows, self._records.hashes)

    def spent(self, terms: PrivacyTerms | None) -> Spent | None:
        """What these records have spent: in this plan's rounds, and in all others (R5)."""
        if terms is None:
            return None
        unit: Unit = "site" if terms.site is not None else "example"
        own = {row.round_number for row in self._bearing(unit) if self._is_round(row)}
        return Spent(terms, len(own), self.earlier(unit))

    def earlier(self, unit: Unit) -> Earlier:
        """What other plans released of these records, as far as it bears on `unit`; and what this
        one did in rounds of which a rebuilt ledger does not say it: that makes all infinite."""
        others = [
            row
            for row in self._bearing(unit)
            if not self._is_round(row) or (row.recovered and line_curve([row], unit) is None)
        ]
        found = line_curve(others, unit)
        return Earlier(None) if found is None else Earlier(*found)

    def _bearing(self, unit: Unit) -> Sequence[Row]:
        """The rows that spend of what protects `unit`: this line's, and for a whole site every
        one of the ledger, for a site is one whatever records of it a plan reads."""
        return self._ledger.rows if unit == "site" else self.rows()

    def _is_round(self, row: Row) -> bool:
        return row.plan == self._plan_sha256 and row.phase == ROUND

    def may_have_sent(self, round_number: int) -> bool:
        """Whether there is a row of this round, of whatever records: what it stands for may have
        left."""
        return bool(self._tried(round_number))

    def has_entered(self, binding: Binding) -> bool:
        """Whether there is a row of this sum: a repetition releases nothing new (R4)."""
        key = (self._plan_sha256, binding.phase, binding.round_number)
        return any(row.key == key for row in self.rows())

    # -- one sum ---------------------------------------------------------------------------

    def enter(
        self,
        phase: str,
        round_number: int,
        base: str,
        content: str,
        versions: Mapping[str, Version],
        count: int,
        first: str,
        terms: PrivacyTerms | None,
    ) -> None:
        """Write the row of a sum that this site is about to enter, before anything leaves.

        Args: `base`: digest of what it starts from, '' for a tally; `content`: of the encoded
        integers; `versions`: of every site in the sum; `count`: what this site counts for;
        `first`: the digest that the plan's own start has. Raises `ProtocolError`: 'rule', with
        the rule's name, or 'budget'.
        """
        request, repeats = self._admitted(
            phase, round_number, base, content, versions, count, first, terms
        )
        if not repeats:
            self._ledger.add_row(request)

    def check(
        self,
        phase: str,
        round_number: int,
        base: str,
        content: str,
        versions: Mapping[str, Version],
        count: int,
        first: str,
        terms: PrivacyTerms | None,
    ) -> None:
        """As `enter`, and nothing is written: whether it would."""
        self._admitted(phase, round_number, base, content, versions, count, first, terms)

    def _admitted(
        self,
        phase: str,
        round_number: int,
        base: str,
        content: str,
        versions: Mapping[str, Version],
        count: int,
        first: str,
        terms: PrivacyTerms | None,
    ) -> tuple[Row, bool]:
        """The row, and whether it repeats one of a sum that was opened."""
        self._check_goes_on()
        if phase == ROUND:
            self.check_not_taken(round_number)
        request = self._request(phase, round_number, base, content, versions, count, terms)
        rows = self.rows()
        spent = self.spent(terms)
        new = request.key not in {row.key for row in rows}
        # Once it was opened, the same again is nothing new, and no line of the file.
        repeats = request.key in self._ledger.receipts and request in rows
        counts = spent is not None and phase == ROUND
        approval = self._ledger.approvals.get(self._plan_sha256)
        refusal = first_refusal(
            rows,
            request,
            Terms(
                min_examples=floor(self._plan),
                examples=self._records.examples,
                starts=self._ledger.results(self._plan_sha256) | {first},
                limit=terms.limit if terms is not None and counts else None,
                epsilon=spent.epsilon_after(1 if new else 0) if spent is not None else None,
            ),
            approval,
            roster_digest(self._roster),
            0 if repeats else self._ledger.tries(request.key),
            Consent() if approval is None else Consent(approval.part, approval.exposed),
            self._ledger.rows,
            self._roster.history(),
            self.entered(),
        )
        if refusal is not None:
            raise ProtocolError("budget" if refusal.rule == "R5" else "rule", str(refusal))
        return request, repeats

    @property
    def made_of(self) -> str:
        """What an update of this site is made of: the version of its part, and the base model that
        was approved."""
        approval = self._ledger.approvals.get(self._plan_sha256)
        model = "" if approval is None else approval.model
        return f"{self.version.sources} {self.version.rows} {model}"

    def check_not_taken(self, round_number: int) -> None:
        """Raises `ProtocolError` ('rule') for a round that this site took by the word of others,
        and for those before: a second sum of it would be beside the one that it stands after
        (R4)."""
        last = self._ledger.last_attested(self._plan_sha256)
        if round_number <= last:
            raise ProtocolError(
                "rule",
                "R4: expected a round after those that this site took by the word of others, the "
                f"last of which is {last}, got round {round_number}; go on from there, with "
                "fedshield submit --resume",
            )

    def _check_goes_on(self) -> None:
        if why := goes_on(self._plan_sha256, self._ledger.ended):
            raise ProtocolError("rule", f"R4: {why}")

    def _check_approved(self) -> None:
        if self._plan_sha256 not in self._ledger.approvals:
            raise ProtocolError(
                "rule",
                "R8: expected an approval of this plan, got none; read it with: fedshield site "
                "approve PLAN --kit KIT",
            )

    # -- rosters that follow each other ----------------------------------------------------

    def entered(self) -> tuple[Entered, ...]:
        """The rosters that these records went on under, the oldest first."""
        if is_one_line(self._ledger.rows):
            return tuple(self._ledger.entered)
        return sharing(self._ledger.entered, self._line_records())

    def _line_records(self) -> frozenset[bytes]:
        return self._records.hashes.union(*{row.records for row in self.rows()})

    def follow(self) -> int:
        """Record that these records go on under this roster, once for ever, before this site joins
        a session under it. The place of the first cut of its chain for which this site counts as
        one that goes on: all of them, unless other records of its ledger went on elsewhere.

        Raises `ProtocolError` ('rule') for a roster that the rules do not let them go on under."""
        history = self._roster.history()
        if not self._roster.charter:
            return 0  # a demonstration's: nothing comes after it
        approval = self._ledger.approvals.get(self._plan_sha256)
        if reason := permitted(self._plan_sha256, approval, roster_digest(self._roster)):
            raise ProtocolError("rule", f"R8: {reason}")
        assert approval is not None
        for reason in self.refusals_now(exposed=approval.exposed):
            raise ProtocolError("rule", reason)
        entered = self.entered()
        taken = self._check_statements(history, first_place(self.rows(), entered, history.cuts))
        if not any(one.cuts == history.cuts and taken <= one.taken for one in entered):
            self._ledger.add_entered(self._entering(history, None, taken))
        if self._ledger.recoveries:
            # It may have counted for others, and does not know it any more.
            return len(history.cuts)
        return parting(self._ledger.entered, history.cuts)

    def _entering(
        self, history: History, asked_from: int | None, taken: frozenset[Taken]
    ) -> Entered:
        return Entered(
            self._line_records(),
            history.cuts,
            asked_from,
            {**history.names},
            history.open(),
            taken,
            self._colluding(self.rows()),
        )

    def _check_statements(self, history: History, first: int) -> frozenset[Taken]:
        """What was signed of steps: what this ledger took before, what the rosters of its kits
        listed when it was rebuilt, or else what was signed with the last key that it knows of that
        site, or one that goes on from it. Raises `ProtocolError` ('ledger') for another of a step
        that these records were there for, from the cut `first` on. Of a step that no records of
        this ledger were there for, one that can be told now is taken too: it stays in every later
        roster, and its key may be replaced before the next session."""
        began = first_place(self._ledger.rows, self._ledger.entered, history.cuts)
        known = {
            statement
            for one in self._ledger.entered
            for statement in one.taken
            if one.cuts[: statement[0] + 2] == history.cuts[: statement[0] + 2]
        }
        known = known.union(*(one.taken for one in self._ledger.recoveries))
        taken = set()
        for number, statements in history.statements.items():
            for keys, digest in statements:
                statement = (number, keys[0].hex(), digest)
                name = history.call(statement[1])
                why = ""
                if statement not in known:
                    why = heads.forked(self._ledger.chains, {name: keys})
                if why and number >= first:
                    raise ProtocolError("ledger", why)
                if not why and (number >= first or number < began):
                    taken.add(statement)
        return frozenset(taken)

    def check_followed(self, places: Mapping[str, int]) -> None:
        """A quorum of each roster that these records were under goes on to the next one, as far as
        this site has not seen it before. `places`: what each site of the session joined with.
        Raises `ProtocolError` ('rule')."""
        history, rows = self._roster.history(), self.rows()
        if len(history.cuts) < 2 or not self._bare(rows):
            return
        entered = self.entered()  # each is the beginning of this chain (R1)
        first, colluding = first_place(rows, entered, history.cuts), self._colluding(rows)
        seen = seen_up_to(entered, first, colluding)
        known = {self._roster.identity(site): place for site, place in places.items()}
        missing = unsupported(history, first, known, colluding, seen)
        if reason := followed(history, missing):
            raise ProtocolError("rule", f"R1: {reason}")
        if seen < len(history.cuts) - 1:
            taken = self._check_statements(history, first)
            self._ledger.add_entered(self._entering(history, first, taken))

    def _bare(self, rows: Sequence[Row]) -> bool:
        """Whether a sum of these records, this plan's with them, protects no training row."""
        return {row.unit for row in rows} | {self._plan.privacy.unit} != {"example"}

    def _colluding(self, rows: Sequence[Row]) -> int:
        return largest_colluding(rows, self._roster.rules.max_colluding)

    def pinned(self, round_number: int) -> tuple[str, ...]:
        """With membership batches: the only sites over which a round may still be summed, since it
        was tried with them (R4); empty if it was not."""
        if self._roster.rules.membership != "batches":
            return ()
        names = {self._roster.identity(site): site for site in self._roster.names()}
        tried = self._tried(round_number)
        return tuple(sorted(names.get(one, one) for one in tried))

    def _tried(self, round_number: int) -> tuple[str, ...]:
        """Over whom a round was entered, by first keys; empty if it was not."""
        key = (self._plan_sha256, ROUND, round_number)
        return next((row.sites for row in self._ledger.rows if row.key == key), ())

    def total(self) -> int:
        """With membership batches: what all sites of the roster count for in this plan; 0 while
        that is not known."""
        known = self._ledger.totals.get(self._plan_sha256)
        return 0 if known is None else known.total

    def fix_total(self, total: int) -> None:
        """Record what all sites of the roster count for, once for the plan: no weight may depend on
        who is in a sum (R2). Raises `ProtocolError` ('rule') if it was another one before, if that
        was lost, or if this site's operator did not approve the plan."""
        self._check_goes_on()
        self._check_approved()
        known = self._ledger.add_total(Total(self._plan_sha256, total)).total
        if known != total:
            raise ProtocolError(
                "rule",
                f"R2: expected sites that count for {known:,} together, as when this plan began, "
                f"got {total:,}; have every site use the rows that it had then",
            )

    def _request(
        self,
        phase: str,
        round_number: int,
        base: str,
        content: str,
        versions: Mapping[str, Version],
        count: int,
        terms: PrivacyTerms | None,
    ) -> Row:
        roster, plan = self._roster, self._plan
        own = roster.identity(self._name)
        curve: tuple[float, ...] = ()
        if terms is not None and phase == ROUND:
            curve = tuple(terms.release.rdp(1, WHOLE_ORDERS).tolist())
        return Row(
            plan=self._plan_sha256,
            run=self._run,
            phase=phase,
            round_number=round_number,
            base=base,
            own=own,
            batch=tuple(sorted(map(roster.identity, roster.batch(self._name)))),
            sites=tuple(sorted(map(roster.identity, versions))),
            colluding=roster.rules.max_colluding,
            membership=roster.rules.membership,
            scale=Scale(
                plan.scheme.weights,
                0 if plan.scheme.weights == "equal" else count,
                plan.training.steps,
            ),
            versions={roster.identity(site): one for site, one in versions.items()},
            content=content,
            unit=plan.privacy.unit,
            curve=curve,
            distance=terms.release.distance if terms is not None and curve else 0.0,
            records=self._records.hashes,
            roster=roster.charter.hex(),
        )

    def refusals_now(self, count: int | None = None, *, exposed: bool = False) -> tuple[str, ...]:
        """Rules that the plan would break whoever takes part, as far as this ledger can tell before
        a session: R1, R2, and of R4 that it goes on. `count`: what this site would count for, R2
        is not asked if left out; `exposed`: whether its operator lets its updates be had by
        subtraction."""
        versions = dict.fromkeys(self._roster.names(), self.version)
        request = self._request(ROUND, 1, "", "", versions, count or 0, None)
        rows, consent = self.rows(), Consent(exposed=exposed)
        history, entered = self._roster.history(), self.entered()
        checks = (
            ("R4", goes_on(self._plan_sha256, self._ledger.ended)),
            ("R1", whole_batch(rows, request, consent, history, entered)),
            ("R2", "" if count is None else one_scale(rows, request)),
        )
        return tuple(f"{rule}: {reason}" for rule, reason in checks if reason)

    def exposures(self) -> Exposures:
        """Who can be singled out by sums over time, on this line and under this plan."""
        rows, history = self.rows(), self._roster.history()
        alone = history.isolated(self._colluding(rows))
        return Exposures(
            tuple(sorted(map(history.call, history.exposed()))),
            tuple(history.call(site) for atom in alone for site in atom)
            if not self._bare(rows)
            else (),
            self._roster.identity(self._name) in history.exposed(),
        )

    def others_since(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Who is summed now and was not in the last row of this line, and the other way round, by
        name: all sites of the roster that it went on under, or of the row."""
        rows, history, entered = self.rows(), self._roster.history(), self.entered()
        if not rows or rows[-1].roster == self._roster.charter.hex():
            return (), ()
        cut = (entered[-1].cuts[-1] if entered else ()) or (rows[-1].sites,)
        before = {site for cell in cut for site in cell}
        now = {self._roster.identity(name) for name in self._roster.names()}
        return (
            tuple(sorted(map(history.call, now - before))),
            tuple(sorted(map(history.call, before - now))),
        )

    def part_changed(self) -> bool:
        """Whether this site puts in something else than in an earlier sum (R3)."""
        own = self._roster.identity(self._name)
        return any(
            row.versions.get(own) != self.version
            for row in self._ledger.rows
            if own in row.versions
        )

    def sign_receipt(
        self, phase: str, round_number: int, result: str, sites: Collection[str] = ()
    ) -> None:
        """Record the result that this site is about to sign for, once for ever. Raises
        `ProtocolError` ('disagree') if it signed for another before: then `take_certified` is the
        only way to this one. With membership open a tally of another session can be over another
        set, and have another total. `sites`: of the sum."""
        if self._roster.rules.membership == "open" and phase != ROUND:
            return
        self._check_attested(phase, round_number, result)
        wanted = Receipt(self._plan_sha256, phase, round_number, result)
        if self._ledger.add_receipt(wanted) != wanted:
            summed = len(sites) or len(self._roster.sites)
            least, others = least_opened(self._roster.rules, summed), summed - 1
            raise ProtocolError(
                "disagree",
                f"R4: round {round_number} ({phase}): this site signed for another result before; "
                f"it signs for no second one, and takes this one only if {least} other sites sign "
                f"for it (there are {others}); find out why the sum opened differently",
            )

    def take_certified(self, phase: str, round_number: int, result: str) -> None:
        """Record the result of a sum that this site is about to take by the receipts of others,
        since its own is for another. Raises `ProtocolError` ('disagree') if it recorded another
        one so before: of two certificates one is false."""
        wanted = Receipt(self._plan_sha256, phase, round_number, result)
        self._check_attested(phase, round_number, result)
        if self._ledger.add_certified(wanted) != wanted:
            raise ProtocolError(
                "disagree",
                f"R4: round {round_number} ({phase}): expected the result that others signed for "
                "before, got another with as many receipts: more sites lie than the plan's "
                "max_colluding; stop, and ask the other sites",
            )

    def _check_attested(self, phase: str, round_number: int, result: str) -> None:
        taken = self._ledger.attested.get((self._plan_sha256, round_number))
        if phase == ROUND and taken is not None and taken.result != result:
            raise ProtocolError(
                "disagree",
                f"R4: round {round_number}: this site took another result by the word of others, "
                "and neither signs for a second one nor takes it",
            )

    # -- rounds that others were in (membership batches) -----------------------------------

    def history(self, rounds: int) -> tuple[OpenedRound, ...]:
        """The rounds that this site's model went through, by its ledger: what it signed for or took
        with a certificate, or by the word of others. Raises `ProtocolError` ('ledger') where the
        ledger does not hold one of them: the model is then from elsewhere."""
        entered = {row.round_number: row.sites for row in self._ledger.rows if self._is_round(row)}
        found: list[OpenedRound] = []
        for number in range(1, rounds + 1):
            opened = self._ledger.attested.get((self._plan_sha256, number))
            if opened is None and number in entered and (result := self._result(number)):
                opened = OpenedRound(result, entered[number])
            if opened is None:
                raise ProtocolError(
                    "ledger",
                    f"expected round {number} of this run in this site's ledger, found none: its "
                    f"run folder and its ledger are not of one time; {RESTORE}",
                )
            found.append(opened)
        return tuple(found)

    def _result(self, round_number: int) -> str:
        """The result that this site signed for, or took with a certificate; '' if none."""
        key = (self._plan_sha256, ROUND, round_number)
        known = self._ledger.certified.get(key) or self._ledger.receipts.get(key)
        return "" if known is None else known.result

    def was_in(self, history: Sequence[OpenedRound], completed_rounds: int) -> bool:
        """Whether this site's update is in the first round after `completed_rounds` of a history
        that others attest to.

        Raises `ProtocolError` for a history that this site may not go on from: it signed for
        another result ('disagree'), or was asked to enter a sum that may yet be opened beside that
        one ('rule'); or it was in more than that one round, or has no row of it ('ledger')."""
        own, entered = self._roster.identity(self._name), False
        for number, opened in enumerate(history[completed_rounds:], completed_rounds + 1):
            tried = self._tried(number)
            self._check_attested(ROUND, number, opened.result)
            if self._result(number) not in ("", opened.result):
                raise ProtocolError(
                    "disagree",
                    f"R4: round {number}: this site signed for another result than the one that "
                    "the others stand at, and goes on from no second one; have the operators find "
                    "out why the sum opened differently",
                )
            if tried and len(set(tried) & set(opened.sites)) <= self._roster.rules.max_colluding:
                raise ProtocolError(
                    "rule",
                    f"R4: round {number} was begun here over {len(tried)} sites and is repeated "
                    "over them only; the others made it without a batch of them: the batches went "
                    "on apart",
                )
            # Of two sums of one round that share a batch, its honest sites are in one only: the
            # other is never opened.
            is_in = set(tried) == set(opened.sites)
            if (own in opened.sites) != is_in or (is_in and number > completed_rounds + 1):
                raise ProtocolError(
                    "ledger",
                    f"expected a ledger and a run folder that know of round {number}, in which "
                    f"this site was, got older ones; {RESTORE}",
                )
            entered |= is_in
        return entered

    def take_attested(
        self, history: Sequence[OpenedRound], completed_rounds: int, by: Collection[str]
    ) -> None:
        """Record the rounds after `completed_rounds` that this site is about to stand after by the
        word of the sites `by`: it signs for no other results of them, and starts from the last."""
        new = tuple(history[completed_rounds:])
        who = tuple(sorted(map(self._roster.identity, by)))
        self._ledger.add_attested(Attested(self._plan_sha256, completed_rounds + 1, new, who))


def roster_digest(roster: Roster) -> str:
    """What an approval names of a roster: its countersigned content, or that there is none."""
    return roster.charter.hex() or "demonstration"


def tallies(plan: Plan) -> tuple[str, ...]:
    """The sums of a plan beside its rounds."""
    return (WEIGHTS,) if plan.scheme.weights == "private" else ()
