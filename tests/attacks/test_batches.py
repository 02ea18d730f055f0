"""Membership batches against a coordinator that drops sites, moves them, and keeps them apart."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand import failing, flipped, nothing_installed

from fedshield.errors import CryptoError, ProtocolError, RoundFailed
from fedshield.protocol.contexts import setup_context
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.types import AdapterState

FIRST, SECOND = ("bank", "clinic", "hospital"), ("lab", "surgery", "ward-00")


@pytest.fixture
def six(federation: Any) -> Any:
    return federation("rlwe", sites=6, rules={"membership": "batches"})


def refusal(ours: Any, site: str, message: messages.Message, binding: Binding | None = None) -> str:
    with pytest.raises((ProtocolError, CryptoError)) as caught:
        ours.participants[site].handle(message.kind, ours.seal(message, binding))
    return str(caught.value)


def joined(ours: Any) -> tuple[Binding, dict[str, bytes]]:
    """Every site is invited: the binding of `begin`, and their joins."""
    session = os.urandom(16)
    invite = messages.Invite(session, ours.plan.canonical(), ours.roster.encode())
    joins = {name: ours.reply(name, invite, Binding(bytes(32), 0, "setup")) for name in ours.names}
    return Binding(setup_context(ours.plan.sha256(), ours.roster, session), 0, "setup"), joins


@pytest.mark.parametrize("dropped", [("surgery",), ("clinic",), ("bank", "surgery")])
def test_a_session_over_a_part_of_a_batch_is_refused(six: Any, dropped: tuple[str, ...]) -> None:
    """Whosever batch it is: those of the other are asked by the same rule."""
    binding, joins = joined(six)
    left = {name: join for name, join in joins.items() if name not in dropped}
    for name in left:
        text = refusal(six, name, messages.Begin(left), binding)
        assert "cohort: " in text
        assert "sits out until" in text


@pytest.mark.parametrize("left", [FIRST, SECOND, (*FIRST, "lab", "surgery")])
def test_a_sum_without_some_of_the_session_is_refused(six: Any, left: tuple[str, ...]) -> None:
    """A whole batch is less than the session too: the row of a round is over all of it, so that no
    two sums of one round share a batch."""
    six.coordinator.start()
    keys = six.prepare(1)
    before = {name: len(six.ledgers[name].rows) for name in six.names}
    work = messages.Work({name: keys[name] for name in left})
    for name in left:
        assert "R1: expected a sum over the session's whole batches" in refusal(six, name, work)
    assert {name: len(six.ledgers[name].rows) for name in six.names} == before


@pytest.mark.parametrize("left", [FIRST, (*FIRST, "lab", "surgery")])
def test_a_vote_for_less_than_the_row_is_refused(six: Any, left: tuple[str, ...]) -> None:
    six.coordinator.start()
    uploads = six.work(1)
    count = len(six.blocks("bank", uploads["bank"]))
    announce = messages.Announce({name: uploads[name] for name in left}, (bytes(32),) * count)
    for name in six.names:
        assert "it leaves out" in refusal(six, name, announce)


def test_the_ledger_refuses_a_set_without_a_member_of_the_batch(six: Any) -> None:
    """R1 by itself, whatever the session's checks say."""
    six.coordinator.start()
    line = six.participants["bank"]._line
    version = dict.fromkeys((*FIRST, *SECOND), line.version)
    row = {"phase": "round", "round_number": 1, "base": six.participants["bank"]._start}
    row |= {"content": "", "count": 1, "first": row["base"], "terms": None}
    line.check(**row, versions=version)
    line.check(**row, versions=dict.fromkeys(FIRST, line.version))
    for missing in ("clinic", "hospital"):
        left = {name: line.version for name in version if name != missing}
        with pytest.raises(ProtocolError, match="R1: expected a sum over this site's whole batch"):
            line.check(**row, versions=left)


