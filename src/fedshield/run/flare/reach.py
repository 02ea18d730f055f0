"""Whether the server answers a kit, before FLARE tries: it would try for ever, and say nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fedshield.run import probe
from fedshield.run.flare.environment import wanted_proxy
from fedshield.run.flare.provision import ProvisionError

TIMEOUT_S = 5.0


def server_address(startup: Path) -> tuple[str, int]:
    """Host and port of the server, as the kit's `startup` folder has them: a site's, or that of
    the kit that submits. Raises `ProvisionError`."""
    try:
        if (startup / "fed_admin.json").exists():
            admin = _section(startup / "fed_admin.json")["admin"]
            return str(admin["host"]), int(admin["port"])
        service = _section(startup / "fed_client.json")["servers"][0]["service"]
        host, _, port = str(service["target"]).rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise ProvisionError(
            f"{startup}: expected the server's address in the kit, found none; install the kit "
            "again"
        ) from None


def _section(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_server(startup: Path, timeout_s: float = TIMEOUT_S) -> str | None:
    """Shake hands with the server, with the certificate of the kit's `startup` folder.

    Args:
        startup: the kit's folder of that name.
        timeout_s: seconds to wait for the connection, and for each answer.

    Returns:
        None where each side accepted the other; else one sentence on why nothing is known yet: no
        answer, or a proxy in between. A server that is started later answers later.

    Raises:
        ProvisionError: the server answered, and one side did not accept the other, which no
            waiting mends.
    """
    host, port = server_address(startup)
    if wanted_proxy(os.environ) is not None:
        return f"the server at {host}:{port} is reached through a proxy and was not tried"
    files = probe.tls_files(startup)
    if files is None:
        raise ProvisionError(
            f"{startup}: expected rootCA.pem with client.crt and client.key, found some missing; "
            "install the kit again"
        )
    try:
        probe.handshake(host, port, files, timeout_s)
    except probe.HandshakeRefused as error:
        raise ProvisionError(
            f"expected to shake hands with the server at {host}:{port}, but {error}; check that "
            "name and port are the consortium's and that the kit is of this consortium"
        ) from None
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        return f"the server at {host}:{port} does not answer: {why}"
    return None
