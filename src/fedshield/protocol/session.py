"""What both sides compute alike: contexts, and the checks of messages that all must agree on.

Nothing here holds a key of any kind but the public ones in the roster.
"""

from __future__ import annotations

import hashlib

from fedshield.errors import ProtocolError
from fedshield.protocol import codec, envelope, messages
from fedshield.protocol.envelope import Binding
from fedshield.protocol.roster import Roster

SETUP, WEIGHTS, ROUND = "setup", "weights", "round"
NONCE_BYTES = 32
RUN_KEY_BYTES = 32


def setup_context(plan_sha256: str, roster: Roster, session: bytes) -> bytes:
    """The context before every site's nonce is known: plan, roster and the coordinator's id
    of this session."""
    return envelope.run_context("setup", bytes.fromhex(plan_sha256), roster.sha256(), session)


def session_context(setup: Binding, joins: dict[str, messages.Join]) -> bytes:
    """The context of everything after `begin`: fresh, because every site's nonce is in it, and
    bound to every site's run key."""
    parts: list[bytes] = [setup.context]
    for site in sorted(joins):
        join = joins[site]
        parts += [site.encode(), join.nonce, join.run_key, codec.encode(join.num_examples)]
    return envelope.run_context("session", *parts)


def read_joins(raw: dict[str, bytes], binding: Binding, roster: Roster) -> dict[str, messages.Join]:
    """Every roster site's signed `Join`, checked. Raises `ProtocolError`."""
    if set(raw) != set(roster.names()):
        raise ProtocolError("not-in-set", "the session must hold exactly the roster's sites")
    joins: dict[str, messages.Join] = {}
    for site, data in sorted(raw.items()):
        body = envelope.unseal(data, "join", binding, site, roster.public(site))
        join = messages.Join.from_body(body)
        if len(join.nonce) != NONCE_BYTES or len(join.run_key) != RUN_KEY_BYTES:
            raise ProtocolError("size", f"{site}: nonce and run key are 32 bytes each")
        if join.num_examples < 0 or join.completed_rounds < 0:
            raise ProtocolError("malformed", f"{site}: negative counts")
        joins[site] = join
    if len({join.nonce for join in joins.values()}) != len(joins):
        raise ProtocolError("repeated", "two sites sent the same nonce")
    return joins


def read_uploads(
    raw: dict[str, bytes], binding: Binding, roster: Roster
) -> dict[str, messages.Upload]:
    """The contributors' signed `Upload`s, checked. Raises `ProtocolError`."""
    return {
        site: messages.Upload.from_body(
            envelope.unseal(data, "upload", binding, site, roster.public(site))
        )
        for site, data in sorted(raw.items())
    }


def upload_digest(upload: messages.Upload) -> bytes:
    """H(upload): over the key id, the layout tag and every block's digest."""
    return hashlib.sha256(codec.encode(upload.to_body())).digest()
