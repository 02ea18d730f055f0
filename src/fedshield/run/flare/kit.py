"""A party's own folder: its key, the roster, its policy, and the runs that it keeps.

    NAME.key           its FedShield key, mode 0600
    roster.json        the countersigned roster
    keys.seen.json     rosters that were in force here, and their keys (enrolment/seen.py)
    NAME.policy.yaml   a site's: what it allows, and where its data and model are
    runs/              one run folder for each run that it takes part in

Where it is comes from the environment of the process that FLARE starts, which no job can set.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.policy import POLICY_FILE, Policy
from fedshield.enrolment.seen import put_in_force
from fedshield.errors import FedShieldError, UserError
from fedshield.ledger.inspection import runs_kept
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import COORDINATOR
from fedshield.run import presence
from fedshield.run.admission import Party, refusal_code
from fedshield.run.events import Quiet
from fedshield.run.folder import RunFolder, now
from fedshield.run.parties import check_roster, roster_of

_LOG = logging.getLogger("fedshield")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}")

#: The party's kit.
KIT = "FEDSHIELD_KIT"
#: In a simulation: the folder that holds each party's kit, by name.
KITS = "FEDSHIELD_KITS"
#: In a simulation: the one run folder of all parties.
SHARED_RUN = "FEDSHIELD_SHARED_RUN"
#: In a simulation of an enrolled roster: the folder of the key files, beside which ledgers lie.
KEYS = "FEDSHIELD_KEYS"


class Kit(Quiet):
    """`name`: the party's. Raises `UserError`s for what is missing or not this party's."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @classmethod
    def here(cls, name: str) -> Kit:
        own, root = os.environ.get(KIT), os.environ.get(KITS)
        if own:
            return cls(Path(own), name)
        if root:
            return cls(Path(root) / name, name)
        raise UserError(
            f"expected {KIT} in the environment, got none; start the party with fedshield"
        )

    @property
    def simulated(self) -> bool:
        """Whether all parties are on one machine and share a run folder."""
        return SHARED_RUN in os.environ

    @property
    def keys(self) -> Path | None:
        """In a simulation of an enrolled roster, where its key files and ledgers lie."""
        found = os.environ.get(KEYS)
        return Path(found) if found else None

    def read_plan(self, text: str) -> Plan:
        """The job's plan, checked like any other file."""
        try:
            raw = json.loads(text)
        except ValueError:
            raw = None
        if not isinstance(raw, dict):
            raise UserError("the job: expected a plan as JSON, got something else; submit it again")
        return parse_plan(raw, base_dir=self._base_dir())

    def _base_dir(self) -> Path:
        shared = os.environ.get(SHARED_RUN)
        if shared:
            return Path(RunFolder.open(Path(shared)).state()["base_dir"])
        return self.path

    def run_folder(self, run: str, plan: Plan) -> RunFolder:
        """Where this party keeps the run: made when it first hears of it."""
        shared = os.environ.get(SHARED_RUN)
        if shared:
            return RunFolder.open(Path(shared))
        path = self._place(run)
        if path.exists():
            folder = RunFolder.open(path)
            if folder.state()["plan_sha256"] != plan.sha256():
                raise UserError(
                    f"{path}: expected the plan of this run, got another under its name; a changed "
                    "plan is a new run: submit it without --resume"
                )
            return folder
        state = {
            "status": "running",
            "engine": "flare",
            "plan_sha256": plan.sha256(),
            "base_dir": str(self.path),
            "started": now(),
            "parties": "apart",
            "figures_of": self.name,
            "sessions": 0,
            "sessions_log": [],
            "wall_s": 0.0,
        }
        return RunFolder.create(path, plan, state)

    def take_part(self, run: str, plan: Plan) -> RunFolder:
        """A site's `run_folder`: made once its operator has approved the plan (R8), for before that
        nothing of a plan is written here. Raises `UserError`s, of which `NotApproved`."""
        if not self.simulated and not self._place(run).exists():
            # Here and not above: the coordinator's process has no use for what this imports.
            from fedshield.run.ledgers import check_approved, of_site

            roster = roster_of(plan, SignedRoster.read(self.path / "roster.json"))
            with of_site(self.ledger_path(), self.runs(), plan) as ledger:
                check_approved(ledger, plan, roster, run)
        return self.run_folder(run, plan)

    def runs(self) -> tuple[str, ...]:
        """Names of the runs that this party has kept."""
        return runs_kept(self.path)

    def _place(self, run: str) -> Path:
        if not _RUN_NAME.fullmatch(run):
            raise UserError(f"the job: expected a run's name, got {run[:40]!r}; submit it again")
        return self.path / "runs" / run

    def take_up(self, folder: RunFolder, job: str) -> IO[str]:
        """Begin a session of a run in this process: the lock that says so, to be kept until the
        process ends. Raises `UserError` if another process is at work on the run."""
        lock = presence.hold(folder.path)
        state = folder.state()
        for key in ("reason", "settled"):
            state.pop(key, None)
        folder.write_state(state | {"status": "running", "job": job})
        return lock

    @contextlib.contextmanager
    def at_work(self, folder: RunFolder, job: str) -> Iterator[None]:
        """The coordinator's session of a run; how it ended is in `run.json` afterwards."""
        with self.take_up(folder, job):
            outcome = {"status": "finished"}
            try:
                yield
            except BaseException as error:
                reason = str(error) if isinstance(error, FedShieldError) else repr(error)
                outcome = {"status": "failed", "reason": reason[:500]}
                self.note(f"failed: {reason[:500]}")
                raise
            finally:
                folder.write_state(folder.state() | outcome)

    # -- what may run here -----------------------------------------------------------------

    def policy(self) -> Policy | None:
        """This site's; none in a simulation, where one operator runs every site."""
        if self.simulated or self.name == COORDINATOR:
            return None
        return Policy.read(self.path / POLICY_FILE.format(site=self.name))

    def local(self, plan: Plan) -> Plan:
        """The plan with this site's own data, model and device in it. Raises `PolicyError` for a
        plan that the policy refuses, before anything is loaded."""
        policy = self.policy()
        if policy is None:
            return plan
        policy.check(plan, None, None)
        return policy.local_plan(plan, self.name)

    def not_used(self, plan: Plan) -> tuple[str, ...]:
        """What of the plan gives way to this site's policy, one sentence each."""
        policy = self.policy()
        return () if policy is None else policy.not_used(plan, self.name)

    def admit(self, plan: Plan, base_model_sha256: str | None) -> Party:
        """Raises `UserError` for a plan that the roster or the policy does not allow."""
        signed, key = self.enrolled()
        check_roster(plan, signed, base_model_sha256, self.path / "roster.json")
        roster = roster_of(plan, signed)
        policy = self.policy()
        if policy is not None:
            policy.check(plan, roster, base_model_sha256)
            roster = roster.exposing(policy.exposes)
        digest = "" if policy is None else policy.sha256()
        return Party(roster, key, signed.allowed.max_examples, digest)

    def enrolled(self) -> tuple[SignedRoster, SiteKey]:
        """The kit's roster, in force from now on, and this party's own key in it. Raises
        `RosterError` for a roster that is not ready, has another key of this party, or was replaced
        here before."""
        signed = SignedRoster.read(self.path / "roster.json")
        key = KeyFile.read(self.path / f"{self.name}.key").key
        signed.check_own(key, self.name)
        signed.check_ready(key)
        if not self.simulated:
            for sentence in put_in_force(self.path, signed):
                self.note(sentence)
        return signed, key

    def ledger_path(self) -> Path:
        """Where the ledger of this site's records lies: its policy says so."""
        policy = self.policy()
        assert policy is not None, "in a simulation it is beside the keys, or the run's own"
        return policy.ledger_place()

    # -- telling ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        _LOG.info("%s: %s", self.name, text)

    @staticmethod
    def tell(name: str, error: Exception) -> str:
        """What may cross of an error before there is a run folder; the rest goes to the log."""
        text = str(error) if isinstance(error, FedShieldError) else repr(error)
        _LOG.error("%s: %s", name, text)
        return refusal_code(error)
