"""Commands that a site must refuse, whoever made them, and what is left standing afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedshield.crypto.adders import CkksAdder
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.scheme import CKKS
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol import envelope, messages, run_keys
from fedshield.protocol.envelope import Binding
from fedshield.protocol.roster import COORDINATOR, Roster

ZEROS = np.zeros(551)
ZERO = Binding(bytes(32), 0, "setup")
VICTIM = "clinic"


def digests(blocks: list[bytes]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(block).digest() for block in blocks)


def summed(federation: Any, uploads: dict[str, bytes], sites: list[str]) -> list[bytes]:
    """The blocks of the sum over `sites`, each as often as it is named."""
    scheme = federation.participants["bank"]._keys.scheme
    adding = CkksAdder(scheme.parameters, scheme.public)
    columns = zip(*(federation.blocks(site, uploads[site]) for site in sites), strict=True)
    blocks = []
    for column in columns:
        total: object | None = None
        for block in column:
            total = adding.add(total, block)
        blocks.append(adding.result(total))
    return blocks


def deliver(federation: Any, site: str, uploads: dict[str, bytes], blocks: list[bytes]) -> None:
    federation.send(site, messages.Announce(uploads, digests(blocks)))
    for index, block in enumerate(blocks):
        federation.send(site, messages.Deliver(index, block))


def finish_round(federation: Any, uploads: dict[str, bytes]) -> None:
    """The rest of an honest round, to show that the session is alive and right."""
    before = federation.state()
    blocks = summed(federation, uploads, list(federation.names))
    for site in federation.names:
        deliver(federation, site, uploads, blocks)
        federation.send(site, messages.Open())
    contributions = [federation.trained(name, before, 1) for name in federation.names]
    np.testing.assert_allclose(federation.state().values, np.mean(contributions, axis=0), atol=2e-6)


@pytest.fixture
def begun(federation: Any) -> Any:
    """Three sites, ckks, equal weights, after `start`."""
    ours = federation("ckks")
    ours.coordinator.start()
    return ours


@pytest.fixture
def uploaded(begun: Any) -> tuple[Any, dict[str, bytes]]:
    """The same, with every site's upload of round 1."""
    return begun, begun.work(1)


# -- who speaks, and to whom -----------------------------------------------------------------


def all_commands(federation: Any) -> Iterator[tuple[messages.Message, Binding]]:
    """One of each command, as it would be right at some moment of the session."""
    now = federation.coordinator._binding
    invite = messages.Invite(b"session", federation.plan.canonical(), federation.roster.encode())
    yield invite, ZERO
    for message in (
        messages.Begin({}),
        messages.MakeKey(),
        messages.TakeKey(b""),
        messages.Work({}),
        messages.Fetch(0),
        messages.Announce({}, ()),
        messages.Deliver(0, b""),
        messages.Open(),
        messages.Evaluate(),
        messages.Finish({}),
    ):
        yield message, now


def test_only_the_rosters_coordinator_is_listened_to(uploaded: tuple[Any, Any]) -> None:
    """Every command signed by a stranger, by another site or by nobody, and under another name:
    refused, and the session that is under way goes on to the right sum."""
    federation, uploads = uploaded
    stranger = SigningKey()
    checked = 0
    for message, binding in all_commands(federation):
        kind, body = message.kind, message.to_body()
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
    assert checked == 3 * 11
    finish_round(federation, uploads)


def test_an_unknown_command(begun: Any) -> None:
    for method in ("", "shutdown", "_forget", "join", "Open"):
        data = begun.seal(messages.Open())
        assert begun.refused_bytes(VICTIM, method, data) == "kind"


