"""What a site tells another whose ledger was lost: nothing of its own, everything that a rule
needs, and nothing that is not checked when it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.enrolment.files import RosterError
from fedshield.ledger.entries import Answered, Receipt
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import LOST, Row, Scale, Version
from fedshield.recovery.letters import Answer, Question, ToldRow, rows_about

A, B, C, D = (letter * 64 for letter in "abcd")
NONCE = bytes(range(32))
ROW = Row(
    plan="1" * 64,
    run="trial",
    phase="round",
    round_number=1,
    base="2" * 64,
    own=B,
    batch=(A, B, C),
    sites=(A, B, C),
    colluding=1,
    membership="fixed",
    scale=Scale("private", 987654321, 4),
    versions={site: Version(site, "7" * 64) for site in (A, B, C)},
    content="3" * 64,
    unit="example",
    curve=(0.125, 0.5625),
    distance=0.0625,
    records=frozenset({b"01234567"}),
    roster="9" * 64,
)
RESULT = Receipt(ROW.plan, "round", 1, "8" * 64)


def answer(rows: tuple[ToldRow, ...] = (ToldRow.of(ROW, A),)) -> Answer:
    return Answer(NONCE, B, A, b"head", {A: b"of A", C: b""}, rows, (RESULT,))


def test_what_is_told_is_of_the_asker_and_nothing_of_the_tellers(tmp_path: Path) -> None:
    """Neither what the teller counted for nor a curve, which tells its number of rows."""
    elsewhere = replace(ROW, plan="4" * 64, batch=(B, C, D), sites=(B, C, D))
    alone = replace(ROW, plan="5" * 64, membership="open", batch=(B,))
    lost = replace(ROW, phase=LOST, round_number=0, recovered=True)
    # A sum over two batches, of which the asker is in the other one: its result only is told.
    apart = replace(ROW, plan="6" * 64, membership="batches", batch=(B, C, D), sites=(A, B, C, D))
    with Ledger.create(tmp_path / "ledger") as ledger:
        for row in (ROW, ROW, elsewhere, alone, lost, apart):
            ledger.add_row(row)
        ledger.add_receipt(RESULT)
        ledger.add_receipt(RESULT._replace(plan="4" * 64))
        ledger.add_receipt(RESULT._replace(plan="6" * 64))
        rows, results = rows_about(ledger, A)
        assert [row.plan for row in rows_about(ledger, D)[0]] == ["4" * 64, "6" * 64]
    assert [(row.plan, row.batch) for row in rows] == [(ROW.plan, (A, B, C)), ("5" * 64, (A,))]
    assert results == (RESULT, RESULT._replace(plan="6" * 64))
    text = answer(rows).signed(SigningKey().sign).to_text()
    for own in (
        "0.125",
        "0.5625",
        "0.0625",
        "987654321",
        ROW.content,
        b"01234567".hex(),
        "01234567",
    ):
        assert own not in text


def test_what_was_heard_in_a_recovery_is_told_as_heard(tmp_path: Path) -> None:
    """Else a liar's row would come back as an honest site's own."""
    heard = replace(ROW, plan="4" * 64, content="", recovered=True)
    with Ledger.create(tmp_path / "ledger") as ledger:
        for row in (ROW, heard):
            ledger.add_row(row)
        rows, _ = rows_about(ledger, A)
    assert [(row.plan, row.recovered) for row in rows] == [(ROW.plan, False), ("4" * 64, True)]
    path = tmp_path / "answer"
    path.write_text(answer(rows).signed(SigningKey().sign).to_text())
    assert Answer.read(path).rows == rows


def test_an_answer_is_read_as_it_was_written_and_signed(tmp_path: Path) -> None:
    key, path = SigningKey(), tmp_path / "answer"
    written = answer().signed(key.sign)
    path.write_text(written.to_text())
    read = Answer.read(path)
    assert read == written
    assert read.is_signed(key.public)
    assert not read.is_signed(SigningKey().public)
    path.write_text(written.to_text().replace('"trial"', '"other"'))
    assert not Answer.read(path).is_signed(key.public)


def test_a_question_is_read_as_it_was_asked(tmp_path: Path) -> None:
    key, path = SigningKey(), tmp_path / "question"
    question = Question(NONCE, A).signed(key.sign)
    path.write_text(question.to_text())
    assert Question.read(path) == question
    assert question.is_signed(key.public)
    # A signature under one is none under the other.
    assert not replace(question, nonce=bytes(32)).is_signed(key.public)
    for bad in ({"nonce": "00" * 31}, {"about": 3}, {"more": ""}, {"signature": "00"}):
        path.write_text(json.dumps(json.loads(question.to_text()) | bad))
        with pytest.raises(RosterError, match=rf"^{path}: .*(expected|unknown key)"):
            Question.read(path)


@pytest.mark.parametrize(
    "bad",
    [
        {"nonce": "00"},
        {"teller": "b" * 63},
        {"about": D},  # then no row is of a sum of its
        {"head": "0"},
        {"head": "00" * 257},
        {"heads": {"x": "00"}},
        {"heads": []},
        {"rows": {}},
        {"rows": [3]},
        {"results": [{"plan": "1" * 64, "phase": "round", "round": 1, "result": 1}]},
        {"results": [{"plan": "1" * 64, "phase": "lost", "round": 1, "result": "8" * 64}]},
        {"signature": None},
        {"curve": [0.0]},
    ],
)
def test_what_is_no_answer_is_refused_in_one_line(tmp_path: Path, bad: dict[str, Any]) -> None:
    check_refused(tmp_path / "answer", bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"plan": "1" * 62},
        {"plan": 1},
        {"roster": "zz"},
        {"run": "../trial"},
        {"run": "a" * 90},
        {"phase": "lost"},
        {"phase": "weights"},  # with a base
        {"round": -1},
        {"round": 0},  # of a round
        {"round": True},
        {"round": 2**40},
        {"round": 1.0},
        {"base": None},
        {"batch": []},
        {"batch": [B, A, C]},
        {"batch": [A, A]},
        {"batch": ["alpha"]},
        {"batch": "abc"},
        {"batch": [B, C]},  # not the asker's
        {"recovered": None},
        {"recovered": 1},
        {"sites": {A: "7" * 127, B: "7" * 128}},
        {"sites": {B: "7" * 128, A: "7" * 128}},
        {"sites": {f"{number:064x}": "7" * 128 for number in range(65)}},
        {"colluding": 64},
        {"membership": "closed"},
        {"weights": "all"},
        {"steps": "4"},
        {"curve": []},
        {"unit": "example"},
    ],
)
def test_what_is_no_row_is_refused_in_one_line(tmp_path: Path, bad: dict[str, Any]) -> None:
    row = json.loads(answer().to_text())["rows"][0]
    check_refused(tmp_path / "answer", {"rows": [row | bad]})


def check_refused(path: Path, bad: dict[str, Any]) -> None:
    good = answer().signed(SigningKey().sign).to_text()
    path.write_text(json.dumps(json.loads(good)))
    Answer.read(path)
    path.write_text(json.dumps(json.loads(good) | bad))
    with pytest.raises(RosterError, match=r"(expected|unknown key).*; ") as found:
        Answer.read(path)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(f"{path}: ")


def test_an_answer_that_was_given_is_in_the_tellers_ledger(tmp_path: Path) -> None:
    given = Answered(A, NONCE.hex(), "2026-11-28")
    with Ledger.create(tmp_path / "ledger") as ledger:
        ledger.add_answered(given)
        head = ledger.head
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert (ledger.answered, ledger.head) == ([given], head)
