"""Sites that fail or lie, and sums that differ: the round fails, and the model before it stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedshield.crypto.adders import PlainAdder
from fedshield.crypto.keys import SigningKey
from fedshield.errors import RoundFailed
from fedshield.protocol.wire import envelope, messages

BAD = "clinic"
SCHEMES = pytest.mark.parametrize("scheme", ["plain", "ckks", "rlwe"])
#: Half a step of the grid, or float32, for the first two; three sites' steps and what they carry
#: over for rlwe.
NEAR = {"plain": 2e-6, "ckks": 2e-6, "rlwe": 1e-3}


def goes_on(federation: Any, round_number: int) -> None:
    """A new session from the same participants does the round that failed, rightly."""
    for work in federation.works.values():
        work.fault = None
    federation.wire.to_site = federation.wire.to_coordinator = lambda site, name, data: data
    before = federation.state()
    fresh = federation.coordinator = federation.another_coordinator()
    fresh.start()
    assert fresh.completed_rounds == round_number - 1
    fresh.round(round_number)
    assert fresh.lost == {}
    trained = [federation.trained(name, before, round_number) for name in federation.names]
    near = NEAR[federation.plan.scheme.name]
    np.testing.assert_allclose(federation.state().values, np.mean(trained, axis=0), atol=near)


def unreachable(federation: Any, site: str, method: str) -> None:
    """From now on this message does not reach this site."""

    def to_site(name: str, kind: str, data: bytes) -> bytes:
        return b"" if (name, kind) == (site, method) else data

    federation.wire.to_site = to_site


# -- with the whole roster needed, any loss ends the round ------------------------------------


@SCHEMES
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (RoundFailed("out of memory"), "training"),
        (ValueError("patient 4711 has a bad row"), "internal"),
        (np.full(550, np.nan), "crypto"),
        (np.full(550, np.inf), "crypto"),
    ],
    ids=["RoundFailed", "ValueError", "NaN", "infinity"],
)
def test_a_site_that_fails_in_training(federation: Any, scheme: str, fault: Any, code: str) -> None:
    """Its code crosses, its text does not; every site keeps its state; a new session goes on."""
    ours = federation(scheme).run(1)
    before = ours.states()
    memories = {name: one.memory for name, one in ours.participants.items()}
    ours.works[BAD].fault = fault
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(2)
    assert str(caught.value) == (
        f"work: no answer from clinic ({code}); the model of the last round is kept"
    )
    assert ours.coordinator.lost == {BAD: f"work: {code}"}
    assert ours.states() == before
    assert {one.completed_rounds for one in ours.participants.values()} == {1}
    assert all(set(store.saved) == {1} for store in ours.stores.values())
    assert all(one.memory is memories[name] for name, one in ours.participants.items())
    goes_on(ours, 2)


def test_a_training_loss_that_is_no_number_is_refused(federation: Any) -> None:
    """It would travel in the sum, and spoil every site's."""
    ours = federation("rlwe").run(1)
    real = ours.works[BAD].train
    ours.works[BAD].train = lambda state, number: (real(state, number)[0], float("nan"))
    with pytest.raises(RoundFailed, match=r"work: no answer from clinic \(crypto\)"):
        ours.coordinator.round(2)
    ours.works[BAD].train = real
    goes_on(ours, 2)


