"""One site in a process of its own: its participant, what it kept, and what it measured.

Whatever brings the coordinator's bytes here calls `handle`, which returns and never raises: a
site's error goes on as a code from a fixed list, its text stays in the site's error.log.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedshield.causes import explained
from fedshield.data.sites import SiteData
from fedshield.disk import write_atomic
from fedshield.errors import FedShieldError, UserError
from fedshield.ledger.file import Ledger
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.plan.effect import without_effect
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import summarised
from fedshield.protocol.answers import in_words
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant import Participant
from fedshield.protocol.restart import SiteRestart, Standing
from fedshield.run import progress, prometheus
from fedshield.run.admission import Admission, Party, Reply, refusal_code
from fedshield.run.events import Events, Quiet
from fedshield.run.finish import finish
from fedshield.run.folder import ANEW, RunFolder, append_rows, chat_date, read_rows, write_rows
from fedshield.run.ledgers import (
    approval_of,
    check_approved,
    check_model,
    check_one_run,
    line_of,
    of_demonstration,
    of_keys,
    told_apart,
)
from fedshield.run.log_file import LogFile, keep_roster, site_log
from fedshield.run.metrics import site_row
from fedshield.run.parties import randomness_of
from fedshield.run.prepare import cap_notes, prepare, run_notes, standing_of
from fedshield.run.progress import PHASES, Progress
from fedshield.run.state import begin_session, end_session
from fedshield.site.interfaces import SiteRound
from fedshield.site.round import first_memory, standing_digest

#: Beside a site's adapters: one object a round, and one of round 0 for what crossed outside.
ROWS = "rounds.jsonl"
#: Why a run ended that is not finished and in which this site made no error.
ENDED_BY_OTHERS = (
    "the run was ended by whoever submitted it or by the coordinator (fedshield status there says "
    "why), or the coordinator was gone; this site keeps the model of its last round, if there was "
    "one"
)


@dataclass(frozen=True)
class Work:
    """What a site loaded for a run."""

    party: Party
    base: BaseModel
    data: SiteData
    host: AdapterHost = field(repr=False)
    ledger: Ledger = field(repr=False)


class SiteProcess:
    """`folder`: where this site keeps the run; `events`: whom it tells what it does."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        folder: RunFolder,
        admission: Admission,
        events: Events | None = None,
    ) -> None:
        self.name = name
        self._plan = plan
        self._folder = folder
        self._admission = admission
        self._events = events or Quiet()
        # The engine calls from threads of its own; a site does one thing at a time.
        self._lock = threading.Lock()
        self._work: Work | None = None
        self._ledger: Ledger | None = None
        self._door: SiteRestart | None = None
        self._participant: Participant | None = None
        self._began = 0
        self._up = self._down = 0
        self._round_started = self._session_started = time.perf_counter()
        self._before_s = 0.0
        self._round_seconds: list[float] = []
        self._phase, self._since = "", 0.0
        self._last_error = ""
        self._mine = folder.path / "sites" / name

    # -- what the coordinator asks for -----------------------------------------------------

    def handle(self, method: str, data: bytes) -> Reply:
        """A signed command; the signed reply."""
        return self._safely(lambda: self._handle(method, data))

    def _safely(self, action: Callable[[], bytes]) -> Reply:
        with self._lock:
            try:
                return Reply(action())
            except Exception as error:
                self._tell(error)
                return Reply(code=refusal_code(error))

    def ended(self) -> None:
        """The job is over. A run that is not finished becomes `interrupted`, or `failed` where an
        error of this site's own was the last word."""
        if self._ledger is not None:
            self._ledger.close()
        if self._admission.simulated or self._folder.state()["status"] != "running":
            return
        outcome = {"status": "interrupted", "reason": ENDED_BY_OTHERS}
        if self._last_error:
            outcome = {"status": "failed", "reason": self._last_error}
        state = self._folder.state() | outcome
        if self._participant is not None:  # before that, no session was opened
            end_session(state)
        self._folder.write_state(state)
        self._events.note(f"{outcome['status']}: {outcome['reason']}")

    # -- behind the door -------------------------------------------------------------------

    def _before(self, method: str) -> SiteRestart:
        """Who answers what comes before a session: made anew when the site is asked where it
        stands, by the roster of then. Raises what forbids the run here."""
        if self._door is None or method == "stand":
            party = self._admission.admit(self._plan, None)
            self._door = SiteRestart(
                self.name,
                self._plan.sha256(),
                party.roster,
                party.key.sign,
                self._standing,
                self._stand_at,
                self._tell_models,
            )
        return self._door

    def _standing(self) -> Standing:
        """Loads model and data if they are not."""
        base = bytes.fromhex(self._loaded().base.sha256)
        return Standing(frozenset(self._kept()), base)

    def _kept(self) -> list[int]:
        """The rounds that this site can begin from, 0 with them. It does not go back behind what it
        took by the word of others (R4). One that was stopped between its ledger and its folder
        keeps no such round: it begins from an earlier one, and enters no sum before it took the
        model again."""
        kept = [0, *self._folder.site_store(self.name).rounds()]
        last = self._loaded().ledger.last_attested(self._plan.sha256())
        return [number for number in kept if number >= last] or kept

    def _tell_models(self, digests: Mapping[str, bytes]) -> None:
        """For this site's operator: who has another base model. A site that has not the one of most
        has an error of it."""
        own = digests[self.name]
        others = {site: digest for site, digest in digests.items() if site != self.name}
        listed = ", ".join(f"{site} {digest.hex()[:16]}" for site, digest in sorted(others.items()))
        told = (
            f"the sites do not have the same base model: the SHA-256 of this site's begins with "
            f"{own.hex()[:16]}, the others say {listed}"
        )
        if 2 * sum(digest == own for digest in digests.values()) > len(digests):
            self._events.note(f"{told}; most have this site's")
            return
        todo = "compare with their operators and put the agreed model in place"
        self._tell(UserError(f"{told}; {todo}"))

    def _loaded(self) -> Work:
        if self._work is None:
            # Roster, plan and policy first: nothing is read for a run that may not take place.
            here = self._admission.local(self._plan)
            date = chat_date(self._folder.state())
            party = self._admission.admit(self._plan, None)
            ledger = self._remember(party)
            self._show("stand")
            for note in self._admission.not_used(self._plan):
                self._events.note(f"note: {note}")
            base, data, host = prepare(here, self._events, only=self.name, date=date)
            party = self._admission.admit(self._plan, base.sha256)
            for note in cap_notes(self._plan, data, party.example_cap):
                self._events.note(f"note: {note}")
            if self._admission.simulated:
                # Whoever starts a simulation plays every site, and approves for each.
                ledger.approve(approval_of(self._plan, party.roster, base.sha256))
            check_model(ledger, self._plan, base.sha256)
            self._check_same(base, data[self.name], host, party)
            self._work = Work(party, base, data[self.name], host, ledger)
        return self._work

    def _remember(self, party: Party) -> Ledger:
        """This site's ledger, locked for the life of the process; its operator has approved the
        plan. The first try is kept: a second process would find it locked."""
        simulated = self._admission.simulated
        if self._ledger is None:
            if not simulated:
                self._ledger = Ledger.open(self._admission.ledger_path())
            elif (keys := self._admission.keys) is None:
                self._ledger = of_demonstration(self._folder, self.name)
            else:
                self._ledger = of_keys(keys, self.name, party.roster, self._folder.path)
        if simulated:
            check_one_run(self._ledger, self._plan, self._folder.path.name)
        else:
            check_approved(self._ledger, self._plan, party.roster, self._folder.path.name)
        return self._ledger

    def _check_same(self, base: BaseModel, data: SiteData, host: AdapterHost, party: Party) -> None:
        """A run goes on with what it began with, once anything has left this site: until then its
        operator may put the agreed model, data or roster in place. The journal knows sites by name:
        with another roster one name could be two sites, and their two sums from one model one
        set."""
        path = self._mine / "began.json"
        now = {
            "plan_sha256": self._plan.sha256(),
            "base_model_sha256": base.sha256,
            "precision": base.precision,
            "factors_sha256": host.factors_sha256,
            "data_sha256": data.sha256(),
            "roster_sha256": party.roster.charter.hex(),
        }
        if self._admission.simulated:
            del now["roster_sha256"]  # its keys are new in every session
        if not path.exists() or not self._has_sent():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(now, indent=1) + "\n")
            return
        began = json.loads(path.read_text(encoding="utf-8"))
        for key, value in now.items():
            if began.get(key) != value:
                raise UserError(
                    f"{self._folder.path}: expected the run's {key} {str(began.get(key))[:16]}, "
                    f"got {value[:16]}; restore it or {ANEW}"
                )

    def _has_sent(self) -> bool:
        """Whether anything of this site's left it in this run. A round that is kept says so too,
        whatever became of the journal."""
        journal = self._folder.journal_path(self.name)
        written = journal.exists() and journal.stat().st_size > 0
        return written or bool(self._folder.site_store(self.name).rounds())

    def _stand_at(self, completed_rounds: int, restart: bytes) -> None:
        """A new session from a round that is kept here, which follows from where all stand:
        `restart` is the digest of that. A site that repeats a round opens no second set from one
        model (R4)."""
        from fedshield.site.train import LocalTrainer

        work = self._loaded()
        store = self._folder.site_store(self.name)
        stands, state, memory = standing_of(store, self._plan, work.host, completed_rounds)
        _, first, _ = standing_of(store, self._plan, work.host, 0)
        self._began = stands
        line = line_of(
            *(work.ledger, self.name, self._plan, work.party.roster),
            *(self._folder.path.name, work.data),
        )
        if not self._admission.simulated:
            self._begin_session(told_apart([line]))
        party, path = work.party, self._folder.path
        if not self._admission.simulated:
            keep_roster(path, party.roster)
        log = LogFile.open(
            site_log(path, self.name),
            self.name,
            party.key.sign,
            party.key.public,
            self._plan.sha256(),
            party.roster,
            policy_sha256=party.policy_sha256,
        )
        randomness = randomness_of(self._plan, party.roster, self.name, party.key)
        self._participant = Participant(
            name=self.name,
            plan=self._plan,
            roster=work.party.roster,
            key=work.party.key,
            secret=work.party.key.secret,
            example_cap=work.party.example_cap,
            work=LocalTrainer(
                self.name,
                self._plan,
                work.data,
                work.host,
                work.base.pad_token_id,
                work.base.device,
                randomness,
            ),
            store=store,
            journal=Journal(self._folder.journal_path(self.name)),
            line=line,
            start=standing_digest(first, first_memory(self._plan, first)),
            restart=restart,
            state=state,
            completed_rounds=stands,
            randomness=randomness,
            memory=memory,
            observe=self._observed,
            log=log.append,
        )

    def _begin_session(self, exposed: Mapping[str, Sequence[str]]) -> None:
        """run.json's of this site, which shares no run folder with others. `exposed`: of
        `told_apart`."""
        state = self._folder.state() | dict(exposed)
        state["sessions"] = int(state["sessions"]) + 1
        begin_session(state)
        self._folder.write_state(state)
        self._before_s, self._session_started = float(state["wall_s"]), time.perf_counter()

    def _spent_s(self) -> float:
        """Seconds of all sessions so far; of one that stopped, up to what it last measured."""
        return self._before_s + time.perf_counter() - self._session_started

    def _handle(self, method: str, data: bytes) -> bytes:
        if method in SiteRestart.METHODS:
            return self._counted(self._before(method), method, data)
        if self._participant is None:
            # Why this site is left out, where it is known, is the better word.
            raise UserError(
                self._last_error
                or "expected a session to begin here first; the coordinator left this site out"
            )
        if method == "prepare":
            self._round_started = time.perf_counter()
        self._show(method)
        reply = self._counted(self._participant, method, data)
        if method == "finish":
            last = {"round": 0, "upload_bytes": self._up, "download_bytes": self._down}
            self._append(last | {"privacy": self._spent()})
            if not self._admission.simulated:
                self._release()
        return reply

    def _counted(self, door: SiteRestart | Participant, method: str, data: bytes) -> bytes:
        self._down += len(data)
        reply = door.handle(method, data)
        self._up += len(reply)
        return reply

    def _release(self) -> None:
        """This site's own report and adapter: the run is over. What goes wrong with them is the
        site's to mend; the coordinator and the other sites need not know."""
        try:
            self._write_out()
        except Exception as error:
            self._tell(error)

    def _write_out(self) -> None:
        work, folder = self._loaded(), self._folder
        rows = site_rows(folder, self.name)
        rounds = [row for row in rows if row["round"]]
        outside = [row for row in rows if not row["round"]]
        write_rows(folder.path / "metrics.jsonl", rounds)
        state = folder.state() | {
            "setup_upload_bytes": sum(row["upload_bytes"] for row in outside),
            "setup_download_bytes": sum(row["download_bytes"] for row in outside),
            "wall_s": self._spent_s(),
            "base_model_sha256": work.base.sha256,
            "notes": [
                *without_effect(self._plan),
                *self._admission.not_used(self._plan),
                *run_notes(work.base, {self.name: work.data}, work.host),
                *cap_notes(self._plan, {self.name: work.data}, work.party.example_cap),
            ],
            "privacy": self._spent(),
        }
        # The card may be handed on: it names the plan's source, not where the site keeps it.
        source = self._plan.data.sites[self.name].source
        data = {self.name: replace(work.data, source=source)}
        finish(folder, self._plan, work.base, data, work.host, self._events, state)
        state["status"] = "finished"
        end_session(state)
        folder.write_state(state)

    def _spent(self) -> dict[str, Any] | None:
        spent = None if self._participant is None else self._participant.spent
        return None if spent is None else summarised({self.name: spent})

    def _observed(self, record: SiteRound) -> None:
        """After an evaluation: what was measured, with the bytes since the last. Its own reply,
        a few hundred bytes, counts with the next."""
        assert self._participant is not None
        if record.faulty_answers:
            self._events.note(f"opening the sum: {in_words(record.faulty_answers, self.name)}")
        row = {"round": 0, "upload_bytes": self._up, "download_bytes": self._down}
        if record.round_number > self._began and record.contributors:
            spent = time.perf_counter() - self._round_started
            adapter = self._participant.state.sha256()
            row = site_row(record, self._up, self._down, adapter, spent)
            self._tell_round(row)
        self._up = self._down = 0
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        number, rows = row["round"], site_rows(self._folder, self.name)
        if number and any(one["round"] >= number for one in rows):
            # A round that is repeated, and those after it, are measured anew.
            write_rows(self._mine / ROWS, [one for one in rows if one["round"] < number])
        append_rows(self._mine / ROWS, [row])
        if not self._admission.simulated:
            self._folder.write_state(self._folder.state() | {"wall_s": self._spent_s()})
        self._write_metrics()

    def _write_metrics(self) -> None:
        if self._admission.simulated:
            return
        path = self._folder.path
        rows = site_rows(self._folder, self.name)
        standing = progress.read(path)
        prometheus.write(path, prometheus.of_site(path.name, self.name, rows, standing))

    def _tell_round(self, row: Mapping[str, Any]) -> None:
        """A round's line for this site's operator: its own losses, and the time left."""
        self._round_seconds.append(row["round_s"])
        rounds = self._plan.rounds
        left_s = progress.seconds_left(self._round_seconds, rounds - row["round"])
        train = row["train_loss"]
        self._events.note(
            f"round {row['round']} of {rounds}: "
            + (f"training loss {train:.4f}, " if train is not None else "")
            + f"held-out loss {row['heldout_loss_before']:.4f} -> {row['heldout_loss_after']:.4f}, "
            f"{row['round_s']:.1f} s" + (f"; about {left_s:.0f} s left" if left_s else "")
        )

    def _show(self, method: str) -> None:
        """Where this site stands, for `fedshield status` and the metrics."""
        if self._admission.simulated:
            return
        completed = 0 if self._participant is None else self._participant.completed_rounds
        in_round = completed + 1 if method not in ("stand", "finish", "evaluate") else completed
        rounds, now_s = self._plan.rounds, time.time()
        phase = PHASES.get(method, method)
        if phase != self._phase:
            self._phase, self._since = phase, now_s
        left_s = progress.seconds_left(self._round_seconds, rounds - completed)
        progress.write(
            self._folder.path,
            Progress(min(in_round, rounds), rounds, phase, self._since, now_s, left_s=left_s),
        )

    def _tell(self, error: Exception) -> None:
        """At the site only: one line, and what we did not foresee in full."""
        known = explained(error)
        text = f"{type(known).__name__}: {known}"
        if not isinstance(known, FedShieldError):
            text = "".join(traceback.format_exception(error))
        self._last_error = str(known)
        self._events.note(str(known))
        self._mine.mkdir(parents=True, exist_ok=True)
        with (self._mine / "error.log").open("a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")


def site_rows(folder: RunFolder, site: str) -> list[dict[str, Any]]:
    """What a site measured, up to the first line that is not whole: a kill can cut the last."""
    return read_rows(folder.path / "sites" / site / ROWS)
