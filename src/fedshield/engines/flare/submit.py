"""Submitting a run to a provisioned consortium and following it to its end.

Whoever submits sees what the coordinator knows: sizes, digests, who was lost, how it ended. The
adapter stays with the sites, in their kits.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import secrets
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedshield import interrupt
from fedshield.engines.events import Events, Quiet
from fedshield.engines.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.engines.flare.jobs import write_job
from fedshield.engines.flare.provision import ProvisionError
from fedshield.engines.runstate import ending
from fedshield.errors import RoundFailed, RunFolderError
from fedshield.plan import Plan
from fedshield.runfolder import RunFolder, now, write_atomic

#: Seconds between looks; to reach the server; after the coordinator ended, until the job is ended.
LOOK_S, CONNECT_S, GRACE_S = 1.0, 20.0, 30.0


def submit(plan: Plan, kit: Path, out: Path, events: Events | None = None) -> RunFolder:
    """Start a run and follow it. `kit`: the folder that submits (the consortium's `admin`).
    Raises `ProvisionError` for a kit or server that cannot be used, `RoundFailed` for a run that
    stopped; `resume` goes on with it."""
    _check_kit(kit)
    RunFolder.check_free(out)
    with _session(kit):
        pass  # nothing is made for a server that does not answer
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
    return _run(folder, plan, kit, events or Quiet())


def resume(path: Path, kit: Path, events: Events | None = None) -> RunFolder:
    """Go on with a run after the death of anything, the server included: each site goes on from
    the last round that enough of them have kept."""
    _check_kit(kit)
    folder = RunFolder.open(path)
    state = folder.state()
    if "jobs" not in state:
        raise RunFolderError(
            f"{path}: expected a run that was submitted, got another; go on with it by: fedshield "
            f"run --resume {path}"
        )
    if state["status"] == "finished":
        raise RunFolderError(f"{path}: this run is finished; there is nothing to go on with")
    return _run(folder, folder.plan(), kit, events or Quiet())


def status(kit: Path) -> dict[str, Any]:
    """Who is connected and what runs, as FLARE's server says."""
    _check_kit(kit)
    with _session(kit) as session:
        system = session.get_system_info()
        jobs = session.list_jobs()
    return {
        "server": str(system.server_info.status),
        "sites": sorted(client.name for client in system.client_info),
        "jobs": [
            {"id": job["job_id"], "name": job["job_name"], "status": job["status"].lower()}
            for job in jobs
        ],
    }


def _run(folder: RunFolder, plan: Plan, kit: Path, watch: Events) -> RunFolder:
    with folder.locked(), interrupt.held():
        state = folder.state()
        try:
            with interrupt.at_once():
                job_id = _submitted(folder, plan, kit, state, watch)
                _follow(folder, kit, job_id, state["run"], watch)
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
    folder: RunFolder, plan: Plan, kit: Path, state: dict[str, Any], watch: Events
) -> str:
    """The new job's id, kept in the run's state as soon as there is such a job."""
    with _session(kit) as session, tempfile.TemporaryDirectory() as parts:
        _end_others(session, state["jobs"], watch)
        job = write_job(Path(parts), f"fedshield-{plan.name}", state["run"], plan)
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
        with _session(kit) as session:
            session.abort_job(job_id)
    except Exception as error:
        watch.note(
            f"job {job_id} could not be ended ({type(error).__name__}: {str(error)[:200]}): the "
            "sites go on with it; submit --resume ends it"
        )


def _check_kit(kit: Path) -> None:
    path = kit / "startup" / "fed_admin.json"
    if not path.is_file():
        raise ProvisionError(
            f"{kit}: expected the kit that submits runs, found no {path.name} in it; give the "
            "consortium's admin folder"
        )