def test_a_command_under_another_commands_name(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    data = federation.seal(messages.Finish({}))
    for method in ("work", "fetch", "open", "evaluate", "announce", "deliver"):
        assert federation.refused_bytes(VICTIM, method, data) == "kind"
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
    others = [
        plan.model_copy(update={"rounds": 5}),
        plan.model_copy(update={"scheme": plan.scheme.model_copy(update={"name": "plain"})}),
    ]
    rosters = [
        replace(roster, sites={name: roster.sites[name] for name in ("bank", VICTIM)}),
        replace(roster, sites={**roster.sites, "lab": stranger}),
        replace(roster, sites={**roster.sites, "bank": stranger}),
        replace(roster, coordinator=stranger),
        replace(roster, demo=False),
    ]
    wrong = [(other.canonical(), roster.encode()) for other in others]
    wrong += [(plan.canonical(), other.encode()) for other in rosters]
    wrong += [(b"", roster.encode()), (plan.canonical(), b"")]
    wrong += [(plan.canonical() + b" ", roster.encode())]
    for plan_bytes, roster_bytes in wrong:
        invite = messages.Invite(b"another session", plan_bytes, roster_bytes)
        assert federation.refused(VICTIM, invite, ZERO) == "context"
    finish_round(federation, uploads)


# -- replays and order -----------------------------------------------------------------------


def test_commands_of_one_round_are_refused_in_the_next(federation: Any) -> None:
    ours = federation("ckks", weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    ours.work(2)
    for one in log:
        if one.method in ("invite", "finish"):
            continue
        expected = {"begin": "context"}.get(one.method, "round")
        assert ours.refused_bytes(one.site, one.method, one.command) == expected, one.method
    assert ours.states() == before


def test_commands_of_one_session_are_refused_in_another(federation: Any) -> None:
    ours = federation("ckks", weights="private").run(1)
    before, log = ours.states(), list(ours.wire.log)
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    for one in log:
        if one.method != "invite":
            assert ours.refused_bytes(one.site, one.method, one.command) == "context", one.method
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


def test_a_second_work_command_gets_no_second_upload(uploaded: tuple[Any, Any]) -> None:
    """Another encryption of the same round would be another upload: refused by the journal, and
    the first stays in force."""
    federation, uploads = uploaded
    before = federation.blocks(VICTIM, uploads[VICTIM])
    assert federation.refused(VICTIM, messages.Work({})) == "repeated"
    assert federation.blocks(VICTIM, uploads[VICTIM]) == before
    finish_round(federation, uploads)


def test_a_second_begin(begun: Any) -> None:
    joins = {name: begun.wire.of(name, "invite")[0].reply for name in begun.names}
    setup = begun.opened(joins["bank"])[1]
    assert begun.refused(VICTIM, messages.Begin(joins), setup) == "context"
    assert begun.refused(VICTIM, messages.Begin(joins)) == "context"
    begun.coordinator.round(1)


def test_begin_with_other_joins(federation: Any) -> None:
    """A site left out, added, answering twice, or replaced by its own older join."""
    ours = federation("ckks")
    plan, roster = ours.plan.canonical(), ours.roster.encode()
    invite = messages.Invite(b"one session", plan, roster)
    earlier = {
        name: ours.participants[name].handle("invite", ours.seal(invite, ZERO))
        for name in ours.names
    }
    joins = {
        name: ours.participants[name].handle("invite", ours.seal(invite, ZERO))
        for name in ours.names
    }
    setup = ours.opened(joins["bank"])[1]
    assert setup == ours.opened(earlier["bank"])[1]
    for raw, code in (
        ({**joins, VICTIM: earlier[VICTIM]}, "disagree"),
        ({name: joins[name] for name in ("bank", VICTIM)}, "not-in-set"),
        ({**joins, "lab": joins["bank"]}, "not-in-set"),
        ({**joins, "bank": joins["hospital"]}, "signature"),
        ({}, "not-in-set"),
    ):
        assert ours.refused(VICTIM, messages.Begin(raw), setup) == code
    # One that answered twice: the others go on, but to another context than that site.
    mixed = {**joins, "bank": earlier["bank"]}
    ready = ours.send(VICTIM, messages.Begin(mixed), setup)[1]["context"]
    assert ours.refused("bank", messages.Begin(mixed), setup) == "disagree"
    assert ours.send("hospital", messages.Begin(joins), setup)[1]["context"] != ready


def test_sites_at_different_rounds_do_not_begin(federation: Any) -> None:
    ours = federation("ckks").run(1)
    behind = ours.participant("bank", ours.roster)
    ours.wire.participants = ours.participants = {**ours.participants, "bank": behind}
    fresh = ours.another_coordinator()
    with pytest.raises(RoundFailed, match=r"clinic \(round\), hospital \(round\)"):
        fresh.start()


ROUND_COMMANDS = {
    "work": messages.Work({}),
    "fetch": messages.Fetch(0),
    "announce": messages.Announce({}, ()),
    "deliver": messages.Deliver(0, b""),
    "open": messages.Open(),
}


def codes(federation: Any, site: str, expected: dict[str, str]) -> None:
    """The codes with which `site` refuses the commands of a round that come too early."""
    messages_of = {**ROUND_COMMANDS}
    found = {name: federation.refused(site, messages_of[name]) for name in expected}
    assert found == expected


def test_commands_before_a_session(federation: Any) -> None:
    ours = federation("ckks")
    for message, binding in list(all_commands(ours))[1:]:
        if message.kind in ("finish", "evaluate", "make-key"):
            continue  # finish and evaluate change nothing; make-key: see below
        with pytest.raises(ProtocolError):
            ours.participants["bank"].handle(message.kind, ours.seal(message, binding))
    ours.run(1)


@pytest.mark.parametrize("invited", [False, True])
def test_make_key_before_begin(federation: Any, invited: bool) -> None:
    ours = federation("ckks")
    binding = ZERO
    if invited:
        invite = messages.Invite(b"session", ours.plan.canonical(), ours.roster.encode())
        join = ours.participants["bank"].handle("invite", ours.seal(invite, ZERO))
        binding = ours.opened(join)[1]
    with pytest.raises(ProtocolError):
        ours.participants["bank"].handle("make-key", ours.seal(messages.MakeKey(), binding))


def test_commands_before_the_keys(federation: Any) -> None:
    ours = federation("ckks")
    ours.wire.to_site = lambda site, method, data: b"" if method == "make-key" else data
    with pytest.raises(RoundFailed, match=r"make-key: no answer from bank \(size\)"):
        ours.coordinator.start()
    early = dict.fromkeys(ROUND_COMMANDS, "repeated") | {"work": "scheme", "open": "scheme"}
    for site in ours.names:
        codes(ours, site, early)
    assert ours.refused(VICTIM, messages.MakeKey()) == "repeated"  # not the maker
    offer = ours.send("bank", messages.MakeKey())[1]
    assert ours.refused("bank", messages.MakeKey()) == "repeated"
    for site in ("clinic", "hospital"):
        ours.send(site, messages.TakeKey(offer["boxes"][site]))
        again = messages.TakeKey(offer["boxes"][site])
        assert ours.refused(site, again) == "repeated"
    finish_round(ours, ours.work(1))


def test_a_round_out_of_order(begun: Any) -> None:
    federation = begun
    nothing_yet = dict.fromkeys(("fetch", "announce", "deliver", "open"), "repeated")
    codes(federation, VICTIM, nothing_yet)
    uploads = federation.work(1)
    codes(federation, VICTIM, {"deliver": "repeated", "open": "repeated"})
    blocks = summed(federation, uploads, list(federation.names))
    federation.send(VICTIM, messages.Announce(uploads, digests(blocks)))
    assert federation.refused(VICTIM, messages.Open()) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(1, blocks[0])) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(-1, blocks[0])) == "repeated"
    federation.send(VICTIM, messages.Deliver(0, blocks[0]))
    assert federation.refused(VICTIM, messages.Deliver(0, blocks[0])) == "repeated"
    assert federation.refused(VICTIM, messages.Deliver(1, blocks[0])) == "size"
    before = federation.states()
    federation.send(VICTIM, messages.Open())
    assert federation.states()[VICTIM] != before[VICTIM]
    after = federation.states()
    codes(federation, VICTIM, dict.fromkeys(("fetch", "announce", "deliver", "open"), "repeated"))
    assert federation.refused(VICTIM, messages.Announce(uploads, digests(blocks))) == "repeated"
    assert federation.states() == after


