"""A job holds the plan, and neither code nor secrets; FLARE may build our classes only."""

from __future__ import annotations

import json
from pathlib import Path

from fedshield.plan.load import load_plan
from fedshield.plan.schema import Plan
from fedshield.run.flare.jobs import ALLOWED, allow_classes, write_job

EXAMPLE = Path(__file__).parents[3] / "examples" / "tiny.yaml"


def example() -> Plan:
    return load_plan(EXAMPLE)[0]


def test_a_job_is_three_files_of_json(tmp_path: Path) -> None:
    job = write_job(tmp_path, "a-job", "a-run", example())
    files = {str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()}
    config = "app/config/config_fed_"
    assert files == {"meta.json", f"{config}client.json", f"{config}server.json"}
    for kind, end in (("client", "SiteApp"), ("server", "CoordinatorApp")):
        parts = json.loads((job / f"{config}{kind}.json").read_text())["components"]
        (ours,) = (part for part in parts if part["path"].startswith("fedshield."))
        assert ours["path"] == f"fedshield.run.flare.objects.{end}"
        assert set(ours["args"]) == {"plan", "run"}
        assert ours["args"]["run"] == "a-run"
        assert Plan.model_validate_json(ours["args"]["plan"]).sha256() == example().sha256()


def test_nothing_else_is_on_the_list_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "local" / "resources.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"class_allow_list": ["*", "logging."], "components": []}))
    allow_classes(path, only=True)
    found = json.loads(path.read_text())
    assert found["class_allow_list"] == sorted(ALLOWED)
    assert found["class_list_enforcement_mode"] == "enforce"
    assert found["components"] == []


def test_what_a_site_added_stays_but_never_everything(tmp_path: Path) -> None:
    path = tmp_path / "resources.json"
    path.write_text(json.dumps({"class_allow_list": ["*", "its.own."]}))
    allow_classes(path)
    assert json.loads(path.read_text())["class_allow_list"] == sorted([*ALLOWED, "its.own."])
