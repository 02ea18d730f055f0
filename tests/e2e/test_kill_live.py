"""A site of a live consortium is killed as soon as it answered a message, whichever: the run stops,
goes on with `--resume`, and ends with the model of a run in which nobody was killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import SITES, Federation, Submission, federation, wait

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

#: Message and round: an answer to it is in the site's log before it leaves.
MOMENTS = [
    *(("invite", 0), ("begin", 0), ("take-key", 0), ("work", 0), ("open", 0)),
    *(("prepare", 1), ("work", 1), ("fetch-shares", 1), ("hold", 1), ("announce", 1)),
    *(("quorum", 1), ("open", 1), ("install", 1), ("evaluate", 1)),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("kills")) as made:
        yield made


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": 2, "evaluation": {"prompts": []}}
    raw["data"] = {"heldout_rows": 6}
    raw["data"]["sites"] = {
        site: {"source": f"sample:{sample}", "rows": 60} for site, sample in SITES.items()
    }
    raw["training"] |= {"steps": 2, "batch_size": 8, "max_length": 96}
    # A dead site is noticed by these, at the latest.
    raw["speed"] = {"threads": 1, "setup_deadline_s": 120, "work_deadline_s": 40}
    raw["speed"]["message_deadline_s"] = 30
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def wait_for_answer(run: Submission, site: str, message: str, number: int) -> None:
    """Until the site's log says that it answered this message of that round."""
    path = run.folder(site) / "sites" / site / "audit.jsonl"

    def there() -> bool:
        if not path.exists():
            return False
        lines = path.read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return any(
            (entry["act"], entry["message"], entry["round"]) == ("answered", message, number)
            for entry in entries
        )

    wait(there, f"{message} of round {number} at {site}", every_s=0.005)


@pytest.mark.parametrize(("message", "number"), MOMENTS)
def test_a_site_that_is_killed_at_any_message(
    live: Federation, plan: Path, message: str, number: int
) -> None:
    live.ready()
    run = live.begin(plan)
    wait_for_answer(run, "south", message, number)
    live.signal("south", signal.SIGSTOP)  # nothing more of it leaves before it is dead
    live.kill("south")
    status, said = run.end()
    assert status == 1, said
    assert "no answer from south" in said
    live.start("south")
    live.ready()
    status, said = live.resume(run.out).end()
    assert status == 0, said
    assert set(run.adapters().values()) == {live.alone(run.out)}


def test_a_site_that_is_killed_when_all_is_over(live: Federation, plan: Path) -> None:
    """The run ended; what is left of it at the site is the site's own report and adapter."""
    live.ready()
    run = live.begin(plan)
    wait_for_answer(run, "south", "finish", 2)
    live.signal("south", signal.SIGSTOP)
    live.kill("south")
    status, said = run.end()
    live.start("south")
    live.ready()
    if status:
        status, said = live.resume(run.out).end()
    assert status == 0, said
    made = {
        site: json.loads((run.folder(site) / "summary.json").read_text())["adapter_sha256"]
        for site in ("north", "west")
    }
    assert set(made.values()) == {live.alone(run.out)}
    kept = sorted((run.folder("south") / "sites" / "south").glob("*"))
    assert any("2" in path.name for path in kept)
