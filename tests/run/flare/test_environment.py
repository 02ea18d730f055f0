"""Which proxy variables count on the way to the server: asked of gRPC itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from fedshield.run.flare import environment

#: Tries `server.test` as a party would, a name that no resolver has, until that fails; then
#: `other.test` as any program would. A proxy is told the name; without one nobody is.
CLIENT = """
import threading
import grpc
from fedshield.run.flare.environment import without_proxies

def try_to_reach(address):
    failed = threading.Event()
    channel = grpc.insecure_channel(address)
    states = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.READY)
    channel.subscribe(lambda state: state in states and failed.set(), try_to_connect=True)
    assert failed.wait(60)

with without_proxies("server.test"):
    try_to_reach("server.test:8502")
try_to_reach("other.test:8502")
"""


def first_asked_of_a_proxy(variable: str) -> str:
    """The first line that a proxy in this variable hears."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(90)
        clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT], env=clean | {variable: address}
        ) as child:
            try:
                connection, _ = proxy.accept()
                with connection:
                    return connection.recv(200).decode().splitlines()[0]
            finally:
                child.kill()


@pytest.mark.parametrize("variable", ["https_proxy", "http_proxy"])
def test_a_proxy_for_browsers_is_not_asked(variable: str) -> None:
    assert first_asked_of_a_proxy(variable).startswith("CONNECT other.test:8502")


def test_grpcs_own_proxy_is_asked() -> None:
    assert first_asked_of_a_proxy("grpc_proxy").startswith("CONNECT server.test:8502")


def test_what_becomes_of_the_variables_is_said() -> None:
    given = {"https_proxy": "http://proxy:3128", "no_proxy": "intra.net"}
    changed = environment.direct_hosts(given, "fl.example.org")
    assert changed == {"no_grpc_proxy": "intra.net,localhost,127.0.0.1,::1,fl.example.org"}
    note = environment.proxy_note(given, "fl.example.org")
    assert note is not None
    assert "https_proxy not used for the connection to fl.example.org" in note
    wanted = given | {"grpc_proxy": "http://proxy:3128"}
    assert "fl.example.org" not in json.dumps(environment.direct_hosts(wanted, "fl.example.org"))
    note = environment.proxy_note(wanted, "fl.example.org")
    assert note is not None
    assert "goes through that proxy" in note
    assert environment.proxy_note({"no_proxy": "x"}, "fl.example.org") is None


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "mine"):
        if before is None:
            monkeypatch.delenv("no_grpc_proxy", raising=False)
        else:
            monkeypatch.setenv("no_grpc_proxy", before)
        with environment.without_proxies("fl.example.org"):
            assert "fl.example.org" in os.environ[environment.DIRECT_HOSTS]
        assert os.environ.get(environment.DIRECT_HOSTS) == before
