"""Commands that a site must refuse, whoever made them, and what is left standing afterwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.scheme import CKKS
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.plan.quorum import resolve
from fedshield.protocol import run_keys
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.schemes import scheme_of

SCHEMES = ("plain", "ckks", "rlwe")
ZERO = Binding(bytes(32), 0, "setup")
VICTIM = "clinic"
NEAR = {"plain": 2e-6, "ckks": 2e-6, "rlwe": 1e-3}  # rlwe: three sites' steps

each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


# -- a round by hand -------------------------------------------------------------------------


def digests(blocks: list[bytes]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(block).digest() for block in blocks)


def summed(federation: Any, uploads: dict[str, bytes], sites: list[str]) -> list[bytes]:
    """The blocks of the sum over `sites`, each as often as it is named."""
    adding = federation.coordinator._adder
    columns = zip(*(federation.blocks(site, uploads[site]) for site in sites), strict=True)
    blocks = []
    for column in columns:
        total: object | None = None
        for block in column:
            total = adding.add(total, block)
        blocks.append(adding.result(total))
    return blocks


def hold(federation: Any, uploads: dict[str, bytes]) -> None:
    """Pass every share on to its holder, where there are any."""
    if federation.plan.scheme.name != "rlwe":
        return
    dealt = {name: federation.send(name, messages.FetchShares())[1]["boxes"] for name in uploads}
    for holder in uploads:
        shares = {dealer: boxes[holder] for dealer, boxes in dealt.items() if dealer != holder}
        kind, body = federation.send(holder, messages.Hold(uploads, shares))
        assert (kind, body) == ("held", {"complaints": {}})


def vote(federation: Any, uploads: dict[str, bytes], blocks: list[bytes]) -> dict[str, bytes]:
    """Every site's signed vote for the sum over `uploads` in `blocks`."""
    announce = messages.Announce(uploads, digests(blocks))
    return {name: federation.reply(name, announce) for name in uploads}


def answer(federation: Any, votes: dict[str, bytes]) -> dict[str, Any]:
    """What every site answers to these votes."""
    return {name: federation.send(name, messages.Quorum(votes))[1] for name in votes}


def boxes_for(site: str, answers: dict[str, Any]) -> messages.Open:
    meant = {holder: one["boxes"][site] for holder, one in answers.items() if site in one["boxes"]}
    return messages.Open(meant, {holder: answers[holder]["tag"] for holder in meant})


def delivered(
    federation: Any, uploads: dict[str, bytes], blocks: list[bytes]
) -> dict[str, messages.Open]:
    """All of a round but for the last command, which is returned for each site."""
    hold(federation, uploads)
    answers = answer(federation, vote(federation, uploads, blocks))
    for site in uploads:
        for index, block in enumerate(blocks):
            federation.send(site, messages.Deliver(index, block))
    return {site: boxes_for(site, answers) for site in uploads}


def finish_round(federation: Any, uploads: dict[str, bytes]) -> None:
    """The rest of an honest round, to show that the session is alive and right."""
    before = federation.state()
    blocks = summed(federation, uploads, list(federation.names))
    receipts = {
        site: federation.reply(site, command)
        for site, command in delivered(federation, uploads, blocks).items()
    }
    assert {federation.opened(data)[0] for data in receipts.values()} == {"receipt"}
    for site in federation.names:
        assert federation.send(site, messages.Install(receipts))[0] == "done"
    contributions = [federation.trained(name, before, 1) for name in federation.names]
    near = NEAR[federation.plan.scheme.name]
    np.testing.assert_allclose(federation.state().values, np.mean(contributions, axis=0), atol=near)


@pytest.fixture(params=SCHEMES)
def begun(federation: Any, request: pytest.FixtureRequest) -> Any:
    """Three sites, equal weights, after `start`."""
    ours = federation(request.param)
    ours.coordinator.start()
    return ours


@pytest.fixture
def uploaded(begun: Any) -> tuple[Any, dict[str, bytes]]:
    """The same, with every site's upload of round 1."""
    return begun, begun.work(1)


# -- who speaks, and to whom -----------------------------------------------------------------

#: Every command but `invite`, with nothing in it.
COMMANDS: dict[str, messages.Message] = {
    one.kind: one
    for one in (
        messages.Begin({}),
        messages.MakeKey(),
        messages.TakeKey(b""),
        messages.Attest(),
        messages.GiveModel(0),
        messages.TakeModel("bank", b"", {}),
        messages.Prepare(),
        messages.Train(),
        messages.Work({}),
        messages.FetchShares(),
        messages.Hold({}, {}),
        messages.Fetch(0),
        messages.Announce({}, ()),
        messages.Quorum({}),
        messages.Deliver(0, b""),
        messages.Open({}, {}),
        messages.Install({}),
        messages.Evaluate(),
        messages.MayGoOn(),
        messages.Finish({}),
    )
}
#: Those of one sum, after its `prepare`.
OF_A_SUM = (
    *("work", "fetch-shares", "hold", "fetch"),
    *("announce", "quorum", "deliver", "open", "install"),
)


