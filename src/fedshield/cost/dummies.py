"""Sites that train nothing and encrypt nothing: their replies have the true lengths only.

The coordinator that they answer is the real one (`messages`), and checks their replies as it does
in a run: signatures, contexts, public keys, digests and votes are therefore real. What only sites
read (tags, versions, the content of boxes) is zeros of the length that it has in a run. Two things
are too long for an estimate that must be quick: blocks are empty, and `STAND_IN` is in the place of
each share of a key. Commands are not checked. The keys are thrown away with the sites.

A command that is answered by `Done` needs nothing here, and a reply that gains a field needs that
field; what is forgotten ends every dry run in an error.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.plain import PlainScheme
from fedshield.crypto.scheme import SiteScheme, parameters
from fedshield.ledger.heads import Head
from fedshield.plan.schema import Plan
from fedshield.protocol.channels import Channels
from fedshield.protocol.contexts import (
    NONCE_BYTES,
    SETUP,
    VERSION_BYTES,
    aggregate_digest,
    contributors_digest,
    round_context,
    session_context,
    setup_context,
)
from fedshield.protocol.roster import Roster
from fedshield.protocol.run_keys import GROUP_KEY_BYTES, RunKeys, offer
from fedshield.protocol.statements import sign_head
from fedshield.protocol.transport import Replies
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding

_BLOCK = b""
_DIGEST = bytes(32)
#: In the place of a share, sealed or not. Random, so that no other bytes are taken for it.
STAND_IN = os.urandom(16)

#: int64, (2, 2): up and down; bytes without blocks and shares, and the number of shares.
Counts = NDArray[np.int64]


class NoAdder:
    """Adds blocks that hold nothing."""

    def add(self, total: object | None, block: bytes) -> object:
        return block

    def result(self, total: object) -> bytes:
        return _BLOCK


class DummySites:
    """Every site of a plan, in its first session, as `transport.Sites`.

    `crossed`: what crossed so far, of all sites together. `num_blocks`: messages that an upload of
    the next sum travels in.
    """

    def __init__(self, plan: Plan, num_blocks: int) -> None:
        names = plan.data.site_names()
        self._plan = plan
        self._shared = plan.scheme.traits.one_time_keys
        self._keys = {name: SigningKey() for name in names}
        public = {name: key.public for name, key in self._keys.items()}
        self.roster = Roster(public, SigningKey().public, plan.rules(), demo=True)
        self._run_keys = {name: RunKey(bytes(32)) for name in names}
        self._heads = {name: sign_head(Head(1, "00" * 32), self._keys[name].sign) for name in names}
        self.num_blocks = num_blocks
        self.crossed: Counts = np.zeros((2, 2), dtype=np.int64)
        self._binding = Binding(bytes(32), 0, SETUP)
        self._share_box = self._answer_box = b""
        # What all said in this session and sum, which contexts and votes are made of.
        self._joins: dict[str, messages.Join] = {}
        self._round_keys: dict[str, messages.RoundKey] = {}
        self._uploads: dict[str, messages.Upload] = {}
        self._about = b"", b""
        self._replies: dict[str, Callable[[str], messages.Message]] = {
            "invite": self._join,
            "begin": lambda _: messages.Ready(self._binding.context),
            "make-key": self._key_offer,
            "prepare": self._round_key,
            "work": self._upload,
            "fetch": lambda _: messages.Block(0, _BLOCK),
            "fetch-shares": lambda site: messages.Shares(self._boxes(site, self._share_box)),
            "hold": lambda _: messages.Held({}),
            "announce": lambda site: messages.Vote(*self._about, self._heads[site]),
            "quorum": self._answer,
            "open": lambda site: messages.Receipt(_DIGEST, self._heads[site]),
        }

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        """A signed reply of every site that is called: `Done` to what nothing is said of above."""
        self._hear(method, next(iter(args.values())))
        reply = self._replies.get(method, _done)
        replies = {site: self._sealed(reply(site), site) for site in args}
        self.crossed = self.crossed + np.array([_counts(replies.values()), _counts(args.values())])
        return Replies(replies, {})

    def _hear(self, method: str, data: bytes) -> None:
        """Take what a command to all says, and what replies to it are bound to."""
        content: Any = codec.decode(data[len(envelope.MAGIC) + 1 : -envelope.SIGNATURE_BYTES])
        _, context, round_number, phase, _, body = content
        if method == "invite":
            invite = messages.Invite.from_body(body)
            context = setup_context(self._plan.sha256(), self.roster, invite.session)
        elif method == "begin":
            context = session_context(self._binding, self._joins)
        elif method == "work":
            context = round_context(self._binding, self._round_keys)
            self._seal_boxes(context)
        elif method == "announce":
            digests = messages.Announce.from_body(body).block_digests
            self._about = contributors_digest(self._uploads), aggregate_digest(digests)
        self._binding = Binding(context, round_number, phase)

    def _sealed(self, message: messages.Message, site: str) -> bytes:
        body, sign = message.to_body(), self._keys[site].sign
        return envelope.seal(message.kind, self._binding, site, body, sign)

    # -- a session -------------------------------------------------------------------------

    def _join(self, site: str) -> messages.Join:
        self._joins[site] = messages.Join(
            nonce=os.urandom(NONCE_BYTES),
            run_key=self._run_keys[site].public.to_bytes(),
            completed_rounds=0,
            num_examples=int(self._plan.scheme.weights == "public"),
            version=bytes(VERSION_BYTES),
            head=self._heads[site],
            heads={},
            restart=b"",
            follows_from=0,
        )
        return self._joins[site]

    def _key_offer(self, site: str) -> messages.KeyOffer:
        keys = RunKeys(_run_key_of(self._plan), bytes(GROUP_KEY_BYTES))
        public = {name: key.public for name, key in self._run_keys.items()}
        return offer(keys, self._run_keys[site], public, self._binding, self._keys[site].sign)

    # -- a sum -----------------------------------------------------------------------------

    def _round_key(self, site: str) -> messages.RoundKey:
        self._round_keys[site] = messages.RoundKey(self._joins[site].run_key, _DIGEST, {})
        return self._round_keys[site]

    def _seal_boxes(self, context: bytes) -> None:
        """One sealed share and one sealed answer, which do for all pairs of sites. A box is longer
        than its content by the length of the box of an empty content."""
        if not self._shared:
            return
        sender, receiver, *_ = self._run_keys
        public = {name: key.public for name, key in self._run_keys.items()}
        channels = Channels(sender, self._run_keys[sender], public, context)
        box = channels.seal_share(b"", receiver, _DIGEST, _DIGEST)
        self._share_box = box + STAND_IN
        box = channels.seal_answer(b"", receiver, _DIGEST, _DIGEST, first=False)
        self._answer_box = box + STAND_IN

    def _boxes(self, site: str, box: bytes) -> dict[str, bytes]:
        """This box for every other site, where there are shares."""
        if not self._shared:
            return {}
        return {name: box for name in self._keys if name != site}

    def _upload(self, site: str) -> messages.Upload:
        self._uploads[site] = messages.Upload(
            key_id=bytes(16),
            layout_tag=_DIGEST,
            block_digests=(hashlib.sha256(_BLOCK).digest(),) * self.num_blocks,
            share_digests=self._boxes(site, _DIGEST),
            head=self._heads[site],
        )
        return self._uploads[site]

    def _answer(self, site: str) -> messages.Answer:
        if not self._shared:
            return messages.Answer({}, b"", b"")
        tag = self._sealed(messages.AnswerTag(_DIGEST), site)
        if self._plan.scheme.open_to == "server":
            return messages.Answer({}, STAND_IN, tag)
        return messages.Answer(self._boxes(site, self._answer_box), b"", tag)


def _done(_: str) -> messages.Message:
    return messages.Done()


def _counts(crossing: Iterable[bytes]) -> list[int]:
    """Bytes without shares, and the number of shares, of all messages together."""
    num_bytes = num_shares = 0
    # A command to all is one object, and searched once.
    for message, times in Counter(crossing).items():
        shares = message.count(STAND_IN)
        num_bytes += times * (len(message) - shares * len(STAND_IN))
        num_shares += times * shares
    return [num_bytes, num_shares]


@dataclass(frozen=True)
class _PublicContext:
    """What a ckks key is serialised from."""

    num_bytes: int

    def serialize(self, **_: bool) -> bytes:
        return bytes(self.num_bytes)


def _run_key_of(plan: Plan) -> SiteScheme | None:
    """What the sites of a run share, in its length: for ckks a measured mean."""
    if plan.scheme.traits.shared_key:
        named = parameters(plan.scheme.name, plan.scheme.parameter_set)
        context = _PublicContext(named.public_key_bytes)
        return CkksScheme(named, context, plan.encoding.grid_bits, bytes(named.secret_key_bytes))
    return None if plan.scheme.traits.one_time_keys else PlainScheme()
