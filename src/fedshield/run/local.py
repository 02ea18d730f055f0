"""All sites in this process, on one frozen base model whose adapter is swapped as they take turns.

Every message still crosses as signed bytes through the same envelope as between machines, so
the byte counts are true. Keys live in memory, for one session; a resumed run is a new session
with new keys that goes on from the last round that every site has kept.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedshield import interrupt
from fedshield.causes import cause_of
from fedshield.crypto.keys import SiteKey
from fedshield.data.sites import SiteData
from fedshield.disk import write_atomic
from fedshield.errors import (
    FedShieldError,
    ProtocolError,
    ResourceError,
    RoundFailed,
    RunFolderError,
)
from fedshield.ledger.file import Ledger
from fedshield.model.adapter import AdapterHost, initial_state
from fedshield.model.base import BaseModel
from fedshield.plan.effect import without_effect_in_process
from fedshield.plan.quorum import Rules
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import summarised
from fedshield.protocol.contexts import least_sites
from fedshield.protocol.coordinator import Coordinator, RoundOutcome
from fedshield.protocol.journal import Journal
from fedshield.protocol.log.entries import Log
from fedshield.protocol.participant import Participant
from fedshield.protocol.roster import COORDINATOR
from fedshield.run.events import Events, Quiet
from fedshield.run.finish import finish
from fedshield.run.folder import ANEW, RunFolder, chat_date
from fedshield.run.ledgers import (
    approval_of,
    beside_keys,
    check_enrolled,
    line_of,
    of_demonstration,
    of_keys,
    told_apart,
)
from fedshield.run.local_sites import InProcessSites, Traffic
from fedshield.run.log_file import LogFile, coordinator_log, keep_roster, site_log
from fedshield.run.metrics import round_rows
from fedshield.run.parties import Enrolment, Members, demonstration, enrolled, randomness_of
from fedshield.run.prepare import cap_notes, prepare, standing_of
from fedshield.run.rounds import drive
from fedshield.run.state import check_charter, first_state, session, unfinished
from fedshield.seeds import derive
from fedshield.site.interfaces import SiteRound
from fedshield.site.round import first_memory, standing_digest

# -- running -------------------------------------------------------------------------------


def run(
    plan: Plan, out: Path, events: Events | None = None, enrolment: Enrolment | None = None
) -> RunFolder:
    """Run a plan from its beginning into the new folder `out`; without an enrolled roster, under
    a demonstration roster with fresh keys.

    Everything that can be wrong with plan, model and data is found before `out` is made.
    Raises `UserError`s for those, `RoundFailed` if a round cannot be completed.
    """
    watch = events or Quiet()
    RunFolder.check_free(out)
    started = time.perf_counter()
    base, data, host = prepare(plan, watch)
    members = _members(plan, enrolment, base)
    if members.keys is not None:
        check_enrolled(members.keys, plan, members.roster, out)
    parties = "demonstration" if members.roster.demo else "enrolled"
    state = first_state(plan, base, data, host, members.roster.charter.hex(), parties)
    state["engine"] = "inprocess"
    more = [*without_effect_in_process(plan), *cap_notes(plan, data, members.example_cap)]
    for sentence in more:
        watch.note(f"note: {sentence}")
    state["notes"] = [*state["notes"], *more]
    state["prepare_s"] = time.perf_counter() - started
    folder = RunFolder.create(out, plan, state)
    with folder.locked():
        _session(folder, plan, base, data, host, watch, members)
    return folder


def _members(plan: Plan, enrolment: Enrolment | None, base: BaseModel) -> Members:
    return demonstration(plan) if enrolment is None else enrolled(plan, enrolment, base.sha256)


def resume(
    path: Path, events: Events | None = None, enrolment: Enrolment | None = None
) -> RunFolder:
    """Go on with a run that was killed, interrupted or failed. Ends with the same adapter as
    an uninterrupted run on the same machine."""
    watch = events or Quiet()
    folder = RunFolder.open(path)
    with folder.locked():
        state = unfinished(folder)
        if state.get("engine") == "flare":
            raise RunFolderError(
                f"{path}: expected a run of the in-process engine, got one of flare; go on with "
                "--engine flare, or submit --resume where it was submitted"
            )
        plan = folder.plan()
        base, data, host = prepare(plan, watch, date=chat_date(state))
        for key, now in (("base_model_sha256", base.sha256), ("precision", base.precision)):
            if state[key] != now:
                raise RunFolderError(
                    f"{path}: expected the run's {key} {state[key][:16]}, got {now[:16]}; "
                    "resume where the same base model and precision are"
                )
        if state["factors_sha256"] != host.factors_sha256:
            raise RunFolderError(
                f"{path}: expected the run's factors {state['factors_sha256'][:16]}, got "
                f"{host.factors_sha256[:16]}; resume on the same kind of machine, with the same "
                "speed.device and speed.threads"
            )
        for site, found in data.items():
            if state["data_sha256"][site] != found.sha256():
                raise RunFolderError(
                    f"{path}: expected {site}'s data as the run began with, got other rows; "
                    f"restore them or {ANEW}"
                )
        members = _members(plan, enrolment, base)
        check_charter(folder, state, members.roster.charter.hex())
        _session(folder, plan, base, data, host, watch, members)
    return folder


def _common_round(folder: RunFolder, plan: Plan) -> int:
    """The last round that enough sites have kept to go on from, and whose metrics are whole."""
    rows = folder.metrics()
    found_rows = Counter(row["round"] for row in rows)
    complete = {row["round"] for row in rows if found_rows[row["round"]] == row["sites_in_round"]}
    least = least_sites(plan.rules())
    kept = [set(folder.site_store(site).rounds()) for site in plan.data.site_names()]
    found = [r for r in complete if sum(r in rounds for rounds in kept) >= least]
    return max(found, default=0)


def _session(
    folder: RunFolder,
    plan: Plan,
    base: BaseModel,
    data: dict[str, SiteData],
    host: AdapterHost,
    watch: Events,
    members: Members,
) -> None:
    """From the last common round to the end of the run, or to what stops it."""
    with session(folder) as (state, elapsed), interrupt.at_once(), ExitStack() as open_ledgers:
        ledgers = {
            name: open_ledgers.enter_context(_ledger(folder, name, members, watch))
            for name in plan.data.site_names()
        }
        for ledger in ledgers.values():
            # Whoever starts the run plays every site, and approves for each by starting it.
            ledger.approve(approval_of(plan, members.roster, base.sha256))
        _rounds(folder, plan, base, data, host, watch, members, state, elapsed, ledgers)
        state["wall_s"] = elapsed()
        finish(folder, plan, base, data, host, watch, state)


def _ledger(folder: RunFolder, site: str, members: Members, watch: Events) -> Ledger:
    """A demonstration's lies in its run folder; an enrolled site's beside its key file, so that
    all its runs share it."""
    if members.keys is None:
        return of_demonstration(folder, site)
    path = beside_keys(members.keys, site)
    new = not path.exists()
    ledger = of_keys(members.keys, site, members.roster, folder.path)
    if new:
        watch.note(f"{site}: made its ledger, {path}; keep it with its records")
    return ledger


def _rounds(
    folder: RunFolder,
    plan: Plan,
    base: BaseModel,
    data: dict[str, SiteData],
    host: AdapterHost,
    watch: Events,
    members: Members,
    state: dict[str, Any],
    elapsed: Callable[[], float],
    ledgers: Mapping[str, Ledger],
) -> None:
    from fedshield.site.train import LocalTrainer

    names = plan.data.site_names()
    completed = _common_round(folder, plan)
    folder.rewind_metrics(completed)
    over = completed >= plan.rounds

    def log(path: Path, party: str, key: SiteKey) -> Log:
        roster, plan_sha256 = members.roster, plan.sha256()
        return LogFile.open(path, party, key.sign, key.public, plan_sha256, roster).append

    keep_roster(folder.path, members.roster)
    if over:
        # What was killed after the last round has not closed this log; the entry says so.
        log(coordinator_log(folder.path), COORDINATOR, members.coordinator)
        if plan.privacy.unit == "none":
            return
    if completed and not over:
        watch.note(f"going on after round {completed} of {plan.rounds}")
    randomness = {
        name: randomness_of(plan, members.roster, name, members.sites[name]) for name in names
    }
    watching = _Watching(folder, watch, state, elapsed, members.roster.rules, completed)

    def trainer(name: str) -> LocalTrainer:
        return LocalTrainer(
            name,
            plan,
            data[name],
            host,
            base.pad_token_id,
            base.device,
            randomness[name],
            on_step=lambda step, steps, loss: watching.step(name, step, steps, loss),
        )

    first = initial_state(host.spec, derive(plan.seed, "adapter"))
    start = standing_digest(first, first_memory(plan, first))

    def participant(name: str) -> Participant:
        stands, state, memory = standing_of(folder.site_store(name), plan, host, completed)
        return Participant(
            name=name,
            plan=plan,
            roster=members.roster,
            key=members.sites[name],
            secret=members.sites[name].secret,
            example_cap=members.example_cap,
            work=trainer(name),
            store=folder.site_store(name),
            journal=Journal(folder.journal_path(name)),
            line=lines[name],
            start=start,
            state=state,
            completed_rounds=stands,
            randomness=randomness[name],
            memory=memory,
            observe=watching.observe,
            log=log(site_log(folder.path, name), name, members.sites[name]),
        )

    lines = {
        name: line_of(ledgers[name], name, plan, members.roster, folder.path.name, data[name])
        for name in names
    }
    state |= told_apart(lines.values())
    participants = {name: participant(name) for name in names}
    # What a run has spent is the journals' to say, also where it only has to be finished.
    state["privacy"] = _privacy(participants)
    if over:
        return
    sites = InProcessSites(participants, before_call=watching.call)
    watching.attach(participants, sites)
    coordinator = Coordinator(
        plan,
        members.roster,
        sites,
        members.coordinator.sign,
        log=log(coordinator_log(folder.path), COORDINATOR, members.coordinator),
    )

    try:
        drive(coordinator, completed, plan.rounds, lambda: _over_budget(participants), watching)
    except RoundFailed as failure:
        raise _with_site_errors(folder, failure, sites.errors) from None
    _add_setup_traffic(state, sites.traffic)


#: Membership -> what becomes of the run where a site is lost.
_WITHOUT = {
    "fixed": "no further round without it",
    "batches": "no further round with a part of its batch",
    "open": "going on without it",
}


class _Watching:
    """Takes down what a run in this process shows: metrics, run.json, who was lost."""

    def __init__(
        self,
        folder: RunFolder,
        watch: Events,
        state: dict[str, Any],
        elapsed: Callable[[], float],
        rules: Rules,
        completed: int,
    ) -> None:
        self._folder, self._watch, self._state, self._elapsed = folder, watch, state, elapsed
        self._without = _WITHOUT[rules.membership]
        self._participants: Mapping[str, Participant] = {}
        self._sites = InProcessSites({})
        self._round = completed
        self._seen: dict[str, SiteRound] = {}

    def attach(self, participants: Mapping[str, Participant], sites: InProcessSites) -> None:
        """Whose rounds are watched. They are made with this one's callbacks, so after it."""
        self._participants, self._sites = participants, sites

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        self._watch.step(self._round, site, step, steps, loss)

    def call(self, site: str, method: str) -> None:
        self._watch.phase(self._round, method, site)

    def observe(self, record: SiteRound) -> None:
        """A site's own record of a round."""
        if record.contributors:  # else of where a session begins
            self._seen[record.site] = record

    def set_up(self, lost: Mapping[str, str]) -> None:
        self._lose("set-up", lost)
        _add_setup_traffic(self._state, self._sites.traffic)

    def begin(self, number: int) -> None:
        self._round = number
        self._seen.clear()

    def end(self, outcome: RoundOutcome, round_s: float) -> None:
        number = outcome.round_number
        self._lose(f"round {number}", outcome.lost)
        traffic, seen = self._sites.traffic, self._seen
        rows = round_rows(outcome, seen, traffic, self._participants, round_s)
        self._folder.append_metrics(rows)
        self._state["wall_s"] = self._elapsed()
        self._state["privacy"] = _privacy(self._participants)
        self._folder.write_state(self._state)
        self._watch.round_done(number, rows)

    def end_early(self, why: str) -> None:
        self._watch.note(f"{why}; the run ends here")
        self._state["ended_early"] = why
        self._folder.write_state(self._state)

    def _lose(self, when: str, lost: Mapping[str, str]) -> None:
        for site, why in lost.items():
            error = self._sites.errors.get(site)
            known = "" if error is None else f" ({_told(self._folder, site, error)})"
            self._watch.note(f"{when}: {site} was lost at {why}{known}; {self._without}")
            self._state.setdefault("lost_sites", {})[site] = f"{when}, {why}{known}"