def all_commands(federation: Any) -> Iterator[tuple[messages.Message, Binding]]:
    """One of each command, as it would be right at some moment of the session."""
    invite = messages.Invite(b"session", federation.plan.canonical(), federation.roster.encode())
    yield invite, ZERO
    for message in COMMANDS.values():
        yield message, federation.binding


def test_these_are_all_the_commands(begun: Any) -> None:
    assert {"invite", *COMMANDS} == set(begun.participants[VICTIM]._commands)


def test_only_the_rosters_coordinator_is_listened_to(uploaded: tuple[Any, Any]) -> None:
    """Every command signed by a stranger, by another site or by nobody, and under another name:
    refused, and the session that is under way goes on to the right sum."""
    federation, uploads = uploaded
    stranger = SigningKey()
    checked = 0
    for message, binding in all_commands(federation):
        kind, body = message.kind, message.to_body()
        if kind == "prepare":
            binding = federation.opened(uploads["bank"])[1]
            binding = replace(binding, context=federation.coordinator._session.context)
        for sign in (stranger.sign, federation.keys["bank"].sign, lambda _: bytes(64)):
            data = envelope.seal(kind, binding, COORDINATOR, body, sign)
            assert federation.refused_bytes(VICTIM, kind, data) == "signature"
            checked += 1
        data = envelope.seal(kind, binding, "bank", body, federation.server.sign)
        assert federation.refused_bytes(VICTIM, kind, data) == "sender"
        good = federation.seal(message, binding)
        assert federation.refused_bytes(VICTIM, kind, good[:-1]) == "signature"
        assert federation.refused_bytes(VICTIM, kind, good + b"\0") == "signature"
        assert federation.refused_bytes(VICTIM, kind, b"") == "size"
    assert checked == 3 * (1 + len(COMMANDS))
    finish_round(federation, uploads)


@each_scheme
def test_who_cannot_sign_learns_nothing_of_a_site(federation: Any, scheme: str) -> None:
    """Whatever a site is doing, the code is the same: not whether it has keys, or is in a sum."""
    ours = federation(scheme)
    stranger = SigningKey()

    def ask() -> None:
        for message, binding in all_commands(ours):
            kind, body = message.kind, message.to_body()
            data = envelope.seal(kind, binding, COORDINATOR, body, stranger.sign)
            assert ours.refused_bytes(VICTIM, kind, data) == "signature", kind

    ask()
    ours.wire.to_site = lambda site, method, data: b"" if method == "make-key" else data
    with pytest.raises(RoundFailed):
        ours.coordinator.start()
    ask()
    ours.wire.to_site = lambda site, method, data: data
    ours.coordinator.start()
    ask()
    keys = ours.prepare(1)
    ask()
    uploads = {name: ours.reply(name, messages.Work(keys)) for name in ours.names}
    ours.binding = ours.summing(keys)
    ask()
    finish_round(ours, uploads)
    ask()


def test_an_unknown_command(begun: Any) -> None:
    for method in ("", "shutdown", "_forget", "join", "Open", "vote", "round-key"):
        data = begun.seal(messages.Open({}, {}))
        assert begun.refused_bytes(VICTIM, method, data) == "kind"


