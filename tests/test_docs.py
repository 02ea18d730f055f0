"""Documents that run: commands of the README, keys of the plan's reference, links."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from command_line import fedshield
from fedshield.cost import estimate
from fedshield.crypto.scheme import CKKS
from fedshield.enrolment import Policy
from fedshield.errors import ProtocolCode
from fedshield.plan.data import SourcePlan
from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan
from fedshield.plan.sections import AdapterPlan
from fedshield.protocol.wire import messages

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += keys(annotation, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = [line.removeprefix("$ ").partition(" #")[0] for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "fedshield"
        # Run folders of the reader land in a temporary place here.
        arguments = [
            str(tmp_path / argument) if argument.startswith("runs/") else argument
            for argument in arguments
        ]
        done = fedshield(*arguments, cwd=ROOT)
        assert done.code == 0, f"{command}\n{done.err}"
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()
    assert (tmp_path / "runs" / "tiny-merged" / "model.safetensors").exists()


def test_the_plans_reference_has_every_key_and_no_other() -> None:
    text = (ROOT / "docs" / "plan.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.-]+)` \|", text, re.MULTILINE))
    # A table of its own says what each value of this key does.
    modes = set(get_args(AdapterPlan.model_fields["train"].annotation))
    assert modes <= documented
    documented -= modes
    source = set(SourcePlan.model_fields)
    assert documented - source - {"split"} == set(keys(Plan))
    assert source <= documented | {"split"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_a_plan_with_a_cost(path: Path) -> None:
    plan, _ = load_plan(path)
    assert estimate(plan).total_upload_bytes > 0
    # Examples say what differs from the defaults in words that the plan knows.
    assert set(yaml.safe_load(path.read_text())) <= set(Plan.model_fields)


def test_the_policy_of_the_deployment_page_takes_its_plan(tmp_path: Path) -> None:
    """And its plan is the recommended setting, that of the quickstart."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    policy_text, plan_text = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "north.policy.yaml").write_text(policy_text)
    (tmp_path / "plan.yaml").write_text(plan_text)
    plan, _ = load_plan(tmp_path / "plan.yaml")
    assert Policy.read(tmp_path / "north.policy.yaml").violations(plan, None, None) == ()
    quickstart, _ = load_plan(ROOT / "examples" / "quickstart.yaml")
    for part in ("model", "adapter", "pruning", "encoding", "scheme"):
        assert getattr(plan, part) == getattr(quickstart, part), part
    assert plan.training.optimizer == quickstart.training.optimizer


def test_the_protocol_page_names_every_message_field_and_code() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    found = re.findall(r"^\| `([a-z-]+)` \|([^|]*)\|", text.partition("## 5.")[2], re.M)
    rows = dict(reversed(found))  # the first of each: what it is, and not where it is sealed
    types = {"int": "I", "str": "S", "bytes": "B"}
    types |= {"tuple[bytes, ...]": "B*", "dict[str, bytes]": "site:B"}
    for kind in messages.Message.__subclasses__():
        fields = {item.name: types[str(item.type)] for item in dataclasses.fields(kind)}
        named = re.findall(r"`(\w+)` (site:B|B\*|[ISB])", rows[kind.kind])
        assert named == sorted(fields.items()), kind.kind
    for code in get_args(ProtocolCode):
        assert f"`{code}`" in text
    assert "12 vectors (`paper`) or 68 (`lean`)" in text
    assert (CKKS["paper"].ciphertexts_per_block, CKKS["lean"].ciphertexts_per_block) == (12, 68)
    assert (CKKS["lean"].sum_limit, CKKS["paper"].sum_limit) == (2.0**11, 2.0**18)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_readme_says_of_the_model_that_it_is_dequantised() -> None:
    for path in (ROOT / "README.md", ROOT / "docs" / "plan.md", ROOT / "NOTICE"):
        text = path.read_text()
        if "SmolLM2-135M-Instruct" in text:
            assert "Q4_1" in text, path.name
