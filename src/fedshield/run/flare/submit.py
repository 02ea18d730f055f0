"""Submitting a run to a provisioned consortium and following it to its end.

Whoever submits sees what the coordinator knows: sizes, digests, who was lost, how it ended. The
adapter stays with the sites, in their kits.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedshield import interrupt
from fedshield.enrolment import SignedRoster
from fedshield.errors import RoundFailed, RunFolderError, UserError
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import least_sites
from fedshield.run.events import Events, Quiet
from fedshield.run.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.run.flare.fetching import fetch_log, in_short
from fedshield.run.flare.follow import CODES
from fedshield.run.flare.jobs import JOBS, write_job
from fedshield.run.flare.provision import ProvisionError
from fedshield.run.flare.session import absent, admin_session, check_kit, present
from fedshield.run.folder import RunFolder, now
from fedshield.run.state import ending

#: Seconds between looks; after the coordinator ended, until the job is ended.
LOOK_S, GRACE_S = 1.0, 30.0
#: Seconds that a site has to come when a run is submitted.
WAIT_S = 30.0
#: Seconds between two roll calls while a run is followed.
ROLL_S = 5.0


def submit(
    plan: Plan, kit: Path, out: Path, events: Events | None = None, wait_s: float = WAIT_S
) -> RunFolder:
    """Start a run and follow it. `kit`: the folder that submits (the consortium's `admin`);
    `wait_s`: how long to wait for sites that are not there.

    Raises `ProvisionError` for a kit or server that cannot be used or too few sites, before
    anything is made, `RoundFailed` for a run that stopped; `resume` goes on with it."""
    check_kit(kit)
    RunFolder.check_free(out)
    watch = events or Quiet()
    sites = _ready(plan, kit, watch, wait_s)
    state = {
        "status": "running",
        "engine": "flare",
        "plan_sha256": plan.sha256(),
        "base_dir": str(plan.base_dir),
        "run": f"{plan.name}-{secrets.token_hex(4)}",
        "started": now(),
        "jobs": [],
    }
    folder = RunFolder.create(out, plan, state)
    return _run(folder, plan, kit, sites, watch)


def resume(
    path: Path, kit: Path, events: Events | None = None, wait_s: float = WAIT_S
) -> RunFolder:
    """Go on with a run after the death of anything, the server included: each site goes on from
    the last round that enough of them have kept."""
    check_kit(kit)
    folder = RunFolder.open(path)
    state = folder.state()
    if "jobs" not in state:
        raise RunFolderError(
            f"{path}: expected a run that was submitted, got another; go on with it by: fedshield "
            f"run --resume {path}"
        )
    if state["status"] == "finished":
        raise RunFolderError(f"{path}: this run is finished; there is nothing to go on with")
    plan, watch = folder.plan(), events or Quiet()
    return _run(folder, plan, kit, _ready(plan, kit, watch, wait_s), watch)


def _ready(plan: Plan, kit: Path, watch: Events, wait_s: float) -> list[str]:
    """The plan's sites that are there. Raises `UserError` for sites that the roster does not name,
    and `ProvisionError` if after `wait_s` seconds too few for a sum have come."""
    wanted = plan.data.site_names()
    _check_roster(wanted, kit.resolve().parent / "roster.json")
    needed = least_sites(plan.rules())
    until = time.monotonic() + wait_s
    with admin_session(kit) as session:
        missing = absent(wanted, present(session))
        if missing and wait_s > 0:
            watch.note(f"waiting up to {wait_s:.0f} s for {_named(missing)}")
        while missing and time.monotonic() < until:
            time.sleep(LOOK_S)
            missing = absent(wanted, present(session))
    there = [site for site in wanted if site not in missing]
    if len(there) < needed:
        raise ProvisionError(
            f"expected {needed} sites for a sum, got {len(there)}: {_named(missing)}; start them "
            "(fedshield site start) and submit again"
        )
    if missing:
        watch.note(
            f"starting without {_named(missing)} ({len(there)} sites are there, {needed} are "
            "needed)"
            + ("; the batch of each sits out" if plan.scheme.membership == "batches" else "")
            + "; a site that comes later takes part after --resume only"
        )
    return there


def _check_roster(sites: Sequence[str], path: Path) -> None:
    """Where the coordinator's roster is on this machine; elsewhere the parties check it."""
    if not path.is_file():
        return
    known = SignedRoster.read(path).names()
    unknown = [site for site in sites if site not in known]
    left_out = [site for site in known if site not in sites]
    if unknown or left_out:
        raise UserError(
            f"data.sites: expected the sites of the roster {path} ({', '.join(known)}), got "
            + (f"{', '.join(unknown)}, which it does not name" if unknown else "")
            + (" and " if unknown and left_out else "")
            + (f"no {' and no '.join(left_out)}" if left_out else "")
            + "; change the plan, or agree on another roster"
        )


def _named(missing: dict[str, str]) -> str:
    return ", ".join(f"{site} ({why})" for site, why in sorted(missing.items()))


def _run(
    folder: RunFolder, plan: Plan, kit: Path, sites: Sequence[str], watch: Events
) -> RunFolder:
    with folder.locked(), interrupt.held():
        state = folder.state()
        try:
            with interrupt.at_once():
                job_id = _submitted(folder, plan, kit, sites, state, watch)
                _follow(folder, kit, job_id, state["run"], watch, sites, plan)
            interrupt.check()
            state["status"] = "finished"
        except BaseException as error:
            state["status"], state["reason"] = ending(error)
            if state["status"] == "interrupted" and state["jobs"]:
                folder.write_state(state)  # first: the server may take its time, or be gone
                with interrupt.at_once():
                    _abort(kit, state["jobs"][-1], watch)
            raise
        finally:
            folder.write_state(state)
    return folder


def _submitted(
    folder: RunFolder,
    plan: Plan,
    kit: Path,
    sites: Sequence[str],
    state: dict[str, Any],
    watch: Events,
) -> str:
    """The new job's id, kept in the run's state as soon as there is such a job."""
    with admin_session(kit) as session, tempfile.TemporaryDirectory() as parts:
        _end_others(session, state["jobs"], watch)
        job = write_job(Path(parts), f"fedshield-{plan.name}", state["run"], plan, sites)
        with interrupt.held():
            job_id = str(session.submit_job(str(job)))
            state |= {"status": "running", "jobs": [*state["jobs"], job_id]}
            state.pop("reason", None)
            folder.write_state(state)
    watch.note(f"submitted as job {job_id}")
    return job_id


def _abort(kit: Path, job_id: str, watch: Events) -> None:
    """A stop at the one who submitted is a stop at all; where it cannot be, that is said."""
    try:
        with admin_session(kit) as session:
            session.abort_job(job_id)
    except Exception as error:
        watch.note(
            f"job {job_id} could not be ended ({type(error).__name__}: {str(error)[:200]}): the "
            "sites go on with it; submit --resume ends it"
        )


def _end_others(session: Any, jobs: list[str], watch: Events) -> None:
    """Jobs of this run that FLARE still takes for running, from before something died."""
    for job_id in jobs:
        try:
            if _is_over(session.get_job_meta(job_id).get("status", "")):
                continue
            watch.note(f"ending job {job_id}")
            session.abort_job(job_id)
        except Exception as error:
            watch.note(
                f"job {job_id} of this run could not be looked at or ended ({in_short(error)}): "
                "if it still runs somewhere, the parties there refuse the new one"
            )


def _is_over(status: str) -> bool:
    return status.startswith(("FINISHED", "ABANDONED", "FAILED"))


class _Roll:
    """Calls the roll of a run's sites now and then, and tells of those that come and go."""

    def __init__(self, sites: Sequence[str], needed: int, deadline_s: float) -> None:
        self._sites = sites
        self._needed = needed
        self._deadline_s = deadline_s
        self._missing: set[str] = set()
        self._due = 0.0

    def call(self, session: Any, watch: Events) -> None:
        if time.monotonic() < self._due:
            return
        missing = absent(self._sites, present(session))
        self._due = time.monotonic() + ROLL_S
        for site in sorted(self._missing - set(missing)):
            watch.note(f"{site} answers again; if the run went on without it, --resume takes it in")
        left = len(self._sites) - len(missing)
        after = (
            "goes on without it"
            if left >= self._needed
            else "stops before its next round; go on with --resume"
        )
        for site in sorted(set(missing) - self._missing):
            watch.note(
                f"{site} {missing[site]}; if it is not back within its deadline (at most "
                f"{self._deadline_s:.0f} s), the run {after} ({left} sites are left, "
                f"{self._needed} are needed)"
            )
        self._missing = set(missing)


def _follow(
    folder: RunFolder,
    kit: Path,
    job_id: str,
    run: str,
    watch: Events,
    sites: Sequence[str],
    plan: Plan,
) -> None:
    """Until the job is over, by itself or by us; tells of rounds where the coordinator's own
    folder is on this machine."""
    nearby = kit.parent / "runs" / run / COORDINATOR_FILE
    seen = len(read_log(nearby))
    ended: float | None = None
    said = ""
    roll = _Roll(sites, least_sites(plan.rules()), plan.speed.work_deadline_s)
    with _server_gone(folder), admin_session(kit) as session:
        while not _is_over(said):
            interrupt.check()
            time.sleep(LOOK_S)
            roll.call(session, watch)
            entries = read_log(nearby)
            for entry in entries[seen:]:
                _say(entry, watch)
                if entry.get("status") in ("finished", "failed"):
                    ended = time.monotonic()
            seen = len(entries)
            status = str(session.get_job_meta(job_id).get("status", ""))
            if status != said:
                watch.note(f"job: {JOBS.get(status.lower(), 'failed')}")
            said = status
            if not _is_over(said) and ended and time.monotonic() - ended > GRACE_S:
                # FLARE waits for sites that are gone.
                watch.note("the coordinator is done; ending FLARE's job")
                session.abort_job(job_id)
                ended = time.monotonic()
        before = len(read_log(folder.path / COORDINATOR_FILE))
        missing = fetch_log(session, job_id, folder)
    # Of a job that had to be ended FLARE may keep nothing.
    told = read_log(nearby) if ended else read_log(folder.path / COORDINATOR_FILE)[before:]
    last = told[-1] if told else {}
    if missing:
        watch.note(f"the coordinator's log could not be fetched from the server: {missing}")
    if last.get("status") != "finished":
        why = last.get("reason") or _without_reason(said, missing)
        more = "each site's error.log says more, or its console where no run began"
        raise RoundFailed(f"{why}; {more}")


def _without_reason(status: str, missing: str = "") -> str:
    """Why a job ended whose coordinator said nothing, or whose word is `missing`: why."""
    if status.lower() == "finished:aborted":
        return "the run was aborted by an operator of the server"
    if missing:
        return (
            f"how the run ended is not known here ({status.lower()}): the coordinator's log could "
            f"not be fetched ({missing}); it is in the coordinator's folder, under runs/"
        )
    return (
        f"the coordinator's process ended without a word ({status.lower()}): it was killed, or "
        "could not be started; the log in the coordinator's flare/ folder says more"
    )


@contextlib.contextmanager
def _server_gone(folder: RunFolder) -> Iterator[None]:
    """FLARE's many errors for a server that does not answer any more, as one of ours."""
    try:
        yield
    except (KeyboardInterrupt, RoundFailed):
        raise
    except Exception as error:
        raise RoundFailed(
            f"the server does not answer any more ({type(error).__name__}: {str(error)[:200]}); "
            f"start it again and go on with: fedshield submit --resume {folder.path}"
        ) from None


def _say(entry: dict[str, Any], watch: Events) -> None:
    if "lost_now" in entry:
        at = f"in round {entry['during']}, {entry['phase']}" if entry["during"] else entry["phase"]
        watch.note(f"{entry['lost_now']} is lost ({at}): {entry['why']}; {entry['then']}")
    if entry.get("status") == "running":
        for site, why in entry.get("lost", {}).items():
            watch.note(f"{site} does not take part: {CODES.get(why, why)}")
    if "aggregate_s" in entry:
        who = ", ".join(entry["contributors"])
        watch.note(f"round {entry['round']}: {who} in {entry['round_s']:.1f} s")
