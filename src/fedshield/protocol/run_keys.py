"""The keys of one run: made by one site, sealed to each other site, relayed by the coordinator.

Two keys travel in one box: the scheme's secret (ckks; nothing for plain and rlwe) and a group key
with which sites tag what must agree between them, so that the coordinator can compare tags
without learning what they are of. Boxes are signed by their maker: the coordinator cannot put
its own key in their place. Each has an encapsulation of its own, in front.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.crypto.scheme import SiteScheme
from fedshield.crypto.seal import encapsulate, receive
from fedshield.errors import ProtocolError
from fedshield.protocol.contexts import read_signed
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding, Sign
from fedshield.site.schemes import Scheme

PURPOSE = "run keys"
GROUP_KEY_BYTES = 32


@dataclass(frozen=True)
class RunKeys:
    """What every site holds during a run, and the coordinator never."""

    #: The scheme with the run's key; none for rlwe, where every sum has its own keys.
    scheme: SiteScheme | None
    group_key: bytes = field(repr=False)

    @property
    def key_id(self) -> bytes:
        return self.scheme.key_id if self.scheme is not None else bytes(16)


def maker(sites: Iterable[str]) -> str:
    """The site that makes the keys: the first by name of those in the session."""
    return min(sites)


def make(scheme: Scheme) -> RunKeys:
    """New keys, from the operating system's generator."""
    key = scheme.run_key.generate() if scheme.run_key is not None else None
    return RunKeys(key, os.urandom(GROUP_KEY_BYTES))


def offer(
    keys: RunKeys,
    run_key: RunKey,
    peer_keys: dict[str, PublicKey],
    binding: Binding,
    sign: Sign,
) -> messages.KeyOffer:
    """The maker's reply: public material, and a signed box for each other site. `peer_keys`:
    every site's public keys in this session."""
    me = maker(peer_keys)
    public = secret = b""
    if isinstance(keys.scheme, CkksScheme):
        public, secret = keys.scheme.public, keys.scheme.secret()
    boxes: dict[str, bytes] = {}
    for receiver in sorted(peer_keys):
        if receiver == me:
            continue
        channel = encapsulate(
            run_key, peer_keys[receiver], context=binding.context, names=(me, receiver)
        )
        box = channel.ciphertext + channel.seal(keys.group_key + secret, PURPOSE)
        body = messages.KeyBox(receiver, keys.key_id, box).to_body()
        boxes[receiver] = envelope.seal(messages.KeyBox.kind, binding, me, body, sign)
    return messages.KeyOffer(public, boxes)


def take(
    data: bytes,
    scheme: Scheme,
    roster: Roster,
    receiver: str,
    run_key: RunKey,
    peer_keys: dict[str, PublicKey],
    binding: Binding,
) -> RunKeys:
    """The keys out of a signed box. Raises `ProtocolError` or `CryptoError` unless the maker
    made it for this site and session, and the key is the announced one."""
    sender = maker(peer_keys)
    found = read_signed(data, messages.KeyBox, binding, sender, roster)
    if found.receiver != receiver:
        raise ProtocolError("sender", f"a key box for {found.receiver!r} came here")
    channel, box = receive(
        found.box,
        run_key,
        peer_keys[sender],
        context=binding.context,
        names=(sender, receiver),
    )
    opened = channel.unseal(box, PURPOSE)
    group_key, secret = opened[:GROUP_KEY_BYTES], opened[GROUP_KEY_BYTES:]
    key, unused = None, secret
    if scheme.run_key is not None:
        key, unused = scheme.run_key.from_secret(secret), b""
    keys = RunKeys(key, group_key)
    if keys.key_id != found.key_id or len(group_key) != GROUP_KEY_BYTES or unused:
        raise ProtocolError("disagree", "the run's key is not the one that was announced")
    return keys
