"""What was changed between the sites and the coordinator: sums, answers, shares, uploads, keys and
lengths. Each is refused with its code, by whom it was meant for, and nothing is installed."""

from __future__ import annotations

from typing import Any

import pytest
from threshold_attack import Attacker
from threshold_kit import Hand, body_of, flipped, nothing_installed, rejected, started

from fedshield.crypto import shamir
from fedshield.crypto.keys import RunKey
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.protocol import envelope, messages
from fedshield.protocol.session import upload_digest
from fedshield.protocol.summation import ANSWER, SHARE

VICTIM, COLLUDER = "clinic", "surgery"
FOUR = ("bank", "clinic", "hospital", "lab")
REST = ("bank", "hospital", "lab")


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here survives a power cut, so nothing need wait for a disk."""
    monkeypatch.setattr("fedshield.protocol.journal.os.fsync", lambda _: None)


@pytest.fixture
def four(federation: Any) -> Hand:
    """Four sites, one of which may collude: T = Q = min_cohort = 3. Up to the announcement."""
    return Hand(started(federation)).ready()


@pytest.fixture
def five(federation: Any) -> Hand:
    """Five sites: T = Q = min_cohort = 4, c = 1."""
    return Hand(started(federation, 5)).ready()


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
    if way == "long":
        return [whole[0] + bytes(8)]
    places = {
        "a value": 0,
        "the last value": layout.value_coefficients - 1,
        "the count": layout.value_coefficients,
        "the weight": layout.value_coefficients + layout.reserved_digits[0],
        "the loss": layout.value_coefficients + sum(layout.reserved_digits[:2]),
        "a tag": layout.tag_start,
        "the padding": layout.num_coefficients + 5,
    }
    return hand.shifted(hand.sites, places[way], -1 if way == "the weight" else 1)


ALTERED = {
    "one dropped": "residual",
    "one twice": "residual",
    "one for all": "residual",
    "a bit of an upload": "tag",
    "a bit of the sum": "tag",
    "all bits": "crypto",
    "zeros": "residual",
    "short": "crypto",
    "long": "crypto",
    # Without any trace in what is left over: only the tag can tell.
    "a value": "tag",
    "the last value": "tag",
    "the count": "tag",
    "the weight": "tag",
    "the loss": "tag",
    "a tag": "tag",
    "the padding": "tag",
}


@pytest.mark.parametrize("way", ALTERED)
def test_a_sum_that_was_altered(four: Hand, way: str) -> None:
    """All sites vote for it, since nobody can see it, and answer; nobody installs it."""
    rejected(four, altered(four, way), ALTERED[way])


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
        code, text = four.refused(VICTIM, messages.Open(bad))
        assert code == "share"
        assert "expected 3 answers, got 2; unreadable from bank, lab" in text
        code, text = four.refused("bank", messages.Open({"lab": answers["lab"]["boxes"]["bank"]}))
        assert (code, "expected 3 answers, got 2" in text) == ("share", True)
        swapped = {"bank": answers["lab"]["boxes"]["hospital"], "lab": b"", VICTIM: b"\0" * 99}
        code, text = four.refused("hospital", messages.Open(swapped))
        assert "expected 3 answers, got 1; unreadable from bank, clinic, lab" in text
    # One that cannot be read does not matter where the others are enough.
    fine = four.opening("lab", answers).answers | {"bank": b"junk"}
    four.raw("lab", messages.Open(fine))
    assert four.federation.participants["lab"].completed_rounds == 1


def test_answers_from_outside_the_sum(five: Hand) -> None:
    blocks = five.aggregate(five.sites)
    answers = five.answers(five.vote_on(five.sites, five.sites, blocks))
    five.deliver(VICTIM, blocks)
    opening = five.opening(VICTIM, answers)
    with nothing_installed(five.federation):
        code, text = five.refused(VICTIM, messages.Open({**opening.answers, "ward-00": b""}))
        assert (code, "ward-00 is not in this sum" in text) == ("not-in-set", True)


def lie(hand: Hand, answers: dict[str, Any], to: str, by: int, holders: list[str]) -> bytes:
    """The colluder's answer to `to`, so that with exactly `holders` the sum of the keys comes out
    `by` larger in its first coefficient."""
    roster = hand.federation.roster
    summation = hand.federation.participants[COLLUDER]._sum
    share = summation._own_answer.copy()
    x, weight = roster.index(COLLUDER) + 1, 1
    for other in holders:
        if other != COLLUDER:
            y = roster.index(other) + 1
            weight = weight * -y * pow(x - y, -1, shamir.PRIME) % shamir.PRIME
    share[0] = (int(share[0]) + by * pow(weight, -1, shamir.PRIME)) % shamir.PRIME
    about = summation._vote.contributors + summation._vote.aggregate
    box: bytes = summation._seal(shamir.to_bytes(share), to, summation._peers[to], ANSWER, about)
    return box


@pytest.mark.parametrize(
    ("by", "spare", "code"),
    [(1, True, "crypto"), (1, False, "residual"), (10**6, False, "crypto")],
    ids=["more answers than needed", "in range", "out of range"],
)
def test_a_colluders_false_answer(five: Hand, by: int, spare: bool, code: str) -> None:
    """Against the others' answers, the keys' range, or what is left over: always found."""
    blocks = five.aggregate(five.sites)
    answers = five.answers(five.vote_on(five.sites, five.sites, blocks))
    holders = ["bank", VICTIM, "hospital", COLLUDER] + ["lab"] * spare
    five.deliver(VICTIM, blocks)
    opening = {one: answers[one]["boxes"][VICTIM] for one in holders if one != VICTIM}
    opening[COLLUDER] = lie(five, answers, VICTIM, by, sorted(holders))
    with nothing_installed(five.federation):
        found, text = five.refused(VICTIM, messages.Open(opening))
    assert found == code
    assert ("does not fit the others" in text) == spare


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
    other = messages.Upload(own.key_id, own.layout_tag, (bytes(32),), own.share_digests)
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
    share, about = bytes(shamir.SHARE_BYTES), upload_digest(own)
    second = dealer._seal(share, "bank", dealer._peers["bank"], SHARE, about)
    shares = hand.shares_for("bank") | {COLLUDER: second}
    held = hand.send("bank", messages.Hold(hand.uploads, shares))
    assert held["complaints"] == {COLLUDER: b"share"}
    other = messages.Upload(own.key_id, own.layout_tag, (bytes(32),), own.share_digests)
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
        changed = messages.Upload(**{**upload.__dict__, **changes})
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


# -- keys of a round ------------------------------------------------------------------------


def test_round_keys_that_a_site_refuses(federation: Any) -> None:
    ours = started(federation, 5)
    hand = Hand(ours).prepare()
    key = messages.RoundKey.from_body(body_of(hand.keys[VICTIM]))

    def code(keys: dict[str, bytes]) -> tuple[str, str]:
        return hand.refused(VICTIM, messages.Work(keys))

    def signed(site: str, **changes: Any) -> dict[str, bytes]:
        changed = messages.RoundKey(**{**key.__dict__, "key": RunKey().public, **changes})
        return hand.keys | {site: hand.signed_by(site, changed)}

    with nothing_installed(ours):
        found, text = code(signed(VICTIM))
        assert (found, "own round key was replaced" in text) == ("disagree", True)
        found, text = code({site: hand.keys[site] for site in hand.sites if site != VICTIM})
        assert (found, "own round key was replaced" in text) == ("disagree", True)
        found, text = code(signed("lab", model_tag=bytes(32)))
        assert (found, "lab starts from another model" in text) == ("disagree", True)
        assert code(signed("lab", key=key.key))[0] == "repeated"
        assert code(signed("lab", key=b"short"))[0] == "size"
        assert code(signed("lab", model_tag=b"short"))[0] == "size"
        found, text = code({site: hand.keys[site] for site in hand.sites[:3]})
        assert (found, "expected at least 4 sites in a round, got 3" in text) == ("cohort", True)
        assert code(hand.keys | {"stranger": hand.keys["lab"]})[0] == "sender"
        assert code(hand.keys | {"lab": hand.keys["bank"]})[0] == "signature"
        found, text = code(signed("lab", key=bytes(32)))
        assert (found, "clinic-lab: the peer's key is unusable" in text) == ("crypto", True)
    assert ours.works[VICTIM].trained_rounds == [1]


def test_a_site_that_failed_is_not_asked_again(federation: Any) -> None:
    """Its keys are for the sites that it was told of first, whatever became of its training."""
    ours = started(federation, 5)
    hand = Hand(ours).prepare()
    ours.works[VICTIM].fault = RoundFailed("out of memory")
    with pytest.raises(RoundFailed):
        hand.raw(VICTIM, messages.Work(hand.keys))
    ours.works[VICTIM].fault = None
    hand.binding = hand.summing()
    for sites in (hand.sites, hand.sites[:4]):
        again = messages.Work({site: hand.keys[site] for site in sites})
        assert hand.refused(VICTIM, again)[0] == "repeated"
        assert hand.refused(VICTIM, again, hand.session)[0] == "context"


def test_round_keys_of_two_sets(federation: Any) -> None:
    """Each half is told of other sites: what the halves upload cannot come together."""
    ours = started(federation, 5)
    hand = Hand(ours).prepare()
    without_last = {site: hand.keys[site] for site in hand.sites[:4]}
    without_first = {site: hand.keys[site] for site in hand.sites[1:]}
    uploads = {site: hand.raw(site, messages.Work(without_last)) for site in hand.sites[:4]}
    last = hand.sites[4]
    uploads[last] = hand.raw(last, messages.Work(without_first))
    one, other = hand.summing(without_last), hand.summing(without_first)
    assert one.context != other.context
    with nothing_installed(ours):
        mixed = {site: uploads[site] for site in hand.sites[1:]}
        # Nor does a site come in that this half was not told of, though it signs as if it had been.
        hand.binding = one
        stranger = hand.signed_by(last, messages.Upload.from_body(body_of(uploads["bank"])))
        found, text = hand.refused("bank", messages.Announce({**uploads, last: stranger}, ()))
        assert (found, f"{last} is not in this sum" in text) == ("not-in-set", True)
        for site in hand.sites:
            binding = other if site == last else one
            for command in (messages.Hold(mixed, {}), messages.Announce(mixed, (bytes(32),))):
                assert hand.refused(site, command, binding)[0] == "context"
            assert hand.refused(site, messages.Work(hand.keys), hand.session)[0] == "context"


def test_a_site_that_opened_another_model_is_named(federation: Any) -> None:
    """The next round's context holds a keyed digest of the model."""
    ours = started(federation)
    ours.participants["lab"]._model.state = type(ours.state())(
        ours.participants["bank"].state.values * 2, ours.spec
    )
    with pytest.raises(RoundFailed, match=r"^work: no answer from bank \(disagree\), clinic"):
        ours.coordinator.round(1)
    assert str(ours.wire.errors["bank"]) == "disagree: lab starts from another model"


