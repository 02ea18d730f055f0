"""A live consortium on loopback: server and three sites as processes of their own, provisioned
kits, mutual TLS. What they make is what the in-process engine makes; what dies, is paused, or is
not what was agreed ends in a stated way."""

from __future__ import annotations

import datetime
import json
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import SITES, Federation, Submission, federation, wait

from fedshield.enrolment import Allowed, Asked, Card, KeyFile, SignedRoster
from fedshield.run.flare.session import admin_session

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("consortium")) as made:
        yield made


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short rounds of the tiny model; deadlines that a test can wait for."""
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": 3, "evaluation": {"prompts": []}}
    raw["data"] = {"heldout_rows": 6}
    raw["data"]["sites"] = {
        site: {"source": f"sample:{sample}", "rows": 60} for site, sample in SITES.items()
    }
    raw["training"] |= {"steps": 8, "batch_size": 8, "max_length": 96}
    raw["speed"] = {"threads": 1, "work_deadline_s": 25, "message_deadline_s": 25}
    raw["speed"]["setup_deadline_s"] = 120
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def whole(live: Federation) -> Federation:
    """All parties up, whatever the test before did to them."""
    for party in ("coordinator", *live.sites):
        if not live.processes(party):
            live.kill(party)
            live.start(party)
    live.ready()
    return live


def check_resumes(live: Federation, out: Path) -> None:
    run = live.resume(out)
    status, said = run.end()
    assert status == 0, said
    assert run.adapters() == dict.fromkeys(SITES, live.alone(out))
    resumed = {}
    for site in SITES:
        summary = json.loads((run.folder(site) / "summary.json").read_text())
        assert len(summary["sessions"]) == summary["resumed"] + 1
        assert summary["wall_s"] > 0
        check_own_report(run.folder(site), site)
        resumed[site] = summary["resumed"]
    # A site that never heard of the first try was not resumed.
    assert max(resumed.values()) >= 1


def test_makes_the_same_adapter_as_one_process(whole: Federation, plan: Path) -> None:
    run = whole.begin(plan)
    status, said = run.end()
    assert status == 0, said
    assert run.adapters() == dict.fromkeys(SITES, whole.alone(run.out))
    assert [entry["round"] for entry in run.log() if "aggregate_s" in entry] == [1, 2, 3]
    for site in SITES:
        kept = run.folder(site)
        assert (kept / "adapter" / "adapter_model.safetensors").exists()
        assert (kept / "report.html").exists()
        # A site's own figures are its own: nobody else's are here.
        summary = json.loads((kept / "summary.json").read_text())
        assert set(summary["data"]) == {site}
        assert set(summary["final_heldout_loss"]["sites"]) == {site}
        assert (summary["parties"], summary["figures_of"]) == ("apart", site)
        assert (summary["resumed"], len(summary["sessions"])) == (0, 1)
        assert summary["model"]["name"] == "tiny-llama"
        check_own_report(kept, site)
        rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
        assert {row["site"] for row in rows} == {site}
        counted = (kept / "metrics.prom").read_text()
        assert f'fedshield_rounds_completed{{run="{run.name()}",party="{site}"}} 3\n' in counted
    # Neither what was submitted nor what the coordinator kept holds a model, a loss or a key.
    for folder in (run.out, run.folder("coordinator")):
        files = {path.name for path in folder.rglob("*") if path.is_file()}
        assert files - {".lock", ".process.lock", ".rosters.lock"} <= {
            *("plan.yaml", "run.json", "coordinator.jsonl"),
            *("coordinator.audit.jsonl", "rosters.json", "metrics.prom", "progress.json"),
        }
        for told in folder.glob("*.json*"):
            assert "loss" not in told.read_text(), told

    check_logs(whole, run)


def check_own_report(kept: Path, site: str) -> None:
    """A site's report and card speak of that site, and of no machine that all share."""
    report = (kept / "report.html").read_text()
    card = (kept / "adapter" / "README.md").read_text()
    assert f"Held-out loss, this site ({site})" in report
    for text in (report, card):
        assert "Each party ran from a kit of its own" in text
        for never in ("simulated", "one machine", "demonstration", "mean over", str(kept.parent)):
            assert never not in text


