"""Starting a party of a provisioned consortium: FLARE's process, with this party's kit."""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path
from typing import NoReturn

from fedshield.doctor import certificates
from fedshield.engines.flare.kit import KIT
from fedshield.engines.flare.provision import (
    ProvisionError,
    keep_inside,
    organisation,
    site_name,
)
from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.policy import POLICY_FILE, Policy

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


def start_site(kit: Path) -> NoReturn:
    """Become FLARE's client process. Raises `UserError`s before that: a kit that is not whole,
    certificates that are not in date by this machine's clock, a roster that is not ready, a policy
    that cannot be read."""
    name = site_name(kit)
    _check(kit, f"{name}.key", "fed_client.json")
    Policy.read(kit / POLICY_FILE.format(site=name))
    _become(
        kit,
        "nvflare.private.fed.app.client.client_train",
        "fed_client.json",
        f"uid={name}",
        f"org={organisation(name)}",
    )


def start_server(folder: Path) -> NoReturn:
    """Become FLARE's server process. Raises `UserError`s as `start_site`."""
    _check(folder, "coordinator.key", "fed_server.json")
    keep_inside(folder / "flare")
    _become(
        folder, "nvflare.private.fed.app.server.server_train", "fed_server.json", "org=coordinator"
    )


def _check(kit: Path, key: str, configuration: str) -> None:
    for path in (kit / key, kit / "roster.json", kit / "flare" / "startup" / configuration):
        if not path.exists():
            raise ProvisionError(
                f"{path}: expected it in the kit, found none; see docs/deploy.md for what makes it"
            )
    # FLARE would try for ever, and say so only in its log.
    for one in certificates(kit / "flare" / "startup", datetime.datetime.now(datetime.UTC)):
        if one.state == "FAILED":
            raise ProvisionError(
                f"{kit}: {one.check}: expected {one.expected}, got {one.found}; {one.todo}"
            )
    SignedRoster.read(kit / "roster.json").check_ready(KeyFile.read(kit / key).key)


def _become(kit: Path, module: str, configuration: str, *settings: str) -> NoReturn:
    workspace = (kit / "flare").resolve()
    (workspace / "transfer").mkdir(exist_ok=True)
    environment = dict(os.environ) | {KIT: str(kit.resolve())}
    # Nothing from the folder that the command was typed in may be imported.
    environment.pop("PYTHONPATH", None)
    if module.endswith(".server_train"):
        environment = SPARING | environment
    os.chdir(workspace)
    command = [sys.executable, "-P", "-u", "-m", module, "-m", str(workspace), "-s", configuration]
    command += ["--set", "secure_train=true", *settings, "config_folder="]
    os.execve(sys.executable, command, environment)
