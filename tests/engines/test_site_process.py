"""What a site that shares no run folder writes down of its own sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedshield.engines.flare.kit import Kit
from fedshield.engines.site_process import SiteProcess
from fedshield.errors import UserError
from fedshield.plan import Plan


def test_each_session_of_a_site_is_in_its_own_run_json(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: Any
) -> None:
    """A site hears of a run's end, not of what stopped a session: that one has no end."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan, kit = make_plan(), Kit(tmp_path, "bank")
    folder = kit.run_folder("ward-1", plan)
    state = folder.state()
    assert (state["parties"], state["figures_of"], state["sessions"]) == ("apart", "bank", 0)
    for number in (1, 2):
        site = SiteProcess("bank", plan, folder, kit)
        (folder.path / "sites" / "bank").mkdir(parents=True, exist_ok=True)
        site._begin_session()
        spent = folder.state()["wall_s"]
        site._append({"round": 0, "upload_bytes": 1, "download_bytes": 1})
        after = folder.state()
        assert after["sessions"] == len(after["sessions_log"]) == number
        # Seconds of the sessions before are not lost.
        assert after["wall_s"] > spent >= 0
    assert [entry["ended"] for entry in after["sessions_log"]] == ["", ""]


def test_another_plan_under_a_runs_name_changes_nothing(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator chooses a run's name."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    kit = Kit(tmp_path, "bank")
    folder = kit.run_folder("ward-1", make_plan())
    folder.write_state(folder.state() | {"status": "finished"})
    before = (folder.path / "run.json").read_bytes()
    with pytest.raises(UserError, match="expected the plan of this run, got another"):
        kit.run_folder("ward-1", make_plan({"rounds": 7}))
    assert (folder.path / "run.json").read_bytes() == before
    assert kit.run_folder("ward-1", make_plan()).path == folder.path


def test_a_run_goes_on_under_the_roster_that_it_began_with(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal knows sites by name. Another organisation's key under a site's name would make
    two sums over one set from one model, and their difference is what two sites sent."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan, kit = make_plan(), Kit(tmp_path, "bank")
    folder = kit.run_folder("ward-1", plan)
    site: Any = SiteProcess("bank", plan, folder, kit)
    base = SimpleNamespace(sha256="ba", precision="float32")
    data, host = SimpleNamespace(sha256=lambda: "da"), SimpleNamespace(factors_sha256="")

    def begins(charter: bytes) -> None:
        party = SimpleNamespace(roster=SimpleNamespace(charter=charter))
        site._check_same(base, data, host, party)

    begins(b"one")
    begins(b"two")  # nothing left yet: the operator put the right roster in place
    journal = folder.journal_path("bank")
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("a line\n")
    begins(b"two")
    with pytest.raises(UserError, match="expected the run's roster_sha256 74776f, got 6f6e65"):
        begins(b"one")


def test_a_site_with_too_few_rows_refuses_before_it_sends(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule R6. Others learn that it refuses, and not how many rows it has."""
    monkeypatch.delenv("FEDSHIELD_SHARED_RUN", raising=False)
    plan = make_plan({"data.min_examples": 17})
    folder = Kit(tmp_path, "bank").run_folder("ward-1", plan)
    admission = SimpleNamespace(
        simulated=False,
        local=lambda plan: plan,
        not_used=lambda _: (),
        admit=lambda *_: SimpleNamespace(example_cap=None),
    )
    site = SiteProcess("bank", plan, folder, admission)
    reply = site.stand()
    assert (reply.data, reply.code) == (b"", "refused")
    told = (folder.path / "sites" / "bank" / "error.log").read_text()
    assert "data.min_examples: expected at least 17 rows with loss at bank, got 16;" in told
    assert "rule R6" in told
    assert not folder.journal_path("bank").exists()
    assert site.open(0).code == site.handle("invite", b"").code == "refused"
