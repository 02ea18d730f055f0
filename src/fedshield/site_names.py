"""Names that no site may have: the transport or FedShield calls another party so.

NVIDIA FLARE's server is `server` in every address, whatever its host is called, and its commands
take `all`, `client` and `admin` for groups of parties. A site of such a name gets the messages of
others, or none.
"""

from __future__ import annotations

#: Name -> who has it.
RESERVED_NAMES = {
    "coordinator": "the coordinator",
    "server": "FLARE's server",
    "admin": "the kit that submits runs",
    "client": "FLARE's word for any site",
    "all": "FLARE's word for all parties",
    "relay": "FLARE's relays",
    "simulator": "FLARE's simulator",
}


def holder_of_reserved_name(name: str) -> str | None:
    """Who has this name already; None for a name that a site may take.

    >>> holder_of_reserved_name("server")
    "FLARE's server"
    >>> holder_of_reserved_name("north") is None
    True
    """
    return RESERVED_NAMES.get(name)
