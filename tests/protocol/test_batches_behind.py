"""Membership batches: what a site that is behind takes on the word of others, or refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand import failing, nothing_installed, restart

from fedshield.errors import ProtocolError, RoundFailed
from fedshield.ledger.entries import OpenedRound
from fedshield.ledger.file import Ledger, Receipt
from fedshield.protocol import catch_up
from fedshield.protocol.wire import envelope, messages
from fedshield.types import AdapterState

FIRST, SECOND = ("bank", "clinic", "hospital"), ("lab", "surgery", "ward-00")
SCAFFOLD = {
    "learning_rate": 0.5,
    "steps": 10,
    "lr_schedule": "constant",
    "optimizer": "sgd",
    "local_algorithm": "scaffold",
}


def make(federation: Any, sites: int = 6, **more: Any) -> Any:
    ours = federation(
        "rlwe", sites=sites, rules={"membership": "batches", "max_colluding": 1}, **more
    )
    for name in ours.names:
        train = ours.works[name].train
        ours.works[name].train = lambda state, number, *_, train=train: train(state, number)
    return ours


@pytest.fixture
def six(federation: Any) -> Any:
    return make(federation)


def again(ours: Any, away: Mapping[str, tuple[str, str]] | None = None) -> Any:
    """Another session of everybody but who is `away`, in another process of the coordinator."""
    failing(ours, away)
    ours.coordinator.start()
    return ours.coordinator


def away(*names: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names, ("invite", "before"))


def lost_after_upload(ours: Any, name: str = "clinic", at: str = "open") -> None:
    """Round 1 ends at all but one site, whose update is in its sum."""
    again(ours, {name: (at, "before")})
    assert name in ours.coordinator.round(1).contributors
    assert ours.participants[name].completed_rounds == 0
    restart(ours, name)


# -- what is a site's own ---------------------------------------------------------------------


@pytest.mark.parametrize("at", ["announce", "open", "install"])
@pytest.mark.parametrize("training", [{}, SCAFFOLD])
def test_who_is_lost_after_its_upload_has_sent_what_it_sent(
    federation: Any, at: str, training: dict[str, Any]
) -> None:
    """Error feedback carries on what rounding left, and not once more what is in the sum; a control
    variate moves by what was sent. As at a site that opened the sum itself."""
    more = {"encoding": {"bits": 8, "headroom": True}} | (
        {"training": training} if training else {}
    )
    ours, twin = make(federation, **more), make(federation, **more)
    lost_after_upload(ours, at=at)
    again(twin).round(1)
    before = ours.participants["clinic"].memory.residual
    again(ours)
    for name in ours.names:
        mine, other = ours.participants[name], twin.participants[name]
        assert mine.state.sha256() == other.state.sha256()
        assert mine.memory.shared_sha256() == other.memory.shared_sha256()
        np.testing.assert_array_equal(mine.memory.residual, other.memory.residual)
        assert mine.memory.own.keys() == other.memory.own.keys()
        for what, vector in mine.memory.own.items():
            np.testing.assert_array_equal(vector, other.memory.own[what])
    assert not np.array_equal(ours.participants["clinic"].memory.residual, before)
    assert ours.works["clinic"].trained_rounds == [1]
    ours.coordinator.round(2)
    assert ours.state()


def test_a_site_that_lost_what_it_sent_is_told_so(six: Any) -> None:
    lost_after_upload(six)
    six.stores["clinic"].contribution = None
    with nothing_installed(six, "clinic"):
        again(six)
    assert "expected what this site sent in round 1, found none" in str(six.wire.errors["clinic"])
    assert six.coordinator.active == list(SECOND)


def test_an_older_run_folder_than_the_ledger_is_not_gone_on_from(six: Any) -> None:
    """Its site was in two rounds, and what it kept is of the second."""
    again(six).round(1)
    six.coordinator.round(2)
    six.participants["clinic"] = six.participant("clinic", six.roster)
    with nothing_installed(six, "clinic"):
        again(six)
    assert "a run folder that know of round 2" in str(six.wire.errors["clinic"])
    assert six.coordinator.active == list(SECOND)


def test_a_ledger_without_a_row_of_a_round_is_not_gone_on_with(six: Any) -> None:
    """Others attest that this site is in a sum that its ledger knows nothing of."""
    lost_after_upload(six)
    six.ledgers["clinic"].rows.clear()
    with nothing_installed(six, "clinic"):
        again(six)
    assert "a run folder that know of round 1" in str(six.wire.errors["clinic"])


# -- what contradicts this site's own ledger --------------------------------------------------


def test_who_signed_for_another_result_does_not_take_this_one(six: Any) -> None:
    lost_after_upload(six)
    six.ledgers["clinic"].add_receipt(Receipt(six.plan.sha256(), "round", 1, "00" * 32))
    with nothing_installed(six, "clinic"):
        again(six)
    assert "R4: round 1: this site signed for another result" in str(six.wire.errors["clinic"])
    assert six.coordinator.active == list(SECOND)


def test_who_began_the_round_over_other_sites_does_not_take_it(six: Any) -> None:
    """Its sum may yet be opened there: one round would have two results, each with sites whose
    updates are in it."""
    again(six, away("surgery")).round(1)
    again(six, away("clinic"))
    six.coordinator._calls._sites.moments["lab"] = ("hold", "before")
    with pytest.raises(RoundFailed):
        six.coordinator.round(1)
    with nothing_installed(six):
        again(six)
    for name in SECOND:
        assert "R4: round 1 was begun here over 3 sites" in str(six.wire.errors[name])
    assert six.coordinator.active == list(FIRST)


def test_who_began_the_round_with_sites_that_made_it_without_takes_it(six: Any) -> None:
    """Rows over all six at three sites; the other three never entered that sum, so it is not opened
    by any honest vote, and make the round alone. Nothing of the first three is in it."""
    again(six)
    six.coordinator._calls._sites.moments |= dict.fromkeys(SECOND, ("work", "before"))
    with pytest.raises(RoundFailed, match="must be back first"):
        six.coordinator.round(1)
    assert {name: len(six.ledgers[name].rows) for name in six.names} == {
        **dict.fromkeys(FIRST, 1),
        **dict.fromkeys(SECOND, 0),
    }
    again(six, away("bank")).round(1)
    before = six.participants["bank"].memory.residual
    again(six)
    assert {site.completed_rounds for site in six.participants.values()} == {1}
    np.testing.assert_array_equal(six.participants["bank"].memory.residual, before)
    six.coordinator.round(2)
    assert six.state()


def test_a_taken_round_is_signed_for_once(six: Any) -> None:
    again(six, away("surgery")).round(1)
    again(six)
    line = six.participants["lab"]._line
    result = six.participants["bank"]._model.standing()
    line.sign_receipt("round", 1, result)
    with pytest.raises(ProtocolError, match="R4: round 1: this site took another result"):
        line.sign_receipt("round", 1, "00" * 32)


# -- histories --------------------------------------------------------------------------------


def test_batches_that_went_on_apart_to_one_model_are_not_summed_together(six: Any) -> None:
    """All updates are at their clip, so that the models are alike; their histories are not."""
    for name in six.names:
        six.works[name].fault = six.participants[name].state.values + 50
    again(six, away("surgery")).round(1)
    again(six, away("clinic")).round(1)
    assert len({site.state.sha256() for site in six.participants.values()}) == 1
    again(six)
    with nothing_installed(six), pytest.raises(RoundFailed, match="disagree"):
        six.coordinator.round(2)
    assert "starts from another model" in str(six.wire.errors["bank"])


def test_a_model_may_come_from_who_took_it_on_the_word_of_others(federation: Any) -> None:
    """Batches A, B, C: round 1 of A and C, round 2 of B and C, then A from B. No site of B was in
    round 1, and each knows what came of it."""
    nine = make(federation, 9)
    a, b, c = nine.roster.batches
    again(nine, away(b[0])).round(1)
    again(nine, away(a[0])).round(2)
    again(nine, away(c[0]))
    assert nine.coordinator.active == sorted((*a, *b))
    assert {nine.participants[name].completed_rounds for name in (*a, *b)} == {2}
    first, second = nine.participants[a[0]]._line.history(2)
    assert set(first.sites) == {*a, *c}
    assert set(second.sites) == {*b, *c}
    nine.coordinator.round(3)
    again(nine).round(4)
    assert nine.state()


@pytest.mark.parametrize("what", ["result", "sites", "order", "shorter"])
def test_a_digest_of_a_history_is_of_all_of_it(what: str) -> None:
    history = (OpenedRound("11" * 32, ("a", "b")), OpenedRound("22" * 32, ("a", "b", "c")))
    first, second = history
    other = {
        "result": (first, second._replace(result="23" * 32)),
        "sites": (first._replace(sites=("a", "b", "c")), second),
        "order": (second, first),
        "shorter": (first,),
    }[what]
    assert catch_up.history_sha256(history) != catch_up.history_sha256(other)


def test_a_model_that_the_ledger_does_not_have_is_not_attested_to(six: Any) -> None:
    """Such as of a run folder that was changed, or of another run."""
    again(six, away("surgery")).round(1)
    model = six.participants["bank"]._model
    values = model.state.values.copy()
    values[0] += 1
    model.state = AdapterState(values, model.state.spec)
    again(six)
    assert "expected the model that this site's ledger has after round 1" in str(
        six.wire.errors["bank"]
    )
    assert six.coordinator.active == list(SECOND)


@pytest.mark.parametrize("lacking", ["receipts", "rows"])
def test_a_round_that_the_ledger_lacks_is_not_attested_to(six: Any, lacking: str) -> None:
    again(six).round(1)
    getattr(six.ledgers["bank"], lacking).clear()
    with pytest.raises(ProtocolError, match=r"^ledger: expected round 1 of this run"):
        six.participants["bank"]._history()


# -- evidence ---------------------------------------------------------------------------------


def test_ledger_and_log_say_what_was_taken_and_on_whose_word(six: Any) -> None:
    again(six, away("surgery")).round(1)
    six.coordinator.round(2)
    result = {number: six.participants["bank"]._line.history(2)[number - 1] for number in (1, 2)}
    facts: list[Any] = []
    six.participants["lab"]._log = facts.append
    again(six)
    plan = six.plan.sha256()
    ledger = six.ledgers["lab"]
    assert ledger.attested == {(plan, number): one for number, one in result.items()}
    assert ledger.receipts == {}
    assert result[1].sites == FIRST
    assert {one.result for one in result.values()} == ledger.results(plan)
    text = (six.folder / "lab.ledger").read_text()
    assert '"by":["bank","clinic","hospital"]' in text
    ledger.close()
    with Ledger.open(six.folder / "lab.ledger") as read:
        assert read.attested == ledger.attested
    [taken] = [fact for fact in facts if fact.message == "take-model"]
    assert taken.act == "answered"
    assert taken.details["completed_rounds"] == 2
    [given] = six.wire.of("bank", "attest")
    assert taken.details["standing"] == six.opened(given.reply)[3]["tag"].hex()
    assert set(taken.saw) == {"coordinator", *FIRST}


# -- what a giver or a coordinator can claim --------------------------------------------------


def behind(ours: Any) -> None:
    """The first batch made round 1; all are in a session, and nobody has been brought up to it."""
    again(ours, away("surgery")).round(1)
    failing(ours)
    ours.coordinator._catch_up = lambda stands: None
    ours.coordinator.start()


def test_a_model_of_more_parts_than_the_adapter_can_have_is_refused(six: Any) -> None:
    """At its first part: nothing is kept of it."""
    behind(six)
    attested = {name: six.reply(name, messages.Attest()) for name in ("bank", "clinic")}
    part = messages.ModelPart(**six.opened(six.reply("bank", messages.GiveModel(0)))[3])

    def signed(one: messages.ModelPart) -> bytes:
        session = six.coordinator._session
        return envelope.seal(one.kind, session, "bank", one.to_body(), six.keys["bank"].sign)

    most = catch_up.max_parts(six.spec, 1, 6)
    for wrong in (
        replace(part, count=most + 1),
        replace(part, count=0),
        replace(part, box=bytes(catch_up.PART_BYTES + 100)),
    ):
        take = messages.TakeModel("bank", signed(wrong), attested)
        with nothing_installed(six):
            assert six.refused("lab", take) == "size"
    # Whose word counts is who is in the session: no other name is written down as one's.
    with pytest.raises(ProtocolError, match="'late' is not in this session"):
        six.send("lab", messages.TakeModel("bank", signed(part), {**attested, "late": b"x"}))
    six.send("lab", messages.TakeModel("bank", signed(part), attested))
    assert six.participants["lab"].completed_rounds == 1


def test_one_site_s_word_does_not_bind_a_round(six: Any) -> None:
    """It colludes, and says that the round was begun over other sites. c + 1 are believed."""
    again(six)
    six.participants["ward-00"]._line.pinned = lambda number: FIRST
    assert six.coordinator.round(1).contributors == (*FIRST, *SECOND)
    six.participants["lab"]._line.pinned = lambda number: FIRST
    assert six.coordinator.round(2).contributors == FIRST
