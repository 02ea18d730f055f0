"""What of the environment a party's transport follows: proxy variables.

gRPC takes `https_proxy` and `http_proxy`, which machines have for browsers and package managers,
as its way to the server too. It says nothing of it, and few such proxies let it through. FedShield
connects directly, unless `grpc_proxy` is set: gRPC's own variable, which nobody sets by chance.
Other traffic of the process, such as the download of a data set, goes on using the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

#: gRPC's own variable: who sets it wants the proxy.
WANTED_PROXY = "grpc_proxy"
#: What gRPC would follow besides, in its order.
GENERAL_PROXIES = ("https_proxy", "http_proxy")
#: Hosts that gRPC reaches directly, by their ends; in place of `no_proxy` where it is set.
DIRECT_HOSTS, GENERAL_DIRECT_HOSTS = "no_grpc_proxy", "no_proxy"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def wanted_proxy(environment: Mapping[str, str]) -> str | None:
    """The proxy that the operator asked for; None for a direct connection."""
    return environment.get(WANTED_PROXY) or None


def unused_proxies(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The proxy variables that are set and not followed to the server."""
    if wanted_proxy(environment) is not None:
        return ()
    return tuple(name for name in GENERAL_PROXIES if environment.get(name))


def direct_hosts(environment: Mapping[str, str], host: str) -> dict[str, str]:
    """What to set in the environment before gRPC connects to `host`: the processes of this
    machine are always reached directly, and so is the server unless a proxy is wanted."""
    listed = environment.get(DIRECT_HOSTS) or environment.get(GENERAL_DIRECT_HOSTS) or ""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    more = LOOPBACK if wanted_proxy(environment) is not None else (*LOOPBACK, host)
    names += [name for name in more if name not in names]
    return {DIRECT_HOSTS: ",".join(names)}


def proxy_note(environment: Mapping[str, str], host: str) -> str | None:
    """One sentence on what became of the proxy variables; None where none is set."""
    proxy = wanted_proxy(environment)
    if proxy is not None:
        return f"{WANTED_PROXY} is set: the connection to {host} goes through that proxy"
    unused = unused_proxies(environment)
    if not unused:
        return None
    return (
        f"{', '.join(unused)} not used for the connection to {host}; to go through a proxy, set "
        f"{WANTED_PROXY}"
    )


@contextlib.contextmanager
def without_proxies(host: str) -> Iterator[None]:
    """Within it, gRPC of this process connects to `host` as a party does. It reads the
    environment when a channel is made: enter before the session begins."""
    before = os.environ.get(DIRECT_HOSTS)
    os.environ.update(direct_hosts(os.environ, host))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DIRECT_HOSTS, None)
        else:
            os.environ[DIRECT_HOSTS] = before