# -- lengths --------------------------------------------------------------------------------


def test_truncated_and_changed_messages(federation: Any) -> None:
    """Before each command its beginning, its end and a changed copy: refused, and no trace."""
    ours = federation("rlwe", sites=4, weights="private")
    seen: set[str] = set()

    def tamper(site: str, method: str, data: bytes) -> bytes:
        if site == VICTIM:
            seen.add(method)
            bad = [b"", data[:5], data[:68], data[:-1], data[1:], data + b"\0", data + data]
            bad += [flipped(data, at) for at in (0, 4, 20, len(data) // 2, -65, -1)]
            for one in bad:
                with pytest.raises(ProtocolError) as caught:
                    ours.participants[site].handle(method, one)
                assert caught.value.code in ("signature", "size")
        return data

    ours.wire.to_site = tamper
    ours.run(2)
    ours.coordinator.finish()
    assert len(seen) == 14
    assert {site.completed_rounds for site in ours.participants.values()} == {2}


def test_an_oversized_message(four: Hand) -> None:
    huge = bytes(envelope.MAX_BYTES + 1)
    with nothing_installed(four.federation), pytest.raises(ProtocolError, match=r"^size: "):
        four.federation.participants[VICTIM].handle("announce", huge)


@pytest.mark.parametrize("method", ["prepare", "work", "fetch", "hold", "announce", "quorum"])
@pytest.mark.parametrize("way", ["cut", "another kind", "another site's"])
def test_replies_that_the_coordinator_refuses(federation: Any, method: str, way: str) -> None:
    """A site whose reply is no reply is out, and named; the others go on."""
    ours = federation("rlwe", sites=4, weights="equal")
    ours.coordinator.start()
    last: dict[str, bytes] = {}

    def tamper(site: str, name: str, data: bytes) -> bytes:
        if site == VICTIM and name == method:
            if way == "cut":
                return data[:-1]
            if way == "another site's":
                return last.get(name, b"")
            _, binding, _, body = ours.opened(data)
            return envelope.seal("done", binding, site, body, ours.keys[site].sign)
        last[name] = data
        return data

    ours.wire.to_coordinator = tamper
    outcome = ours.coordinator.round(1)
    assert set(outcome.lost) == {VICTIM}
    if method != "hold":  # its blocks may still be had, or not
        assert (VICTIM in outcome.contributors) == (method in ("announce", "quorum"))
    assert "its answer was refused: " in outcome.lost[VICTIM]