def test_a_site_that_a_new_roster_moves_to_another_batch_refuses(six: Any) -> None:
    """As do those whose batch it leaves or enters: the two sums differ by the sites that moved."""
    six.run(1)
    six.plan = type(six.plan).model_validate(six.plan.model_dump() | {"name": "another"})
    six.roster = Roster(
        six.roster.sites,
        six.roster.coordinator,
        six.roster.rules,
        demo=True,
        batches=(("bank", "clinic", "lab"), ("hospital", "surgery", "ward-00")),
    )
    for name in six.names:
        six.participants[name] = six.participant(name, six.roster)
    six.coordinator = six.another_coordinator()
    six.coordinator.start()
    with pytest.raises(RoundFailed, match="train: no answer from bank"):
        six.coordinator.round(1)
    for name in six.names:
        assert "R1: expected the batch that these records were summed in before" in str(
            six.wire.errors[name]
        )
        assert all(row.plan != six.plan.sha256() for row in six.ledgers[name].rows)


@pytest.mark.parametrize(("kind", "field"), [("quorum", "votes"), ("install", "receipts")])
def test_the_word_of_who_is_not_in_the_sum_counts_for_nothing(
    six: Any, kind: str, field: str
) -> None:
    """A colluder of a batch that is away signs what the sum needs, in place of an honest site of
    the sum: that one would not be missed."""
    failing(six, {"surgery": ("invite", "before")})
    six.coordinator.start()
    calls = six.coordinator._calls
    gather = calls.gather

    def with_a_stranger(commands: Any, *rest: Any, **more: Any) -> Any:
        for command in commands.values():
            given = getattr(command, field) if command.kind == kind else {}
            if "clinic" in given and six.coordinator._began_round:
                what, binding, _, body = six.opened(given.pop("clinic"))
                given["lab"] = envelope.seal(what, binding, "lab", body, six.keys["lab"].sign)
        return gather(commands, *rest, **more)

    calls.gather = with_a_stranger
    with nothing_installed(six), pytest.raises(RoundFailed, match=f"{kind}: no answer from"):
        six.coordinator.round(1)
    assert "lab' is not in this sum" in str(six.wire.errors["bank"])


# -- the model, to who was away ---------------------------------------------------------------


def behind(ours: Any) -> None:
    """The first batch made round 1; all are in a session, and nobody has been brought up to it."""
    sites = failing(ours, {"surgery": ("invite", "before")})
    ours.coordinator.start()
    ours.coordinator.round(1)
    sites.gone.clear()
    ours.coordinator = ours.another_coordinator()
    ours.coordinator._catch_up = lambda stands: None
    ours.coordinator.start()


def model_from(ours: Any, giver: str, *attesting: str) -> messages.TakeModel:
    attested = {name: ours.reply(name, messages.Attest()) for name in attesting}
    return messages.TakeModel(giver, ours.reply(giver, messages.GiveModel(0)), attested)


def test_a_model_is_taken_by_the_word_of_c_plus_one_sites(six: Any) -> None:
    behind(six)
    with nothing_installed(six):
        assert "expected 2 sites that attest" in refusal(
            six, "lab", model_from(six, "bank", "bank")
        )
        own = model_from(six, "bank", "bank", "lab")
        assert "expected 2 sites that attest" in refusal(six, "lab", own)
        others = model_from(six, "bank", "bank", "surgery")
        assert "do not stand at the same model" in refusal(six, "lab", others)
        ahead = model_from(six, "bank", "bank", "clinic")
        assert "round 1 is not after this site's" in refusal(six, "hospital", ahead)
        attested = {name: flipped(data) for name, data in ahead.attested.items()}
        assert "signature" in refusal(six, "lab", replace(ahead, attested=attested))
    six.send("lab", ahead)
    assert six.participants["lab"].state.sha256() == six.participants["bank"].state.sha256()


