"""What a trial shortens, and what it leaves as it is in the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedshield.errors import RunFolderError
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.run import trial


def plan_of(**changes: Any) -> Plan:
    raw = {
        "rounds": 30,
        "model": {"name": "tiny-llama"},
        "data": {
            "heldout_rows": 50,
            "sites": {
                "a": {"source": "sample:finance"},
                "b": {"source": "sample:finance", "heldout_rows": 3},
                "c": {"source": "sample:finance", "heldout_rows": 90},
            },
        },
        "training": {"steps": 12},
        "pruning": {"start_round": 5, "target_round": 20},
        "evaluation": {"prompts": ["Why?", "Where?"]},
        **changes,
    }
    return parse_plan(raw, base_dir=Path("plans"))


def test_a_trial_is_the_same_work_and_less_of_it() -> None:
    plan = plan_of()
    short = trial.shortened(plan)
    assert (short.rounds, short.training.steps, len(short.evaluation.prompts)) == (1, 3, 1)
    assert short.data.heldout_rows == 8
    assert [source.heldout_rows for source in short.data.sites.values()] == [None, 3, 8]
    assert short.base_dir == plan.base_dir
    for section in ("model", "adapter", "scheme", "encoding", "privacy", "speed", "aggregation"):
        assert getattr(short, section) == getattr(plan, section)
    # It is a plan that could be typed.
    Plan.model_validate(short.model_dump())


def test_a_plan_that_is_shorter_already_stays_so() -> None:
    plan = plan_of(rounds=1, training={"steps": 1}, pruning={}, evaluation={})
    short = trial.shortened(plan)
    assert (short.training.steps, short.evaluation.prompts) == (1, ())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"status": "interrupted", "sessions": 1, "prepare_s": 1.0}, "got one that is interrupted"),
        ({"status": "finished", "engine": "flare", "sessions": 1}, r"finished \(flare\)"),
        ({"status": "finished", "sessions": 2, "prepare_s": 1.0}, "2 sessions"),
        ({"status": "finished", "sessions": 1}, "an older one"),
    ],
    ids=str,
)
def test_a_run_that_does_not_say_its_pace_is_refused(
    tmp_path: Path, state: dict[str, Any], words: str
) -> None:
    plan = plan_of()
    (tmp_path / "plan.yaml").write_text(plan.to_yaml())
    (tmp_path / "run.json").write_text(json.dumps({"plan_sha256": plan.sha256()} | state))
    with pytest.raises(RunFolderError, match=rf"^--like .*{words}.*; give another, or --measure$"):
        trial.like(plan, tmp_path, lambda _: pytest.fail("not asked for"))