def test_the_doctor_shakes_hands_with_the_server(whole: Federation) -> None:
    address = f"localhost:{whole.port}"
    kit = ("--roster", "north/roster.json", "--key", "north/north.key")
    asked = ("doctor", "--connect", address, "--certificates", "north/flare", *kit)
    said = whole.call(*asked)
    assert f"TLS {address}: expected each side accepts the other's certificate, found TLSv1" in said


def check_logs(live: Federation, run: Submission) -> None:
    """Each party's log fits the others'; one that was cut at its end is found and named."""
    logs = [run.folder(site) / "sites" / site / "audit.jsonl" for site in SITES]
    logs.append(run.folder("coordinator") / "coordinator.audit.jsonl")
    verify = ("log", "verify", *logs, "--roster", "coordinator/roster.json")
    live.call(*verify)
    whole_log = logs[1].read_bytes()
    logs[1].write_bytes(b"".join(whole_log.splitlines(keepends=True)[:-3]))
    try:
        said = live.call(*verify, status=1)
    finally:
        logs[1].write_bytes(whole_log)
    assert "south" in said


def test_a_plan_below_a_sites_policy_is_refused_there(whole: Federation, plan: Path) -> None:
    policy = whole.folder / "north" / "north.policy.yaml"
    before = policy.read_text()
    try:
        # The policy is stricter than when the plan was approved.
        run = whole.begin(plan, then=lambda: policy.write_text(before + "max_rounds: 2\n"))
        status, said = run.end()
    finally:
        policy.write_text(before)
    assert status == 1
    assert "north (refused)" in said
    told = (run.folder("north") / "sites" / "north" / "error.log").read_text()
    assert "rounds: expected at most 2, got 3 (policy: max_rounds)" in told
    # The reason stays at the site.
    assert "max_rounds" not in said + json.dumps(run.log())
    assert not any(entry.get("round") for entry in run.log() if "aggregate_s" in entry)


def test_another_roster_at_a_site_is_found(whole: Federation, plan: Path) -> None:
    path = whole.folder / "west" / "roster.json"
    before = path.read_text()
    roster = SignedRoster.read(path)
    keys = {site: KeyFile.read(whole.folder / site / f"{site}.key") for site in SITES}
    cards = tuple(Card.read(whole.folder / site / f"{site}.card.json") for site in SITES)
    other = SignedRoster(roster.coordinator, cards, Asked(), Allowed(max_examples=50))
    for site, key in keys.items():
        other = other.countersigned(key, [name for name in SITES if name != site])
    path.write_text(other.to_text())
    try:
        run = whole.begin(plan)
        status, said = run.end()
    finally:
        path.write_text(before)
    assert status == 1
    # Where it stands says so already: what it signs is for its own roster.
    assert "standing from west: made for another run, plan or roster" in said


def flare_log(live: Federation, party: str) -> str:
    """What FLARE itself says at a party: in its kit, never on the console."""
    return (live.folder / party / "flare" / "log.txt").read_text()


def turned_away(port: int, startup: Path) -> bool:
    """Whether the server ends the connection of a client with this kit's certificate, which takes
    any certificate of the server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    with socket.create_connection(("localhost", port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain) as client:
                client.settimeout(5)
                return not client.recv(1)
        except TimeoutError:
            return False  # it waits for what the client has to say
        except (ssl.SSLError, ConnectionError):
            return True


def _submit_raw(live: Federation, job: Path) -> tuple[str, str]:
    """Past our own command: the job's status in the end, and what the server said to it."""
    with admin_session(live.folder / "coordinator" / "admin") as session:
        try:
            job_id = session.submit_job(str(job))
        except Exception as error:
            return "refused", str(error)
        until = time.monotonic() + 90
        while time.monotonic() < until:
            status = str(session.get_job_meta(job_id).get("status"))
            if status.startswith(("FINISHED", "FAILED", "ABANDONED")):
                return status, ""
            time.sleep(1)
        session.abort_job(job_id)
    return "still there", ""


