"""The driver of rounds, over a coordinator that is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fedshield.errors import RoundFailed
from fedshield.protocol.coordinator import RoundOutcome
from fedshield.run.rounds import drive


class Told:
    """A coordinator and its watcher: what happens, in order."""

    def __init__(self, failing: str = "") -> None:
        self.events: list[str] = []
        self.lost: Mapping[str, str] = {}
        self._failing = failing

    def _does(self, event: str) -> None:
        self.events.append(event)
        if event == self._failing:
            raise RoundFailed(event)

    def start(self) -> None:
        self._does("start")

    def round(self, number: int) -> RoundOutcome:
        self._does(f"round {number}")
        return RoundOutcome(number, "", 0.0, ())

    def finish(self) -> None:
        self._does("finish")

    def set_up(self, lost: Mapping[str, str]) -> None:
        self._does("set up")

    def begin(self, number: int) -> None:
        self._does(f"begin {number}")

    def end(self, outcome: RoundOutcome, round_s: float) -> None:
        self._does(f"end {outcome.round_number}")

    def end_early(self, why: str) -> None:
        self._does(f"early {why}")


def driven(told: Told, completed: int, rounds: int, budget: int) -> None:
    """`budget`: rounds that the sites may take part in."""
    any_told: Any = told

    def over_budget() -> str:
        done = sum(event.startswith("end ") for event in told.events)
        return "" if done < budget else "bank may not"

    drive(any_told, completed, rounds, over_budget, any_told)


def test_rounds_go_on_from_where_the_run_stands() -> None:
    told = Told()
    driven(told, 1, 3, 9)
    rounds = [f"{what} {number}" for number in (2, 3) for what in ("begin", "round", "end")]
    assert told.events == ["start", "set up", *rounds, "finish"]


def test_why_rounds_end_early_is_told_before_the_session_is_finished() -> None:
    """Should that fail, the run's folder says it all the same."""
    told = Told(failing="finish")
    with pytest.raises(RoundFailed, match="finish"):
        driven(told, 0, 3, 1)
    assert told.events[-2:] == ["early before round 2: bank may not", "finish"]


def test_a_run_without_a_round_is_none() -> None:
    told = Told()
    with pytest.raises(RoundFailed, match="no round was completed") as failed:
        driven(told, 0, 3, 0)
    assert not failed.value.resumable
    assert told.events == ["start", "set up"]


def test_a_round_that_fails_is_not_told_as_done() -> None:
    told = Told(failing="round 1")
    with pytest.raises(RoundFailed, match="round 1"):
        driven(told, 0, 2, 9)
    assert told.events[-2:] == ["begin 1", "round 1"]
