"""Where a run's model and data are after its end: its plan's places, or its kit's policy's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedshield.enrolment.policy import PolicyError
from fedshield.errors import RunFolderError
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.run.folder import RunFolder
from fedshield.run.reopen import adapter_file, copy_adapter
from fedshield.run.whereabouts import check_model_there, whereabouts

SITES = ("north", "south", "west")


def plan_of(tmp_path: Path, **adapter: Any) -> Plan:
    raw = {
        "name": "wards",
        "rounds": 2,
        "model": {"name": "base-of-the-plan", "revision": "v1"},
        "adapter": adapter,
        "data": {"sites": {site: {"source": f"{site}.jsonl"} for site in SITES}},
    }
    return parse_plan(raw, base_dir=tmp_path / "plans")


def run_in(folder: Path, plan: Plan, **state: Any) -> RunFolder:
    begun = {
        "status": "finished",
        "engine": "flare",
        "plan_sha256": plan.sha256(),
        "base_dir": str(plan.base_dir),
    }
    return RunFolder.create(folder, plan, begun | state)


def kit_of(tmp_path: Path, site: str = "north") -> Path:
    kit = tmp_path / "kits" / site
    (kit / "model").mkdir(parents=True)
    (kit / f"{site}.key").write_text("")
    places = "data_path: data/rows.jsonl\nledger_path: ledger\nmodel_path: model\n"
    policy = f"{places}min_bits: 4\ndevice: cpu\n"
    (kit / f"{site}.policy.yaml").write_text(policy)
    return kit


def test_a_run_of_one_machine_has_its_plans_places(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    place = whereabouts(run_in(tmp_path / "runs" / "wards", plan))
    assert (place.plan.model, place.plan.base_dir, place.site) == (plan.model, plan.base_dir, None)


def test_a_run_in_a_kit_has_the_policys_places_wherever_the_kit_lies(tmp_path: Path) -> None:
    kit = kit_of(tmp_path)
    run_in(kit / "runs" / "wards-1", plan_of(tmp_path).with_base_dir(kit))
    moved = tmp_path / "moved"
    shutil.move(kit, moved)
    place = whereabouts(RunFolder.open(moved / "runs" / "wards-1"))
    assert place.site == "north"
    assert place.plan.model.name == str(moved / "model")
    assert place.plan.model.revision is None
    assert place.plan.data.sites["north"].source == str(moved / "data" / "rows.jsonl")
    assert place.plan.speed.device == "cpu"
    assert place.plan.name == "wards"


def test_by_a_path_that_starts_within_the_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = kit_of(tmp_path)
    run_in(kit / "runs" / "wards-1", plan_of(tmp_path))
    monkeypatch.chdir(kit / "runs")
    assert whereabouts(RunFolder.open(Path("wards-1"))).site == "north"


def test_a_model_that_is_given_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = kit_of(tmp_path)
    runs = [
        run_in(kit / "runs" / "wards-1", plan_of(tmp_path)),
        run_in(tmp_path / "wards-2", plan_of(tmp_path)),
    ]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    for run in runs:
        by_folder = whereabouts(run, "other").plan.model
        assert (by_folder.name, by_folder.revision) == (str(tmp_path / "other"), None)
        assert whereabouts(run, "house/model").plan.model.name == "house/model"
        assert whereabouts(run, "other").plan.data == whereabouts(run).plan.data


def test_a_kit_of_two_sites_and_a_damaged_policy_are_told(tmp_path: Path) -> None:
    kit = kit_of(tmp_path)
    run = run_in(kit / "runs" / "wards-1", plan_of(tmp_path))
    (kit / "north.policy.yaml").write_text("model_path: 3")
    with pytest.raises(PolicyError, match=r"north\.policy\.yaml"):
        whereabouts(run)
    (kit / "south.policy.yaml").write_text("")
    (kit / "south.key").write_text("")
    with pytest.raises(RunFolderError, match=r"expected the kit of one site .* north, south"):
        whereabouts(run)


def test_a_model_that_is_no_longer_there_is_asked_for(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    section = plan.model.model_copy(update={"name": "./models/base"})
    plan = plan.model_copy(update={"model": section}).with_base_dir(plan.base_dir)
    run = run_in(tmp_path / "runs" / "wards", plan)
    with pytest.raises(
        RunFolderError, match=r"base model in \./models/base, found no folder there;"
    ):
        check_model_there(whereabouts(run).plan, None)
    gone = str(tmp_path / "gone")
    with pytest.raises(RunFolderError, match=r"--model: expected a model folder .*gone, where"):
        check_model_there(whereabouts(run, gone).plan, gone)
    (plan.base_dir / "models" / "base").mkdir(parents=True)
    check_model_there(whereabouts(run).plan, None)
    check_model_there(whereabouts(run, "house/model").plan, "house/model")  # of the hub


def with_adapter(run: RunFolder, site: str = "") -> Path:
    folder = run.path / "adapter" / site
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    config = {"base_model_name_or_path": "/srv/models/base", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("card")
    return folder


def test_in_a_kit_the_sites_own_adapter_is_the_one(tmp_path: Path) -> None:
    kit = kit_of(tmp_path)
    run = run_in(kit / "runs" / "wards-1", plan_of(tmp_path, train="share-a"))
    folder = with_adapter(run, "north")
    assert adapter_file(run, None)[0] == folder / "adapter_model.safetensors"
    elsewhere = run_in(tmp_path / "wards-2", plan_of(tmp_path, train="share-a"))
    with pytest.raises(RunFolderError, match="expected --site with one of north, south, west"):
        adapter_file(elsewhere, None)


def test_who_submitted_a_run_is_told_where_the_adapter_is(tmp_path: Path) -> None:
    run = run_in(tmp_path / "wards", plan_of(tmp_path), jobs=["1"])
    with pytest.raises(RunFolderError, match=r"in each site's kit, under runs/"):
        adapter_file(run, None)


@pytest.mark.parametrize(
    ("model", "base", "expected"),
    [
        ("house/model", None, "house/model"),
        ("smollm2-135m", None, "smollm2-135m"),
        ("/srv/models/ward-base", None, "ward-base"),
        ("models/ward-base", None, "ward-base"),
        ("../ward-base", None, "ward-base"),
        ("/srv/models/ward-base", "house/model", "house/model"),
    ],
)
def test_an_adapter_to_hand_on_names_no_folder_of_this_machine(
    tmp_path: Path, model: str, base: str | None, expected: str
) -> None:
    plan = plan_of(tmp_path)
    (plan.base_dir / "models" / "ward-base").mkdir(parents=True)
    section = plan.model.model_copy(update={"name": model})
    plan = plan.model_copy(update={"model": section}).with_base_dir(plan.base_dir)
    run = run_in(tmp_path / "wards", plan)
    with_adapter(run)
    name = copy_adapter(run.path, tmp_path / "out", base)
    assert name == expected
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": name, "r": 4}
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "out" / "README.md").read_text() == "card"
    with pytest.raises(RunFolderError, match="expected a new or empty folder"):
        copy_adapter(run.path, tmp_path / "out", base)
