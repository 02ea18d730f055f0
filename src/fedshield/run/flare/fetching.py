"""What the coordinator wrote down of a run, out of what FLARE keeps of the job."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fedshield.disk import write_atomic
from fedshield.notes import one_line
from fedshield.run.flare.conduct import COORDINATOR_FILE
from fedshield.run.folder import RunFolder


def fetch_log(session: Any, job_id: str, folder: RunFolder) -> str:
    """The job's part of `coordinator.jsonl`, added to that of the folder. Why there is none, in one
    line; '' where FLARE gave it, or has none."""
    missing = ""
    with tempfile.TemporaryDirectory() as found:
        try:
            session.download_job_result(job_id, found)
        except Exception as error:  # what came before it may be enough
            missing = in_short(error)
        for path in sorted(Path(found).rglob("*")):
            if path.name == COORDINATOR_FILE:
                _append(folder, path.read_bytes())
                return ""
            if path.suffix == ".zip" or path.name == "workspace":
                data = _from_zip(path)
                if data:
                    _append(folder, data)
                    return ""
    return missing


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error), 200)}"


def _from_zip(path: Path) -> bytes:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return b""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if Path(name).name == COORDINATOR_FILE:
                return archive.read(name)
    return b""


def _append(folder: RunFolder, data: bytes) -> None:
    path = folder.path / COORDINATOR_FILE
    write_atomic(path, (path.read_bytes() if path.exists() else b"") + data)