def test_another_model_than_the_attested_one_is_not_taken(six: Any) -> None:
    """Its giver colludes. Whoever got it takes the right one from another."""
    behind(six)
    bank = six.participants["bank"]._model
    right = model_from(six, "bank", "bank", "clinic")
    values = bank.state.values.copy()
    values[0] += 1
    bank.state, kept = AdapterState(values, bank.state.spec), bank.state
    history = six.participants["bank"]._line.history(1)
    six.participants["bank"]._history = lambda: history  # it does not ask its ledger
    wrong = replace(model_from(six, "bank", "clinic"), attested=right.attested)
    bank.state = kept
    with nothing_installed(six):
        assert "not the attested one" in refusal(six, "lab", wrong)
        renamed = replace(right, giver="clinic")
        assert "signature" in refusal(six, "lab", renamed)
    assert not six.ledgers["lab"].receipts
    six.send("lab", right)
    np.testing.assert_array_equal(six.participants["lab"].state.values, kept.values)
    # It signs for no other result of that round from now on.
    with pytest.raises(ProtocolError, match="R4"):
        six.participants["lab"]._line.sign_receipt("round", 1, "00" * 32)


def test_an_attestation_of_another_session_is_none(six: Any) -> None:
    behind(six)
    old = model_from(six, "bank", "bank", "clinic")
    six.coordinator.start()
    fresh = model_from(six, "bank", "bank", "clinic")
    assert "context" in refusal(six, "lab", replace(fresh, attested=old.attested))
    assert "context" in refusal(six, "lab", replace(fresh, part=old.part))


def test_batches_that_were_kept_apart_meet_and_say_so(six: Any) -> None:
    """With min_cohort of half the sites or less each batch can go on alone, with a model of its
    own. No site takes another's then, and the run ends there."""
    for away in ("surgery", "clinic"):
        failing(six, {away: ("invite", "before")})
        six.run(1)
    assert len({six.participants[name].state.sha256() for name in six.names}) == 2
    six.coordinator = six.another_coordinator()
    six.coordinator.start()
    with nothing_installed(six), pytest.raises(RoundFailed, match=r"no answer from .*disagree"):
        six.coordinator.round(2)


def test_a_batch_does_not_take_the_model_of_another_past(six: Any) -> None:
    """One batch made round 1 and the other rounds 1 and 2, apart."""
    for away, rounds in (("surgery", 2), ("clinic", 1)):
        failing(six, {away: ("invite", "before")})
        six.run(rounds)
    six.coordinator = six.another_coordinator()
    with nothing_installed(six):
        six.coordinator.start()
    assert "sites that took this site's results up to round 1" in str(six.wire.errors["lab"])
    assert six.coordinator.active == list(FIRST)
    assert six.coordinator.lost == dict.fromkeys(SECOND, "take-model: disagree")


def test_a_cohort_over_half_the_sites_has_one_result_a_round(federation: Any) -> None:
    """Any two sums of a round share a batch then, whose honest sites enter one of them."""
    nine = federation(
        "rlwe", sites=9, rules={"membership": "batches", "max_colluding": 1, "min_cohort": 6}
    )
    failing(nine, {"bank": ("invite", "before")})
    nine.coordinator.start()
    assert len(nine.coordinator.round(1).contributors) == 6
    failing(nine, {"bank": ("invite", "before"), "lab": ("invite", "before")})
    with pytest.raises(RoundFailed, match="invite: no answer from bank"):
        nine.coordinator.start()


@pytest.mark.parametrize(
    "message",
    [
        messages.Attest(),
        messages.GiveModel(0),
        messages.TakeModel("bank", b"", {}),
        messages.Train(),
    ],
)
def test_what_is_for_batches_is_refused_without_them(
    federation: Any, message: messages.Message
) -> None:
    three = federation("rlwe")
    three.coordinator.start()
    if message.kind == "train":
        three.prepare(1)
    assert three.refused("bank", message) == "kind"
    assert three.works["bank"].trained_rounds == []
