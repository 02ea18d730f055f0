"""A lost ledger, rebuilt at its site: who has to answer, what the site itself still has of its
plans, and the new file. `recovery.letters` says what others tell, `recovery.rebuild` what of it
comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedshield.cost.estimate import spec_of
from fedshield.data.preview import preview
from fedshield.errors import FedShieldError, UserError
from fedshield.ledger import heads
from fedshield.ledger.entries import Recovered
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.history import Taken
from fedshield.ledger.rows import largest_colluding, part_version
from fedshield.model.base import load_tokenizer
from fedshield.model.chat import use_template
from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan
from fedshield.privacy.accounting import WHOLE_ORDERS
from fedshield.recovery.letters import Answer, RecoveryError
from fedshield.recovery.question import StandingQuestion
from fedshield.recovery.rebuild import OwnPart, Rebuilt, ended, is_shown, rebuilt
from fedshield.recovery.told_heads import Sites, heads_of_others, next_line, own_heads
from fedshield.run.folder import RunFolder, now
from fedshield.run.known_sites import Member, must_answer
from fedshield.run.ledgers import line_records
from fedshield.run.settings import data_setup
from fedshield.site.round import counted
from fedshield.site.settings import privacy_terms


@dataclass(frozen=True)
class Draft:
    """A rebuilt ledger before it is written. `older`: an older copy, `lines`: its lines; `ended`,
    `taken`: as of `Recovered`; `notes`: what could not be read of the site's own part of a plan,
    one sentence each."""

    place: Path
    older: Ledger
    lines: bytes
    rebuilt: Rebuilt
    line: int
    told: dict[str, int]
    peers: dict[str, tuple[heads.Head, bytes]]
    chains: dict[str, tuple[str, ...]]
    ended: tuple[str, ...]
    taken: frozenset[Taken]
    notes: tuple[str, ...]

    def write(self, question: StandingQuestion) -> None:
        """The question is gone before the ledger has its name. Raises `LedgerError`."""
        after = self.older.head.length
        nonce = question.nonce.hex()
        recovered = Recovered(self.line, after, nonce, self.told, self.ended, now(), self.taken)
        Ledger.rebuild(
            self.place,
            self.lines,
            recovered,
            self.rebuilt.rows,
            self.rebuilt.results,
            self.peers,
            self.chains,
            question.drop,
        ).close()


def draft(
    members: Sequence[Member],
    question: StandingQuestion,
    copy: tuple[Ledger, bytes],
    answers: Sequence[tuple[Path, Answer]],
    plans: Sequence[Path],
) -> Draft:
    """Everything but the question to the operator. `members`: every kit on these records; `plans`:
    files of plans beside those in the kits' runs. Raises `UserError`s, of which `RecoveryError`."""
    older, lines = copy
    place = members[0].kit.ledger_path()
    sites = _sites(members)
    _check_kits(members, question, older, sites)
    told = _matched(members, question, answers)
    # Of the lost ledger, if it is left: the copy has the same first line.
    peers, chains = _beside(place, older)
    _check_all_answered(members, older, told, {*peers, *chains}, sites)
    own = own_heads(older, told, sites)
    kept = heads_of_others(told, (peers, older.peers), sites)
    for member in members:
        for before in (chains, older.chains):
            if why := heads.forked(before, member.roster.chains):
                raise RecoveryError(why)
    own_plans, unread = _own_plans(members, plans)
    wanted = {row.plan for one in told for row in one.rows}
    parts, notes = _own_parts(own_plans, wanted, older)
    if not is_shown(older, told, parts, own.shown or heads.place_beside(place).exists()):
        raise RecoveryError(
            "--older: expected a copy that is shown to be of the lost ledger, by its .peers file, "
            "by a head that was signed or by what this site put into a sum, got none of these: "
            "with another record key this site would look changed to all others; give a plan that "
            "was run (--plan), with the records as they were, or a newer copy"
        )
    colluding = largest_colluding(
        older.rows, max(member.roster.rules.max_colluding for member in members)
    )
    names = {site: name for site, (name, _) in sites.items()}
    found = rebuilt(older, told, parts, colluding, names)
    batched = [sha for sha, (_, one) in own_plans.items() if one.scheme.membership == "batches"]
    return Draft(
        place,
        older,
        lines,
        found,
        next_line(older, own, sites),
        own.lines,
        _latest(older.peers, peers, kept),
        dict(older.chains) | dict(chains) | _chains_of(members),
        ended(older, found.rows, own.lines, batched),
        _taken(members),
        (*unread, *notes),
    )


