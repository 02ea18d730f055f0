"""Holders that answer wrongly: the sum is opened all the same, each site's own operator is told
whose answer it was, and nobody else. And what a holder, a dealer and a coordinator can still do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand import Hand, body_of, nothing_installed

from fedshield.crypto import shamir
from fedshield.crypto import shares as sharing
from fedshield.crypto.rlwe.tag import Tagger
from fedshield.protocol import participant_sum
from fedshield.protocol.answers import in_words
from fedshield.protocol.log.entries import Fact
from fedshield.protocol.log.verify import cross_check, read_chain
from fedshield.protocol.wire import envelope, messages
from fedshield.run.log_file import LogFile, known_keys
from fedshield.site.ciphers import rlwe_layout

LIAR = "hospital"
FOUR = {"max_colluding": 1, "threshold": 2, "votes": 3, "min_cohort": 4}
THREE = {"max_colluding": 1, "threshold": 2, "votes": 3, "min_cohort": 3}

Lie = Callable[[sharing.Share], sharing.Share]


# -- lies -------------------------------------------------------------------------------------


def random_share(share: sharing.Share) -> sharing.Share:
    draw = np.random.default_rng(1)
    key = draw.integers(0, shamir.PRIME, share.key.size).astype(np.uint64)
    residues = tuple(int(one) for one in draw.integers(0, 2**41, len(share.residues)))
    return sharing.Share(key, residues)


def one_element(share: sharing.Share) -> sharing.Share:
    """So that the opened coefficients stay in range, with whichever other answer."""
    key = share.key.copy()
    key[0] = (int(key[0]) + 2) % shamir.PRIME
    return replace(share, key=key)


def one_residue(share: sharing.Share) -> sharing.Share:
    first, *rest = share.residues
    return replace(share, residues=(first + 1, *rest))


def sealed(ours: Any, liar: str, share: sharing.Share, *peers: str) -> dict[str, bytes]:
    """This share, well sealed to `peers` (all by default)."""
    mine = ours.participants[liar]._sum
    about = mine._vote.contributors + mine._vote.aggregate
    return {
        peer: mine._channels.seal_answer(
            sharing.to_bytes(share), peer, about, mine._salt_key, first=False
        )
        for peer in peers or mine._channels.peers
    }


def tag_of(ours: Any, liar: str, share: sharing.Share) -> bytes:
    mine = ours.participants[liar]._sum
    tag: bytes = mine._signed(messages.AnswerTag(mine._answer_tag(sharing.to_bytes(share))))
    return tag


def signed(ours: Any, liar: str, answer: messages.Answer) -> bytes:
    binding = ours.participants[liar]._sum.binding
    return envelope.seal(answer.kind, binding, liar, answer.to_body(), ours.keys[liar].sign)


def lying(lie: Lie, ours: Any, data: bytes) -> bytes:
    """The liar's answer with another share in it, the same to all, under a tag of that."""
    wrong = lie(ours.participants[LIAR]._sum._own_answer)
    answer = messages.Answer(sealed(ours, LIAR, wrong), b"", tag_of(ours, LIAR, wrong))
    return signed(ours, LIAR, answer)


def two_faced(ours: Any, data: bytes) -> bytes:
    """Right to two peers and wrong to the bank, under the tag of what is right."""
    answer = messages.Answer.from_body(body_of(data))
    wrong = one_residue(ours.participants[LIAR]._sum._own_answer)
    boxes = answer.boxes | sealed(ours, LIAR, wrong, "bank")
    return signed(ours, LIAR, replace(answer, boxes=boxes))


def other_face(ours: Any, data: bytes) -> bytes:
    """The same under the tag of what is wrong: the bank alone sees nothing amiss in the tag."""
    answer = messages.Answer.from_body(body_of(data))
    wrong = one_residue(ours.participants[LIAR]._sum._own_answer)
    boxes = answer.boxes | sealed(ours, LIAR, wrong, "bank")
    return signed(ours, LIAR, messages.Answer(boxes, b"", tag_of(ours, LIAR, wrong)))


def none_at_all(ours: Any, data: bytes) -> bytes:
    return signed(ours, LIAR, messages.Answer({}, b"", b""))


