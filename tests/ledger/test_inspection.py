"""A ledger is looked at without a change to it, beside a process that holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_file import ROW

from fedshield.ledger.file import Head, Ledger, LedgerError
from fedshield.ledger.inspection import inspected, runs_kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.ledger.jsonl"


def test_what_is_looked_at_stays_as_it_is(path: Path) -> None:
    with Ledger.create(path) as held:
        held.add_row(ROW)
        held.add_row(ROW)  # tried again: one sum
        with path.open("ab") as file:
            file.write(b'{"kind": "row", "pla')  # as a line that is being written
        before = path.read_bytes()
        assert inspected(path, ()) == "whole: 0 plans approved, 1 sums entered"
        assert path.read_bytes() == before
    with Ledger.open(path, look_only=True) as ledger, pytest.raises(LedgerError):
        ledger.add_row(ROW)
    assert path.read_bytes() == before


def test_none_is_well_before_the_first_approval_only(path: Path) -> None:
    assert inspected(path, ()).startswith("none yet")
    with pytest.raises(LedgerError, match="expected the ledger of these records, found none"):
        inspected(path, ("trial",))
    with Ledger.create(path) as ledger:
        ledger.see_peers({"b" * 64: (Head(3, "d" * 64), b"signed")})
    path.unlink()
    with pytest.raises(LedgerError, match="found none"):
        inspected(path, ())


def test_damage_is_told_of_the_ledger_and_of_what_lies_beside_it(path: Path) -> None:
    with Ledger.create(path) as ledger:
        ledger.add_row(ROW)
    beside = path.with_name("rows.ledger.jsonl.peers")
    kept = beside.read_bytes()
    beside.unlink()
    with pytest.raises(LedgerError, match="restore this file alone"):
        inspected(path, ())
    beside.write_bytes(kept)
    path.write_bytes(path.read_bytes().replace(b'"round_number":1', b'"round_number":2'))
    with pytest.raises(LedgerError, match="does not follow"):
        inspected(path, ())


def test_runs_that_a_kit_keeps(tmp_path: Path) -> None:
    assert runs_kept(tmp_path) == ()
    for name in ("two", "one", ".part"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert runs_kept(tmp_path) == ("one", "two")
