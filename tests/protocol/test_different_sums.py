"""Sums that differ from site to site, or cannot be: nobody takes one. And receipts of those that
were taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from next_session import BAD, SCHEMES, goes_on

from fedshield.crypto.adders import PlainAdder
from fedshield.crypto.keys import SigningKey
from fedshield.errors import RoundFailed
from fedshield.protocol.wire import envelope, messages


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
