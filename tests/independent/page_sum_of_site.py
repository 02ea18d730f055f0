"""docs/protocol.md, section 4: one sum as one site goes through it, from the page alone."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from page_memory import Journal, Ledger
from page_model import Work
from page_seal import CIPHERTEXT, Channel, check_keys, hkdf, new_key, receiving, sending
from page_shares import add_shares, deal, read_share
from page_sum import encrypt, open_sum
from page_wire import (
    LABELS,
    Binding,
    Refused,
    aggregate_digest,
    contributors_digest,
    seal,
    sha256,
    sized,
    sum_context,
    unseal,
    upload_digest,
    upload_record,
)

Array = NDArray[Any]


class Rules(NamedTuple):
    """Of the roster, in its order."""

    sites: int
    colluding: int
    threshold: int
    votes: int
    min_cohort: int
    server: str
    membership: str

    @property
    def certificate(self) -> int:
        return (self.sites + self.colluding) // 2 + 1

    @property
    def least_sites(self) -> int:
        return max(self.threshold, self.votes, self.min_cohort)


class Me(NamedTuple):
    """Who this site is. `keys`: the roster's, by name."""

    name: str
    key: Ed25519PrivateKey
    secret: bytes
    keys: Mapping[str, bytes]
    rules: Rules
    journal: Journal
    ledger: Ledger


def tag(group_key: bytes, label: str, binding: Binding, value: bytes) -> bytes:
    number = binding.round_number.to_bytes(8, "big")
    return hmac.digest(group_key, LABELS[label] + binding.context + number + value, "sha256")


