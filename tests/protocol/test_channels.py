"""Sealed boxes of a sum: exactly the bytes that are stated, and who can read whose answer."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hand import (
    FOUR,
    Hand,
    body_of,
    failing,
    flipped,
    lose,
    started,
)

from fakes import NoLedger
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.public_keys import PUBLIC_KEY_BYTES
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.crypto.seal import CIPHERTEXT_BYTES, OVERHEAD_BYTES
from fedshield.errors import CryptoError
from fedshield.plan.quorum import resolve
from fedshield.protocol.channels import Channels
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant_sum import Member, Summation
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.ciphers import OneTimeKeys
from fedshield.update.encode_integers import encode_count

ABOUT = b"about"


# -- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_sites", "stated"), [(3, 3_360), (10, 10_976), (64, 69_728)], ids=["3", "10", "64"]
)
def test_what_mlkem_adds_to_a_sites_upload(num_sites: int, stated: int, tmp_path: Path) -> None:
    """1,184 bytes of key and 1,088 for each peer; the answers add none. Against the same messages
    without them, as they crossed before."""
    names = [f"site-{number:02d}" for number in range(num_sites)]
    keys = {name: SigningKey() for name in names}
    roster = Roster(
        {name: key.public for name, key in keys.items()}, bytes(32), resolve(num_sites), demo=True
    )
    session, packing = Binding(bytes(32), 0, "weights"), rlwe_parameters(num_sites, 16, False)

    def site(name: str) -> Summation:
        journal = Journal(tmp_path / f"{name}.jsonl")
        secret = os.urandom(32)
        line: Any = NoLedger()
        member = Member(name, roster, "peers", journal, line, keys[name].sign, bytes(32), secret)
        cipher = OneTimeKeys(packing, bytes(32), secret)
        return Summation(member, cipher, session, "base", b"")

    sites = {name: site(name) for name in names}
    raw = {
        name: envelope.seal("round-key", session, name, one.round_key().to_body(), keys[name].sign)
        for name, one in sites.items()
    }
    first = sites[names[0]]
    first.begin(messages.Work(raw))
    first.contribute(encode_count(10, packing))
    key, boxes = first.round_key(), first.shares()
    share_bytes = first._shape(first._cipher.weights_layout()).num_bytes
    assert len(boxes) == num_sites - 1
    assert {len(box) for box in boxes.values()} == {CIPHERTEXT_BYTES + OVERHEAD_BYTES + share_bytes}

    def size(*sent: messages.Message) -> int:
        return sum(
            len(envelope.seal(m.kind, first.binding, names[0], m.to_body(), lambda _: bytes(64)))
            for m in sent
        )

    before = (
        dataclasses.replace(key, key=bytes(32)),
        messages.Shares({to: box[CIPHERTEXT_BYTES:] for to, box in boxes.items()}),
    )
    assert size(key, messages.Shares(boxes)) - size(*before) == stated
    assert stated == 1_184 + 1_088 * (num_sites - 1)


@pytest.mark.parametrize("scheme", ["plain", "ckks", "rlwe"])
def test_the_lengths_that_cross(federation: Any, scheme: str) -> None:
    """One ciphertext in front of each share's box and of each box of the run's keys; none in front
    of an answer; none at all in a sum under the run's key."""
    ours = federation(scheme, weights="equal").run(1)

    def said(site: str, method: str) -> Any:
        return ours.opened(ours.wire.of(site, method)[0].reply)[3]

    for site in ours.names:
        assert len(said(site, "invite")["run_key"]) == PUBLIC_KEY_BYTES == 1_216
        assert len(said(site, "prepare")["key"]) == PUBLIC_KEY_BYTES
        assert bool(said(site, "quorum")["boxes"]) == (scheme == "rlwe")
        if scheme == "rlwe":
            shares, answers = said(site, "fetch-shares")["boxes"], said(site, "quorum")["boxes"]
            lengths = {len(box) - CIPHERTEXT_BYTES for box in shares.values()}
            assert lengths == {len(box) for box in answers.values()}
    offer = said("bank", "make-key")
    secret = ours.participants["bank"]._keys
    assert secret is not None
    held = len(secret.scheme.secret()) if scheme == "ckks" else 0
    for sealed in offer["boxes"].values():
        box = ours.opened(sealed)[3]["box"]
        assert len(box) == CIPHERTEXT_BYTES + OVERHEAD_BYTES + 32 + held