def test_a_command_under_another_commands_name(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    for message in (messages.Finish({}), messages.Evaluate()):
        data = federation.seal(message)
        for method in OF_A_SUM:
            assert federation.refused_bytes(VICTIM, method, data) == "kind", method
    data = federation.seal(messages.FetchShares())
    for method in (*OF_A_SUM, "finish", "evaluate", "prepare"):
        if method != "fetch-shares":
            assert federation.refused_bytes(VICTIM, method, data) == "kind", method
    finish_round(federation, uploads)


def test_an_unsigned_invite_does_not_end_a_live_session(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    invite = next(all_commands(federation))[0]
    for data in (
        b"",
        b"garbage" * 40,
        envelope.seal("invite", ZERO, COORDINATOR, invite.to_body(), SigningKey().sign),
        federation.seal(invite, ZERO)[:-1],
    ):
        with pytest.raises(ProtocolError):
            federation.participants[VICTIM].handle("invite", data)
    assert federation.participants[VICTIM]._keys is not None
    finish_round(federation, uploads)


def test_an_invite_to_another_plan_or_roster(uploaded: tuple[Any, Any]) -> None:
    """Also when the coordinator signs it: the site has its own copy of both."""
    federation, uploads = uploaded
    plan, roster = federation.plan, federation.roster
    stranger = SigningKey().public

    def with_scheme(**changes: Any) -> Any:
        return plan.model_copy(update={"scheme": plan.scheme.model_copy(update=changes)})

    others = [
        plan.model_copy(update={"rounds": 5}),
        plan.model_copy(update={"encoding": plan.encoding.model_copy(update={"bits": 8})}),
        *(with_scheme(name=name) for name in SCHEMES if name != plan.scheme.name),
        with_scheme(open_to="server"),
        with_scheme(server="semi-honest"),
        with_scheme(threshold=1),
        with_scheme(min_cohort=2),
        with_scheme(votes=0),
    ]
    rules = roster.rules
    rosters = [
        replace(roster, sites={name: roster.sites[name] for name in ("bank", VICTIM)}),
        replace(roster, sites={**roster.sites, "lab": stranger}),
        replace(roster, sites={**roster.sites, "bank": stranger}),
        replace(roster, coordinator=stranger),
        replace(roster, demo=False),
        replace(roster, charter=bytes(32)),
        replace(roster, rules=replace(rules, threshold=1)),
        replace(roster, rules=replace(rules, votes=0)),
        replace(roster, rules=replace(rules, min_cohort=2)),
        replace(roster, rules=replace(rules, max_colluding=2)),
    ]
    wrong = [(other.canonical(), roster.encode()) for other in others]
    wrong += [(plan.canonical(), other.encode()) for other in rosters]
    wrong += [(b"", roster.encode()), (plan.canonical(), b"")]
    wrong += [(plan.canonical() + b" ", roster.encode())]
    for plan_bytes, roster_bytes in wrong:
        invite = messages.Invite(b"another session", plan_bytes, roster_bytes)
        assert federation.refused(VICTIM, invite, ZERO) == "context"
    finish_round(federation, uploads)


@each_scheme
def test_a_site_does_not_start_with_a_roster_of_other_quorums(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    for name, value in (("threshold", 1), ("votes", 1), ("min_cohort", 2), ("max_colluding", 2)):
        other = replace(ours.roster, rules=replace(ours.roster.rules, **{name: value}))
        with pytest.raises(ProtocolError, match="quorums are not the plan's") as caught:
            ours.participant(VICTIM, other)
        assert caught.value.code == "context"


# -- replays and order -----------------------------------------------------------------------


@each_scheme
def test_commands_of_one_round_are_refused_in_the_next(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    ours.work(2)
    for one in log:
        if one.method not in ("invite", "finish"):
            expected = "round" if one.method == "prepare" else "context"
            assert ours.refused_bytes(one.site, one.method, one.command) == expected, one.method
    assert ours.states() == before


@each_scheme
def test_commands_of_a_round_are_refused_after_it(federation: Any, scheme: str) -> None:
    """Their context is still in force, for the evaluation; their sum is not."""
    ours = federation(scheme, weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    trained = {name: list(work.trained_rounds) for name, work in ours.works.items()}
    now = ours.binding
    checked = set()
    for one in log:
        binding = ours.opened(one.command)[1]
        if binding == now and one.method != "evaluate":
            assert ours.refused_bytes(one.site, one.method, one.command) == "repeated", one.method
            checked.add(one.method)
        elif one.method in ("prepare", "work"):
            expected = "round" if one.method == "prepare" else "context"
            assert ours.refused_bytes(one.site, one.method, one.command) == expected
    assert checked >= {"fetch", "announce", "quorum", "deliver", "open"}
    assert ours.states() == before
    assert {name: work.trained_rounds for name, work in ours.works.items()} == trained
    ours.coordinator.round(2)


@each_scheme
def test_commands_of_one_session_are_refused_in_another(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    for one in log:
        if one.method != "invite":
            code = ours.refused_bytes(one.site, one.method, one.command)
            assert code == "context" or (code == "repeated" and one.method in OF_A_SUM), one.method
    assert ours.states() == before
    ours.coordinator.round(2)
    assert ours.coordinator.completed_rounds == 2


def test_a_block_asked_for_again_is_the_same_bytes(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    first = federation.blocks(VICTIM, uploads[VICTIM])
    assert federation.blocks(VICTIM, uploads[VICTIM]) == first
    assert digests(first) == tuple(federation.opened(uploads[VICTIM])[3]["block_digests"])
    for index in (-1, len(first), 2**62):
        assert federation.refused(VICTIM, messages.Fetch(index)) == "size"
    shares = federation.send(VICTIM, messages.FetchShares())
    assert federation.send(VICTIM, messages.FetchShares()) == shares


def test_a_second_work_command_gets_no_second_upload(uploaded: tuple[Any, Any]) -> None:
    """Another encryption of the same round would be another upload: refused, under whatever
    keys, and the first stays in force."""
    federation, uploads = uploaded
    before = federation.blocks(VICTIM, uploads[VICTIM])
    first = Binding(federation.coordinator._session.context, 1, "round")
    keys = {name: RunKey(os.urandom(32)).public.to_bytes() for name in federation.names}
    for binding in (federation.binding, first):
        code = "repeated" if binding == federation.binding else "context"
        for round_keys in ({}, keys):
            assert federation.refused(VICTIM, messages.Work(round_keys), binding) == code
    assert federation.refused(VICTIM, messages.Prepare(), first) == "repeated"
    assert federation.blocks(VICTIM, uploads[VICTIM]) == before
    assert federation.works[VICTIM].trained_rounds == [1]
    finish_round(federation, uploads)


def test_round_keys_that_a_site_refuses(begun: Any) -> None:
    """A key replaced, missing, of another round or session, or of no site: no site works on it."""
    old = begun.prepare(1)
    begun.coordinator = begun.another_coordinator()
    begun.coordinator.start()
    keys = begun.prepare(1)

    def forged(site: str, **changes: Any) -> bytes:
        kind, binding, sender, body = begun.opened(keys[site])
        return envelope.seal(kind, binding, sender, body | changes, begun.keys[site].sign)

    lab = SigningKey()
    body = begun.opened(keys["bank"])[3]
    stranger = envelope.seal("round-key", begun.binding, "lab", body, lab.sign)
    own = begun.opened(keys[VICTIM])[3]["key"]
    fresh = RunKey(os.urandom(32)).public
    for changed, code in (
        ({}, "cohort"),
        ({"bank": keys["bank"], VICTIM: keys[VICTIM]}, "cohort"),
        ({**keys, VICTIM: forged(VICTIM, key=fresh.to_bytes())}, "disagree"),
        ({**keys, "bank": forged("bank", key=own)}, "repeated"),
        ({**keys, "bank": forged("bank", key=own[:1184] + fresh.x25519)}, "repeated"),
        ({**keys, "bank": forged("bank", key=fresh.mlkem + own[1184:])}, "repeated"),
        ({**keys, "bank": forged("bank", key=b"\xff" * 1184 + fresh.x25519)}, "malformed"),
        ({**keys, "bank": forged("bank", key=fresh.mlkem + bytes(32))}, "malformed"),
        ({**keys, "bank": forged("bank", key=b"short")}, "size"),
        ({**keys, "bank": forged("bank", model_tag=bytes(32))}, "disagree"),
        ({**keys, "bank": keys["hospital"]}, "signature"),
        ({**keys, "bank": old["bank"]}, "context"),
        ({**keys, "lab": stranger}, "sender"),
    ):
        assert begun.refused(VICTIM, messages.Work(changed)) == code
    assert begun.works[VICTIM].trained_rounds == []
    begun.send(VICTIM, messages.Work(keys))
    assert begun.works[VICTIM].trained_rounds == [1]


def test_a_second_begin(begun: Any) -> None:
    joins = {name: begun.wire.of(name, "invite")[0].reply for name in begun.names}
    setup = begun.opened(joins["bank"])[1]
    assert begun.refused(VICTIM, messages.Begin(joins), setup) == "context"
    assert begun.refused(VICTIM, messages.Begin(joins)) == "context"
    begun.coordinator.round(1)


def invited(federation: Any) -> dict[str, bytes]:
    """Every site's join, by hand."""
    plan, roster = federation.plan.canonical(), federation.roster.encode()
    invite = messages.Invite(b"one session", plan, roster)
    return {name: federation.reply(name, invite, ZERO) for name in federation.names}


@each_scheme
def test_begin_with_other_joins(federation: Any, scheme: str) -> None:
    """A site left out, added, answering twice, or replaced by its own older join."""
    ours = federation(scheme)
    earlier, joins = invited(ours), invited(ours)
    setup = ours.opened(joins["bank"])[1]
    assert setup == ours.opened(earlier["bank"])[1]
    for raw, code in (
        ({**joins, VICTIM: earlier[VICTIM]}, "disagree"),
        ({name: joins[name] for name in ("bank", VICTIM)}, "cohort"),
        ({**joins, "lab": joins["bank"]}, "sender"),
        ({**joins, "bank": joins["hospital"]}, "signature"),
        ({}, "cohort"),
    ):
        assert ours.refused(VICTIM, messages.Begin(raw), setup) == code
    # One that answered twice: the others go on, but to another context than that site.
    mixed = {**joins, "bank": earlier["bank"]}
    ready = ours.send(VICTIM, messages.Begin(mixed), setup)[1]["context"]
    assert ours.refused("bank", messages.Begin(mixed), setup) == "disagree"
    assert ours.send("hospital", messages.Begin(joins), setup)[1]["context"] != ready


def test_begin_without_a_site_that_is_not_needed(federation: Any) -> None:
    """Three of four are enough for a threshold; the fourth does not go on without its own."""
    ours = federation("rlwe", sites=4)
    assert ours.roster.rules == resolve(4, membership="open")
    joins = invited(ours)
    setup = ours.opened(joins["bank"])[1]
    three = {name: joins[name] for name in ("bank", "hospital", "lab")}
    assert ours.refused(VICTIM, messages.Begin(three), setup) == "disagree"
    assert ours.send("bank", messages.Begin(three), setup)[0] == "ready"
    two = {name: joins[name] for name in ("hospital", "lab")}
    assert ours.refused("lab", messages.Begin(two), setup) == "cohort"


@each_scheme
def test_sites_at_different_rounds_do_not_begin(federation: Any, scheme: str) -> None:
    """Neither with an honest coordinator nor with one that goes on regardless."""
    ours = federation(scheme).run(1)
    ours.participants["bank"] = ours.participant("bank", ours.roster)
    with pytest.raises(RoundFailed, match=r"different rounds \(bank 0, clinic 1, hospital 1\)"):
        ours.another_coordinator().start()
    joins = invited(ours)
    setup = ours.opened(joins["bank"])[1]
    for site in ours.names:
        assert ours.refused(site, messages.Begin(joins), setup) == "round"


def codes(federation: Any, site: str, expected: dict[str, str]) -> None:
    """The codes with which `site` refuses the commands of a round that come too early."""
    found = {name: federation.refused(site, COMMANDS[name]) for name in expected}
    assert found == expected


REPEATED = dict.fromkeys(OF_A_SUM, "repeated")


@each_scheme
def test_commands_before_a_session(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    for message, binding in list(all_commands(ours))[1:]:
        if message.kind in ("finish", "evaluate", "may-go-on", "make-key"):
            continue  # these change nothing; make-key: see below
        with pytest.raises(ProtocolError):
            ours.participants["bank"].handle(message.kind, ours.seal(message, binding))
    ours.run(1)


@each_scheme
@pytest.mark.parametrize("joined", [False, True])
def test_make_key_before_begin(federation: Any, scheme: str, joined: bool) -> None:
    ours = federation(scheme)
    binding = ours.opened(invited(ours)["bank"])[1] if joined else ZERO
    with pytest.raises(ProtocolError):
        ours.participants["bank"].handle("make-key", ours.seal(messages.MakeKey(), binding))


@each_scheme
def test_commands_before_the_keys(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    ours.wire.to_site = lambda site, method, data: b"" if method == "make-key" else data
    with pytest.raises(RoundFailed, match=r"make-key: no answer from bank \(size\)"):
        ours.coordinator.start()
    for site in ours.names:
        codes(ours, site, REPEATED)
        first = Binding(ours.binding.context, 1, "round")
        assert ours.refused(site, messages.Prepare(), first) == "scheme"
    assert ours.refused(VICTIM, messages.MakeKey()) == "repeated"  # not the maker
    offer = ours.send("bank", messages.MakeKey())[1]
    assert ours.refused("bank", messages.MakeKey()) == "repeated"
    for site in ("clinic", "hospital"):
        ours.send(site, messages.TakeKey(offer["boxes"][site]))
        again = messages.TakeKey(offer["boxes"][site])
        assert ours.refused(site, again) == "repeated"
    ours.wire.to_site = lambda site, method, data: data
    ours.coordinator.start()
    finish_round(ours, ours.work(1))


def test_a_round_out_of_order(begun: Any) -> None:
    """Each command of a sum at every moment at which it is not its turn."""
    federation = begun
    codes(federation, VICTIM, REPEATED)
    keys = federation.prepare(1)
    codes(federation, VICTIM, {name: "repeated" for name in OF_A_SUM if name != "work"})
    command = messages.Work(keys)
    uploads = {name: federation.reply(name, command) for name in federation.names}
    federation.binding = federation.summing(keys)
    early = ("work", "quorum", "deliver", "open")
    codes(federation, VICTIM, dict.fromkeys(early, "repeated"))
    blocks = summed(federation, uploads, list(federation.names))
    hold(federation, uploads)
    if federation.plan.scheme.name == "rlwe":
        assert federation.refused(VICTIM, messages.Hold(uploads, {})) == "repeated"
    codes(federation, VICTIM, dict.fromkeys(early, "repeated"))

    votes = vote(federation, uploads, blocks)
    announce = messages.Announce(uploads, digests(blocks))
    assert federation.refused(VICTIM, announce) == "repeated"
    assert federation.refused(VICTIM, messages.Quorum({})) == "vote"
    federation.send("bank", messages.Deliver(0, blocks[0]))
    assert federation.refused("bank", messages.Open({}, {})) == "repeated"  # not answered
    answers = answer(federation, votes)
    assert federation.refused(VICTIM, messages.Quorum(votes)) == "repeated"

    command = boxes_for(VICTIM, answers)
    assert federation.refused(VICTIM, command) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(1, blocks[0])) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(-1, blocks[0])) == "repeated"
    federation.send(VICTIM, messages.Deliver(0, blocks[0]))
    assert federation.refused(VICTIM, messages.Deliver(0, blocks[0])) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(1, blocks[0])) == "size"
    assert federation.refused(VICTIM, messages.Install({})) == "repeated"
    before = federation.states()
    receipts = {VICTIM: federation.reply(VICTIM, command)}
    for site in federation.names:
        if site != VICTIM:
            for index, block in enumerate(blocks[site == "bank" :], site == "bank"):
                federation.send(site, messages.Deliver(int(index), block))
            receipts[site] = federation.reply(site, boxes_for(site, answers))
    assert federation.refused(VICTIM, messages.Install({})) == "disagree"
    assert federation.states() == before
    federation.send(VICTIM, messages.Install(receipts))
    assert federation.states()[VICTIM] != before[VICTIM]

    after = federation.states()
    codes(federation, VICTIM, REPEATED)
    for late in (announce, messages.Quorum(votes), messages.Deliver(0, blocks[0]), command):
        assert federation.refused(VICTIM, late) == "repeated"
    assert federation.states() == after


def test_rounds_cannot_be_skipped_or_repeated(begun: Any) -> None:
    context = begun.coordinator._session.context
    for number, phase in ((0, "round"), (2, "round"), (0, "weights"), (1, "weights"), (0, "setup")):
        binding = Binding(context, number, phase)
        assert begun.refused(VICTIM, messages.Prepare(), binding) == "round"
    begun.coordinator.round(1)
    assert begun.refused(VICTIM, messages.Prepare(), Binding(context, 1, "round")) == "round"
    begun.coordinator.round(2)


@each_scheme
def test_no_round_before_the_weights_are_summed(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private")
    ours.wire.to_site = lambda site, method, data: b"" if method == "prepare" else data
    with pytest.raises(RoundFailed, match="prepare: no answer"):
        ours.coordinator.start()
    context = ours.coordinator._session.context
    for site in ours.names:
        first = Binding(context, 1, "round")
        assert ours.refused(site, messages.Prepare(), first) == "round"
        assert ours.send(site, messages.Prepare(), Binding(context, 0, "weights"))


# -- votes -----------------------------------------------------------------------------------


def test_votes_that_are_refused(uploaded: tuple[Any, Any]) -> None:
    """A site answers to enough votes, all for what it voted for itself, of distinct sites."""
    federation, uploads = uploaded
    blocks = summed(federation, uploads, list(federation.names))
    hold(federation, uploads)
    votes = vote(federation, uploads, blocks)
    _, binding, _, body = federation.opened(votes["bank"])

    def signed(site: str, by: Any, **changes: Any) -> bytes:
        return envelope.seal("vote", binding, site, body | changes, by.sign)

    bank, needed = federation.keys["bank"], federation.roster.rules.votes
    too_few = {name: votes[name] for name in list(federation.names)[: needed - 1]}
    lab = SigningKey()
    other = replace(binding, context=bytes(32))
    for wrong, code in (
        ({}, "vote"),
        (too_few, "vote"),
        ({**votes, "bank": signed("bank", bank, contributors=bytes(32))}, "vote"),
        ({**votes, "bank": signed("bank", bank, aggregate=bytes(32))}, "vote"),
        ({**votes, "bank": signed("bank", SigningKey())}, "signature"),
        ({**votes, "bank": signed("bank", federation.server)}, "signature"),
        ({**votes, "bank": votes["hospital"]}, "signature"),
        ({**votes, "lab": signed("lab", lab)}, "sender"),
        ({**votes, "bank": envelope.seal("vote", other, "bank", body, bank.sign)}, "context"),
        ({**votes, "bank": uploads["bank"]}, "kind"),
    ):
        assert federation.refused(VICTIM, messages.Quorum(wrong)) == code
        assert federation.refused(VICTIM, messages.Open({}, {})) == "repeated"
    for site in federation.names:
        federation.send(site, messages.Quorum(votes))


# -- the set and the blocks ------------------------------------------------------------------


def forged_upload(federation: Any, site: str, upload: bytes, **changes: Any) -> bytes:
    """`site`'s upload with other fields, signed by that site: a site that does not play fair."""
    kind, binding, sender, body = federation.opened(upload)
    return envelope.seal(kind, binding, sender, {**body, **changes}, federation.keys[site].sign)


def test_sets_and_uploads_that_are_refused(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    blocks = summed(federation, uploads, list(federation.names))
    good = digests(blocks)
    body = federation.opened(uploads["bank"])[3]
    old = federation.wire.of("bank", "invite")[0].reply
    lab = SigningKey()
    lab_upload = envelope.seal("upload", federation.binding, "lab", body, lab.sign)
    bank = uploads["bank"]

    def own(**changes: Any) -> bytes:
        return forged_upload(federation, VICTIM, uploads[VICTIM], **changes)

    cases: list[tuple[dict[str, bytes], tuple[bytes, ...], str]] = [
        ({k: v for k, v in uploads.items() if k != "hospital"}, good, "cohort"),
        ({k: v for k, v in uploads.items() if k != VICTIM}, good, "cohort"),
        ({VICTIM: uploads[VICTIM]}, good, "cohort"),
        ({}, good, "cohort"),
        ({**uploads, "lab": lab_upload}, good, "sender"),
        ({**uploads, "coordinator": bank}, good, "sender"),
        ({**uploads, "hospital": bank}, good, "signature"),
        ({**uploads, VICTIM: bank}, good, "signature"),
        ({**uploads, "bank": uploads["hospital"], "hospital": bank}, good, "signature"),
        ({**uploads, "bank": old}, good, "kind"),
        ({**uploads, "bank": bank[:-1] + bytes([bank[-1] ^ 1])}, good, "signature"),
        ({**uploads, VICTIM: own(block_digests=[bytes(32)])}, good, "digest"),
        ({**uploads, VICTIM: own(share_digests={"bank": bytes(32)})}, good, "digest"),
        (
            {**uploads, "bank": forged_upload(federation, "bank", bank, layout_tag=bytes(32))},
            good,
            "layout",
        ),
        (
            {**uploads, "bank": forged_upload(federation, "bank", bank, key_id=b"?" * 16)},
            good,
            "scheme",
        ),
        (uploads, (), "size"),
        (uploads, good * 2, "size"),
    ]
    for named, announced, code in cases:
        assert federation.refused(VICTIM, messages.Announce(named, announced)) == code
        if code not in ("size", "cohort"):
            assert federation.refused(VICTIM, messages.Hold(named, {})) == code
        codes(federation, VICTIM, dict.fromkeys(("quorum", "deliver", "open"), "repeated"))
    finish_round(federation, uploads)


def test_a_site_of_the_roster_that_is_not_in_this_sum(federation: Any) -> None:
    """A signed upload of a fourth site, whose key the other three do not have."""
    ours = federation("rlwe", sites=4)
    ours.coordinator.start()
    keys = ours.prepare(1)
    three = {name: keys[name] for name in ("bank", VICTIM, "hospital")}
    command = messages.Work(three)
    uploads = {name: ours.reply(name, command) for name in three}
    assert ours.refused("lab", command) == "disagree"
    ours.binding = ours.summing(three)
    body = ours.opened(uploads["bank"])[3]
    lab = envelope.seal("upload", ours.binding, "lab", body, ours.keys["lab"].sign)
    blocks = digests(summed(ours, uploads, list(three)))
    for command in (
        messages.Announce({**uploads, "lab": lab}, blocks),
        messages.Hold({**uploads, "lab": lab}, {}),
    ):
        assert ours.refused(VICTIM, command) == "not-in-set"
    assert ours.send(VICTIM, messages.Announce(uploads, blocks))[0] == "vote"


def test_uploads_of_another_round_are_refused(begun: Any) -> None:
    begun.coordinator.round(1)
    earlier = {name: begun.wire.of(name, "work")[-1].reply for name in begun.names}
    uploads = begun.work(2)
    blocks = digests(summed(begun, uploads, list(begun.names)))
    mixed = {**uploads, "bank": earlier["bank"]}
    for wrong in (mixed, earlier):
        assert begun.refused(VICTIM, messages.Announce(wrong, blocks)) == "context"
        assert begun.refused(VICTIM, messages.Hold(wrong, {})) == "context"


@each_scheme
def test_blocks_that_were_not_announced(three_blocks: Any, scheme: str) -> None:
    ours = three_blocks(scheme)
    ours.coordinator.start()
    uploads = ours.work(1)
    blocks = summed(ours, uploads, list(ours.names))
    assert len(blocks) == 3
    hold(ours, uploads)
    command = boxes_for(VICTIM, answer(ours, vote(ours, uploads, blocks)))
    own = ours.blocks(VICTIM, uploads[VICTIM])
    changed = blocks[0][:-9] + bytes([blocks[0][-9] ^ 1]) + blocks[0][-8:]
    for wrong in (b"", blocks[1], own[0], changed, blocks[0] + b"\0", blocks[0][:-1]):
        assert ours.refused(VICTIM, messages.Deliver(0, wrong)) == "digest"
    ours.send(VICTIM, messages.Deliver(0, blocks[0]))
    assert ours.refused(VICTIM, messages.Deliver(2, blocks[2])) == "repeated"  # not its turn
    assert ours.refused(VICTIM, messages.Deliver(1, blocks[2])) == "digest"
    assert ours.refused(VICTIM, command) == "repeated"
    ours.send(VICTIM, messages.Deliver(1, blocks[1]))
    assert ours.refused(VICTIM, command) == "repeated"
    ours.send(VICTIM, messages.Deliver(2, blocks[2]))
    assert ours.refused(VICTIM, messages.Deliver(3, blocks[2])) == "size"
    assert ours.send(VICTIM, command)[0] == "receipt"


def test_a_block_that_is_longer_than_a_sums_is_refused(uploaded: tuple[Any, Any]) -> None:
    """Though it was announced and voted for: nothing of that size is kept."""
    federation, uploads = uploaded
    (block,) = summed(federation, uploads, list(federation.names))
    # The length is known to the byte, but for what a compressor makes of a ckks ciphertext.
    more = len(block) // 3 if federation.plan.scheme.name == "ckks" else 1
    longer = [block + bytes(more)]
    hold(federation, uploads)
    answers = answer(federation, vote(federation, uploads, longer))
    for site in federation.names:
        assert federation.refused(site, messages.Deliver(0, longer[0])) == "size"
        assert federation.refused(site, boxes_for(site, answers)) == "repeated"


def false_sum(federation: Any, blocks: list[bytes]) -> list[bytes]:
    """What has the form of a sum, and is none: under another key, of another weight, or zeros."""
    if federation.plan.scheme.name == "ckks":
        return list(run_keys.make(scheme_of(federation.plan)).scheme.encrypt(np.zeros(551)))
    if federation.plan.scheme.name == "plain":
        return [blocks[0][:-4] + np.array([0.5], "<f4").tobytes()]
    return [bytes(len(blocks[0]))]


CODE = {"plain": "weight", "ckks": "crypto", "rlwe": "residual"}


def test_a_false_sum_is_not_opened_and_ends_the_round(uploaded: tuple[Any, Any]) -> None:
    """One try: a coordinator that may ask again and again learns one bit of the key each time."""
    federation, uploads = uploaded
    before = federation.states()
    blocks = summed(federation, uploads, list(federation.names))
    wrong = false_sum(federation, blocks)
    for site, command in delivered(federation, uploads, wrong).items():
        with pytest.raises(CryptoError) as caught:
            federation.send(site, command)
        assert caught.value.code == CODE[federation.plan.scheme.name]
        for message in (
            messages.Announce(uploads, digests(blocks)),
            messages.Deliver(0, blocks[0]),
            command,
            messages.Work({}),
            messages.Fetch(0),
            messages.FetchShares(),
        ):
            assert federation.refused(site, message) == "repeated"
        assert federation.participants[site]._sum is None  # nor are its keys kept
        assert federation.participants[site].completed_rounds == 0
    assert federation.states() == before
    # In another session, with other keys, the same sites can do the round again.
    federation.coordinator.start()
    finish_round(federation, federation.work(1))


# -- what one malicious coordinator can do ---------------------------------------------------


def lone(federation: Any, victim: str, times: int = 1) -> dict[str, str]:
    """Announce every upload, deliver the victim's ciphertext (added up `times` times) as the
    sum, and ask every site to open it. Site -> 'installed', or why not."""
    federation.coordinator.start()
    uploads = federation.work(1)
    blocks = summed(federation, uploads, [victim] * times)
    found, receipts = {}, {}
    before = federation.states()
    for site, command in delivered(federation, uploads, blocks).items():
        try:
            receipts[site] = federation.reply(site, command)
        except CryptoError as error:
            found[site] = error.code
    for site in receipts:
        federation.send(site, messages.Install(receipts))
        found[site] = "installed"
    for site, state in federation.states().items():
        assert (found[site] == "installed") == (state != before[site])
    return found


class TestKnownLimit:
    """Scheme ckks is for a coordinator that follows the protocol: every site holds the one key,
    and nothing in a ciphertext says whose it is. The announced uploads must be the whole
    roster's, and all sites must vote for them, but the blocks can be one site's. What stands
    against it is only the weight that travels inside, and that is a sanity check (SECURITY.md):
    these tests say how far it reaches.
    """

    def test_refused_when_the_weight_is_below_a_quarter(self, federation: Any) -> None:
        ours = federation("ckks", sites=5)
        assert lone(ours, VICTIM) == dict.fromkeys(ours.names, "weight")

    def test_refused_when_the_weight_is_a_third_or_more_than_half(self, federation: Any) -> None:
        ours = federation("ckks")
        assert lone(ours, VICTIM) == dict.fromkeys(ours.names, "weight")
        ours = federation("ckks", weights="private")
        ours.works[VICTIM].num_examples = 2000
        assert lone(ours, VICTIM) == dict.fromkeys(ours.names, "weight")

    @pytest.mark.parametrize("exchange", ["parameters", "delta"])
    def test_one_sites_ciphertext_added_to_itself_is_installed(
        self, federation: Any, exchange: str
    ) -> None:
        """No bound on the total can prevent this: with equal weights, K times one site's
        ciphertext has a total weight of one. All sites install that site's own update."""
        ours = federation("ckks", sites=5, adapter={"exchange": exchange})
        before = ours.state()
        assert lone(ours, VICTIM, times=5) == dict.fromkeys(ours.names, "installed")
        np.testing.assert_allclose(ours.state().values, ours.trained(VICTIM, before, 1), atol=5e-6)

    def test_more_than_the_whole_is_refused(self, federation: Any) -> None:
        ours = federation("ckks", sites=5)
        assert lone(ours, VICTIM, times=6) == dict.fromkeys(ours.names, "weight")


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_one_sites_ciphertext_is_never_opened_under_rlwe(federation: Any, times: int) -> None:
    """The same attack: what the sites can open is only the sum under the sum of all keys."""
    ours = federation("rlwe", sites=5)
    assert lone(ours, VICTIM, times) == dict.fromkeys(ours.names, "residual")


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
    short = replace(run_keys.make(scheme_of(federation.plan)), group_key=bytes(31))
    with pytest.raises((ProtocolError, CryptoError)):
        federation.send(VICTIM, messages.TakeKey(rebox(federation, VICTIM, "bank", keys=short)))
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


# -- two coordinators, two sessions, two rosters ---------------------------------------------


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


@each_scheme
def test_a_roster_of_others(federation: Any, scheme: str) -> None:
    """A participant whose own roster is another one refuses the invite."""
    ours = federation(scheme)
    sites = {**ours.roster.sites, "bank": SigningKey().public}
    ours.participants[VICTIM] = ours.participant(VICTIM, replace(ours.roster, sites=sites))
    with pytest.raises(RoundFailed, match=r"invite: no answer from clinic \(context\)"):
        ours.coordinator.start()
