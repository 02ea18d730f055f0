"""One sum at the coordinator: what it knows of it, and a rule for each message. No network.

`Coordinator` asks the sites and hands their replies over; it mirrors `participant_sum`. A method
that makes commands is named as the message; a `take_*` takes checked replies, changes what is known
and returns who is out of the session by it: site -> why. Where no sum can come of what the sites
say, `RoundFailed` is raised.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

from fedshield.crypto.scheme import Adder
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.plan.quorum import OpenTo
from fedshield.protocol.contexts import (
    aggregate_digest,
    check_round_key,
    contributors_digest,
    read_signed,
    round_context,
)
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import messages
from fedshield.protocol.wire.envelope import Binding

_M = TypeVar("_M", bound=messages.Message)
#: Replies of sites: their signed bytes, and what they say.
Checked = Mapping[str, tuple[bytes, _M]]


class CoordinatorSum:
    """A sum from its beginning to its end; the methods come in the order of the messages.

    Args:
        roster: whose quorums hold.
        session: the session's context, with this sum's round and phase.
        adder: adds blocks of ciphertext.
        by_shares: whether the sum's key is opened by shares (one-time keys).
        open_to: who reads the answers, where there are shares.
    """

    def __init__(
        self, roster: Roster, session: Binding, adder: Adder, *, by_shares: bool, open_to: OpenTo
    ) -> None:
        self._roster = roster
        self._session = session
        self._adder = adder
        self._by_shares = by_shares
        self._open_to = open_to
        self._raw_keys: dict[str, bytes] = {}
        self._raw_uploads: dict[str, bytes] = {}
        self._share_boxes: dict[str, dict[str, bytes]] = {}
        # Dealer -> who has a good share of it.
        self._heard: dict[str, set[str]] = {}
        self._totals: list[object] = []
        self._votes: dict[str, bytes] = {}
        #: Who sent a key for this sum.
        self.keys: dict[str, messages.RoundKey] = {}
        #: The only sites that this sum may be over; None where any allowed set will do.
        self.only: frozenset[str] | None = None
        #: Whose upload is in the sum, as far as is known.
        self.uploads: dict[str, messages.Upload] = {}
        #: Dealers that are left out because of their shares, and why.
        self.blamed: dict[str, str] = {}
        self.blocks: list[bytes] = []
        self.block_digests: tuple[bytes, ...] = ()
        self.answers: dict[str, messages.Answer] = {}
        #: The receipts of who opened the sum, as they are passed on.
        self.receipts: dict[str, bytes] = {}

    # -- keys ------------------------------------------------------------------------------

    def take_keys(self, replies: Checked[messages.RoundKey]) -> dict[str, str]:
        refused: dict[str, str] = {}
        for site, (raw, key) in replies.items():
            try:
                check_round_key(site, key)
            except ProtocolError as error:
                refused[site] = f"its answer was refused: {error}"
            else:
                self._raw_keys[site], self.keys[site] = raw, key
        return refused

    @cached_property
    def binding(self) -> Binding:
        """What messages from the upload on are bound to: every site's key. Known once all keys
        are taken."""
        context = round_context(self._session, self.keys)
        return Binding(context, self._session.round_number, self._session.phase)

    # -- uploads and shares ----------------------------------------------------------------

    def work(self) -> messages.Work:
        return messages.Work(self._raw_keys)

    def take_uploads(self, replies: Checked[messages.Upload]) -> None:
        """Those of sites that this sum may be over."""
        self._raw_uploads = {site: raw for site, (raw, _) in replies.items()}
        self.uploads = {
            site: upload
            for site, (_, upload) in replies.items()
            if self.only is None or site in self.only
        }

    def check_shapes(self) -> None:
        """Raises `RoundFailed` unless all uploads have one key, layout and number of blocks."""
        shapes = {
            site: (upload.key_id, upload.layout_tag, len(upload.block_digests))
            for site, upload in self.uploads.items()
        }
        usual, _ = Counter(shapes.values()).most_common(1)[0]
        for site in sorted(shapes):
            if shapes[site][:2] != usual[:2]:
                raise RoundFailed(f"{site} used another key or layout than the others")
            if shapes[site] != usual:
                raise RoundFailed(f"{site} announced a different number of blocks")

    def take_shares(self, replies: Checked[messages.Shares]) -> None:
        """Sealed shares; who hands none over is not in the sum."""
        self._share_boxes = {dealer: shares.boxes for dealer, (_, shares) in replies.items()}
        self.uploads = {site: self.uploads[site] for site in replies}

    def hold(self, holders: Collection[str]) -> dict[str, messages.Message]:
        """Every dealer's upload and its share for each of `holders`."""
        uploads = {site: self._raw_uploads[site] for site in self.uploads}
        return {
            holder: messages.Hold(
                uploads,
                {
                    dealer: boxes[holder]
                    for dealer, boxes in self._share_boxes.items()
                    if dealer != holder and holder in boxes
                },
            )
            for holder in holders
        }

    def take_held(self, replies: Checked[messages.Held]) -> None:
        """Where too few holders have a good share of all dealers, those complained of are left out
        (`blamed`)."""
        complaints = {site: set(reply.complaints) for site, (_, reply) in replies.items()}
        dealers = set(self.uploads)
        for holder in complaints:
            for dealer in dealers - complaints[holder] - {holder}:
                self._heard.setdefault(dealer, set()).add(holder)
        self._share_boxes = {}
        content = [holder for holder in complaints if not complaints[holder]]
        if len(content) >= self.least_answers:
            return
        for dealer in sorted(set().union(*complaints.values())):
            holders = [holder for holder in complaints if dealer in complaints[holder]]
            self.blamed[dealer] = f"its shares were refused by {', '.join(sorted(holders))}"
        self.uploads = {
            site: self.uploads[site] for site in self.uploads if site not in self.blamed
        }

    # -- the sum ---------------------------------------------------------------------------

    def fits(self, site: str, index: int, block: bytes) -> bool:
        """Whether this is the block that `site` announced. Raises `RoundFailed` where it is not,
        and no sum can do without the site."""
        if hashlib.sha256(block).digest() == self.uploads[site].block_digests[index]:
            return True
        if not self._by_shares:
            raise RoundFailed(f"{site}: block {index} is not the one it announced")
        return False

    def add(self, site: str, blocks: Sequence[bytes]) -> None:
        """Add an upload to the running total. Raises `RoundFailed`: the total may hold part of it,
        and there is nothing whole to go on with."""
        try:
            self._totals = [
                self._adder.add(self._totals[index] if self._totals else None, block)
                for index, block in enumerate(blocks)
            ]
        except CryptoError as error:
            raise RoundFailed(f"{site}: {error}") from None

    def close(self, added: Collection[str]) -> None:
        """The sum is over `added`. Raises `CryptoError`."""
        self.uploads = {site: self.uploads[site] for site in self.uploads if site in added}
        self.blocks = [self._adder.result(total) for total in self._totals]
        self._totals = []
        self.block_digests = tuple(hashlib.sha256(block).digest() for block in self.blocks)

    @property
    def contributors(self) -> tuple[str, ...]:
        return tuple(sorted(self.uploads))

    # -- votes and answers -----------------------------------------------------------------

    @property
    def least_answers(self) -> int:
        """Answers without which the sum cannot be opened."""
        return self._roster.rules.threshold or self._roster.rules.num_sites

    @property
    def least_votes(self) -> int:
        return max(self._roster.rules.votes, self.least_answers)

    def announce(self) -> messages.Announce:
        uploads = {site: self._raw_uploads[site] for site in self.uploads}
        return messages.Announce(uploads, self.block_digests)

    def take_votes(self, replies: Checked[messages.Vote]) -> dict[str, str]:
        expected = contributors_digest(self.uploads) + aggregate_digest(self.block_digests)
        self._votes = {site: raw for site, (raw, vote) in replies.items() if vote.about == expected}
        return {site: "voted for another sum" for site in replies if site not in self._votes}

    @property
    def num_votes(self) -> int:
        """Sites that voted for this sum."""
        return len(self._votes)

    def quorum(self, active: Collection[str]) -> dict[str, messages.Message]:
        """The matching votes, to each site that gave one."""
        return {
            site: messages.Quorum(self._votes, self._unheard(site, active)) for site in self._votes
        }

    def _unheard(self, site: str, active: Collection[str]) -> dict[str, bytes]:
        """The others that have no good share of this site's, where there are shares."""
        if not self._by_shares or self._open_to == "server":
            return {}
        return dict.fromkeys(set(active) - self._heard.get(site, set()) - {site}, b"")

    def take_answers(self, replies: Checked[messages.Answer]) -> tuple[dict[str, str], set[str]]:
        """Who is out, and who has no answer for want of a share. An answer that is not for those
        who read it, or whose tag its holder did not sign, is refused: no site could take it."""
        refused: dict[str, str] = {}
        lacking: set[str] = set()
        for site, (_, answer) in replies.items():
            if self._by_shares:
                if not (answer.boxes or answer.share):
                    lacking.add(site)
                    continue
                if bool(answer.share) != (self._open_to == "server"):
                    refused[site] = f"its answer was refused: not for the {self._open_to}"
                    continue
                try:
                    read_signed(answer.tag, messages.AnswerTag, self.binding, site, self._roster)
                except ProtocolError as error:
                    refused[site] = f"its answer was refused: {error}"
                    continue
            self.answers[site] = answer
        return refused, lacking

    # -- opening ---------------------------------------------------------------------------

    def deliver(self) -> list[messages.Deliver]:
        return [messages.Deliver(index, block) for index, block in enumerate(self.blocks)]

    def open(self, sites: Collection[str]) -> dict[str, messages.Message]:
        """The others' answers, to each of `sites`."""
        opening: dict[str, messages.Message] = {}
        for site in sites:
            boxes: dict[str, bytes] = {}
            for holder, answer in self.answers.items() if self._by_shares else ():
                share = answer.share or answer.boxes.get(site)
                if holder != site and share:
                    boxes[holder] = share
            tags = {holder: self.answers[holder].tag for holder in boxes}
            opening[site] = messages.Open(boxes, tags)
        return opening

    def take_receipts(self, replies: Checked[messages.Receipt]) -> None:
        self.receipts = {site: raw for site, (raw, _) in replies.items()}
        if len({receipt.model_tag for _, receipt in replies.values()}) != 1:
            raise RoundFailed("the sites opened different sums; no site takes its own")


def bound_set(keys: Mapping[str, messages.RoundKey]) -> frozenset[str] | None:
    """The set that was voted for from this model before, if any: no other will be opened. Raises
    `RoundFailed` where sites are bound to different sets, or not all of it are here."""
    said = {site: tuple(sorted(key.bound)) for site, key in keys.items() if key.bound}
    bound = set(said.values())
    if not bound:
        return None
    names = " and ".join(
        f"{', '.join(sites)} (so says {', '.join(site for site in said if said[site] == sites)})"
        for sites in sorted(bound)
    )
    if len(bound) > 1:
        raise RoundFailed(
            f"different sets were voted for from this model: {names}; it cannot go on"
        )
    wanted = frozenset(bound.pop())
    if not wanted <= set(keys):
        raise RoundFailed(
            f"a sum over {names} was voted for from this model, and any other would give a "
            f"site away; {', '.join(sorted(wanted - set(keys)))} must be back first"
        )
    return wanted
