"""Whether another machine's port answers: one TCP connection, opened and closed, nothing sent."""

from __future__ import annotations

import socket
import time

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