def _over_budget(participants: Mapping[str, Participant]) -> str:
    """Which site may not take part in another round, and why; '' if all may."""
    for name, participant in participants.items():
        spent = participant.spent
        if spent is not None and participant.exhausted:
            after = spent.epsilon_after(1)
            return (
                f"{name} has spent epsilon {spent.epsilon:.4g} in {spent.uploads} uploads, and the "
                f"next would make it {'infinite' if after is None else f'{after:.4g}'} over all "
                f"plans on its records, over the plan's {spent.terms.limit:g}"
            )
    return ""


def _privacy(participants: Mapping[str, Participant]) -> dict[str, Any] | None:
    spent = {name: one.spent for name, one in participants.items()}
    return summarised({name: one for name, one in spent.items() if one is not None})


def _with_site_errors(
    folder: RunFolder, failure: RoundFailed, errors: Mapping[str, Exception]
) -> FedShieldError:
    """The failure with what the sites know of it: here, operator and sites are one."""
    told = [
        f"{site}: {_told(folder, site, error).removeprefix(f'{site}: ')}"
        for site, error in sorted(errors.items())
    ]
    line = "; ".join([str(failure), *told])
    causes = [cause for error in errors.values() if (cause := cause_of(error)) is not None]
    if causes:
        return ResourceError(line, resumable=all(cause.resumable for cause in causes))
    # The same rows in the same order: training that failed would fail again. So would a sum that a
    # rule of a ledger forbids.
    in_vain = any(
        isinstance(error, RoundFailed)
        or (isinstance(error, ProtocolError) and error.code in ("rule", "budget"))
        for error in errors.values()
    )
    return RoundFailed(line, resumable=failure.resumable and not in_vain)


def _told(folder: RunFolder, site: str, error: Exception) -> str:
    """A site's error in one line; one that we did not foresee is kept whole in its error.log."""
    if isinstance(error, FedShieldError):
        return str(error)
    if (cause := cause_of(error)) is not None:
        return cause.sentence
    log = folder.path / "sites" / site / "error.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(log, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error} (see sites/{site}/error.log)"


def _add_setup_traffic(state: dict[str, Any], traffic: Traffic) -> None:
    up, down = traffic.take()
    state["setup_upload_bytes"] += sum(up.values())
    state["setup_download_bytes"] += sum(down.values())