@contextlib.contextmanager
def _session(kit: Path) -> Iterator[Any]:
    """FLARE's admin session. Raises `ProvisionError` if the server does not answer."""
    try:
        from nvflare.fuel.flare_api.flare_api import new_secure_session
    except ImportError:
        raise ProvisionError(
            "expected NVIDIA FLARE 2.9.0, found none; run: pip install 'fedshield[flare]'"
        ) from None
    logging.getLogger("nvflare").setLevel(logging.ERROR)
    admin = json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # FLARE prints as it connects
            session = new_secure_session(
                admin["username"], str(kit.resolve()), timeout=CONNECT_S, auto_login_max_tries=3
            )
    except Exception as error:
        raise ProvisionError(
            f"expected the server at {admin['host']}:{admin['port']} to answer, but "
            f"{type(error).__name__}: {error}; start it with: fedshield server start"
        ) from None
    try:
        yield session
    finally:
        session.close()


def _end_others(session: Any, jobs: list[str], watch: Events) -> None:
    """Jobs of this run that FLARE still takes for running, from before something died."""
    for job_id in jobs:
        with contextlib.suppress(Exception):
            if _is_over(session.get_job_meta(job_id).get("status", "")):
                continue
            watch.note(f"ending job {job_id}")
            session.abort_job(job_id)


def _is_over(status: str) -> bool:
    return status.startswith(("FINISHED", "ABANDONED", "FAILED"))


def _follow(folder: RunFolder, kit: Path, job_id: str, run: str, watch: Events) -> None:
    """Until the job is over, by itself or by us; tells of rounds where the coordinator's own
    folder is on this machine."""
    nearby = kit.parent / "runs" / run / COORDINATOR_FILE
    seen = len(read_log(nearby))
    ended: float | None = None
    said = ""
    with _server_gone(folder), _session(kit) as session:
        while not _is_over(said):
            interrupt.check()
            time.sleep(LOOK_S)
            entries = read_log(nearby)
            for entry in entries[seen:]:
                _say(entry, watch)
                if entry.get("status") in ("finished", "failed"):
                    ended = time.monotonic()
            seen = len(entries)
            status = str(session.get_job_meta(job_id).get("status", ""))
            if status != said:
                watch.note(f"job: {status.lower()}")
            said = status
            if not _is_over(said) and ended and time.monotonic() - ended > GRACE_S:
                # FLARE waits for sites that are gone.
                watch.note("the coordinator is done; ending FLARE's job")
                session.abort_job(job_id)
                ended = time.monotonic()
        _fetch(session, job_id, folder)
    last = (read_log(folder.path / COORDINATOR_FILE) or [{}])[-1]
    if last.get("status") != "finished":
        why = last.get("reason") or f"FLARE's job ended as {said.lower()}"
        raise RoundFailed(f"{why}; each site's error.log says more")


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
    for site, why in entry.get("lost", {}).items():
        watch.note(f"{site} was lost: {why}")
    if "aggregate_s" in entry:
        who = ", ".join(entry["contributors"])
        watch.note(f"round {entry['round']}: {who} in {entry['round_s']:.1f} s")


def _fetch(session: Any, job_id: str, folder: RunFolder) -> None:
    """The coordinator's file, out of what FLARE keeps of the job."""
    with tempfile.TemporaryDirectory() as found:
        with contextlib.suppress(Exception):
            session.download_job_result(job_id, found)
        for path in sorted(Path(found).rglob("*")):
            if path.name == COORDINATOR_FILE:
                _append(folder, path.read_bytes())
                return
            if path.suffix == ".zip" or path.name == "workspace":
                data = _from_zip(path)
                if data:
                    _append(folder, data)
                    return


def _from_zip(path: Path) -> bytes:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return b""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if Path(name).name == COORDINATOR_FILE:
                return archive.read(name)
    return b""


def _append(folder: RunFolder, data: bytes) -> None:
    path = folder.path / COORDINATOR_FILE
    write_atomic(path, (path.read_bytes() if path.exists() else b"") + data)