def test_rounds_cannot_be_skipped_or_repeated(begun: Any) -> None:
    context = begun.coordinator._binding.context
    for number, phase in ((0, "round"), (2, "round"), (0, "weights"), (1, "weights"), (0, "setup")):
        binding = Binding(context, number, phase)
        assert begun.refused(VICTIM, messages.Work({}), binding) == "round"
    begun.coordinator.round(1)
    assert begun.refused(VICTIM, messages.Work({}), Binding(context, 1, "round")) == "round"
    begun.coordinator.round(2)


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
    lab_upload = envelope.seal("upload", federation.coordinator._binding, "lab", body, lab.sign)
    bank = uploads["bank"]
    own_other = forged_upload(federation, VICTIM, uploads[VICTIM], block_digests=[bytes(32)])
    cases: list[tuple[dict[str, bytes], tuple[bytes, ...], str]] = [
        ({k: v for k, v in uploads.items() if k != "hospital"}, good, "not-in-set"),
        ({k: v for k, v in uploads.items() if k != VICTIM}, good, "not-in-set"),
        ({VICTIM: uploads[VICTIM]}, good, "not-in-set"),
        ({}, good, "not-in-set"),
        ({**uploads, "lab": lab_upload}, good, "sender"),
        ({**uploads, "coordinator": bank}, good, "signature"),
        ({**uploads, "hospital": bank}, good, "signature"),
        ({**uploads, VICTIM: bank}, good, "signature"),
        ({**uploads, "bank": uploads["hospital"], "hospital": bank}, good, "signature"),
        ({**uploads, "bank": old}, good, "kind"),
        ({**uploads, "bank": bank[:-1] + bytes([bank[-1] ^ 1])}, good, "signature"),
        ({**uploads, VICTIM: own_other}, good, "digest"),
        (
            {**uploads, "bank": forged_upload(federation, "bank", bank, layout_tag=bytes(32))},
            good,
            "layout",
        ),
        (
            {**uploads, "bank": forged_upload(federation, "bank", bank, key_id=bytes(16))},
            good,
            "scheme",
        ),
        (uploads, (), "size"),
        (uploads, good * 2, "size"),
    ]
    for named, announced, code in cases:
        assert federation.refused(VICTIM, messages.Announce(named, announced)) == code
        codes(federation, VICTIM, {"deliver": "repeated", "open": "repeated"})
    finish_round(federation, uploads)