SET_UP = ["invite", "begin", "make-key", "take-key", "prepare", "work"]


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        *((scheme, method) for scheme in ("plain", "ckks", "rlwe") for method in SET_UP),
        *((scheme, "fetch") for scheme in ("plain", "ckks")),
        *((scheme, "evaluate") for scheme in ("plain", "ckks")),
        *((scheme, method) for scheme in ("plain", "ckks") for method in ("announce", "quorum")),
        *((scheme, method) for scheme in ("plain", "ckks") for method in ("deliver", "open")),
        ("rlwe", "fetch-shares"),
    ],
)
def test_a_site_that_is_gone_during_set_up(federation: Any, scheme: str, method: str) -> None:
    """Weights are summed in it, so a set-up has every message that a round has; but for blocks
    under rlwe, where counts travel in shares alone."""
    ours = federation(scheme, weights="private")
    before = ours.states()
    gone = "bank" if method == "make-key" else BAD
    unreachable(ours, gone, method)
    with pytest.raises(RoundFailed, match=f"{method}: no answer from {gone} .size."):
        ours.coordinator.start()
    assert ours.states() == before
    ours.wire.to_site = lambda site, name, data: data
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    ours.coordinator.round(1)
    ours.state()
    assert ours.coordinator.lost == {}


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        *((scheme, "prepare") for scheme in ("plain", "ckks", "rlwe")),
        *((scheme, "work") for scheme in ("plain", "ckks", "rlwe")),
        *((scheme, "fetch") for scheme in ("plain", "ckks", "rlwe")),
        *((scheme, method) for scheme in ("plain", "ckks") for method in ("announce", "quorum")),
        *((scheme, "deliver") for scheme in ("plain", "ckks")),
        ("rlwe", "fetch-shares"),
    ],
)
def test_a_site_that_is_gone_during_a_round(federation: Any, scheme: str, method: str) -> None:
    ours = federation(scheme).run(1)
    before = ours.states()
    unreachable(ours, BAD, method)
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(2)
    assert str(caught.value) == (
        f"{method}: no answer from clinic (size); the model of the last round is kept"
    )
    assert ours.states() == before
    goes_on(ours, 2)


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_a_site_that_is_gone_when_the_sum_is_opened(federation: Any, scheme: str) -> None:
    """Of three sites all must have opened it: no site takes the sum, and the next session repeats
    it with the same numbers."""
    ours = federation(scheme).run(1)
    before = ours.states()
    unreachable(ours, BAD, "open")
    with pytest.raises(RoundFailed, match="open: no answer from clinic"):
        ours.coordinator.round(2)
    assert ours.states() == before
    sent = {name: ours.stores[name].contribution for name in ours.names}
    goes_on(ours, 2)
    assert {name: ours.stores[name].contribution for name in ours.names} == sent


@SCHEMES
def test_a_site_that_is_gone_when_the_sum_is_taken(federation: Any, scheme: str) -> None:
    """The others have taken it: they stand a round further, and the next session says so. The
    engine then takes all back to the last round that every site has kept."""
    ours = federation(scheme).run(1)
    before = ours.states()
    unreachable(ours, BAD, "install")
    if scheme == "rlwe":
        assert set(ours.coordinator.round(2).lost) == {BAD}
    else:
        with pytest.raises(RoundFailed, match="install: no answer from clinic"):
            ours.coordinator.round(2)
    assert ours.states()[BAD] == before[BAD]
    assert {name: one.completed_rounds for name, one in ours.participants.items()} == {
        "bank": 2,
        BAD: 1,
        "hospital": 2,
    }
    with pytest.raises(RoundFailed) as caught:
        ours.another_coordinator().start()
    assert str(caught.value) == (
        "the sites stand at different rounds (bank 2, clinic 1, hospital 2) and no 3 of them at "
        "the same; take them back to a round that enough of them have kept"
    )
    for name in ("bank", "hospital"):
        store = ours.stores[name]
        ours.participants[name] = ours.participant(
            name, ours.roster, store.saved[1], 1, store.memories[1]
        )
    goes_on(ours, 2)


