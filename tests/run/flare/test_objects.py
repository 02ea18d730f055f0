"""What FLARE's process of a site does when a job comes, and what it leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from consortium import Consortium, raw_plan

from fedshield.ledger.file import Ledger
from fedshield.run.flare import objects
from fedshield.run.flare.kit import KIT, SHARED_RUN

NAMES = ("alpha", "beta", "victim")
RAW = raw_plan(NAMES)


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", NAMES)
    monkeypatch.delenv(SHARED_RUN, raising=False)
    monkeypatch.setenv(KIT, str(made.root / "victim"))
    yield made
    made.close()


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """The site's process of a job with this plan, run `trial`."""
    context = SimpleNamespace(get_job_id=lambda: "job")
    monkeypatch.setattr(objects, "forget_in_one_thread", lambda: None)
    monkeypatch.setattr(objects, "collab", SimpleNamespace(site_name="victim", fl_ctx=context))
    begun: list[Any] = []

    def job(raw: dict[str, Any]) -> Any:
        app: Any = objects.SiteApp(json.dumps(raw), "trial")
        app.prepare()
        begun.append(app)
        return app

    yield job
    for app in begun:
        app.end()
        if hasattr(app, "_lock"):
            app._lock.close()


def test_nothing_is_written_for_an_unapproved_plan(
    three: Consortium, begin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The code crosses, the sentence is on the site's console. With a run folder there `site
    approve` would take the ledger that was never made for a lost one."""
    runs = three.root / "victim" / "runs"
    for approved in (None, raw_plan(NAMES, seed=8)):
        if approved is not None:
            three.approve(approved, "victim")
        caplog.clear()
        answer = begin(RAW).handle("stand", three.stand(RAW))
        assert answer == {"data": b"", "code": "not-approved"}
        assert not runs.exists()
        assert "R8: expected an approval of plan" in caplog.text
        assert "fedshield site approve PLAN" in caplog.text
    three.approve(RAW, "victim")
    assert begin(RAW)._site is not None
    assert (runs / "trial" / "run.json").exists()


def test_a_lost_ledger_is_not_a_plan_that_nobody_approved(
    three: Consortium, begin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = three.kit("victim").ledger_path()
    (three.root / "victim" / "runs" / "earlier").mkdir(parents=True)
    assert begin(RAW).handle("stand", three.stand(RAW))["code"] == "refused"
    assert f"{path}: expected the ledger of these records, found none; restore" in caplog.text
    assert not (three.root / "victim" / "runs" / "trial").exists()


def test_a_run_goes_on_while_its_last_process_still_ends(three: Consortium, begin: Any) -> None:
    """The approval was read before the run's folder was made; the ledger is opened when it is
    needed, and by then the other process is gone."""
    three.approve(RAW, "victim")
    begin(RAW)._lock.close()
    with Ledger.open(three.kit("victim").ledger_path()):
        assert begin(RAW)._site is not None
