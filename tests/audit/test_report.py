"""The privacy report: one page, nothing loaded, no sentence without its number."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audit_kit import make

from fedshield.audit import page, statements, suite
from fedshield.audit.effort import Effort
from fedshield.audit.findings import Finding
from fedshield.audit.stats import Measure
from fedshield.audit.subject import from_path
from fedshield.cli.audit import without_effect
from fedshield.cli.commands import app
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
    assert ">pruning and rlwe<" in text
    for part in (
        "Who learns what",
        "How to read these numbers",
        "What is not protected",
        "Under which assumption",
    ):
        assert part in text


def test_without_a_number_nothing_is_said() -> None:
    """An audit in which nothing was measured claims nothing of any party."""
    bare = suite.Audit(
        "x", "0" * 64, "rlwe", {"name": "m", "sha256": "0" * 64}, ("a", "b", "c"), 1, 2, 1,
        {"planned_rounds": 1}, (),
    )  # fmt: skip
    assert statements.who_learns_what(bare) == []
    text = " ".join(statements.not_protected(bare))
    assert "AUC" not in text
    assert "bits" not in text
    assert "No differential privacy" in text


def test_the_page_says_what_was_run_and_what_was_not_used() -> None:
    released = Finding("membership", "any", "holder", "area", Measure(0.5, 0.4, 0.6, 9, 0.5))
    text = page.render(replace(with_findings(released), notes=("bank: column `ward` not used",)))
    assert "No round was run to take down its messages" in text
    assert "on one machine for this report" not in text
    assert "<li>bank: column `ward` not used</li>" in text
    text = page.render(with_findings(named("plain", "server", 0.9, 0.1), released))
    assert "on one machine for this report, under each scheme, with every message" in text
    assert "Of the model and the data" not in text


@pytest.mark.parametrize(
    ("attacked", "planned", "said"),
    [
        (1, 1, "This plan's one round was run"),
        (2, 2, "All 2 rounds of this plan were run"),
        (1, 4, "The first round of this plan's 4 rounds was run"),
        (2, 4, "The first 2 of this plan's 4 rounds were run"),
    ],
)
def test_the_page_says_how_many_rounds_were_attacked(
    attacked: int, planned: int, said: str
) -> None:
    """Not that the plan's rounds were, where two of two hundred were."""
    audit = with_findings(named("plain", "server", 0.9, 0.1))
    audit = replace(audit, rounds=attacked, settings=audit.settings | {"planned_rounds": planned})
    assert f"<p>{said.replace(chr(39), '&#39;')} on one machine for this report" in page.render(
        audit
    )


@pytest.mark.parametrize(
    ("attacks", "effort", "idle"),
    [
        (["tokens"], Effort(), []),
        (
            ["tokens"],
            Effort(canaries=3, references=20, shadows=False),
            ["references", "canaries", "shadows"],
        ),
        (["canaries"], Effort(rounds=1, canaries=3), ["rounds"]),
        (["membership", "properties"], Effort(rounds=1, shadows=False), []),
    ],
)
def test_options_that_no_attack_asks_for_are_named(
    attacks: list[str], effort: Effort, idle: list[str]
) -> None:
    sentences = without_effect(attacks, effort)
    assert [one.partition(" has no effect: ")[0] for one in sentences] == [
        f"--{option}" for option in idle
    ]


def named(
    setting: str, party: str, value: float, chance: float, what: str = statements.SHARE
) -> Finding:
    measure = Measure(value, max(0.0, value - 0.05), min(1.0, value + 0.05), 100, chance)
    return Finding("tokens", setting, party, what, measure)


def with_findings(*findings: Finding, pruning: str = "none") -> suite.Audit:
    return suite.Audit(
        "x", "0" * 64, "rlwe", {"name": "m", "sha256": "0" * 64}, ("a", "b", "c"), 1, 2, 1,
        {"planned_rounds": 1, "pruning": [pruning, "shared", 0.5]}, findings,
    )  # fmt: skip


