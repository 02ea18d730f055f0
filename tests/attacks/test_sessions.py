"""Plans, rosters, keys and coordinators other than the session's own."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from by_hand import (
    COMMANDS,
    OF_A_SUM,
    SCHEMES,
    VICTIM,
    ZERO,
    each_scheme,
    finish_round,
    hold,
    summed,
    vote,
)
from hand import digests, nothing_installed

from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.scheme import CKKS
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol import run_keys
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.schemes import scheme_of

# -- plan and roster -------------------------------------------------------------------------


#: What stands in a plan, and what would ask for less.
DOWNGRADES = [
    (b'"bits":16', b'"bits":8'),
    (b'"threshold":null', b'"threshold":2'),
    (b'"threshold":null', b'"threshold":1'),
    (b'"votes":null', b'"votes":0'),
    (b'"min_cohort":null', b'"min_cohort":2'),
    (b'"max_colluding":null', b'"max_colluding":0'),
    (b'"server":"malicious"', b'"server":"semi-honest"'),
    (b'"open_to":"peers"', b'"open_to":"server"'),
    (b'"rounds":4', b'"rounds":5'),
]


@pytest.mark.parametrize(("scheme", "sites"), [("plain", 3), ("ckks", 3), ("rlwe", 3), ("rlwe", 4)])
def test_an_invite_to_another_plan_or_roster(federation: Any, scheme: str, sites: int) -> None:
    """Any change, also when the coordinator signs it: the site has its own copy of both. The
    session under way is untouched."""
    ours = federation(scheme, sites=sites)
    ours.coordinator.start()
    uploads = ours.work(1)
    plan, roster = ours.plan.canonical(), ours.roster
    rules, stranger = roster.rules, SigningKey().public
    downgrades = [*DOWNGRADES]
    downgrades += [
        (f'"name":"{scheme}"'.encode(), f'"name":"{other}"'.encode())
        for other in SCHEMES
        if other != scheme
    ]
    plans = [b"", plan + b" "]
    for old, new in downgrades:
        assert plan.count(old) == 1, old
        plans.append(plan.replace(old, new))
    last = ours.names[-1]
    rosters = [
        replace(roster, sites={name: key for name, key in roster.sites.items() if name != last}),
        replace(roster, sites={**roster.sites, "bank": stranger}),
        replace(roster, sites={**roster.sites, last: stranger}),
        replace(roster, sites={**roster.sites, "zoo": stranger}),
        replace(roster, coordinator=stranger),
        replace(roster, demo=False),
        replace(roster, charter=b"x" * 32),
        replace(roster, charter=bytes(32)),
        replace(roster, rules=replace(rules, threshold=1)),
        replace(roster, rules=replace(rules, votes=0)),
        replace(roster, rules=replace(rules, min_cohort=2)),
        replace(roster, rules=replace(rules, max_colluding=2)),
        replace(roster, rules=type(rules)(sites, 1, 2, 2, 3)),
    ]
    raw = roster.encode()
    first, second = (roster.sites[name] for name in ("bank", "clinic"))
    swapped = raw.replace(first, b"\0" * 32).replace(second, first).replace(b"\0" * 32, second)
    assert swapped != raw
    changed = [other.encode() for other in rosters] + [b"", swapped, raw[:-1]]
    for part, invites in (
        ("plan", [(other, raw) for other in plans]),
        ("roster", [(plan, other) for other in changed]),
    ):
        for shown in invites:
            invite = messages.Invite(b"another session", *shown)
            with nothing_installed(ours), pytest.raises(ProtocolError) as caught:
                ours.reply(VICTIM, invite, ZERO)
            assert caught.value.code == "context"
            assert ("plan" in str(caught.value)) == (part == "plan")
    finish_round(ours, uploads)


def test_no_site_has_the_coordinators_name(federation: Any) -> None:
    roster, stranger = federation("rlwe", sites=4).roster, SigningKey().public
    with pytest.raises(ProtocolError, match=r"^sender: no site may be named 'coordinator'"):
        replace(roster, sites={"coordinator": stranger})


def test_a_coordinator_with_another_plan_gets_no_session(federation: Any) -> None:
    ours = federation("rlwe", sites=4, weights="equal")
    theirs = federation("rlwe", sites=4, weights="equal", encoding={"bits": 8})
    ours.coordinator = type(ours.coordinator)(theirs.plan, ours.roster, ours.wire, ours.server.sign)
    with pytest.raises(RoundFailed, match=r"^invite: no answer from bank \(context\), clinic"):
        ours.coordinator.start()
    assert not any(isinstance(error, CryptoError) for error in ours.wire.errors.values())


@pytest.mark.parametrize(("scheme", "sites"), [("plain", 3), ("ckks", 3), ("rlwe", 3), ("rlwe", 4)])
def test_a_site_does_not_start_with_a_roster_of_other_quorums(
    federation: Any, scheme: str, sites: int
) -> None:
    ours = federation(scheme, sites=sites)
    for name, value in (("threshold", 1), ("votes", 1), ("min_cohort", 2), ("max_colluding", 2)):
        other = replace(ours.roster, rules=replace(ours.roster.rules, **{name: value}))
        with pytest.raises(ProtocolError, match="quorums are not the plan's") as caught:
            ours.participant(VICTIM, other)
        assert caught.value.code == "context"


@each_scheme
def test_a_roster_of_others(federation: Any, scheme: str) -> None:
    """A participant whose own roster is another one refuses the invite."""
    ours = federation(scheme)
    sites = {**ours.roster.sites, "bank": SigningKey().public}
    ours.participants[VICTIM] = ours.participant(VICTIM, replace(ours.roster, sites=sites))
    with pytest.raises(RoundFailed, match=r"invite: no answer from clinic \(context\)"):
        ours.coordinator.start()


# -- the key boxes ---------------------------------------------------------------------------


@pytest.fixture(params=SCHEMES)
def keyless(federation: Any, request: pytest.FixtureRequest) -> tuple[Any, dict[str, bytes]]:
    """A session in which the bank has made the keys and no other site has taken them; the
    boxes."""
    ours = federation(request.param)
    ours.wire.to_site = lambda site, method, data: b"" if method == "take-key" else data
    with pytest.raises(RoundFailed, match=r"take-key: no answer from clinic \(size\), hospital"):
        ours.coordinator.start()
    return ours, ours.opened(ours.wire.of("bank", "make-key")[0].reply)[3]["boxes"]


def rebox(federation: Any, to: str, signer: str, **changes: Any) -> bytes:
    """A key box for the site `to` as `signer` would make it, with other fields in `changes`."""
    participants = federation.participants
    keys = changes.pop("keys", None) or run_keys.make(scheme_of(federation.plan))
    peers = {name: one._run_key.public for name, one in participants.items()}
    binding = changes.pop("binding", None) or participants[to]._binding
    run_key = changes.pop("run_key", None) or participants[signer]._run_key
    sign = federation.keys[signer].sign
    offer = run_keys.offer(keys, run_key, peers, binding, sign)
    made = offer.boxes.get(to) or offer.boxes["hospital"]
    if not changes:
        return made
    _, _, sender, body = federation.opened(made)
    return envelope.seal("key-box", binding, sender, {**body, **changes}, sign)


def test_key_boxes_that_are_refused(keyless: tuple[Any, dict[str, bytes]]) -> None:
    federation, boxes = keyless
    binding = federation.participants[VICTIM]._binding
    good = boxes[VICTIM]
    cases = [
        (rebox(federation, VICTIM, "hospital"), "signature"),  # another site makes keys
        (rebox(federation, VICTIM, VICTIM), "signature"),
        (boxes["hospital"], "sender"),  # made for another site
        (good[:200] + bytes([good[200] ^ 1]) + good[201:], "signature"),
        (rebox(federation, VICTIM, "bank", binding=Binding(bytes(32), 0, "setup")), "context"),
        (rebox(federation, VICTIM, "bank", binding=replace(binding, phase="round")), "round"),
        (rebox(federation, VICTIM, "bank", receiver="hospital"), "sender"),
        (rebox(federation, VICTIM, "bank", key_id=b"?" * 16), "disagree"),
        (federation.wire.of("bank", "begin")[0].reply, "kind"),
        (b"", "size"),
    ]
    for box, code in cases:
        assert federation.refused(VICTIM, messages.TakeKey(box)) == code
    body = federation.opened(good)[3]
    for inner in (
        federation.opened(boxes["hospital"])[3]["box"],
        body["box"][:-1] + bytes([body["box"][-1] ^ 1]),
        b"",
    ):
        box = rebox(federation, VICTIM, "bank", box=inner)
        with pytest.raises(CryptoError, match="sealed box"):
            federation.send(VICTIM, messages.TakeKey(box))
    stranger = rebox(federation, VICTIM, "bank", run_key=RunKey(os.urandom(32)))
    with pytest.raises(CryptoError, match="does not open"):
        federation.send(VICTIM, messages.TakeKey(stranger))
    # Where a run has no secret of its own, what follows the group key is read by nobody.
    for size in (31, 33) if federation.plan.scheme.name != "ckks" else (31,):
        odd = replace(run_keys.make(scheme_of(federation.plan)), group_key=bytes(size))
        with pytest.raises((ProtocolError, CryptoError)):
            federation.send(VICTIM, messages.TakeKey(rebox(federation, VICTIM, "bank", keys=odd)))
    for site in (VICTIM, "hospital"):
        assert federation.participants[site]._keys is None
        federation.send(site, messages.TakeKey(boxes[site]))
    finish_round(federation, federation.work(1))


def test_a_key_of_another_set_is_refused(federation: Any) -> None:
    ours = federation("ckks")
    ours.wire.to_site = lambda site, method, data: b"" if method == "take-key" else data
    with pytest.raises(RoundFailed, match="take-key"):
        ours.coordinator.start()
    plan = ours.plan
    other = plan.model_copy(
        update={"scheme": plan.scheme.model_copy(update={"parameters": "paper"})}
    )
    box = rebox(ours, VICTIM, "bank", keys=run_keys.make(scheme_of(other)))
    with pytest.raises(CryptoError, match="of lean"):
        ours.send(VICTIM, messages.TakeKey(box))
    assert CKKS["lean"].name == plan.scheme.parameter_set


# -- two coordinators, two sessions ----------------------------------------------------------


def test_a_coordinator_with_another_key_gets_nowhere(begun: Any) -> None:
    impostor = begun.another_coordinator(SigningKey())
    with pytest.raises(RoundFailed, match=r"bank \(signature\), clinic \(signature\)"):
        impostor.start()
    begun.coordinator.round(1)


def test_a_newer_session_ends_the_older_one(begun: Any) -> None:
    """The same coordinator's key twice, as after a crash: one session lives, the newer."""
    older, newer = begun.coordinator, begun.another_coordinator()
    newer.start()
    with pytest.raises(RoundFailed, match="context"):
        older.round(1)
    newer.round(1)
    assert newer.completed_rounds == 1
    begun.state()


