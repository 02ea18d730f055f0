"""A site whose machine was restored from a snapshot and draws the same random bytes again: it can
be brought to the very same session and sum, and sends the same bytes or none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from threshold_kit import FOUR, REST, SITE, Hand, Watched, at_most_once, body_of

from fakes import RepeatingPublicKey
from fedshield.crypto import seal
from fedshield.crypto.keys import RunKey
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.errors import FedShieldError, ProtocolError
from fedshield.ledger.heads import place_beside
from fedshield.protocol import participant, participant_sum
from fedshield.protocol.wire import messages


class Clone:
    """Runs of one site's machine from one snapshot: its nonce, run and round keys repeat, and where
    `all_of_it`, the bytes of its one-time keys and what it encapsulates as well. So it can be
    brought to the same session and sum again."""

    def __init__(self, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours = ours
        self.current = ""
        self._keys: dict[tuple[str, str], RunKey] = {}
        fixed = SimpleNamespace(urandom=self._bytes)
        monkeypatch.setattr(participant, "os", fixed)
        monkeypatch.setattr(participant, "RunKey", lambda secret: self._key("run", secret))
        monkeypatch.setattr(participant_sum, "RunKey", lambda secret: self._key("sum", secret))
        self._monkeypatch = monkeypatch
        self._fixed = fixed
        ledger = ours.folder / f"{SITE}.ledger"
        self._peers = place_beside(ledger)
        self._ledger, self._had_peers = ledger.read_bytes(), self._peers.exists()

    def _bytes(self, count: int) -> bytes:
        return hashlib.shake_128(self.current.encode()).digest(count)

    def _key(self, use: str, secret: bytes) -> RunKey:
        return self._keys.setdefault((self.current, use), RunKey(secret))

    def all_of_it(self) -> None:
        self._monkeypatch.setattr(rlwe, "os", self._fixed)
        self._monkeypatch.setattr(seal, "MLKEM768PublicKey", RepeatingPublicKey)

    def again(self, hand: Hand, *, upto: str) -> bytes:
        """From the snapshot through everything that it was sent, up to this message; the reply."""
        # Its ledger is that of the snapshot, too.
        self.ours.stores[SITE].contribution = None
        self.ours.ledgers[SITE].close()
        (self.ours.folder / f"{SITE}.ledger").write_bytes(self._ledger)
        assert not self._had_peers
        self._peers.unlink(missing_ok=True)
        self.ours.participants[SITE] = self.ours.participant(SITE, self.ours.roster)
        self.current = SITE
        for one in self.ours.wire.log:
            if one.site == SITE and one.method in ("invite", "begin", "take-key"):
                self.ours.participants[SITE].handle(one.method, one.command)
        steps: dict[str, Callable[[], messages.Message]] = {
            "prepare": messages.Prepare,
            "work": lambda: messages.Work(hand.keys),
            "fetch-shares": messages.FetchShares,
            "fetch": lambda: messages.Fetch(0),
            "hold": lambda: messages.Hold(hand.uploads, hand.shares_for(SITE)),
            "announce": lambda: hand.announcement(FOUR),
        }
        for method, command in steps.items():
            early = method in ("prepare", "work")
            reply = hand.raw(SITE, command(), hand.session if early else hand.binding)
            if method == upto:
                return reply
        raise AssertionError(upto)


@pytest.fixture
def cloned(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Clone, Hand, list[tuple[bytes, str, bytes]]]:
    """The site has done everything up to its shares; nobody has voted."""
    ours = federation("rlwe", sites=4, weights="equal")
    clone = Clone(ours, monkeypatch)

    def now(site: str, _: str, data: bytes) -> bytes:
        clone.current = site
        return data

    ours.wire.to_site = now
    ours.coordinator.start()
    left: list[tuple[bytes, str, bytes]] = []

    class Seen(Watched):
        def raw(self, site: str, *args: Any) -> bytes:
            clone.current = site
            return super().raw(site, *args)

    hand = Seen(ours, left)
    # The site's own secret is its key file's, and there after a restart.
    make = ours.participant

    def same_secret(*args: Any) -> Any:
        made = make(*args)
        made._secret = b"s" * 32
        return made

    ours.participant = same_secret
    ours.participants[SITE]._secret = b"s" * 32
    ours.participants[SITE]._cipher._site_secret = b"s" * 32
    return clone, hand, left


def test_a_clone_sends_no_second_upload(cloned: Any) -> None:
    """In the very same session and sum, with a fresh one-time key: none rather than another."""
    clone, hand, left = cloned
    hand.prepare().work()
    with pytest.raises(ProtocolError, match=r"^repeated: round 1 \(round\): another upload has"):
        clone.again(hand, upto="work")
    assert clone.ours.participants[SITE]._sum._upload is None
    for message in (messages.Fetch(0), messages.FetchShares()):
        assert hand.refused(SITE, message)[0] in ("repeated", "context")
    at_most_once(left)


def test_a_whole_clone_sends_the_same_bytes(cloned: Any) -> None:
    """Upload, blocks, shares, vote and answer: the same, or none; another vote is refused."""
    clone, hand, left = cloned
    clone.all_of_it()
    hand.prepare().work().collect().hold()
    upload, boxes, block = hand.uploads[SITE], hand.boxes[SITE], hand.blocks[SITE][0]
    assert clone.again(hand, upto="work") == upload
    assert body_of(clone.again(hand, upto="fetch-shares"))["boxes"] == boxes
    assert body_of(clone.again(hand, upto="fetch"))["data"] == block
    clone.again(hand, upto="hold")
    votes = hand.vote_on(FOUR, hand.sites)
    assert clone.again(hand, upto="announce") == votes[SITE]
    answer = hand.raw(SITE, messages.Quorum(votes))
    clone.again(hand, upto="announce")
    assert hand.raw(SITE, messages.Quorum(votes)) == answer
    clone.again(hand, upto="hold")
    for announce in (hand.announcement(REST), hand.announcement(FOUR, hand.shifted(FOUR, 0))):
        code, text = hand.refused(SITE, announce)
        assert code == "repeated"
        assert "voted for" in text or "another vote has been sent" in text
    at_most_once(left)


def test_a_clone_with_another_update_uses_another_key(cloned: Any) -> None:
    """The same random bytes, and training that came out differently: nothing leaves, and the
    one-time key would have been another."""
    clone, hand, left = cloned
    clone.all_of_it()
    hand.prepare().work()
    key = clone.ours.participants[SITE]._sum._sealed.secret
    other = clone.ours.trained("lab", clone.ours.participants["lab"].state, 1)
    clone.ours.works[SITE].fault = other
    keys: list[Any] = []
    encrypt = participant_sum.Summation._share_out

    def spy(self: Any, sealed: Any, *rest: Any) -> None:
        keys.append(sealed.secret)
        encrypt(self, sealed, *rest)

    clone._monkeypatch.setattr(participant_sum.Summation, "_share_out", spy)
    with pytest.raises(FedShieldError, match="another upload has been sent"):
        clone.again(hand, upto="work")
    assert len(keys) == 1
    assert (keys[0] != key).sum() > 3000
    at_most_once(left)
