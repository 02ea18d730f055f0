"""The table of other choices: each row is what `estimate` says of the plan that takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedshield.cli.commands import app
from fedshield.cost import estimate
from fedshield.cost.alternatives import BITS, TRAIN, choices
from fedshield.model.base import empty_model
from fedshield.plan.load import load_plan, parse_plan
from fedshield.plan.schema import Plan
from fedshield.update.paper_baseline import DEFINITION, RANK, paper_bytes, paper_values

EXAMPLES = Path(__file__).parents[2] / "examples"


def raw(**changes: Any) -> dict[str, Any]:
    """Four sites of unequal size, five rounds, masks from the first."""
    return {
        "name": "choices",
        "rounds": 5,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 4, "alpha": 8, "targets": "all-linear"},
        "data": {
            "heldout_rows": 2,
            "min_examples": 1,
            "sites": {
                name: {"source": "sample:finance", "rows": 6} for name in ("a", "b", "c", "dd")
            },
        },
        "pruning": {"initial_rate": 0.3, "target_rate": 0.9, "start_round": 1},
        **changes,
    }


@pytest.mark.parametrize("name", ["rlwe", "ckks", "plain"])
def test_every_row_is_the_plan_that_takes_it(tmp_path: Path, name: str) -> None:
    given = raw(scheme={"name": name})
    found = list(choices(parse_plan(given, base_dir=tmp_path)))
    assert [(one.train, one.bits) for one in found] == [(t, b) for t in TRAIN for b in BITS]
    for one in found:
        taken = raw(
            adapter=given["adapter"] | {"train": one.train},
            encoding={"bits": one.bits, "headroom": one.headroom},
        )
        cost = estimate(parse_plan(taken, base_dir=tmp_path))
        assert one.headroom == (one.bits < 8)
        assert one.values == cost.exchanged_values[-1]
        mean = sum(cost.upload_bytes_per_site_round) / cost.rounds
        assert one.upload_bytes == pytest.approx(mean, abs=1)


def paper_of(plan: Plan) -> int | None:
    return paper_bytes(paper_values(empty_model(plan.model, plan.base_dir)))


def test_the_reference_is_of_the_model_alone(tmp_path: Path) -> None:
    """Rank, targets and what is trained do not move it; an adapter on the model neither; a model
    without q_proj and v_proj has none."""
    import torch

    from fedshield.model.adapter import attach

    plans = [
        parse_plan(raw(adapter=adapter), base_dir=tmp_path)
        for adapter in (
            {"rank": 4, "alpha": 8, "targets": ["q_proj"]},
            {"rank": 16, "alpha": 8, "targets": "all-linear", "train": "core"},
        )
    ]
    model = empty_model(plans[0].model, plans[0].base_dir)
    sizes = [
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(("q_proj", "v_proj"))
    ]
    assert len(sizes) == 2 * model.config.num_hidden_layers
    assert paper_values(model) == RANK * sum(sizes)
    assert {paper_of(plan) for plan in plans} == {paper_bytes(RANK * sum(sizes))}
    assert paper_values(attach(model, plans[1].adapter)[0]) == RANK * sum(sizes)
    assert paper_values(torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 3)})) is None
    assert paper_bytes(None) is None


def test_the_papers_own_bytes() -> None:
    """Llama-2-7B at rank 32: 16,777,216 values in 4,096 ciphertexts of 331,400 bytes."""
    plan, _ = load_plan(EXAMPLES / "paper.yaml")
    assert paper_values(empty_model(plan.model, plan.base_dir)) == 16_777_216
    assert paper_of(plan) == 4096 * 331_400
    core = [one for one in choices(plan) if (one.train, one.bits) == ("core", 4)]
    assert core[0].of_paper == pytest.approx(4096 * 331_400 / core[0].upload_bytes, rel=1e-3)
    assert core[0].of_paper > 1000


def test_the_quickstart_sends_less_than_a_thousandth_of_the_papers_bytes() -> None:
    """All that its sites send, set-up included, against the ciphertexts alone of the paper's
    adapter in the paper's set."""
    plan, _ = load_plan(EXAMPLES / "quickstart.yaml", ["speed.device=cpu"])
    paper = paper_of(plan)
    values = 30 * 32 * ((576 + 576) + (576 + 192))
    assert paper is not None
    assert paper / values == pytest.approx(81.2, rel=0.01)
    assert estimate(plan).total_upload_bytes * 1000 < paper * 3 * plan.rounds


def test_what_cannot_be_has_no_row(tmp_path: Path) -> None:
    """`core` at a rank above a layer's size; few bits shared by many sites."""
    given = raw(adapter={"rank": 48, "alpha": 8, "targets": "all-linear"})
    found = list(choices(parse_plan(given, base_dir=tmp_path)))
    assert {one.train for one in found} == set(TRAIN) - {"core"}
    names = {f"s{at}": {"source": "sample:finance", "rows": 6} for at in range(40)}
    many = parse_plan(raw(data={"heldout_rows": 2, "sites": names}), base_dir=tmp_path)
    assert 8 not in {one.bits for one in choices(many)}


def test_the_command_prints_them(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(raw()))
    said = CliRunner().invoke(app, ["plan", str(path), "--details"])
    assert said.exit_code == 0, said.output
    assert all(train in said.output for train in TRAIN)
    assert "2 bit" in said.output
    assert DEFINITION in said.output
    told = json.loads(CliRunner().invoke(app, ["plan", str(path), "--json"]).output)
    assert len(told["choices"]) == len(TRAIN) * len(BITS)
    assert set(told["choices"][0]) == {
        "train", "bits", "headroom", "values", "upload_bytes", "of_paper",
    }  # fmt: skip
