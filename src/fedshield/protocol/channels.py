"""Every sealed box of one sum at one site: shares of one-time keys, then answers.

A site encapsulates once to each peer. The ciphertext travels in front of the share's box, and so
under H(sealed shares); the answer between the same two sites is sealed with the same secret under
its own purpose, and needs no second ciphertext.

Unless its receiver has none: a site that was left out of the sum may have handed out no shares, and
a holder that complained of one knows nothing of its dealer. The coordinator tells a site which of
its peers these are, and the answers to them, and only to them, have the ciphertext in front. If it
names others, their answers are not read, as if it had not passed them on.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.crypto.seal import Channel, encapsulate, receive

SHARE, ANSWER = "share", "answer"


class Channels:
    """Between one site and its peers, both ways.

    Args:
        name: this site's.
        key: its key for this sum.
        peers: every site's public keys in this sum, checked and distinct.
        context: the sum's.
    """

    def __init__(
        self, name: str, key: RunKey, peers: Mapping[str, PublicKey], context: bytes
    ) -> None:
        self.peers = tuple(peer for peer in peers if peer != name)
        self._name = name
        self._key = key
        self._public = dict(peers)
        self._context = context
        self._to: dict[str, Channel] = {}
        self._from: dict[str, Channel] = {}

    def seal_share(self, share: bytes, holder: str, about: bytes, salt_key: bytes) -> bytes:
        """ciphertext | box. `about`: H(upload) of this site."""
        channel = self._channel_to(holder)
        return channel.ciphertext + channel.seal(share, SHARE, associated=about, salt_key=salt_key)

    def open_share(self, data: bytes, dealer: str, about: bytes) -> bytes:
        """What the dealer sealed. Its answer opens with the same secret later, unless `forget`.
        Raises `CryptoError`."""
        channel, box = self._received(data, dealer)
        share = channel.unseal(box, SHARE, associated=about)
        self._from[dealer] = channel
        return share

    def forget(self, dealer: str) -> None:
        """Its share was no good and is complained of: its answer will bring a ciphertext."""
        self._from.pop(dealer, None)

    def seal_answer(
        self, answer: bytes, peer: str, about: bytes, salt_key: bytes, *, first: bool
    ) -> bytes:
        """A box. `first`: the peer has no share of this site, so the ciphertext comes in front."""
        channel = self._channel_to(peer)
        box = channel.seal(answer, ANSWER, associated=about, salt_key=salt_key)
        return channel.ciphertext + box if first else box

    def open_answer(self, data: bytes, holder: str, about: bytes) -> bytes:
        """What the holder sealed. Raises `CryptoError`."""
        if holder in self._from:
            return self._from[holder].unseal(data, ANSWER, associated=about)
        channel, box = self._received(data, holder)
        return channel.unseal(box, ANSWER, associated=about)

    def _channel_to(self, peer: str) -> Channel:
        if peer not in self._to:
            self._to[peer] = encapsulate(
                self._key, self._public[peer], context=self._context, names=(self._name, peer)
            )
        return self._to[peer]

    def _received(self, data: bytes, sender: str) -> tuple[Channel, bytes]:
        names = (sender, self._name)
        return receive(data, self._key, self._public[sender], context=self._context, names=names)
