"""The card beside an adapter says what made it, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from fedshield.plan.schema import Plan
from fedshield.report.card import model_card, protection

MakePlan = Callable[..., Plan]


def summary_of(plan: Plan) -> dict[str, Any]:
    sites = plan.data.site_names()
    return {
        "model": {
            "name": plan.model.name,
            "sha256": "5a" * 32,
            "note": "random weights, for tests",
        },
        "rounds": 3,
        "rounds_planned": 4,
        "sites": list(sites),
        "adapter": {"targets": list(plan.adapter.targets)},
        "versions": {"fedshield": "9.8.7"},
        "adapter_sha256": "6b" * 32,
        "plan_sha256": plan.sha256(),
        "initial_heldout_loss": {"sites": {"bank": 5.1234, "hospital": 5.5}, "mean": 5.3},
        "final_heldout_loss": {"sites": {"bank": 3.25, "hospital": None}, "mean": None},
        "data": {
            "bank": {"source": "sample:finance", "train_rows": 16},
            "hospital": {"source": "notes/2024.jsonl", "train_rows": 1234},
        },
    }


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_the_card_tells_data_rounds_protection_and_hashes(make_plan: MakePlan, scheme: str) -> None:
    plan = make_plan({"name": "ward-7", "scheme.name": scheme, "adapter.alpha": 7.5})
    card = model_card(plan, summary_of(plan))
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": "tiny-llama",
        "library_name": "peft",
        "tags": ["lora", "federated-learning", "fedshield"],
    }
    for said in (
        "# ward-7",
        "rank 4, alpha 7.5, on q_proj, v_proj",
        "for tiny-llama (random weights, for tests), made by 2 sites with FedShield 9.8.7",
        "Rounds: 3 of 4, 3 local steps each",
        protection(plan),
        "This adapter itself is not protected",
        "No differential privacy was used",
        "5a" * 32,
        "6b" * 32,
        plan.sha256(),
        "| bank | sample:finance | 16 | 5.1234 | 3.2500 |",
        "| hospital | notes/2024.jsonl | 1234 | 5.5000 | not measured |",
    ):
        assert said in text


def test_protection_is_told_with_its_limit(make_plan: MakePlan) -> None:
    plain = protection(make_plan())
    assert plain.startswith("none")
    assert "could read every site's update" in plain
    for name in ("lean", "paper"):
        ckks = protection(make_plan({"scheme": {"name": "ckks", "parameters": name}}))
        assert f"CKKS ({name} set)" in ckks
        assert "any one site together with it could" in ckks


def test_the_card_tells_how_the_run_went_and_whose_figures_it_has(make_plan: MakePlan) -> None:
    plan = make_plan({"scheme.name": "ckks"})
    summary = summary_of(plan) | {
        "parties": "apart",
        "figures_of": "bank",
        "resumed": 2,
        "absent": {"hospital": [2]},
        "notes": ["bank: column `year` not used (16 rows)"],
    }
    del summary["data"]["hospital"]
    card = model_card(plan, summary)
    for said in (
        "Each party ran from a kit of its own",
        "this site's own (bank)",
        "hospital: the sum of round 2 is without it; why is not told to this site.",
        "The run was resumed 2 times.",
        "## Notes",
        "- bank: column `year` not used (16 rows)",
        "| bank | sample:finance | 16 |",
    ):
        assert said in card
    for never in ("| hospital", "one machine", "demonstration"):
        assert never not in card
    demonstration = model_card(plan, summary_of(plan) | {"parties": "demonstration"})
    assert "all parties were simulated on one machine" in demonstration


def test_a_folder_on_one_machine_is_named_by_its_last_part(make_plan: MakePlan) -> None:
    plan = make_plan({"model.name": "/srv/models/seven-b"})
    summary = summary_of(plan)
    summary["model"]["name"] = "seven-b"  # as the summary has it
    card = model_card(plan, summary)
    assert "/srv" not in card
    assert yaml.safe_load(card.split("---\n", 2)[1])["base_model"] == "seven-b"


@pytest.mark.parametrize(
    ("changes", "said", "never"),
    [
        ({"max_colluding": 0}, "the coordinator alone learns no single update", "up to 0 sites"),
        ({"open_to": "server"}, "opens each sum to the coordinator as well", "up to 0 sites"),
    ],
)
def test_protection_by_rlwe_is_told_with_the_plans_own_numbers(
    make_plan: MakePlan, changes: dict[str, object], said: str, never: str
) -> None:
    sites = {name: {"source": "sample:finance", "rows": 16} for name in ("a", "b", "c")}
    plan = make_plan({"scheme": {"name": "rlwe", **changes}, "data.sites": sites})
    assert said in protection(plan)
    assert never not in protection(plan)


def test_the_card_names_who_is_exposed(make_plan: MakePlan) -> None:
    plan = make_plan({"scheme.name": "ckks"})
    assert "exposed" not in model_card(plan, summary_of(plan))
    card = model_card(plan, summary_of(plan) | {"exposed": ["west"], "exposed_noised": ["east"]})
    assert "west: exposed. This roster follows one with other sites" in card
    assert "each site's update of each round can be computed by whoever holds the sums" in card
    assert "east: the site's update, with the noise that protects each training row" in card
