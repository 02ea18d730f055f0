"""Public rows: of every built-in sample, drawn by the seed, tokenised like training rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken

from fedshield.data.public import ROWS_OF_EACH, public_rows
from fedshield.data.rows import read
from fedshield.data.samples import SAMPLES
from fedshield.errors import DataError
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens, use_template
from fedshield.plan.data import SourcePlan
from fedshield.plan.schema import Plan

MakePlan = Callable[..., Plan]


def rows_of(plan: Plan, tokenizer: Any) -> tuple[Tokens, ...]:
    return public_rows(tokenizer, plan.seed, plan.training.max_length)


def questions(plan: Plan, name: str) -> set[str]:
    source = f"sample:{name}"
    settings = SourcePlan(source=source)
    rows = read(plan.base_dir, source, settings, key="x", on_bad_row="refuse").rows
    return {row.turns[0].content for row in rows}


def test_so_many_rows_of_each_sample(make_plan: MakePlan) -> None:
    plan, tokenizer = make_plan({}), tiny.tokenizer()
    rows = rows_of(plan, tokenizer)
    start, end = "<|im_start|>user\n", "<|im_end|>"
    texts = [tokenizer.decode(row.input_ids) for row in rows]
    assert all(text.startswith(start) for text in texts)
    drawn = {text.removeprefix(start).partition(end)[0] for text in texts}
    assert len(drawn) == len(rows) == 4 * ROWS_OF_EACH
    for name in SAMPLES:
        assert len(drawn & questions(plan, name)) == ROWS_OF_EACH
    assert all(row.num_response for row in rows)
    assert max(len(row.input_ids) for row in rows) == plan.training.max_length == 96


def test_the_seed_and_nothing_else_draws_them(make_plan: MakePlan) -> None:
    tokenizer = tiny.tokenizer()
    rows = rows_of(make_plan({}), tokenizer)
    other = {"rounds": 9, "data.sites": {"x": {"source": "nowhere.jsonl"}}}
    assert rows_of(make_plan(other), tokenizer) == rows
    again = rows_of(make_plan({"seed": 8}), tokenizer)
    assert len({row.input_ids for row in (*rows, *again)}) > 1.8 * len(rows)


def test_the_settled_template_and_length_are_those_of_training(make_plan: MakePlan) -> None:
    tokenizer = tiny.tokenizer()
    use_template(tokenizer, "fallback")
    plan = make_plan({"training.max_length": 200})
    rows = rows_of(plan, tokenizer)
    assert all(tokenizer.decode(row.input_ids).startswith("User: ") for row in rows)
    assert 96 < max(len(row.input_ids) for row in rows) <= 200


def test_rows_with_a_control_token_are_passed_over(make_plan: MakePlan) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("the", special=True)]})
    mark = tokenizer.convert_tokens_to_ids("the")
    rows = rows_of(make_plan({}), tokenizer)
    assert len(rows) == 4 * ROWS_OF_EACH
    assert all(mark not in row.input_ids for row in rows)


def test_no_answer_within_the_length_is_said(make_plan: MakePlan) -> None:
    with pytest.raises(DataError, match=r"max_length 8 for adapter\.factors gradient, got none"):
        rows_of(make_plan({"training.max_length": 8}), tiny.tokenizer())
