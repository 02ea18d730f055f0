"""What a site's ledger refuses, in a live consortium: each in one line at the site that names its
rule, with nothing read and nothing sent; and then the run goes on, or another does."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import SITES, Federation, Submission, federation

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("ledgers")) as made:
        yield made


@pytest.fixture
def whole(live: Federation) -> Federation:
    live.ready()
    return live


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": 2, "evaluation": {"prompts": []}}
    raw["data"] = {"heldout_rows": 6}
    raw["data"]["sites"] = {
        site: {"source": f"sample:{sample}", "rows": 60} for site, sample in SITES.items()
    }
    raw["training"] |= {"steps": 2, "batch_size": 8, "max_length": 96}
    raw["speed"] = {"threads": 1, "setup_deadline_s": 120}
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def submitted(live: Federation, plan: Path, out: str, status: int) -> tuple[Submission, str]:
    run = Submission(live, live.folder / out, ("submit", plan, "--out", live.folder / out))
    got, said = run.end()
    assert got == status, said
    return run, said


def named(plan: Path, name: str) -> Path:
    path = plan.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(plan.read_text()) | {"name": name}))
    return path


def ledger(live: Federation, site: str) -> Path:
    return live.folder / site / f"{site}.ledger"


def rows(live: Federation, site: str) -> int:
    lines = map(json.loads, ledger(live, site).read_text().splitlines())
    return sum(line["kind"] == "row" for line in lines)


def runs(live: Federation, site: str) -> set[str]:
    return {path.name for path in (live.folder / site / "runs").glob("[!.]*")}


def error_of(run: Submission, site: str) -> str:
    return (run.folder(site) / "sites" / site / "error.log").read_text()


def test_a_plan_that_one_site_did_not_approve_starts_nowhere(whole: Federation, plan: Path) -> None:
    """Nothing of it is written there, and `submit` says which site it is; once it is approved the
    same run goes on."""
    path = named(plan, "unapproved")
    whole.approve(path, "north", "west")
    before = runs(whole, "south")
    run, said = submitted(whole, path, "out-unapproved", 1)
    assert "south (not-approved)" in said
    assert runs(whole, "south") == before
    assert not ledger(whole, "south").exists() or rows(whole, "south") == 0
    assert "R8: expected an approval of plan" in (whole.folder / "south.log").read_text()
    whole.approve(path, "south")
    status, said = whole.resume(run.out).end()
    assert status == 0, said
    assert {rows(whole, site) for site in SITES} == {3}  # the weights, and two rounds


def test_a_second_run_of_a_plan_is_refused(whole: Federation, plan: Path) -> None:
    path = named(plan, "once")
    whole.approve(path)
    submitted(whole, path, "out-once", 0)
    before = {site: rows(whole, site) for site in SITES}
    _, said = submitted(whole, path, "out-twice", 1)
    assert "(refused)" in said
    told = [(whole.folder / f"{site}.log").read_text() for site in SITES]
    assert all("R4: expected the run once-" in text for text in told)
    assert {site: rows(whole, site) for site in SITES} == before


def test_a_ledger_that_another_process_holds_is_not_read(whole: Federation, plan: Path) -> None:
    path = named(plan, "held")
    whole.approve(path)
    before = {site: rows(whole, site) for site in SITES}
    handle = os.open(ledger(whole, "west"), os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        run, said = submitted(whole, path, "out-held", 1)
    finally:
        os.close(handle)
    assert "west (refused)" in said
    told = (whole.folder / "west.log").read_text()
    assert "another process of this site holds the ledger" in told
    assert run.name() not in runs(whole, "west")
    assert {site: rows(whole, site) for site in SITES} == before
    status, said = whole.resume(run.out).end()
    assert status == 0, said


def test_a_site_that_was_restored_is_found_and_the_newest_ledger_mends_it(
    whole: Federation, plan: Path
) -> None:
    """By itself, from what the others hand back: its ledger lacks a run that it signed for."""
    kept = whole.folder / "backup"
    kept.mkdir()
    files = [ledger(whole, "north"), ledger(whole, "north").with_name("north.ledger.peers")]
    path = named(plan, "before")
    whole.approve(path)
    for file in files:
        shutil.copy2(file, kept / file.name)
    submitted(whole, path, "out-before", 0)
    newest = kept / "newest"
    newest.mkdir()
    for file in files:
        shutil.copy2(file, newest / file.name)
        shutil.copy2(kept / file.name, file)
    path = named(plan, "after")
    whole.approve(path)
    counts = {site: rows(whole, site) for site in SITES}
    run, said = submitted(whole, path, "out-after", 1)
    assert "(ledger)" in said
    assert "does not hold what it signed before" in error_of(run, "north")
    assert {site: rows(whole, site) for site in SITES} == counts  # nothing was summed
    for file in files:
        shutil.copy2(newest / file.name, file)
    whole.approve(path, "north")
    status, said = whole.resume(run.out).end()
    assert status == 0, said
