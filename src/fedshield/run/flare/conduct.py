"""The coordinator's part of a run: from where the sites stand to the last round.

What it knows goes into `coordinator.jsonl`: sizes, digests, who was lost and why, how it ended. It
has no model and no key but the one that it signs with, so this file is all there is to resume.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedshield.errors import FedShieldError
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import least_sites
from fedshield.protocol.coordinator import Coordinator, RoundOutcome
from fedshield.protocol.roster import COORDINATOR
from fedshield.run import progress, prometheus
from fedshield.run.flare.follow import Follower
from fedshield.run.flare.kit import Kit
from fedshield.run.flare.lineup import line_up
from fedshield.run.flare.link import FlareSites
from fedshield.run.folder import append_rows
from fedshield.run.log_file import LogFile, coordinator_log, keep_roster
from fedshield.run.rounds import drive

COORDINATOR_FILE = "coordinator.jsonl"


def conduct(plan: Plan, kit: Kit, sites: FlareSites, *folders: Path) -> str:
    """Run the plan to its end, or to what stops it; either way the last line says how it ended.
    Why it stopped, or nothing. `folders`: where its log goes, the first of them to stay."""
    log = Log(folders)
    try:
        _conduct(plan, kit, sites, log, folders[0])
    except FedShieldError as error:
        reason = str(error)[:500]
        log.add({"status": "failed", "reason": reason})
        return reason
    except BaseException as error:
        # FLARE's own abort, a full disk: whoever waits must learn that it is over.
        log.add({"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]})
        raise
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        log.add({"status": "finished", "peak_memory_bytes": peak})
    return ""


def _conduct(plan: Plan, kit: Kit, sites: FlareSites, log: Log, folder: Path) -> None:
    party = kit.admit(plan, None)
    keep_roster(folder, party.roster)
    audit = LogFile.open(
        coordinator_log(folder),
        COORDINATOR,
        party.key.sign,
        party.key.public,
        plan.sha256(),
        party.roster,
    )
    coordinator = Coordinator(plan, party.roster, sites, party.key.sign, log=audit.append)
    names, needed = plan.data.site_names(), least_sites(plan.rules())
    follower = Follower(folder, names, plan.rounds, needed, log.add, party.roster.batches)
    sites.watcher = follower
    completed, lost = line_up(plan, party.roster, sites, party.key.sign)
    follower.leave_out(lost)
    log.add({"status": "running", "round": completed, "lost": lost, "pid": os.getpid()})
    drive(
        coordinator,
        completed,
        plan.rounds,
        lambda: _over_budget(plan, coordinator),
        _Watching(log, follower, completed),
    )


class _Watching:
    """Writes down what the coordinator knows of the rounds."""

    def __init__(self, log: Log, follower: Follower, completed: int) -> None:
        self._log, self._follower, self._completed = log, follower, completed

    def set_up(self, lost: Mapping[str, str]) -> None:
        self._log.add({"set_up": self._completed, "lost": lost})

    def begin(self, number: int) -> None:
        self._follower.begin_round(number)

    def end(self, outcome: RoundOutcome, round_s: float) -> None:
        self._follower.end_round(round_s)
        self._log.add(
            {
                "round": outcome.round_number,
                "aggregate_sha256": outcome.aggregate_sha256,
                "aggregate_s": round(outcome.aggregate_s, 6),
                "round_s": round(round_s, 6),
                "contributors": list(outcome.contributors),
                "lost": dict(outcome.lost),
            }
        )

    def end_early(self, why: str) -> None:
        self._log.add({"ended_early": why})


def _over_budget(plan: Plan, coordinator: Coordinator) -> str:
    """Which sites may not take part in another round; '' if all may."""
    sites = [] if plan.privacy.unit == "none" else coordinator.out_of_budget()
    return f"{', '.join(sites)} has spent the plan's epsilon" if sites else ""


class Log:
    """One JSON object a line, synced, in each of the folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._paths = [folder / COORDINATOR_FILE for folder in folders]

    def add(self, entry: Mapping[str, Any]) -> None:
        for path in self._paths:
            append_rows(path, [entry])
        first = self._paths[0]
        standing = progress.read(first.parent)
        samples = prometheus.of_coordinator(first.parent.name, read_log(first), standing)
        prometheus.write(first.parent, samples)


def read_log(path: Path) -> list[dict[str, Any]]:
    """A coordinator's log, up to the first line that is not whole."""
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break
        found.append(json.loads(line))
    return found