def _job(folder: Path, path: str, arguments: dict[str, str]) -> Path:
    """A job whose client and server components are of the class `path`."""
    config = folder / "odd" / "app" / "config"
    config.mkdir(parents=True)
    runtime = "nvflare.collab.runtime"
    executor = {"path": f"{runtime}.executor.CollabExecutor", "args": {"client_obj_id": "_client"}}
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "_client", "path": path, "args": arguments}],
    }
    controller = f"{runtime}.controller.CollabController"
    server = {
        "format_version": 2,
        "workflows": [
            {"id": "controller", "path": controller, "args": {"server_obj_id": "_server"}}
        ],
        "components": [{"id": "_server", "path": path, "args": arguments}],
    }
    (config / "config_fed_client.json").write_text(json.dumps(client))
    (config / "config_fed_server.json").write_text(json.dumps(server))
    meta = {"name": "odd", "min_clients": 1, "resource_spec": {}, "deploy_map": {"app": ["@ALL"]}}
    (folder / "odd" / "meta.json").write_text(json.dumps(meta))
    return folder / "odd"


EVIL = """
import pathlib
class Evil:
    def __init__(self, mark):
        pathlib.Path(mark).touch()
"""


@pytest.mark.slow
def test_a_job_with_shipped_code_runs_nowhere(whole: Federation, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    job = _job(tmp_path, "evil.Evil", {"mark": str(mark)})
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "evil.py").write_text(EVIL)
    status, said = _submit_raw(whole, job)
    assert "COMPLETED" not in status, said
    assert not mark.exists()
    assert "byoc" in (said + flare_log(whole, "coordinator")).lower()


@pytest.mark.slow
def test_a_job_of_an_unlisted_class_runs_nowhere(whole: Federation, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    job = _job(tmp_path, "logging.FileHandler", {"filename": str(mark)})
    status, said = _submit_raw(whole, job)
    assert "COMPLETED" not in status, said
    assert not mark.exists()


@pytest.mark.slow
def test_an_unknown_certificate_is_not_let_in(whole: Federation, tmp_path: Path) -> None:
    """A site of another consortium, with the same name, pointed at this server: our own software
    does not go on with it, and the server does not go on with whatever else has its keys."""
    other = Federation(tmp_path)
    other.make()
    path = tmp_path / "west" / "flare" / "startup" / "fed_client.json"
    found = json.loads(path.read_text())
    found["servers"][0]["service"]["target"] = f"localhost:{whole.port}"
    path.write_text(json.dumps(found))
    joined = flare_log(whole, "coordinator").count("Client: New client")
    assert joined >= len(whole.sites), "the log that is read is the one that would show it"
    other.start("west")
    try:
        told = tmp_path / "west.log"
        wait(lambda: "certificate" in told.read_text().lower(), "the stranger to be turned away")
        time.sleep(10)
        assert flare_log(whole, "coordinator").count("Client: New client") == joined
        assert "connected to the server" not in told.read_text()
    finally:
        other.stop()
    assert turned_away(whole.port, tmp_path / "west" / "flare" / "startup")
    assert not turned_away(whole.port, whole.folder / "west" / "flare" / "startup")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "upload", "vote"])
