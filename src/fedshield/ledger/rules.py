"""Rules R1 to R8: whether a site enters a sum, from its ledger and the request alone.

The promise: no vector in the rational span of the rows of coefficients of all sums ever opened has
exactly one honest site (So et al., AAAI 2023, arXiv 2106.03328). Each rule here is a pure function.
It gives '' or the reason why not, in one line, and knows no clock, no network and no file. The rows
are those of the request's line (`rows.line_of`), the oldest first; the request is the row that
would be written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from fedshield.ledger.history import (
    Entered,
    History,
    Unsupported,
    not_continued,
    of_one,
    signed_late,
    undeclared,
)
from fedshield.ledger.rows import (
    LOST,
    UNKNOWN,
    Consent,
    Row,
    Unit,
    Version,
    largest_colluding,
)

RuleName = Literal["R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8"]
#: Times that one sum of an approved plan may be tried (R8).
MAX_TRIES = 8
#: What follows where a plan has been run before (R4).
ONE_RUN = "a plan has one run; --resume that one if it is not finished, else agree on another plan"
#: Largest share of a batch's honest weight that one site may have (R6).
MAX_WEIGHT = 0.75


@dataclass(frozen=True)
class Approval:
    """What an operator approved at the site's terminal (R8). `roster`: its content's SHA-256, hex,
    or 'demonstration'; `model`: the base model's SHA-256; `rounds`, `tallies`: the sums that it is
    for; `part`: the version of what this site puts in (`rows.part_version`), where the operator
    consented to it though only this site may have changed (R3), else None; `lines`: what the
    operator read, to mark what changes in the next plan; `unit`, `limit` (None for none) and
    `delta`: the plan's privacy; `exposed`: whether the operator lets this site's updates be had by
    subtraction (R1)."""

    plan: str
    roster: str
    model: str
    rounds: int
    tallies: tuple[str, ...]
    part: Version | None = None
    lines: tuple[str, ...] = ()
    unit: Unit = "none"
    limit: float | None = None
    delta: float = 0.0
    exposed: bool = False


@dataclass(frozen=True)
class Terms:
    """What else of the plan the rules need. `min_examples`: the floor of R6; `examples`: this
    site's rows that carry loss after all filtering and cutting; `starts`: digests that a first
    round may start from, the plan's own and results in this ledger (R7); `limit`, `epsilon`: the
    plan's limit and what the line would have spent after this sum, None for no limit (R5)."""

    min_examples: int
    examples: int
    starts: frozenset[str]
    limit: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Refusal:
    """A rule that a request breaks, and the line that says so."""

    rule: RuleName
    reason: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.reason}"


def first_refusal(
    rows: Sequence[Row],
    request: Row,
    terms: Terms,
    approval: Approval | None,
    roster: str,
    tries: int,
    consent: Consent | None = None,
    ledger: Sequence[Row] | None = None,
    history: History | None = None,
    entered: Sequence[Entered] = (),
) -> Refusal | None:
    """The first rule that the request breaks, in the order R8, R7, R6, R4, R1, R2, R3, R5.

    Args:
        rows: of the request's line, the oldest first.
        request: the row that would be written.
        terms: what else of the plan the rules need.
        approval: the operator's of this plan, None for none.
        roster: SHA-256, hex, of the content of the roster in force.
        tries: rows already written for this very sum.
        consent: what the operator agreed to besides; None for nothing.
        ledger: the rows of all lines, for what a site put into any sum (R3) and the one run of a
            plan (R4); those of the line if left out.
        history: of the roster (R1); None if it says nothing of those before it.
        entered: the rosters that the line was under (R1).

    Returns:
        The rule and why; None if the request may go on.
    """
    agreed = consent or Consent()
    everything = rows if ledger is None else ledger
    checks: tuple[tuple[RuleName, Callable[[], str]], ...] = (
        ("R8", lambda: approved(request, approval, roster, tries)),
        ("R7", lambda: known_start(request, terms.starts)),
        ("R6", lambda: enough_examples(terms.examples, terms.min_examples)),
        ("R4", lambda: once(everything, request)),
        ("R1", lambda: whole_batch(rows, request, agreed, history, entered)),
        ("R2", lambda: one_scale(rows, request)),
        ("R3", lambda: own_part(everything, request, agreed)),
        ("R5", lambda: known_rounds(everything, request)),
        ("R5", lambda: within_budget(terms.epsilon, terms.limit)),
    )
    for rule, check in checks:
        if reason := check():
            return Refusal(rule, reason)
    return None


