"""What the coordinator's log says of a run's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedshield.errors import RoundFailed
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.run.flare import conduct
from fedshield.run.flare.conduct import COORDINATOR_FILE, Log, read_log


def plan(num_sites: int = 3) -> Plan:
    sites = {f"s{number}": {"source": "sample:maths"} for number in range(num_sites)}
    return parse_plan({"data": {"sites": sites}}, base_dir=Path())


class Broken:
    def admit(self, plan: Plan, base_model_sha256: str | None) -> Any:
        raise self.error

    def __init__(self, error: BaseException) -> None:
        self.error = error


def test_the_log_says_how_it_ended_whatever_ended_it(tmp_path: Path) -> None:
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        folder.mkdir()
    failed = Broken(RoundFailed("no more"))
    assert conduct.conduct(plan(), failed, None, *folders) == "no more"  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        conduct.conduct(plan(), Broken(KeyError("odd")), None, *folders)  # type: ignore[arg-type]
    said = [
        {"status": "failed", "reason": "no more"},
        {"status": "failed", "reason": "KeyError: 'odd'"},
    ]
    assert all(read_log(folder / COORDINATOR_FILE) == said for folder in folders)


def test_a_line_that_was_cut_by_a_kill_is_not_read(tmp_path: Path) -> None:
    Log([tmp_path]).add({"round": 1})
    path = tmp_path / COORDINATOR_FILE
    path.write_bytes(path.read_bytes() + b'{"round": 2')
    assert read_log(path) == [{"round": 1}]
    assert read_log(tmp_path / "absent") == []
