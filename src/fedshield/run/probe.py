"""Whether another machine's port answers, and with TLS: one connection, opened and closed, nothing
sent but what a handshake needs."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

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


class HandshakeRefused(OSError):
    """The other side answered, and one side did not accept the other's certificate."""


def handshake(host: str, port: int, files: TlsFiles, timeout_s: float) -> str:
    """The version of TLS that both sides agreed on, each having proved itself. Raises
    `HandshakeRefused` where one did not accept the other, `OSError` where no answer came."""
    context = _context(files)
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            # In TLS 1.3 a server refuses a client's certificate after the client's handshake is
            # done: only the first bytes from it, gRPC's settings, show that it did not.
            if not secured.recv(1):
                raise HandshakeRefused("closed after the handshake: certificate refused")
            return secured.version() or "TLS"
    except ssl.SSLCertVerificationError as error:
        if error.verify_code not in _OTHER_NAME:
            raise HandshakeRefused(
                f"its certificate is not accepted: {error.verify_message}"
            ) from None
        names = ", ".join(_names(host, port, files, timeout_s)) or "no name"
        raise HandshakeRefused(f"its certificate is for {names}, not for {host}") from None
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise HandshakeRefused(f"it does not accept our certificate, or TLS: {reason}") from None


#: OpenSSL's codes for a certificate of another host, mail address or IP address.
_OTHER_NAME = (62, 63, 64)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Raises `HandshakeRefused` for files that no connection can use."""
    try:
        context = ssl.create_default_context(cafile=str(files.root))
        context.load_cert_chain(files.certificate, files.key)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise HandshakeRefused(f"{files.certificate}, its key or the root: {reason}") from None
    context.set_alpn_protocols(["h2"])
    return context


def _names(host: str, port: int, files: TlsFiles, timeout_s: float) -> list[str]:
    """The hosts that the other side's certificate names; the root is checked, the host is not."""
    context = _context(files)
    context.check_hostname = False
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            raw = secured.getpeercert(binary_form=True)
    except OSError:
        return []
    return [] if raw is None else _host_names(x509.load_der_x509_certificate(raw))


def _host_names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
