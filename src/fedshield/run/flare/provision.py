"""Certificates and start-up kits, by FLARE's own tools: every private key stays where it is used.

A consortium's folder (coordinator) and a site's kit hold, besides FedShield's key and roster:

    flare/         FLARE's start-up kit of this party (startup/, local/)
    request/       what was asked for, with the TLS key until the kit is made
    ca/            the coordinator's only: the consortium's certificate authority
    admin/         the coordinator's only: the kit that submits runs
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fedshield.errors import UserError
from fedshield.run.flare.jobs import allow_classes

#: Who submits runs: FLARE wants names that look like mail addresses.
ADMIN_ROLE = "lead"
#: Nobody may ship code, or open a shell at another party, whatever a role is called.
FORBIDDEN = ("byoc", "shell_commands", "clone_job")
#: FLARE's word for what starts the process of a job, and our own of each role.
LAUNCHER = "process_launcher"
LAUNCHERS = {
    "client": "fedshield.run.flare.launchers.ClientLauncher",
    "server": "fedshield.run.flare.launchers.ServerLauncher",
}
ROLES = ("project_admin", "org_admin", "lead", "member")


class ProvisionError(UserError):
    """A kit, certificate or consortium folder that is missing or not what it should be."""


@dataclass(frozen=True)
class Consortium:
    """`name`: FLARE's project; `host`, `port`: where sites reach the server, its only port."""

    name: str
    host: str
    port: int

    @classmethod
    def read(cls, folder: Path) -> Consortium:
        path = folder / "consortium.yaml"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            server = found["server"]
            return cls(str(found["name"]), str(server["host"]), int(server["fed_learn_port"]))
        except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError):
            raise ProvisionError(
                f"{folder}: expected a consortium's folder, found no sound consortium.yaml; make "
                "one with: fedshield consortium init"
            ) from None

    @classmethod
    def checked(cls, name: str, host: str, port: int) -> Consortium:
        """Raises `ProvisionError` for what FLARE or a certificate cannot hold."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
            raise ProvisionError(
                f"--name: expected small letters, digits and dashes, got {name[:60]!r}"
            )
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,200}[A-Za-z0-9])?", host):
            raise ProvisionError(f"--host: expected a host name, got {host[:60]!r}")
        if not 1 <= port <= 65535:
            raise ProvisionError(f"--port: expected 1 to 65535, got {port}")
        return cls(name, host, port)

    @property
    def admin(self) -> str:
        return f"admin@{self.name}.org"

    def profile(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "scheme": "grpc",
            "connection_security": "mtls",
            "server": {
                "host": self.host,
                "fed_learn_port": self.port,
                "admin_port": self.port,
            },
        }


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is whole in the end, or not there: yields where to make it."""
    if path.exists() or path.is_symlink():
        raise ProvisionError(f"{path}: expected no folder there yet, found one; choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def site_name(kit: Path) -> str:
    """Whose kit it is, by the key in it. Raises `ProvisionError` unless there is just one."""
    names = sorted(path.stem for path in kit.glob("*.key"))
    if len(names) != 1:
        raise ProvisionError(
            f"{kit}: expected a site's kit with its one key file, got {len(names)}; make one with: "
            "fedshield site request"
        )
    return names[0]


def organisation(site: str) -> str:
    """What FLARE calls the organisation of a site: it takes no dashes there, and sites no
    underscores, so no two sites share one."""
    return site.replace("-", "_")


def _tool(*arguments: str) -> None:
    """FLARE's command line, silent unless it fails."""
    check_flare_installed()
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=elsewhere,
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ProvisionError(f"nvflare {arguments[0]}: {'; '.join(lines)[:400]}")


def make_authority(folder: Path, consortium: Consortium) -> None:
    """The consortium's certificate authority, the server's kit and the kit that submits runs."""
    folder = folder.resolve()  # FLARE's tools run elsewhere
    profile = folder / "consortium.yaml"
    profile.write_text(yaml.safe_dump(consortium.profile(), sort_keys=False))
    # Without --org: FLARE 2.9.0 leaves it out of the issuer of what it signs, and the chain breaks.
    _tool("cert", "init", "--profile", str(profile), "-o", str(folder / "ca"))
    (folder / "ca" / "rootCA.key").chmod(0o600)
    make_own_kit(folder, consortium.name, server_participant(consortium), folder / "flare")
    make_own_kit(folder, consortium.name, admin_participant(consortium), folder / "admin")
    _harden(folder / "flare")


def server_participant(consortium: Consortium) -> dict[str, Any]:
    """What FLARE's tools want to know of the server."""
    return {
        "name": consortium.host,
        "type": "server",
        "org": "coordinator",
        "fed_learn_port": consortium.port,
        "admin_port": consortium.port,
    }


def admin_participant(consortium: Consortium) -> dict[str, Any]:
    """The same of the kit that submits runs."""
    return {
        "name": consortium.admin,
        "type": "admin",
        "org": "coordinator",
        "role": ADMIN_ROLE,
    }


def make_own_kit(folder: Path, project: str, participant: dict[str, Any], kit: Path) -> None:
    """A start-up kit of the coordinator's own, requested and signed here."""
    with tempfile.TemporaryDirectory() as elsewhere:
        asked = Path(elsewhere) / "request"
        _request(asked, project, participant)
        zipped = asked / f"{participant['name']}.request.zip"
        signed = approve(folder, zipped, Path(elsewhere) / "kit.signed.zip")
        package(asked, signed, fingerprint(folder), kit)


def _request(out: Path, project: str, participant: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as found:
        description = Path(found) / "participant.yaml"
        description.write_text(
            yaml.safe_dump({"name": project, "participants": [participant]}, sort_keys=False)
        )
        _tool("cert", "request", "-p", str(description), "--out", str(out))


def request(kit: Path, consortium_name: str, site: str) -> Path:
    """A site's TLS key, and the request for its certificate: the path of what to send."""
    kit = kit.resolve()
    participant = {"name": site, "type": "client", "org": organisation(site)}
    _request(kit / "request", consortium_name, participant)
    return kit / "request" / f"{site}.request.zip"


def approve(folder: Path, zipped: Path, out: Path) -> Path:
    """The coordinator signs a request: what goes back to the site, in place of what went there
    for an earlier request."""
    with tempfile.TemporaryDirectory(dir=out.resolve().parent) as elsewhere:
        signed = Path(elsewhere) / out.name
        _tool(
            *("cert", "approve", str(zipped.resolve()), "-c", str((folder / "ca").resolve())),
            *("--profile", str((folder / "consortium.yaml").resolve()), "--out", str(signed)),
        )
        os.replace(signed, out)
    return out


def fingerprint(folder: Path) -> str:
    """SHA-256 of the consortium's root certificate, for operators to compare."""
    return root_fingerprint(folder / "ca" / "rootCA.pem")


def root_fingerprint(path: Path) -> str:
    """SHA-256 of the root certificate in this file. Raises `ProvisionError`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise ProvisionError(f"{path}: expected the root certificate; restore it") from None
    digest = found.fingerprint(hashes.SHA256()).hex().upper()
    return "SHA256:" + ":".join(digest[at : at + 2] for at in range(0, 64, 2))


def package(asked: Path, signed: Path, told_fingerprint: str, kit: Path) -> None:
    """FLARE's start-up kit from the local request and what the coordinator signed. Raises
    `ProvisionError` if the root certificate is not the one with this fingerprint."""
    kit = kit.resolve()
    if kit.exists():
        raise ProvisionError(f"{kit}: expected no kit there yet, found one; move it away first")
    with tempfile.TemporaryDirectory(dir=kit.parent) as found:
        _tool(
            *("package", str(signed.resolve()), "--request-dir", str(asked.resolve())),
            *("-w", found, "--fingerprint", told_fingerprint),
        )
        made = [path.parent for path in Path(found).glob("*/prod_*/*/startup")]
        if len(made) != 1:
            raise ProvisionError(f"{signed}: expected one kit in it, got {len(made)}")
        for key in made[0].glob("startup/*.key"):
            key.chmod(0o600)
        os.replace(made[0], kit)


def install(kit: Path, signed: Path, told_fingerprint: str) -> None:
    """At a site: its FLARE kit, in `kit`, with what no job may loosen."""
    check_waiting(kit)
    package(kit / "request", signed, told_fingerprint, kit / "flare")
    _harden(kit / "flare")
    shutil.rmtree(kit / "request")


def check_waiting(kit: Path) -> None:
    if not (kit / "request").is_dir():
        raise ProvisionError(
            f"{kit}: expected a request that waits for its certificate, found none; make one with: "
            "fedshield site request, or site renew for a kit that is installed"
        )


def _harden(flare: Path) -> None:
    """Only our classes are built and nobody ships code. Both are needed: the list of classes is
    skipped for jobs that ship code. FLARE's own scripts go: they start a client that carries out
    what a server asks by topic, whatever a site's rules say."""
    for script in (flare / "startup").glob("*.sh"):
        script.unlink()
    local = flare / "local"
    resources = local / "resources.json"
    shutil.copy(local / "resources.json.default", resources)
    allow_classes(resources, only=True)
    found = json.loads(resources.read_text())
    # A site's log stays at the site.
    found["allow_log_streaming"] = False
    found["components"] = [
        part for part in found["components"] if part["id"] != "site_log_streamer"
    ]
    resources.write_text(json.dumps(found, indent=2) + "\n")
    rules = json.loads((local / "authorization.json.default").read_text())
    for role in ROLES:
        given = rules["permissions"].get(role)
        if given == "any":
            given = {"submit_job": "any", "manage_job": "any", "download_job": "any"}
            given |= {"view": "any", "operate": "any"}
        given = dict(given or {}) | dict.fromkeys(FORBIDDEN, "none")
        rules["permissions"][role] = given
    (local / "authorization.json").write_text(json.dumps(rules, indent=2) + "\n")


def keep_inside(flare: Path) -> None:
    """Have the server keep jobs and snapshots in its kit, not in a folder that others share."""
    path = flare / "local" / "resources.json"
    found = json.loads(path.read_text())
    root = flare.resolve()
    found["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(root / "snapshots")
    for part in found["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = str(root / "jobs")
    path.write_text(json.dumps(found, indent=2) + "\n")


def use_launcher(flare: Path, role: Literal["client", "server"]) -> None:
    """Have the FLARE kit start the processes of its jobs with our launcher: one that any path
    survives. Raises `ProvisionError` for a kit without sound settings."""
    path = flare / "local" / "resources.json"
    try:
        resources = json.loads(path.read_text(encoding="utf-8"))
        (component,) = [part for part in resources["components"] if part["id"] == LAUNCHER]
    except (OSError, ValueError, KeyError, TypeError):
        raise ProvisionError(
            f"{path}: expected FLARE's settings with a {LAUNCHER}, found none; install the kit "
            "again"
        ) from None
    if component.get("path") != LAUNCHERS[role]:
        component["path"] = LAUNCHERS[role]
        path.write_text(json.dumps(resources, indent=2) + "\n", encoding="utf-8")


def check_flare_installed() -> None:
    """Raises `ProvisionError` without NVIDIA FLARE."""
    if importlib.util.find_spec("nvflare") is None:
        raise ProvisionError(
            "expected NVIDIA FLARE 2.9.0, found none; install FedShield with its extra `flare` "
            "(docs/deploy.md has the line)"
        )
