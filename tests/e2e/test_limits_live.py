"""A live coordinator that may have so many threads and processes and no more, by the kernel's own
limit: what the run takes, and what is said, and where, when there are none left."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import SITES, Federation, Submission, wait
from tasks import NO_FILES, Limited

from fedshield.run.flare.limits import LEAST_SERVER_TASKS, SERVER_TASKS

pytest.importorskip("nvflare")
pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

TASKS = 700
ROUNDS = 25


@pytest.fixture(scope="module")
def limited() -> Limited:
    return Limited(TASKS)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, limited: Limited) -> Iterator[Federation]:
    """The coordinator under the limit, the sites under none."""
    made = Federation(tmp_path_factory.mktemp("limits"))
    made.make()
    limited.own(made.folder / "coordinator")
    try:
        made.start("coordinator", before=limited.before(), more=NO_FILES)
        made.start(*SITES)
        made.ready()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": ROUNDS, "evaluation": {"prompts": []}}
    raw["data"] = {"heldout_rows": 4}
    raw["data"]["sites"] = {
        site: {"source": f"sample:{sample}", "rows": 40} for site, sample in SITES.items()
    }
    raw["training"] |= {"steps": 1, "batch_size": 2, "max_length": 96}
    raw["speed"] = {"threads": 1, "work_deadline_s": 60, "message_deadline_s": 60}
    raw["speed"]["setup_deadline_s"] = 120
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def threads(live: Federation) -> int:
    """Of all processes of the coordinator."""
    pids = live.processes("coordinator")
    tasks = [Path(f"/proc/{pid}/task") for pid in pids]
    return sum(len(list(folder.iterdir())) for folder in tasks if folder.exists())


def most_threads(live: Federation, run: Submission) -> tuple[int, int, str]:
    """The most that the coordinator had while the run was followed; its exit status and words."""
    seen, over = [threads(live)], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.append(threads(live))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        status, said = run.end()
    finally:
        over.set()
        looking.join()
    return max(seen), status, said


def test_a_run_ends_well_under_a_limit_of_700_tasks(live: Federation, plan: Path) -> None:
    """And takes no more than what docs/deploy.md asks for."""
    run = live.begin(plan)
    most, status, said = most_threads(live, run)
    assert status == 0, said
    assert 0 < most <= SERVER_TASKS
    assert run.adapters() == dict.fromkeys(SITES, live.alone(run.out))
    # There was nothing to warn of.
    assert "threads" not in (live.folder / "coordinator.log").read_text()


def test_with_no_task_left_the_run_stops_with_the_limits_name_and_blames_no_site(
    live: Federation, plan: Path, limited: Limited
) -> None:
    """Another program of the same user takes them. When it ends, the run goes on."""
    hog = limited.hog()
    try:
        run = live.begin(plan)
        run.wait_for_round(1)
        assert hog.stdin is not None
        hog.stdin.write(b"now\n")
        hog.stdin.flush()
        status, said = run.end()
        assert limited.used_up(), "expected a kernel that counts tasks (RLIMIT_NPROC)"
    finally:
        hog.kill()
        hog.communicate()
    assert status == 1
    why = (
        "this machine lets the coordinator start no more threads; the user's limit (ulimit -u) "
        f"allows {limited.limit}, "
    )
    then = (
        "no site is to blame: raise the limit at the coordinator, or end what else runs under it, "
        f"until there is room for {SERVER_TASKS} (docs/deploy.md), then go on"
    )
    (line,) = [line for line in said.splitlines() if line.startswith("fedshield: ")]
    assert line.startswith(f"fedshield: {why}")
    assert then in line
    # Where the limit can be raised it is said too: on the console, and whenever somebody asks.
    console = (live.folder / "coordinator.log").read_text()
    (told,) = [line for line in console.splitlines() if "coordinator: failed: " in line]
    assert why in told
    assert told.endswith(then)
    assert then in live.call("status", "--kit", "coordinator/admin")
    # No site is called lost, or is told that it did anything.
    assert not any(entry.get("lost") or "lost_now" in entry for entry in run.log())
    for words in (said, console):
        assert "is lost" not in words
    for site in SITES:
        state = run.folder(site) / "run.json"
        wait(lambda state=state: json.loads(state.read_text())["status"] != "running", site)
        assert json.loads(state.read_text())["status"] == "interrupted"
        assert "or by the coordinator" in json.loads(state.read_text())["reason"]
        assert not (run.folder(site) / "sites" / site / "error.log").exists()

    live.ready()
    resumed = live.resume(run.out)
    status, said = resumed.end()
    assert status == 0, said
    assert resumed.adapters() == dict.fromkeys(SITES, live.alone(run.out))


def test_a_server_with_too_few_tasks_for_a_run_does_not_start(live: Federation) -> None:
    live.kill("coordinator")
    few = Limited(LEAST_SERVER_TASKS // 2)
    few.own(live.folder / "coordinator")
    log = live.folder / "coordinator.log"
    said = len(log.read_text().splitlines())
    live.start("coordinator", before=few.before(), more=NO_FILES, listens=False)
    assert live.end("coordinator") == 2
    (line,) = log.read_text().splitlines()[said:]
    assert line.startswith(f"fedshield: expected room for {SERVER_TASKS} threads for the server")
    assert f"the user's limit (ulimit -u) allows {few.limit}" in line
    assert f"below {LEAST_SERVER_TASKS} no run ends; raise the limit" in line
