"""Who is there and what runs: as the coordinator sees it, and as one site does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedshield.certificates import certificates_ending, certificates_unread
from fedshield.enrolment import SignedRoster
from fedshield.errors import RunFolderError, UserError
from fedshield.run import presence, progress
from fedshield.run.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.run.flare.jobs import JOBS
from fedshield.run.flare.sentences import CONNECTION_FILE
from fedshield.run.flare.session import admin_session, check_kit, present
from fedshield.run.folder import RunFolder

#: Runs that are listed of those that are over.
OVER_LISTED = 5


def of_consortium(kit: Path) -> dict[str, Any]:
    """What the server says, and what the coordinator's folder says if it is on this machine.
    `kit`: the consortium's admin folder. Raises `ProvisionError` if the server does not answer."""
    check_kit(kit)
    with admin_session(kit) as session:
        presences = present(session)
        jobs = session.list_jobs()
    runs = _runs(kit.resolve().parent / "runs")
    problems: list[str] = []
    ended = {run["job"]: run["status"] for run in runs if "job" in run}
    listed = []
    for job in jobs:
        said = job["status"].lower()
        status = ended.get(job["job_id"], JOBS.get(said, "failed"))
        listed.append({"id": job["job_id"], "name": job["job_name"], "status": status})
    expected = _roster_sites(kit.resolve().parent / "roster.json", problems)
    states: dict[str, dict[str, Any]] = {
        site: {
            "state": "connected" if found.answers else "does not answer",
            "heard": found.heard,
            "words": found.in_words(),
        }
        for site, found in presences.items()
    }
    for site in expected:
        states.setdefault(site, {"state": "not connected", "heard": None, "words": "not connected"})
    running = any(job["status"] in ("running", "starting") for job in listed)
    return {
        "server": "running a job" if running else "up, no job runs",
        "sites": sorted(site for site, found in presences.items() if found.answers),
        "parties": dict(sorted(states.items())),
        "jobs": listed,
        **_listed(runs),
        "problems": problems,
        "certificates": _ending(kit / "startup", kit.resolve().parent / "flare" / "startup"),
    }


def of_site(kit: Path) -> dict[str, Any]:
    """What a site's own kit says: whether its process runs and is connected, and its runs. Raises
    `UserError` for a folder that is no kit."""
    from fedshield.run.flare.provision import site_name

    site = site_name(kit)
    runs = _runs(kit / "runs")
    running = presence.is_held(kit)
    connection: dict[str, Any] = {}
    if running:
        try:
            connection = json.loads((kit / CONNECTION_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            connection = {}
    return {
        "site": site,
        "process": "running" if running else "not running",
        "connected": bool(connection.get("connected")),
        "since": connection.get("since"),
        **_listed(runs),
        "problems": [],
        "certificates": _ending(kit / "flare" / "startup"),
    }


def _ending(*folders: Path) -> list[str]:
    """A sentence on each certificate that ends soon, or whose end nobody can tell."""
    today = datetime.datetime.now(datetime.UTC)
    sentences: list[str] = []
    for folder in folders:
        sentences += certificates_unread(folder)
        sentences += (ending.in_words() for ending in certificates_ending(folder, today))
    return sentences


def is_site_kit(kit: Path) -> bool:
    """Whether `kit` is a site's, and not the one that submits."""
    return (kit / "flare" / "startup" / "fed_client.json").is_file()


def _runs(folder: Path) -> list[dict[str, Any]]:
    """The runs of a kit, the latest last; those that were cut off are marked first."""
    presence.settle(folder)
    runs: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/run.json")):
        try:
            state = RunFolder(path.parent).state()
        except RunFolderError as error:
            runs.append({"run": path.parent.name, "status": "damaged", "reason": str(error)})
            continue
        run = {"run": path.parent.name, "started": state.get("started", "")}
        run |= {key: state[key] for key in ("status", "reason", "job") if key in state}
        standing = progress.read(path.parent)
        if standing is not None:
            run |= {"round": standing.round_number, "rounds": standing.rounds}
            if state["status"] == "running":
                run |= {
                    "phase": standing.phase,
                    "since": standing.since,
                    "heard": standing.heard,
                    "waiting": list(standing.waiting),
                    "left_s": standing.left_s,
                    "lost": _lost(path.parent),
                }
        runs.append(run)
    runs.sort(key=lambda run: str(run.get("started", "")))
    return runs


def _listed(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Those that run and the last few that are over, and how many more there are."""
    over = [run for run in runs if run["status"] != "running"]
    running = [run for run in runs if run["status"] == "running"]
    return {
        "runs": over[-OVER_LISTED:] + running,
        "runs_not_listed": max(0, len(over) - OVER_LISTED),
    }


def _lost(folder: Path) -> dict[str, str]:
    """The sites that this session lost, at the coordinator: site -> why."""
    lost: dict[str, str] = {}
    for entry in read_log(folder / COORDINATOR_FILE):
        if entry.get("status") == "running":
            lost = dict(entry.get("lost", {}))
        elif "lost_now" in entry:
            lost[entry["lost_now"]] = entry["why"]
    return lost


def _roster_sites(path: Path, problems: list[str]) -> tuple[str, ...]:
    """Whom the roster names; nobody where it is not on this machine. One that cannot be read is
    told of in `problems`."""
    if not path.is_file():
        return ()
    try:
        return SignedRoster.read(path).names()
    except UserError as error:
        problems.append(str(error))
        return ()
