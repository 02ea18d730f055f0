"""Membership batches: what is kept of a round that was not summed, what was taken by the word of
others, and what was trained in another round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand import failing

from fedshield.errors import ProtocolError, RoundFailed
from fedshield.ledger.entries import Attested, OpenedRound
from fedshield.ledger.rows import Version
from fedshield.protocol.wire import messages

FIRST, SECOND = ("bank", "clinic", "hospital"), ("lab", "surgery", "ward-00")
OTHER = Version("a" * 64, "b" * 64)


def make(federation: Any, weights: str = "equal") -> Any:
    return federation("rlwe", sites=6, weights=weights, rules={"membership": "batches"})


def again(ours: Any, *away: str) -> Any:
    failing(ours, dict.fromkeys(away, ("invite", "before")))
    ours.coordinator.start()
    return ours.coordinator


def replace_records(ours: Any, name: str, *, all_of_them: bool = False) -> None:
    """The operator puts other records in place, between sessions."""
    line = ours.participants[name]._line
    line.version = OTHER
    if all_of_them:  # then they are another line
        line._records = replace(line._records, hashes=frozenset({b"anew...."}))
    ours.works[name].fault = np.full(ours.state().spec.num_values, 0.125, dtype=np.float32)


def trained_and_left_out(ours: Any, name: str) -> None:
    """The site trains round 1, and its batch sits out before a row is written."""
    again(ours)
    ours.prepare(1)
    ours.reply(name, messages.Train())
    assert ours.works[name].trained_rounds == [1]
    assert ours.stores[name].contribution is not None
    assert not [row for row in ours.ledgers[name].rows if row.phase == "round"]


def test_an_update_of_records_that_were_replaced_is_not_sent(federation: Any) -> None:
    """Its row would speak of other records than were summed (R3, R5)."""
    ours = make(federation)
    trained_and_left_out(ours, "clinic")
    old = ours.stores["clinic"].contribution
    replace_records(ours, "clinic")
    again(ours).round(1)
    assert ours.works["clinic"].trained_rounds == [1, 1]
    kept = ours.stores["clinic"].contribution
    assert not np.array_equal(kept.trained, old.trained)
    (row,) = [row for row in ours.ledgers["clinic"].rows if row.phase == "round"]
    assert row.versions[row.own] == OTHER
    assert kept.made_of.startswith(f"{OTHER.sources} {OTHER.rows} ")


def test_an_update_of_the_same_records_is_trained_once(federation: Any) -> None:
    ours = make(federation)
    trained_and_left_out(ours, "clinic")
    again(ours).round(1)
    assert ours.works["clinic"].trained_rounds == [1]


@pytest.mark.parametrize("all_of_them", [False, True])
def test_nothing_takes_the_place_of_what_a_row_stands_for(
    federation: Any, all_of_them: bool
) -> None:
    ours = make(federation)
    failing(ours, dict.fromkeys((*FIRST, *SECOND[:2]), ("open", "before")))
    ours.coordinator.start()
    with pytest.raises(RoundFailed):
        ours.coordinator.round(1)
    kept = ours.stores["clinic"].contribution
    replace_records(ours, "clinic", all_of_them=all_of_them)
    ours.coordinator = ours.another_coordinator()
    with pytest.raises(RoundFailed):
        again(ours).round(1)
    assert "R4: round 1 was tried before from other records" in str(ours.wire.errors["clinic"])
    assert ours.works["clinic"].trained_rounds == [1]
    assert ours.stores["clinic"].contribution is kept


@pytest.mark.parametrize("membership", ["batches", "fixed"])
def test_an_update_that_no_sum_takes_is_not_kept(federation: Any, membership: str) -> None:
    """What was sent is lost, and other records lie in its place: they are refused, and once the
    right ones are back the round is made again from them."""
    ours = federation("rlwe", sites=6, rules={"membership": membership})
    failing(ours, dict.fromkeys((*FIRST, *SECOND[:2]), ("open", "before")))
    ours.coordinator.start()
    with pytest.raises(RoundFailed):
        ours.coordinator.round(1)
    site, line = ours.participants["clinic"], ours.participants["clinic"]._line
    version = line.version
    sent = site._model._store.contribution.encoded
    ours.stores["clinic"].contribution = None
    replace_records(ours, "clinic")
    ours.coordinator = ours.another_coordinator()
    with pytest.raises(RoundFailed):
        again(ours).round(1)
    assert "R4: expected the encoded update of the first try" in str(ours.wire.errors["clinic"])
    assert ours.stores["clinic"].contribution is None
    line.version, ours.works["clinic"].fault = version, None
    ours.coordinator = ours.another_coordinator()
    again(ours).round(1)
    np.testing.assert_array_equal(ours.stores["clinic"].contribution.encoded, sent)


def test_a_round_that_was_taken_by_the_word_of_others_is_not_entered(federation: Any) -> None:
    ours = make(federation)
    again(ours)
    line, plan = ours.participants["lab"]._line, ours.plan.sha256()
    taken = OpenedRound("7" * 64, tuple(map(ours.roster.identity, FIRST)))
    ours.ledgers["lab"].add_attested(Attested(plan, 1, (taken,), ("x", "y")))
    before = len(ours.ledgers["lab"].rows)
    ours.prepare(1)
    with pytest.raises(ProtocolError, match="R4: expected a round after those that this site took"):
        ours.participants["lab"].handle("train", ours.seal(messages.Train()))
    assert ours.works["lab"].trained_rounds == []
    assert len(ours.ledgers["lab"].rows) == before
    # Nor is another result of it taken, whoever signed for that.
    with pytest.raises(ProtocolError, match="neither signs for a second one nor takes it"):
        line.take_certified("round", 1, "8" * 64)
    line.take_certified("round", 1, "7" * 64)


def test_an_update_is_of_its_own_round(federation: Any) -> None:
    """The coordinator has a site train after its update is in the sum, and does not in the next
    round: the same vector in two sums would be subtracted from all that changed."""
    ours = make(federation)
    again(ours)
    ours.work(1)
    with pytest.raises(ProtocolError, match="this round's update is in its sum already"):
        ours.participants["bank"].handle("train", ours.seal(messages.Train()))


def test_what_was_trained_is_forgotten_when_a_sum_is_prepared(federation: Any) -> None:
    ours = make(federation)
    again(ours).round(1)
    site = ours.participants["bank"]
    site._trained = object()  # as if of the round before
    ours.coordinator.round(2)
    assert ours.works["bank"].trained_rounds == [1, 2]
