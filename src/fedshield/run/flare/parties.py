"""Starting a party of a provisioned consortium: FLARE's process, with this party's kit."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fedshield.certificates import certificates, certificates_ending
from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.policy import POLICY_FILE, Policy
from fedshield.enrolment.seen import put_in_force
from fedshield.run.flare import site_main
from fedshield.run.flare.environment import direct_hosts, proxy_note
from fedshield.run.flare.kit import KIT
from fedshield.run.flare.lock import lock_kit
from fedshield.run.flare.paths import check_kit_path
from fedshield.run.flare.provision import (
    Consortium,
    ProvisionError,
    check_flare_installed,
    keep_inside,
    organisation,
    site_name,
    use_launcher,
)
from fedshield.run.flare.reach import check_server, server_address

#: What keeps the coordinator's memory from growing with the number of sites. FLARE takes a buffer
#: of a whole chunk (1 MiB by default) for every message on its way, however short; and it keeps
#: each message's reception in mind for a minute, with a thread: an allocator's arena for each
#: thread would hold what it freed.
#: The window goes with the chunk: FLARE's own, 64 MiB, would be 1,025 chunks, of which a receiver
#: warns at every message from 1,024 on.
SPARING = {
    "NVFLARE_STREAMING_CHUNK_SIZE": str(64 * 1024),
    "NVFLARE_STREAMING_WINDOW_SIZE": str(16 * 1024 * 1024),
    "NVFLARE_STREAMING_ACK_INTERVAL": str(4 * 1024 * 1024),
    "MALLOC_ARENA_MAX": "2",
}


Say = Callable[[str], object]


def start_site(kit: Path, say: Say) -> NoReturn:
    """Become FLARE's client process. `say` gets each sentence that the operator should read first.

    Raises `UserError`s before that: a kit that is not whole or that runs already, certificates
    that are not in date by this machine's clock, a server that answers and is not the
    consortium's, a roster that is not ready, a policy that cannot be read."""
    name = site_name(kit)
    check_kit_path(kit)
    _check(kit, f"{name}.key", "fed_client.json", say)
    Policy.read(kit / POLICY_FILE.format(site=name))
    lock_kit(kit, f"site {name}")
    use_launcher(kit / "flare", "client")
    startup = kit / "flare" / "startup"
    host, _ = server_address(startup)
    unknown = check_server(startup)
    if unknown is not None:
        say(f"{unknown}; the site goes on trying")
    _say_of_proxies(host, say)
    _become(
        kit,
        site_main.__name__,
        "fed_client.json",
        host,
        f"uid={name}",
        f"org={organisation(name)}",
    )


def start_server(folder: Path, say: Say) -> NoReturn:
    """Become FLARE's server process. Raises `UserError`s as `start_site`."""
    check_kit_path(folder)
    _check(folder, "coordinator.key", "fed_server.json", say)
    lock_kit(folder, "the server")
    keep_inside(folder / "flare")
    use_launcher(folder / "flare", "server")
    _become(
        folder,
        "nvflare.private.fed.app.server.server_train",
        "fed_server.json",
        Consortium.read(folder).host,
        "org=coordinator",
    )


def _check(kit: Path, key: str, configuration: str, say: Say) -> None:
    check_flare_installed()
    if os.environ.get("PYTHONPATH"):
        say("PYTHONPATH is not used: a party imports nothing but what is installed")
    for path in (kit / key, kit / "roster.json", kit / "flare" / "startup" / configuration):
        if not path.exists():
            raise ProvisionError(
                f"{path}: expected it in the kit, found none; see docs/deploy.md for what makes it"
            )
    now = datetime.datetime.now(datetime.UTC)
    # FLARE would try for ever, and say so only in its log.
    for finding in certificates(kit / "flare" / "startup", now):
        if finding.state == "FAILED":
            raise ProvisionError(
                f"{kit}: {finding.check}: expected {finding.expected}, got {finding.found}; "
                f"{finding.todo}"
            )
    for folder in (kit / "flare" / "startup", kit / "admin" / "startup"):
        for ending in certificates_ending(folder, now):
            say(ending.in_words())
    roster = SignedRoster.read(kit / "roster.json")
    roster.check_ready(KeyFile.read(kit / key).key)
    for sentence in put_in_force(kit, roster):
        say(sentence)


def _say_of_proxies(host: str, say: Say) -> None:
    note = proxy_note(os.environ, host)
    if note is not None:
        say(note)


def _become(kit: Path, module: str, configuration: str, host: str, *settings: str) -> NoReturn:
    """`host`: the server's."""
    workspace = (kit / "flare").resolve()
    (workspace / "transfer").mkdir(exist_ok=True)
    environment = dict(os.environ) | {KIT: str(kit.resolve())} | direct_hosts(os.environ, host)
    # Nothing from the folder that the command was typed in may be imported.
    environment.pop("PYTHONPATH", None)
    if module.endswith(".server_train"):
        environment = SPARING | environment
    os.chdir(workspace)
    command = [sys.executable, "-P", "-u", "-m", module, "-m", str(workspace), "-s", configuration]
    command += ["--set", "secure_train=true", *settings, "config_folder="]
    os.execve(sys.executable, command, environment)
