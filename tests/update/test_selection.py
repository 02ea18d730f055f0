"""Which coordinates travel: alike everywhere, of a size that the schedule fixes, and able to come
back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.plan.load import parse_plan
from fedshield.site.settings import exchange_schedule
from fedshield.types import AdapterSpec, Selection, TensorSpec
from fedshield.update import prune
from fedshield.update.prune import ExchangeSchedule

SPEC = AdapterSpec(
    (
        TensorSpec("layer.lora_A.weight", (4, 30)),
        TensorSpec("layer.lora_B.weight", (50, 4)),
        TensorSpec("other.lora_A.weight", (4, 7)),
    ),
    "00" * 32,
    1.0,
)


def scheduled(train: str = "ab", rounds: int = 10, **pruning: Any) -> ExchangeSchedule:
    plan = parse_plan(
        {
            "rounds": rounds,
            "data": {"sites": {name: {"source": "sample:finance"} for name in ("x", "y", "z")}},
            "adapter": {"train": train},
            "pruning": pruning,
            # Local masks are none of rlwe's (rule R9).
            "scheme": {"name": "ckks" if pruning.get("mask") == "local" else "rlwe"},
        },
        base_dir=Path.cwd(),
    )
    return exchange_schedule(plan)


def scores(seed: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(SPEC.num_values).astype(np.float32)


@settings(max_examples=60)
@given(
    train=st.sampled_from(["ab", "b", "alternate", "share-a"]),
    ranking=st.sampled_from(["tensor", "global"]),
    mask=st.sampled_from(["shared", "local"]),
    target=st.floats(0.2, 0.99),
    explore=st.floats(0, 1),
    round_number=st.integers(1, 10),
    history=st.booleans(),
)
def test_the_size_is_the_schedules(
    train: str, ranking: str, mask: str, target: float, explore: float, round_number: int,
    history: bool,
) -> None:  # fmt: skip
    schedule = scheduled(train, mask=mask, ranking=ranking, target_rate=target, explore=explore)
    found = prune.select(schedule, SPEC, scores() if history else None, round_number)
    assert found.size == prune.num_travelling(schedule, SPEC, round_number)
    again = prune.select(schedule, SPEC, scores() if history else None, round_number)
    assert found.sha256() == again.sha256()
    names = prune.exchanged_tensors(schedule.train, SPEC, round_number)
    allowed = np.zeros(SPEC.num_values, dtype=bool)
    for name in names:
        allowed[SPEC.slices()[name]] = True
    assert allowed[found.indices].all()


def test_which_tensors_are_trained_and_sent() -> None:
    a = ("layer.lora_A.weight", "other.lora_A.weight")
    b = ("layer.lora_B.weight",)
    cases = {
        ("ab", 1): (SPEC.tensors, SPEC.tensors),
        ("b", 1): (b, b),
        ("b", 2): (b, b),
        ("alternate", 1): (b, b),
        ("alternate", 2): (a, a),
        ("share-a", 1): (SPEC.tensors, a),
    }
    for (train, round_number), (trained, sent) in cases.items():
        names = [tuple(getattr(one, "name", one) for one in group) for group in (trained, sent)]
        schedule = scheduled(train)
        assert prune.trained_tensors(schedule.train, SPEC, round_number) == names[0]
        assert prune.exchanged_tensors(schedule.train, SPEC, round_number) == names[1]


def test_the_best_are_kept_and_the_rest_is_explored() -> None:
    schedule = scheduled(initial_rate=0.5, target_rate=0.5, start_round=0, explore=0.2)
    score = scores()
    kept = set(prune.select(schedule, SPEC, score, 3).indices.tolist())
    for place in SPEC.slices().values():
        size = place.stop - place.start
        count = size - int(0.5 * size)
        order = place.start + np.argsort(-score[place], kind="stable")
        best, rest = order[: count - int(0.2 * count)], order[count - int(0.2 * count) :]
        assert set(best.tolist()) <= kept
        assert len(kept & set(rest.tolist())) == int(0.2 * count)


def test_every_coordinate_comes_back_in_time() -> None:
    schedule = scheduled(rounds=200, initial_rate=0.8, target_rate=0.8, start_round=0, explore=0.25)
    score, seen = scores(), np.zeros(SPEC.num_values, dtype=bool)
    for number in range(1, 201):
        seen[prune.select(schedule, SPEC, score, number).indices] = True
    assert seen.all()


def test_without_exploration_only_the_score_decides() -> None:
    schedule = scheduled(initial_rate=0.5, target_rate=0.5, start_round=0, explore=0.0)
    first = prune.select(schedule, SPEC, scores(), 2)
    second = prune.select(schedule, SPEC, scores(), 3)
    assert first.sha256() == second.sha256()
    assert first.sha256() != prune.select(schedule, SPEC, scores(6), 2).sha256()


def test_a_random_mask_ignores_the_score() -> None:
    schedule = scheduled(initial_rate=0.5, target_rate=0.5, start_round=0, explore=1.0)
    assert (
        prune.select(schedule, SPEC, scores(), 2).sha256()
        == prune.select(schedule, SPEC, scores(6), 2).sha256()
    )


def test_scores_follow_what_was_opened() -> None:
    chosen = Selection(np.array([1, 4], dtype=np.int64), SPEC)
    one = prune.next_score(None, chosen, np.array([-2.0, 0.5]))
    assert one[1] == 2
    assert one[4] == 0.5
    assert np.count_nonzero(one) == 2
    two = prune.next_score(one, chosen, np.array([0.0, 1.5]))
    assert two[1] == pytest.approx(2 * (1 - prune.SCORE_UPDATE))
    assert two[4] == pytest.approx(0.5 + prune.SCORE_UPDATE)
    elsewhere = Selection(np.array([9], dtype=np.int64), SPEC)
    three = prune.next_score(two, elsewhere, np.array([1.0]))
    assert three[1] == two[1]
    assert three[9] == 1


def test_a_selection_is_in_order_and_inside() -> None:
    for wrong in ([3, 1], [2, 2], [-1, 4], [SPEC.num_values]):
        with pytest.raises(ValueError, match="ascending"):
            Selection(np.array(wrong, dtype=np.int64), SPEC)
    parts = Selection(np.array([0, 119, 120, 321], dtype=np.int64), SPEC).parts()
    assert parts == [(0, slice(0, 2)), (1, slice(2, 3)), (2, slice(3, 4))]
