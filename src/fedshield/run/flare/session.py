"""A session with the server as the consortium's admin, and which sites answer through it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshield.run.flare.environment import without_proxies
from fedshield.run.flare.provision import ProvisionError
from fedshield.run.flare.reach import check_server, server_address
from fedshield.run.progress import ago

#: Seconds to reach the server; that a site has to answer when it is asked whether it is there.
CONNECT_S, PING_S = 20.0, 3.0


@dataclass(frozen=True)
class Presence:
    """`heard`: when the server last heard of the site, in seconds since 1970; `answers`: whether it
    answered just now. FLARE itself lists a site that died for ten minutes."""

    heard: float
    answers: bool

    def in_words(self) -> str:
        if self.answers:
            return f"connected, last heard {ago(self.heard)}"
        return f"does not answer, last heard {ago(self.heard)}"


def check_kit(kit: Path) -> None:
    path = kit / "startup" / "fed_admin.json"
    if not path.is_file():
        raise ProvisionError(
            f"{kit}: expected the kit that submits runs, found no {path.name} in it; give the "
            "consortium's admin folder"
        )


@contextlib.contextmanager
def admin_session(kit: Path) -> Iterator[Any]:
    """FLARE's admin session, on the way to the server that the parties take (environment.py).
    Raises `ProvisionError` if the server does not answer, or one side does not accept the other."""
    try:
        from nvflare.fuel.flare_api.flare_api import new_secure_session
    except ImportError:
        raise ProvisionError(
            "expected NVIDIA FLARE 2.9.0, found none; run: pip install 'fedshield[flare]'"
        ) from None
    logging.getLogger("nvflare").setLevel(logging.ERROR)
    admin = json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]
    host, port = server_address(kit / "startup")
    check_server(kit / "startup")
    with without_proxies(host):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # FLARE prints as it connects
                session = new_secure_session(
                    admin["username"], str(kit.resolve()), timeout=CONNECT_S, auto_login_max_tries=3
                )
        except Exception as error:
            raise ProvisionError(
                f"expected the server at {host}:{port} to answer, but {type(error).__name__}: "
                f"{error}; start it with: fedshield server start"
            ) from None
        try:
            yield session
        finally:
            session.close()


def present(session: Any) -> dict[str, Presence]:
    """Each site that the server knows. Whoever does not answer within `PING_S` is not there, or
    hangs."""
    heard = {
        client.name: float(client.last_connect_time)
        for client in session.get_system_info().client_info
    }
    session.set_timeout(PING_S)
    try:
        answering = _answering(session, sorted(heard))
    finally:
        session.unset_timeout()
    return {site: Presence(heard[site], site in answering) for site in sorted(heard)}


def _answering(session: Any, sites: Sequence[str]) -> set[str]:
    """All at once; if one holds the others up, each by itself."""
    if not sites:
        return set()
    try:
        reply = session.check_status("client", list(sites))
    except Exception:
        if len(sites) == 1:
            return set()
        return set().union(*(_answering(session, [site]) for site in sites))
    return {
        str(status["client_name"])
        for status in reply.get("client_status", ())
        if status.get("status") != "no_reply"
    }


def absent(sites: Sequence[str], presences: Mapping[str, Presence]) -> dict[str, str]:
    """The sites that are not there: site -> in words."""
    return {
        site: presences[site].in_words() if site in presences else "is not connected"
        for site in sites
        if site not in presences or not presences[site].answers
    }
