"""New certificates for a kit that is in use: its FedShield key, roster, policy and runs stay.

A renewal makes a new TLS key too. Of what FLARE makes, only the certificate and its key are taken
into the kit; what was changed there by hand stays.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from fedshield.disk import sync_folder
from fedshield.run.flare import provision, requests
from fedshield.run.flare.lock import locked
from fedshield.run.flare.provision import Consortium, ProvisionError


def renew_site(kit: Path) -> Path:
    """At a site: a new TLS key, and the request for its certificate. The kit goes on with the old
    one until `install_renewed`.

    Returns:
        The path of what to send to the coordinator.

    Raises:
        ProvisionError: no installed kit, or a request that waits already.
    """
    name = provision.site_name(kit)
    if not (kit / "flare" / "startup").is_dir():
        raise ProvisionError(
            f"{kit}: expected an installed kit, found no flare/startup in it; its first "
            "certificate is asked for by: fedshield site request"
        )
    if (kit / "request").exists():
        raise ProvisionError(
            f"{kit / 'request'}: expected no request there yet, found one; install what the "
            "coordinator signed of it, or delete it to ask anew"
        )
    try:
        return requests.request(kit, _project(kit), name)
    except BaseException:
        shutil.rmtree(kit / "request", ignore_errors=True)
        raise


def _project(kit: Path) -> str:
    """The consortium's name, as the kit has it. Raises `ProvisionError`."""
    path = kit / "flare" / "startup" / "fed_client.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["servers"][0]["name"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise ProvisionError(
            f"{path}: expected the consortium's name in it, found none; restore the kit"
        ) from None


def install_renewed(kit: Path, signed: Path, told_fingerprint: str | None = None) -> None:
    """At a site that does not run: what the coordinator signed, into the kit that is there.
    `told_fingerprint`: of the root certificate; the kit's own has to be it in any case.

    Raises `ProvisionError`, and then leaves the kit as it was: a site that runs, another root
    certificate, an answer to another request."""
    provision.check_waiting(kit)
    with (
        locked(kit, f"site {provision.site_name(kit)}"),
        tempfile.TemporaryDirectory(dir=kit) as elsewhere,
    ):
        package = Path(elsewhere) / "flare"
        own = provision.root_fingerprint(kit / "flare" / "startup" / "rootCA.pem")
        provision.package(kit / "request", signed, told_fingerprint or own, package)
        _take_certificate(package / "startup", kit / "flare" / "startup", "client")
    shutil.rmtree(kit / "request")


def renew_server(folder: Path) -> tuple[Path, ...]:
    """At a coordinator whose server does not run: new certificates for the server and, if it is in
    the consortium's folder, for the kit that submits runs.

    Returns:
        The kits that have new certificates.
    """
    folder = folder.resolve()
    consortium = Consortium.read(folder)
    kits = {folder / "flare": ("server", provision.server_participant(consortium))}
    if (folder / "admin" / "startup").is_dir():
        kits[folder / "admin"] = ("client", provision.admin_participant(consortium))
    with locked(folder, "the server"), tempfile.TemporaryDirectory(dir=folder) as elsewhere:
        packages: dict[Path, Path] = {}
        for kit, (_, participant) in kits.items():
            packages[kit] = Path(elsewhere) / kit.name
            provision.make_own_kit(folder, consortium.name, participant, packages[kit])
        for kit, (role, _) in kits.items():
            _take_certificate(packages[kit] / "startup", kit / "startup", role)
    return tuple(kits)


def _take_certificate(source: Path, startup: Path, role: str) -> None:
    """`role`.key and `role`.crt of a new kit in place of the old ones. Cut off in between, the two
    do not fit, which the next start says, and the renewal can be installed again."""
    if (source / "rootCA.pem").read_bytes() != (startup / "rootCA.pem").read_bytes():
        raise ProvisionError(
            f"{startup}: expected a certificate of the kit's own consortium, got one of another "
            "root; a new consortium needs a new kit"
        )
    for name in (f"{role}.key", f"{role}.crt"):
        os.replace(source / name, startup / name)
    sync_folder(startup)
