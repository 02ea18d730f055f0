"""What was changed between the sites and the coordinator: sums, answers, shares and uploads. Each
is refused with its code, by whom it was meant for, and nothing is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from attacker import Attacker
from hand import FOUR, REST, Hand, body_of, ended, flipped, nothing_installed, rejected, started

from fedshield.crypto import shamir
from fedshield.crypto import shares as sharing
from fedshield.protocol.contexts import upload_digest
from fedshield.protocol.wire import envelope, messages

VICTIM, COLLUDER = "clinic", "surgery"


# -- ciphertexts and sums -------------------------------------------------------------------


def altered(hand: Hand, way: str) -> list[bytes]:
    whole = hand.aggregate(hand.sites)
    layout = hand.layout()
    if way == "one dropped":
        return hand.aggregate(hand.sites[1:])
    if way == "one twice":
        return hand.aggregate((*hand.sites[1:], hand.sites[1]))
    if way == "one for all":
        return hand.aggregate([VICTIM])
    if way == "a bit of an upload":
        hand.blocks[VICTIM] = [flipped(hand.blocks[VICTIM][0], -1, 7)]
        return hand.aggregate(hand.sites)
    if way == "a bit of the sum":
        return [flipped(whole[0], -8)]
    if way == "all bits":
        return [b"\xff" * len(whole[0])]
    if way == "zeros":
        return [bytes(len(whole[0]))]
    if way == "short":
        return [whole[0][:-8]]
    places = {
        "a value": 0,
        "the last value": layout.num_coefficients - 1,
        "the padding": layout.num_coefficients + 5,
    }
    return hand.shifted(hand.sites, places[way], 1)


ALTERED = {
    "one dropped": "residual",
    "one twice": "residual",
    "one for all": "residual",
    "a bit of an upload": "tag",
    "a bit of the sum": "tag",
    "all bits": "crypto",
    "zeros": "residual",
    "short": "crypto",
    # Without any trace in what is left over: only the tag can tell.
    "a value": "tag",
    "the last value": "tag",
    "the padding": "tag",
}


@pytest.mark.parametrize("way", ALTERED)
def test_a_sum_that_was_altered(four: Hand, way: str) -> None:
    """All sites vote for it, since nobody can see it, and answer; nobody installs it."""
    rejected(four, altered(four, way), ALTERED[way])


def test_blocks_larger_than_a_sum_can_be_are_not_kept(four: Hand) -> None:
    """Also when that was announced and voted for: no site holds megabytes for it."""
    blocks = [four.aggregate(FOUR)[0] + bytes(8)]
    with nothing_installed(four.federation):
        four.answers(four.vote_on(FOUR, FOUR, blocks))
        code, text = four.refused(VICTIM, messages.Deliver(0, blocks[0]))
    assert (code, f"{len(blocks[0])} bytes, at most" in text) == ("size", True)


def test_a_colluder_that_does_not_count_itself(federation: Any) -> None:
    """Each contributor brings a one; the number of them is the one that was voted for."""
    ours = started(federation)
    model = ours.participants["lab"]._model
    contribution = model.contribution

    def uncounted(*args: Any) -> Any:
        right = contribution(*args)
        return replace(right, reserved=(0, *right.reserved[1:]))

    model.contribution = uncounted
    hand = Hand(ours).ready()
    rejected(hand, hand.aggregate(FOUR), "weight", "expected 4 contributors, got 3")


def test_a_sum_of_another_round(federation: Any) -> None:
    ours = started(federation)
    first = Hand(ours).ready()
    old = first.aggregate(FOUR)
    first.finish()
    rejected(Hand(ours, 2).ready(), old, "residual")


def test_blocks_other_than_announced(three_blocks: Any) -> None:
    """Several blocks: another number of them, another order, another block."""
    ours = three_blocks("rlwe", sites=4, weights="equal")
    ours.coordinator.start()
    hand = Hand(ours).ready()
    blocks = hand.aggregate(FOUR)
    hand_over = hand.over(FOUR)
    wrong = [(), (bytes(32),) * (len(blocks) + 1), (bytes(32),) * 5000]
    for digests in wrong:
        assert hand.refused(VICTIM, messages.Announce(hand_over, digests))[0] == "size"
    votes = hand.vote_on(FOUR, FOUR, blocks)
    hand.answers(votes)
    assert hand.refused(VICTIM, messages.Deliver(0, flipped(blocks[0])))[0] == "digest"
    assert hand.refused(VICTIM, messages.Deliver(1, blocks[0]))[0] == "repeated"
    hand.deliver(VICTIM, blocks)


# -- answers --------------------------------------------------------------------------------


def test_answers_that_were_changed_or_are_too_few(four: Hand) -> None:
    blocks = four.aggregate(FOUR)
    answers = four.answers(four.vote_on(FOUR, FOUR, blocks))
    boxes = {holder: answers[holder]["boxes"][VICTIM] for holder in REST}
    for site in FOUR:
        four.deliver(site, blocks)
    with nothing_installed(four.federation):
        bad = {**boxes, "bank": flipped(boxes["bank"], 60), "lab": answers["lab"]["boxes"]["bank"]}
        tags = {holder: answers[holder]["tag"] for holder in FOUR}
        code, text = four.refused(VICTIM, messages.Open(bad, tags))
        assert code == "share"
        assert "expected 3 answers, got 2; the answer of bank cannot be read" in text
        assert "; the answer of lab cannot be read" in text
        assert "hospital" not in text
        one = {"lab": answers["lab"]["boxes"]["bank"]}
        code, text = four.refused("bank", messages.Open(one, tags))
        assert code == "share"
        assert "got 2; no answer of clinic came; no answer of hospital came" in text
        swapped = {"bank": answers["lab"]["boxes"]["hospital"], "lab": b"", VICTIM: b"\0" * 99}
        code, text = four.refused("hospital", messages.Open(swapped, tags))
        assert "expected 3 answers, got 1; the answer of bank cannot be read" in text
        for name in (VICTIM, "lab"):
            assert f"; the answer of {name} cannot be read" in text
        # One try, also where a command was at fault: the right answers come too late.
        for site in (VICTIM, "bank", "hospital"):
            ended(four, site, four.opening(site, answers))
    # One that cannot be read does not matter where the others are enough.
    fine = four.opening("lab", answers).answers | {"bank": b"junk"}
    assert body_of(four.raw("lab", messages.Open(fine, tags)))["model_tag"]


def test_answers_from_outside_the_sum(five: Hand) -> None:
    blocks = five.aggregate(five.sites)
    answers = five.answers(five.vote_on(five.sites, five.sites, blocks))
    five.deliver(VICTIM, blocks)
    opening = five.opening(VICTIM, answers)
    with nothing_installed(five.federation):
        more = messages.Open({**opening.answers, "ward-00": b""}, opening.tags)
        code, text = five.refused(VICTIM, more)
        assert (code, "'ward-00' is not in this sum" in text) == ("not-in-set", True)
        ended(five, VICTIM, opening)


def lie(hand: Hand, to: str, by: int, holders: list[str]) -> tuple[bytes, bytes]:
    """The colluder's answer to `to` and its signed tag, so that with exactly `holders` the sum of
    the keys comes out `by` larger in its first coefficient."""
    roster = hand.federation.roster
    summation = hand.federation.participants[COLLUDER]._sum
    share = summation._own_answer.key.copy()
    x, weight = roster.index(COLLUDER) + 1, 1
    for other in holders:
        if other != COLLUDER:
            y = roster.index(other) + 1
            weight = weight * -y * pow(x - y, -1, shamir.PRIME) % shamir.PRIME
    share[0] = (int(share[0]) + by * pow(weight, -1, shamir.PRIME)) % shamir.PRIME
    about = summation._vote.contributors + summation._vote.aggregate
    content = sharing.to_bytes(sharing.Share(share, summation._own_answer.residues))
    box: bytes = summation._channels.seal_answer(
        content, to, about, summation._salt_key, first=False
    )
    tag = hand.signed_by(COLLUDER, messages.AnswerTag(summation._answer_tag(content)))
    return box, tag


@pytest.mark.parametrize(
    ("by", "spare", "code"),
    [(1, True, ""), (10**6, True, ""), (1, False, "residual"), (10**6, False, "crypto")],
    ids=["in range, one spare", "out of range, one spare", "in range", "out of range"],
)
def test_a_colluders_false_answer(five: Hand, by: int, spare: bool, code: str) -> None:
    """Well signed, and its tag with it. With no answer to spare the keys' range or what is left
    over refuses the sum; with one, the sum is opened without it."""
    ours = five.federation
    blocks = five.aggregate(five.sites)
    answers = five.answers(five.vote_on(five.sites, five.sites, blocks))
    holders = ["bank", VICTIM, "hospital", COLLUDER] + ["lab"] * spare
    five.deliver(VICTIM, blocks)
    meant = {one: answers[one]["boxes"][VICTIM] for one in holders if one != VICTIM}
    tags = {one: answers[one]["tag"] for one in meant}
    meant[COLLUDER], tags[COLLUDER] = lie(five, VICTIM, by, sorted(holders))
    opening = messages.Open(meant, tags)
    if code:
        with nothing_installed(ours):
            found, _ = five.refused(VICTIM, opening)
        assert found == code
        return
    summation = ours.participants[VICTIM]._sum
    five.raw(VICTIM, opening)
    assert summation.faulty == {COLLUDER: "share"}
    five.deliver("bank", blocks)
    five.raw("bank", five.opening("bank", answers))
    states = {ours.participants[name].state.sha256() for name in (VICTIM, "bank")}
    assert len(states) == 1


def test_an_answer_that_is_not_the_one_signed_for_all(five: Hand) -> None:
    """Other answers to two peers, under one tag: whom it does not speak of sees that. What the tag
    speaks of is the sum of the shares, which the peer then opens with."""
    ours = five.federation
    blocks = five.aggregate(five.sites)
    answers = five.answers(five.vote_on(five.sites, five.sites, blocks))
    five.deliver(VICTIM, blocks)
    opening = five.opening(VICTIM, answers)
    meant = dict(opening.answers)
    meant[COLLUDER], _ = lie(five, VICTIM, 0, list(five.sites))
    honest = ours.participants[VICTIM]._sum
    assert meant[COLLUDER] == opening.answers[COLLUDER]  # control: nothing shifted, nothing wrong
    meant[COLLUDER], _ = lie(five, VICTIM, 1, list(five.sites))
    five.raw(VICTIM, messages.Open(meant, opening.tags))
    assert honest.faulty == {COLLUDER: "tag"}


@pytest.mark.parametrize("way", ["none", "another's", "another sum's", "another kind", "cut"])
def test_a_tag_that_its_holder_did_not_sign(federation: Any, way: str) -> None:
    """Such an answer counts as none, and the coordinator may as well have done it."""
    ours = started(federation)
    hand = Hand(ours).ready()
    blocks = hand.aggregate(FOUR)
    answers = hand.answers(hand.vote_on(FOUR, FOUR, blocks))
    hand.deliver(VICTIM, blocks)
    opening = hand.opening(VICTIM, answers)
    right = messages.AnswerTag.from_body(body_of(opening.tags["bank"]))
    sign = ours.keys["bank"].sign
    wrong = {
        "none": b"",
        "another's": opening.tags["lab"],
        "another sum's": envelope.seal(right.kind, hand.session, "bank", right.to_body(), sign),
        "another kind": hand.signed_by("bank", messages.Receipt(right.tag, b"")),
        "cut": hand.signed_by("bank", messages.AnswerTag(right.tag[:-1])),
    }[way]
    summation = ours.participants[VICTIM]._sum
    opened = hand.raw(VICTIM, messages.Open(opening.answers, opening.tags | {"bank": wrong}))
    assert summation.faulty == {"bank": "tag" if way == "cut" else "unreadable"}
    hand.deliver("lab", blocks)
    other = hand.raw("lab", hand.opening("lab", answers))
    assert body_of(opened)["model_tag"] == body_of(other)["model_tag"]


# -- shares and uploads ---------------------------------------------------------------------


def test_a_replayed_share(federation: Any) -> None:
    """A box of round 1 in round 2 is not what its dealer signed for."""
    ours = started(federation)
    first = Hand(ours).ready()
    first.finish()
    hand = Hand(ours, 2).prepare().work().collect()
    shares = hand.shares_for("bank") | {VICTIM: first.boxes[VICTIM]["bank"]}
    held = hand.send("bank", messages.Hold(hand.uploads, shares))
    assert held["complaints"] == {VICTIM: b"share"}


def test_a_dealer_with_two_uploads(five: Hand) -> None:
    """A colluder signs two: a holder answers only with the share of the one that was voted for,
    so with nothing if it was dealt the other's."""
    ours = five.federation
    own = messages.Upload.from_body(body_of(five.uploads[COLLUDER]))
    other = replace(own, block_digests=(bytes(32),))
    five.uploads[COLLUDER] = five.signed_by(COLLUDER, other)
    names = five.sites[:-1]
    blocks = five.aggregate(five.sites)
    votes = five.vote_on(five.sites, names, blocks)
    attacker = Attacker(five, COLLUDER)
    votes |= attacker.votes(five.sites, blocks)
    answers = five.answers(votes, *names)
    with nothing_installed(ours):
        assert all(answer["boxes"] == {} for answer in answers.values())


