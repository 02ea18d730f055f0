"""The life of kits on a live consortium, in a folder whose path a shell would take apart: one
process of each, a renewed certificate, a replaced key, and what is said before FLARE tries."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_consortium import SITES, Federation, commands, wait

from fedshield.enrolment import KeyFile, SignedRoster

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

#: Spaces, quotes, a dollar, a semicolon, a number sign, a percent, a tilde, a backslash, a letter
#: that is not ASCII: what FLARE's command line, a shell or a URL take for something else.
ODD = 'a ward\'s "notes" $HOME;#1%20~\\ü'


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Sites that have a proxy in their environment, as machines in hospitals do; nothing is
    behind it."""
    folder = tmp_path_factory.mktemp("kits") / ODD
    folder.mkdir()
    federation = Federation(folder)
    federation.make()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = {"https_proxy": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        try:
            # Before the server: what a site says then is tested below.
            federation.start("west", more=proxy)
            told = folder / "west.log"
            wait(lambda: "goes on trying" in told.read_text(), "west to say that nothing answers")
            federation.start("coordinator")
            federation.start("north", "south", more=proxy)
            federation.ready()
            yield federation
        finally:
            federation.stop()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short rounds of the tiny model."""
    raw = yaml.safe_load((Path(__file__).parents[2] / "examples" / "tiny.yaml").read_text())
    raw |= {"rounds": 2, "evaluation": {"prompts": []}}
    raw["data"] = {"heldout_rows": 6}
    raw["data"]["sites"] = {
        site: {"source": f"sample:{sample}", "rows": 60} for site, sample in SITES.items()
    }
    raw["training"] |= {"steps": 4, "batch_size": 8, "max_length": 96}
    raw["speed"] = {"threads": 1, "work_deadline_s": 120, "message_deadline_s": 120}
    raw["speed"]["setup_deadline_s"] = 240
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def adapter_of_a_run(federation: Federation, plan: Path) -> str:
    """Of a run that ended well, with one adapter at all sites."""
    run = federation.begin(plan)
    status, said = run.end()
    assert status == 0, said
    adapters = set(run.adapters().values())
    assert len(adapters) == 1
    return adapters.pop()


def test_a_site_says_that_the_server_does_not_answer_and_connects_when_it_does(
    odd: Federation,
) -> None:
    said = (odd.folder / "west.log").read_text().splitlines()
    assert said[0].startswith(f"note: the server at localhost:{odd.port} does not answer: ")
    assert said[1].startswith("note: https_proxy not used for the connection to localhost")
    assert "west" in odd.connected()


def test_a_second_process_of_a_kit_is_refused(odd: Federation) -> None:
    for party, kind in (("north", "site"), ("coordinator", "server")):
        (first,) = odd.processes(party)
        said = odd.call(kind, "start", party, status=2)
        (line,) = said.splitlines()
        assert line.startswith(f"fedshield: {party}: expected that ")
        assert f"process {first} runs it; one kit is for one process" in line
        assert odd.processes(party) == [first]
    assert odd.connected() == sorted(SITES)


def test_a_server_of_another_name_is_told_at_once(odd: Federation) -> None:
    """FLARE would try for ever. The certificate is for localhost."""
    odd.kill("west")
    path = odd.folder / "west" / "flare" / "startup" / "fed_client.json"
    before = path.read_text()
    path.write_text(before.replace(f"localhost:{odd.port}", f"127.0.0.1:{odd.port}"))
    try:
        (line,) = odd.call("site", "start", "west", status=2).splitlines()
        assert f"the server at 127.0.0.1:{odd.port}, but its certificate is for localhost" in line
    finally:
        path.write_text(before)
    # The first one died, and its kit is free again.
    odd.start("west")
    odd.ready()


def test_runs_in_any_path_with_a_renewed_certificate_and_a_replaced_key(
    odd: Federation, plan: Path
) -> None:
    adapter_of_a_run(odd, plan)
    kept = _untouched(odd.folder / "north")
    certificates = _certificates(odd.folder)
    roster = (odd.folder / "coordinator" / "roster.json").read_bytes()
    odd.type(["fedshield site renew north"])
    said = odd.call("site", "install", "north", "coordinator/north.signed.zip", status=2)
    assert "process" in said  # it runs
    odd.stop()

    renewal = commands("## When a certificate ends", "## When a party's key is replaced")
    assert len(renewal) == 4
    odd.type(renewal[1:])
    assert _untouched(odd.folder / "north") == kept
    assert (odd.folder / "coordinator" / "roster.json").read_bytes() == roster
    after = _certificates(odd.folder)
    changed = {name for name in after if after[name] != certificates[name]}
    assert changed == {"north", "coordinator/flare", "coordinator/admin"}

    odd.type(commands("## When a party's key is replaced", "## Keys"))
    new = SignedRoster.read(odd.folder / "south" / "roster.json")
    key = KeyFile.read(odd.folder / "south" / "south.key").key
    assert new.check_ready(key).ready
    assert new.card("south").first_public() != key.public

    odd.start()
    odd.ready()
    # Another adapter than before: what a site draws comes from the plan, its name too, and its key.
    adapter_of_a_run(odd, plan)


def _untouched(kit: Path) -> dict[str, bytes]:
    """What a renewal leaves as it is: all of the kit but TLS key, certificate and what FLARE
    writes as it runs."""
    names = ("north.key", "north.card.json", "roster.json", "north.policy.yaml")
    paths = [kit / name for name in names]
    paths += [kit / "flare" / "startup" / name for name in ("fed_client.json", "rootCA.pem")]
    paths += sorted((kit / "flare" / "local").iterdir())
    paths += sorted(path for path in (kit / "runs").rglob("*") if path.is_file())
    assert json.loads(paths[0].read_text())["name"] == "north"
    return {str(path.relative_to(kit)): path.read_bytes() for path in paths}


def _certificates(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """Kit -> its TLS certificate and key."""
    kits = {**{site: folder / site / "flare" for site in SITES}}
    kits |= {f"coordinator/{name}": folder / "coordinator" / name for name in ("flare", "admin")}
    return {
        name: tuple(  # type: ignore[misc]
            path.read_bytes()
            for suffix in ("crt", "key")
            for path in (kit / "startup").glob(f"*.{suffix}")
        )
        for name, kit in kits.items()
    }
