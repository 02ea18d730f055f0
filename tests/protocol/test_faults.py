"""Sites that fail or lie, and sums that differ: the round fails, and the model before it stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol import envelope, messages

BAD = "clinic"


def goes_on(federation: Any, round_number: int) -> None:
    """A new session from the same participants does the round that failed, rightly."""
    for work in federation.works.values():
        work.fault = None
    before = federation.state()
    fresh = federation.coordinator = federation.another_coordinator()
    fresh.start()
    assert fresh.completed_rounds == round_number - 1
    fresh.round(round_number)
    trained = [federation.trained(name, before, round_number) for name in federation.names]
    np.testing.assert_allclose(federation.state().values, np.mean(trained, axis=0), atol=2e-6)


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
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
    ours.works[BAD].fault = fault
    with pytest.raises(RoundFailed) as caught:
        ours.coordinator.round(2)
    assert str(caught.value) == (
        f"work: no answer from clinic ({code}); the model of the last round is kept"
    )
    assert ours.states() == before
    assert {one.completed_rounds for one in ours.participants.values()} == {1}
    assert all(set(store.saved) == {1} for store in ours.stores.values())
    goes_on(ours, 2)


@pytest.mark.parametrize("method", ["invite", "begin", "make-key", "take-key", "evaluate"])
def test_a_site_that_is_gone_during_set_up(federation: Any, method: str) -> None:
    ours = federation("ckks", weights="private")
    before = ours.states()
    gone = "bank" if method == "make-key" else BAD
    ours.wire.to_site = lambda site, name, data: b"" if (site, name) == (gone, method) else data
    with pytest.raises(RoundFailed, match=f"{method}: no answer from {gone}"):
        ours.coordinator.start()
    assert ours.states() == before
    ours.wire.to_site = lambda site, name, data: data
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    ours.coordinator.round(1)
    assert len(set(ours.states().values())) == 1


@pytest.mark.parametrize("method", ["work", "fetch", "announce", "deliver"])
def test_a_site_that_is_gone_during_a_round(federation: Any, method: str) -> None:
    ours = federation("ckks").run(1)
    before = ours.states()
    ours.wire.to_site = lambda site, name, data: b"" if (site, name) == (BAD, method) else data
    with pytest.raises(RoundFailed, match=f"{method}: no answer from clinic"):
        ours.coordinator.round(2)
    assert ours.states() == before
    ours.wire.to_site = lambda site, name, data: data
    goes_on(ours, 2)


def test_a_site_that_is_gone_when_the_sum_is_opened(federation: Any) -> None:
    """The others have opened it: they stand a round further, and the next session says so. The
    engine then takes all back to the last round that every site has kept."""
    ours = federation("ckks").run(1)
    before = ours.states()
    ours.wire.to_site = lambda site, name, data: b"" if (site, name) == (BAD, "open") else data
    with pytest.raises(RoundFailed, match="open: no answer from clinic"):
        ours.coordinator.round(2)
    assert ours.states()[BAD] == before[BAD]
    assert {name: one.completed_rounds for name, one in ours.participants.items()} == {
        "bank": 2,
        BAD: 1,
        "hospital": 2,
    }
    with pytest.raises(RoundFailed, match=r"begin: no answer from bank \(round\), hospital"):
        ours.another_coordinator().start()
    for name in ("bank", "hospital"):
        kept = ours.stores[name].saved[1]
        ours.participants[name] = ours.participant(name, ours.roster, kept, completed=1)
    ours.wire.to_site = lambda site, name, data: data
    goes_on(ours, 2)


def test_a_state_that_cannot_be_kept_is_not_taken(federation: Any) -> None:
    ours = federation("ckks").run(1)
    before = ours.states()

    def full(completed_rounds: int, state: Any) -> None:
        raise OSError("no space left on device")

    ours.stores[BAD].save = full
    with pytest.raises(RoundFailed, match=r"open: no answer from clinic \(internal\)"):
        ours.coordinator.round(2)
    assert ours.states()[BAD] == before[BAD]
    assert ours.participants[BAD].completed_rounds == 1


def test_a_coordinator_can_start_again(federation: Any) -> None:
    ours = federation("ckks").run(1)
    ours.coordinator.start()
    ours.coordinator.round(2)


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


BLOCKS = pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("fetch", lambda body: body | {"data": body["data"][:-1]}, "not the one it announced"),
        ("fetch", lambda body: body | {"data": b""}, "not the one it announced"),
        ("fetch", lambda body: {"index": 0}, "malformed"),
        ("fetch", lambda body: b"garbage", "size"),
        ("fetch", lambda body: b"FSHD\x01" + bytes(100), "signature"),
        ("announce", lambda body: {"more": 1}, "malformed"),
        ("open", lambda body: {"model_tag": bytes(32)}, "opened different sums"),
        ("open", lambda body: b"x" * 200, "signature"),
        ("work", lambda body: body | {"layout_tag": bytes(32)}, "another key or layout"),
        ("work", lambda body: body | {"key_id": bytes(16)}, "another key or layout"),
        ("work", lambda body: body | {"block_digests": []}, "number of blocks"),
        ("work", lambda body: body | {"block_digests": [b"x"] * 9}, "number of blocks"),
        ("work", lambda body: b"garbage" * 30, "signature"),
    ],
)


@BLOCKS
def test_replies_that_the_coordinator_refuses(
    federation: Any, method: str, change: Any, why: str
) -> None:
    ours = federation("ckks").run(1)
    before = ours.states()
    lying(ours, {method: change})
    with pytest.raises(RoundFailed, match=why):
        ours.coordinator.round(2)
    if method != "open":
        assert ours.states() == before
        ours.wire.to_coordinator = lambda site, name, data: data
        goes_on(ours, 2)


@pytest.mark.parametrize(
    ("liar", "method", "change"),
    [
        (BAD, "invite", lambda body: body | {"nonce": b"short"}),
        (BAD, "invite", lambda body: b"garbage" * 30),
        ("bank", "make-key", lambda body: body | {"public": b"no context"}),
    ],
)
def test_set_up_replies_that_the_coordinator_refuses(
    federation: Any, liar: str, method: str, change: Any
) -> None:
    ours = federation("ckks")
    lying(ours, {method: change}, liar)
    with pytest.raises(RoundFailed):
        ours.coordinator.start()


def test_a_maker_that_leaves_a_site_without_a_key(federation: Any) -> None:
    ours = federation("ckks")
    without = {"make-key": lambda body: body | {"boxes": {"clinic": body["boxes"]["clinic"]}}}
    lying(ours, without, "bank")
    with pytest.raises(RoundFailed, match="did not make a key for every site"):
        ours.coordinator.start()


def test_a_maker_that_sends_its_secret_to_the_coordinator(federation: Any) -> None:
    """Whatever a faulty site does: the coordinator does not take a secret key into its hands."""
    ours = federation("ckks")
    bank = ours.participants["bank"]
    lying(ours, {"make-key": lambda body: body | {"public": bank._keys.scheme.secret()}}, "bank")
    with pytest.raises((RoundFailed, CryptoError), match="secret key"):
        ours.coordinator.start()
    assert ours.coordinator._adder is None


@pytest.mark.parametrize(
    ("scheme", "junk", "why"),
    [
        ("ckks", b"\x01\x00\x05\x00\x00\x00junk!", "ciphertext"),
        ("ckks", b"junk", "block: expected"),
        ("plain", np.full(551, np.nan, dtype="<f4").tobytes(), "plain block: expected finite"),
        ("plain", bytes(4 * 550), "plain block: expected"),
    ],
)
def test_an_upload_that_cannot_be_added_names_its_site(
    federation: Any, scheme: str, junk: bytes, why: str
) -> None:
    """Announced and handed over in good order, but not what can be summed."""
    ours = federation(scheme).run(1)
    before = ours.states()
    digest = hashlib.sha256(junk).digest()
    lying(
        ours,
        {
            "work": lambda body: body | {"block_digests": [digest]},
            "fetch": lambda body: body | {"data": junk},
        },
    )
    with pytest.raises(RoundFailed, match=f"clinic: block 0: {why}"):
        ours.coordinator.round(2)
    assert ours.states() == before


# -- receipts --------------------------------------------------------------------------------


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


def test_an_honest_coordinator_stops_when_sums_differ(federation: Any) -> None:
    ours = federation("plain").run(1)
    different_sum_for(ours, [BAD], ZEROS, "round")
    with pytest.raises(RoundFailed, match="opened different sums"):
        ours.coordinator.round(2)


def test_sites_stop_when_sums_differed(federation: Any) -> None:
    """A coordinator that goes on regardless: in the next round every site sees from the others'
    receipts that they do not have the same model."""
    ours = federation("plain").run(1)
    different_sum_for(ours, [BAD], ZEROS, "round")
    with pytest.raises(RoundFailed):
        ours.coordinator.round(2)
    receipts = {name: ours.wire.of(name, "open")[-1].reply for name in ours.names}
    now = ours.coordinator._binding
    then = type(now)(now.context, 3, "round")
    for site in ours.names:
        assert ours.refused(site, messages.Work(receipts), then) == "disagree"


def test_receipts_that_are_missing_old_or_forged(federation: Any) -> None:
    ours = federation("ckks").run(2)
    receipts = {name: ours.wire.of(name, "open")[-1].reply for name in ours.names}
    older = {name: ours.wire.of(name, "open")[0].reply for name in ours.names}
    now = ours.coordinator._binding
    then = type(now)(now.context, 3, "round")
    _, binding, sender, body = ours.opened(receipts[BAD])
    forged = envelope.seal("receipt", binding, sender, body, SigningKey().sign)
    cases: list[tuple[dict[str, bytes], str]] = [
        ({}, "disagree"),
        ({name: receipts[name] for name in ("bank", "hospital")}, "disagree"),
        ({**receipts, BAD: older[BAD]}, "round"),
        ({**receipts, BAD: receipts["bank"]}, "signature"),
        ({**receipts, BAD: forged}, "signature"),
        ({**receipts, BAD: ours.wire.of(BAD, "work")[-1].reply}, "kind"),
    ]
    for named, code in cases:
        with pytest.raises(ProtocolError) as caught:
            ours.participants["bank"]._check_receipts(named, now)
        assert caught.value.code == code
    ours.participants["bank"]._check_receipts(receipts, now)
    assert ours.send("bank", messages.Work(receipts), then)[0] == "upload"


def test_the_total_of_the_counts_is_compared_too(federation: Any) -> None:
    ours = federation("plain", weights="private")
    different_sum_for(ours, [BAD], digits_of(5000), "weights")
    with pytest.raises(RoundFailed, match="opened different sums"):
        ours.coordinator.start()


def test_totals_of_the_same_digit_sum_differ(federation: Any) -> None:
    """41 + 1200 + 380 examples are 1 * 1024 + 597; the clinic is told 0 * 1024 + 598."""
    ours = federation("plain", weights="private")
    different_sum_for(ours, [BAD], digits_of(598), "weights")
    ours.works[BAD].num_examples = 377  # below both totals
    ours.works["hospital"].num_examples = 1234
    with pytest.raises(RoundFailed, match="opened different sums"):
        ours.coordinator.start()


def test_negative_digits_of_a_count_are_refused(federation: Any) -> None:
    ours = federation("plain", weights="private")
    block = np.array([-2.0, -1.0, 1.0]).astype("<f4").tobytes()
    different_sum_for(ours, ours.names, block, "weights")
    with pytest.raises(RoundFailed, match=r"open: no answer from bank \(crypto\)"):
        ours.coordinator.start()


def test_a_total_below_a_sites_own_count_is_refused(federation: Any) -> None:
    ours = federation("plain", weights="private")
    different_sum_for(ours, ours.names, digits_of(400), "weights")
    with pytest.raises(RoundFailed, match=r"open: no answer from clinic \(crypto\)"):
        ours.coordinator.start()
