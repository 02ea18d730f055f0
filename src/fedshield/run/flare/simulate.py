"""All parties on one machine, each site in a process of its own, under FLARE's simulator.

The same objects run as between organisations; only the transport is local and unencrypted, and
one operator holds every key. The run folder is the same as the in-process engine's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from fedshield import interrupt
from fedshield.data.sites import SiteData
from fedshield.enrolment import Allowed, Asked, KeyFile, SignedRoster
from fedshield.enrolment import demonstration as demonstration_roster
from fedshield.errors import RoundFailed, RunFolderError
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import COORDINATOR
from fedshield.run.events import Events, Quiet
from fedshield.run.finish import finish
from fedshield.run.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.run.flare.jobs import allow_classes, write_job
from fedshield.run.flare.kit import KEYS, KITS, SHARED_RUN
from fedshield.run.flare.paths import check_simulator_path
from fedshield.run.flare.provision import check_flare_installed
from fedshield.run.folder import RunFolder, chat_date, write_rows
from fedshield.run.ledgers import beside_keys, check_enrolled
from fedshield.run.metrics import whole_round
from fedshield.run.parties import Enrolment, check_roster, roster_of
from fedshield.run.prepare import cap_notes, prepare
from fedshield.run.site import site_rows
from fedshield.run.state import check_charter, first_state, session, unfinished

#: Seconds between looks at how far the run is, and to wait for processes that should be gone.
LOOK_S, GRACE_S = 0.5, 20.0
#: Seconds to wait for killed processes to be gone.
GONE_S = 5.0
LOG_FILE = "flare.log"


def run(
    plan: Plan, out: Path, events: Events | None = None, enrolment: Enrolment | None = None
) -> RunFolder:
    """As `local.run`, which see."""
    watch = events or Quiet()
    _check_installed()
    RunFolder.check_free(out)
    base, data, host = prepare(plan, watch)
    parties, cap = "demonstration", None
    if enrolment is not None:
        signed = SignedRoster.read(enrolment.roster)
        check_roster(plan, signed, base.sha256, enrolment.roster)
        check_enrolled(enrolment.keys, plan, roster_of(plan, signed), out)
        parties = "demonstration" if signed.demo else "enrolled"
        cap = signed.allowed.max_examples
    state = first_state(plan, base, data, host, _charter(enrolment), parties)
    state["engine"] = "flare"
    notes = cap_notes(plan, data, cap)
    for sentence in notes:
        watch.note(f"note: {sentence}")
    state["notes"] = [*state["notes"], *notes]
    folder = RunFolder.create(out, plan, state)
    with folder.locked():
        _session(folder, plan, (base, data, host), watch, enrolment)
    return folder


def resume(
    path: Path, events: Events | None = None, enrolment: Enrolment | None = None
) -> RunFolder:
    """As `local.resume`; each site checks that it goes on with what it began with."""
    watch = events or Quiet()
    _check_installed()
    folder = RunFolder.open(path)
    with folder.locked():
        state = unfinished(folder)
        if state.get("engine") != "flare":
            raise RunFolderError(
                f"{path}: expected a run of this engine, got one of the in-process engine; go on "
                "without --engine flare"
            )
        check_charter(folder, state, _charter(enrolment))
        plan = folder.plan()
        prepared = prepare(plan, watch, date=chat_date(state))
        _session(folder, plan, prepared, watch, enrolment)
    return folder


def _charter(enrolment: Enrolment | None) -> str:
    if enrolment is None:
        return ""
    return SignedRoster.read(enrolment.roster).content_sha256().hex()


def _check_installed() -> None:
    check_flare_installed()
    check_simulator_path(sys.executable, "make the virtual environment in another folder")
    check_simulator_path(tempfile.gettempdir(), "set TMPDIR to another folder")


def _session(
    folder: RunFolder,
    plan: Plan,
    prepared: tuple[BaseModel, dict[str, SiteData], AdapterHost],
    watch: Events,
    enrolment: Enrolment | None,
) -> None:
    with session(folder) as (state, elapsed):
        with _kits(plan, enrolment) as kits, _told_of_ledgers(plan, enrolment, watch):
            _run_job(folder, plan, kits, watch, enrolment)
        with interrupt.at_once():
            _gather(folder, plan, state)
            state["wall_s"] = elapsed()
            finish(folder, plan, *prepared, watch, state)


@contextmanager
def _told_of_ledgers(plan: Plan, enrolment: Enrolment | None, watch: Events) -> Iterator[None]:
    """Tell of ledgers that the sites made beside their keys."""
    places: dict[str, Path] = {}
    if enrolment is not None:
        places = {site: beside_keys(enrolment.keys, site) for site in plan.data.site_names()}
    new = [site for site, path in places.items() if not path.exists()]
    try:
        yield
    finally:
        for site in new:
            if places[site].exists():
                watch.note(f"{site}: made its ledger, {places[site]}; keep it with its records")


# -- parties -------------------------------------------------------------------------------


@contextmanager
def _kits(plan: Plan, enrolment: Enrolment | None) -> Iterator[Path]:
    """Each party's kit, outside the run folder, for one session: keys are gone with it."""
    names = plan.data.site_names()
    with tempfile.TemporaryDirectory(prefix="fedshield-kits-") as found:
        root = Path(found)
        if enrolment is None:
            scheme = plan.scheme
            asked = Asked()
            if scheme.traits.one_time_keys:
                rules = plan.rules()
                asked = Asked(
                    rules.max_colluding,
                    rules.threshold,
                    rules.votes,
                    rules.min_cohort,
                    rules.server,
                    rules.membership,
                )
            roster, keys = demonstration_roster(names, asked, Allowed((scheme.name,)))
        else:
            roster = SignedRoster.read(enrolment.roster)
            roster.check_ready()
            keys = {
                name: KeyFile.read(enrolment.keys / f"{name}.key") for name in (*names, COORDINATOR)
            }
        for name in (*names, COORDINATOR):
            kit = root / name
            kit.mkdir(mode=0o700)
            path = kit / f"{name}.key"
            path.touch(mode=0o600)
            path.write_text(keys[name].to_text())
            (kit / "roster.json").write_text(roster.to_text())
        yield root