def whole_batch(
    rows: Sequence[Row],
    request: Row,
    consent: Consent,
    history: History | None = None,
    entered: Sequence[Entered] = (),
) -> str:
    """R1: a sum holds this site's whole batch, and over all rosters of the line two honest sites
    stay together with every site that did not choose otherwise (`ledger.history`).

    `membership: open` is for lines whose every row protects each training row by itself (`unit:
    example`), and on such a line other sites may be summed too.

    Args:
        rows: of the request's line, the oldest first.
        request: the row that would be written.
        consent: whether this site's updates may be had by subtraction.
        history: what the roster says of those before it; None if nothing: then the batch of a line
            never changes.
        entered: the rosters that the line was under.

    Returns:
        '' or why not.
    """
    if request.own not in request.sites:
        return "expected a sum that this site is in, got one without it"
    colluding = largest_colluding(rows, request.colluding)
    if request.colluding < colluding:
        # Else the coalition that the earlier sums hold against opens this one's updates by itself.
        return (
            f"expected to hold against {colluding} colluding sites and the coordinator, as earlier "
            f"sums of these records did, got {request.colluding} (scheme, max_colluding)"
        )
    bare = [row for row in (*rows, request) if row.unit != "example"]
    if request.membership == "open":
        if bare:
            return (
                "expected privacy.unit example in every sum of these records with membership "
                f"open, got {bare[0].unit} in {_named(bare[0])}; use membership fixed"
            )
        return ""
    opened = [row for row in rows if row.membership == "open"]
    if opened and request.unit != "example":
        return (
            "expected privacy.unit example in every sum of these records, since "
            f"{_named(opened[0])} was with membership open, got {request.unit}"
        )
    # A plan of one site hides it behind nobody, and says so. Its batch never changes all the same.
    alone = request.batch == request.sites == (request.own,) and colluding == 0
    if len(request.batch) < colluding + 2 and not alone:
        return (
            f"expected a batch of at least {colluding + 2} sites (c + 2, the largest c that these "
            f"records were used with), got {len(request.batch)}"
        )
    if request.own not in request.batch:
        return "expected a batch that this site is in, got another"
    missing = len(set(request.batch) - set(request.sites))
    if missing:
        return (
            f"expected a sum over this site's whole batch of {len(request.batch)}, got one without "
            f"{missing} of them; go on with --resume once they are back"
        )
    if request.membership == "fixed" and set(request.batch) != set(request.sites):
        return "expected a sum over one batch with membership fixed, got more sites than it has"
    if not bare:
        return ""  # what subtraction shows of a site protects each of its training rows by itself
    return _together(rows, request, consent, history, entered, colluding)


