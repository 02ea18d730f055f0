"""Why each rule is there: without it, a coordinator and the sites that may collude with it compute
an honest site's digits exactly; with it, the same attack fails.

A rule is taken away by numbers that provisioning refuses, or by replacing the check. The attacker
uses what crossed, and what the colluders hold; the last site by name colludes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attacker import Attacker, Forgetful, Keys
from hand import Hand, body_of, record, sent_by, started

from fedshield.crypto import shares as sharing
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.errors import CryptoError, PlanError, ProtocolError
from fedshield.plan.quorum import Rules, resolve
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import upload_digest
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant_sum import Summation
from fedshield.protocol.wire import messages

VICTIM = "clinic"


def ruled(federation: Any, monkeypatch: pytest.MonkeyPatch, rules: Rules) -> Any:
    """A federation with these rules, whether provisioning would allow them or not."""
    monkeypatch.setattr(Plan, "rules", lambda _: rules)
    return started(federation, rules.num_sites)


def legal(rules: Rules) -> bool:
    try:
        resolve(
            rules.num_sites,
            max_colluding=rules.max_colluding,
            threshold=rules.threshold,
            votes=rules.votes,
            min_cohort=rules.min_cohort,
            membership="open",
        )
    except PlanError:
        return False
    return True


def bare(hand: Hand, attacker: Attacker, site: str, key: Any) -> None:
    """With this key the server reads exactly what the site sent, tag and residue included."""
    sent = sent_by(hand.federation, site)
    opened = attacker.decrypt([site], key)
    np.testing.assert_array_equal(opened.values, sent.digits)
    assert opened.reserved == sent.reserved
    assert np.count_nonzero(sent.digits) > 500


def refused(code: str, attack: Any, *args: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        attack(*args)
    assert caught.value.code == code
    return str(caught.value)


# -- who may open what ----------------------------------------------------------------------


def two_halves(ours: Any) -> None:
    """All to one honest site, all but the victim to another; colluders vote for both."""
    hand = Hand(ours).ready()
    first, *_, second, colluder = ours.names
    attacker = Attacker(hand, colluder)
    small = [name for name in ours.names if name != VICTIM]
    keys = []
    for site, chosen in ((first, ours.names), (second, small)):
        blocks = hand.aggregate(chosen)
        votes = hand.vote_on(chosen, [site], blocks) | attacker.votes(chosen, blocks)
        answers = hand.answers(votes, site)
        shares = attacker.read(answers, chosen, blocks) | attacker.own_shares(chosen)
        keys.append(attacker.key_sum(shares, len(chosen)))
    bare(hand, attacker, VICTIM, keys[0] - keys[1])


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        (Rules(4, 1, 2, 2, 3), ""),
        (Rules(4, 1, 2, 0, 3), ""),
        (Rules(4, 1, 2, 3, 3), "vote"),
        (Rules(4, 1, 3, 3, 3), "vote"),
    ],
    ids=["two quorums without a common honest site", "no votes", "Q alone", "as provisioned"],
)
def test_any_two_quorums_share_an_honest_site(
    federation: Any, monkeypatch: pytest.MonkeyPatch, rules: Rules, code: str
) -> None:
    """2Q > K + c, and an answer only after Q votes; else two sets are opened in one round."""
    assert (2 * rules.votes > 4 + 1) == bool(code)
    ours = ruled(federation, monkeypatch, rules)
    if code:
        refused(code, two_halves, ours)
    else:
        assert not legal(rules)
        two_halves(ours)


def victim_and_colluder(ours: Any) -> None:
    """The sum over one honest site and the colluder, for which all others vote."""
    hand = Hand(ours).ready()
    attacker = Attacker(hand, "lab")
    chosen = (VICTIM, "lab")
    blocks = hand.aggregate(chosen)
    votes = hand.vote_on(chosen, ("bank", "hospital"), blocks) | attacker.votes(chosen, blocks)
    answers = hand.answers(votes, "bank")
    shares = attacker.read(answers, chosen, blocks) | attacker.own_shares(chosen)
    bare(hand, attacker, VICTIM, attacker.key_sum(shares, 2) - attacker.own_key("lab"))


def test_a_cohort_is_at_least_two_honest_sites(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """min_cohort >= c + 2; else the sum over one honest site and the colluders is opened."""
    rules = Rules(4, 1, 2, 3, 2)
    assert not legal(rules)
    victim_and_colluder(ruled(federation, monkeypatch, rules))
    ours = ruled(federation, monkeypatch, Rules(4, 1, 2, 3, 3))
    assert "it leaves out bank, hospital" in refused("cohort", victim_and_colluder, ours)


def test_the_threshold_is_more_than_the_colluders(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T >= c + 1; else the colluders need no one's vote or answer: they have T shares."""
    rules = Rules(5, 2, 2, 4, 4)
    assert not legal(rules)
    for threshold in (2, 3):
        ours = ruled(federation, monkeypatch, Rules(5, 2, threshold, 4, 4))
        hand = Hand(ours).ready()
        attacker = Attacker(hand, "lab", "surgery")
        shares = attacker.own_shares([VICTIM])
        if threshold == 2:
            bare(hand, attacker, VICTIM, attacker.key_sum(shares, 1))
            continue
        with pytest.raises(CryptoError, match="expected 3 shares, got 2"):
            attacker.key_sum(shares, 1)
        # Nor do two of three points say anything: the line through them misses the key.
        indexed = {ours.roster.index(one): share for one, share in shares.items()}
        with pytest.raises(CryptoError, match="coefficients up to 42, got larger"):
            sharing.open_sum(indexed, replace(attacker.shape, threshold=2), 1)


