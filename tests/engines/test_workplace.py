"""What a run begins with, and what its reader is told of it."""

from __future__ import annotations

from collections.abc import Callable

from fedshield.engines.events import Quiet
from fedshield.engines.workplace import prepare, run_notes
from fedshield.plan import Plan


def test_a_template_that_is_not_the_tokenizers_is_in_the_runs_notes(
    make_plan: Callable[..., Plan],
) -> None:
    base, data, host = prepare(make_plan({"model.chat_template": "fallback"}), Quiet())
    told = [note for note in run_notes(base, data, host) if "chat template" in note]
    assert told == [
        "the tokenizer's chat template is not used (asked for by the plan): User: and Assistant: "
        "lines are"
    ]