def _together(
    rows: Sequence[Row],
    request: Row,
    consent: Consent,
    history: History | None,
    entered: Sequence[Entered],
    colluding: int,
) -> str:
    """R1 over time: the rosters of all sums are known, and no site is left alone by them."""
    if history is None:
        history = of_one(request.batch)
        row = next((row for row in rows if set(row.batch) != set(request.batch)), None)
    else:
        row = undeclared(rows, history.cuts)
    if row is not None:
        changed = len(set(row.batch) ^ set(request.batch))
        return (
            f"expected the batch that these records were summed in before ({_named(row)}), or a "
            f"roster that lists it among those it follows, got one that differs by {changed} "
            "sites; have the same sites back, under keys that their first ones signed; change a "
            "roster with roster leave and roster join; or use records that were in no sum, at "
            "every site, under a roster made anew"
        )
    if (known := not_continued(entered, history.cuts)) is not None:
        return (
            f"expected a roster that follows the {len(known)} different ones that these records "
            f"were under, all of them in order, got one that lists {len(history.cuts) - 1} before "
            "it and goes on from another; ask for the roster of today, or use records that were in "
            "no sum and joined under no roster, at every site"
        )
    if late := signed_late(entered, history, request.own):
        return (
            f"expected no exposure of {history.calls(late)[:120]} for rosters that these records "
            "went on after without it, got one: who has an old key can sign such; ask that site, "
            "and for a roster that does not list it, or keep the site in this one's policy "
            "(exposes) if it was there"
        )
    if history.named and (reason := _renamed(history, entered)):
        return reason
    if request.batch == (request.own,):
        return ""
    exposed = history.exposed()
    if reason := _lost_key(rows, request, history):
        return reason
    if request.own in exposed and not consent.exposed:
        return (
            "expected this site's consent, since by its roster or its policy its updates can be "
            "had by subtraction, got none; in a kit: fedshield site approve PLAN --kit KIT "
            "--exposed (run --keys takes no consent)"
        )
    short = history.isolated(colluding)
    if not short:
        return ""
    return (
        f"expected every site to be in the same sums as {colluding + 1} others (c + 1) that are "
        f"not exposed, got fewer for {history.calls(short[0])[:120]}: the difference of sums "
        f"before and after would show its update; go or join as {colluding + 2} or more together, "
        "have who goes or joins sign its exposure (fedshield roster leave, roster join), or use "
        "records that were in no sum, at every site, under a roster made anew"
    )


def _lost_key(rows: Sequence[Row], request: Row, history: History) -> str:
    """A site that lost its key is two to all others, and each of the two would hide whoever goes
    with it. So all of one name count as exposed, at every site, or the site takes no part; and it
    goes by the name that it had, so that all others see it."""
    for sites in history.namesakes():
        if not set(sites) <= history.exposed():
            return (
                f"expected every key of {history.names[sites[0]]} to count as exposed, since a "
                "site that lost its key hides nobody, got fewer; have every policy, that site's "
                f"too, expose {' and '.join(map(history.call, sites))}, or use records that were "
                "in no sum, at every site, under a roster made anew"
            )
    for lost in sorted({row.own for row in rows} - {request.own}):
        if history.names.get(lost) != history.names.get(request.own):
            return (
                "expected the name that this site had when its records were in sums under a key "
                f"that is lost ({history.call(lost)}), got {history.call(request.own)}: under "
                "another the others take it for another site; have the new key under the old name "
                "(fedshield roster replace --key-lost)"
            )
    return ""


def _renamed(history: History, entered: Sequence[Entered]) -> str:
    """A policy exposes by name, and rosters say whose name that is."""
    for one in entered:
        for site, name in one.names.items():
            if (now := history.names.get(site, name)) != name:
                return (
                    f"expected the site that was called {name} when these records were in its "
                    f"sums to be called so, since the policy exposes a site by name, got {now}; "
                    "ask for the roster of today"
                )
    return ""


def followed(history: History, missing: Unsupported | None) -> str:
    """R1 over time: of each roster a quorum goes on to the one that follows, and no other can have
    one. `missing`: of the session that would be the first (`history.unsupported`)."""
    if missing is None:
        return ""
    before = {site for batch in history.cuts[missing.place] for site in batch}
    if not missing.needed or not before or not history.cuts[missing.place + 1]:
        return (
            "expected no roster with membership open among those that these records follow, got "
            "one; use records that were in no sum, at every site"
        )
    return (
        f"expected at least {missing.needed} of the {len(before)} sites of the roster before to go "
        "on under this one, so that no other can follow it too, got "
        f"{missing.going_on}: have more of them in one session, with the records that were in sums "
        "before, or have who went sign it (fedshield roster leave ROSTER NAME --kit KIT; policies "
        "that expose it stay as they are)"
    )


def one_scale(rows: Sequence[Row], request: Row) -> str:
    """R2: weights, own count and steps a round are those of every row of the line. One body of
    numbers under two weightings is two equations."""
    for row in rows:
        if row.scale.count == UNKNOWN:
            return (
                f"expected what this site counted for in an earlier sum of these records "
                f"({_named(row)}), but that was lost with its ledger; use records that were in no "
                "sum, at every site"
            )
        for name in ("weights", "count", "steps"):
            old, new = getattr(row.scale, name), getattr(request.scale, name)
            if old != new:
                return (
                    f"expected {name} {old} as in an earlier sum of these records "
                    f"({_named(row)}), got {new}; keep it, or the two sums give single sites away"
                )
    return ""


