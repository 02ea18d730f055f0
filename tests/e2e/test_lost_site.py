"""Whole runs of four sites that lose one or two on the way: with membership open a sum needs three,
with membership fixed it waits for all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedshield import cli
from fedshield.errors import RoundFailed
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.participant import Participant
from fedshield.run import local
from fedshield.run.reopen import open_finished
from fedshield.site.train import LocalTrainer

TINY = Path(__file__).parents[2] / "examples" / "tiny.yaml"
FOUR = ["bank", "hospital", "lab", "school"]
LEFT = ["bank", "hospital", "school"]


def four_sites() -> dict[str, Any]:
    """The tiny example, smaller still, and a fourth site: every sum is over all."""
    raw: dict[str, Any] = yaml.safe_load(TINY.read_text())
    raw |= {"rounds": 3, "evaluation": {"prompts": []}}
    raw["data"] |= {"heldout_rows": 6, "min_examples": 14}
    raw["data"]["sites"]["lab"] = {"source": "sample:code"}
    for site in raw["data"]["sites"].values():
        site["rows"] = 40
    raw["training"] |= {"steps": 2, "batch_size": 4, "max_length": 96}
    return raw


def three_of_four() -> dict[str, Any]:
    """Sums over fewer than all are for plans that protect each row."""
    raw = four_sites()
    raw["scheme"]["membership"] = "open"
    raw["adapter"]["dropout"] = 0.0
    raw["privacy"] = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 0.8}
    rules = parse_plan(raw, base_dir=TINY.parent).rules()
    assert (rules.threshold, rules.votes, rules.min_cohort) == (3, 3, 3)
    return raw


@pytest.fixture(scope="module")
def plan() -> Plan:
    found = parse_plan(four_sites(), base_dir=TINY.parent)
    rules = found.rules()
    assert (rules.threshold, rules.votes, rules.min_cohort) == (2, 3, 4)
    return found


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of which nobody is lost."""
    return local.run(plan, tmp_path_factory.mktemp("runs") / "whole").path


def rows_of(out: Path, number: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["round"] == number]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_run_that_loses_one_site_ends_without_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its training fails in round 2: the three others go on to the end, and it is named."""
    train = LocalTrainer.train

    def failing(self: LocalTrainer, state: Any, number: int, *more: Any) -> Any:
        if self._site == "lab" and number > 1:
            raise OSError("the disk is gone")
        return train(self, state, number, *more)

    monkeypatch.setattr(LocalTrainer, "train", failing)
    file, out = tmp_path / "plan.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(three_of_four()))
    monkeypatch.setattr(sys, "argv", ["fedshield", "run", str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0

    why = "work: internal (OSError: the disk is gone (see sites/lab/error.log))"
    lost = {"lab": f"round 2, {why}"}
    assert "in failing\n" in (out / "sites" / "lab" / "error.log").read_text()
    state, summary = read(out / "run.json"), read(out / "summary.json")
    assert (state["status"], state["lost_sites"]) == ("finished", lost)
    assert (summary["lost_sites"], summary["rounds"], summary["sites"]) == (lost, 3, FOUR)
    assert list(summary["initial_heldout_loss"]["sites"]) == FOUR
    assert list(summary["final_heldout_loss"]["sites"]) == LEFT
    said = capsys.readouterr()
    assert f"round 2: lab was lost at {why}; going on without it" in " ".join(said.err.split())
    (line,) = [line for line in said.out.splitlines() if line.startswith("lab ")]
    before = f"{summary['initial_heldout_loss']['sites']['lab']:.4f}"
    assert line.split() == ["lab", before, "not", "measured"]

    for number, sites in ((1, FOUR), (2, LEFT), (3, LEFT)):
        rows = rows_of(out, number)
        assert [row["site"] for row in rows] == sites
        assert all(row["contributors"] == sites for row in rows)
        assert len({row["adapter_sha256"] for row in rows}) == 1
    last = rows_of(out, 3)[0]["adapter_sha256"]
    assert summary["adapter_sha256"] == last
    assert "lab was lost at round 2, work: internal" in (out / "report.html").read_text()
    card = (out / "adapter" / "README.md").read_text()
    assert "lab was lost at round 2, work: internal" in card
    assert "can be had as the difference of two of them" in card
    _, _, adapter, _ = open_finished(out)
    assert adapter.sha256() == last


@pytest.mark.parametrize("moment", ["prepare", "announce"])
def test_a_run_that_loses_too_many_fails_and_is_resumed(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Two sites are gone in round 2, before anything or when two have voted: the model of round 1
    is kept, and with all sites back the run ends as if nothing had been."""
    handle = Participant.handle

    def gone(self: Participant, method: str, data: bytes) -> bytes:
        if self.name in ("hospital", "lab") and self.completed_rounds == 1 and method == moment:
            raise ConnectionError("no route to host")
        return handle(self, method, data)

    out = tmp_path / "run"
    with monkeypatch.context() as broken:
        broken.setattr(Participant, "handle", gone)
        with pytest.raises(RoundFailed) as failed:
            local.run(plan, out)
    reason = str(failed.value)
    left = {"prepare": "", "announce": " 2 of 3 needed are left;"}[moment]
    assert reason.startswith(
        f"{moment}: no answer from hospital (internal), lab (internal);{left} "
        "the model of the last round is kept"
    )
    assert "hospital: ConnectionError: no route to host (see sites/hospital/error.log)" in reason
    state = read(out / "run.json")
    assert (state["status"], state["reason"]) == ("failed", reason)
    assert not (out / "summary.json").exists()
    assert not (out / "adapter").exists()
    assert rows_of(out, 1)[0]["adapter_sha256"] == rows_of(whole, 1)[0]["adapter_sha256"]
    kept = rows_of(out, 1)
    assert rows_of(out, 2) == []
    for site in FOUR:
        assert [path.name for path in (out / "sites" / site).glob("round-*")] == [
            "round-000001.safetensors"
        ]

    local.resume(out)
    state, summary = read(out / "run.json"), read(out / "summary.json")
    assert (state["status"], "reason" in state) == ("finished", False)
    assert (summary["resumed"], summary["lost_sites"], summary["rounds"]) == (1, {}, 3)
    assert rows_of(out, 1) == kept  # and not made again
    assert [len(rows_of(out, number)) for number in (2, 3)] == [4, 4]
    assert summary["adapter_sha256"] == read(whole / "summary.json")["adapter_sha256"]
    assert (out / "report.html").stat().st_size > 0
    assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_a_site_that_is_lost_before_the_first_round_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Participant.handle

    def failing(self: Participant, method: str, data: bytes) -> bytes:
        if self.name == "lab" and method == "take-key":
            raise OSError("no room for keys")
        return handle(self, method, data)

    monkeypatch.setattr(Participant, "handle", failing)
    folder = local.run(parse_plan(three_of_four(), base_dir=tmp_path), tmp_path / "run")
    lost = folder.state()["lost_sites"]
    assert lost == {
        "lab": "set-up, take-key: internal (OSError: no room for keys (see sites/lab/error.log))"
    }
    assert folder.read_json("summary.json")["lost_sites"] == lost
    assert {row["site"] for row in folder.metrics()} == set(LEFT)