def none_for_one(ours: Any, data: bytes) -> bytes:
    answer = messages.Answer.from_body(body_of(data))
    boxes = {peer: box for peer, box in answer.boxes.items() if peer != "bank"}
    return signed(ours, LIAR, replace(answer, boxes=boxes))


def junk(ours: Any, data: bytes) -> bytes:
    answer = messages.Answer.from_body(body_of(data))
    return signed(ours, LIAR, replace(answer, boxes=dict.fromkeys(answer.boxes, b"junk")))


def lie_of(lie: Lie) -> Callable[[Any, bytes], bytes]:
    return lambda ours, data: lying(lie, ours, data)


#: What is sent, and as what each honest site sees it.
STORIES: dict[str, tuple[Callable[[Any, bytes], bytes], dict[str, str]]] = {
    "a random share": (lie_of(random_share), dict.fromkeys(("bank", "clinic", "lab"), "share")),
    "an element": (lie_of(one_element), dict.fromkeys(("bank", "clinic", "lab"), "share")),
    "a residue": (lie_of(one_residue), dict.fromkeys(("bank", "clinic", "lab"), "share")),
    "two faces": (two_faced, {"bank": "tag"}),
    "the other face": (other_face, {"bank": "share", "clinic": "tag", "lab": "tag"}),
    "nothing": (none_at_all, dict.fromkeys(("bank", "clinic", "lab"), "missing")),
    "nothing for one": (none_for_one, {"bank": "missing"}),
    "junk": (junk, dict.fromkeys(("bank", "clinic", "lab"), "unreadable")),
}


@dataclass
class Told:
    """A federation of which one site lies in every answer of some phases; what each site's log
    has of it."""

    ours: Any
    logs: dict[str, list[Fact]]

    def faulty(self, site: str, phase: str = "round") -> dict[str, Any]:
        """What the log says of the peers' answers."""
        found: dict[str, Any] = {}
        for fact in self.logs[site]:
            if "answers" in fact.details:
                assert fact.message == "open"
                if fact.phase == phase:
                    found = fact.details["answers"]
        return found


def told(
    ours: Any, story: Callable[[Any, bytes], bytes] | None, phases: tuple[str, ...] = ("round",)
) -> Told:
    logs: dict[str, list[Fact]] = {name: [] for name in ours.names}
    for name, one in ours.participants.items():
        one._log = logs[name].append

    def tamper(site: str, method: str, data: bytes) -> bytes:
        at = ours.participants[site]._binding.phase
        if story is not None and (site, method) == (LIAR, "quorum") and at in phases:
            return story(ours, data)
        return data

    ours.wire.to_coordinator = tamper
    return Told(ours, logs)


# -- four sites, one of which lies ------------------------------------------------------------


@pytest.mark.parametrize("story", STORIES)
def test_one_liar_of_four(federation: Any, story: str) -> None:
    """Every honest site opens what it would have without the lie, nobody is lost for it, and each
    site's own log and observer say whose answer was wrong."""
    act, seen = STORIES[story]
    alone = federation("rlwe", sites=4, weights="equal", rules=FOUR).run(2)
    found = told(federation("rlwe", sites=4, weights="equal", rules=FOUR), act)
    ours = found.ours.run(2)
    assert ours.states() == alone.states()
    assert ours.coordinator.lost == {}
    for name in ours.names:
        expected = {LIAR: seen[name]} if name in seen else {}
        assert found.faulty(name) == expected
        assert ours.seen[name].faulty_answers == expected
        assert ours.participants[name].completed_rounds == 2
    # What crosses says nothing of it: a receipt, the same of all.
    ours.coordinator.finish()
    receipts = [
        body_of(one.reply)
        for name in ours.names
        for one in ours.wire.of(name, "open")[-1:]
        if set(body_of(one.reply)) == {"model_tag", "head"}
    ]
    assert len(receipts) == 4
    assert len({one["model_tag"] for one in receipts}) == 1


