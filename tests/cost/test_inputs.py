"""What would stop a run and can be known before it: all of it, in one pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedshield.cost import inputs, look_ahead, machine
from fedshield.model.builtin import tiny
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan

LENGTHS = (
    "rows are read without a tokenizer: a character a token and 20 tokens for the chat template "
    "are assumed"
)


def write_rows(path: Path, count: int) -> None:
    rows = [{"prompt": f"What is room {k}?", "response": f"It is {k}."} for k in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def plan_of(folder: Path, sources: dict[str, str], **changes: Any) -> Plan:
    raw = {
        "model": {"name": "tiny-llama"},
        "data": {
            "heldout_rows": 2,
            "sites": {name: {"source": source} for name, source in sources.items()},
        },
        "training": {"max_length": 64},
        "speed": {"device": "cpu"},
        **changes,
    }
    return parse_plan(raw, base_dir=folder)


def test_rows_and_lengths_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 12)
    known = inputs.look(plan_of(tmp_path, {"a": "a.jsonl", "b": "sample:finance", "c": "a.jsonl"}))
    assert (known.problems, known.notes) == ((), ())
    assert known.rows["a"] == known.rows["c"] == 10
    assert sorted(known.lengths)[0] == len("What is room 0?") + len("It is 0.")


def test_every_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 12)
    plan = plan_of(tmp_path, {"a": "a.jsonl", "b": "none.jsonl", "c": "other.csv"})
    assert inputs.look(plan).problems == (
        "data.sites.b.source: expected a data file, found none at none.jsonl; check the path",
        "data.sites.c.source: expected a data file, found none at other.csv; check the path",
    )
    there = inputs.look(plan, elsewhere=True)
    assert there.problems == ()
    assert there.notes == (
        "data.sites.b.source: none.jsonl is not here; the site checks its own",
        "data.sites.c.source: other.csv is not here; the site checks its own",
    )
    assert there.rows == {"a": 10, "b": None, "c": None}


def test_what_a_run_would_refuse_or_leave_out_is_told_before_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 12)
    with (tmp_path / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "Ward?", "response": "3", "nurse": "Ada"}\n{"prompt": "Bed?"}\n')

    def look(**data: str) -> inputs.Inputs:
        plan = plan_of(tmp_path, dict.fromkeys("abc", "a.jsonl"))
        data_plan = plan.data.model_copy(update=data)
        return inputs.look(plan.model_copy(update={"data": data_plan}).with_base_dir(tmp_path))

    refused = look()
    assert len(refused.problems) == 3
    assert refused.problems[0].startswith("a.jsonl:14: expected a response in one of ")
    assert refused.problems[0].endswith("; mend the row, or set data.on_bad_row: skip")
    skipped = look(on_bad_row="skip")
    assert skipped.problems == ()
    assert skipped.notes[0].startswith(
        "data.sites.a.source: bad rows left out (on_bad_row: skip): 1, the first a.jsonl:14: "
    )
    assert skipped.notes[1] == "data.sites.a.source: column `nurse` not used (1 row)"
    assert skipped.rows["a"] == 11
    unused = look(on_bad_row="skip", unused="refuse")
    assert unused.problems[0].startswith("a.jsonl:13: expected every column and key to be used")


def test_the_model_that_is_here_is_costed_from_its_own_config(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 20)
    plan = plan_of(
        tmp_path, dict.fromkeys("abc", "a.jsonl"), model={"name": "tiny-llama", "config": "no.json"}
    )
    outlook = look_ahead(plan)
    assert outlook.cost is not None
    assert outlook.problems == ()
    assert outlook.notes == (LENGTHS,)
    elsewhere = plan_of(
        tmp_path, dict.fromkeys("abc", "a.jsonl"), model={"name": "a/b", "config": "config.json"}
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **tiny.CONFIG}))
    assert look_ahead(elsewhere).notes == (
        LENGTHS.replace("a character", "4 characters"),
        "memory is not looked for: with model.config the model is elsewhere",
    )


def test_every_number_that_a_config_does_not_say_is_in_the_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "a.jsonl", 12)
    (tmp_path / "bloom").mkdir()
    config = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 70}
    (tmp_path / "bloom" / "config.json").write_text(json.dumps(config))
    sources = dict.fromkeys("abc", "a.jsonl") | {"b": "hub:a/b"}
    targets = {"targets": "all-linear", "dropout": 0.0}
    training = {"max_length": 64, "batch_size": 4}
    plan = plan_of(tmp_path, sources, model={"name": "./bloom"}, adapter=targets, training=training)
    outlook = look_ahead(plan)
    assert outlook.problems == ()
    assert outlook.notes == (
        "data.sites.b.source: hub:a/b is not looked for before a run",
        "./bloom: its config does not say all that memory and time depend on; assumed: "
        "intermediate_size 128 (4 times hidden_size), activations as in Llama's layers",
        "./bloom: its config does not say how long a text it reads; training.max_length, 64, is "
        "assumed to be short enough",
        LENGTHS.replace("a character", "4 characters")
        + "; rows that were not read are taken to be as long as those",
    )
    monkeypatch.setattr(machine, "memory", lambda: None)
    assert "memory is not looked for: this system does not say what is free" in (
        look_ahead(plan).notes
    )


def test_the_speed_that_a_rough_time_is_told_from_is_said(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 12)
    sources = dict.fromkeys("abc", "a.jsonl")
    for precision, words in (
        ("fp32", "at this machine's measured speed"),
        ("bf16", "measured speed in float32, assumed to be 2 times that in bfloat16"),
    ):
        training = {"max_length": 64, "precision": precision}
        cost = look_ahead(plan_of(tmp_path, sources, training=training)).cost
        assert cost is not None
        assert cost.time_basis.endswith(words)


def test_epsilon_is_told_for_the_rows_that_are_there(tmp_path: Path) -> None:
    """The plan's `rows` are the most that a site takes."""
    write_rows(tmp_path / "a.jsonl", 12)
    write_rows(tmp_path / "b.jsonl", 9)
    privacy = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 20.0}
    sites = {name: {"source": f"{name}.jsonl", "rows": 100} for name in "ab"}
    data = {"heldout_rows": 2, "sites": sites | {"c": {"source": "a.jsonl"}}}
    more = {"adapter": {"dropout": 0.0}, "rounds": 2, "scheme": {"name": "plain"}}
    outlook = look_ahead(plan_of(tmp_path, {}, data=data, privacy=privacy, **more))
    assert outlook.problems == ()
    cost = outlook.cost
    assert cost is not None
    assert cost.privacy is not None
    assert cost.privacy["rows"] == 7