def test_an_attack_that_fails_without_protection_is_said_to_be_no_evidence() -> None:
    """The guess is the floor, where it is above chance."""
    guess = named("any", statements.WITHOUT_A_VIEW, 0.30, 0.01)
    text = " ".join(
        statements.how_to_read(with_findings(named("plain", "server", 0.2, 0.01), guess))
    )
    assert "is no evidence for encryption in this run" in text
    assert "0.30 [0.25, 0.35]" in text
    text = " ".join(
        statements.how_to_read(with_findings(named("plain", "server", 0.9, 0.01), guess))
    )
    assert "no evidence" not in text
    assert list(statements.how_to_read(with_findings())) == []


def test_a_silo_that_encryption_hides_is_told_with_both_numbers() -> None:
    clear, hidden = (
        named(setting, "server", value, 0.33, statements.SILO)
        for setting, value in (("plain", 1.0), ("rlwe", 0.2))
    )
    tokens = named("plain", "server", 0.9, 0.01)
    text = " ".join(statements.how_to_read(with_findings(tokens, clear, hidden)))
    assert "1.00 [0.95, 1.00], chance 0.33 without protection, 0.20" in text


def test_a_plan_without_pruning_has_none_in_its_report() -> None:
    found = named("ckks", "server", 0.1, 0.1)
    assert "pruning and ckks" not in page.render(with_findings(found))
    assert "pruning and ckks" in page.render(with_findings(found, pruning="magnitude"))


def test_epsilon_and_delta_are_shown_where_a_run_has_them(done: Path) -> None:
    found = suite.Audit(
        "x", "0" * 64, "rlwe", {"name": "m", "sha256": "0" * 64}, ("a", "b", "c"), 1, 2, 1,
        {"planned_rounds": 1}, (),
        privacy={"unit": "site", "epsilon": 3.5, "delta": 1e-5, "uploads": 4, "mechanism": "noise",
                 "noise_multiplier": 1.0, "clip_norm": 0.5, "neighbours": "sites"},
    )  # fmt: skip
    assert "of each site: epsilon 3.5 at delta 1e-05 after 4 rounds; noise;" in page.render(found)
    assert "about one site (epsilon 3.5, delta 1e-05)" in page.render(found)
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
    from fedshield.run import local

    plan = make(**{"data.heldout_rows": 6})
    folder = local.run(plan, tmp_path / "run")
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
    assert found.skipped == {}  # settings are not looked at by this attack
    with pytest.raises(PlanError, match="expected none with a run folder"):
        from_path(folder.path, ["rounds=3"])


def test_a_run_that_stopped_is_audited_as_far_as_it_came(
    tmp_path: Path, staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedshield.audit.replay import trained_rows
    from fedshield.run import local
    from fedshield.run.folder import RunFolder

    noise = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    plan, written = make(rounds=3, privacy=noise), iter((True,))
    write = RunFolder.write_state

    def stopped(self: RunFolder, state: dict[str, Any]) -> None:
        write(self, state)
        if state.get("privacy") and state["privacy"]["uploads"] == 1 and next(written, False):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_state", stopped)
        with pytest.raises(KeyboardInterrupt):
            local.run(plan, tmp_path / "run")
    subject = from_path(tmp_path / "run")
    assert subject.completed == 1
    assert subject.privacy["uploads"] == 1
    assert subject.released(staged().scene.host.spec) is not None
    scene = staged().scene
    drew = subject.drew()["bank"]
    one, all_of_them = (
        len(trained_rows(make(rounds=3), "bank", scene, drew, n)) for n in (1, None)
    )
    assert (one, all_of_them) == (1, 3)


def test_in_print_what_is_folded_is_open_and_the_paper_is_white() -> None:
    text = page.render(with_findings(named("plain", "server", 0.9, 0.1)))
    style = text[: text.index("</style>")]
    assert style.index("prefers-color-scheme: dark") < style.index("@media print {\n  :root {")
    paper = style[style.index("@page") :]
    assert "details::details-content { content-visibility: visible; display: block; }" in paper
    unknown = paper[paper.index("@supports not selector(details::details-content)") :]
    assert "details:not([open]) summary::after { content: " in unknown
    assert "li, tr, .verdicts li { break-inside: avoid; }" in paper
    assert "h2, h3, summary { break-after: avoid; }" in paper