def test_uploads_of_another_round_are_refused(begun: Any) -> None:
    begun.coordinator.round(1)
    earlier = {name: begun.wire.of(name, "work")[-1].reply for name in begun.names}
    uploads = begun.work(2)
    blocks = digests(summed(begun, uploads, list(begun.names)))
    mixed = {**uploads, "bank": earlier["bank"]}
    assert begun.refused(VICTIM, messages.Announce(mixed, blocks)) == "round"
    assert begun.refused(VICTIM, messages.Announce(earlier, blocks)) == "round"


def test_blocks_that_were_not_announced(three_blocks: Any) -> None:
    ours = three_blocks("ckks")
    ours.coordinator.start()
    uploads = ours.work(1)
    blocks = summed(ours, uploads, list(ours.names))
    assert len(blocks) == 3
    ours.send(VICTIM, messages.Announce(uploads, digests(blocks)))
    own = ours.blocks(VICTIM, uploads[VICTIM])
    changed = blocks[0][:-9] + bytes([blocks[0][-9] ^ 1]) + blocks[0][-8:]
    for wrong in (b"", blocks[1], own[0], changed, blocks[0] + b"\0", blocks[0][:-1]):
        assert ours.refused(VICTIM, messages.Deliver(0, wrong)) == "digest"
    ours.send(VICTIM, messages.Deliver(0, blocks[0]))
    assert ours.refused(VICTIM, messages.Deliver(2, blocks[2])) == "repeated"  # not its turn
    assert ours.refused(VICTIM, messages.Deliver(1, blocks[2])) == "digest"
    assert ours.refused(VICTIM, messages.Open()) == "repeated"
    ours.send(VICTIM, messages.Deliver(1, blocks[1]))
    assert ours.refused(VICTIM, messages.Open()) == "repeated"
    ours.send(VICTIM, messages.Deliver(2, blocks[2]))
    assert ours.refused(VICTIM, messages.Deliver(3, blocks[2])) == "size"
    ours.send(VICTIM, messages.Open())
    assert ours.participants[VICTIM].completed_rounds == 1


