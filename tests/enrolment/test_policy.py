"""A site's policy: what it refuses, what it alone decides, and `fedshield site check`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedshield import cli
from fedshield.crypto.keys import SigningKey
from fedshield.data.sites import load_sites
from fedshield.enrolment import Policy, PolicyError
from fedshield.model.builtin import tiny
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import Roster
from fedshield.run.settings import data_setup

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "policy.md"
SITES = ("bank", "clinic", "hospital", "school")
BARE = {"data_path": "rows.jsonl", "ledger_path": "ledger", "model_path": "tiny-llama"}
MODEL = "ab" * 32


def plan_of(**scheme: Any) -> Plan:
    raw: dict[str, Any] = {
        "rounds": 5,
        "model": {"name": "tiny-llama"},
        "data": {"heldout_rows": 2, "sites": {name: {"source": "sample:code"} for name in SITES}},
        "scheme": scheme,
    }
    return parse_plan(raw, base_dir=ROOT)


def roster_of(plan: Plan, *, demo: bool = False) -> Roster:
    keys = {name: SigningKey().public for name in plan.data.site_names()}
    return Roster(keys, SigningKey().public, plan.rules(), demo)


def policy_of(tmp_path: Path, **keys: Any) -> Policy:
    path = tmp_path / "bank.policy.yaml"
    path.write_text(yaml.safe_dump(BARE | keys))
    return Policy.read(path)


def refusals(policy: Policy, plan: Plan, model: str | None = MODEL) -> list[str]:
    """The keys that fall short; `check` must agree."""
    roster = roster_of(plan)
    found = policy.violations(plan, roster, model)
    if not found:
        policy.check(plan, roster, model)
        return []
    with pytest.raises(PolicyError) as caught:
        policy.check(plan, roster, model)
    text = str(caught.value)
    assert found[0] in text
    assert text.isprintable()
    for line in found:
        assert line.partition(":")[0] in text
        assert " expected " in line
    return [line.partition(":")[0] for line in found]


# -- floors ----------------------------------------------------------------------------------


def test_a_plan_of_defaults_meets_a_policy_of_defaults(tmp_path: Path) -> None:
    assert refusals(policy_of(tmp_path), plan_of()) == []


@pytest.mark.parametrize(
    ("keys", "plan", "refused"),
    [
        ({}, {"open_to": "server"}, ["scheme.open_to"]),
        ({"open_to": ["peers", "server"]}, {"open_to": "server"}, []),
        ({}, {"server": "semi-honest"}, ["scheme.server"]),
        ({"servers": ["semi-honest", "malicious"]}, {"server": "semi-honest"}, []),
        ({}, {"weights": "public"}, ["scheme.weights"]),
        ({"weights": ["equal"]}, {"weights": "equal"}, []),
        ({}, {"name": "plain"}, ["scheme.name", "scheme.server", "scheme.open_to"]),
        # What ckks holds against is less than what its key in the plan could say.
        ({"schemes": ["ckks"]}, {"name": "ckks"}, ["scheme.server"]),
        ({"schemes": ["ckks"], "servers": ["semi-honest"]}, {"name": "ckks"}, []),
        ({"min_colluding": 2}, {}, ["scheme.max_colluding"]),
        ({"min_colluding": 1}, {}, []),
        ({"min_threshold": 4}, {}, ["scheme.threshold"]),
        ({"min_threshold": 4}, {"threshold": 4}, []),
        ({"min_cohort": 5}, {}, ["scheme.min_cohort"]),
        ({"min_cohort": 4}, {}, []),
        ({"min_bits": 17 - 1}, {}, []),
        ({"max_rounds": 5}, {}, []),
        ({"max_rounds": 4}, {}, ["rounds"]),
        ({"model_names": ["tiny-llama"]}, {}, []),
        ({"model_names": ["another"]}, {}, ["model.name"]),
        ({"model_path": "smollm2-135m"}, {}, ["model.name"]),
        # Another place for it: its name says nothing.
        ({"model_path": "/models/tiny"}, {}, []),
        ({"model_sha256": [MODEL]}, {}, []),
        ({"model_sha256": ["cd" * 32]}, {}, ["base model"]),
        ({"privacy": {"unit": "site", "max_epsilon": 3}}, {}, ["privacy"]),
    ],
)
def test_floors(tmp_path: Path, keys: Any, plan: Any, refused: list[str]) -> None:
    assert refusals(policy_of(tmp_path, **keys), plan_of(**plan)) == refused


def test_a_floor_of_contributors_holds_for_each_batch(tmp_path: Path) -> None:
    """The difference of two sums over whole batches can be the sum of the smallest."""
    names = ("a", "b", "c", "d", "e", "f", "g", "h")
    raw = plan_of().model_dump(mode="json")
    raw["data"]["sites"] = {name: {"source": "sample:code"} for name in names}
    raw["scheme"] |= {"membership": "batches", "max_colluding": 1, "min_cohort": 6}
    plan = parse_plan(raw, base_dir=ROOT)
    keys = {name: SigningKey().public for name in names}
    cut = (("a", "b", "c"), ("d", "e", "f", "g", "h"))
    server = SigningKey().public
    uneven = Roster(keys, server, plan.rules(), False, batches=cut)
    even = Roster(keys, server, plan.rules(), False)
    four, five = (
        policy_of(tmp_path, memberships=["batches"], min_cohort=least) for least in (4, 5)
    )
    assert four.violations(plan, even, MODEL) == ()
    assert five.violations(plan, None, MODEL) == ()  # asked again with the roster
    assert four.violations(plan, uneven, MODEL) == (
        "roster: expected at least 4 in each batch, got a batch of 3 (a, b, c), whose own sum can "
        "be had (policy: min_cohort)",
    )
    assert five.violations(plan, even, MODEL)


def test_bits_count_only_where_values_have_bits(tmp_path: Path) -> None:
    few = plan_of().model_copy(
        update={"encoding": plan_of().encoding.model_copy(update={"bits": 8})}
    )
    assert refusals(policy_of(tmp_path, min_bits=9), few) == ["encoding.bits"]
    assert refusals(policy_of(tmp_path, min_bits=8), few) == []


def test_every_shortfall_is_named_at_once(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, max_rounds=1, min_threshold=4, model_names=["x"])
    found = refusals(policy, plan_of(open_to="server"))
    assert found == ["scheme.open_to", "scheme.threshold", "model.name", "rounds"]


def test_a_demonstration_is_refused_unless_the_site_wrote_that_it_takes_one(tmp_path: Path) -> None:
    plan = plan_of()
    demo = roster_of(plan, demo=True)
    (line,) = policy_of(tmp_path).violations(plan, demo, None)
    assert "demonstration" in line
    assert policy_of(tmp_path, demonstration=True).violations(plan, demo, None) == ()


def test_a_roster_of_other_quorums_or_sites_is_refused(tmp_path: Path) -> None:
    other = roster_of(plan_of(threshold=4))
    (line,) = policy_of(tmp_path).violations(plan_of(), other, None)
    assert line.startswith("roster: ")


def test_a_pool_is_refused(tmp_path: Path) -> None:
    data = {"split": "iid", "num_sites": 4, "pool": [{"source": "sample:code"}]}
    raw = {"model": {"name": "tiny-llama"}, "data": data}
    found = policy_of(tmp_path).violations(parse_plan(raw, base_dir=ROOT), None, None)
    assert [line.partition(":")[0] for line in found] == ["data.split"]


NOISE = {"clip_norm": 1.0}


@pytest.mark.parametrize(
    ("section", "refused"),
    [
        ({}, True),
        ({"unit": "example", "epsilon": 1.0} | NOISE, True),
        ({"unit": "site", "epsilon": 3.5} | NOISE, True),
        # Noise without a limit promises nothing: rounds could be added.
        ({"unit": "site", "noise_multiplier": 2.0} | NOISE, True),
        ({"unit": "site", "noise_multiplier": 2.0, "max_epsilon": 4.0} | NOISE, True),
        ({"unit": "site", "noise_multiplier": 2.0, "max_epsilon": 3.0} | NOISE, False),
        ({"unit": "site", "epsilon": 3.0} | NOISE, False),
        ({"unit": "site", "epsilon": 3.0, "delta": 1e-4} | NOISE, True),
        ({"unit": "site", "epsilon": 3.0, "delta": 1e-6} | NOISE, False),
    ],
)
def test_the_privacy_floor(tmp_path: Path, section: dict[str, Any], refused: bool) -> None:
    policy = policy_of(tmp_path, privacy={"unit": "site", "max_epsilon": 3.0, "max_delta": 1e-5})
    raw: dict[str, Any] = {
        "model": {"name": "tiny-llama"},
        "data": {"sites": {name: {"source": "sample:code"} for name in SITES}},
        "scheme": {"weights": "equal"},
        "adapter": {"dropout": 0.0},
        "privacy": section,
    }
    plan = parse_plan(raw, base_dir=ROOT)
    found = [line for line in policy.violations(plan, None, None) if line.startswith("privacy")]
    assert bool(found) == refused


# -- the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data_path: x\nledger_path: z", "model_path: expected a value, got nothing"),
        ("data_path: x\nmodel_path: y", "ledger_path: expected a value, got nothing"),
        ("data_path: x\nledger_path: z\nmodel_path: y\nmin_cohrt: 3", "min_cohrt: unknown key"),
        ("data_path: x\nledger_path: z\nmodel_path: y\nmin_cohrt: 3", "did you mean min_cohort?"),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\nmin_cohort: '3'",
            "expected a whole number, got '3'",
        ),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\nschemes: [rsa]",
            "schemes.0: expected one of 'rlwe'",
        ),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\nschemes: []",
            "schemes: expected at least 1 entries",
        ),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\ndevice: tpu",
            "device: expected text that matches",
        ),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\nmodel_sha256: [abc]",
            "model_sha256.0: expected text",
        ),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\nprivacy: {unit: site}",
            "privacy.max_epsilon: expected",
        ),
        (
            "data_path: x\nledger_path: z\nmodel_path: y\nprivacy: {unit: site, epsilon: 1}",
            "unknown key",
        ),
        ('data_path: "a\\nb"\nmodel_path: y', "data_path: expected text that matches"),
        ("data_path: x\ndata_path: y", "is given twice"),
        ("- data_path", "expected a mapping of policy keys, got list"),
        ("", "expected a mapping of policy keys, got an empty file"),
        ("data_path: [", "expected YAML"),
    ],
)
def test_a_bad_file_is_one_line_with_key_and_value(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bank.policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=re.escape(told)) as caught:
        Policy.read(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected a policy file, found none"):
        Policy.read(tmp_path / "none.yaml")
    with pytest.raises(PolicyError, match="got a folder"):
        Policy.read(tmp_path)


def test_json_is_read_too_and_means_the_same(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(BARE | {"min_bits": 8}))
    assert Policy.read(path).sha256() == policy_of(tmp_path, min_bits=8).sha256()
    assert Policy.read(path).sha256() != policy_of(tmp_path).sha256()


# -- what no plan decides -------------------------------------------------------------------------


def test_data_model_and_device_are_the_policys_whatever_the_plan_says(tmp_path: Path) -> None:
    rows = [{"prompt": f"own {k}", "response": f"answer {k}"} for k in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "base").mkdir()
    raw = {
        "model": {"name": "someone/else", "revision": "main", "config": "config.json"},
        "data": {
            "heldout_rows": 2,
            "min_examples": 5,
            "sites": {
                "bank": {"source": "/etc/passwd", "heldout_source": "/etc/shadow", "rows": 5},
                "clinic": {"source": "sample:code"},
            },
        },
        "scheme": {"max_colluding": 0},
        "speed": {"device": "cuda:7"},
    }
    plan = parse_plan(raw, base_dir=Path("/"))
    policy = policy_of(tmp_path, model_path="base", device="cpu")
    here = policy.local_plan(plan, "bank")
    source = here.data.sites["bank"]
    assert (source.source, source.heldout_source) == (str(tmp_path / "rows.jsonl"), None)
    assert (here.model.name, here.model.revision) == (str(tmp_path / "base"), None)
    assert here.model.config is None
    assert here.speed.device == "cpu"
    assert policy.not_used(plan, "bank") == (
        "data.sites.bank.heldout_source of the plan is not used, and this site's policy has no "
        "heldout_path: the last rows of data_path are held out",
        "speed.device cuda:7 of the plan is not used: this site's policy says cpu",
        "model.revision of the plan is not used: this site's policy says which model (model_path)",
        "model.config of the plan is not used: this site's policy says which model (model_path)",
    )
    held = policy_of(tmp_path, model_path="base", heldout_path="held.jsonl", device="cuda:7")
    assert [line.split()[0] for line in held.not_used(plan, "bank")] == [
        "model.revision",
        "model.config",
    ]
    assert held.not_used(plan, "clinic") == held.not_used(plan, "bank")
    # What is agreed is what it was.
    assert plan.data.sites["bank"].source == "/etc/passwd"
    assert source.rows == 5
    only = here.model_copy(
        update={"data": here.data.model_copy(update={"sites": {"bank": source}})}
    ).with_base_dir(here.base_dir)
    data = load_sites(data_setup(only), tiny.tokenizer())
    assert (len(data["bank"].train), len(data["bank"].heldout)) == (5, 2)


def test_a_relative_model_never_means_a_folder_beside_the_plan(tmp_path: Path) -> None:
    beside = tmp_path / "plans"
    (beside / "base").mkdir(parents=True)
    (tmp_path / "kit").mkdir()
    plan = plan_of().with_base_dir(beside)
    policy = policy_of(tmp_path / "kit", model_path="base")
    here = policy.local_plan(plan, "bank")
    assert not here.resolve(here.model.name).exists()


def test_built_ins_and_samples_are_names_and_not_paths(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, data_path="sample:medical", heldout_path="sample:code")
    here = policy.local_plan(plan_of(), "bank")
    assert here.model.name == "tiny-llama"
    source = here.data.sites["bank"]
    assert (source.source, source.heldout_source) == ("sample:medical", "sample:code")


def test_a_site_that_the_plan_does_not_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected the site lab with a source of its own"):
        policy_of(tmp_path).local_plan(plan_of(), "lab")


# -- the command and its page -------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> object:
    monkeypatch.setattr(sys, "argv", ["fedshield", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_the_command_refuses_where_the_ledger_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, policy = tmp_path / "plan.yaml", tmp_path / "bank.policy.yaml"
    plan.write_text(plan_of().to_yaml())
    policy.write_text(yaml.safe_dump(BARE))
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    args = ("site", "check", str(plan), "--policy", str(policy))
    assert run(monkeypatch, *args) == 0
    assert "the ledger (--site)" in capsys.readouterr().out
    assert run(monkeypatch, *args, "--site", "bank") == 2
    out, err = capsys.readouterr()
    assert "accepted" not in out
    assert "expected the ledger of these records, found none" in err
    assert run(monkeypatch, *args, "--site", "bank", "--json") == 2
    assert json.loads(capsys.readouterr().out)["accepted"] is False


def test_the_command_says_yes_or_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, policy = tmp_path / "plan.yaml", tmp_path / "bank.policy.yaml"
    plan.write_text(plan_of().to_yaml())
    policy.write_text(yaml.safe_dump(BARE))
    args = ("site", "check", str(plan), "--policy", str(policy), "--site", "bank")
    assert run(monkeypatch, *args) == 0
    out = capsys.readouterr().out
    assert "accepted" in out
    assert str(tmp_path / "rows.jsonl") in out
    policy.write_text(yaml.safe_dump(BARE | {"max_rounds": 2, "min_threshold": 4}))
    assert run(monkeypatch, *args) == 2
    out, err = capsys.readouterr()
    assert out.count("refused ") == 2
    (line,) = err.splitlines()
    assert "scheme.threshold: expected at least 4, got 2" in line
    assert "1 more: rounds" in line
    assert run(monkeypatch, *args, "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["accepted"], len(found["violations"])) == (False, 2)
    assert found["ledger"].startswith("none yet")
    assert run(monkeypatch, *args, "--model-sha256", "12") == 2
    assert "--model-sha256: expected 64 digits" in capsys.readouterr().err


def test_the_page_has_every_key_and_its_example_is_a_policy(tmp_path: Path) -> None:
    text = PAGE.read_text()
    shown = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", text, re.MULTILINE))
    inner = {f"privacy.{key}" for key in ("unit", "max_epsilon", "max_delta")}
    assert shown == (set(Policy.model_fields) - {"privacy"}) | inner
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "hospital.policy.yaml"
    path.write_text(block)
    assert Policy.read(path).min_cohort == 3