@pytest.mark.parametrize("story", ["a random share", "a residue", "two faces"])
def test_one_liar_while_weights_are_summed(federation: Any, story: str) -> None:
    """There are no blocks then, so nothing but the other answers to compare with."""
    act, seen = STORIES[story]
    alone = federation("rlwe", sites=4, weights="private", rules=FOUR).run(1)
    found = told(federation("rlwe", sites=4, weights="private", rules=FOUR), act, ("weights",))
    ours = found.ours.run(1)
    assert ours.states() == alone.states()
    for name in ours.names:
        assert found.faulty(name, "weights") == ({LIAR: seen[name]} if name in seen else {})
        assert found.faulty(name) == {}
        # The observer hears of the weights once, before the round.
        assert ours.seen[name].faulty_answers == {}


def test_an_honest_round_says_nothing(federation: Any) -> None:
    found = told(federation("rlwe", sites=4, weights="private", rules=FOUR), None)
    ours = found.ours.run(1)
    for name in ours.names:
        assert found.faulty(name) == found.faulty(name, "weights") == {}
        assert ours.seen[name].faulty_answers == {}
        tags = [fact.details["answer_tag"] for fact in found.logs[name] if fact.message == "quorum"]
        assert len(tags) == 2


def test_an_answer_whose_tag_is_not_signed(federation: Any) -> None:
    """The coordinator sees that, and goes on without the site: as with any reply that is none."""

    def untagged(ours: Any, data: bytes) -> bytes:
        return signed(ours, LIAR, replace(messages.Answer.from_body(body_of(data)), tag=b"none"))

    alone = federation("rlwe", sites=4, weights="equal", rules=FOUR).run(1)
    found = told(federation("rlwe", sites=4, weights="equal", rules=FOUR), untagged)
    found.ours.run(1)
    lost = found.ours.coordinator.lost
    assert set(lost) == {LIAR}
    assert lost[LIAR].startswith("quorum: its answer was refused: size: answer-tag from hospital")
    for name in ("bank", "clinic", "lab"):
        assert found.ours.states()[name] == alone.states()[name]
        assert found.faulty(name) == {LIAR: "missing"}


# -- three sites ------------------------------------------------------------------------------


def three(federation: Any) -> tuple[Hand, list[bytes], dict[str, Any]]:
    """Up to the answers."""
    ours = federation("rlwe", sites=3, weights="equal", rules=THREE)
    ours.coordinator.start()
    hand = Hand(ours).ready()
    blocks = hand.aggregate(ours.names)
    return hand, blocks, hand.answers(hand.vote_on(ours.names, ours.names, blocks))


def taken(ours: Any, site: str) -> str:
    """The model that a site's opened sum gives, as if enough had signed for the same."""
    ours.participants[site]._opened()
    digest: str = ours.states()[site]
    return digest


@pytest.mark.parametrize("lie", [random_share, one_element])
def test_a_wrong_key_of_three(federation: Any, lie: Lie) -> None:
    """One to spare: the sum itself tells which two answers are right."""
    hand, blocks, answers = three(federation)
    ours = hand.federation
    alone = federation("rlwe", sites=3, weights="equal", rules=THREE).run(1)
    wrong = lie(ours.participants[LIAR]._sum._own_answer)
    answers[LIAR] |= {"boxes": sealed(ours, LIAR, wrong), "tag": tag_of(ours, LIAR, wrong)}
    for site in ("bank", "clinic"):
        current = ours.participants[site]._sum
        hand.deliver(site, blocks)
        hand.raw(site, hand.opening(site, answers))
        assert current.faulty == {LIAR: "share"}
        assert taken(ours, site) == alone.states()[site]


def test_a_wrong_residue_of_three(federation: Any) -> None:
    """Seen, and not told whose: refused, with nothing installed. The text stays at the site."""
    hand, blocks, answers = three(federation)
    ours = hand.federation
    wrong = one_residue(ours.participants[LIAR]._sum._own_answer)
    answers[LIAR] |= {"boxes": sealed(ours, LIAR, wrong), "tag": tag_of(ours, LIAR, wrong)}
    facts: list[Fact] = []
    with nothing_installed(ours):
        for site in ("bank", "clinic"):
            ours.participants[site]._log = facts.append
            hand.deliver(site, blocks)
            code, text = hand.refused(site, hand.opening(site, answers))
            assert code == "key-sum"
            assert "at least 1 of 3 answers do not fit the others (residues)" in text
            assert LIAR not in text
    # In the log of a refusal there is no name either: it could be any of the three.
    assert [fact.details.keys() for fact in facts if fact.act == "refused"] == [{"command"}] * 2


