"""What a kit says of its server before FLARE tries. tests/doctor/test_site.py has handshakes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from fedshield.run import probe
from fedshield.run.flare.provision import ProvisionError
from fedshield.run.flare.reach import check_server, server_address


@pytest.fixture
def startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site's, whose server is on a port of this machine where nothing listens."""
    monkeypatch.delenv("grpc_proxy", raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = f"localhost:{closed.getsockname()[1]}"
    service = {"name": "ward-notes", "service": {"target": target}}
    (tmp_path / "fed_client.json").write_text(json.dumps({"servers": [service]}))
    for name in ("rootCA.pem", "client.crt", "client.key"):
        (tmp_path / name).touch()
    return tmp_path


def played(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    def handshake(*_: object) -> str:
        if error is not None:
            raise error
        return "TLSv1.3"

    monkeypatch.setattr(probe, "handshake", handshake)


def test_a_server_that_accepts_is_not_spoken_of(
    startup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, None)
    assert check_server(startup) is None


def test_a_server_that_does_not_answer_may_answer_later(
    startup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, ConnectionRefusedError(111, "Connection refused"))
    host, port = server_address(startup)
    assert host == "localhost"
    assert check_server(startup) == (
        f"the server at localhost:{port} does not answer: Connection refused"
    )


def test_a_refusal_is_final(startup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, probe.HandshakeRefused("its certificate is for a.test, not for localhost"))
    with pytest.raises(ProvisionError, match=r"but its certificate is for a\.test, not for local"):
        check_server(startup)


def test_a_server_behind_a_proxy_is_not_tried(
    startup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, probe.HandshakeRefused("never asked"))
    monkeypatch.setenv("grpc_proxy", "http://proxy.test:3128")
    said = check_server(startup)
    assert said is not None
    assert said.endswith("is reached through a proxy and was not tried")


def test_a_kit_without_an_address_or_a_certificate_is_told(startup: Path) -> None:
    (startup / "client.key").unlink()
    with pytest.raises(ProvisionError, match=r"expected rootCA\.pem with client\.crt"):
        check_server(startup)
    (startup / "fed_client.json").write_text("{}")
    with pytest.raises(ProvisionError, match="expected the server's address"):
        check_server(startup)


def test_the_kit_that_submits_has_an_address_too(tmp_path: Path) -> None:
    admin = {"admin": {"host": "fl.example.org", "port": 8502}}
    (tmp_path / "fed_admin.json").write_text(json.dumps(admin))
    assert server_address(tmp_path) == ("fl.example.org", 8502)
