"""The privacy report: one page, nothing loaded, no sentence without its number."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from audit_kit import make

from fedshield.audit import page, suite, words
from fedshield.audit.subject import from_path
from fedshield.cli import app
from fedshield.errors import PlanError

PLAN = """
name: audited
seed: 7
rounds: 2
model: {name: tiny-llama}
adapter: {rank: 16, alpha: 32, dropout: 0.0, targets: [q_proj, v_proj]}
data:
  heldout_rows: 8
  sites:
    bank: {source: "sample:finance", rows: 20}
    hospital: {source: "sample:medical", rows: 20}
    school: {source: "sample:maths", rows: 20}
training:
  {steps: 1, batch_size: 1, optimizer: sgd, max_length: 192, learning_rate: 0.5, precision: fp32}
pruning: {start_round: 1, target_round: 2}
scheme: {name: rlwe}
speed: {device: cpu, threads: 1}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("audit")
    plan = folder / "plan.yaml"
    plan.write_text(PLAN)
    arguments = ["audit", str(plan), "--out", str(folder / "out"), "--references", "15"]
    app([*arguments, "--canaries", "1", "--no-shadows"], standalone_mode=False)
    return folder / "out"


def test_the_report_has_every_party_under_every_scheme(done: Path) -> None:
    found = json.loads((done / "privacy.json").read_text())
    assert found["format"] == "fedshield privacy report 1"
    tried = {
        (one["setting"], one["party"]) for one in found["findings"] if one["attack"] == "tokens"
    }
    assert tried == {
        ("any", "anyone, without a view"),
        ("plain", "server"), ("pruned", "server"),
        ("ckks", "server"), ("ckks", "server with 1 site"),
        ("rlwe", "server"), ("rlwe", "server with 1 site"), ("rlwe", "server with 2 sites"),
        ("rlwe", "any one site, alone"),
    }  # fmt: skip
    opened = {
        (one["setting"], one["party"]): one["measure"]["value"]
        for one in found["findings"]
        if one["attack"] == "opening"
    }
    assert opened == {
        ("ckks", "server with 1 site"): 1.0,
        ("rlwe", "server with 1 site"): 0.0,
        ("rlwe", "server with 2 sites"): 1.0,
    }
    assert {one["attack"] for one in found["findings"]} == {
        "opening", "tokens", "properties", "membership", "canaries",
    }  # fmt: skip
    for one in found["findings"]:
        measure = one["measure"]
        assert measure["low"] <= measure["value"] <= measure["high"]
        assert measure["num_trials"] >= 1


def test_the_page_is_one_file_that_loads_nothing(done: Path) -> None:
    text = (done / "privacy.html").read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", text)
    assert not re.search(r">(None|nan|inf)<", text)
    for title in page.TITLES.values():
        assert title in text
    for part in ("Who learns what", "What is not protected", "Under which assumption"):
        assert part in text


def test_without_a_number_nothing_is_said() -> None:
    """An audit in which nothing was measured claims nothing of any party."""
    bare = suite.Audit(
        "x", "0" * 64, "rlwe", {"name": "m", "sha256": "0" * 64}, ("a", "b", "c"), 1, 2, 1,
        {"planned_rounds": 1}, (),
    )  # fmt: skip
    assert words.who_learns_what(bare) == []
    text = " ".join(words.not_protected(bare))
    assert "AUC" not in text
    assert "bits" not in text
    assert "No differential privacy" in text


def test_epsilon_and_delta_are_shown_where_a_run_has_them(done: Path) -> None:
    found = suite.Audit(
        "x", "0" * 64, "rlwe", {"name": "m", "sha256": "0" * 64}, ("a", "b", "c"), 1, 2, 1,
        {"planned_rounds": 1}, (), privacy={"epsilon": 3.5, "delta": 1e-5},
    )  # fmt: skip
    assert "epsilon 3.5" in page.render(found)
    assert "No differential privacy" not in page.render(found)


def test_names_are_escaped() -> None:
    found = suite.Audit(
        "<b>x</b>", "0" * 64, "rlwe", {"name": "<i>", "sha256": "0"}, ("a",), 1, 2, 1,
        {"planned_rounds": 1}, (),
    )  # fmt: skip
    text = page.render(found)
    assert "<b>x" not in text
    assert "<i>" not in text


def test_unknown_attacks_are_refused_with_those_there_are() -> None:
    with pytest.raises(PlanError, match="expected some of tokens, properties"):
        suite.audit(make(), ["tokens", "guess"])
    with pytest.raises(PlanError, match="got none"):
        suite.audit(make(), [])


def test_a_run_is_audited_with_its_own_plan_and_adapter(tmp_path: Path) -> None:
    from fedshield.engines import inprocess

    plan = make(**{"data.heldout_rows": 6})
    folder = inprocess.run(plan, tmp_path / "run")
    subject = from_path(folder.path)
    assert subject.plan.sha256() == plan.sha256()
    assert subject.folder == folder.path / "audit"
    asked: list[Any] = []
    found = suite.audit(
        subject.plan, ["membership"], suite.Effort(shadows=False),
        lambda spec: asked.append(subject.released(spec)) or asked[0],
    )  # fmt: skip
    assert asked[0].sha256() == folder.read_json("summary.json")["adapter_sha256"]
    assert len(found.findings) == 8
    with pytest.raises(PlanError, match="expected none with a run folder"):
        from_path(folder.path, ["rounds=3"])
