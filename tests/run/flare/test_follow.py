"""What the coordinator lets be seen while a call is out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedshield.run import progress
from fedshield.run.flare.follow import Follower
from fedshield.run.progress import Progress


def follower(folder: Path, needed: int) -> tuple[Follower, list[Mapping[str, Any]]]:
    told: list[Mapping[str, Any]] = []
    return Follower(folder, ["north", "south", "west"], 20, needed, told.append), told


def standing(folder: Path) -> Progress:
    found = progress.read(folder)
    assert found is not None
    return found


def test_who_is_waited_for_is_in_the_progress_file(tmp_path: Path) -> None:
    following, told = follower(tmp_path, 2)
    following.begin_round(3)
    following.asked("work", ["north", "south", "west"])
    following.answered("work", "south", "")
    seen = standing(tmp_path)
    assert (seen.round_number, seen.rounds) == (3, 20)
    assert seen.phase == "training and encrypting"
    assert seen.waiting == ("north", "west")
    assert seen.left_s is None
    assert told == []
    following.end_round(10.0)
    following.begin_round(4)
    following.asked("work", ["north"])
    assert standing(tmp_path).left_s == 170.0  # rounds 4 to 20, ten seconds each


def test_a_lost_site_is_told_once_with_what_comes_next(tmp_path: Path) -> None:
    following, told = follower(tmp_path, 2)
    following.begin_round(3)
    following.asked("work", ["north", "south", "west"])
    following.answered("work", "west", "deadline")
    following.answered("work", "west", "deadline")
    following.answered("work", "south", "refused")
    assert [entry["lost_now"] for entry in told] == ["west", "south"]
    assert told[0]["why"] == "no answer within the deadline"
    assert told[0]["then"] == "going on without it (2 sites are left, 2 are needed)"
    assert told[1]["then"].startswith("the run stops (1 sites are left, 2 are needed)")


def test_a_site_that_was_left_out_is_not_lost_again(tmp_path: Path) -> None:
    following, told = follower(tmp_path, 2)
    following.leave_out({"west": "another base model"})
    following.asked("invite", ["north", "south", "west"])
    following.answered("invite", "west", "refused")
    assert told == []


def test_a_progress_file_that_is_cut_or_absent_is_none(tmp_path: Path) -> None:
    assert progress.read(tmp_path) is None
    (tmp_path / progress.FILE).write_text('{"round_number": 1')
    assert progress.read(tmp_path) is None


def test_the_time_left_is_by_the_last_five_rounds() -> None:
    assert progress.seconds_left([], 4) is None
    assert progress.seconds_left([100, 1, 1, 1, 1, 1], 4) == 4


def test_of_a_lost_site_its_batch_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Mapping[str, Any]] = []
    batches = (("a", "b", "c"), ("d", "e", "f"))
    following = Follower(tmp_path, "abcdef", 20, 3, told.append, batches)
    following.begin_round(3)
    following.asked("train", "abcdef")
    following.answered("train", "b", "deadline")
    with caplog.at_level(logging.INFO, "fedshield"):
        following.end_round(2.0)
    assert "round 3 of 20: 3 sites in 2.0 s" in caplog.text  # those of its batch are not in it
    following.answered("train", "d", "deadline")
    assert told[0]["phase"] == "training"
    assert told[0]["then"].startswith(
        "its batch (a, b, c) sits out and the others go on (3 are left), unless this round's "
        "updates have left"
    )
    assert told[1]["then"].startswith("the run stops (0 sites of whole batches are left, 3 are")