# -- who has which secret --------------------------------------------------------------------


def pair() -> tuple[Channels, Channels]:
    keys = {name: RunKey(bytes(32)) for name in ("bank", "clinic")}
    peers = {name: key.public for name, key in keys.items()}
    bank, clinic = (Channels(name, keys[name], peers, bytes(32)) for name in keys)
    return bank, clinic


def test_an_answer_needs_no_second_ciphertext() -> None:
    bank, clinic = pair()
    share = bank.seal_share(b"share", "clinic", ABOUT, bytes(32))
    assert clinic.open_share(share, "bank", ABOUT) == b"share"
    answer = bank.seal_answer(b"answer", "clinic", ABOUT, bytes(32), first=False)
    assert len(answer) == len(b"answer") + OVERHEAD_BYTES
    assert clinic.open_answer(answer, "bank", ABOUT) == b"answer"
    assert (bank.peers, clinic.peers) == (("clinic",), ("bank",))


def test_an_answer_to_who_has_no_share_brings_the_ciphertext() -> None:
    bank, clinic = pair()
    share = bank.seal_share(b"share", "clinic", ABOUT, bytes(32))
    answer = bank.seal_answer(b"answer", "clinic", ABOUT, bytes(32), first=True)
    assert answer[:CIPHERTEXT_BYTES] == share[:CIPHERTEXT_BYTES]  # one encapsulation for each pair
    assert clinic.open_answer(answer, "bank", ABOUT) == b"answer"
    with pytest.raises(CryptoError, match="sealed box"):
        clinic.open_answer(answer[CIPHERTEXT_BYTES:], "bank", ABOUT)


@pytest.mark.parametrize("at", [0, CIPHERTEXT_BYTES, -1], ids=["ciphertext", "salt", "box"])
def test_who_complains_of_a_share_forgets_its_ciphertext(at: int) -> None:
    """Both ends then know which form the answer has, whatever was wrong with the share."""
    bank, clinic = pair()
    share = bank.seal_share(b"share", "clinic", ABOUT, bytes(32))
    short, long = (
        bank.seal_answer(b"answer", "clinic", ABOUT, bytes(32), first=first)
        for first in (False, True)
    )
    with pytest.raises(CryptoError, match="does not open"):
        clinic.open_share(flipped(share, at), "bank", ABOUT)
    assert clinic.open_answer(long, "bank", ABOUT) == b"answer"
    assert clinic.open_share(share, "bank", ABOUT) == b"share"
    assert clinic.open_answer(short, "bank", ABOUT) == b"answer"
    for good, bad in ((True, long), (False, short)):
        if not good:
            clinic.forget("bank")  # its content was no share
        with pytest.raises(CryptoError, match="sealed box"):
            clinic.open_answer(bad, "bank", ABOUT)


def bad_boxes(ours: Any, dealer: str, *holders: str, way: str = "flipped") -> None:
    """The dealer hands these holders boxes that it did not sign for, or none."""

    def tamper(site: str, method: str, data: bytes) -> bytes:
        if (site, method) != (dealer, "fetch-shares"):
            return data
        boxes = dict(body_of(data)["boxes"])
        for holder in holders:
            if way == "missing":
                del boxes[holder]
            else:
                boxes[holder] = flipped(boxes[holder], 0 if way == "ciphertext" else -1)
        _, binding, _, _ = ours.opened(data)
        body = messages.Shares(boxes).to_body()
        return envelope.seal("shares", binding, site, body, ours.keys[site].sign)

    ours.wire.to_coordinator = tamper


