"""Membership batches: rounds that a site took by the word of others stand, as if it had opened
them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hand import failing, nothing_installed, restart
from test_batches_behind import again, away, lost_after_upload, make

from fedshield.errors import ProtocolError, RoundFailed
from fedshield.ledger.entries import OpenedRound
from fedshield.protocol.wire import messages

FIRST, SECOND = ("bank", "clinic", "hospital"), ("lab", "surgery", "ward-00")


@pytest.fixture
def six(federation: Any) -> Any:
    return make(federation)


def rewound(ours: Any, *names: str) -> None:
    """The sites' processes again, at the beginning: their run folders were put back."""
    for name in names:
        ours.participants[name] = ours.participant(name, ours.roster)


def test_a_round_that_was_taken_is_not_entered(six: Any) -> None:
    """The second batch is had to open at round 0 again, by itself. It has no row of round 1, so
    nothing else would keep its updates out of a second sum of that round."""
    again(six, away("surgery")).round(1)
    again(six)
    assert six.ledgers["lab"].last_attested(six.plan.sha256()) == 1
    rewound(six, *SECOND)
    coordinator = again(six, away("clinic"))
    with nothing_installed(six), pytest.raises(RoundFailed):
        coordinator.round(1)
    for name in SECOND:
        assert "R4: expected a round after those that this site took" in str(six.wire.errors[name])
        assert six.works[name].trained_rounds == []
        assert not six.ledgers[name].rows


def test_the_ledger_refuses_a_round_that_was_taken(six: Any) -> None:
    """By itself, whoever asks; and the rounds before it."""
    again(six, away("surgery")).round(1)
    six.coordinator.round(2)
    again(six)
    line = six.participants["lab"]._line
    row = {"phase": "round", "base": six.participants["lab"]._start, "content": "", "count": 1}
    row |= {"first": row["base"], "terms": None}
    row["versions"] = dict.fromkeys(six.names, line.version)
    for number in (1, 2):
        with pytest.raises(ProtocolError, match=f"the last of which is 2, got round {number};"):
            line.enter(**row, round_number=number)
    assert not six.ledgers["lab"].rows
    line.enter(**row, round_number=3)


def test_no_certificate_takes_the_place_of_what_was_taken(six: Any) -> None:
    again(six, away("surgery")).round(1)
    again(six)
    line, result = six.participants["lab"]._line, six.participants["bank"]._model.standing()
    with pytest.raises(ProtocolError, match="disagree: R4: round 1: this site took another result"):
        line.take_certified("round", 1, "00" * 32)
    assert not six.ledgers["lab"].certified
    line.take_certified("round", 1, result)


def test_no_other_word_takes_the_place_of_what_was_taken(six: Any) -> None:
    """A site that goes back, and is told of another round 1 by c + 1 others."""
    again(six, away("surgery")).round(1)
    again(six)
    line = six.participants["lab"]._line
    other = (OpenedRound("00" * 32, line.history(1)[0].sites),)
    with pytest.raises(ProtocolError, match="disagree: R4: round 1: this site took another result"):
        line.was_in(other, 0)
    assert not line.was_in(line.history(1), 0)


@pytest.mark.parametrize(("names", "apart"), [((), True), (FIRST[:1], True), (FIRST[:2], False)])
def test_a_sum_that_shares_colluders_only_may_yet_be_opened(
    six: Any, names: tuple[str, ...], apart: bool
) -> None:
    """This site began the round over the first batch. With c = 1 one site of it that was in the
    others' sum too may be in both."""
    again(six, away("surgery"))
    six.coordinator._calls._sites.moments["clinic"] = ("hold", "before")
    with pytest.raises(RoundFailed):
        six.coordinator.round(1)
    line = six.participants["bank"]._line
    own = six.roster.identity("bank")
    sites = [six.roster.identity(name) for name in (*names, *SECOND)]
    history = (OpenedRound("11" * 32, tuple(sorted(sites))),)
    if apart:
        with pytest.raises(ProtocolError, match="made it without a batch of them"):
            line.was_in(history, 0)
        return
    assert own in sites  # so this set is not the row's, and that is found too
    with pytest.raises(ProtocolError, match="a ledger and a run folder that know of round 1"):
        line.was_in(history, 0)