def _taken(members: Sequence[Member]) -> frozenset[Taken]:
    """What is signed of the steps up to the rosters of today, which these sites countersigned. The
    lost ledger took it when it was signed, by keys that may have been replaced since."""
    return frozenset(
        (number, keys[0].hex(), digest)
        for member in members
        for number, statements in member.roster.history().statements.items()
        for keys, digest in statements
    )


def _beside(
    place: Path, older: Ledger
) -> tuple[dict[str, tuple[heads.Head, bytes]], dict[str, tuple[str, ...]]]:
    """What lay beside the lost ledger, if it is left. Raises `LedgerError`."""
    beside = heads.place_beside(place)
    try:
        return heads.read(beside, older.first, needed=False)
    except LedgerError as error:
        raise LedgerError(
            f"{error}; if it has no backup, and the copy is the right one, move {beside.name} away "
            "too: the answers say again what it held, as far as the others remember it"
        ) from None


def _sites(members: Sequence[Member]) -> dict[str, tuple[str, tuple[bytes, ...]]]:
    sites: dict[str, tuple[str, tuple[bytes, ...]]] = {}
    for member in members:
        for first, (name, keys) in member.others.items():
            if first not in sites or len(sites[first][1]) < len(keys):
                sites[first] = name, keys
    for member in members:
        sites[member.own] = member.kit.name, member.roster.keys(member.kit.name)
    return sites


def _check_kits(
    members: Sequence[Member], question: StandingQuestion, older: Ledger, sites: Sites
) -> None:
    own = {member.own for member in members}
    for other in {row.own for row in older.rows} | set(question.asked):
        if other not in own:
            raise RecoveryError(
                f"--kit: expected every kit on these records, got none of the site whose first key "
                f"begins with {other[:16]}, which was in their sums or asked; name it too, with "
                "the answers to its question"
            )


def _matched(
    members: Sequence[Member],
    question: StandingQuestion,
    answers: Sequence[tuple[Path, Answer]],
) -> list[Answer]:
    """The answers, each once, signed by its teller's key of today and to this question."""
    by_own = {member.own: member for member in members}
    found: dict[tuple[str, str], Answer] = {}
    for path, answer in answers:
        if answer.nonce != question.nonce or answer.about not in by_own:
            raise RecoveryError(
                f"{path}: expected an answer to this site's question, got one to another; have it "
                "answered anew"
            )
        teller = by_own[answer.about].others.get(answer.teller)
        if teller is None or not answer.is_signed(teller[1][-1]):
            raise RecoveryError(
                f"{path}: expected the answer of another site that this kit knows, signed with its "
                "key of today, got none; ask for the file again"
            )
        if (answer.about, answer.teller) in found:
            raise RecoveryError(
                f"{path}: expected each site's answer once, got another of {teller[0]}; leave one "
                "out"
            )
        found[answer.about, answer.teller] = answer
    return list(found.values())


