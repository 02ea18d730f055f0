"""Why each check of the opened sum is there, and why a key is used once: without it, a wrong sum is
installed or a difference of messages is read; with it, the same attempt fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hand import Hand, mean_of, record, started

from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import choose
from fedshield.errors import CryptoError, ProtocolError
from fedshield.protocol.participant_sum import Summation
from fedshield.protocol.wire import messages
from fedshield.types import Layout
from fedshield.update import encode_grid

VICTIM = "clinic"


# -- is the opened sum right ----------------------------------------------------------------


def installed(ours: Any, by: int = 0) -> tuple[Any, Any, Any]:
    """The adapter before a round of which the coordinator shifts the first value; the one that
    sites hold after it; and the one that they should."""
    made = record(ours)
    before, clip = ours.state(), ours.participants["bank"].memory.clip
    hand = Hand(ours).ready()
    blocks = hand.shifted(ours.names, 0, by)
    answers = hand.answers(hand.vote_on(ours.names, ours.names, blocks))
    hand.open_all(blocks, answers)
    right, _ = mean_of(ours, before, clip, made.values())
    return before.values, ours.state().values, right


class Untagged:
    """Instead of the keyed tags: nothing."""

    def __init__(self, _: bytes, layout: RlweLayout, *__: Any) -> None:
        self._count = layout.num_tags

    def add(self, _: Any) -> None:
        return

    def tags(self, _: Any) -> tuple[int, ...]:
        return (0,) * self._count


def test_the_tag_finds_what_leaves_no_trace(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding a multiple of delta needs no key and passes every other check."""
    with pytest.raises(CryptoError) as caught:
        installed(started(federation), 1000)
    assert caught.value.code == "tag"
    monkeypatch.setattr(rlwe, "Tagger", Untagged)
    _, moved, right = installed(started(federation), 1000)
    np.testing.assert_array_equal(moved[1:], right[1:])
    assert moved[0] - right[0] == pytest.approx(1000 * 5 / 32767, rel=1e-4)


def test_the_total_weight_has_a_range(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a colluder that claims to be twice the whole federation, and sends nothing, holds
    everyone's training back to a third; or the mean is over a sliver and blown up."""

    def overweight() -> Any:
        ours = started(federation)
        model = ours.participants["lab"]._model
        contribution = model.contribution

        def heavy(*args: Any) -> Any:
            right = contribution(*args)
            claimed = (1, 2**31 - 1, 0)
            return type(right)(0 * right.digits, claimed, right.layout, 0, right.residual)

        model.contribution = heavy
        return ours

    with pytest.raises(CryptoError) as caught:
        installed(overweight())
    assert caught.value.code == "weight"
    mean_of = encode_grid.mean_of

    def unweighed(opened: Any, *limits: float) -> Any:
        total = opened.reserved[encode_grid.WEIGHT]
        right = {**opened.reserved, encode_grid.WEIGHT: 1.0}
        scaled = type(opened)(opened.values / total, right, opened.layout)
        return mean_of(scaled, *limits)

    monkeypatch.setattr(encode_grid, "mean_of", unweighed)
    before, held_back, _ = installed(overweight())
    before, _, honest = installed(started(federation))
    moved = float(np.abs(held_back - before).mean() / np.abs(honest - before).mean())
    assert 0.2 < moved < 0.45


def test_only_vectors_of_one_layout_are_added(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that lays its values out the other way round, with a tag that says so."""

    def misaligned() -> tuple[Any, Any]:
        ours = started(federation, 3)
        made = record(ours)
        model = ours.participants[VICTIM]._model
        contribution = model.contribution

        def backwards(*args: Any) -> Any:
            right = contribution(*args)
            layout = Layout(**{**right.layout.__dict__, "spec_sha256": "backwards"})
            return type(right)(right.digits[::-1].copy(), right.reserved, layout, 0, right.residual)

        model.contribution = backwards
        before, clip = ours.state(), ours.participants["bank"].memory.clip
        hand = Hand(ours).prepare().work().collect()
        for site in ours.names:  # the bank first; of three sites all vote
            hand.send(site, messages.Hold(hand.uploads, hand.shares_for(site)))
        blocks = hand.aggregate(ours.names)
        hand.open_all(blocks, hand.answers(hand.vote_on(ours.names, ours.names, blocks)))
        right, _ = mean_of(ours, before, clip, made.values())
        return ours.participants["bank"].state.values, right

    with pytest.raises(ProtocolError, match=r"^layout: clinic laid its values out differently"):
        misaligned()
    tag_in = Summation._tag_in

    def blind(self: Any, binding: Any, label: bytes, value: bytes) -> bytes:
        return bytes(32) if label == b"layout" else tag_in(self, binding, label, value)

    monkeypatch.setattr(Summation, "_tag_in", blind)
    got, right = misaligned()
    assert float(np.abs(got - right).max()) > 0.1


# -- one key, one vector --------------------------------------------------------------------

#: One value to a coefficient.
LAYOUT = RlweLayout(choose(3, 24, 1000), 1000, (31,))
VALUES = np.random.default_rng(5).integers(-(10**6), 10**6, (2, 1000)).astype(np.int32)


def upload(values: Any, key: rlwe.OneTimeKey) -> Any:
    """The words that travel."""
    (chunk,) = rlwe.Encryption(values, (7,), key, b"c" * 32, LAYOUT, b"t" * 32).chunks()
    total: Any = RlweAdder(LAYOUT.parameters).add(None, chunk)
    return total.words


def difference(first: Any, second: Any) -> Any:
    """What two ciphertexts under one key say of their messages, without the key: the difference
    of the words, rounded to multiples of delta."""
    p = LAYOUT.parameters
    assert p.digits == 1
    change = ((first - second) << p.dropped) % p.q
    change = np.where(change > p.q // 2, change - p.q, change)
    return ((change + p.delta // 2) // p.delta)[: LAYOUT.num_values]


def test_a_key_encrypts_one_vector() -> None:
    key = rlwe.OneTimeKey(b"k" * 32)
    found = difference(upload(VALUES[0], key), upload(VALUES[1], key))
    np.testing.assert_array_equal(found, VALUES[0].astype(np.int64) - VALUES[1])
    other = rlwe.OneTimeKey(b"l" * 32)
    found = difference(upload(VALUES[0], key), upload(VALUES[1], other))
    assert np.count_nonzero(found == VALUES[0].astype(np.int64) - VALUES[1]) < 10


def test_the_vector_is_in_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloned machine draws the same random bytes for another vector: not the same key."""
    monkeypatch.setattr(rlwe, "os", SimpleNamespace(urandom=lambda count: b"r" * count))

    def cloned() -> Any:
        keys = [
            rlwe.one_time_key(values, (7,), b"c" * 32, b"l" * 32, b"s" * 32) for values in VALUES
        ]
        return difference(upload(VALUES[0], keys[0]), upload(VALUES[1], keys[1]))

    assert np.count_nonzero(cloned() == VALUES[0].astype(np.int64) - VALUES[1]) < 10
    seeds = {
        rlwe.one_time_key(VALUES[0], (7,), context, layout, secret).seed
        for context in (b"c" * 32, b"d" * 32)
        for layout in (b"l" * 32, b"m" * 32)
        for secret in (b"s" * 32, b"t" * 32)
    }
    assert len(seeds) == 8
    monkeypatch.setattr(rlwe, "message_digest", lambda *_: bytes(32))
    np.testing.assert_array_equal(cloned(), VALUES[0].astype(np.int64) - VALUES[1])