class Sum:
    """`agreed`: what all must start from; `base`: what it starts from, as the journal knows it."""

    def __init__(
        self, me: Me, group_key: bytes, session: Binding, agreed: bytes, base: str
    ) -> None:
        self.binding, self._me, self._group_key = session, me, group_key
        self._session, self._base = session, base
        self._key = new_key(me.secret)
        self._model_tag = tag(group_key, "model tag", session, agreed)
        self._others: dict[str, bytes] = {}
        self._out: dict[str, tuple[Channel, bytes]] = {}
        self._in: dict[str, Channel] = {}
        self._held: dict[str, bytes] = {}
        self._held_for: dict[str, bytes] = {}
        self._delivered: list[bytes] = []
        self.contributors: list[str] = []

    def prepare(self) -> dict[str, Any]:
        bound = dict.fromkeys(self._me.journal.bound(self._base), b"")
        return {"key": self._key.public, "model_tag": self._model_tag, "bound": bound}

    # -- work, fetch, fetch-shares -------------------------------------------------------------

    def begin(self, round_keys: Mapping[str, bytes]) -> list[str]:
        """The sites of this sum."""
        keys = {site: self._signed("round-key", site, raw) for site, raw in round_keys.items()}
        if len(keys) < self._me.rules.least_sites:
            raise Refused("cohort")
        if any(key["model_tag"] != self._model_tag for key in keys.values()):
            raise Refused("disagree: a site starts from another model")
        if keys.get(self._me.name, {}).get("key") != self._key.public:
            raise Refused("disagree: my key was replaced")
        check_keys({site: key["key"] for site, key in keys.items()})
        self._others = {site: key["key"] for site, key in keys.items() if site != self._me.name}
        of = self._session
        self.binding = Binding(sum_context(of, keys), of.round_number, of.phase)
        return sorted(keys)

    def work(self, work: Work) -> dict[str, Any]:
        me, self._work = self._me, work
        context = self.binding.context
        parts = (b"fedshield rlwe seed 1", context, bytes.fromhex(work.digest()), work.layout)
        info = b"".join(map(sized, parts))
        seed = hkdf(os.urandom(32) + me.secret, None, info, 32)
        made = encrypt(work.digits, work.reserved, work.shape, context, self._group_key, seed)
        self.chunks = made.chunks
        upload: dict[str, Any] = {
            "key_id": bytes(16),
            "layout_tag": tag(self._group_key, "layout tag", self.binding, work.layout),
            "block_digests": [sha256(chunk) for chunk in made.chunks],
            "share_digests": {},
            "head": me.ledger.statement(),
        }
        dealt = dict(
            zip(
                sorted(me.keys),
                deal(made.secret, made.residues, work.shape, made.share_seed),
                strict=True,
            )
        )
        self._held[me.name], self.boxes = dealt[me.name], {}
        self._salt_key = hmac.digest(made.share_seed, b"salts", "sha256")
        for peer, public in self._others.items():
            self._out[peer] = sending(self._key, (me.name, peer), public, context)
            channel, ciphertext = self._out[peer]
            digest = upload_digest(upload)
            box = channel.seal(dealt[peer], "share", digest, self._salt_key)
            self.boxes[peer] = ciphertext + box
        upload["share_digests"] = {peer: sha256(box) for peer, box in self.boxes.items()}
        me.journal.once("upload", self._of(), upload_record(upload))
        self._upload = upload
        return upload

    # -- hold, announce, quorum ------------------------------------------------------------------

    def hold(self, uploads: Mapping[str, bytes], shares: Mapping[str, bytes]) -> dict[str, Any]:
        complaints: dict[str, bytes] = {}
        for dealer, upload in self._uploads(uploads).items():
            if dealer == self._me.name:
                continue
            try:
                self._held[dealer] = self._share(dealer, upload, shares[dealer])
                self._held_for[dealer] = upload_record(upload)
            except (Refused, KeyError):
                complaints[dealer] = b"share" if dealer in shares else b"missing"
                self._in.pop(dealer, None)
        return {"complaints": complaints}

    def _share(self, dealer: str, upload: Mapping[str, Any], box: bytes) -> bytes:
        if upload["share_digests"].get(self._me.name) != sha256(box):
            raise Refused("share: not the one that its dealer signed for")
        channel = self._from(dealer, box[:CIPHERTEXT])
        content = channel.open(box[CIPHERTEXT:], "share", upload_digest(upload))
        read_share(content, self._work.shape)
        return content

    def _from(self, peer: str, ciphertext: bytes) -> Channel:
        self._in[peer] = receiving(
            self._key,
            (peer, self._me.name),
            self._others[peer],
            self.binding.context,
            ciphertext,
        )
        return self._in[peer]

    def _uploads(self, raw: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
        found = {site: self._signed("upload", site, data) for site, data in raw.items()}
        for site, upload in found.items():
            if site != self._me.name and site not in self._others:
                raise Refused(f"not-in-set: {site}")
            if upload["layout_tag"] != self._upload["layout_tag"]:
                raise Refused(f"layout: {site}")
            if upload["key_id"] != self._upload["key_id"]:
                raise Refused(f"scheme: {site}")
            self._see(site, upload["head"])
        if found.get(self._me.name, self._upload) != self._upload:
            raise Refused("digest: my upload was replaced")
        return found

    def announce(self, uploads: Mapping[str, bytes], blocks: list[bytes]) -> dict[str, Any]:
        found = self._uploads(uploads)
        if len(found) < max(self._me.rules.threshold, self._me.rules.min_cohort):
            raise Refused("cohort")
        if len(blocks) != len(self.chunks):
            raise Refused("size: another number of blocks")
        self._announced, self.contributors = blocks, sorted(found)
        self._vote = {
            "contributors": contributors_digest(found),
            "aggregate": aggregate_digest(blocks),
            "head": self._me.ledger.statement(),
        }
        about = sha256(self.binding.context, self._about())
        self._me.journal.once("vote", self._of(), about, self._base, found)
        for site, upload in found.items():
            if site != self._me.name and self._held_for.get(site) != upload_record(upload):
                self._held.pop(site, None)
        return self._vote

    def _about(self) -> bytes:
        return bytes(self._vote["contributors"] + self._vote["aggregate"])

    def quorum(self, votes: Mapping[str, bytes], unheard: Mapping[str, bytes]) -> dict[str, Any]:
        for site, data in votes.items():
            vote = self._signed("vote", site, data)
            if vote["contributors"] + vote["aggregate"] != self._about():
                raise Refused(f"vote: {site}")
            self._see(site, vote["head"])
        if len(votes) < self._me.rules.votes:
            raise Refused("vote: too few")
        self._me.journal.once("answer", self._of(), sha256(self.binding.context, self._about()))
        held = [self._held[site] for site in self.contributors if site in self._held]
        self._held = {}
        if len(held) < len(self.contributors):
            return {"boxes": {}, "share": b"", "tag": b""}
        self._answer = add_shares(held, self._work.shape)
        boxes: dict[str, bytes] = {}
        for peer in self._others:
            channel, ciphertext = self._out[peer]
            box = channel.seal(self._answer, "answer", self._about(), self._salt_key)
            boxes[peer] = (ciphertext if peer in unheard else b"") + box
        body = {"tag": tag(self._group_key, "answer tag", self.binding, self._answer)}
        signed = seal("answer-tag", self.binding, self._me.name, body, self._me.key)
        return {"boxes": boxes, "share": b"", "tag": signed}

    # -- deliver, open ---------------------------------------------------------------------------

    def deliver(self, index: int, block: bytes) -> dict[str, Any]:
        if index != len(self._delivered) or sha256(block) != self._announced[index]:
            raise Refused("digest: not the block that was announced")
        self._delivered.append(block)
        return {}

    def open(
        self, answers: Mapping[str, bytes], tags: Mapping[str, bytes]
    ) -> tuple[Array, list[int]]:
        """The sums of the digits and of the reserved integers."""
        order = {site: place + 1 for place, site in enumerate(sorted(self._me.keys))}
        found = {order[self._me.name]: self._answer}
        for holder in self._others:
            try:
                found[order[holder]] = self._read(holder, answers[holder], tags[holder])
            except (Refused, KeyError):
                continue  # counts as none
        return open_sum(
            self._delivered,
            found,
            self._work.shape,
            self.binding.context,
            self._group_key,
            len(self.contributors),
            self._me.rules.colluding,
        )

    def _read(self, holder: str, box: bytes, signed: bytes) -> bytes:
        if holder not in self._in:  # complained of, or left out: it brings its ciphertext
            self._from(holder, box[:CIPHERTEXT])
            box = box[CIPHERTEXT:]
        content = self._in[holder].open(box, "answer", self._about())
        read_share(content, self._work.shape)
        body = self._signed("answer-tag", holder, signed)
        if body["tag"] != tag(self._group_key, "answer tag", self.binding, content):
            raise Refused("share: not the answer that its holder signed")
        return content

    # -- helpers ---------------------------------------------------------------------------------

    def _of(self) -> tuple[str, int, str]:
        of = self._session
        return of.context.hex(), of.round_number, of.phase

    def _signed(self, kind: str, site: str, data: bytes) -> dict[str, Any]:
        if site not in self._me.keys:
            raise Refused(f"sender: {site}")
        return unseal(data, kind, self.binding, site, self._me.keys[site])

    def _see(self, site: str, head: bytes) -> None:
        if site != self._me.name:
            self._me.ledger.see(site, head, self._me.keys[site])
