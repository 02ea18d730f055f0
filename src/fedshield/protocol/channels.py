"""Every sealed box of one sum at one site: shares of one-time keys, then answers.

A site encapsulates once to each peer. The ciphertext travels in front of the share's box, and so
under H(sealed shares); the answer between the same two sites is sealed with the same secret under
its own purpose, and needs no second ciphertext.

One answer does: that of a site whose upload is not in the sum. It holds shares of those that are,
votes and answers, but nobody was given a share of its key (the coordinator left it out, or its
shares were refused). Both ends know from the vote who that is, so its boxes, and only those, have
the ciphertext in front.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.crypto.seal import Channel, encapsulate, receive
from fedshield.errors import CryptoError

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

    def open_share(self, box: bytes, dealer: str, about: bytes) -> bytes:
        """What the dealer sealed; its answer opens by the same secret later, even where this box
        does not. The box must be the one that it signed for. Raises `CryptoError`."""
        channel, box = self._received(box, dealer)
        self._from[dealer] = channel
        return channel.unseal(box, SHARE, associated=about)

    def seal_answer(
        self, answer: bytes, peer: str, about: bytes, salt_key: bytes, *, in_sum: bool
    ) -> bytes:
        """A box; ciphertext | box where this site is not in the sum."""
        channel = self._channel_to(peer)
        box = channel.seal(answer, ANSWER, associated=about, salt_key=salt_key)
        return box if in_sum else channel.ciphertext + box

    def open_answer(self, box: bytes, holder: str, about: bytes, *, in_sum: bool) -> bytes:
        """What the holder sealed; `in_sum`: whether its upload is in the sum. Raises `CryptoError`,
        also where its share never came and there is nothing to open its answer with."""
        if not in_sum:
            channel, box = self._received(box, holder)
        elif holder in self._from:
            channel = self._from[holder]
        else:
            raise CryptoError(f"answer of {holder}: its share never came, so it does not open")
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