def own_part(rows: Sequence[Row], request: Row, consent: Consent) -> str:
    """R3: between two rows either nobody in the batch changes what it puts in, or everyone does.
    What only this site changed can be seen by subtraction, other records too. Source records and
    rows of the model are compared each by itself: a plan can change the latter at everyone. How
    much each changed no version says, so another's change of one record counts as much as this
    site's of all of them.

    Args:
        rows: of all lines, the oldest first.
        request: the row that would be written.
        consent: the version that the operator let this site change to alone.

    Returns:
        '' or why not.
    """
    ours = request.versions[request.own]
    for row in rows:
        before = row.versions.get(row.own)  # under whatever key it was known by then
        if before is None or before.rows == ours.rows:
            continue  # other bytes of the file, and nothing else enters
        for half, name in enumerate(("records", "rows as the model reads them")):
            if before[half] == ours[half]:
                continue
            if consent.part is not None and consent.part[half] == ours[half]:
                continue
            kept = [
                member
                for member in request.batch
                if member != request.own
                and member in row.versions.keys() & request.versions.keys()
                and row.versions[member][half] == request.versions[member][half]
            ]
            if kept:
                return (
                    f"expected this site's {name} as in {_named(row)}, or everyone's changed, got "
                    f"them changed where {len(kept)} of the batch kept theirs; put them back, or "
                    "have every site change its own: what changed here alone can be seen by "
                    "subtraction (to let it, in a kit: fedshield site approve PLAN --kit KIT; run "
                    "--keys takes no consent)"
                )
    return ""


def once(rows: Sequence[Row], request: Row) -> str:
    """R4: one row for each (plan, phase, round), repeated only with equal base, set and content;
    and one run for each plan. With membership open the set may differ: what its sums show of a
    site is the site's update, which is the same and was counted (R5)."""
    for row in rows:
        if row.plan == request.plan and row.run != request.run:
            return f"expected the run {row.run} of this plan, got {request.run}: {ONE_RUN}"
        if row.key != request.key:
            continue
        if row.recovered:
            return (
                f"expected {_named(row)} not to be repeated, got it again: what this site sent "
                "then was lost with its ledger; agree on another plan"
            )
        compared = [
            ("base model", row.base, request.base),
            ("encoded update", row.content, request.content),
        ]
        if request.membership != "open":
            same_set = ",".join(sorted(row.sites)), ",".join(sorted(request.sites))
            compared.insert(1, ("set of sites", *same_set))
        for name, old, new in compared:
            if old != new:
                return f"expected the {name} of the first try of {_named(row)}, got another"
    return ""


def known_rounds(rows: Sequence[Row], request: Row) -> str:
    """R5: a plan that promises an epsilon knows what each of its own rounds spent. Its reports say
    what it spent by itself, and that is taken to be as much in each round."""
    for row in rows if request.unit != "none" else ():
        of_plan = (row.plan, row.phase) == (request.plan, "round")
        if of_plan and row.recovered and not row.curve:
            return (
                f"expected what {_named(row)} spent, since the plan states an epsilon, but that "
                "was lost with the ledger; agree on another plan"
            )
    return ""


def goes_on(plan: str, ended: Collection[str]) -> str:
    """R4, of a plan (SHA-256) with membership batches: what its weights are shares of, and the
    rounds that this site took by the word of others, were not lost with the ledger (`ended`). A
    second total would be a second weighting, a second word a second result.

    >>> goes_on("00", ended=()), goes_on("00", ended=["00"])[:46]
    ('', 'expected a plan of which this ledger holds all')
    """
    if plan not in ended:
        return ""
    return (
        f"expected a plan of which this ledger holds all, got {plan[:12]}: its total or its rounds "
        "were lost when the ledger was rebuilt; agree on another plan"
    )