def test_a_site_killed_in_a_round_stops_it_and_the_run_goes_on(
    whole: Federation, plan: Path, moment: str
) -> None:
    """`training`: before its upload, nothing can be opened without it. After its upload the round
    is opened by the others, and the next cannot begin: three sites of three are needed."""
    run = whole.begin(plan)
    if moment == "training":
        run.wait_for_round(1)
    else:
        run.wait_for_journal("north", moment, 2)
    whole.kill("north")
    status, said = run.end()
    assert status == 1
    assert "no answer from north" in said
    assert "the model of the last round is kept" in said
    whole.start("north")
    whole.ready()
    check_resumes(whole, run.out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "upload", "vote", "answer"])
def test_a_server_killed_in_a_round_loses_nothing(
    whole: Federation, plan: Path, moment: str
) -> None:
    run = whole.begin(plan)
    if moment == "training":
        run.wait_for_round(1)
    else:
        run.wait_for_journal("south", moment, 2)
    whole.kill("coordinator")
    status, said = run.end()
    assert status == 1
    assert "the server does not answer any more" in said
    whole.start("coordinator")
    whole.ready()
    check_resumes(whole, run.out)


@pytest.mark.slow
def test_a_paused_site_is_lost_at_its_deadline(whole: Federation, plan: Path) -> None:
    run = whole.begin(plan)
    run.wait_for_round(1)
    whole.signal("west", signal.SIGSTOP)
    try:
        started = time.monotonic()
        status, said = run.end()
        assert time.monotonic() - started < 120
    finally:
        whole.signal("west", signal.SIGCONT)
    assert status == 1
    assert "no answer from west (deadline)" in said
    whole.ready()
    check_resumes(whole, run.out)


@pytest.mark.slow
def test_a_full_disk_at_a_site_stops_the_run_and_loses_nothing(
    whole: Federation, plan: Path
) -> None:
    run = whole.begin(plan)
    run.wait_for_round(1)
    journal = run.folder("south") / "journal" / "south.jsonl"
    aside = journal.with_name("aside")
    shutil.move(journal, aside)
    journal.symlink_to("/dev/full")
    try:
        status, said = run.end()
    finally:
        journal.unlink()
        shutil.move(aside, journal)
    assert status == 1
    assert "south (journal)" in said
    told = (run.folder("south") / "sites" / "south" / "error.log").read_text()
    assert "No space left on device" in told
    check_resumes(whole, run.out)


@pytest.mark.slow
def test_a_clock_two_hours_ahead_changes_nothing_but_the_times_in_the_log(
    whole: Federation, plan: Path
) -> None:
    """Deadlines are monotonic and nothing signed depends on the time of day."""
    whole.kill("west")
    whole.start("west", clock_off_s=7200)
    try:
        whole.ready()
        run = whole.begin(plan)
        status, said = run.end()
    finally:
        whole.kill("west")
    assert status == 0, said
    assert run.adapters() == dict.fromkeys(SITES, whole.alone(run.out))
    check_logs(whole, run)
    west, north = (_last_time(run, site) for site in ("west", "north"))
    assert abs((west - north).total_seconds() - 7200) < 120


def _last_time(run: Submission, site: str) -> datetime.datetime:
    lines = (run.folder(site) / "sites" / site / "audit.jsonl").read_text().splitlines()
    return datetime.datetime.fromisoformat(json.loads(lines[-1])["time"])


@pytest.mark.slow
@pytest.mark.parametrize(("hours", "what"), [(-2, "not valid yet"), (20 * 8766, "expired")])
def test_a_site_whose_clock_is_outside_its_certificate_is_told_so_at_once(
    whole: Federation, hours: int, what: str
) -> None:
    """TLS would fail for ever. The certificates here are minutes old."""
    whole.kill("west")
    log = whole.folder / "west.log"
    before = len(log.read_text())
    whole.start("west", clock_off_s=hours * 3600)
    assert whole.end("west") == 2
    said = log.read_text()[before:]
    assert said.startswith("fedshield: west: certificate")
    assert what in said
    assert "set the clock" in said
    assert len(said.splitlines()) == 1
