"""A whole run of six sites in two batches: one sits out for a round, and is back after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedshield.errors import RoundFailed
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.log.verify import cross_check, read_chain
from fedshield.run import local
from fedshield.run.log_file import read_known_keys
from fedshield.site.train import LocalTrainer

TINY = Path(__file__).parents[2] / "examples" / "tiny.yaml"
#: By name, as a demonstration's roster cuts them.
FIRST, SECOND = ["bank", "clinic", "hospital"], ["lab", "school", "ward"]


@pytest.fixture
def plan() -> Plan:
    raw: dict[str, Any] = yaml.safe_load(TINY.read_text())
    raw |= {"rounds": 3, "evaluation": {"prompts": []}}
    raw["data"] |= {"heldout_rows": 4, "min_examples": 4}
    sources = ("medical", "maths", "code", "finance", "medical", "maths")
    raw["data"]["sites"] = {
        name: {"source": f"sample:{source}", "rows": 24}
        for name, source in zip([*FIRST, *SECOND], sources, strict=True)
    }
    raw["training"] |= {"steps": 1, "batch_size": 4, "max_length": 64}
    raw["scheme"] |= {"membership": "batches"}
    found = parse_plan(raw, base_dir=TINY.parent)
    rules = found.rules()
    assert (rules.threshold, rules.votes, rules.min_cohort) == (2, 3, 3)
    return found


def rows_of(out: Path, number: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["round"] == number]


def test_a_batch_sits_out_for_a_round_and_comes_back(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 2 a site of one batch cannot train, in round 3 one of the other: then no whole batch
    is left. After a resume all are there, and those of the first have the model of round 2."""
    out = tmp_path / "run"
    train = LocalTrainer.train

    def failing(self: LocalTrainer, state: Any, number: int, *more: Any) -> Any:
        if (self._site, number) in {("school", 2), ("clinic", 3)}:
            raise OSError("the disk is gone")
        return train(self, state, number, *more)

    with monkeypatch.context() as broken:
        broken.setattr(LocalTrainer, "train", failing)
        with pytest.raises(RoundFailed, match="train: no answer from clinic"):
            local.run(plan, out)
    lost = json.loads((out / "run.json").read_text())["lost_sites"]
    assert (
        lost["lab"]
        == "round 2, invite: its batch (lab, school, ward) sits out until school is back"
    )
    assert lost["school"].startswith("round 2, train: internal")
    assert [row["site"] for row in rows_of(out, 2)] == FIRST

    local.resume(out)
    everyone = [*FIRST, *SECOND]
    for number, sites in ((1, everyone), (2, FIRST), (3, everyone)):
        rows = rows_of(out, number)
        assert [row["site"] for row in rows] == sites
        assert all(row["contributors"] == sites for row in rows)
        assert len({row["adapter_sha256"] for row in rows}) == 1
    report, card = (out / "report.html").read_text(), (out / "adapter" / "README.md").read_text()
    assert "round 2 is without it" in report
    assert "which batch was away" in report
    assert "which batch was away" in card
    known = read_known_keys(out / "rosters.json")
    logs = sorted(out.rglob("*audit.jsonl"))
    chains = [read_chain(path.name, path.read_bytes(), known) for path in logs]
    assert len(chains) == 7
    assert not [problem for chain in chains for problem in chain.problems]
    assert cross_check(chains) == ()