def test_who_was_stopped_before_it_kept_the_model_takes_it_again(six: Any) -> None:
    """Its ledger has the line and its folder not the round."""
    again(six, away("surgery")).round(1)
    again(six)
    rewound(six, "lab")
    again(six).round(2)
    assert six.state()
    restart(six, "lab")
    again(six).round(3)
    assert six.state()


def test_who_was_lost_after_its_upload_does_not_send_it_again(six: Any) -> None:
    lost_after_upload(six)
    again(six)
    rows = list(six.ledgers["clinic"].rows)
    rewound(six, *six.names)
    with pytest.raises(RoundFailed):
        again(six).round(1)
    assert "R4: expected a round after those that this site took" in str(six.wire.errors["clinic"])
    assert six.ledgers["clinic"].rows == rows


@pytest.mark.parametrize("stranger", ["of another batch", "nobody"])
def test_only_who_signed_in_the_session_is_written_as_a_witness(
    federation: Any, stranger: str
) -> None:
    """A coordinator adds the name of a site that is not in the session, or of none."""
    nine = make(federation, 9)
    first, second, third = nine.roster.batches
    again(nine, away(second[0], third[0])).round(1)
    failing(nine, away(third[0]))
    nine.coordinator._catch_up = lambda stands: None
    nine.coordinator.start()
    attested = {name: nine.reply(name, messages.Attest()) for name in first}
    part = nine.reply(first[0], messages.GiveModel(0))
    added = attested | {stranger if stranger == "nobody" else third[0]: attested[first[0]]}
    with nothing_installed(nine):
        assert nine.refused(second[0], messages.TakeModel(first[0], part, added)) == "not-in-set"
    assert not nine.ledgers[second[0]].attested
    # Its own name among them is no witness, whatever stands beside it.
    own = attested | {second[0]: b"anything"}
    nine.send(second[0], messages.TakeModel(first[0], part, own))
    [line] = [
        json.loads(text)
        for text in (nine.folder / f"{second[0]}.ledger").read_text().splitlines()
        if '"kind":"attested"' in text
    ]
    assert line["by"] == sorted(map(nine.roster.identity, first))


@pytest.mark.parametrize("rounds", [1, 6])
def test_a_head_does_not_jump_by_the_rounds_that_were_taken(federation: Any, rounds: int) -> None:
    """A batch is away from the first round on. What its sites sign of their ledgers next is one
    line later, and others take it for what it is; so in the session after, with a restart."""
    six = make(federation, rounds=rounds + 2)
    again(six, away("surgery"))
    for number in range(1, rounds + 1):
        six.coordinator.round(number)
    before = six.ledgers["lab"].head.length
    again(six)
    assert six.ledgers["lab"].head.length == before + 1
    assert len((six.folder / "lab.ledger").read_bytes().splitlines()) == before + 1
    six.coordinator.round(rounds + 1)
    for name in six.names:
        restart(six, name)
    again(six).round(rounds + 2)
    assert six.state()


def test_a_line_of_taken_rounds_that_was_cut_off_is_found(six: Any) -> None:
    """Without it the site would enter and sign for those rounds again. The others remember the
    head that it signed since."""
    again(six, away("surgery")).round(1)
    again(six)
    again(six)  # here it signs the head that holds the line
    path = six.folder / "lab.ledger"
    six.ledgers["lab"].close()
    *kept, cut = path.read_bytes().splitlines(keepends=True)
    assert b'"kind":"attested"' in cut
    path.write_bytes(b"".join(kept))
    rewound(six, "lab")
    with nothing_installed(six), pytest.raises(RoundFailed, match=r"lab \(ledger\)"):
        again(six)
    assert "does not hold what it signed before" in str(six.wire.errors["lab"])
