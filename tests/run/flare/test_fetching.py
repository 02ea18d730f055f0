"""The coordinator's log comes out of what FLARE gives, and it is said where FLARE gives nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedshield.run.flare.conduct import COORDINATOR_FILE, read_log
from fedshield.run.flare.fetching import fetch_log
from fedshield.run.folder import RunFolder

LINE = json.dumps({"status": "finished"}) + "\n"


@pytest.mark.parametrize("zipped", [False, True])
def test_the_log_is_added_to_what_is_there(tmp_path: Path, zipped: bool) -> None:
    (tmp_path / COORDINATOR_FILE).write_text(json.dumps({"status": "failed"}) + "\n")

    def download(job: str, folder: str) -> None:
        assert job == "j1"
        place = Path(folder) / job
        place.mkdir()
        if not zipped:
            (place / COORDINATOR_FILE).write_text(LINE)
            return
        with zipfile.ZipFile(place / "workspace", "w") as archive:
            archive.writestr(f"app/{COORDINATOR_FILE}", LINE)

    session = SimpleNamespace(download_job_result=download)
    assert fetch_log(session, "j1", RunFolder(tmp_path)) == ""
    assert [entry["status"] for entry in read_log(tmp_path / COORDINATOR_FILE)] == [
        "failed",
        "finished",
    ]


def test_why_there_is_none_is_said(tmp_path: Path) -> None:
    def refuse(job: str, folder: str) -> None:
        raise OSError("no room\nat all")

    session = SimpleNamespace(download_job_result=refuse)
    assert fetch_log(session, "j1", RunFolder(tmp_path)) == "OSError: no room at all"
    session = SimpleNamespace(download_job_result=lambda job, folder: None)
    assert fetch_log(session, "j1", RunFolder(tmp_path)) == ""
    assert not (tmp_path / COORDINATOR_FILE).exists()
