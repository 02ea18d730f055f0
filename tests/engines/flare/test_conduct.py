"""Where a run is taken up, and what the coordinator's log says of its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedshield.engines.flare import conduct
from fedshield.engines.flare.conduct import COORDINATOR_FILE, Log, read_log
from fedshield.errors import RoundFailed
from fedshield.plan import Plan
from fedshield.planfile import parse_plan
from fedshield.protocol.sites import Replies


def plan(num_sites: int = 3) -> Plan:
    sites = {f"s{number}": {"source": "sample:maths"} for number in range(num_sites)}
    return parse_plan({"data": {"sites": sites}}, base_dir=Path())


class Standing:
    """Sites that keep these rounds."""

    def __init__(self, kept: dict[str, Any], failed: dict[str, str] | None = None) -> None:
        self._stand = Replies(
            {site: json.dumps(rounds).encode() for site, rounds in kept.items()}, failed or {}
        )
        self.opened: tuple[int, list[str]] | None = None
        self.refuses: dict[str, str] = {}

    def stand(self) -> Replies:
        return self._stand

    def open(self, completed_rounds: int, sites: list[str]) -> Replies:
        self.opened = (completed_rounds, list(sites))
        return Replies(dict.fromkeys(sites, b""), self.refuses)


def line_up(num_sites: int, sites: Standing) -> tuple[int, dict[str, str]]:
    return conduct._line_up(plan(num_sites), sites)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kept", "begins"),
    [
        ({"s0": [0], "s1": [0], "s2": [0]}, 0),
        ({"s0": [0, 4, 5], "s1": [0, 4, 5], "s2": [0, 4, 5]}, 5),
        # One was killed before it kept round 5: the others go back.
        ({"s0": [0, 4, 5], "s1": [0, 4, 5], "s2": [0, 3, 4]}, 4),
    ],
)
def test_a_run_goes_on_from_the_last_round_that_enough_sites_keep(
    kept: dict[str, list[int]], begins: int
) -> None:
    sites = Standing(kept)
    assert line_up(3, sites) == (begins, {})
    assert sites.opened == (begins, ["s0", "s1", "s2"])


def test_of_four_sites_three_are_enough() -> None:
    kept = {"s0": [0, 2], "s1": [0, 2], "s2": [0, 1, 2], "s3": [0, 1]}
    sites = Standing(kept)
    assert line_up(4, sites)[0] == 2
    lost = Standing({site: kept[site] for site in ("s0", "s1", "s2")}, {"s3": "deadline"})
    assert line_up(4, lost) == (2, {"s3": "deadline"})


def test_too_few_sites_are_named_with_what_became_of_them() -> None:
    sites = Standing({"s0": [0], "s1": "nonsense"}, {"s2": "refused"})
    with pytest.raises(RoundFailed, match=r"expected 3 sites .* got 1: s1 \(malformed\), s2 \(ref"):
        line_up(3, sites)
    assert sites.opened is None


@pytest.mark.parametrize("said", ["[1.5]", '["0"]', "[true]", "{}", "nothing"])
def test_rounds_are_whole_numbers(said: str) -> None:
    assert conduct._rounds(said.encode()) is None


class Broken:
    def admit(self, plan: Plan, base_model_sha256: str | None) -> Any:
        raise self.error

    def __init__(self, error: BaseException) -> None:
        self.error = error


def test_the_log_says_how_it_ended_whatever_ended_it(tmp_path: Path) -> None:
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        folder.mkdir()
    conduct.conduct(plan(), Broken(RoundFailed("no more")), None, *folders)  # type: ignore[arg-type]
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
