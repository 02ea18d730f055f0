"""How the parts of a run add up to its time, and where their seconds come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedshield.cost import time
from fedshield.cost.estimate import spec_of
from fedshield.cost.time import Pace
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.site import gradient_factors

PACE = Pace(100.0, 10.0, 2.0, 3.0, 0.5, 7.0, 20.0, "given")


def plan_of(**changes: Any) -> Plan:
    raw = {
        "rounds": 4,
        "model": {"name": "smollm2-135m"},
        "data": {
            "heldout_rows": 8,
            "sites": {name: {"source": "sample:finance"} for name in ("a", "b", "c")},
        },
        "training": {"steps": 5, "batch_size": 8, "max_length": 192},
        "evaluation": {"prompts": ["Why?", "Where?"]},
        **changes,
    }
    return parse_plan(raw, base_dir=Path())


def rough(plan: Plan, speed: float = 1e11, lengths: tuple[int, ...] = (400,)) -> Pace:
    return time.rough(plan, *spec_of(plan), lengths, speed)


def test_the_parts_add_up() -> None:
    """Three sites, four rounds: an evaluation before the first round and one after each."""
    expected = 100 + 10 + 3 * 5 * 3.0 + 3 * 4 * (5 * 2.0 + 0.5) + 2 * 7 + 20
    assert time.total_seconds(plan_of(), PACE) == pytest.approx(expected)


def test_a_batch_is_as_long_as_its_longest_row() -> None:
    rows = np.sort(np.random.default_rng(5).uniform(20, 190, 64))
    batches = np.random.default_rng(6).choice(rows, (20_000, 8)).max(axis=1) * 8
    assert time.padded_tokens(rows, 8) == pytest.approx(batches.mean(), rel=0.01)
    assert time.padded_tokens(np.asarray([50.0]), 8) == 400


def test_rows_are_cut_and_a_byte_is_a_token_of_the_tiny_model() -> None:
    tiny = plan_of(model={"name": "tiny-llama"})
    assert list(time.row_tokens(tiny, [4000, 100])) == [120, 192]
    assert list(time.row_tokens(plan_of(), [4000, 100])) == [45, 192]
    assert list(time.row_tokens(plan_of(), [])) == [64]


def test_what_is_assumed_of_rows_is_said() -> None:
    """With the numbers that `row_tokens` takes."""
    read = "rows are read without a tokenizer: {} a token and 20 tokens for the chat template are "
    read += "assumed"
    words = time.assumed_lengths(plan_of(), [4000], all_read=True)
    assert words == read.format("4 characters")
    tiny = plan_of(model={"name": "tiny-llama"})
    words = time.assumed_lengths(tiny, [100], all_read=False)
    like_those = "; rows that were not read are taken to be as long as those"
    assert words == read.format("a character") + like_those
    assert time.assumed_lengths(plan_of(), [], all_read=False) == (
        "no row was read: memory is for rows of training.max_length, 192 tokens, and time for rows "
        "of 64"
    )


def test_seconds_follow_what_there_is_to_do() -> None:
    short, base = rough(plan_of(), lengths=(100,)), rough(plan_of())
    assert short.step < base.step
    assert short.evaluation < base.evaluation
    twice = plan_of(training={"steps": 5, "batch_size": 16, "max_length": 192})
    assert rough(twice).step == pytest.approx(2 * base.step, rel=0.02)
    assert rough(plan_of(), speed=2e11).step < 0.6 * base.step
    again = {"steps": 5, "batch_size": 8, "max_length": 192, "gradient_checkpointing": True}
    assert 1.3 * base.step < rough(plan_of(training=again)).step < 1.6 * base.step
    assert rough(plan_of(scheme={"name": "ckks"})).exchange > base.exchange
    core = {"train": "core", "rank": 8, "targets": "all-linear", "dropout": 0.0}
    found = rough(plan_of(adapter=core))
    assert found.preparing > base.preparing + 1
    assert rough(plan_of(adapter=core | {"factors": "gradient"})).preparing != found.preparing


def test_the_gradients_passes_are_those_of_the_module_that_makes_them() -> None:
    assert time.GRADIENT_PASSES == gradient_factors.PASSES


def test_a_runs_pace_gives_its_time_back() -> None:
    """What is taken from a run's records adds up to the time that it took."""
    plan = plan_of()
    rows = [
        {
            "round": number,
            "site": site,
            "round_s": 40.0,
            "wall_s": {"train": 10.0, "evaluate": 2.0, "encrypt": 0.5},
        }
        for number in (1, 2, 3, 4)
        for site in ("a", "b", "c")
    ]
    state = {"wall_s": 200.0, "prepare_s": 30.0, "answers_s": 12.0}
    summary = {"wall_s": 170.0, "sites": ["a", "b", "c"]}
    pace = time.of_run(plan, state, summary, rows)
    assert (pace.step, pace.evaluation, pace.answer) == (2.0, 2.0, 6.0)
    assert time.total_seconds(plan, pace) == pytest.approx(time.START_S + 30.0 + 200.0)


def test_an_equal_plan_keeps_a_pace_and_another_carries_it_over() -> None:
    plan = plan_of()
    assert time.scaled(PACE, rough(plan), rough(plan)) == PACE
    larger = plan_of(training={"steps": 5, "batch_size": 16, "max_length": 192})
    carried = time.scaled(PACE, rough(plan), rough(larger))
    assert carried.step == pytest.approx(2 * PACE.step, rel=0.02)
    assert carried.evaluation == PACE.evaluation
