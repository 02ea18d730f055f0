"""Where a site's ledger lies, and what an engine makes of it: one for the site's records, or one
for each run of a demonstration, whose sites one person plays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from fedshield.data.sites import SiteData
from fedshield.errors import UserError
from fedshield.ledger import heads
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.rows import record_hash
from fedshield.ledger.rules import ONE_RUN, Approval, goes_on, permitted
from fedshield.plan.schema import Plan
from fedshield.protocol.line import Line, Records, roster_digest, tallies
from fedshield.protocol.roster import Roster
from fedshield.run.admission import NotApproved
from fedshield.run.folder import RunFolder
from fedshield.run.log_file import ROSTERS_FILE, read_rosters

#: Of a site's folder in a run that one person plays.
LEDGER = "ledger.jsonl"


def of_demonstration(folder: RunFolder, site: str) -> Ledger:
    """The ledger of a run's own site: made when the run begins, and never again. Raises
    `LedgerError` where it is missing and the site has been in the run."""
    path = folder.path / "sites" / site / LEDGER
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return Ledger.open(path)
    if folder.site_store(site).rounds() or folder.journal_path(site).exists():
        raise LedgerError(
            f"{path}: expected the ledger of this run, found none though {site} has been in it; "
            "restore it, or start a new run"
        )
    return Ledger.create(path)


def beside_keys(keys: Path, site: str) -> Path:
    """Where the ledger of an enrolled site lies whose key file is here: all runs by it share it."""
    return keys / f"{site}.{LEDGER}"


def check_kept(keys: Path, site: str, roster: Roster, run: Path) -> None:
    """Raises `LedgerError` where an enrolled site has no ledger beside its key, and has been in
    `run` (a folder that may not be there yet), in a run beside that, or in one of the kit that the
    key lies in."""
    path = beside_keys(keys, site)
    if path.exists():
        return
    own = set(roster.keys(site))
    around = [*run.resolve().parent.glob("*"), *(keys / "runs").glob("*")]
    for folder in (run, *sorted(around)):
        if _has_been(RunFolder(folder), site, own):
            raise LedgerError(
                f"{path}: expected the ledger of {site}, found none though it has been in "
                f"{folder}; {heads.RESTORE}"
            )


def check_enrolled(keys: Path, plan: Plan, roster: Roster, run: Path) -> None:
    """Before a run folder is made, at each site whose key file is in `keys`: that its ledger is not
    lost, and R4. Raises `UserError`."""
    for site in plan.data.site_names():
        check_kept(keys, site, roster, run)
        path = beside_keys(keys, site)
        if path.exists():
            with Ledger.open(path) as ledger:
                check_one_run(ledger, plan, run.name)


def of_keys(keys: Path, site: str, roster: Roster, run: Path) -> Ledger:
    """The ledger of an enrolled site, made with its first run. Raises `LedgerError`."""
    check_kept(keys, site, roster, run)
    path = beside_keys(keys, site)
    return Ledger.open(path) if path.exists() else Ledger.create(path)


def _has_been(folder: RunFolder, site: str, keys: Collection[bytes]) -> bool:
    """Whether a site with one of these keys let something out in a run. A folder that does not say
    by whose keys its sites ran is taken for one by these."""
    rosters = folder.path / ROSTERS_FILE
    if not (folder.site_store(site).rounds() or folder.journal_path(site).exists()):
        return False
    try:
        return any(one.sites.get(site) in keys for one in read_rosters(rosters))
    except UserError:
        return True


def of_site(path: Path, runs: Sequence[str], plan: Plan) -> Ledger:
    """The ledger of a site's records, which its first approval makes. `runs`: what the site's kit
    has been in. Raises `LedgerError`, or `NotApproved` where nothing says that there ever was
    one."""
    if not (path.exists() or heads.place_beside(path).exists() or runs):
        raise NotApproved(
            f"R8: expected an approval of plan {plan.sha256()[:16]}, got none: this site has not "
            "approved any; read it with: fedshield site approve PLAN --kit KIT"
        )
    return Ledger.open(path)


def approval_of(plan: Plan, roster: Roster, model_sha256: str) -> Approval:
    """What an operator approves of a plan under a roster, with this base model."""
    return Approval(
        plan=plan.sha256(),
        roster=roster_digest(roster),
        model=model_sha256,
        rounds=plan.rounds,
        tallies=tallies(plan),
        unit=plan.privacy.unit,
        limit=plan.privacy.limit,
        delta=plan.privacy.delta_in_force,
    )


def check_approved(ledger: Ledger, plan: Plan, roster: Roster, run: str) -> None:
    """Before anything is loaded: R8 and the one run of R4. Raises `UserError`, of which
    `NotApproved`."""
    plan_sha256 = plan.sha256()
    approval = ledger.approvals.get(plan_sha256)
    if reason := permitted(plan_sha256, approval, roster_digest(roster)):
        raise NotApproved(f"R8: {reason}")
    check_one_run(ledger, plan, run)


def check_one_run(ledger: Ledger, plan: Plan, run: str) -> None:
    """R4: raises `UserError` where the plan has been run under another name, or cannot go on."""
    plan_sha256 = plan.sha256()
    if why := goes_on(plan_sha256, ledger.ended):
        raise UserError(f"R4: {why}")
    others = {row.run for row in ledger.rows if row.plan == plan_sha256} - {run}
    if others:
        raise UserError(f"R4: expected the run {others.pop()} of this plan, got {run}: {ONE_RUN}")


def told_apart(lines: Iterable[Line]) -> dict[str, list[str]]:
    """run.json's `exposed` and `exposed_noised`: whose updates sums over time show, as the sites of
    these lines know it."""
    exposures = [line.exposures() for line in lines]
    return {
        "exposed": sorted({site for one in exposures for site in one.open}),
        "exposed_noised": sorted({site for one in exposures for site in one.noised}),
    }


def check_model(ledger: Ledger, plan: Plan, model_sha256: str) -> None:
    """R7: the base model is the one that was approved. Raises `UserError`."""
    approved = ledger.approvals[plan.sha256()].model
    if approved != model_sha256:
        raise UserError(
            f"R7: expected the base model that the plan was approved with ({approved[:16]}), got "
            f"{model_sha256[:16]}; put it in place, or approve again with: fedshield site approve "
            "PLAN --kit KIT"
        )


def line_of(
    ledger: Ledger, site: str, plan: Plan, roster: Roster, run: str, data: SiteData
) -> Line:
    """The rules of a site's records in a run of a plan. Raises `LedgerError` for a roster in which
    a site's keys do not go on from those that the ledger remembers."""
    if why := heads.forked(ledger.chains, roster.chains):
        raise LedgerError(why)
    return Line(ledger, site, plan, roster, run, line_records(ledger.record_key, data))


def line_records(record_key: bytes, data: SiteData) -> Records:
    """What of a site's data enters a sum. `record_key`: the ledger's."""
    hashes = frozenset(record_hash(record_key, record) for record in data.records)
    return Records(hashes, len(data.train), data.sources, data.train_digest())
