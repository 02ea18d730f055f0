"""A coordinator that swaps, mixes, replays or downgrades sealed boxes opens and changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand import FOUR, Hand, body_of, nothing_installed, started

from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import MLKEM_BYTES, PublicKey
from fedshield.crypto.seal import CIPHERTEXT_BYTES
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol.channels import Channels
from fedshield.protocol.contexts import upload_digest
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding


def swapped(box: bytes, other: bytes) -> bytes:
    """Under the other's ciphertext."""
    return other[:CIPHERTEXT_BYTES] + box[CIPHERTEXT_BYTES:]


def test_a_swapped_ciphertext_is_complained_of(federation: Any) -> None:
    """Of another holder's box, another dealer's, an earlier round's, or the coordinator's own
    encapsulation: none is the box that its dealer signed for."""
    ours = started(federation)
    first = Hand(ours).ready()
    first.finish()
    hand = Hand(ours, 2).prepare().work().collect()
    good = hand.shares_for("bank")
    key = PublicKey.from_bytes(body_of(hand.keys["bank"])["key"])
    stranger = Channels("clinic", RunKey(bytes(32)), {"bank": key}, hand.binding.context)
    made = stranger.seal_share(b"", "bank", b"", bytes(32))
    for other in (
        hand.boxes["clinic"]["lab"],
        hand.boxes["lab"]["bank"],
        first.boxes["clinic"]["bank"],
        made,
    ):
        ours.participants["bank"]._sum._took_shares = False
        shares = good | {"clinic": swapped(good["clinic"], other)}
        held = hand.send("bank", messages.Hold(hand.uploads, shares))
        assert held["complaints"] == {"clinic": b"share"}


def test_a_swapped_ciphertext_opens_nothing_even_if_it_were_signed_for(federation: Any) -> None:
    """Behind the digest stands the key, which the ciphertext is part of."""
    ours = started(federation)
    hand = Hand(ours).prepare().work().collect()
    channels, boxes = ours.participants["bank"]._sum._channels, hand.boxes
    digest = upload_of(hand, "clinic")
    assert channels.open_share(boxes["clinic"]["bank"], "clinic", digest)
    for box in (
        swapped(boxes["clinic"]["bank"], boxes["clinic"]["lab"]),
        swapped(boxes["clinic"]["bank"], boxes["lab"]["bank"]),
        boxes["clinic"]["lab"],
        boxes["lab"]["bank"],
    ):
        with pytest.raises(CryptoError, match="does not open"):
            channels.open_share(box, "clinic", digest)


def upload_of(hand: Hand, site: str) -> bytes:
    """H(upload), which the site's shares speak of."""
    return upload_digest(messages.Upload.from_body(body_of(hand.uploads[site])))


def test_answers_that_are_mixed_up_are_not_read(federation: Any) -> None:
    """Of another sum, another receiver, with a ciphertext where none belongs, or a share in its
    place: T honest answers open the sum, and one fewer does not."""
    ours = started(federation)
    first = Hand(ours).ready()
    earlier = first.answers(first.vote_on(FOUR, first.sites))
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    hand = Hand(ours).ready()
    blocks = hand.aggregate(FOUR)
    answers = hand.answers(hand.vote_on(FOUR, hand.sites, blocks))
    opening = hand.opening("bank", answers)
    good = opening.answers
    hand.deliver("bank", blocks)
    current = ours.participants["bank"]._sum
    about = current._vote.contributors + current._vote.aggregate
    share = hand.boxes["clinic"]["bank"]
    mixed = [
        earlier["clinic"]["boxes"]["bank"],
        answers["clinic"]["boxes"]["lab"],
        answers["lab"]["boxes"]["bank"],
        share,
        share[CIPHERTEXT_BYTES:],
        share[:CIPHERTEXT_BYTES] + good["clinic"],
        good["clinic"][:-1],
    ]
    for box in mixed:
        with pytest.raises(CryptoError, match="sealed box"):
            current._channels.open_answer(box, "clinic", about)
    with nothing_installed(ours):
        some = {"clinic": mixed[0], "lab": good["lab"]}
        code, text = hand.refused("bank", messages.Open(some, opening.tags))
        assert (code, "got 2; the answer of clinic cannot be read" in text) == ("share", True)


