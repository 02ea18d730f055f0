"""The number to which answers count: one at a time, for all kits, and never beside a ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedshield.ledger.file import Ledger, LedgerError
from fedshield.ledger.heads import place_question
from fedshield.recovery.question import StandingQuestion

A, B = "a" * 64, "b" * 64


def test_all_who_ask_ask_with_one_number(tmp_path: Path) -> None:
    place = tmp_path / "ledger"
    with pytest.raises(LedgerError, match="found none; begin with"):
        StandingQuestion.of(place, make=False)
    with StandingQuestion.of(place, make=True) as first:
        first.add(A)
        nonce = first.nonce
        with pytest.raises(LedgerError, match="no other process is at"):
            StandingQuestion.of(place, make=True)
    with StandingQuestion.of(place, make=True) as second:
        second.add(B)
        second.add(A)
    with StandingQuestion.of(place, make=False) as third:
        assert (third.nonce, third.asked) == (nonce, (A, B))
        third.drop()
    assert not place_question(place).exists()
    with StandingQuestion.of(place, make=True) as anew:
        assert anew.nonce != nonce
    assert place_question(place).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["x\n", "\xff\n", "a" * 64 + "\nfree text\n"])
def test_a_damaged_question_is_refused(tmp_path: Path, text: str) -> None:
    place_question(tmp_path / "ledger").write_text(text, encoding="latin-1")
    with pytest.raises(LedgerError, match="got a damaged file; remove it, and ask anew"):
        StandingQuestion.of(tmp_path / "ledger", make=True)


def test_there_is_no_question_where_there_is_a_ledger(tmp_path: Path) -> None:
    place = tmp_path / "ledger"
    with (
        StandingQuestion.of(place, make=True),
        pytest.raises(LedgerError, match="got one; go on with"),
    ):
        Ledger.create(place)
    question = place_question(place).read_bytes()
    place_question(place).unlink()
    Ledger.create(place).close()
    place_question(place).write_bytes(question)
    Ledger.open(place, look_only=True).close()
    assert place_question(place).exists()
    with pytest.raises(LedgerError, match="expected no ledger, got one"):
        StandingQuestion.of(place, make=True)
    Ledger.open(place).close()
    assert not place_question(place).exists()
