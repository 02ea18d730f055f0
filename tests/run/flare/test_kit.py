"""What a party's own folder lets a run begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedshield.enrolment import Allowed, KeyFile, SignedRoster, demonstration
from fedshield.enrolment.files import RosterError, write_new
from fedshield.errors import RoundFailed
from fedshield.plan.schema import Plan
from fedshield.run.flare.kit import SHARED_RUN, Kit

SOURCE = {"source": "sample:maths"}


def test_a_session_under_an_older_roster_is_refused(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both rosters are whole and ready. The older one has a key that was stolen, then replaced."""
    monkeypatch.delenv(SHARED_RUN, raising=False)
    plan = make_plan({f"data.sites.{name}": SOURCE for name in ("bank", "clinic", "lab")})
    first, *others = plan.data.site_names()
    before, keys = demonstration([first, *others], allowed=Allowed(("plain",)))
    new = KeyFile.make(first, keys[first])
    after: SignedRoster = before.with_replacement(new.card())
    for name, key_file in (keys | {first: new}).items():
        if name != "coordinator":
            after = after.countersigned(key_file, [n for n in after.names() if n != name])
    write_new(tmp_path / "coordinator.key", keys["coordinator"].to_text(), 0o600)
    kit, path = Kit(tmp_path, "coordinator"), tmp_path / "roster.json"
    path.write_text(before.to_text())
    assert kit.admit(plan, None).roster.sites[first] == keys[first].key.public
    path.write_text(after.to_text())
    assert kit.admit(plan, None).roster.sites[first] == new.key.public
    path.write_text(before.to_text())
    with pytest.raises(RosterError, match=f"expected the present key of {first}"):
        kit.admit(plan, None)


def test_why_a_run_stopped_is_said_where_the_server_runs(
    tmp_path: Path,
    make_plan: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not to whoever submitted it alone: what there is to do may be for this operator."""
    monkeypatch.delenv(SHARED_RUN, raising=False)
    kit = Kit(tmp_path, "coordinator")
    folder = kit.run_folder("ward-1", make_plan())
    caplog.set_level("INFO", logger="fedshield")
    with pytest.raises(RoundFailed), kit.at_work(folder, "job-1"):
        raise RoundFailed("too few threads here")
    assert caplog.messages == ["coordinator: failed: too few threads here"]
    assert (folder.state()["status"], folder.state()["reason"]) == (
        "failed",
        "too few threads here",
    )
