"""docs/deploy.md from nothing to the second run, as three hospitals live it: a site that dies in a
round, a resume, what each hospital does with its adapter, a kit that moves, a renewed certificate,
a replaced key."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import SITES, Federation, Submission, commands, federation

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("walk")) as made:
        yield made


def plan_of(folder: Path, name: str) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"name": name, "rounds": 3, "evaluation": {"prompts": ["Define the term angina."]}}
    raw["data"] = {"heldout_rows": 6}
    raw["data"]["sites"] = {
        site: {"source": f"sample:{sample}", "rows": 60} for site, sample in SITES.items()
    }
    raw["training"] |= {"steps": 8, "batch_size": 8, "max_length": 96}
    raw["speed"] = {"threads": 1, "work_deadline_s": 60, "message_deadline_s": 60}
    raw["speed"]["setup_deadline_s"] = 240
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def run_with_a_lost_site(ward: Federation, plan: Path) -> Submission:
    """North dies in the second round; the run stops, is told so, and is resumed to its end."""
    run = ward.begin(plan)
    run.wait_for_round(1)
    ward.kill("north")
    status, said = run.end()
    assert status == 1
    assert "north" in said
    assert f"To go on: fedshield submit --resume {run.out}" in said
    looked = ward.call("status", "--kit", "coordinator/admin")
    assert re.search(r"north +(does not answer|not connected)", looked), looked
    assert "not running; start it with: fedshield site start" in ward.call(
        "status", "--kit", "north"
    )
    ward.start("north")
    ward.ready()
    again = ward.resume(run.out)
    status, said = again.end()
    assert status == 0, said
    assert len(set(again.adapters().values())) == 1
    return again


def check_reports(run: Submission) -> None:
    for site in SITES:
        kept = run.folder(site)
        summary = json.loads((kept / "summary.json").read_text())
        assert (summary["parties"], summary["figures_of"]) == ("apart", site)
        assert (summary["rounds"], summary["resumed"]) == (3, 1)
        first, last = summary["sessions"]
        assert first["how"] != "finished"
        assert last["ended"] >= last["started"] >= first["started"]
        report = (kept / "report.html").read_text()
        card = (kept / "adapter" / "README.md").read_text()
        for text in (report, card):
            assert "Each party ran from a kit of its own" in text
            for never in ("simulated", "one machine", "demonstration", str(kept.parent)):
                assert never not in text
        assert f"this site ({site})" in report


def check_a_hospitals_own_use(ward: Federation, run: Submission) -> None:
    """`generate`, `export` and `audit` take model and data from the kit's policy, wherever it
    is."""
    name = run.name()
    answer = ward.call("generate", f"north/runs/{name}", "Define angina.", "--max-new-tokens", 8)
    assert "with the run's adapter" in answer
    shutil.move(ward.folder / "south", ward.folder / "moved")
    try:
        kept = f"moved/runs/{name}"
        ward.call("generate", kept, "Define angina.", "--max-new-tokens", 8)
        ward.call("export", kept, "--merge", "merged")
        assert (ward.folder / "merged" / "model.safetensors").is_file()
        said = ward.call("audit", kept, "--attacks", "membership", "--out", "audited")
        assert "simulated" not in said
        assert "simulated" not in (ward.folder / "audited" / "privacy.html").read_text()
    finally:
        shutil.move(ward.folder / "moved", ward.folder / "south")


def test_three_hospitals_from_nothing_to_a_second_run(ward: Federation, tmp_path: Path) -> None:
    run = run_with_a_lost_site(ward, plan_of(tmp_path, "first"))
    check_reports(run)
    ward.stop()
    check_a_hospitals_own_use(ward, run)
    renewal = commands("## When a certificate ends", "## When a party's key is replaced")
    ward.type(renewal)
    ward.type(commands("## When a party's key is replaced", "## Keys"))
    ward.start()
    ward.ready()
    second = ward.begin(plan_of(tmp_path, "second"))
    status, said = second.end()
    assert status == 0, said
    assert len(set(second.adapters().values())) == 1
    for site in SITES:
        summary = json.loads((second.folder(site) / "summary.json").read_text())
        assert (summary["rounds"], summary["resumed"]) == (3, 0)
