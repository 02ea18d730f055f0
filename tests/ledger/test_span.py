"""Random consortia, plans and histories: what the sites admit never isolates one of them.

Every sum that all of its honest members admit by `first_refusal` is opened. After each, the rank of
all opened rows of coefficients says whether one honest site can be had alone. A site's update is
one fixed vector for each version of its part: the worst case of training. Rosters follow
each other; an exposed site may be seen, and what follows from that is in the span of the rows.

FEDSHIELD_SPAN_STEPS asks for that many steps at least, FEDSHIELD_SPAN_SEED for one seed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedshield.ledger import rules
from fedshield.ledger.history import (
    Cut,
    Entered,
    History,
    Taken,
    chain,
    first_place,
    goes,
    parting,
    seen_up_to,
    unsupported,
)
from fedshield.ledger.rows import (
    Consent,
    Membership,
    Row,
    Scale,
    Unit,
    Version,
    largest_colluding,
    line_of,
    sharing,
)
from fedshield.ledger.rules import Approval, Terms, first_refusal
from reference.span import isolated

#: Bodies of records: the first two share one, so they are one line; the third is another,
#: until the fourth is used, which shares one with each.
BODIES = (
    frozenset({b"1", b"2"}),
    frozenset({b"2", b"3"}),
    frozenset({b"4"}),
    frozenset({b"1", b"4"}),
)
STEPS_EACH = 40
DEFAULT_STEPS = 8_000
FLOOR = 8

masks = st.integers(0, 2**10 - 1)
#: Mostly nobody, so that sums come about.
few = st.one_of(st.just(0), st.just(0), st.sampled_from([1 << bit for bit in range(10)]), masks)


#: Plans: mostly the newest.
whiches = st.one_of(st.just(0), st.just(0), st.integers(0, 20))


NOBODY = frozenset[str]()
#: Who signed where it goes: sites, and the chain of cuts that each signed for.
Signed = frozenset[tuple[int, tuple[Cut, ...]]]


@dataclass(frozen=True)
class Roster:
    """`members` in `batches`; up to `colluding` of them may collude. `follows`: places of rosters
    that it lists as earlier ones; `signed`: sites whose exposure is signed in it; `bound`: who
    signed that it goes, and the chain of cuts that it signed for."""

    batches: tuple[tuple[int, ...], ...]
    colluding: int
    membership: Membership
    follows: tuple[int, ...] = ()
    signed: frozenset[int] = frozenset()
    bound: Signed = frozenset()

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(site for batch in self.batches for site in batch)

    @property
    def cut(self) -> tuple[tuple[str, ...], ...]:
        if self.membership == "open":
            return ()
        return tuple(tuple(map(str, batch)) for batch in self.batches)


@dataclass(frozen=True)
class Plan:
    """`parts`: sites whose part differs from the usual one; `muted`: sites that it leaves too few
    rows, who then put in nothing."""

    roster: Roster
    weights: str
    steps: int
    unit: Unit
    parts: frozenset[int]
    muted: frozenset[int]


def _chosen(mask: int, num_sites: int) -> frozenset[int]:
    return frozenset(site for site in range(num_sites) if mask >> site & 1)


class Consortium(RuleBasedStateMachine):
    """K sites, the last c of whom collude with the coordinator, which chooses all that it can."""

    steps = 0
    sums = 0

    @initialize(num_sites=st.integers(3, 10), data=st.data())
    def found(self, num_sites: int, data: st.DataObject) -> None:
        self.begun = False
        self.num_sites = num_sites
        self.colluders = data.draw(st.integers(1, min(3, num_sites - 2)))
        self.honest = range(num_sites - self.colluders)
        self.ledgers: dict[int, list[Row]] = {site: [] for site in self.honest}
        self.bodies = dict.fromkeys(range(num_sites), 0)
        self.consenting: frozenset[int] = frozenset()
        self.consented: frozenset[int] = frozenset()
        everyone = Roster((tuple(range(num_sites)),), self.colluders, "fixed")
        self.rosters = [everyone]
        self.plans: list[Plan] = []
        self.opened: set[tuple[tuple[tuple[int, str], int], ...]] = set()
        self.bare: set[tuple[int, str]] = set()
        self.exposes: dict[int, frozenset[int]] = dict.fromkeys(self.honest, frozenset())
        self.known: set[int] = set()
        self.rebuilt: set[int] = set()
        self.entered: dict[int, list[Entered]] = {site: [] for site in self.honest}

    # -- what operators and the coordinator prepare ------------------------------------------

    @rule(
        mask=st.one_of(masks, st.just(2**10 - 1)),
        size=st.integers(2, 5),
        more=st.integers(0, 1),
        membership=st.sampled_from(["fixed", "batches", "open", "open"]),
    )
    def sign_roster(self, mask: int, size: int, more: int, membership: Membership) -> None:
        """The colluders are in every roster: it says nothing of others."""
        own = sorted(_chosen(mask, len(self.honest)))
        bad = list(self.colluding_sites())
        members = (*own, *bad)
        if membership == "batches" and len(own) > size:
            # Colluders are at the end, or one in each batch.
            batches = [tuple(own[at : at + size]) for at in range(0, len(own), size)]
            for place, site in enumerate(bad):
                batches[place % len(batches)] = (*batches[place % len(batches)], site)
        else:
            batches = [tuple(members)]
        if own:
            self.rosters.append(Roster(tuple(batches), self.colluders + more, membership))

    @rule(
        of=whiches,
        mask=st.one_of(few, few, masks),
        apart=st.integers(0, 2**10 - 1),
        halves=st.booleans(),
        signing=st.one_of(masks, st.just(2**10 - 1), st.just(0)),
        dropped=st.one_of(st.just(0), st.just(0), masks),
        leaving=st.one_of(st.just(0), masks, st.just(2**10 - 1)),
    )
    def revise_roster(
        self,
        of: int,
        mask: int,
        apart: int,
        halves: bool,
        signing: int,
        dropped: int,
        leaving: int,
    ) -> None:
        """One that follows another, whose `mask` of sites go or come; `apart`: in a second batch of
        two, of the `halves` of those who were there or of all; `signing`: who signs that it is
        exposed; `dropped`: rosters that the coordinator leaves out of those before; `leaving`: who
        signs where it goes, besides."""
        place = len(self.rosters) - 1 - of % len(self.rosters)
        before = self.rosters[place]
        were = set(before.members)
        changing = set(_chosen(mask, len(self.honest)))
        members = sorted(were ^ changing)
        if not members:
            return
        other = _chosen(apart, self.num_sites) & set(members)
        if halves:
            other = frozenset(members) - were  # who comes has a batch of its own
        batches: tuple[tuple[int, ...], ...] = (tuple(members),)
        cells = (tuple(sorted(other)), tuple(sorted(set(members) - other)))
        if all(len(cell) >= before.colluding + 2 for cell in cells):
            batches = cells
        signed = _chosen(signing, len(self.honest)) & changing
        follows = tuple(
            one
            for one in (*before.follows, place)
            if one not in _chosen(dropped, len(self.rosters))
        )
        roster = Roster(
            batches,
            before.colluding,
            "batches" if len(batches) > 1 else "fixed",
            follows,
            before.signed | signed,
            before.bound,
        )
        going = (signed | _chosen(leaving, len(self.honest))) & were - set(members)
        self.rosters.append(replace(roster, bound=before.bound | self._sign(roster, going)))

    @rule(site=st.integers(0, 9))
    def rebuild(self, site: int) -> None:
        """A ledger is lost, and rebuilt with its rows: under which rosters it went on nobody
        tells."""
        self.entered[site % len(self.honest)].clear()
        self.rebuilt.add(site % len(self.honest))

    @rule(
        mask=masks,
        alone=st.integers(0, 9),
        leaving=st.one_of(st.just(0), masks),
        changing=st.one_of(st.just(0), masks),
        losing=few,
        unit=st.sampled_from(["none", "none", "example"]),
    )
    def split(
        self, mask: int, alone: int, leaving: int, changing: int, losing: int, unit: Unit
    ) -> None:
        """Two rosters follow the first one, each with some of its sites and without one of them;
        then the coordinator has sums made under all three. `changing`: whose records are other ones
        for a first sum under the second, under `unit`; `losing`: who loses its ledger between."""
        left_out = {alone % len(self.honest)}
        one = set(self.honest) & _chosen(mask, len(self.honest)) - left_out
        bad = set(self.colluding_sites())
        for members in (set(self.rosters[0].members), one | bad, set(self.honest) - one | bad):
            roster = self.rosters[0]
            if members != set(roster.members):
                kept = tuple(sorted(members - left_out))
                bare = Roster((kept,), self.colluders, "fixed", (0,))
                roster = replace(
                    bare,
                    bound=self._sign(bare, _chosen(leaving, len(self.honest)) - set(kept)),
                )
            self.rosters.append(roster)
            bodies = dict(self.bodies)
            if members == one | bad:
                for site in _chosen(changing, len(self.honest)):
                    self.bodies[site] = 2
                self.plans.append(Plan(roster, "equal", 1, unit, frozenset(), frozenset()))
                self._ask(0, 0, 1, 0, False, 0)
                self.bodies = bodies
                for site in _chosen(losing, len(self.honest)):
                    self.rebuild(site)
            self.plans.append(Plan(roster, "equal", 1, "none", frozenset(), frozenset()))
            self._ask(0, 0, 1, 0, False, 0)

    @rule(
        twist=st.sampled_from(["weights", "part", "muted", "crafted"]),
        alone=st.integers(0, 9),
    )
    def break_one_rule(self, twist: str, alone: int) -> None:
        """Sums over the first roster of which the second is what one rule forbids. `alone`: the
        only site whose part changes, or that the plan leaves enough rows."""
        one = frozenset({alone % len(self.honest)})
        scales, parts, muted = [("equal", 1)], frozenset[int](), frozenset[int]()
        if twist == "weights":
            scales = [("private", 1), ("equal", 2), ("private", 2)]
        elif twist == "part":
            parts = one
        elif twist == "muted":
            muted = frozenset(self.honest) - one
        first, nobody = self.rosters[0], frozenset[int]()
        self.plans.append(Plan(first, "equal", 1, "none", nobody, nobody))
        self._ask(0, 0, 1, 0, False, 0)
        for weights, steps in scales:
            self.plans.append(Plan(first, weights, steps, "none", parts, muted))
            self._ask(0, 0, 1, 0, twist == "crafted", 0)

    def colluding_sites(self) -> range:
        return range(len(self.honest), self.num_sites)

    def _sign(self, roster: Roster, sites: frozenset[int]) -> Signed:
        """Who goes and signs where to: its ledger goes on there, and nowhere else."""
        cuts, signed = self._cuts(roster), set()
        for site in sites:
            with contextlib.suppress(LookupError):
                if site in self.rebuilt:
                    continue
                self.entered[site].append(
                    goes(self.entered[site], self.ledgers[site], History(cuts))
                )
                signed.add((site, cuts))
        return frozenset(signed)

    @rule(mask=few, site=st.integers(0, 9), everyone=st.booleans())
    def expose(self, mask: int, site: int, everyone: bool) -> None:
        """Policies name a site: all of them, or some."""
        named = frozenset({site % len(self.honest)})
        for one in self.honest if everyone else _chosen(mask, len(self.honest)):
            self.exposes[one] = named

    @rule(
        of=st.integers(0, 20),
        unit=st.sampled_from(["none", "none", "example", "site"]),
        twist=st.sampled_from(["", "", "", "weights", "steps", "parts", "all parts", "muted"]),
        mask=masks,
    )
    def approve_plan(self, of: int, unit: Unit, twist: str, mask: int) -> None:
        """Every operator approves it. `twist`: what it has that most have not."""
        roster = self.rosters[of % len(self.rosters)]
        if roster.membership == "open" and unit == "none":
            unit = "example"  # what no site enters shows nothing
        chosen, nobody = _chosen(mask, self.num_sites), frozenset[int]()
        if twist == "all parts":
            chosen = frozenset(range(self.num_sites))
        plan = Plan(
            roster,
            "private" if twist == "weights" else "equal",
            2 if twist == "steps" else 1,
            unit,
            chosen if twist in ("parts", "all parts") else nobody,
            chosen if twist == "muted" else nobody,
        )
        self.plans.append(plan)

    @rule(mask=few, body=st.integers(0, len(BODIES) - 1))
    def change_records(self, mask: int, body: int) -> None:
        for site in _chosen(mask, self.num_sites):
            self.bodies[site] = body

    @rule(mask=few)
    def consent(self, mask: int) -> None:
        """Who consents to its part being seen is not asked about from then on, if it is used."""
        self.consenting = _chosen(mask, len(self.honest))

    # -- sums ------------------------------------------------------------------------------

    @precondition(lambda self: self.plans)
    @rule(which=whiches, number=st.integers(0, 2))
    def ask_for_a_whole_sum(self, which: int, number: int) -> None:
        """As an honest coordinator does; with the same plan and round it is a repetition."""
        self._ask(which, 0, number, 0, False, 0)

    @precondition(lambda self: self.plans)
    @rule(which=whiches, number=st.integers(0, 2), absent=few, claims=few)
    def ask_for_a_sum(self, which: int, number: int, absent: int, claims: int) -> None:
        """Without those absent. `claims`: which colluders say that their part changed."""
        self._ask(which, 0, number, absent, False, claims)

    @precondition(lambda self: self.plans)
    @rule(which=whiches, run=st.integers(0, 1), crafted=st.booleans(), claims=few)
    def ask_in_another_way(self, which: int, run: int, crafted: bool, claims: int) -> None:
        """In another run, or from a start that mutes all sites but one."""
        self._ask(which, run, 1, 0, crafted, claims)

    def _ask(
        self, which: int, run: int, number: int, absent: int, crafted: bool, claims: int
    ) -> None:
        """`which`: 0 for the newest plan; `number`: the round, 0 for the tally. All are asked, and
        each that admits the sum writes its row, whether or not the others do."""
        place = len(self.plans) - 1 - which % len(self.plans)
        plan = self.plans[place]
        away = _chosen(absent, self.num_sites)
        sites = tuple(site for site in plan.roster.members if site not in away)
        base = "" if not number else "crafted" if crafted else "start"
        versions = {site: self._version(site, plan) for site in sites}
        for site in _chosen(claims, self.num_sites) & set(sites) - set(self.honest):
            versions[site] = "another"
        asked = [site for site in sites if site in self.honest]
        joined = self._join(
            place,
            [self._request(place, run, number, base, sites, versions, site) for site in asked],
            sites,
        )
        admitted, exposed = [], []
        for site in joined:
            request = self._request(place, run, number, base, sites, versions, site)
            refusal = self._refusal(place, request)
            note(f"{site}: {refusal}")
            if refusal is None:
                admitted.append(site)
                exposed.append(frozenset(map(int, self._history(plan.roster, site).exposed())))
                self.ledgers[site].append(request)
        if admitted and admitted == asked:
            # Whom everyone in it counts as open, and who counts itself so.
            self.known |= frozenset.intersection(*exposed)
            self.known |= {site for site, ones in zip(asked, exposed, strict=True) if site in ones}
            self._open(plan, number, base, asked, versions)

    def _version(self, site: int, plan: Plan) -> str:
        return f"{self.bodies[site]}{'part' if site in plan.parts else ''}"

    def _request(
        self,
        place: int,
        run: int,
        number: int,
        base: str,
        sites: tuple[int, ...],
        versions: dict[int, str],
        site: int,
    ) -> Row:
        plan = self.plans[place]
        roster = plan.roster
        batch = next(batch for batch in roster.batches if site in batch)
        return Row(
            plan=str(place),
            run=str(run),
            phase="round" if number else "weights",
            round_number=number,
            base=base,
            own=str(site),
            batch=(str(site),) if roster.membership == "open" else tuple(map(str, batch)),
            sites=tuple(map(str, sites)),
            colluding=roster.colluding,
            membership=roster.membership,
            scale=Scale(
                plan.weights, 0 if plan.weights == "equal" else self._count(site), plan.steps
            ),
            versions={str(one): Version(version, version) for one, version in versions.items()},
            content=versions[site] + ("tally" if not number else ""),
            unit=plan.unit,
            records=BODIES[self.bodies[site]],
            roster=str(self.rosters.index(roster)),
        )

    def _count(self, site: int) -> int:
        return 2 + site % 3 + self.bodies[site]

    def _refusal(self, place: int, request: Row) -> rules.Refusal | None:
        plan, site = self.plans[place], int(request.own)
        ledger = self.ledgers[site]
        roster = str(self.rosters.index(plan.roster))
        return first_refusal(
            line_of(ledger, request.records),
            request,
            Terms(FLOOR, FLOOR - 1 if site in plan.muted else FLOOR, frozenset({"start"})),
            Approval(request.plan, roster, "model", 2, ("weights",)),
            roster,
            sum(row.key == request.key for row in ledger),
            Consent(request.versions[request.own] if site in self.consenting else None, True),
            ledger,
            self._history(plan.roster, site),
            sharing(self.entered[site], request.records),
        )

    def _join(self, place: int, requests: list[Row], sites: tuple[int, ...]) -> list[int]:
        """Those whose ledgers go on under the plan's roster, and who saw that a quorum does. The
        colluders say that they were there from the beginning."""
        plan = self.plans[place]
        places = {str(site): 0 for site in sites if site not in self.honest}
        for request in requests:
            site = int(request.own)
            history, (rows, entered) = self._history(plan.roster, site), self._line(request)
            consent = Consent(request.versions[request.own], True)
            if rules.whole_batch(rows, request, consent, history, entered):
                continue
            self._enter(request, history, None)
            counted = parting(self.entered[site], history.cuts)
            places[request.own] = len(history.cuts) if site in self.rebuilt else counted
        joined = []
        for request in requests:
            if request.own not in places:
                continue
            history = self._history(plan.roster, int(request.own))
            rows, entered = self._line(request)
            if {row.unit for row in rows} | {request.unit} != {"example"}:
                first = first_place(rows, entered, history.cuts)
                colluding = largest_colluding(rows, request.colluding)
                seen = seen_up_to(entered, first, colluding)
                missing = unsupported(history, first, places, colluding, seen)
                if rules.followed(history, missing):
                    note(f"{request.own}: {missing}")
                    continue
                self._enter(request, history, first, colluding)
            joined.append(int(request.own))
        return joined

    def _line(self, request: Row) -> tuple[tuple[Row, ...], tuple[Entered, ...]]:
        site = int(request.own)
        return (
            line_of(self.ledgers[site], request.records),
            sharing(self.entered[site], request.records),
        )

    def _enter(
        self, request: Row, history: History, asked_from: int | None, colluding: int = 0
    ) -> None:
        about = (asked_from, {}, history.open(), frozenset[Taken](), colluding)
        one = Entered(request.records, history.cuts, *about)
        if one not in self.entered[int(request.own)]:
            self.entered[int(request.own)].append(one)

    def _cuts(self, roster: Roster) -> tuple[Cut, ...]:
        return chain([*(self.rosters[one].cut for one in roster.follows), roster.cut])[0]

    def _history(self, roster: Roster, site: int) -> History:
        cuts = self._cuts(roster)
        bound = {
            place: frozenset(
                str(one) for one, signed in roster.bound if signed == cuts[: place + 2]
            )
            for place in range(len(cuts) - 1)
        }
        return History(
            cuts,
            {0: frozenset(map(str, roster.signed))},
            bound,
            named=frozenset(map(str, self.exposes[site])),
        )

    def _open(
        self, plan: Plan, number: int, base: str, asked: list[int], versions: dict[int, str]
    ) -> None:
        row = {}
        for site in asked:
            if site in plan.muted or (base == "crafted" and site != asked[-1]):
                continue
            coefficient = self._count(site) if plan.weights == "private" and number else 1
            if plan.steps == 2 and number:
                coefficient *= 1 + site % 4
            row[site, versions[site] + ("" if number else " count")] = coefficient
        if plan.unit != "example":
            self.bare |= row.keys()
        self.consented |= self.consenting & set(asked)
        Consortium.sums += 1
        before = len(self.opened)
        self.opened.add(tuple(sorted(row.items())))
        if len(self.opened) == before:
            return
        rows = [dict(one) for one in self.opened]
        columns = {column for one in rows for column in one}
        may_be_seen = self.consented | self.known
        seen = {one for one in columns if one not in self.bare or one[0] in may_be_seen}
        alone = isolated(rows, seen)
        assert alone is None, f"site {alone} alone, from {sorted(self.opened)}"

    @invariant()
    def count_step(self) -> None:
        Consortium.steps += self.begun
        self.begun = True


def run(steps: int, chosen: int, *, shrink: bool = True) -> None:
    """At least so many steps from this seed; more seeds follow from it as they are needed."""
    Consortium.steps = Consortium.sums = 0
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    while Consortium.steps < steps:
        seeded = seed(chosen)(type("Seeded", (Consortium,), {}))
        run_state_machine_as_test(
            seeded,
            settings=settings(
                max_examples=max(1, min(500, (steps - Consortium.steps) // STEPS_EACH)),
                stateful_step_count=STEPS_EACH,
                derandomize=False,
                database=None,
                deadline=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )
        chosen += 1


def test_what_sites_admit_isolates_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    steps = int(os.environ.get("FEDSHIELD_SPAN_STEPS", DEFAULT_STEPS))
    given = os.environ.get("FEDSHIELD_SPAN_SEED")
    chosen = int(given) if given else secrets.randbits(32)
    with capsys.disabled():
        sys.stderr.write(f"\nFEDSHIELD_SPAN_SEED={chosen}\n")
    run(steps, chosen)
    with capsys.disabled():
        sys.stderr.write(f"{Consortium.steps} steps, {Consortium.sums} sums opened\n")
    # Most would be refused if the histories were not like real ones.
    assert Consortium.sums > steps / 80


@pytest.mark.parametrize(
    "rule_off",
    [
        "whole_batch",
        "_together",
        "followed",
        "one_scale",
        "own_part",
        "enough_examples",
        "known_start",
    ],
)
def test_without_one_rule_a_history_is_found(
    rule_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, rule_off, lambda *_: "")
    with pytest.raises(AssertionError, match=r"site \d+ alone"):
        run(5 * DEFAULT_STEPS, 1, shrink=False)