def test_a_sum_under_another_key_is_not_opened(uploaded: tuple[Any, Any]) -> None:
    federation, uploads = uploaded
    before = federation.states()
    other = run_keys.make(federation.plan).scheme
    blocks = list(other.encrypt(ZEROS))
    deliver(federation, VICTIM, uploads, blocks)
    with pytest.raises(CryptoError):
        federation.send(VICTIM, messages.Open())
    assert federation.states() == before


def test_a_sum_that_did_not_open_ends_the_round(uploaded: tuple[Any, Any]) -> None:
    """One try: a coordinator that may ask again and again learns one bit of the key each time."""
    federation, uploads = uploaded
    blocks = summed(federation, uploads, list(federation.names))
    deliver(federation, VICTIM, uploads, list(run_keys.make(federation.plan).scheme.encrypt(ZEROS)))
    with pytest.raises(CryptoError):
        federation.send(VICTIM, messages.Open())
    for message in (
        messages.Announce(uploads, digests(blocks)),
        messages.Deliver(0, blocks[0]),
        messages.Open(),
        messages.Fetch(0),
        messages.Work({}),
    ):
        assert federation.refused(VICTIM, message) == "repeated"
    assert federation.participants[VICTIM].completed_rounds == 0


# -- what one malicious coordinator can do under ckks ----------------------------------------


def lone(federation: Any, victim: str, times: int = 1) -> dict[str, bool]:
    """Announce every upload, deliver the victim's ciphertext (added up `times` times) as the
    sum, and ask every site to open it. Site -> whether it installed what came out."""
    federation.coordinator.start()
    uploads = federation.work(1)
    blocks = summed(federation, uploads, [victim] * times)
    installed = {}
    for site in federation.names:
        deliver(federation, site, uploads, blocks)
        before = federation.states()[site]
        try:
            federation.send(site, messages.Open())
        except CryptoError as error:
            installed[site] = "total weight" not in str(error)
        else:
            installed[site] = True
        assert installed[site] == (federation.states()[site] != before)
    return installed


class TestKnownLimit:
    """Scheme ckks is for a coordinator that follows the protocol: every site holds the one key,
    and nothing in a ciphertext says whose it is. The announced uploads must be the whole
    roster's, but the blocks can be one site's. What stands against it is only the weight that
    travels inside, and that is a sanity check (SECURITY.md): these tests say how far it reaches.
    """

    def test_refused_when_the_weight_is_below_a_quarter(self, federation: Any) -> None:
        ours = federation("ckks", sites=5)
        assert lone(ours, VICTIM) == dict.fromkeys(ours.names, False)

    def test_refused_when_the_weight_is_a_third_or_more_than_half(self, federation: Any) -> None:
        ours = federation("ckks")
        assert lone(ours, VICTIM) == dict.fromkeys(ours.names, False)
        ours = federation("ckks", weights="private")
        ours.works[VICTIM].num_examples = 2000
        assert lone(ours, VICTIM) == dict.fromkeys(ours.names, False)

    def test_one_sites_ciphertext_added_to_itself_is_installed(self, federation: Any) -> None:
        """No bound on the total can prevent this: with equal weights, K times one site's
        ciphertext has a total weight of one. All sites install that site's own update."""
        ours = federation("ckks", sites=5)
        before = ours.state()
        assert lone(ours, VICTIM, times=5) == dict.fromkeys(ours.names, True)
        np.testing.assert_allclose(ours.state().values, ours.trained(VICTIM, before, 1), atol=5e-6)

    def test_more_than_the_whole_is_refused(self, federation: Any) -> None:
        ours = federation("ckks", sites=5)
        assert lone(ours, VICTIM, times=6) == dict.fromkeys(ours.names, False)


