"""What a site that shares no run folder writes down of its own sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedshield.engines.flare.kit import Kit
from fedshield.engines.site_process import SiteProcess
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
