"""What a site's operator reads before a plan may use the site's records: eight lines, always the
same ones, and what the site's own rules say first (protocol.md, "Across sums")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedshield.data.preview import Preview, ShownRow, preview
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import Version
from fedshield.ledger.rules import Approval
from fedshield.model.base import inspect
from fedshield.model.chat import use_template
from fedshield.plan.quorum import Rules
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import Earlier
from fedshield.protocol.line import Exposures, Line, tallies
from fedshield.protocol.roster import Roster
from fedshield.run.flare.kit import Kit
from fedshield.run.ledgers import approval_of, line_of
from fedshield.run.settings import data_setup
from fedshield.site.round import counted

#: Names of the eight lines, in their order.
LABELS = (
    *("summed with", "my share", "my rows", "sums"),
    *("epsilon", "who may open", "starts from", "leaves the site"),
)
ROWS_SHOWN = 3


@dataclass(frozen=True)
class Proposal:
    """A plan as its approval would be. `lines`: the eight, by label; `changed`: labels of those
    that differ from the last approved plan's; `refusals`: rules that the plan breaks already, one
    sentence each; `warnings`: what no rule refuses and an operator should know first; `part`: the
    version of what this site puts in (`Approval.part`), where this ledger holds a sum with another
    one, else None. Whether the others change theirs nobody can tell before a session (R3).
    `exposed`: whether this site's updates can be had by subtraction (R1)."""

    approval: Approval
    num_sites: int
    lines: tuple[tuple[str, str], ...]
    changed: frozenset[str]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    part: Version | None
    exposed: bool
    rows: tuple[ShownRow, ...] = field(repr=False)


def propose(kit: Kit, plan: Plan, ledger: Ledger, *, exposed: bool = False) -> Proposal:
    """Read the plan as this site would run it; nothing is trained or sent. `exposed`: whether the
    operator lets this site's updates be had by subtraction, where its roster says so. Raises
    `UserError`s for a plan that roster or policy refuse, and for data or a model that cannot be
    read."""
    here = kit.local(plan)
    tokenizer, model_sha256 = inspect(here.model, here.base_dir, here.speed.device)
    party = kit.admit(plan, model_sha256)
    use_template(tokenizer, plan.model.chat_template)
    shown = preview(data_setup(here), tokenizer, kit.name, ROWS_SHOWN)
    line = line_of(ledger, kit.name, plan, party.roster, "", shown.data)
    count = counted(plan, len(shown.data.train), party.example_cap)
    words = _lines(plan, kit.name, party.roster, model_sha256, shown, line, count)
    last = list(ledger.past_approvals.values())[-1:]
    before = dict(zip(LABELS, last[0].lines, strict=False)) if last else {}
    changed = {label for label, text in words if last and before.get(label) != text}
    refusals = line.refusals_now(count, exposed=exposed)
    exposures = line.exposures()
    approval = approval_of(plan, party.roster, model_sha256)
    return Proposal(
        replace(
            approval,
            lines=tuple(text for _, text in words),
            exposed=exposed and exposures.own,
        ),
        len(party.roster.names()),
        words,
        frozenset(changed),
        refusals,
        (*_told_apart(exposures, kit.name), *_passed_limits(plan, ledger, line)),
        line.version if line.part_changed() else None,
        exposures.own,
        tuple(row for row in shown.rows if row.part == "train")[:ROWS_SHOWN],
    )


def _lines(
    plan: Plan, name: str, roster: Roster, model_sha256: str, shown: Preview, line: Line, count: int
) -> tuple[tuple[str, str], ...]:
    """`count`: what this site's rows count for."""
    rules = roster.rules
    texts: Sequence[str] = (
        _summed(name, roster, line),
        _share(plan, rules, len(shown.data.train), count),
        f"{len(shown.data.train):,} with loss, of {shown.data.source}",
        _sums(plan, line),
        _epsilon(plan, line),
        _opening(plan, rules),
        f"the adapter that the plan's seed gives, on the base model {model_sha256[:16]}",
        _leaving(plan),
    )
    return tuple(zip(LABELS, texts, strict=True))


