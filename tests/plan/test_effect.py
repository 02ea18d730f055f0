"""A key that changes nothing beside the others is named, and no key that changes something is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshield.plan.effect import without_effect, without_effect_at_sites, without_effect_in_process
from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan

MakePlan = Callable[..., Plan]
IDLE = [
    ({"training.proximal": 0.5}, "training.proximal"),
    ({"training.lr_schedule": "constant"}, "training.min_learning_rate"),
    ({"aggregation.momentum": 0.5}, "aggregation.momentum"),
    ({"aggregation.optimizer": "fedadagrad", "aggregation.momentum": 0.5}, "aggregation.momentum"),
    ({"aggregation.second_momentum": 0.5}, "aggregation.second_momentum"),
    ({"aggregation.epsilon": 0.5}, "aggregation.epsilon"),
    ({"pruning.method": "none", "pruning.target_rate": 0.9}, "pruning.target_rate"),
    ({"pruning.method": "none", "pruning.start_round": 2}, "pruning.start_round"),
    ({"pruning.mask": "local", "pruning.explore": 0.5}, "pruning.explore"),
    ({"encoding.grid_bits": 20}, "encoding.grid_bits"),
    ({"encoding.bits": 8}, "encoding.bits"),
    ({"encoding.headroom": True}, "encoding.headroom"),
    ({"evaluation.max_new_tokens": 7}, "evaluation.max_new_tokens"),
    ({"pruning.method": "none", "encoding.error_feedback": False}, "encoding.error_feedback"),
    ({"data.dirichlet_alpha": 0.1}, "data.dirichlet_alpha"),
    ({"model.revision": "main"}, "model.revision"),
    ({"data.sites.bank.split": "test"}, "data.sites.bank.split"),
    ({"model.config": "config.json"}, "model.config"),
]
IN_FORCE: list[dict[str, Any]] = [
    {"training.proximal": 0.5, "training.local_algorithm": "fedprox"},
    {"aggregation.optimizer": "fedavgm", "aggregation.momentum": 0.5},
    {"aggregation.optimizer": "fedyogi", "aggregation.second_momentum": 0.5},
    {"aggregation.optimizer": "fedadagrad", "aggregation.epsilon": 0.5},
    {"pruning.explore": 0.5, "pruning.start_round": 2},
    {"pruning.mask": "local", "pruning.target_rate": 0.9},
    {"scheme.name": "ckks", "encoding.grid_bits": 20},
    {
        "scheme.name": "rlwe",
        "scheme.max_colluding": 0,
        "encoding.bits": 8,
        "encoding.headroom": True,
    },
    {"evaluation.prompts": ["What is a fever?"], "evaluation.max_new_tokens": 7},
    {"data.sites.bank.source": "hub:some/set", "data.sites.bank.split": "test"},
]


@pytest.mark.parametrize(("changes", "key"), IDLE, ids=[key for _, key in IDLE])
def test_a_key_that_changes_nothing_is_named(
    make_plan: MakePlan, changes: dict[str, Any], key: str
) -> None:
    sentences = without_effect(make_plan(changes))
    assert any(sentence.startswith(f"{key} has no effect: ") for sentence in sentences), sentences


@pytest.mark.parametrize("changes", IN_FORCE, ids=[",".join(changes) for changes in IN_FORCE])
def test_a_key_that_changes_something_is_not(make_plan: MakePlan, changes: dict[str, Any]) -> None:
    assert without_effect(make_plan(changes)) == []


def test_defaults_are_not_named(make_plan: MakePlan) -> None:
    assert without_effect(make_plan()) == []


def test_rows_held_out_that_each_site_says_itself(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "data: {heldout_rows: 9, sites: {a: {source: 'sample:medical', heldout_rows: 3}}}\n"
        "scheme: {name: plain}\n"
    )
    assert load_plan(path)[1] == [
        "data.heldout_rows has no effect: each site has heldout_rows of its own"
    ]
    assert load_plan(path, ["data.sites.a.heldout_rows="])[1] == []


def test_the_reader_of_a_plan_is_told(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "data: {sites: {a: {source: 'sample:medical'}, b: {source: 'sample:finance'}}}\n"
        "training: {proximal: 0.5}\nscheme: {max_colluding: 0}\n"
    )
    _, notes = load_plan(path, ["aggregation.momentum=0.3"])
    assert [note.partition(" has no effect: ")[0] for note in notes] == [
        "training.proximal",
        "aggregation.momentum",
    ]


def test_what_each_sites_policy_says_is_named_to_the_submitter(make_plan: MakePlan) -> None:
    assert without_effect_at_sites(make_plan({"speed.device": "auto"})) == []
    plan = make_plan(
        {
            "speed.device": "cuda",
            "model.name": "a/b",
            "model.revision": "main",
            "data.sites.bank.heldout_source": "held.jsonl",
        }
    )
    assert [
        line.partition(" has no effect at the ")[0] for line in without_effect_at_sites(plan)
    ] == [
        "speed.device",
        "model.revision",
        "data.sites.bank.heldout_source",
    ]


def test_deadlines_in_one_process_are_named(make_plan: MakePlan) -> None:
    assert without_effect_in_process(make_plan()) == []
    (line,) = without_effect_in_process(make_plan({"speed.work_deadline_s": 60}))
    assert line.startswith("speed.work_deadline_s has no effect: all sites are in one process")