# -- the job -------------------------------------------------------------------------------


def _run_job(
    folder: RunFolder, plan: Plan, kits: Path, watch: Events, enrolment: Enrolment | None
) -> None:
    names = plan.data.site_names()
    log = folder.path / COORDINATOR_FILE
    seen = len(read_log(log))
    environment = dict(os.environ) | {KITS: str(kits), SHARED_RUN: str(folder.path)}
    environment.pop(KEYS, None)
    if enrolment is not None:
        environment[KEYS] = str(enrolment.keys.resolve())
    if plan.speed.threads is None:
        threads = max(1, (os.cpu_count() or 1) // len(names))
        environment["OMP_NUM_THREADS"] = str(threads)
        watch.note(f"{threads} thread(s) a site; set speed.threads to choose")
    with tempfile.TemporaryDirectory(prefix="fedshield-flare-") as found:
        workspace = Path(found) / "workspace"
        job = write_job(Path(found), f"fedshield-{plan.name}", folder.path.name, plan)
        allow_classes(workspace / "local" / "resources.json", only=True)
        command = [
            *(sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job)),
            *("-w", str(workspace), "-c", ",".join(names)),
            *("-n", str(len(names)), "-t", str(len(names))),
        ]
        # Whatever comes, the processes that are started here end before this one goes on.
        with interrupt.held(), (folder.path / LOG_FILE).open("ab") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=found,
                start_new_session=True,
            )
            try:
                with interrupt.at_once():
                    _follow(process, folder, seen, watch)
            finally:
                _end(process, kits)