def _whole(rules: Rules) -> bool:
    """Whether every sum is over all sites."""
    return rules.min_cohort == rules.num_sites


def _summed(name: str, roster: Roster, line: Line) -> str:
    names, rules = roster.names(), roster.rules
    others = ", ".join(site for site in names if site != name)
    if _whole(rules):
        which = "always all of them"
    elif rules.membership == "batches":
        batch = ", ".join(site for site in roster.batch(name) if site != name)
        which = (
            f"or whole batches of them, at least {rules.min_cohort} sites; always with {batch}, "
            "the batch of this site"
        )
    else:
        which = f"or any set of at least {rules.min_cohort} of them"
    new, missing = line.others_since()
    changed = "".join(
        f"; {what} since the last sum of these records: {', '.join(sites)}"
        for what, sites in (("NEW", new), ("MISSING", missing))
        if sites
    )
    return f"{others}: {len(names)} sites with this one, {which}{changed}"


def _told_apart(exposures: Exposures, name: str) -> tuple[str, ...]:
    """Whose updates sums over time show, one sentence each."""
    others = [site for site in exposures.open if site != name]
    told = [
        f"exposed: {site}'s update of each round can be computed by whoever holds the sums before "
        f"and after {site} went or came (its own signature says so, or this site's policy)"
        for site in others
    ]
    if exposures.noised:
        told.append(
            "these sums are over other sites than earlier ones: the update of "
            f"{', '.join(exposures.noised)}, with the noise that protects each training row, can "
            "be had as a difference of sums"
        )
    return tuple(told)


def _share(plan: Plan, rules: Rules, rows: int, count: int) -> str:
    weights, name = plan.scheme.weights, plan.scheme.name
    if weights == "equal":
        shares = _whole(rules) or rules.membership == "batches"
        sites = f"{rules.num_sites}" if shares else "the sites in the sum"
        return f"1 of {sites}, whatever the number of rows{_of_the_sum(rules)}"
    by = f"by number of rows: this site's {rows:,} count as {count:,}, which is"
    if weights == "public":
        return f"{by} told to all sites and the coordinator{_of_the_sum(rules)}"
    if name == "plain":
        return f"{by} not encrypted: the coordinator reads every site's count"
    told = f"{by} encrypted as the updates are; the total of all sites is opened"
    if rules.num_sites == 2:
        return f"{told}, which tells each of two sites the other's count"
    if rules.membership == "batches" and not _whole(rules):
        return f"{told}, and of each sum what its sites count for: each batch's total is told"
    if not _whole(rules):
        return f"{told}, and the difference of totals over two sets can tell a site's count"
    return told


def _of_the_sum(rules: Rules) -> str:
    """What becomes of a share of all sites in a sum over fewer."""
    if rules.membership != "batches" or _whole(rules):
        return ""
    return "; a sum over fewer sites is divided by what they are together"


def _sums(plan: Plan, line: Line) -> str:
    """Each sum once, however often its plan was approved or the sum was tried."""
    own = plan.rounds + len(tallies(plan))
    entered = {row.key for row in line.rows()}
    before = {key for key in entered if key[0] == plan.sha256()}
    of_plan = f"{plan.rounds:,} rounds"
    if tallies(plan):
        of_plan += " and the total of the counts"
        if plan.scheme.membership == "open":
            of_plan += ", which can be over another set in each session"
    done = f", {len(before):,} of them entered before" if before else ""
    return (
        f"{own:,} of this plan ({of_plan}){done}; {len(entered - before) + own:,} in all on these "
        "records"
    )


def _epsilon(plan: Plan, line: Line) -> str:
    if plan.privacy.unit == "none":
        return "none: this plan adds no noise, and does not bound what its sums tell"
    earlier = line.earlier(plan.privacy.unit)
    if earlier.curve is None:
        return (
            "infinite: a sum without such protection, or whose cost was lost with the ledger, was "
            "made of these records before"
        )
    limit = plan.privacy.limit
    most = "no limit" if limit is None else f"this plan stops at {limit:g}"
    spent = "nothing spent by other plans" if earlier == Earlier() else "other plans' sums counted"
    return f"{most} for each {plan.privacy.unit}, {spent}"


