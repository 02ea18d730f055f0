"""`fedshield plan` as typed: what comes first, what is under --details, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedshield.cli.commands import app
from fedshield.cli.model import export
from fedshield.cost import machine
from fedshield.errors import UserError


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    raw = {
        "name": "typed",
        "rounds": 2,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 2, "alpha": 4, "dropout": 0.0},
        "data": {
            "heldout_rows": 2,
            "sites": {name: {"source": "sample:finance", "rows": 6} for name in ("a", "b", "c")},
        },
        "training": {"steps": 1, "batch_size": 2, "max_length": 96, "precision": "fp32"},
        "speed": {"device": "cpu"},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(raw))
    return path


def typed(*words: Any) -> Any:
    return CliRunner().invoke(app, ["plan", *map(str, words)])


def test_a_persons_lines_come_first_and_the_rest_is_under_details(plan_file: Path) -> None:
    said = typed(plan_file)
    assert said.exit_code == 0, said.output
    labels = [line[:24].strip() for line in said.stdout.splitlines()]
    assert labels[:7] == [
        "plan",
        "time, about",
        "",
        "memory, about",
        "bytes",
        "scheme",
        "who may open",
    ]
    assert "rough: counted operations" in said.stdout
    assert "plan hash" not in said.stdout
    more = typed(plan_file, "--details")
    for words in ("plan hash", "trainable values", "2 bit", "up in total"):
        assert words in more.stdout


def test_a_plan_that_protects_nothing_says_who_may_open(plan_file: Path) -> None:
    said = typed(plan_file, "--set", "scheme.name=plain")
    assert "anyone: NO protection, the coordinator reads every update" in said.stdout


def test_everything_that_would_stop_the_run_is_a_line_and_the_status_is_2(plan_file: Path) -> None:
    said = typed(
        plan_file,
        *("--set", "data.sites.b.source=wards.jsonl"),
        *("--set", "training.max_length=2000"),
    )
    assert said.exit_code == 2
    assert [line for line in said.stderr.splitlines() if line.startswith("fedshield: ")] == [
        "fedshield: data.sites.b.source: expected a data file, found none at wards.jsonl; check "
        "the path",
        "fedshield: training.max_length: expected at most what tiny-llama reads (1024 tokens), got "
        "2000; lower it",
    ]
    assert "memory, about" in said.stdout  # the cost is told all the same
    told = typed(plan_file, "--json", "--set", "data.sites.b.source=wards.jsonl")
    assert told.exit_code == 2
    assert json.loads(told.stdout)["problems"] == [
        "data.sites.b.source: expected a data file, found none at wards.jsonl; check the path"
    ]


def test_what_was_assumed_is_told_in_every_form(plan_file: Path, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    model = ("--set", "model.name=./small", "--set", "adapter.targets=all-linear")
    note = (
        "./small: its config does not say all that memory and time depend on; assumed: "
        "intermediate_size 128 (4 times hidden_size), activations as in Llama's layers"
    )
    for words in ((), ("--details",)):
        said = typed(plan_file, *model, *words)
        assert said.exit_code == 0, said.output
        assert f"note: {note}" in said.stderr.splitlines()
    told = json.loads(typed(plan_file, *model, "--json").stdout)
    assert note in told["notes"]


def test_at_a_submitter_files_are_the_sites(plan_file: Path) -> None:
    said = typed(plan_file, "--elsewhere", "--set", "data.sites.b.source=wards.jsonl")
    assert said.exit_code == 0, said.output
    assert "note: data.sites.b.source: wards.jsonl is not here; the site checks its own" in (
        said.stderr
    )


def test_a_run_that_does_not_fit_is_refused_with_the_batch_that_does(
    plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(10**9, 10**9, "this test"))
    assert typed(plan_file).exit_code == 0
    large = ("--set", "training.batch_size=100000", "--set", "data.min_examples=1")
    said = typed(plan_file, *large)
    assert said.exit_code == 2
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("fedshield: ")]
    assert line.startswith(
        "fedshield: training.batch_size: expected a run that fits into 1.0 GB (this test)"
    )
    assert "with training.gradient_accumulation: " in line
    assert typed(plan_file, *large, "--elsewhere").exit_code == 0
    assert typed(plan_file, *large, "--set", "speed.memory_check=false").exit_code == 0


def test_two_sources_of_the_time_are_refused(plan_file: Path, tmp_path: Path) -> None:
    for words in (("--measure", "--like", tmp_path), ("--measure", "--elsewhere")):
        said = typed(plan_file, *words)
        assert said.exit_code != 0
        assert "--measure" in str(said.exception)
    said = typed(plan_file, "--like", tmp_path / "none")
    assert "none" in said.stderr
    assert said.exit_code == 2


def test_the_time_of_a_shortened_run_and_of_an_earlier_one(plan_file: Path, tmp_path: Path) -> None:
    """Both say where it comes from; the trial leaves no folder behind."""
    said = typed(plan_file, "--measure", "--json")
    assert said.exit_code == 0, said.output
    measured = json.loads(said.stdout)
    assert measured["time_basis"].startswith("measured here just now")
    assert measured["estimated_s"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml"]
    done = CliRunner().invoke(app, ["run", str(plan_file), "--out", str(tmp_path / "done")])
    assert done.exit_code == 0, done.output
    like = json.loads(typed(plan_file, "--like", tmp_path / "done", "--json").stdout)
    assert like["time_basis"] == "as in the run done, carried over to this plan"
    state = json.loads((tmp_path / "done" / "run.json").read_text())
    took = state["prepare_s"] + state["wall_s"]
    # The libraries are loaded already: their seconds are the only ones that it adds.
    assert took < like["estimated_s"] < took + 10
    twice = ("--set", "training.steps=50")
    assert (
        json.loads(typed(plan_file, "--like", tmp_path / "done", *twice, "--json").stdout)[
            "estimated_s"
        ]
        > (like["estimated_s"])
    )


def test_ways_to_train_that_have_no_row_are_named(plan_file: Path) -> None:
    words = [str(plan_file), "--details", "--set"]
    assert "Not with this plan's" not in typed(*words, "adapter.rank=2").stdout
    too_large = typed(*words, "adapter.rank=512").stdout
    assert "Not with this plan's targets, rank and sites: core." in too_large


def test_a_model_for_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model is where a merge finds the base model"):
        export(tmp_path, adapter=tmp_path / "adapter", model="elsewhere")