def within_budget(epsilon: float | None, limit: float | None) -> str:
    """R5: what all plans together have spent of these records stays within the plan's limit.

    >>> within_budget(2.0, limit=None), within_budget(2.0, limit=8.0)
    ('', '')
    >>> within_budget(9.25, limit=8.0)
    'expected epsilon of at most 8 for these records over all plans, got 9.25 after this sum'
    """
    if limit is None:
        return ""
    if epsilon is None:
        return (
            f"expected epsilon of at most {limit:g} for these records, got infinity: a sum without "
            "privacy, or whose cost was lost with the ledger, was made from them before"
        )
    if epsilon > limit:
        return (
            f"expected epsilon of at most {limit:g} for these records over all plans, got "
            f"{epsilon:.4g} after this sum"
        )
    return ""


def enough_examples(examples: int, min_examples: int) -> str:
    """R6, this site's own floor, which is the others' too: rows that carry loss.

    >>> enough_examples(64, min_examples=64)
    ''
    >>> enough_examples(63, min_examples=64)[:55]
    'expected at least 64 rows with loss (min_examples), got'
    """
    if examples >= min_examples:
        return ""
    return (
        f"expected at least {min_examples} rows with loss (min_examples), got {examples}; this "
        "site cannot take part in this plan"
    )


def largest_count(
    batch_size: int, colluding: int, min_examples: int, max_weight: float = MAX_WEIGHT
) -> int:
    """R6: the largest count n for which this site's share stays within `max_weight` of the honest
    members' weight: n <= (b - c - 1) min_examples w / (1 - w). Colluders may claim any count, so
    the others are taken at their floor.

    >>> largest_count(batch_size=4, colluding=1, min_examples=32)
    192

    Args:
        batch_size: b, sites of the batch.
        colluding: c.
        min_examples: the floor, rows with loss.
        max_weight: w, below 1.

    Returns:
        Rows with loss.
    """
    honest_others = batch_size - colluding - 1
    return int(honest_others * min_examples * max_weight / (1 - max_weight))


def known_start(request: Row, starts: frozenset[str]) -> str:
    """R7: a round starts from what the plan derives, or from a result in this ledger. A crafted
    start can mute all sites but one (Pasquini et al., CCS 2022). `starts`: SHA-256, hex, of what
    a round may start from.
    """
    if request.phase != "round" or request.base in starts:
        return ""
    return (
        f"expected {_named(request)} to start from the plan's own adapter or a result in this "
        f"ledger, got {request.base[:16]}"
    )


def permitted(plan: str, approval: Approval | None, roster: str) -> str:
    """R8, before any sum: the operator approved this plan under this roster.

    Args:
        plan: its SHA-256, hex.
        approval: the operator's, None for none.
        roster: SHA-256, hex, of the content of the roster in force.

    Returns:
        '' or why not.
    """
    if approval is None or approval.plan != plan:
        return (
            f"expected an approval of plan {plan[:16]}, got none; read it with: fedshield site "
            "approve PLAN --kit KIT"
        )
    if approval.roster != roster:
        return (
            "expected the roster that the plan was approved under, got another; approve again "
            "with: fedshield site approve PLAN --kit KIT"
        )
    return ""


def approved(request: Row, approval: Approval | None, roster: str, tries: int) -> str:
    """R8: the operator approved this plan under this roster, for this sum, and it was not tried too
    often. So neither sums nor the file grow at the coordinator's will.

    Args:
        request: the row that would be written.
        approval: the operator's, None for none.
        roster: SHA-256, hex, of the content of the roster in force.
        tries: rows already written for this very sum.

    Returns:
        '' or why not.
    """
    if reason := permitted(request.plan, approval, roster):
        return reason
    assert approval is not None
    if request.phase == "round":
        if not 1 <= request.round_number <= approval.rounds:
            return f"expected a round of the approved {approval.rounds}, got {request.round_number}"
    elif request.phase not in approval.tallies:
        return f"expected an approved tally, got {request.phase}"
    if tries >= MAX_TRIES:
        return (
            f"expected at most {MAX_TRIES} tries of {_named(request)}, got one more; find out "
            "why they failed, then approve again with: fedshield site approve PLAN --kit KIT"
        )
    return ""


def _named(row: Row) -> str:
    if row.phase == "round":
        return f"round {row.round_number} of plan {row.plan[:12]}"
    if row.phase == LOST:
        return f"the rounds of plan {row.plan[:12]} that were lost with the ledger"
    return f"the {row.phase} of plan {row.plan[:12]}"
