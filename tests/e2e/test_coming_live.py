"""A site of a live consortium leaves, and another joins, by the commands of docs/deploy.md: each
signs what that shows of it, and without its signature the others' ledgers go on with no one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from live_consortium import Federation, Submission, federation

from fedshield.run.flare import provision

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

SITES = {"east": "code", "north": "medical", "south": "finance", "west": "maths"}
STAY = ("north", "south", "west")
NEWCOMER = {"lab": "medical"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("coming"), SITES) as made:
        yield made


def plan(live: Federation, name: str, sites: Sequence[str]) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"name": name, "rounds": 1, "evaluation": {"prompts": []}}
    # What a site counts for stays the same under every roster (R2).
    raw["scheme"] = {"weights": "equal"}
    raw["data"] = {"heldout_rows": 6, "sites": {}}
    for site in sites:
        source = f"sample:{(SITES | NEWCOMER)[site]}"
        raw["data"]["sites"][site] = {"source": source, "rows": 60}
    raw["training"] |= {"steps": 2, "batch_size": 8, "max_length": 96}
    raw["speed"] = {"threads": 1, "setup_deadline_s": 120}
    path = live.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def approve(
    live: Federation, path: Path, sites: Sequence[str], exposed: str = ""
) -> dict[str, str]:
    said = {}
    for site in sites:
        more = ("--exposed",) if site == exposed else ()
        typed = f"{len(sites)}\n{site}\n"
        said[site] = live.call("site", "approve", path, "--kit", site, *more, typed=typed)
    return said


def run(live: Federation, path: Path) -> Submission:
    out = live.folder / f"out-{path.stem}"
    made = Submission(live, out, ("submit", path, "--out", out))
    status, said = made.end()
    assert status == 0, said
    return made


def put_in_force(live: Federation, sites: Sequence[str]) -> None:
    """All compare and sign the next roster, and take it; their processes start anew."""
    following = "coordinator/roster.next.json"
    for site in sites:
        others = ",".join(other for other in sites if other != site)
        live.call("roster", "sign", following, "--key", f"{site}/{site}.key", "--confirm", others)
    live.stop()
    shutil.move(live.folder / following, live.folder / "coordinator" / "roster.json")
    for site in sites:
        shutil.copy(live.folder / "coordinator" / "roster.json", live.folder / site)
    live.start("coordinator", *sites)
    live.ready(*sites)


def batches(live: Federation, site: str) -> list[int]:
    """Sizes of the batches in the rows of a site's ledger, in order."""
    lines = map(json.loads, (live.folder / site / f"{site}.ledger").read_text().splitlines())
    return [len(line["batch"]) for line in lines if line["kind"] == "row"]


def test_a_leaver_and_a_joiner(live: Federation) -> None:
    live.ready()
    path = plan(live, "all-four", tuple(SITES))
    approve(live, path, tuple(SITES))
    run(live, path)

    # Without its signature it is not hidden, and that is said before anybody signs.
    roster, following = "coordinator/roster.json", live.folder / "coordinator/roster.next.json"
    said = live.call("roster", "leave", roster, "east", typed="east\n")
    assert "not hidden" in said
    following.unlink()

    # It signs what its leaving shows of it.
    said = live.call(
        *("roster", "leave", "east/roster.json", "east", "--key", "east/east.key"), typed="east\n"
    )
    assert "east's update of round r can be computed by whoever holds the sums" in said
    said = live.call(
        *("roster", "leave", roster, "east", "--exposure", "east.going.json"), typed="east\n"
    )
    assert "EXPOSED" in said
    assert "not hidden" not in said
    put_in_force(live, STAY)
    path = plan(live, "three", STAY)
    said = approve(live, path, STAY)["north"]
    assert "east" in said
    made = run(live, path)
    assert batches(live, "north") == [4, 3]
    card = (made.folder("north") / "adapter" / "README.md").read_text()
    assert "east: exposed. This roster follows one with other sites" in card

    # A new one joins: the others hide it from nobody, and it signs that.
    live.call("site", "request", "lab", "--consortium", "ward-notes", "--out", "lab")
    live.call(
        *("consortium", "approve", "coordinator", "lab/request/lab.request.zip"),
        "lab/lab.card.json",
    )
    fingerprint = provision.fingerprint(live.folder / "coordinator")  # told by telephone
    live.call(
        *("site", "install", "lab", "coordinator/lab.signed.zip", "--fingerprint", fingerprint)
    )
    live.write_policy("lab", NEWCOMER["lab"])
    following.unlink()
    card_of = "lab/lab.card.json"
    said = live.call("roster", "join", roster, card_of, "--key", "lab/lab.key", typed="lab\n")
    assert "lab's update of round r can be computed by whoever holds the sums" in said
    exposure = ("--exposure", "lab.joining.json")
    assert "EXPOSED" in live.call("roster", "join", roster, card_of, *exposure, typed="lab\n")
    everyone = (*STAY, "lab")
    put_in_force(live, everyone)
    path = plan(live, "with-lab", everyone)
    said = live.call("site", "approve", path, "--kit", "lab", typed="4\nlab\n", status=2)
    assert "--exposed" in said
    assert "lab" in approve(live, path, everyone, exposed="lab")["north"]
    made = run(live, path)
    assert batches(live, "north") == [4, 3, 4]
    assert batches(live, "lab") == [4]
    adapters = {
        json.loads((made.folder(site) / "summary.json").read_text())["adapter_sha256"]
        for site in everyone
    }
    assert len(adapters) == 1
