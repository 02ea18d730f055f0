"""What a run begins with, and what its reader is told of it."""

from __future__ import annotations

from collections.abc import Callable

from fedshield.data.sites import SiteData
from fedshield.model.chat import Tokens
from fedshield.plan.schema import Plan
from fedshield.run.events import Quiet
from fedshield.run.prepare import cap_notes, prepare, run_notes


def data_of(rows: int) -> SiteData:
    row = Tokens((1,), (1,), 0)
    return SiteData("x", (row,) * rows, (row,), 0, "", 0, 0, 0, 0, (), bytes(32))


def test_rows_that_do_not_count_are_told(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan({"data.min_examples": 5})
    data = {"bank": data_of(9), "clinic": data_of(5)}
    assert cap_notes(plan, data, None) == cap_notes(plan, data, 9) == []
    assert cap_notes(plan, data, 5) == [
        "bank: 9 rows to train on count as 5 (the roster's max_examples)"
    ]
    assert cap_notes(make_plan({"scheme.weights": "equal"}), data, 5) == []


def test_a_template_that_is_not_the_tokenizers_is_in_the_runs_notes(
    make_plan: Callable[..., Plan],
) -> None:
    base, data, host = prepare(make_plan({"model.chat_template": "fallback"}), Quiet())
    told = [note for note in run_notes(base, data, host) if "chat template" in note]
    assert told == [
        "the tokenizer's chat template is not used (asked for by the plan): User: and Assistant: "
        "lines are"
    ]
