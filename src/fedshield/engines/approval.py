"""What a site's operator reads before a plan may use the site's records: eight lines, always the
same ones, and what the site's own rules say first (protocol.md, "Across sums")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedshield.data.preview import Preview, ShownRow, preview
from fedshield.engines.flare.kit import Kit
from fedshield.engines.ledgers import approval_of, line_of
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import Version
from fedshield.ledger.rules import Approval
from fedshield.model.base import inspect
from fedshield.model.chat import use_template
from fedshield.plan import Plan
from fedshield.privacy.terms import Earlier
from fedshield.protocol.line import Line
from fedshield.protocol.roster import Roster
from fedshield.protocol.site_model import counted

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
    one, else None. Whether the others change theirs nobody can tell before a session (R3)."""

    approval: Approval
    num_sites: int
    lines: tuple[tuple[str, str], ...]
    changed: frozenset[str]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    part: Version | None
    rows: tuple[ShownRow, ...] = field(repr=False)


def propose(kit: Kit, plan: Plan, ledger: Ledger) -> Proposal:
    """Read the plan as this site would run it; nothing is trained or sent. Raises `UserError`s for
    a plan that roster or policy refuse, and for data or a model that cannot be read."""
    here = kit.local(plan)
    tokenizer, model_sha256 = inspect(here)
    party = kit.admit(plan, model_sha256)
    use_template(tokenizer, plan.model.chat_template)
    shown = preview(here, tokenizer, kit.name, ROWS_SHOWN)
    line = line_of(ledger, kit.name, plan, party.roster, "", shown.data)
    words = _lines(kit.name, plan, party.roster, model_sha256, shown, line)
    last = list(ledger.approvals.values())[-1:]
    before = dict(zip(LABELS, last[0].lines, strict=False)) if last else {}
    changed = {label for label, text in words if last and before.get(label) != text}
    count = counted(plan, len(shown.data.train), party.example_cap)
    refusals = line.refusals_now(count)
    approval = approval_of(plan, party.roster, model_sha256)
    return Proposal(
        replace(approval, lines=tuple(text for _, text in words)),
        len(party.roster.names()),
        words,
        frozenset(changed),
        refusals,
        _passed_limits(plan, ledger, line),
        line.version if line.part_changed() else None,
        tuple(row for row in shown.rows if row.part == "train")[:ROWS_SHOWN],
    )


def _lines(
    name: str, plan: Plan, roster: Roster, model_sha256: str, shown: Preview, line: Line
) -> tuple[tuple[str, str], ...]:
    rules = roster.rules
    others = [site for site in roster.names() if site != name]
    rounds = plan.rounds + (plan.scheme.weights == "private")
    before = len({row.key for row in line.rows()})
    everyone = "always all of them" if rules.membership == "fixed" else "or fewer of them"
    texts: Sequence[str] = (
        f"{', '.join(others)}: {len(others) + 1} sites with this one, {everyone}",
        _share(plan, len(others) + 1),
        f"{len(shown.data.train):,} with loss, of {shown.data.source}",
        f"{rounds:,} of this plan ({plan.rounds:,} rounds), {before + rounds:,} in all on these "
        "records",
        _epsilon(plan, line),
        _opening(plan, roster),
        f"the adapter that the plan's seed gives, on the base model {model_sha256[:16]}",
        _leaving(plan),
    )
    return tuple(zip(LABELS, texts, strict=True))


def _share(plan: Plan, num_sites: int) -> str:
    if plan.scheme.weights == "equal":
        return f"1 of {num_sites}, whatever the number of rows"
    known = "told to all" if plan.scheme.weights == "public" else "kept to itself"
    return f"by number of rows, which each site has {known}"


def _epsilon(plan: Plan, line: Line) -> str:
    if plan.privacy.unit == "none":
        return "none: this plan adds no noise, and does not bound what its sums tell"
    earlier = line.earlier(plan.privacy.unit)
    if earlier.curve is None:
        return "infinite: a sum without such protection was made of these records before"
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
    for before in ledger.approvals.values():
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


def _opening(plan: Plan, roster: Roster) -> str:
    rules = roster.rules
    if plan.scheme.name != "rlwe":
        return "each site opens every sum" + (
            ", and the coordinator every update" if plan.scheme.name == "plain" else ""
        )
    who = "the server" if plan.scheme.open_to == "server" else "the sites"
    return (
        f"{who}, the sum only, with {rules.threshold} of {rules.num_sites} answers; up to "
        f"{rules.max_colluding} colluding sites and the coordinator learn no more"
    )


def _leaving(plan: Plan) -> str:
    bits = f", {plan.encoding.bits} bits a value" if plan.scheme.name == "rlwe" else ""
    return f"one encrypted update a round ({plan.scheme.name}{bits}), signed counts and digests"
