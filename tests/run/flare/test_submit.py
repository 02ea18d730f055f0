"""Who is there is found out before a run is made, and while it runs."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import Notes
from fedshield.errors import RoundFailed, UserError
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.run.flare import submit
from fedshield.run.flare.provision import ProvisionError
from fedshield.run.flare.session import present
from fedshield.run.folder import RunFolder


class Session:
    """As FLARE's: `states` of the sites that it lists; a site that `hangs` holds up every command
    that it is part of."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.asked: list[list[str]] = []

    def get_system_info(self) -> Any:
        clients = [
            SimpleNamespace(name=site, last_connect_time=time.time()) for site in self.states
        ]
        return SimpleNamespace(client_info=clients)

    def set_timeout(self, seconds: float) -> None:
        pass

    def unset_timeout(self) -> None:
        pass

    def check_status(self, kind: str, sites: list[str]) -> dict[str, Any]:
        self.asked.append(sites)
        if any(self.states[site] == "hangs" for site in sites):
            raise TimeoutError
        said = [{"client_name": site, "status": self.states[site]} for site in sites]
        return {"client_status": said}


def plan_of(num_sites: int) -> Plan:
    """From four sites on, one may be lost."""
    sites = {f"s{number}": {"source": "sample:maths"} for number in range(num_sites)}
    raw: dict[str, Any] = {"data": {"sites": sites}}
    if num_sites > 3:
        raw["scheme"] = {"membership": "open"}
        raw["privacy"] = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0}
        raw["adapter"] = {"dropout": 0.0}
    return parse_plan(raw, base_dir=Path())


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return tmp_path / "coordinator" / "admin"


def ready(
    session: Session, plan: Plan, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[str]]:
    @contextlib.contextmanager
    def admin_session(_: Path) -> Iterator[Session]:
        yield session

    monkeypatch.setattr(submit, "admin_session", admin_session)
    watch = Notes()
    return submit._ready(plan, kit, watch, 0.0), watch.notes


def test_a_dead_site_and_one_that_hangs_do_not_answer_whatever_flare_lists() -> None:
    session = Session(s0="no_jobs", s1="no_reply", s2="hangs", s3="started")
    answers = {site: found.answers for site, found in present(session).items()}
    assert answers == {"s0": True, "s1": False, "s2": False, "s3": True}
    assert session.asked[0] == ["s0", "s1", "s2", "s3"]


def test_too_few_sites_are_refused_by_name(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(s0="no_jobs", s1="no_reply")
    with pytest.raises(ProvisionError) as refused:
        ready(session, plan_of(3), kit, monkeypatch)
    said = str(refused.value)
    assert "expected 3 sites for a sum, got 1: s1 (does not answer" in said
    assert "s2 (is not connected)" in said


def test_enough_sites_start_without_the_one_that_is_named(
    kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(s0="no_jobs", s1="no_jobs", s2="hangs", s3="no_jobs")
    there, notes = ready(session, plan_of(4), kit, monkeypatch)
    assert there == ["s0", "s1", "s3"]
    (note,) = notes
    assert note.startswith("starting without s2 (does not answer")


def test_sites_that_the_roster_does_not_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "roster.json"
    submit._check_roster(["x"], path)  # the roster is on another machine: the parties check
    path.touch()
    roster = SimpleNamespace(names=lambda: ("north", "south"))
    monkeypatch.setattr(submit.SignedRoster, "read", lambda _: roster)
    submit._check_roster(["north", "south"], path)
    with pytest.raises(UserError, match="got east, which it does not name and no south"):
        submit._check_roster(["north", "east"], path)


def test_the_roll_tells_once_who_goes_and_who_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "ROLL_S", 0.0)
    roll, watch = submit._Roll(["s0", "s1", "s2"], 3, 60.0), Notes()
    session = Session(s0="started", s1="started", s2="started")
    roll.call(session, watch)
    assert watch.notes == []
    session.states["s2"] = "no_reply"
    roll.call(session, watch)
    roll.call(session, watch)
    (gone,) = watch.notes
    assert gone.startswith("s2 does not answer")
    assert (
        "the run stops before its next round; go on with --resume (2 sites are left, 3 are needed)"
        in gone
    )
    session.states["s2"] = "started"
    roll.call(session, watch)
    assert watch.notes[-1].startswith("s2 answers again")


class LingeringJob(Session):
    """A job that goes on after its coordinator is done, as with a dead site; of one that was ended
    by hand FLARE keeps nothing."""

    def __init__(self) -> None:
        super().__init__(s0="running", s1="running", s2="running")
        self.aborted = False

    def get_job_meta(self, _: str) -> dict[str, str]:
        return {"status": "FINISHED:ABORTED" if self.aborted else "RUNNING"}

    def abort_job(self, _: str) -> None:
        self.aborted = True

    def download_job_result(self, *_: str) -> None:
        raise FileNotFoundError


@pytest.mark.parametrize(
    ("ending", "fails"),
    [({"status": "finished"}, False), ({"status": "failed", "reason": "too few sites"}, True)],
)
def test_a_job_that_lingers_ends_as_its_coordinator_said(
    ending: dict[str, str],
    fails: bool,
    kit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, plan = LingeringJob(), plan_of(3)

    @contextlib.contextmanager
    def admin_session(_: Path) -> Iterator[Session]:
        # The coordinator ends while the job is followed.
        log = kit.parent / "runs" / "trial" / submit.COORDINATOR_FILE
        log.parent.mkdir(parents=True)
        line = json.dumps(ending) + "\n"
        monkeypatch.setattr(submit.time, "sleep", lambda _: log.write_text(line))
        yield session

    monkeypatch.setattr(submit, "admin_session", admin_session)
    monkeypatch.setattr(submit, "GRACE_S", 0.0)
    folder = RunFolder.create(tmp_path / "run", plan, {"status": "running"})
    told = pytest.raises(RoundFailed, match="too few sites") if fails else contextlib.nullcontext()
    with told:
        submit._follow(folder, kit, "job", "trial", Notes(), plan.data.site_names(), plan)
    assert session.aborted


def test_a_job_of_the_run_that_cannot_be_ended_is_named() -> None:
    def gone(_: str) -> dict[str, str]:
        raise TimeoutError("no answer")

    watch = Notes()
    submit._end_others(SimpleNamespace(get_job_meta=gone), ["j1"], watch)
    assert watch.notes == [
        "job j1 of this run could not be looked at or ended (TimeoutError: no answer): if it still "
        "runs somewhere, the parties there refuse the new one"
    ]


def test_a_log_that_cannot_be_fetched_is_no_silence_of_the_coordinator() -> None:
    assert "ended without a word" in submit._without_reason("FINISHED:EXECUTION_EXCEPTION")
    told = submit._without_reason("FINISHED:COMPLETED", "OSError: no room")
    assert told.startswith("how the run ended is not known here (finished:completed): ")
    assert "OSError: no room" in told