def test_two_faces_of_three(federation: Any) -> None:
    """The cheated site knows whose answer to leave out, and opens with the other two."""
    hand, blocks, answers = three(federation)
    ours = hand.federation
    alone = federation("rlwe", sites=3, weights="equal", rules=THREE).run(1)
    wrong = one_residue(ours.participants[LIAR]._sum._own_answer)
    answers[LIAR]["boxes"] |= sealed(ours, LIAR, wrong, "bank")
    for site, seen in (("bank", {LIAR: "tag"}), ("clinic", {})):
        current = ours.participants[site]._sum
        hand.deliver(site, blocks)
        hand.raw(site, hand.opening(site, answers))
        assert current.faulty == seen
        assert taken(ours, site) == alone.states()[site]


def test_who_is_known_to_be_wrong_is_named_where_the_rest_does_not_open(federation: Any) -> None:
    """In the refusal's text and entry, at the site."""
    hand, blocks, answers = three(federation)
    ours = hand.federation
    wrong = one_residue(ours.participants[LIAR]._sum._own_answer)
    answers[LIAR]["boxes"] |= sealed(ours, LIAR, wrong, "bank")
    facts: list[Fact] = []
    ours.participants["bank"]._log = facts.append
    hand.deliver("bank", blocks)
    opening = hand.opening("bank", {LIAR: answers[LIAR]})
    with nothing_installed(ours):
        code, text = hand.refused("bank", opening)
    assert code == "share"
    assert text.endswith(f"; {in_words({'clinic': 'missing', LIAR: 'tag'}, 'bank')}")
    (fact,) = (one for one in facts if one.act == "refused")
    assert fact.details["answers"] == {"clinic": "missing", LIAR: "tag"}
    assert "answers" not in fact.code


# -- dealers ----------------------------------------------------------------------------------


def misdealt(
    monkeypatch: pytest.MonkeyPatch, dealer: int, change: Mapping[int, Lie]
) -> Callable[[], None]:
    """From now on the `dealer`-th site of each sum deals these holders other shares."""
    deal, count = sharing.deal, [0]

    def wrong(*arguments: Any) -> list[sharing.Share]:
        dealt = deal(*arguments)
        if count[0] % len(dealt) == dealer:
            dealt = [change.get(holder, lambda one: one)(one) for holder, one in enumerate(dealt)]
        count[0] += 1
        return dealt

    monkeypatch.setattr(participant_sum.sharing, "deal", wrong)
    return monkeypatch.undo