@SCHEMES
def test_a_state_that_cannot_be_kept_is_not_taken(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(1)
    before, memory = ours.states(), ours.participants[BAD].memory

    def full(completed_rounds: int, state: Any, memory: Any) -> None:
        raise OSError("no space left on device")

    ours.stores[BAD].save = full
    if scheme == "rlwe":  # one site that has taken the sum is enough for it not to be lost
        assert ours.coordinator.round(2).lost == {BAD: "install: internal"}
    else:
        with pytest.raises(RoundFailed, match=r"install: no answer from clinic \(internal\)"):
            ours.coordinator.round(2)
    one = ours.participants[BAD]
    assert ours.states()[BAD] == before[BAD] != ours.states()["bank"]
    assert (one.completed_rounds, one.memory) == (1, memory)


@SCHEMES
def test_a_coordinator_can_start_again(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(1)
    ours.coordinator.start()
    ours.coordinator.round(2)
    assert ours.coordinator.completed_rounds == 2


# -- sites that lie to the coordinator -------------------------------------------------------


def lying(federation: Any, changes: dict[str, Any], liar: str = BAD) -> None:
    """Let the liar's replies be changed, by method, and signed again by the liar."""

    def to_coordinator(site: str, name: str, data: bytes) -> bytes:
        if site != liar or name not in changes:
            return data
        kind, binding, sender, body = federation.opened(data)
        changed = changes[name](body)
        if isinstance(changed, bytes):
            return changed
        return envelope.seal(kind, binding, sender, changed, federation.keys[liar].sign)

    federation.wire.to_coordinator = to_coordinator


#: Scheme(s), message, what the liar makes of its answer, and why the round fails.
LIES: list[tuple[str, str, Any, str]] = [
    ("plain ckks", "fetch", lambda body: body | {"data": body["data"][:-1]}, "not the one it ann"),
    ("plain ckks", "fetch", lambda body: body | {"data": b""}, "clinic: block 0 is not the one"),
    ("rlwe", "fetch", lambda body: body | {"data": body["data"][:-1]}, r"from clinic \(digest\)"),
    (
        "rlwe",
        "fetch",
        lambda body: body | {"data": b""},
        r"fetch: no answer from clinic \(digest\)",
    ),
    ("plain ckks rlwe", "fetch", lambda body: {"index": 0}, "malformed"),
    ("plain ckks rlwe", "fetch", lambda body: b"garbage", "size"),
    ("plain ckks rlwe", "fetch", lambda body: b"FSHD\x01" + bytes(100), "signature"),
    ("plain ckks", "announce", lambda body: {"more": 1}, "malformed"),
    ("plain ckks", "quorum", lambda body: {"boxes": {}}, "malformed"),
    (
        "plain ckks rlwe",
        "open",
        lambda body: body | {"model_tag": bytes(32)},
        "opened different sums",
    ),
    ("plain ckks", "open", lambda body: b"x" * 200, "signature"),
    ("plain ckks rlwe", "prepare", lambda body: body | {"key": b"short"}, "refused: size: clinic"),
    ("plain ckks rlwe", "prepare", lambda body: body | {"model_tag": b""}, "refused: size: clinic"),
    ("plain ckks rlwe", "prepare", lambda body: {"key": bytes(32)}, "malformed"),
    ("plain ckks rlwe", "prepare", lambda body: b"garbage" * 30, "signature"),
    ("plain ckks rlwe", "prepare", lambda body: body | {"model_tag": bytes(32)}, "work: no answer"),
    ("plain ckks rlwe", "work", lambda body: body | {"layout_tag": bytes(32)}, "another key or"),
    ("plain ckks rlwe", "work", lambda body: body | {"key_id": b"?" * 16}, "another key or layout"),
    ("plain ckks rlwe", "work", lambda body: body | {"block_digests": []}, "number of blocks"),
    ("plain ckks rlwe", "work", lambda body: body | {"block_digests": [b"x"] * 9}, "of blocks"),
    ("plain ckks rlwe", "work", lambda body: b"garbage" * 30, "signature"),
    ("rlwe", "fetch-shares", lambda body: {"boxes": 3}, "malformed"),
    ("rlwe", "fetch-shares", lambda body: b"garbage" * 30, "signature"),
]


@pytest.mark.parametrize(
    ("scheme", "method", "change", "why"),
    [(scheme, *rest) for schemes, *rest in LIES for scheme in schemes.split()],
)
def test_replies_that_the_coordinator_refuses(
    federation: Any, scheme: str, method: str, change: Any, why: str
) -> None:
    ours = federation(scheme).run(1)
    before = ours.states()
    lying(ours, {method: change})
    with pytest.raises(RoundFailed, match=why):
        ours.coordinator.round(2)
    if method != "open":
        assert ours.states() == before
        goes_on(ours, 2)


@pytest.mark.parametrize("half", [slice(None), slice(0, 1184), slice(1184, None)])
@SCHEMES
def test_a_round_key_that_is_another_sites_is_refused(
    federation: Any, scheme: str, half: slice
) -> None:
    """Else both would hold what is sealed to one of them, or a half of it."""
    ours = federation(scheme).run(1)
    banks: list[bytes] = []

    def to_coordinator(site: str, name: str, data: bytes) -> bytes:
        kind, binding, sender, body = ours.opened(data)
        if name == "prepare" and site == "bank":
            banks.append(body["key"])
        if name == "prepare" and site == BAD:
            copied = bytearray(body["key"])
            copied[half] = banks[-1][half]
            body = body | {"key": bytes(copied)}
            return envelope.seal(kind, binding, sender, body, ours.keys[BAD].sign)
        return data

    ours.wire.to_coordinator = to_coordinator
    with pytest.raises(RoundFailed, match="refused: repeated: two sites sent the same round key"):
        ours.coordinator.round(2)
    goes_on(ours, 2)


@pytest.mark.parametrize(
    ("scheme", "liar", "method", "change", "why"),
    [
        *(
            (scheme, BAD, "invite", change, why)
            for scheme in ("plain", "ckks", "rlwe")
            for change, why in (
                (lambda body: body | {"nonce": b"short"}, "refused: size: clinic"),
                (lambda body: body | {"run_key": b""}, "refused: size: clinic"),
                (lambda body: body | {"num_examples": -1}, "refused: malformed: clinic: negative"),
                (lambda body: b"garbage" * 30, r"invite: no answer from clinic .*signature"),
            )
        ),
        *(
            (scheme, BAD, "begin", lambda body: {"context": bytes(32)}, r"clinic \(context\)")
            for scheme in ("plain", "ckks", "rlwe")
        ),
        ("ckks", "bank", "make-key", lambda body: body | {"public": b"no context"}, "public cont"),
    ],
)
def test_set_up_replies_that_the_coordinator_refuses(
    federation: Any, scheme: str, liar: str, method: str, change: Any, why: str
) -> None:
    ours = federation(scheme)
    lying(ours, {method: change}, liar)
    with pytest.raises(RoundFailed, match=why):
        ours.coordinator.start()


@SCHEMES
def test_a_maker_that_leaves_a_site_without_a_key(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    without = {"make-key": lambda body: body | {"boxes": {"clinic": body["boxes"]["clinic"]}}}
    lying(ours, without, "bank")
    with pytest.raises(RoundFailed, match="bank did not make a key for every site"):
        ours.coordinator.start()


def test_a_maker_that_sends_its_secret_to_the_coordinator(federation: Any) -> None:
    """Whatever a faulty site does: the coordinator does not take a secret key into its hands."""
    ours = federation("ckks")
    bank = ours.participants["bank"]
    lying(ours, {"make-key": lambda body: body | {"public": bank._keys.scheme.secret()}}, "bank")
    with pytest.raises(RoundFailed, match="secret key"):
        ours.coordinator.start()
    assert ours.coordinator._adder is None


@pytest.mark.parametrize(
    ("scheme", "junk", "why"),
    [
        ("ckks", b"\x01\x00\x05\x00\x00\x00junk!", "ciphertext"),
        ("ckks", b"junk", "block: expected"),
        ("plain", np.full(551, np.nan, dtype="<f4").tobytes(), "plain block: expected finite"),
        ("plain", bytes(4 * 550), "plain block: expected"),
        ("rlwe", b"junk", "rlwe chunk: expected 1 to"),
        ("rlwe", b"", "rlwe chunk: expected 1 to"),
    ],
)
def test_an_upload_that_cannot_be_added_names_its_site(
    federation: Any, scheme: str, junk: bytes, why: str
) -> None:
    """Announced and handed over in good order, but not what can be summed."""
    ours = federation(scheme).run(1)
    before = ours.states()
    cipher = ours.participants[BAD]._cipher
    real = cipher.encrypt
    if cipher.one_time:
        cipher.encrypt = lambda *given: replace(real(*given), blocks=(junk,))
    else:
        cipher.encrypt = lambda encoded: (junk,)
    with pytest.raises(RoundFailed, match=f"^clinic: {why}"):
        ours.coordinator.round(2)
    assert ours.states() == before
    goes_on(ours, 2)


# -- sums that differ ------------------------------------------------------------------------


def different_sum_for(federation: Any, victims: Iterable[str], block: bytes, phase: str) -> None:
    """Under `plain` the coordinator can change a sum: give `block` to some sites in its place."""

    def to_site(site: str, name: str, data: bytes) -> bytes:
        _, binding, _, body = federation.opened(data)
        if site not in victims or binding.phase != phase:
            return data
        if name == "announce":
            digests = (hashlib.sha256(block).digest(),)
            return federation.seal(messages.Announce(body["uploads"], digests), binding)
        if name == "deliver":
            return federation.seal(messages.Deliver(0, block), binding)
        return data

    federation.wire.to_site = to_site


#: A sum that passes every other check: zeros, and a total weight of one.
ZEROS = np.append(np.zeros(550), 1.0).astype("<f4").tobytes()


def digits_of(total: int) -> bytes:
    """A sum of counts as it travels."""
    return (np.array([total % 1024, total // 1024, 0]) / 1024).astype("<f4").tobytes()


def test_an_honest_coordinator_stops_when_votes_differ(federation: Any) -> None:
    ours = federation("plain").run(1)
    before = ours.states()
    different_sum_for(ours, [BAD], ZEROS, "round")
    with pytest.raises(RoundFailed, match=r"^announce: "):
        ours.coordinator.round(2)
    assert ours.states() == before
    assert ours.wire.of(BAD, "quorum")[1:] == []
    goes_on(ours, 2)


@pytest.mark.parametrize(("phase", "block"), [("round", ZEROS), ("weights", digits_of(5000))])
def test_sites_stop_when_votes_differ(federation: Any, phase: str, block: bytes) -> None:
    """A coordinator that goes on regardless: every site sees from the others' votes that they
    were not shown the same sum, and none of them answers or opens."""
    ours = federation("plain", weights="private")
    different_sum_for(ours, [BAD], block, phase)
    with pytest.raises(RoundFailed, match=r"^announce: "):
        ours.run(1)
    votes = {name: ours.wire.of(name, "announce")[-1].reply for name in ours.names}
    assert len({ours.opened(vote)[3]["aggregate"] for vote in votes.values()}) == 2
    assert len({ours.opened(vote)[3]["contributors"] for vote in votes.values()}) == 1
    same = {name: votes[name] for name in ("bank", "hospital")}
    for site in ours.names:
        assert ours.refused(site, messages.Quorum(votes)) == "vote"
        assert ours.refused(site, messages.Quorum(same)) == "vote"  # one too few, or not its own
        assert ours.refused(site, messages.Open({}, {})) == "repeated"
    assert {one.completed_rounds for one in ours.participants.values()} == {0}


def opens_otherwise(federation: Any, site: str) -> None:
    """A site that makes something else of the right sum."""
    model = federation.participants[site]._model
    real = model.opened

    def opened(*arguments: Any) -> Any:
        _, install = real(*arguments)
        return "0" * 64, install

    model.opened = opened


@SCHEMES
def test_an_honest_coordinator_stops_when_models_differ(federation: Any, scheme: str) -> None:
    """At one site of three: no site takes what it opened."""
    ours = federation(scheme).run(1)
    before = ours.states()
    opens_otherwise(ours, BAD)
    with pytest.raises(RoundFailed, match="opened different sums; no site takes its own"):
        ours.coordinator.round(2)
    assert ours.states() == before


@SCHEMES
def test_sites_stop_when_models_differ(federation: Any, scheme: str) -> None:
    """A coordinator that goes on regardless: no certificate can be made for any of the results, so
    that no site takes one."""
    ours = federation(scheme).run(1)
    opens_otherwise(ours, BAD)
    with pytest.raises(RoundFailed, match="opened different sums"):
        ours.coordinator.round(2)
    receipts = {name: ours.wire.of(name, "open")[-1].reply for name in ours.names}
    equal = {name: receipts[name] for name in ours.names if name != BAD}
    before = ours.states()
    for site in ours.names:
        for shown in (receipts, equal, {site: receipts[site]}, {}):
            assert ours.refused(site, messages.Install(shown)) == "disagree"
    assert ours.states() == before
    assert all(one.completed_rounds == 1 for one in ours.participants.values())


@SCHEMES
def test_the_total_of_the_counts_is_compared_too(federation: Any, scheme: str) -> None:
    """The whole number: 41 + 1200 + 380 examples are 1 * 1024 + 597 in digits of plain and ckks;
    a site that finds 0 * 1024 + 598 has the same sum of digits."""
    ours = federation(scheme, weights="private")
    one = ours.participants[BAD]
    ours.works[BAD].num_examples = 377  # below both totals
    ours.works["hospital"].num_examples = 1234
    next_task = one._next_task

    def another() -> Any:
        task = next_task()
        real = task.take

        def take(*arguments: Any) -> Any:
            digest, install = real(*arguments)
            assert digest == hashlib.sha256((1621).to_bytes(8, "big")).hexdigest()
            return hashlib.sha256((598).to_bytes(8, "big")).hexdigest(), install

        task.take = take
        return task

    one._next_task = another
    with pytest.raises(RoundFailed, match="opened different sums"):
        ours.coordinator.start()


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (
            np.array([-2.0, -1.0, 1.0]).astype("<f4").tobytes(),
            r"bank \(crypto\), clinic \(crypto\)",
        ),
        (np.array([9.0, 0.0, 0.0]).astype("<f4").tobytes(), r"bank \(crypto\), clinic \(crypto\)"),
        (digits_of(400), r"clinic \(weight\);"),
        (digits_of(1100), r"clinic \(weight\);"),
        (digits_of(0), r"bank \(weight\), clinic \(weight\)"),
    ],
    ids=["negative", "too large a digit", "below one's own", "just below", "nothing"],
)
def test_totals_of_counts_that_cannot_be_are_refused(
    federation: Any, monkeypatch: pytest.MonkeyPatch, block: bytes, why: str
) -> None:
    """Under plain the coordinator can put anything in the place of the sum."""
    ours = federation("plain", weights="private")
    monkeypatch.setattr(PlainAdder, "result", lambda self, total: block)
    with pytest.raises(RoundFailed, match=f"open: no answer from {why}"):
        ours.coordinator.start()


@pytest.mark.parametrize(
    ("value", "weight", "why"),
    [(0.0, 0.9, "weight"), (0.0, 1.1, "weight"), (np.nan, 1.0, "crypto"), (0.0, np.inf, "crypto")],
)
def test_sums_that_cannot_be_are_refused(
    federation: Any, monkeypatch: pytest.MonkeyPatch, value: float, weight: float, why: str
) -> None:
    ours = federation("plain").run(1)
    before = ours.states()
    block = np.append(np.full(550, value), weight).astype("<f4").tobytes()
    with monkeypatch.context() as lying_server:
        lying_server.setattr(PlainAdder, "result", lambda self, total: block)
        with pytest.raises(RoundFailed, match=rf"bank \({why}\), clinic \({why}\), hospital"):
            ours.coordinator.round(2)
    assert ours.states() == before
    goes_on(ours, 2)


# -- receipts --------------------------------------------------------------------------------


@SCHEMES
def test_receipts_that_are_missing_old_or_forged(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(2)
    receipts = {name: ours.wire.of(name, "open")[-1].reply for name in ours.names}
    older = {name: ours.wire.of(name, "open")[0].reply for name in ours.names}
    _, binding, sender, body = ours.opened(receipts[BAD])
    forged = envelope.seal("receipt", binding, sender, body, SigningKey().sign)
    other = {**body, "model_tag": bytes([body["model_tag"][0] ^ 1]) + body["model_tag"][1:]}
    lied = envelope.seal("receipt", binding, sender, other, ours.keys[BAD].sign)
    stranger = envelope.seal("receipt", binding, "lab", body, SigningKey().sign)
    cases: list[tuple[dict[str, bytes], str]] = [
        ({}, "disagree"),
        ({**receipts, BAD: lied}, "disagree"),
        ({**receipts, BAD: older[BAD]}, "context"),
        ({**receipts, BAD: receipts["bank"]}, "signature"),
        ({**receipts, BAD: forged}, "signature"),
        ({**receipts, "lab": stranger}, "sender"),
        ({**receipts, BAD: ours.wire.of(BAD, "work")[-1].reply}, "kind"),
    ]
    if scheme != "rlwe":  # there, sites may have been lost
        cases.append(({name: receipts[name] for name in ("bank", "hospital")}, "disagree"))
    for named, code in cases:
        assert ours.refused("bank", messages.Finish(named)) == code
        assert ours.participants["bank"]._keys is not None
    assert ours.send("bank", messages.Finish(receipts))[0] == "done"
    assert ours.participants["bank"]._keys is None
