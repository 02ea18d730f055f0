"""What others remember of a lost ledger: nothing of theirs, everything that a rule needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.ledger import recovery, rules
from fedshield.ledger.entries import Receipt
from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.heads import place_beside
from fedshield.ledger.recovery import RecoveryError
from fedshield.ledger.rows import (
    LOST,
    UNKNOWN,
    Consent,
    Row,
    Scale,
    Version,
    line_curve,
    line_of,
)
from fedshield.ledger.rules import Approval

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
    scale=Scale("equal", 0, 4),
    versions={site: Version(site, site) for site in (A, B, C)},
    content="3" * 64,
    records=frozenset({b"a record"}),
)
RESULT = Receipt(ROW.plan, "round", 1, "8" * 64)
#: The lost row as A asks for the next one.
LATER = replace(ROW, own=A, plan="5" * 64, content="7" * 64, records=frozenset({b"of A too"}))


def tell(tmp_path: Path, *rows: Row, teller: str = B, rounds: int = 3) -> recovery.Told:
    with Ledger.create(tmp_path / f"{teller[:1]}{len(rows)}.ledger") as ledger:
        for plan in dict.fromkeys(row.plan for row in rows):
            ledger.approve(Approval(plan, "9" * 64, "6" * 64, rounds, ()))
        for row in rows:
            ledger.add_row(replace(row, own=teller))
        ledger.add_receipt(RESULT)
        return recovery.told(ledger, NONCE, teller, A)


def test_what_is_told_is_of_the_asker_and_nothing_of_the_tellers(tmp_path: Path) -> None:
    private = replace(ROW, round_number=2, scale=Scale("private", 40, 4))
    elsewhere = replace(ROW, plan="4" * 64, batch=(B, C, D), sites=(B, C, D))
    found = tell(tmp_path, ROW, ROW, private, elsewhere)
    assert [row.round_number for row in found.rows] == [1, 2]
    assert {row.own for row in found.rows} == {A}
    assert {(row.content, row.records) for row in found.rows} == {("", frozenset())}
    assert [row.scale.count for row in found.rows] == [0, UNKNOWN]
    assert found.receipts == (RESULT,)
    assert found.rounds == {ROW.plan: 3}
    text = recovery.write(found, SigningKey().sign)
    assert "a record" not in text
    assert ROW.content not in text


def test_an_answer_is_read_as_it_was_written_and_signed(tmp_path: Path) -> None:
    key = SigningKey()
    found = tell(tmp_path, ROW)
    text = recovery.write(found, key.sign)
    read, signed = recovery.read(text, "it")
    assert read == found
    assert signed(key.public)
    assert not signed(SigningKey().public)
    changed, signed = recovery.read(text.replace('"trial"', '"other"'), "it")
    assert changed != found
    assert not signed(key.public)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (recovery.FORMAT, "fedshield ledger rows 2"),
        ('"recovered": true', '"recovered": false'),
        (f'"own": "{A}"', f'"own": "{B}"'),
        ('"content": ""', '"content": "x"'),
        (f'"{ROW.plan}": 3', f'"{ROW.plan}": -1'),
        ('"rows": [', '"rows": [3, '),
        ("{", ""),
    ],
)
def test_what_is_no_answer_is_refused_in_one_line(tmp_path: Path, old: str, new: str) -> None:
    text = recovery.write(tell(tmp_path, ROW), SigningKey().sign)
    assert old in text
    with pytest.raises(RecoveryError, match=r"^it: expected .*; ask for the file again$"):
        recovery.read(text.replace(old, new, 1), "it")


def test_a_question_is_read_as_it_was_asked() -> None:
    key = SigningKey()
    text = recovery.question(NONCE, A, key.sign)
    nonce, about, signed = recovery.read_question(text, "it")
    assert (nonce, about, signed(key.public)) == (NONCE, A, True)
    raw = json.loads(text)
    raw["said"]["nonce"] = "00" * 31
    for bad in (json.dumps(raw), "[]", "x"):
        with pytest.raises(RecoveryError, match="expected another site's question"):
            recovery.read_question(bad, "it")


def test_a_row_that_one_leaves_out_comes_from_another(tmp_path: Path) -> None:
    """With one liar among the others the honest one has every sum that was opened."""
    liar = tell(tmp_path, teller=C)
    rows, receipts = recovery.rebuilt([tell(tmp_path, ROW), liar], colluding=1)
    assert [row.key for row in rows] == [ROW.key]
    assert receipts == ()  # the one that tells it could lie too
    both = [tell(tmp_path, ROW, ROW), tell(tmp_path, ROW, teller=D)]
    assert recovery.rebuilt(both, colluding=1)[1] == (RESULT,)


def test_what_is_told_apart_is_kept_side_by_side(tmp_path: Path) -> None:
    """A row too many refuses more: the same sum from another start is one more row, and of two
    results that enough tell neither is taken."""
    other = replace(ROW, base="f" * 64)
    answers = [tell(tmp_path, ROW), tell(tmp_path, other, other, teller=C)]
    rows, receipts = recovery.rebuilt(answers, colluding=1)
    assert [row.base for row in rows] == [ROW.base, other.base]
    assert receipts == (RESULT,)
    lying = replace(answers[1], receipts=(RESULT._replace(result="e" * 64),))
    two = [answers[0], replace(answers[0], teller=D), lying, replace(lying, teller=B)]
    assert recovery.rebuilt(two, colluding=1)[1] == ()


def test_a_rebuilt_row_counts_for_all_records_and_is_not_repeated(tmp_path: Path) -> None:
    rows, _ = recovery.rebuilt([tell(tmp_path, ROW)], colluding=1)
    assert line_of(rows, LATER.records) == rows
    assert rules.whole_batch(rows, LATER, Consent()) == ""
    joined = replace(LATER, batch=(A, B, D), sites=(A, B, D))
    assert "differs by 2 sites" in rules.whole_batch(rows, joined, Consent())
    assert "not to be repeated" in rules.once(rows, replace(LATER, plan=ROW.plan))
    assert "a plan has one run" in rules.once(rows, replace(LATER, plan=ROW.plan, run="x"))
    # Its own part cannot be compared under another record key: the operator is asked.
    assert "records as in" in rules.own_part(
        rows, replace(LATER, versions={**ROW.versions, A: Version("new", "new")}), Consent()
    )


def test_with_weights_by_rows_nothing_more_is_summed(tmp_path: Path) -> None:
    rows, _ = recovery.rebuilt(
        [tell(tmp_path, replace(ROW, scale=Scale("private", 40, 4)))], colluding=1
    )
    said = rules.one_scale(rows, replace(LATER, scale=Scale("private", 40, 4)))
    assert "lost with its ledger" in said


def test_epsilon_is_taken_at_the_plans_full_rounds(tmp_path: Path) -> None:
    """That rounds were entered which nobody saw cannot be told."""
    spent = replace(ROW, unit="example", curve=(1.0, 2.0), distance=0.25)
    second = replace(spent, round_number=2)
    rows, _ = recovery.rebuilt([tell(tmp_path, spent, second, rounds=5)], colluding=1)
    assert [row.phase for row in rows] == ["round", "round", LOST]
    assert line_curve(rows, "example") == ((5.0, 10.0), 1.25)
    assert line_curve(rows, "site") is None


def test_a_rebuilt_ledger_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lost.ledger"
    rows, receipts = recovery.rebuilt([tell(tmp_path, ROW), tell(tmp_path, ROW, ROW)], 1)
    with Ledger.create(path, rows, receipts):
        pass
    with Ledger.open(path) as ledger:
        assert tuple(ledger.rows) == rows
        assert ledger.results(ROW.plan) == {RESULT.result}
    beside = place_beside(path).read_bytes()
    with pytest.raises(LedgerError, match="expected no ledger yet"):
        Ledger.create(path, rows, receipts)
    assert place_beside(path).read_bytes() == beside