@pytest.mark.parametrize("lie", [random_share, one_residue])
def test_an_honest_holder_that_was_dealt_wrongly_looks_like_a_liar(
    federation: Any, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    """So a name in a log is no proof; the holder itself sees that a dealer did it."""
    alone = federation("rlwe", sites=4, weights="equal", rules=FOUR).run(1)
    found = told(federation("rlwe", sites=4, weights="equal", rules=FOUR), None)
    misdealt(monkeypatch, 0, {2: lie})
    ours = found.ours.run(1)
    assert ours.states() == alone.states()
    for name in ours.names:
        assert found.faulty(name) == {LIAR: "share"}
        own = "this site's own answer" in in_words(found.faulty(name), name)
        assert own == (name == LIAR)


def test_a_dealer_can_still_stop_a_round(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two holders' residues, one more than is told: every site refuses, and names nobody."""
    ours = federation("rlwe", sites=4, weights="equal", rules=FOUR)
    ours.coordinator.start()
    misdealt(monkeypatch, 0, {1: one_residue, 2: one_residue})
    hand = Hand(ours).ready()
    blocks = hand.aggregate(ours.names)
    answers = hand.answers(hand.vote_on(ours.names, ours.names, blocks))
    with nothing_installed(ours):
        for site in ours.names:
            hand.deliver(site, blocks)
            code, text = hand.refused(site, hand.opening(site, answers))
            assert code == "key-sum"
            assert "at least 2 of 4" in text


# -- a coordinator that helps the liar --------------------------------------------------------


def test_two_signed_tags_are_found_in_the_logs(federation: Any, tmp_path: Path) -> None:
    """The liar signs one tag for the bank and another for the rest, and the coordinator hands each
    site the one that fits: none of them sees it, and all open the right sum. Their logs show it."""
    ours = federation("rlwe", sites=4, weights="equal", rules=FOUR)
    for name, one in ours.participants.items():
        path, key = tmp_path / f"{name}.jsonl", ours.keys[name]
        one._log = LogFile.open(
            path, name, key.sign, key.public, ours.plan.sha256(), ours.roster
        ).append
    extra: dict[str, bytes] = {}

    def from_site(site: str, method: str, data: bytes) -> bytes:
        if (site, method) == (LIAR, "quorum"):
            wrong = one_residue(ours.participants[LIAR]._sum._own_answer)
            extra["box"] = sealed(ours, LIAR, wrong, "bank")["bank"]
            extra["tag"] = tag_of(ours, LIAR, wrong)
        return data

    def to_site(site: str, method: str, data: bytes) -> bytes:
        if (site, method) != ("bank", "open"):
            return data
        _, binding, _, body = ours.opened(data)
        opening = messages.Open.from_body(body)
        changed = messages.Open(
            opening.answers | {LIAR: extra["box"]}, opening.tags | {LIAR: extra["tag"]}
        )
        return ours.seal(changed, binding)

    ours.wire.to_coordinator, ours.wire.to_site = from_site, to_site
    ours.run(1).coordinator.finish()
    assert len(set(ours.states().values())) == 1
    assert ours.seen["bank"].faulty_answers == {LIAR: "share"}
    assert ours.seen["clinic"].faulty_answers == {}
    known = known_keys([ours.roster])
    chains = [
        read_chain(name, (tmp_path / f"{name}.jsonl").read_bytes(), known) for name in ours.names
    ]
    assert [chain.problems for chain in chains] == [()] * 4
    (problem,) = cross_check(chains)
    assert problem.startswith(f"{LIAR}: lacks what 1 entries of others saw from {LIAR}")
    assert "in bank, entry" in problem
    # Control: what the others saw is what the liar's log says that it signed.
    tag = body_of(ours.wire.of(LIAR, "quorum")[-1].reply)["tag"]
    digest = hashlib.sha256(tag).hexdigest()
    for chain in chains:
        seen = [entry.fact.saw.get(LIAR) for entry in chain.entries if entry.fact.message == "open"]
        assert (digest in seen) == (chain.party not in ("bank", LIAR))


def test_a_tag_is_keyed_by_what_the_coordinator_does_not_have(federation: Any) -> None:
    """HMAC under the group key, written out: whoever relays it cannot try shares on it."""
    ours = federation("rlwe", sites=4, weights="equal", rules=FOUR)
    ours.coordinator.start()
    hand = Hand(ours).ready()
    answers = hand.answers(hand.vote_on(ours.names, ours.names))
    for name in ours.names:
        current = ours.participants[name]._sum
        text = b"answer" + hand.binding.context + (1).to_bytes(8, "big")
        text += sharing.to_bytes(current._own_answer)
        tag = messages.AnswerTag.from_body(body_of(answers[name]["tag"])).tag
        assert tag == hmac.digest(ours.participants[name]._keys.group_key, text, "sha256")


def test_what_is_noticed_is_of_one_command(federation: Any) -> None:
    """An `open` that is refused later, by whoever sent it, has nothing of the sum before."""
    found = told(federation("rlwe", sites=4, weights="equal", rules=FOUR), lie_of(random_share))
    ours = found.ours.run(1)
    assert found.faulty("bank") == {LIAR: "share"}
    for binding in (ours.binding, None):
        data = ours.seal(messages.Open({}, {}), binding) if binding else b"junk"
        ours.refused_bytes("bank", "open", data)
        assert found.logs["bank"][-1].act == "refused"
        assert set(found.logs["bank"][-1].details) == {"command"}


# -- those who agree on a lie -----------------------------------------------------------------

SEVEN = {"max_colluding": 2, "threshold": 3, "votes": 4, "min_cohort": 7}
COLLUDERS, ALONG = ("ward-00", "ward-01"), ("bank", "clinic")


def lighter(ours: Any, liar: str) -> sharing.Share:
    """The liar's answer to a sum of three quarters of the weight, with tags that fit, on which the
    right answers of `ALONG` lie as well."""
    current = ours.participants[liar]._sum
    cipher, roster, q = current._cipher, ours.roster, current._cipher.parameters.q
    layout = rlwe_layout(cipher.parameters, current._layout)
    tagger = Tagger(cipher._tag_seed(current.binding.context), layout)
    by = -(1 << 28)
    shift = [0, by, 0, *(u[1] * by for _, _, u in tagger.factors())]
    at = 1
    for honest in ALONG:
        place = roster.index(honest) + 1
        at = at * (roster.index(liar) + 1 - place) * pow(-place, -1, q) % q
    right = current._own_answer
    residues = [(one + at * more) % q for one, more in zip(right.residues, shift, strict=True)]
    return replace(right, residues=tuple(residues))


@pytest.mark.parametrize("answering", [7, 5])
def test_as_many_as_may_collude_get_no_wrong_sum_opened(federation: Any, answering: int) -> None:
    """Two of seven have the group key and forge the tags. Where all answer they are left out; of
    five answers, three of them right, none is taken for wrong that only those two say is."""
    ours = federation("rlwe", sites=7, weights="equal", rules=SEVEN)
    ours.coordinator.start()
    hand = Hand(ours).ready()
    blocks = hand.aggregate(ours.names)
    answers = hand.answers(hand.vote_on(ours.names, ours.names, blocks))
    for liar in COLLUDERS:
        wrong = lighter(ours, liar)
        answers[liar] |= {"boxes": sealed(ours, liar, wrong), "tag": tag_of(ours, liar, wrong)}
    current = ours.participants["hospital"]._sum
    hand.deliver("hospital", blocks)
    if answering == 7:
        alone = federation("rlwe", sites=7, weights="equal", rules=SEVEN).run(1)
        hand.raw("hospital", hand.opening("hospital", answers))
        assert current.faulty == dict.fromkeys(COLLUDERS, "share")
        assert taken(ours, "hospital") == alone.states()["hospital"]
        return
    few = {name: answers[name] for name in (*ALONG, "hospital", *COLLUDERS)}
    with nothing_installed(ours):
        code, text = hand.refused("hospital", hand.opening("hospital", few))
    assert code == "key-sum"
    assert "at least 1 of 5 answers do not fit the others (residues)" in text


def test_more_than_may_collude_can_have_a_wrong_weight_opened(federation: Any) -> None:
    """The same two where c = 1: outside of what is promised, and it is so. The honest answer that
    does not lie on theirs is the one that the site's operator reads of."""
    rules = SEVEN | {"max_colluding": 1}
    ours = federation("rlwe", sites=7, weights="equal", rules=rules)
    ours.coordinator.start()
    hand = Hand(ours).ready()
    blocks = hand.aggregate(ours.names)
    answers = hand.answers(hand.vote_on(ours.names, ours.names, blocks))
    for liar in COLLUDERS:
        wrong = lighter(ours, liar)
        answers[liar] |= {"boxes": sealed(ours, liar, wrong), "tag": tag_of(ours, liar, wrong)}
    few = {name: answers[name] for name in (*ALONG, "hospital", *COLLUDERS)}
    current = ours.participants["bank"]._sum
    before = ours.participants["bank"].state.values
    hand.deliver("bank", blocks)
    hand.raw("bank", hand.opening("bank", few))
    assert {name: why for name, why in current.faulty.items() if why != "missing"} == {
        "hospital": "share"
    }
    right = federation("rlwe", sites=7, weights="equal", rules=rules).run(1).state().values
    taken(ours, "bank")
    moved = ours.participants["bank"].state.values - before
    np.testing.assert_allclose(moved, (right - before) / 0.75, rtol=1e-3, atol=1e-4)