def _passed_limits(plan: Plan, ledger: Ledger, line: Line) -> tuple[str, ...]:
    """Limits of earlier plans on these records which this plan's does not keep to: R5 holds a plan
    to its own. As far as the ledger can tell: of plans that it holds a sum of."""
    privacy = plan.privacy
    ran = {row.plan for row in line.rows()} - {plan.sha256()}
    found: list[str] = []
    for before in ledger.past_approvals.values():
        if before.plan not in ran or before.limit is None:
            continue
        # What protects a whole site protects each of its examples.
        covered = before.unit == privacy.unit or (before.unit, privacy.unit) == ("example", "site")
        delta = privacy.delta_in_force
        if covered and privacy.limit is not None:
            if privacy.limit <= before.limit and delta <= before.delta:
                continue
            now = f"{privacy.limit:g} at delta {delta:g} for each {privacy.unit}"
        else:
            now = "none" if privacy.limit is None else f"{privacy.limit:g} for each {privacy.unit}"
        found.append(
            f"plan {before.plan[:12]} on these records stopped at epsilon {before.limit:g} at "
            f"delta {before.delta:g} for each {before.unit}; this plan's limit is {now}, so what "
            "is spent in all may pass what was promised then"
        )
    return tuple(found)


def _opening(plan: Plan, rules: Rules) -> str:
    """Who comes to read what of the updates: SECURITY.md, by scheme, in one line."""
    if not plan.scheme.traits.encrypted:
        return (
            "nothing is encrypted: the coordinator reads every site's update and every sum; each "
            f"site reads every sum{_of_two(rules)}"
        )
    if plan.scheme.traits.shared_key:
        return (
            "each site opens every sum; the coordinator reads nothing only while it follows the "
            "protocol and no site colludes with it: with any one site it can read every site's "
            f"update{_of_two(rules)}"
        )
    server = plan.scheme.open_to == "server"
    who = "the coordinator and each site open" if server else "each site opens"
    opened = f"{who} every sum, and no update alone, with {rules.threshold} answers"
    colluding = "the coordinator alone learns"
    if rules.max_colluding:
        colluding = f"up to {rules.max_colluding} colluding sites and the coordinator learn"
    if rules.server == "malicious":
        return f"{opened}; {colluding} no more{_of_sets(rules)}{_of_two(rules)}"
    return (
        f"{opened}; {colluding} no more only while the coordinator follows the protocol "
        "(semi-honest: no votes on who is in a sum): else it may have more opened"
        f"{_of_sets(rules)}{_of_two(rules)}"
    )


def _of_sets(rules: Rules) -> str:
    """What subtraction shows where sums are over several sets (R1: of a site under unit example
    only)."""
    if _whole(rules):
        return ""
    if rules.membership == "batches":
        return "; but the difference of two sums can be the sum of this site's batch alone"
    return (
        "; but the difference of two sums over different sets can be this site's own update, with "
        "its noise"
    )


def _of_two(rules: Rules) -> str:
    return "; of two sites each learns the other's update" if rules.num_sites == 2 else ""


def _leaving(plan: Plan) -> str:
    scheme = plan.scheme
    if not scheme.traits.encrypted:
        update = "one update a round, not encrypted (plain)"
    elif scheme.traits.shared_key:
        update = f"one encrypted update a round (ckks, {scheme.parameter_set})"
    else:
        update = f"one encrypted update a round (rlwe, {plan.encoding.bits} bits a value)"
        if plan.privacy.unit == "none":
            update += ", the training loss with it"
    counts = {
        "equal": "no count",
        "public": "its count, signed and in the clear",
        "private": "its count, " + ("encrypted" if scheme.traits.encrypted else "not encrypted"),
    }
    return f"{update}; {counts[scheme.weights]}; signed digests"