def _follow(process: subprocess.Popen[bytes], folder: RunFolder, seen: int, watch: Events) -> None:
    """Tell of rounds as they end, until the coordinator says that it is over."""
    ended: float | None = None
    while True:
        interrupt.check()
        gone = process.poll() is not None
        entries = read_log(folder.path / COORDINATOR_FILE)
        for entry in entries[seen:]:
            for site, why in entry.get("lost", {}).items():
                watch.note(f"{site} was lost: {why}")
            if entry.get("round") and "aggregate_s" in entry:
                rows = _rows_of_round(folder, entry)
                watch.round_done(entry["round"], rows)
            if entry.get("status") == "failed":
                raise RoundFailed(entry["reason"])
            if entry.get("status") == "finished":
                ended = time.monotonic()
        seen = len(entries)
        if gone or (ended is not None and time.monotonic() - ended > GRACE_S):
            break
        time.sleep(LOOK_S)
    if ended is None:
        raise RoundFailed(
            "FLARE's simulator ended before the coordinator did; the model of the last round is "
            f"kept ({folder.path / LOG_FILE} says why)"
        )


def _end(process: subprocess.Popen[bytes], kits: Path) -> None:
    """End the simulator and every process that it started. Until they are gone, a site still holds
    its ledger, and the next run by its key would be refused."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    until = time.monotonic() + GONE_S
    while (left := _started(kits)) and time.monotonic() < until:
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=GONE_S)


def _started(kits: Path) -> list[psutil.Process]:
    """Processes of this session that still run. FLARE starts each site in a process group of its
    own, so the simulator's does not have them; what all have is this session's folder of kits in
    their environment."""
    started = []
    for process in psutil.process_iter():
        # Of another user's process, or one that only waits to be reaped, there is nothing to read.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(KITS) == str(kits):
                started.append(process)
    return started


# -- what it left --------------------------------------------------------------------------


def _rows_of_round(folder: RunFolder, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    number = entry["round"]
    rows = [
        row
        for path in sorted((folder.path / "sites").iterdir())
        for row in site_rows(folder, path.name)
        if row["round"] == number
    ]
    for row in rows:
        row["round_s"] = entry["round_s"]
    return whole_round(rows, entry["aggregate_s"]) if rows else rows


def _gather(folder: RunFolder, plan: Plan, state: dict[str, Any]) -> None:
    """metrics.jsonl from what each site and the coordinator wrote."""
    entries = read_log(folder.path / COORDINATOR_FILE)
    last = {entry["round"]: entry for entry in entries if "aggregate_s" in entry}
    rows = [row for number in sorted(last) for row in _rows_of_round(folder, last[number])]
    write_rows(folder.path / "metrics.jsonl", rows)
    outside = [
        row
        for site in plan.data.site_names()
        for row in site_rows(folder, site)
        if not row["round"]
    ]
    state["setup_upload_bytes"] = sum(row["upload_bytes"] for row in outside)
    state["setup_download_bytes"] = sum(row["download_bytes"] for row in outside)
    spent = [row["privacy"] for row in outside if row.get("privacy")]
    if spent:
        # Of the site that has spent most, and each site's own (as `privacy.guarantee.summarised`).
        last_of = {site: one for found in spent for site, one in found["sites"].items()}
        state["privacy"] = max(spent, key=lambda one: one["epsilon"]) | {"sites": last_of}
    lost: dict[str, str] = {}
    for entry in entries:
        if entry.get("status") == "running":  # a session that goes on, so nothing ended
            state.pop("ended_early", None)
        if "ended_early" in entry:
            state["ended_early"] = entry["ended_early"]
        where = f"round {entry['round']}" if entry.get("round") else "set-up"
        lost |= {site: f"{where}, {why}" for site, why in entry.get("lost", {}).items()}
    if lost:
        state["lost_sites"] = lost
