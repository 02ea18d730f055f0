"""Six hospitals in two batches, live: one site is away for three rounds. Its batch sits out, the
other goes on, and all are at one model after it is back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import Federation, federation

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

#: By name, as a roster cuts them.
FIRST, SECOND = ("bank", "clinic", "hospital"), ("lab", "school", "ward")
SAMPLES = ("medical", "maths", "code", "finance", "medical", "maths")
SITES = dict(zip((*FIRST, *SECOND), SAMPLES, strict=True))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    roster = "--membership batches --max-colluding 1"
    with federation(tmp_path_factory.mktemp("batches"), SITES, roster=roster) as made:
        for site in SITES:
            with (made.folder / site / f"{site}.policy.yaml").open("a") as policy:
                policy.write("memberships: [fixed, batches]\n")
        yield made


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": 20, "evaluation": {"prompts": []}}
    raw["scheme"] = {"membership": "batches"}
    raw["data"] = {"heldout_rows": 4, "min_examples": 4, "sites": {}}
    for site, sample in SITES.items():
        raw["data"]["sites"][site] = {"source": f"sample:{sample}", "rows": 24}
    raw["training"] |= {"steps": 4, "batch_size": 4, "max_length": 96}
    raw["speed"] = {"threads": 1, "setup_deadline_s": 180, "work_deadline_s": 45}
    raw["speed"]["message_deadline_s"] = 30
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_a_site_is_away_for_three_rounds(live: Federation, plan: Path) -> None:
    live.ready()
    run = live.begin(plan)
    run.wait_for_round(1)
    live.kill("school")
    run.wait_for_round(4)
    run.interrupt()
    run.end()
    live.start("school")
    live.ready()
    status, said = live.resume(run.out).end()
    assert status == 0, said

    contributors = {
        entry["round"]: entry["contributors"] for entry in run.log() if "aggregate_s" in entry
    }
    away = [number for number, sites in contributors.items() if sites == [*FIRST]]
    assert len(away) >= 2
    assert contributors[1] == contributors[20] == [*FIRST, *SECOND]
    assert all(sites in ([*FIRST], [*FIRST, *SECOND]) for sites in contributors.values())
    assert len(set(run.adapters().values())) == 1
    for site in SECOND:
        lines = map(json.loads, (live.folder / site / f"{site}.ledger").read_text().splitlines())
        taken = [line for line in lines if line["kind"] == "attested"]
        assert sum(len(line["rounds"]) for line in taken) >= len(away)