# -- the key boxes ---------------------------------------------------------------------------


@pytest.fixture
def keyless(federation: Any) -> tuple[Any, dict[str, bytes]]:
    """A session in which the bank has made the keys and no other site has taken them; the
    boxes."""
    ours = federation("ckks")
    ours.wire.to_site = lambda site, method, data: b"" if method == "take-key" else data
    with pytest.raises(RoundFailed, match="take-key"):
        ours.coordinator.start()
    return ours, ours.opened(ours.wire.of("bank", "make-key")[0].reply)[3]["boxes"]


def rebox(federation: Any, to: str, signer: str, **changes: Any) -> bytes:
    """A key box for the site `to` as `signer` would make it, with other fields in `changes`."""
    participants = federation.participants
    keys = changes.pop("keys", None) or run_keys.make(federation.plan)
    peers = {name: one._run_key.public for name, one in participants.items()}
    binding = changes.pop("binding", None) or participants[to]._binding
    run_key = changes.pop("run_key", None) or participants[signer]._run_key
    sign = federation.keys[signer].sign
    offer = run_keys.offer(keys, federation.roster, run_key, peers, binding, sign)
    if not changes:
        return offer.boxes[to]
    _, _, sender, body = federation.opened(offer.boxes[to])
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
        (rebox(federation, VICTIM, "bank", key_id=bytes(16)), "disagree"),
        (federation.wire.of("bank", "invite")[0].reply, "kind"),
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
    stranger = rebox(federation, VICTIM, "bank", run_key=RunKey())
    with pytest.raises(CryptoError, match="does not open"):
        federation.send(VICTIM, messages.TakeKey(stranger))
    for site in (VICTIM, "hospital"):
        assert federation.participants[site]._keys is None
        federation.send(site, messages.TakeKey(boxes[site]))
    finish_round(federation, federation.work(1))


def test_a_key_of_another_set_is_refused(keyless: tuple[Any, dict[str, bytes]]) -> None:
    federation, _ = keyless
    plan = federation.plan
    weaker = plan.model_copy(
        update={"scheme": plan.scheme.model_copy(update={"parameters": "paper"})}
    )
    box = rebox(federation, VICTIM, "bank", keys=run_keys.make(weaker))
    with pytest.raises(CryptoError, match="of lean"):
        federation.send(VICTIM, messages.TakeKey(box))
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


def test_no_second_set_is_opened_from_one_model(federation: Any) -> None:
    """After a sum over three, the same site is asked in a run with two of them, from the model
    that it had before: the difference would be the third site's update."""
    ours = federation("ckks", sites=2)
    three = replace(ours.roster, sites={**ours.roster.sites, "lab": SigningKey().public})
    for name in ours.names:  # what a run over three sites has left in the journals
        base = f"round {ours.state().sha256()}"
        ours.participants[name]._journal.open(base, list(three.names()))
    before = ours.states()
    ours.coordinator.start()
    with pytest.raises(RoundFailed, match=r"announce: no answer from bank \(repeated\)"):
        ours.coordinator.round(1)
    assert ours.states() == before


def test_the_journal_holds_for_a_new_participant(begun: Any) -> None:
    """A site restarted from its files within the same session's context: no second upload."""
    begun.work(1)
    binding = begun.participants[VICTIM]._binding
    restarted = begun.participant(VICTIM, begun.roster)
    with pytest.raises(ProtocolError) as caught:
        restarted._journal.upload(binding.context, 1, "round", bytes(32))
    assert caught.value.code == "repeated"


def test_a_roster_of_others(federation: Any) -> None:
    """A participant whose own roster is another one refuses the invite."""
    ours = federation("ckks")
    other = Roster({**ours.roster.sites, "bank": SigningKey().public}, ours.server.public, True)
    ours.participants[VICTIM] = ours.participant(VICTIM, other)
    with pytest.raises(RoundFailed, match=r"invite: no answer from clinic \(context\)"):
        ours.coordinator.start()
