"""One sum at one site: an ephemeral key, an upload, shares, one vote, one answer, the opening.

The rules that keep a single update closed are all here, each where it acts:
- one upload, one vote and one answer in a session, round and phase, journalled before they leave;
- only a set of at least min_cohort and T contributors, with this site's own entry unchanged;
- from one base model only one set, for ever (the vote binds);
- an answer only after Q matching votes of distinct roster sites, and only over exactly that set;
- a holder that lacks a share complains; a partial sum is never sent.
The keys that others seal to and the one-time key live in this object only and go with it: after a
restart a site has nothing to answer an interrupted round with.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from fedshield.crypto import shares as sharing
from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.errors import CryptoError, ProtocolError
from fedshield.plan.quorum import OpenTo
from fedshield.protocol.answers import MISSING, UNFITTING, UNREADABLE, UNTAGGED, in_words
from fedshield.protocol.channels import Channels
from fedshield.protocol.contexts import (
    ROUND,
    aggregate_digest,
    contributors_digest,
    least_sites,
    read_round_keys,
    read_signed,
    read_uploads,
    round_context,
    upload_digest,
    upload_record,
)
from fedshield.protocol.journal import Journal
from fedshield.protocol.line import Line
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding, Sign
from fedshield.site.ciphers import (
    Cipher,
    Encoded,
    EncryptedSum,
    EncryptedUpdate,
    OneTimeKeys,
    Parts,
    SharedKey,
)
from fedshield.types import EncodedIntegers, EncodedUpdate, Layout, OpenedSum


@dataclass(frozen=True)
class Member:
    """Who this site is in a session."""

    name: str
    roster: Roster
    open_to: OpenTo
    journal: Journal
    line: Line
    sign: Sign
    group_key: bytes = field(repr=False)
    #: 32 bytes of the site's own, which go into every key that it makes.
    secret: bytes = field(repr=False)


class Summation:
    """A sum from its beginning to its end. Methods take commands in order, each once.

    `session`: the session's context with this sum's round and phase; `base`: what the sum starts
    from, as the journal knows it; `agreed`: what all sites must agree on before it (the model).
    """

    def __init__(
        self, member: Member, cipher: Cipher, session: Binding, base: str, agreed: bytes
    ) -> None:
        self._member = member
        self._cipher = cipher
        self._session = session
        self._base = base
        self._key = RunKey(member.secret)
        self._model_tag = self._tag_in(session, b"model", agreed)
        #: What messages after `work` are bound to; until then the session's.
        self.binding = session
        #: Whether this site's upload is in the sum; known from `announce` on.
        self.in_set = True
        self.contributors: tuple[str, ...] = ()
        #: Holder -> what was wrong with its answer, as a code; known from `open` on.
        self.faulty: dict[str, str] = {}
        self._channels: Channels | None = None
        self._blocks: tuple[bytes, ...] = ()
        self._sealed: EncryptedUpdate | None = None
        self._salt_key: bytes | None = None
        self._upload: messages.Upload | None = None
        self._layout: Layout | None = None
        self._boxes: dict[str, bytes] = {}
        # Dealer -> its share here, and the record of the upload that it belongs to.
        self._held: dict[str, sharing.Share] = {}
        self._held_for: dict[str, bytes] = {}
        self._took_shares = False
        self._announced: messages.Announce | None = None
        self._vote: messages.Vote | None = None
        self._own_answer: sharing.Share | None = None
        self._answered = False
        self._delivered: list[bytes] = []

    @property
    def sites(self) -> tuple[str, ...]:
        """Everyone whose key is in this sum."""
        peers = () if self._channels is None else self._channels.peers
        return tuple(sorted((self._member.name, *peers)))

    # -- keys and upload -------------------------------------------------------------------

    @property
    def shares_held(self) -> dict[str, sharing.Share]:
        """Dealer -> the share that it dealt to this site, of those that were good."""
        return dict(self._held)

    def round_key(self) -> messages.RoundKey:
        names = self._member.journal.bound(self._base)
        in_batches = self._member.roster.rules.membership == "batches"
        if in_batches and self._session.phase == ROUND:
            names = self._member.line.pinned(self._session.round_number) or names
        bound = dict.fromkeys(names, b"")
        return messages.RoundKey(self._key.public.to_bytes(), self._model_tag, bound)

    def begin(self, command: messages.Work) -> None:
        """Take every site's ephemeral keys; from here on messages are bound to all of them."""
        if self._channels is not None:
            raise ProtocolError("repeated", "this site has begun this sum already")
        least = least_sites(self._member.roster.rules)
        keys = read_round_keys(command.round_keys, self._session, self._member.roster, least)
        own = keys.get(self._member.name)
        if own is None or own.key != self._key.public.to_bytes():
            raise ProtocolError("disagree", "this site's own round key was replaced")
        for site, key in keys.items():
            if not hmac.compare_digest(key.model_tag, self._model_tag):
                raise ProtocolError("disagree", f"{site} starts from another model")
        context = round_context(self._session, keys)
        peers = {site: PublicKey.from_bytes(key.key) for site, key in keys.items()}
        self._channels = Channels(self._member.name, self._key, peers, context)
        self.binding = Binding(context, self._session.round_number, self._session.phase)

    def contribute(self, encoded: Encoded) -> messages.Upload:
        """Encrypt, share the key out, journal, and say what will be handed over."""
        channels = self._channels
        if channels is None or self._upload is not None:
            raise ProtocolError("repeated", "this site has an upload in this sum")
        encrypted: EncryptedUpdate | None = None
        if isinstance(self._cipher, SharedKey):
            assert isinstance(encoded, EncodedUpdate)
            blocks = self._cipher.encrypt(encoded)
        else:
            assert isinstance(encoded, EncodedIntegers)
            encrypted = self._cipher.encrypt(encoded, self.binding.context)
            blocks = encrypted.blocks
        upload = messages.Upload(
            key_id=self._cipher.key_id,
            layout_tag=self._tag_in(self.binding, b"layout", encoded.layout.sha256()),
            block_digests=tuple(hashlib.sha256(block).digest() for block in blocks),
            share_digests={},
            head=self._member.line.heads.statement(self._member.sign),
        )
        if encrypted is not None:
            self._share_out(encrypted, encoded.layout, upload_digest(upload), channels)
            digests = {to: hashlib.sha256(box).digest() for to, box in self._boxes.items()}
            upload = replace(upload, share_digests=digests)
        self._member.journal.upload(
            self._session.context,
            self._session.round_number,
            self._session.phase,
            upload_record(upload),
        )
        self._sealed, self._blocks = encrypted, blocks
        self._upload, self._layout = upload, encoded.layout
        return upload

    def _shape(self, layout: Layout) -> sharing.ShareShape:
        assert isinstance(self._cipher, OneTimeKeys)
        return self._cipher.share_shape(layout, self._member.roster.rules)

    def _share_out(
        self, encrypted: EncryptedUpdate, layout: Layout, digest: bytes, channels: Channels
    ) -> None:
        roster = self._member.roster
        self._salt_key = hmac.digest(encrypted.share_seed, b"salts", "sha256")
        dealt = sharing.deal(
            encrypted.secret, encrypted.residues, self._shape(layout), encrypted.share_seed
        )
        self._held[self._member.name] = dealt[roster.index(self._member.name)]
        for holder in channels.peers:
            share = sharing.to_bytes(dealt[roster.index(holder)])
            self._boxes[holder] = channels.seal_share(share, holder, digest, self._salt_key)

    def fetch(self, index: int) -> bytes:
        self._contributed()
        blocks = self._blocks
        if not 0 <= index < len(blocks):
            raise ProtocolError("size", f"block {index} of {len(blocks)} was asked for")
        return blocks[index]

    def shares(self) -> dict[str, bytes]:
        self._contributed()
        return self._boxes

    def _contributed(self) -> messages.Upload:
        if self._upload is None:
            raise ProtocolError("repeated", "this site has no upload in this sum")
        return self._upload

    # -- shares of others ------------------------------------------------------------------

    def hold(self, command: messages.Hold) -> messages.Held:
        """Open the shares sealed to this site; complain of each that is missing or wrong."""
        if self._took_shares or self._vote is not None:
            raise ProtocolError("repeated", "this site has taken the shares of this sum, or voted")
        uploads = self._read_uploads(command.uploads)
        self._took_shares = True
        complaints: dict[str, bytes] = {}
        for dealer, upload in uploads.items():
            if dealer == self._member.name or not self._cipher.one_time:
                continue
            box = command.shares.get(dealer)
            if box is None:
                complaints[dealer] = b"missing"
                continue
            try:
                self._held[dealer] = self._open_share(box, dealer, upload)
                self._held_for[dealer] = upload_record(upload)
            except CryptoError:
                complaints[dealer] = b"share"
                self._sealing().forget(dealer)
        return messages.Held(complaints)

    def _open_share(self, box: bytes, dealer: str, upload: messages.Upload) -> sharing.Share:
        expected = upload.share_digests.get(self._member.name, b"")
        if not hmac.compare_digest(hashlib.sha256(box).digest(), expected):
            raise CryptoError(f"share of {dealer}: not the one that it signed for")
        content = self._sealing().open_share(box, dealer, upload_digest(upload))
        assert self._layout is not None
        return sharing.from_bytes(content, self._shape(self._layout))

    def _read_uploads(self, raw: dict[str, bytes]) -> dict[str, messages.Upload]:
        """Signed uploads of sites in this sum, laid out and keyed as this site's is."""
        own = self._contributed()
        uploads = read_uploads(raw, self.binding, self._member.roster)
        for site, upload in uploads.items():
            if not self._is_here(site):
                raise ProtocolError("not-in-set", f"{site} is not in this sum")
            if not hmac.compare_digest(upload.layout_tag, own.layout_tag):
                raise ProtocolError("layout", f"{site} laid its values out differently")
            if upload.key_id != own.key_id:
                raise ProtocolError("scheme", f"{site} encrypted under another key")
        self._member.line.heads.see_all({site: upload.head for site, upload in uploads.items()})
        mine = uploads.get(self._member.name)
        if mine is not None and mine != own:
            raise ProtocolError("digest", "this site's own upload was replaced")
        return uploads

    # -- vote and answer -------------------------------------------------------------------

    def announce(self, command: messages.Announce) -> messages.Vote:
        """Vote for the announced set and aggregate, once."""
        rules = self._member.roster.rules
        if self._vote is not None:
            raise ProtocolError("repeated", "this site has voted on this sum")
        uploads = self._read_uploads(command.uploads)
        least = max(rules.min_cohort, rules.threshold)
        everyone: Collection[str] = self._member.roster.names()
        if rules.membership == "batches":
            # All that the row of this sum is over: whole batches, in this session.
            everyone, least = self.sites, len(self.sites)
        if len(uploads) < least:
            missing = ", ".join(sorted(set(everyone) - set(uploads)))
            raise ProtocolError(
                "cohort", f"expected a sum over at least {least} sites, it leaves out {missing}"
            )
        assert self._layout is not None
        if len(command.block_digests) != self._cipher.num_blocks(self._layout):
            raise ProtocolError("size", "the sum has a wrong number of blocks")
        vote = messages.Vote(
            contributors_digest(uploads),
            aggregate_digest(command.block_digests),
            self._member.line.heads.statement(self._member.sign),
        )
        self._member.journal.vote(
            self._session.context,
            self._session.round_number,
            self._session.phase,
            hashlib.sha256(self.binding.context + vote.about).digest(),
            self._base,
            list(uploads),
        )
        for site, upload in uploads.items():
            # A dealer that signed two uploads: the share here is for the other one.
            if site != self._member.name and self._held_for.get(site) != upload_record(upload):
                self._held.pop(site, None)
        self._announced, self._vote = command, vote
        self.contributors = tuple(sorted(uploads))
        self.in_set = self._member.name in uploads
        return vote

    def quorum(self, command: messages.Quorum) -> messages.Answer:
        """Answer with the share of the sum's key, once, after Q matching votes."""
        vote, rules = self._voted(), self._member.roster.rules
        if self._answered:
            raise ProtocolError("repeated", "this site has answered for this sum")
        voted: dict[str, bytes] = {}
        for site, data in sorted(command.votes.items()):
            found = read_signed(data, messages.Vote, self.binding, site, self._member.roster)
            if rules.membership == "batches" and not self._is_here(site):
                raise ProtocolError("not-in-set", f"{site!r:.60} is not in this sum")
            if found.about != vote.about:
                raise ProtocolError("vote", f"{site} voted for another set or another sum")
            voted[site] = found.head
        self._member.line.heads.see_all(voted)
        if len(voted) < rules.votes:
            raise ProtocolError("vote", f"expected {rules.votes} matching votes, got {len(voted)}")
        for peer in command.unheard:
            if not self._is_here(peer):
                raise ProtocolError("not-in-set", f"{peer!r:.60} is not in this sum")
        about = vote.about
        lacking = [site for site in self.contributors if site not in self._held]
        boxes: dict[str, bytes] = {}
        clear = signed_tag = b""
        if self._cipher.one_time and not lacking:
            assert self._layout is not None
            held = [self._held[one] for one in self.contributors]
            self._own_answer = sharing.add(held, self._shape(self._layout))
            content = sharing.to_bytes(self._own_answer)
            signed_tag = self._signed(messages.AnswerTag(self._answer_tag(content)))
            if self._member.open_to == "server":
                clear = content
            else:
                boxes = self._sealed_answers(content, about, command.unheard)
        answer = messages.Answer(boxes, clear, signed_tag)
        self._member.journal.answer(
            self._session.context,
            self._session.round_number,
            self._session.phase,
            hashlib.sha256(self.binding.context + about).digest(),
        )
        self._answered = True
        # What was one dealer's goes as soon as it is in the sum.
        self._held.clear()
        return answer

    def _sealed_answers(
        self, content: bytes, about: bytes, unheard: Collection[str]
    ) -> dict[str, bytes]:
        channels, salt_key = self._sealing(), self._salt_key
        assert salt_key is not None
        return {
            peer: channels.seal_answer(content, peer, about, salt_key, first=peer in unheard)
            for peer in channels.peers
        }

    def _voted(self) -> messages.Vote:
        if self._vote is None:
            raise ProtocolError("repeated", "this site has not voted on this sum")
        return self._vote

    # -- opening ---------------------------------------------------------------------------

    def deliver(self, command: messages.Deliver) -> None:
        announced = self._announced
        if announced is None or command.index != len(self._delivered):
            raise ProtocolError("repeated", f"block {command.index} came out of turn")
        if command.index >= len(announced.block_digests):
            raise ProtocolError("size", f"block {command.index} was not announced")
        expected = announced.block_digests[command.index]
        if hashlib.sha256(command.block).digest() != expected:
            raise ProtocolError("digest", f"block {command.index} is not the one announced")
        assert self._layout is not None
        most = self._cipher.sum_block_bytes(self._layout, command.index)
        if len(command.block) > most:
            raise ProtocolError(
                "size", f"block {command.index}: {len(command.block)} bytes, at most {most}"
            )
        self._delivered.append(command.block)

    def open(self, command: messages.Open, parts: Parts) -> OpenedSum:
        """The checked sum; `parts`: the clips that its values were encoded with. Raises
        `CryptoError` if any check fails; there is one try."""
        announced, layout = self._announced, self._layout
        if (
            announced is None
            or layout is None
            or not self._answered
            or len(self._delivered) != len(announced.block_digests)
        ):
            raise ProtocolError("repeated", "there is nothing whole to open")
        delivered, self._delivered, self._announced = self._delivered, [], None
        if isinstance(self._cipher, SharedKey):
            return self._cipher.decrypt(delivered, layout)
        total = EncryptedSum(delivered, layout, len(self.contributors), self.binding.context)
        return self._cipher.decrypt(total, self._opened(command, total, self._cipher), parts)

    def _opened(
        self, command: messages.Open, total: EncryptedSum, cipher: OneTimeKeys
    ) -> sharing.OpenedShares:
        """The sum of the keys, and of what goes with them, from at least T answers. Wrong ones are
        found and left out as far as they can be (`crypto.decode`); `faulty` says whose."""
        roster, shape, me = self._member.roster, self._shape(total.layout), self._member.name
        shares: dict[int, sharing.Share] = {}
        if self._own_answer is not None:
            shares[roster.index(me)] = self._own_answer
        for holder in sorted(command.answers):
            if not self._is_here(holder):
                raise ProtocolError("not-in-set", f"{holder!r:.60} is not in this sum")
        for holder in self.sites:
            if holder != me:
                found = self._read_answer(holder, command, shape)
                if isinstance(found, str):
                    self.faulty[holder] = found
                else:
                    shares[roster.index(holder)] = found
        if len(shares) < shape.threshold:
            raise ProtocolError(
                "share", f"expected {shape.threshold} answers, got {len(shares)}{self._whose()}"
            )
        fits, number = cipher.key_check(total), total.num_contributors
        try:
            opened = sharing.open_sum(shares, shape, number, fits, roster.rules.max_colluding)
        except CryptoError as error:
            raise CryptoError(f"{error}{self._whose()}", error.code) from None
        for index in opened.wrong:
            self.faulty[roster.names()[index]] = UNFITTING
        return opened

    def _whose(self) -> str:
        """For the site's own operator: which answers were wrong, at the end of an error."""
        return f"; {in_words(self.faulty, self._member.name)}" if self.faulty else ""

    def _read_answer(
        self, holder: str, command: messages.Open, shape: sharing.ShareShape
    ) -> sharing.Share | str:
        """A peer's share of the sum's key, or the code of what is wrong with it."""
        if holder not in command.answers:
            return MISSING
        vote, content = self._voted(), command.answers[holder]
        signed, roster = command.tags.get(holder, b""), self._member.roster
        try:
            found = read_signed(signed, messages.AnswerTag, self.binding, holder, roster)
            if self._member.open_to == "peers":
                content = self._sealing().open_answer(content, holder, vote.about)
            share = sharing.from_bytes(content, shape)
        except (CryptoError, ProtocolError):
            return UNREADABLE
        return share if hmac.compare_digest(found.tag, self._answer_tag(content)) else UNTAGGED

    # -- helpers ---------------------------------------------------------------------------

    def _answer_tag(self, content: bytes) -> bytes:
        """Of a share as it travels. The holder's name is in the signature."""
        return self._tag_in(self.binding, b"answer", content)

    def _signed(self, message: messages.Message) -> bytes:
        """What goes on to every site in this one's name."""
        body = message.to_body()
        return envelope.seal(message.kind, self.binding, self._member.name, body, self._member.sign)

    def _sealing(self) -> Channels:
        if self._channels is None:
            raise ProtocolError("repeated", "this site has not begun this sum")
        return self._channels

    def _is_here(self, site: str) -> bool:
        """Whether it sent a key for this sum."""
        return site in (self._member.name, *self._sealing().peers)

    def _tag_in(self, binding: Binding, label: bytes, value: bytes) -> bytes:
        return tag(self._member.group_key, binding, label, value)


def tag(group_key: bytes, binding: Binding, label: bytes, value: bytes) -> bytes:
    """What must agree between sites and tells the coordinator nothing: HMAC-SHA256."""
    message = label + binding.context + binding.round_number.to_bytes(8, "big") + value
    return hmac.digest(group_key, message, "sha256")