def test_a_site_that_is_not_in_the_sum_is_heard(federation: Any) -> None:
    """The clinic's shares are refused, so it is left out; another site is lost before it answers.
    Of three answers, as many as are needed, one is the clinic's, to sites that have no share of
    it."""
    ours = federation("rlwe", sites=4, weights="equal")
    bad_boxes(ours, "clinic", "bank", "hospital")
    sites = failing(ours)
    ours.coordinator.start()
    outcome, contributors = lose(ours, 1, {"lab": ("quorum", "before")}, sites)
    assert contributors == {"bank", "hospital", "lab"}
    assert outcome.lost == {"lab": "quorum: no answer"}
    boxes = ours.opened(ours.wire.of("clinic", "quorum")[-1].reply)[3]["boxes"]
    usual = len(ours.opened(ours.wire.of("bank", "quorum")[-1].reply)[3]["boxes"]["hospital"])
    # The lab was handed a good share, which the others complained of.
    assert {to: len(box) - usual for to, box in boxes.items()} == {
        "bank": CIPHERTEXT_BYTES,
        "hospital": CIPHERTEXT_BYTES,
        "lab": 0,
    }


@pytest.mark.parametrize("way", ["flipped", "ciphertext", "missing", "content"])
def test_who_complained_of_a_share_hears_its_dealer(
    federation: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One holder has no good share of one dealer; enough others have, so the dealer stays in the
    sum. Of the four answers that are needed two are lost, so that every one counts; the dealer's
    answer to that holder brings the ciphertext, and no other does."""
    ours = federation("rlwe", sites=6, weights="equal")
    if way == "content":  # it opens, and is no share
        seal_share = Channels.seal_share

        def spoiled(self: Channels, share: bytes, holder: str, *rest: Any) -> bytes:
            bad = (self._name, holder) == ("clinic", "bank")
            return seal_share(self, share[:-1] if bad else share, holder, *rest)

        monkeypatch.setattr(Channels, "seal_share", spoiled)
    else:
        bad_boxes(ours, "clinic", "bank", way=way)
    sites = failing(ours)
    ours.coordinator.start()
    needed = ours.roster.rules.threshold
    gone = ours.names[-(len(ours.names) - 1 - needed) :]
    assert "bank" not in gone
    assert "clinic" not in gone
    outcome, contributors = lose(ours, 1, dict.fromkeys(gone, ("quorum", "before")), sites)
    assert contributors == set(ours.names)
    assert set(outcome.lost) == set(gone)
    code = b"missing" if way == "missing" else b"share"
    held = ours.opened(ours.wire.of("bank", "hold")[-1].reply)[3]
    assert held["complaints"] == {"clinic": code}
    for site in set(ours.names) - {"bank", *gone}:
        answer = ours.opened(ours.wire.of(site, "quorum")[-1].reply)[3]["boxes"]
        least = min(map(len, answer.values()))
        longer = {to for to, box in answer.items() if len(box) != least}
        assert longer == ({"bank"} if site == "clinic" else set())
    opened = ours.opened(ours.wire.of("bank", "open")[-1].command)[3]["answers"]
    assert len(opened) == needed


def test_only_sites_of_the_sum_can_be_unheard(federation: Any) -> None:
    """And a site that is told so of another, or of none, is not read by it: no more than if the
    coordinator had kept the answer."""
    ours = started(federation)
    hand = Hand(ours).ready()
    blocks = hand.aggregate(FOUR)
    votes = hand.vote_on(FOUR, hand.sites, blocks)
    for stranger in ("coordinator", "nobody", ""):
        code, text = hand.refused("clinic", messages.Quorum(votes, {stranger: b""}))
        assert (code, f"{stranger!r} is not in this sum" in text) == ("not-in-set", True)
    hand.unheard["clinic"] = ("bank",)
    answers = hand.answers(votes)
    hand.deliver("bank", blocks)
    opening = hand.opening("bank", answers)
    good = opening.answers
    current = ours.participants["bank"]._sum
    about = current._vote.contributors + current._vote.aggregate
    with pytest.raises(CryptoError, match="does not open"):
        current._channels.open_answer(good["clinic"], "clinic", about)
    assert hand.raw("bank", messages.Open(good, opening.tags))  # three others are enough