def test_a_large_file_is_looked_for_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "a.jsonl", 12)
    monkeypatch.setattr(inputs, "LARGEST_READ", 10)
    known = inputs.look(plan_of(tmp_path, dict.fromkeys("abc", "a.jsonl")))
    assert known.problems == ()
    assert known.rows == dict.fromkeys("abc")
    assert known.notes[0] == "data.sites.a.source: a.jsonl is there and too large to be read " + (
        "before a run"
    )


@pytest.mark.parametrize(("small", "refused"), [(16, True), (3000, False)])
def test_bits_that_leave_a_small_site_no_steps_are_refused(
    tmp_path: Path, small: int, refused: bool
) -> None:
    """At 5 bits the largest digit of a sum is 15. The two large sites count for at most three times
    the least: a weight of 16 / 112 of 15 is two steps, a third is five."""
    plan = plan_of(tmp_path, dict.fromkeys("abc", "x"), encoding={"bits": 5})
    line = inputs.weight_problem(plan, {"a": 3000, "b": 3000, "c": small})
    assert (line is not None) == refused
    if line is not None:
        assert line.startswith("encoding.bits: c counts for 16 of 112 training rows; ")
        assert line.endswith("use more bits or headroom, or scheme.weights: equal")


def test_weights_that_do_not_count_rows_or_are_not_known_are_not_refused(tmp_path: Path) -> None:
    rows = {"a": 3000, "b": 3000, "c": 16}
    for scheme, bits in (
        ({"weights": "equal"}, {"bits": 5}),
        ({}, {"bits": 5, "headroom": True}),
        ({"name": "plain"}, {}),
    ):
        plan = plan_of(tmp_path, dict.fromkeys("abc", "x"), scheme=scheme, encoding=bits)
        assert inputs.weight_problem(plan, rows) is None
    plan = plan_of(tmp_path, dict.fromkeys("abc", "x"), encoding={"bits": 5})
    assert inputs.weight_problem(plan, {"a": 3000, "b": None, "c": 16}) is None


def test_too_few_rows_are_a_problem_and_rows_that_do_not_count_a_note(tmp_path: Path) -> None:
    """Rule R6, as far as it is known before rows are tokenised: a run can only have fewer."""
    plan = plan_of(tmp_path, dict.fromkeys("abc", "x"), training={"batch_size": 20})
    rows = {"a": 3000, "b": None, "c": 19}
    (problem,) = inputs.floor_problems(plan, rows)
    assert problem.startswith("data.min_examples: expected at least 20 rows with loss at c, got 19")
    (note,) = inputs.cap_notes(plan, rows)
    assert note.startswith("a: 3,000 rows to train on count as 60 (rule R6: at least 20 rows at")
    assert inputs.floor_problems(plan, {"a": 20, "b": 60}) == []
    assert inputs.cap_notes(plan, {"a": 20, "b": 60}) == []


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 3000)
    write_rows(tmp_path / "c.jsonl", 8)
    plan = plan_of(
        tmp_path,
        {"a": "a.jsonl", "b": "a.jsonl", "c": "c.jsonl", "d": "none.jsonl"},
        training={"max_length": 1025},
        encoding={"bits": 6},
    )
    outlook = look_ahead(plan)
    assert [problem.partition(":")[0] for problem in outlook.problems] == [
        "data.sites.d.source",
        "data.min_examples",
        "training.max_length",
    ]
    assert outlook.cost is not None
    sites = dict(list(plan.data.sites.items())[:3])
    data = plan.data.model_copy(update={"sites": sites})
    three = plan.model_copy(update={"data": data}).with_base_dir(tmp_path)
    assert [problem.partition(":")[0] for problem in look_ahead(three).problems] == [
        "data.min_examples",
        "training.max_length",
        "encoding.bits",
    ]


def test_a_model_that_is_not_there_is_one_of_the_problems(tmp_path: Path) -> None:
    sources = dict.fromkeys("ab", "none.jsonl")
    plan = plan_of(tmp_path, sources, model={"name": "./none"}, scheme={"name": "plain"})
    outlook = look_ahead(plan)
    assert outlook.cost is None
    assert [problem.partition(":")[0] for problem in outlook.problems] == [
        "data.sites.a.source",
        "data.sites.b.source",
        "model.name ./none",
    ]