def _check_all_answered(
    members: Sequence[Member],
    older: Ledger,
    answers: Sequence[Answer],
    remembered: set[str],
    sites: Sites,
) -> None:
    """Raises `RecoveryError` where a site that could be in a sum with this one did not answer.
    `remembered`: first keys beside the lost ledger."""
    own = {member.own for member in members}
    missing: set[str] = set()
    for member in members:
        needed = {*member.others, *must_answer(member.rosters)}
        needed |= {site for row in older.rows if row.own == member.own for site in row.sites}
        needed |= {
            site
            for answer in answers
            if answer.about == member.own
            for row in answer.rows
            for site in (*row.sites, *row.batch)
        }
        gave = {answer.teller for answer in answers if answer.about == member.own}
        missing |= needed - gave - own
    gave = {answer.teller for answer in answers}
    missing |= ({*older.peers, *older.chains} | remembered) - gave - own
    if missing:
        names = sorted(sites[site][0] if site in sites else site[:16] for site in missing)
        raise RecoveryError(
            f"expected the answers of all sites that this one ever was in a roster with, got none "
            f"of {', '.join(names)}: what a sum held is known for certain by an honest one only, "
            "and nobody knows which is"
        )


def _latest(*known: heads.Heads) -> dict[str, tuple[heads.Head, bytes]]:
    found: dict[str, tuple[heads.Head, bytes]] = {}
    for one in known:
        for site, (head, statement) in one.items():
            if site not in found or found[site][0].length <= head.length:
                found[site] = head, statement
    return found


def _chains_of(members: Sequence[Member]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for member in members:
        found |= heads.to_chains(member.roster.chains)
    return found


# -- what the site itself has of its plans -------------------------------------------------


def _own_plans(
    members: Sequence[Member], files: Sequence[Path]
) -> tuple[dict[str, tuple[Member, Plan]], list[str]]:
    plans: dict[str, tuple[Member, Plan]] = {}
    notes: list[str] = []
    for member in members:
        for run in member.kit.runs():
            try:
                plan = RunFolder.open(member.kit.path / "runs" / run).plan()
            except FedShieldError as error:
                notes.append(f"run {run}: its plan cannot be read ({error})")
            else:
                plans[plan.sha256()] = member, plan
    for path in files:
        plan, _ = load_plan(path)
        named = [member for member in members if member.kit.name in plan.data.sites]
        if not named:
            raise UserError(f"{path}: expected a plan with this site in it, got another; leave it")
        plans.setdefault(plan.sha256(), (named[0], plan))
    return plans, notes


def _own_parts(
    plans: Mapping[str, tuple[Member, Plan]], wanted: set[str], older: Ledger
) -> tuple[dict[str, OwnPart], list[str]]:
    parts: dict[str, OwnPart] = {}
    notes: list[str] = []
    for sha256 in sorted(wanted & plans.keys()):
        try:
            parts[sha256] = own_part(*plans[sha256], older.record_key)
        except FedShieldError as error:
            parts[sha256] = _of_plan(plans[sha256][1])
            notes.append(f"plan {sha256[:12]}: this site's part cannot be read ({error})")
    return parts, notes


def own_part(member: Member, plan: Plan, record_key: bytes) -> OwnPart:
    """What this site would put into the plan's sums now, as `site approve` reads it. Raises
    `UserError`s for records or a model that cannot be read."""
    here = member.kit.local(plan)
    tokenizer, _ = load_tokenizer(here.model, here.base_dir)
    use_template(tokenizer, plan.model.chat_template)
    data = preview(data_setup(here), tokenizer, member.kit.name, 0).data
    records = line_records(record_key, data)
    version = part_version(record_key, records.sources, records.rows)
    count = counted(plan, records.examples, member.example_cap)
    privacy = privacy_terms(plan, spec_of(here)[1], records.examples)
    curve: tuple[float, ...] = ()
    if privacy is not None:
        curve = tuple(privacy.release.rdp(1, WHOLE_ORDERS).tolist())
    return OwnPart(
        rounds=plan.rounds,
        unit=plan.privacy.unit,
        weights=plan.scheme.weights,
        steps=plan.training.steps,
        version=version,
        records=records.hashes,
        count=count,
        roster=member.roster.charter.hex(),
        curve=curve,
        distance=0.0 if privacy is None else privacy.release.distance,
    )


def _of_plan(plan: Plan) -> OwnPart:
    return OwnPart(plan.rounds, plan.privacy.unit, plan.scheme.weights, plan.training.steps)