def test_round_keys_are_the_sites_that_signed_them(federation: Any) -> None:
    """The coordinator puts its own ML-KEM key beside the clinic's X25519 key: it cannot sign it."""
    ours = started(federation)
    hand = Hand(ours).prepare()
    body = body_of(hand.keys["clinic"])
    own = RunKey(bytes(32)).public
    forged = body | {"key": own.mlkem + body["key"][MLKEM_BYTES:]}
    by_coordinator = envelope.seal("round-key", hand.session, "clinic", forged, ours.server.sign)
    with nothing_installed(ours):
        code, _ = hand.refused("bank", messages.Work(hand.keys | {"clinic": by_coordinator}))
    assert code == "signature"


def older(roster: Roster) -> list[bytes]:
    """This roster as it was before, and as one that offers less or more."""
    value: Any = codec.decode(roster.encode())
    assert value[0] == "fedshield roster 3"
    assert value[-1] == 2
    return [
        codec.encode(["fedshield roster 2", *value[1:-1]]),
        codec.encode([*value[:-1], 1]),
        codec.encode([*value[:-1], 3]),
        codec.encode(value[:-1]),
    ]


def test_no_session_offers_less(federation: Any) -> None:
    """A roster of another sealing is not the site's own copy, whoever signs the invitation; and
    who joins with X25519 alone is refused by every site."""
    ours = federation("rlwe")
    zero = Binding(bytes(32), 0, "setup")
    for raw in older(ours.roster):
        invite = messages.Invite(b"s" * 16, ours.plan.canonical(), raw)
        data = envelope.seal("invite", zero, "coordinator", invite.to_body(), ours.server.sign)
        for site in ours.participants.values():
            with pytest.raises(ProtocolError, match="the coordinator's roster is not the one"):
                site.handle("invite", data)

    def alone(site: str, method: str, data: bytes) -> bytes:
        if (site, method) != ("clinic", "invite"):
            return data
        kind, binding, sender, body = ours.opened(data)
        body = body | {"run_key": body["run_key"][MLKEM_BYTES:]}
        return envelope.seal(kind, binding, sender, body, ours.keys[site].sign)

    ours.wire.to_coordinator = alone
    with pytest.raises(RoundFailed, match="size: clinic: the run key is 1216 bytes"):
        ours.coordinator.start()


def test_a_box_of_the_run_keys_cannot_be_turned_into_a_share(federation: Any) -> None:
    """Run keys and shares go under other keys, contexts and purposes."""
    ours = started(federation)
    hand = Hand(ours).prepare().work().collect()
    sealed = ours.opened(ours.wire.of("bank", "make-key")[-1].reply)[3]["boxes"]["clinic"]
    box = ours.opened(sealed)[3]["box"]
    channels = ours.participants["clinic"]._sum._channels
    with pytest.raises(CryptoError, match="does not open"):
        channels.open_share(box, "bank", upload_of(hand, "bank"))


def test_sums_are_right_with_every_key_distinct(federation: Any) -> None:
    """Over two rounds and the weights: no public key, ciphertext or salt appears twice."""
    ours = federation("rlwe", weights="private").run(2)
    keys: list[bytes] = []
    ciphertexts: list[bytes] = []
    salts: list[bytes] = []
    for site in ours.names:
        for method, field in (("invite", "run_key"), ("prepare", "key")):
            for one in ours.wire.of(site, method):
                public = PublicKey.from_bytes(ours.opened(one.reply)[3][field])
                keys += [*public]
        for one in ours.wire.of(site, "fetch-shares"):
            for box in ours.opened(one.reply)[3]["boxes"].values():
                ciphertexts.append(box[:CIPHERTEXT_BYTES])
                salts.append(box[CIPHERTEXT_BYTES:][:32])
        for one in ours.wire.of(site, "quorum"):
            salts += [box[:32] for box in ours.opened(one.reply)[3]["boxes"].values()]
    assert len(keys) == len(set(keys)) == 2 * 3 * 4
    assert len(ciphertexts) == len(set(ciphertexts)) == 3 * 3 * 2
    assert len(salts) == len(set(salts)) == 2 * 3 * 3 * 2
    assert np.isfinite(ours.state().values).all()