def test_boxes_that_a_dealer_did_not_sign_for(federation: Any) -> None:
    """A colluder seals well what it did not sign for, or signs for what is sealed about another
    upload of its own: both are complained of."""
    ours = started(federation, 5)
    hand = Hand(ours).prepare().work().collect()
    dealer = ours.participants[COLLUDER]._sum
    own = messages.Upload.from_body(body_of(hand.uploads[COLLUDER]))
    share, about = bytes(dealer._shape(dealer._layout).num_bytes), upload_digest(own)
    second = dealer._channels.seal_share(share, "bank", about, dealer._salt_key)
    shares = hand.shares_for("bank") | {COLLUDER: second}
    held = hand.send("bank", messages.Hold(hand.uploads, shares))
    assert held["complaints"] == {COLLUDER: b"share"}
    other = replace(own, block_digests=(bytes(32),))
    uploads = hand.uploads | {COLLUDER: hand.signed_by(COLLUDER, other)}
    held = hand.send("lab", messages.Hold(uploads, hand.shares_for("lab")))
    assert held["complaints"] == {COLLUDER: b"share"}
    held = hand.send(VICTIM, messages.Hold(hand.uploads, hand.shares_for(VICTIM)))
    assert held["complaints"] == {}


@pytest.mark.parametrize("command", ["hold", "announce"])
def test_uploads_that_are_not_of_this_sum(four: Hand, command: str) -> None:
    """Replaced, laid out or keyed otherwise, of another sum, of strangers: refused, and named."""
    ours = four.federation
    own = messages.Upload.from_body(body_of(four.uploads[VICTIM]))
    theirs = messages.Upload.from_body(body_of(four.uploads["lab"]))
    blocks = four.aggregate(FOUR)

    def code(uploads: dict[str, bytes]) -> tuple[str, str]:
        if command == "hold":
            ours.participants[VICTIM]._sum._took_shares = False
            return four.refused(VICTIM, messages.Hold(uploads, {}))
        return four.refused(VICTIM, messages.Announce(uploads, (blocks[0][:32],)))

    def signed(site: str, **changes: Any) -> dict[str, bytes]:
        upload = own if site == VICTIM else theirs
        changed = replace(upload, **changes)
        return four.uploads | {site: four.signed_by(site, changed)}

    with nothing_installed(ours):
        for changes in (
            {"block_digests": theirs.block_digests},
            {"share_digests": theirs.share_digests},
            {"share_digests": {}},
        ):
            found, text = code(signed(VICTIM, **changes))
            assert (found, "own upload was replaced" in text) == ("digest", True)
        found, text = code(signed("lab", layout_tag=bytes(32)))
        assert (found, "lab laid its values out differently" in text) == ("layout", True)
        found, text = code(signed("lab", key_id=b"x" * 16))
        assert (found, "lab encrypted under another key" in text) == ("scheme", True)
        assert code(four.uploads | {VICTIM: four.uploads["lab"]})[0] == "signature"
        assert code(four.uploads | {"lab": flipped(four.uploads["lab"])})[0] == "signature"
        assert code(four.uploads | {"lab": b""})[0] == "size"
        assert code(four.uploads | {"stranger": four.uploads["lab"]})[0] == "sender"
        body = theirs.to_body()
        old = envelope.seal("upload", four.session, "lab", body, ours.keys["lab"].sign)
        assert code(four.uploads | {"lab": old})[0] == "context"
