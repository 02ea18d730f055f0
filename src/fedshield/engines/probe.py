"""Whether another machine's port answers, and with TLS: one connection, opened and closed, nothing
sent but what a handshake needs."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from fedshield.errors import UserError


def endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[IPv6 address]:port`. Raises `UserError`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise UserError(
            f"--connect: expected HOST:PORT, got {text[:80]!r}; as in server.example:8002"
        )
    return host, int(port)


def connect(host: str, port: int, timeout_s: float) -> float:
    """Seconds that connecting took. Raises `OSError` where nothing accepts in `timeout_s`."""
    start = time.perf_counter()
    with socket.create_connection((host, port), timeout=timeout_s):
        return time.perf_counter() - start


@dataclass(frozen=True)
class TlsFiles:
    """What a FLARE kit proves itself with: the root's certificate, its own, and the key."""

    root: Path
    certificate: Path
    key: Path


def tls_files(folder: Path) -> TlsFiles | None:
    """The first of a start-up kit below `folder`; None if there is none."""
    for root in sorted(folder.rglob("rootCA.pem")):
        for name in ("client", "server"):
            found = TlsFiles(root, root.with_name(f"{name}.crt"), root.with_name(f"{name}.key"))
            if found.certificate.exists() and found.key.exists():
                return found
    return None


def handshake(host: str, port: int, files: TlsFiles, timeout_s: float) -> str:
    """The version of TLS that both sides agreed on, each having proved itself. Raises `OSError`
    (`ssl.SSLError` included) where they did not."""
    context = ssl.create_default_context(cafile=str(files.root))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        # In TLS 1.3 a server refuses a client's certificate after the client's handshake is done:
        # only the first bytes from it, gRPC's settings, show that it did not.
        if not secured.recv(1):
            raise ConnectionResetError("closed after the handshake: certificate refused")
        return secured.version() or "TLS"
