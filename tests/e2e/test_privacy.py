"""Whole runs with a privacy unit: what they say they have spent, and where they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import fedshield
from fakes import Notes
from fedshield.errors import PlanError
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.report.folder import read_run
from fedshield.report.html import render
from fedshield.run import local
from fedshield.run.events import Quiet
from fedshield.run.folder import RunFolder
from fedshield.run.prepare import prepare

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny.yaml"
SITE = {"unit": "site", "clip_norm": 0.5, "noise_multiplier": 2.0}
EXAMPLE = {"unit": "example", "clip_norm": 0.5, "noise_multiplier": 1.0}


def plan_of(privacy: dict[str, Any], rounds: int = 3, weights: str = "equal") -> Plan:
    raw = yaml.safe_load(TINY.read_text())
    raw |= {"rounds": rounds, "evaluation": {"prompts": []}, "privacy": privacy}
    raw["scheme"]["weights"] = weights
    raw["data"] |= {"heldout_rows": 4, "min_examples": 7}
    for number, site in enumerate(raw["data"]["sites"].values()):
        site["rows"] = 20 + 10 * number
    raw["training"] |= {"steps": 2, "batch_size": 4, "max_length": 64}
    return parse_plan(raw, base_dir=ROOT / "examples")


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_protects_rows_says_what_it_spent(tmp_path: Path) -> None:
    out = tmp_path / "run"
    plan = plan_of(EXAMPLE, weights="private")
    local.run(plan, out)
    found = summary_of(out)["privacy"]
    assert (found["unit"], found["delta"], found["uploads"]) == ("example", 1e-5, 3)
    # Each site has its own, by its rows; the largest is the run's.
    assert found["epsilon"] == max(found["sites"].values()) == found["sites"]["bank"]
    assert found["sites"]["school"] < found["epsilon"]
    rows = rows_of(out)
    for site, spent in found["sites"].items():
        by_round = [row["epsilon"] for row in rows if row["site"] == site]
        assert by_round == sorted(by_round)
        assert by_round[-1] == spent
    assert all(row["mean_train_loss"] is None for row in rows)
    card = (out / "adapter" / "README.md").read_text()
    assert f"epsilon {found['epsilon']:.4g} at delta 1e-05 for each example" in card
    assert "No differential privacy" not in card
    assert "held-out loss" not in card
    page = render(read_run(out))
    assert "used no differential privacy" not in page
    assert f"epsilon {found['epsilon']:.3g} at delta 1e-05, for each example" in page
    assert ">Epsilon</th>" in page


class Stop(Notes):
    """Ctrl-C in a round, while a site is at `method`."""

    def __init__(self, round_number: int, method: str) -> None:
        super().__init__()
        self.at = (round_number, method)

    def phase(self, round_number: int, phase: str, site: str) -> None:
        if (round_number, phase) == self.at:
            raise KeyboardInterrupt


def test_a_run_ends_at_its_budget_and_an_interrupted_round_is_paid_for_once(tmp_path: Path) -> None:
    """The limit is that of three rounds. One is interrupted after its uploads: what left is sent
    again as it was, and costs nothing more."""
    from fedshield.site.settings import privacy_terms

    _, _, host = prepare(plan_of(SITE), Quiet())
    free = privacy_terms(plan_of(SITE), host.spec, 20)
    assert free is not None
    plan = plan_of({**SITE, "max_epsilon": free.epsilon(3) + 1e-6}, rounds=4)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        local.run(plan, out, Stop(2, "announce"))
    watch = Stop(0, "")
    local.resume(out, watch)
    found = summary_of(out)
    assert (found["rounds"], found["rounds_planned"]) == (3, 4)
    assert found["privacy"]["uploads"] == 3
    assert found["privacy"]["epsilon"] == pytest.approx(free.epsilon(3))
    assert "before round 4: bank has spent epsilon" in found["ended_early"]
    assert any("the run ends here" in text for text in watch.notes)
    state = json.loads((out / "run.json").read_text())
    assert state["status"] == "finished"
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    spent = {row["round"]: row["epsilon"] for row in rows_of(out)}
    assert spent == pytest.approx({number: free.epsilon(number) for number in (1, 2, 3)})
    assert "It ended at its privacy budget" in render(read_run(out))


def test_a_run_that_only_has_to_be_finished_still_says_what_it_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last round's rows and before the state that knew of them."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(local, "finish", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            local.run(plan_of(SITE, rounds=1), out)
    folder = RunFolder.open(out)
    folder.write_state(folder.state() | {"privacy": None})
    local.resume(out)
    assert summary_of(out)["privacy"]["uploads"] == 1


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_target_that_cannot_be_met_makes_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(PlanError, match=r"privacy\.max_epsilon: expected at least"):
        local.run(plan_of({**SITE, "max_epsilon": 0.2}), out)
    assert not out.exists()


def test_the_plan_says_epsilon_before_a_run_and_seeds_reach_no_noise() -> None:
    sets = [f"--set=privacy.{key}={value}" for key, value in EXAMPLE.items()]
    done = fedshield("plan", TINY, *sets)
    assert done.code == 0, done.err
    line = next(one for one in done.out.splitlines() if one.startswith("privacy"))
    assert "of each example: epsilon" in line
    assert "after 4 rounds, noise multiplier 1" in line
    # There is nothing to set that would make noise repeat.
    for key in ("seed", "noise_seed"):
        with pytest.raises(PlanError, match="unknown key"):
            plan_of({**EXAMPLE, key: 1})


@pytest.mark.slow
def test_two_runs_of_one_plan_differ_by_their_noise(tmp_path: Path) -> None:
    for unit in (SITE, EXAMPLE):
        digests = set()
        for number in range(2):
            out = tmp_path / f"{unit['unit']}-{number}"
            local.run(plan_of(unit, rounds=1), out)
            digests.add(summary_of(out)["adapter_sha256"])
        assert len(digests) == 2