# -- once -----------------------------------------------------------------------------------


def second_vote(ours: Any) -> None:
    """Everyone votes for all and one answers; then the others are asked again, for one fewer."""
    hand = Hand(ours).ready()
    attacker = Attacker(hand, "lab")
    small = ("bank", "hospital", "lab")
    blocks = hand.aggregate(ours.names)
    votes = hand.vote_on(ours.names, ("bank", "hospital", VICTIM), blocks)
    answers = hand.answers(votes, "bank")
    shares = attacker.read(answers, ours.names, blocks) | attacker.own_shares(ours.names)
    all_keys = attacker.key_sum(shares, 4)
    blocks = hand.aggregate(small)
    votes = hand.vote_on(small, ("hospital", VICTIM), blocks) | attacker.votes(small, blocks)
    answers = hand.answers(votes, "hospital")
    shares = attacker.read(answers, small, blocks) | attacker.own_shares(small)
    bare(hand, attacker, VICTIM, all_keys - attacker.key_sum(shares, 3))


@pytest.mark.parametrize("without", ["", "memory", "journal", "both"])
def test_a_site_votes_once(federation: Any, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    """It knows by itself, and from its journal; each alone is enough."""
    vote_on = Summation.announce

    def forget(self: Any, command: messages.Announce) -> messages.Vote:
        self._vote = None
        return vote_on(self, command)

    ours = ruled(federation, monkeypatch, Rules(4, 1, 2, 3, 3))
    if without in ("memory", "both"):
        monkeypatch.setattr(Summation, "announce", forget)
    if without in ("journal", "both"):
        for site in ours.participants.values():
            site._journal.__class__ = Forgetful
    if without == "both":
        second_vote(ours)
    else:
        refused("repeated", second_vote, ours)


def one_fewer_after_failure(ours: Any) -> None:
    """All is opened by the server; the sites get nothing to open, and the round is repeated in a
    new session without the victim: the difference of the sums is what it sent."""
    sums = []
    made = record(ours)
    for chosen in (ours.names, tuple(name for name in ours.names if name != VICTIM)):
        hand = Hand(ours).ready()
        attacker = Attacker(hand, "lab")
        blocks = hand.aggregate(chosen)
        votes = hand.vote_on(chosen, ours.names[:-1], blocks)
        answers = hand.answers(votes, *ours.names[:-1])
        shares = attacker.read(answers, chosen, blocks) | attacker.own_shares(chosen)
        sums.append(attacker.decrypt(chosen, attacker.key_sum(shares, len(chosen))))
        ours.coordinator = ours.another_coordinator()
        ours.coordinator.start()
    np.testing.assert_array_equal(sums[0].values - sums[1].values, made[VICTIM, 1].digits)
    difference = np.subtract(sums[0].reserved, sums[1].reserved)
    assert tuple(difference) == made[VICTIM, 1].reserved


def test_from_one_model_one_set(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected round counts as opened."""
    text = refused("repeated", one_fewer_after_failure, started(federation))
    assert "a sum over bank, clinic, hospital, lab was voted for from this model" in text
    vote = Journal.vote

    def unbound(self: Any, *args: Any) -> None:
        self._opened.clear()
        vote(self, *args)

    monkeypatch.setattr(Journal, "vote", unbound)
    one_fewer_after_failure(started(federation))


# -- an answer is the whole sum or nothing --------------------------------------------------


def another_set_than_voted(ours: Any) -> None:
    hand = Hand(ours).ready()
    attacker = Attacker(hand, "lab")
    blocks = hand.aggregate(ours.names)
    votes = hand.vote_on(ours.names, ("bank", "hospital", VICTIM), blocks)
    answers = hand.answers(votes, "bank", "hospital")
    found = attacker.read(answers, ours.names, blocks)
    keys = []
    for site, chosen in (("bank", ours.names), ("hospital", ("bank", "hospital", "lab"))):
        shares = {site: found[site]} | attacker.own_shares(chosen)
        keys.append(attacker.key_sum(shares, len(chosen)))
    bare(hand, attacker, VICTIM, keys[0] - keys[1])


def test_an_answer_is_over_exactly_the_set(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ruled(federation, monkeypatch, Rules(4, 1, 2, 3, 3))
    with pytest.raises(CryptoError, match="coefficients up to 126, got larger"):
        another_set_than_voted(ours)
    answer = Summation.quorum

    def obliging(self: Any, command: messages.Quorum) -> messages.Answer:
        if self._member.name == "hospital":
            self.contributors = ("bank", "hospital", "lab")
        return answer(self, command)

    monkeypatch.setattr(Summation, "quorum", obliging)
    another_set_than_voted(ruled(federation, monkeypatch, Rules(4, 1, 2, 3, 3)))


def less_one_share(ours: Any, instead: str) -> None:
    """Three sites; the first never gets the second's share (`instead`: whose it gets for it).
    What it adds up is its own key and the colluder's."""
    hand = Hand(ours).prepare().work().collect()
    attacker = Attacker(hand, "hospital")
    for site in ours.names:
        shares = hand.shares_for(site)
        if site == "bank":
            shares.pop(VICTIM)
            if instead:
                shares[VICTIM] = hand.boxes[instead][site]
        hand.send(site, messages.Hold(hand.uploads, shares))
    blocks = hand.aggregate(ours.names)
    votes = hand.vote_on(ours.names, ours.names, blocks)
    answers = hand.answers(votes, "bank")
    times = 2 if instead else 1
    own = attacker.own_shares(["bank"] + ["hospital"] * times)
    shares = attacker.read(answers, ours.names, blocks) | own
    key = attacker.key_sum(shares, 3)
    for _ in range(times):
        key -= attacker.own_key("hospital")
    bare(hand, attacker, "bank", key)


def test_who_lacks_a_share_does_not_answer(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the usual rules of three sites a partial sum gives the holder itself away."""
    with pytest.raises(CryptoError, match="expected 2 shares, got 1"):
        less_one_share(started(federation, 3), "")
    answer = Summation.quorum

    def partial(self: Any, command: messages.Quorum) -> messages.Answer:
        self.contributors = tuple(one for one in self.contributors if one in self._held)
        return answer(self, command)

    monkeypatch.setattr(Summation, "quorum", partial)
    less_one_share(started(federation, 3), "")


def test_a_share_is_the_dealers_that_signed_for_it(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the colluder's box is handed over as the victim's, and the sum is over others."""
    with pytest.raises(CryptoError, match="expected 2 shares, got 1"):
        less_one_share(started(federation, 3), "hospital")
    open_share = Summation._open_share

    def trusting(self: Any, box: bytes, dealer: str, upload: messages.Upload) -> Any:
        try:
            return open_share(self, box, dealer, upload)
        except CryptoError:
            about = upload_digest(uploads["hospital"])
            raw = self._channels.open_share(box, "hospital", about)
            return sharing.from_bytes(raw, self._shape(self._layout))

    uploads: dict[str, messages.Upload] = {}
    read_uploads = Summation._read_uploads

    def watching(self: Any, raw: dict[str, bytes]) -> dict[str, messages.Upload]:
        uploads.update(read_uploads(self, raw))
        return dict(uploads)

    monkeypatch.setattr(Summation, "_open_share", trusting)
    monkeypatch.setattr(Summation, "_read_uploads", watching)
    less_one_share(started(federation, 3), "hospital")


def replaced_entry(ours: Any, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    """Someone got hold of the victim's round key and of one signature, though not of its signing
    key: under the victim's name stands an upload whose one-time key the attacker made. The
    victim's own vote is what is missing to open the sum, and with it the third site."""
    hand = Hand(ours).prepare().work().collect()
    attacker = Attacker(hand, "hospital")
    real = hand.uploads[VICTIM]
    upload = messages.Upload.from_body(body_of(real))
    made = rlwe.OneTimeKey(b"\7" * 32).secret()
    stolen = ours.participants[VICTIM]._sum
    mine = Keys(made, (0,) * attacker.shape.num_residues, attacker.shape.modulus)
    dealt = sharing.deal(made, mine.residues, attacker.shape, b"\7" * 32)
    share = sharing.to_bytes(dealt[0])
    box = stolen._channels.seal_share(share, "bank", upload_digest(upload), stolen._salt_key)
    signed = {**upload.share_digests, "bank": hashlib.sha256(box).digest()}
    false = replace(upload, share_digests=signed)
    hand.uploads[VICTIM] = hand.signed_by(VICTIM, false)
    if not checked:
        read_uploads = Summation._read_uploads

        def lenient(self: Any, raw: dict[str, bytes]) -> dict[str, messages.Upload]:
            if self._member.name != VICTIM:
                return read_uploads(self, raw)
            return read_uploads(self, {**raw, VICTIM: real}) | {VICTIM: false}

        monkeypatch.setattr(Summation, "_read_uploads", lenient)
    shares = hand.shares_for("bank") | {VICTIM: box}
    assert hand.send("bank", messages.Hold(hand.uploads, shares))["complaints"] == {}
    hand.send("hospital", messages.Hold(hand.uploads, hand.shares_for("hospital")))
    blocks = hand.aggregate(ours.names)
    votes = hand.vote_on(ours.names, ["bank"], blocks) | attacker.votes(ours.names, blocks)
    if checked:
        assert "expected 3 matching votes, got 2" in refused("vote", hand.answers, votes, "bank")
    votes |= hand.vote_on(ours.names, [VICTIM], blocks)
    answers = hand.answers(votes, "bank")
    own = attacker.own_shares(["bank", "hospital"])["hospital"]
    found = attacker.read(answers, ours.names, blocks)
    found["hospital"] = sharing.add([own, dealt[2]], attacker.shape)
    key = attacker.key_sum(found, 3) - mine - attacker.own_key("hospital")
    bare(hand, attacker, "bank", key)


def test_a_site_knows_its_own_entry(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Rules(3, 1, 2, 3, 3)
    assert legal(rules)
    ours = ruled(federation, monkeypatch, rules)
    text = refused("digest", replaced_entry, ours, monkeypatch, True)
    assert "this site's own upload was replaced" in text
    replaced_entry(ruled(federation, monkeypatch, rules), monkeypatch, False)