@each_scheme
def test_no_second_set_is_opened_from_one_model(federation: Any, scheme: str) -> None:
    """After a sum over three, the same sites are asked in a run of two of them, from the model
    that they had before: the difference would be the third site's update. The sites say what
    they are bound to; a coordinator that does not care is refused at the vote."""
    ours = federation(scheme, sites=2)
    for name in ours.names:  # what a run over three sites has left in the journals
        base, three = f"round {ours.state().sha256()}", ["bank", VICTIM, "lab"]
        ours.participants[name]._journal.vote(b"earlier", 1, "round", bytes(32), base, three)
    before = ours.states()
    ours.coordinator.start()
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(1)
    assert str(caught.value) == (
        "a sum over bank, clinic, lab (so says bank, clinic) was voted for from this model, and "
        "any other would give a site away; lab must be back first"
    )
    ours.coordinator.start()
    keys = ours.prepare(1)
    assert ours.opened(keys["bank"])[3]["bound"] == {"bank": b"", VICTIM: b"", "lab": b""}
    command = messages.Work(keys)
    uploads = {name: ours.reply(name, command) for name in ours.names}
    ours.binding = ours.summing(keys)
    blocks = summed(ours, uploads, list(ours.names))
    hold(ours, uploads)
    for site in ours.names:
        assert ours.refused(site, messages.Announce(uploads, digests(blocks))) == "repeated"
        assert ours.refused(site, messages.Quorum({})) == "repeated"
    assert ours.states() == before


def test_the_journal_holds_for_a_new_participant(uploaded: tuple[Any, Any]) -> None:
    """A site restarted from its files within the same session: it has lost its keys, answers
    nothing of the sum that it was in, and could not upload again."""
    federation, uploads = uploaded
    blocks = summed(federation, uploads, list(federation.names))
    hold(federation, uploads)
    votes = vote(federation, uploads, blocks)
    session = federation.coordinator._session.context
    restarted = federation.participant(VICTIM, federation.roster)
    journal = restarted._journal
    base = f"round {federation.state().sha256()}"
    for act in (
        lambda: journal.upload(session, 1, "round", bytes(32)),
        lambda: journal.vote(session, 1, "round", bytes(32), base, list(federation.names)),
        lambda: journal.vote(b"other", 1, "round", bytes(32), base, ["bank", VICTIM]),
    ):
        with pytest.raises(ProtocolError) as caught:
            act()
        assert caught.value.code == "repeated"
    federation.participants[VICTIM] = restarted
    for message in (*(COMMANDS[name] for name in OF_A_SUM), messages.Quorum(votes)):
        assert federation.refused(VICTIM, message) in ("context", "repeated")
    assert restarted._sum is None
