"""What a party's process is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedshield.run.flare import parties
from fedshield.run.flare.kit import KIT
from fedshield.run.flare.provision import ProvisionError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`started(module)`: the command and the environment that would replace this process."""
    seen: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(parties.os, "chdir", lambda _: None)
    monkeypatch.setattr(
        parties.os, "execve", lambda _, command, given: seen.append((command, dict(given)))
    )

    def start(kit: Path, module: str) -> tuple[list[str], dict[str, str]]:
        (kit / "flare").mkdir(exist_ok=True)
        parties._become(kit, module, "fed.json", "fl.example.org", "org=x")
        return seen[-1]

    return start


def test_only_the_server_is_kept_from_taking_memory_for_every_site(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in parties.SPARING:
        monkeypatch.delenv(name, raising=False)
    _, server = started(tmp_path, "nvflare.private.fed.app.server.server_train")
    assert parties.SPARING.items() <= server.items()
    _, site = started(tmp_path, "nvflare.private.fed.app.client.client_train")
    assert not parties.SPARING.keys() & site.keys()
    # Whoever runs the server has the last word.
    monkeypatch.setenv("NVFLARE_STREAMING_CHUNK_SIZE", "4096")
    _, server = started(tmp_path, "nvflare.private.fed.app.server.server_train")
    assert server["NVFLARE_STREAMING_CHUNK_SIZE"] == "4096"


def test_nothing_from_where_it_was_typed_can_be_imported(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    command, given = started(tmp_path, "nvflare.private.fed.app.client.client_train")
    assert "PYTHONPATH" not in given
    assert "-P" in command
    assert given[KIT] == str(tmp_path)
    assert "secure_train=true" in command


def test_an_import_path_that_is_not_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says: list[str] = []
    for value, told in (("/elsewhere", ["PYTHONPATH is not used"]), ("", [])):
        monkeypatch.setenv("PYTHONPATH", value)
        says.clear()
        with pytest.raises(ProvisionError, match="expected it in the kit"):
            parties._check(tmp_path, "north.key", "fed_client.json", says.append)
        assert [line.partition(":")[0] for line in says] == told


def test_the_server_and_this_machine_are_reached_directly(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.delenv("grpc_proxy", raising=False)
    _, given = started(tmp_path, "nvflare.private.fed.app.client.client_train")
    assert given["no_grpc_proxy"].split(",")[-1] == "fl.example.org"
    assert "localhost" in given["no_grpc_proxy"]
    # Data sets and models still come as the operator has it.
    assert given["https_proxy"] == "http://proxy.example.org:3128"
