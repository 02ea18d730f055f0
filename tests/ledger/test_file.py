"""A ledger survives a crash, notices damage, lets one process in, and tells a rollback."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedshield.ledger.entries import Answered, Attested, OpenedRound, Total
from fedshield.ledger.file import Forgotten, Head, Ledger, LedgerError, Receipt
from fedshield.ledger.history import Entered
from fedshield.ledger.rows import Row, Scale, Version
from fedshield.ledger.rules import Approval

A, B, C = "a" * 64, "b" * 64, "c" * 64
ROW = Row(
    plan="1" * 64,
    run="trial",
    phase="round",
    round_number=1,
    base="2" * 64,
    own=A,
    batch=(A, B, C),
    sites=(A, B, C),
    colluding=1,
    membership="fixed",
    scale=Scale("equal", 40, 4),
    versions={A: Version("a", "va"), B: Version("b", "vb"), C: Version("c", "vc")},
    content="3" * 64,
    records=frozenset({b"01234567", b"89abcdef"}),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.ledger.jsonl"


def test_what_was_written_is_read_again(path: Path) -> None:
    receipt = Receipt(ROW.plan, "round", 1, "4" * 64)
    other = replace(ROW, round_number=2, curve=(0.5, 1.25), unit="example", records=frozenset())
    with Ledger.create(path) as ledger:
        key = ledger.record_key
        ledger.add_row(ROW)
        ledger.add_receipt(receipt)
        head = ledger.add_row(other)
    with Ledger.open(path) as ledger:
        assert ledger.rows == [ROW, other]
        assert ledger.receipts == {ROW.key: receipt}
        assert ledger.head == head
        assert ledger.record_key == key
        assert ledger.tries(ROW.key) == 1


def test_records_are_kept_once(path: Path) -> None:
    with Ledger.create(path) as ledger:
        for number in (1, 2, 3):
            ledger.add_row(replace(ROW, round_number=number))
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["begun", "records", "row", "row", "row"]


def test_the_file_is_the_owners_alone(path: Path) -> None:
    Ledger.create(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_ledger_is_never_made_anew_in_silence(path: Path) -> None:
    with pytest.raises(LedgerError, match="found none; restore the ledger's newest"):
        Ledger.open(path)
    Ledger.create(path).close()
    with pytest.raises(LedgerError, match="expected no ledger yet"):
        Ledger.create(path)


def test_a_second_process_is_kept_out(path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom fedshield.ledger.file import Ledger, LedgerError\n"
        "try:\n    Ledger.open(pathlib.Path(sys.argv[1]))\n"
        "except LedgerError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with Ledger.create(path):
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "another process of this site holds the ledger" in out
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_one_receipt_for_each_sum_for_ever(path: Path) -> None:
    first, second = (Receipt(ROW.plan, "round", 1, digit * 64) for digit in "45")
    with Ledger.create(path) as ledger:
        assert ledger.add_receipt(first) == first
        assert ledger.add_receipt(second) == first
    with Ledger.open(path) as ledger:
        assert ledger.add_receipt(second) == first


def test_a_line_that_a_crash_cut_is_dropped(path: Path) -> None:
    with Ledger.create(path) as ledger:
        head = ledger.add_row(ROW)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "row", "pl')
    with Ledger.open(path) as ledger:
        assert ledger.head == head
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["changed", "missing", "doubled", "swapped", "emptied"])
def test_any_other_damage_refuses_the_ledger(path: Path, damage: str) -> None:
    with Ledger.create(path) as ledger:
        ledger.add_row(ROW)
        ledger.add_row(replace(ROW, round_number=2))
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = {
        "changed": [line.replace(b"trial", b"other") for line in lines],
        "missing": [lines[0], *lines[2:]],
        "doubled": [*lines, lines[-1]],
        "swapped": [*lines[:2], lines[3], lines[2]],
        "emptied": [],
    }[damage]
    path.write_bytes(b"".join(damaged))
    with pytest.raises(LedgerError, match="expected a whole ledger"):
        Ledger.open(path)


def test_a_restored_backup_does_not_hold_the_head_that_was_signed(path: Path) -> None:
    with Ledger.create(path) as ledger:
        early = ledger.add_row(ROW)
        backup = path.read_bytes()
        late = ledger.add_row(replace(ROW, round_number=2))
        assert ledger.holds(early)
        assert ledger.holds(late)
    path.write_bytes(backup)
    with Ledger.open(path) as ledger:
        assert ledger.holds(early)
        assert not ledger.holds(late)
        # A clone that went another way has the length and not the digest.
        forked = ledger.add_row(replace(ROW, round_number=3))
        assert forked.length == late.length
        assert not ledger.holds(late)
        assert not ledger.holds(Head(0, ""))


def test_nothing_is_written_after_a_line_that_failed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.create(path) as ledger:

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(LedgerError, match="No space left on device; nothing more was"):
                ledger.add_row(ROW)
        with pytest.raises(LedgerError, match="could not be written before"):
            ledger.add_row(ROW)


def test_nothing_of_a_record_or_key_is_shown(path: Path) -> None:
    with Ledger.create(path) as ledger:
        assert ledger.record_key.hex() not in repr(ledger)
    assert "01234567" not in repr(ROW)


def test_a_ledger_is_made_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while it is made leaves nothing by its name: an empty ledger would be refused for
    ever, and a cut one would be another's to explain."""

    def killed(*_: object) -> None:
        assert not path.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            Ledger.create(path)
    assert list(path.parent.iterdir()) == []
    with monkeypatch.context() as patched:

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        patched.setattr(os, "write", full)
        with pytest.raises(LedgerError, match="No space left on device"):
            Ledger.create(path)
    assert list(path.parent.iterdir()) == []
    Ledger.create(path).close()
    assert list(path.parent.iterdir()) == [path]


def test_a_new_ledger_is_locked_before_others_can_see_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    link = os.link

    def linked(source: Path, target: Path) -> None:
        link(source, target)
        with pytest.raises(LedgerError) as refused:
            Ledger.open(path)
        seen.append(str(refused.value))

    monkeypatch.setattr(os, "link", linked)
    Ledger.create(path).close()
    assert len(seen) == 1
    assert "another process of this site holds the ledger" in seen[0]


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_ledger_that_was_replaced_under_a_running_site_is_refused(path: Path, how: str) -> None:
    """Its rows would go where no later session reads them."""
    with Ledger.create(path) as ledger:
        ledger.add_row(ROW)
        path.rename(path.with_name("moved"))
        if how == "replaced":
            shutil.copy(path.with_name("moved"), path)
        before = path.with_name("moved").read_bytes()
        with pytest.raises(LedgerError, match=r"expected the ledger that this process opened"):
            ledger.add_row(replace(ROW, round_number=2))
        with pytest.raises(LedgerError):  # also where the first refusal was passed over
            ledger.add_row(replace(ROW, round_number=2))
        with pytest.raises(LedgerError):
            ledger.see_peers({B: (Head(3, "d" * 64), b"signed")})
        assert path.with_name("moved").read_bytes() == before


def test_a_ledger_that_is_replaced_as_it_is_opened_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is one of the file, and a name can come to mean another."""
    Ledger.create(path).close()
    other = path.with_name("other")
    shutil.copy(path, other)
    flock = fcntl.flock

    def locked(*given: int) -> None:
        flock(*given)
        os.replace(other, path)

    monkeypatch.setattr(fcntl, "flock", locked)
    with pytest.raises(LedgerError, match="another in its place"):
        Ledger.open(path)


def test_heads_of_others_are_kept_beside_the_ledger(path: Path) -> None:
    """A coordinator can begin as many sessions as it likes: the ledger does not grow by them."""
    with Ledger.create(path) as ledger:
        ledger.add_row(ROW)
        before, head = path.read_bytes(), ledger.head
        for length in (3, 5, 4):
            ledger.see_peers({B: (Head(length, "d" * 64), b"signed %d" % length)})
        ledger.see_peers({C: (Head(2, "e" * 64), b"by c")})
        known = {B: (Head(5, "d" * 64), b"signed 5"), C: (Head(2, "e" * 64), b"by c")}
        assert ledger.peers == known
        assert (path.read_bytes(), ledger.head) == (before, head)
    side = path.with_name("rows.ledger.jsonl.peers")
    assert stat.S_IMODE(side.stat().st_mode) == 0o600
    assert sorted(path.parent.iterdir()) == [path, side]
    with Ledger.open(path) as ledger:
        assert ledger.peers == known


def test_keys_of_others_are_kept_beside_the_ledger(path: Path) -> None:
    bank = (b"\x0b" * 32, b"\x0c" * 32)
    with Ledger.create(path) as ledger:
        head = ledger.head
        ledger.see_keys({"bank": bank[:1], "clinic": (b"\x0d" * 32,)})
        ledger.see_keys({"bank": bank})
        assert ledger.head == head
        ledger.see_peers({B: (Head(3, "d" * 64), b"signed")})
        before = ledger.chains
    assert before == {"0b" * 32: ("0b" * 32, "0c" * 32), "0d" * 32: ("0d" * 32,)}
    with Ledger.open(path) as ledger:
        assert ledger.chains == before
        ledger.see_keys({})
        assert ledger.peers == {B: (Head(3, "d" * 64), b"signed")}


def test_a_head_that_is_forgotten_is_told_of_for_ever(path: Path) -> None:
    with Ledger.create(path) as ledger:
        ledger.see_keys({"bank": (b"\x0b" * 32,)})
        ledger.see_peers({B: (Head(9, "d" * 64), b"signed")})
        ledger.see_peers({C: (Head(2, "e" * 64), b"by c")})
        length = ledger.head.length
        done = ledger.forget_peer(B, "2026-03-01")
        assert done == Forgotten(B, 9, "d" * 64, "2026-03-01")
        assert ledger.head.length == length + 1
        with pytest.raises(KeyError):
            ledger.forget_peer(B, "2026-03-01")
    with Ledger.open(path) as ledger:
        assert ledger.forgotten == [done]
        assert ledger.peers == {C: (Head(2, "e" * 64), b"by c")}
        assert list(ledger.chains) == ["0b" * 32]
        ledger.see_peers({B: (Head(3, "f" * 64), b"signed anew")})
        assert ledger.peers[B] == (Head(3, "f" * 64), b"signed anew")


def test_a_crash_while_a_head_is_forgotten_keeps_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.create(path) as ledger:
        ledger.see_peers({B: (Head(9, "d" * 64), b"signed")})

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("fedshield.ledger.heads.write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.forget_peer(B, "2026-03-01")
    with Ledger.open(path) as ledger:
        assert len(ledger.forgotten) == 1  # what was meant is told; what is remembered still counts
        assert ledger.peers == {B: (Head(9, "d" * 64), b"signed")}


def test_lost_heads_of_others_are_refused_once_there_is_a_row(path: Path) -> None:
    side = path.with_name("rows.ledger.jsonl.peers")
    with Ledger.create(path) as ledger:
        ledger.see_peers({B: (Head(3, "d" * 64), b"signed")})
    side.unlink()
    with Ledger.open(path) as ledger:
        assert ledger.peers == {}
        ledger.add_row(ROW)  # of a site that has met no other: still there is a file
    with Ledger.open(path) as ledger:
        assert ledger.peers == {}
    side.unlink()
    with pytest.raises(LedgerError, match="restore this file alone"):
        Ledger.open(path)


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "another ledger's", "earlier"])
def test_damaged_heads_of_others_are_refused(path: Path, damage: str) -> None:
    side = path.with_name("rows.ledger.jsonl.peers")
    with Ledger.create(path) as ledger:
        ledger.see_peers({B: (Head(3, "d" * 64), b"signed")})
    if damage == "another ledger's":
        other = path.with_name("other")
        with Ledger.create(other) as ledger:
            ledger.see_peers({B: (Head(3, "d" * 64), b"signed")})
        shutil.copy(other.with_name("other.peers"), side)
    else:
        whole = side.read_text()
        changed = {"changed": whole.replace("dd", "de", 1), "cut": whole[:40], "emptied": ""}
        changed["earlier"] = whole.replace("peers 2", "peers 1")
        side.write_text(changed[damage])
    with pytest.raises(LedgerError, match="restore this file alone"):
        Ledger.open(path)


def test_a_new_ledger_beside_what_is_left_of_another_is_refused(path: Path) -> None:
    with Ledger.create(path) as ledger:
        ledger.see_peers({B: (Head(3, "d" * 64), b"signed")})
    path.unlink()
    with pytest.raises(LedgerError, match="expected no earlier ledger"):
        Ledger.create(path)


LINES: dict[str, Callable[[Ledger], object]] = {
    "row": lambda ledger: ledger.add_row(replace(ROW, records=frozenset({b"01234567"}))),
    "receipt": lambda ledger: ledger.add_receipt(Receipt(ROW.plan, "round", 1, "4" * 64)),
    "certified": lambda ledger: ledger.add_certified(Receipt(ROW.plan, "round", 1, "4" * 64)),
    "attested": lambda ledger: ledger.add_attested(ATTESTED),
    "total": lambda ledger: ledger.add_total(Total(ROW.plan, 12)),
    "approval": lambda ledger: ledger.approve(Approval(ROW.plan, "r", "m", 2, ())),
    "answered": lambda ledger: ledger.add_answered(Answered(B, "0" * 32, "now")),
    "entered": lambda ledger: ledger.add_entered(ENTERED),
}
ATTESTED = Attested(ROW.plan, 1, tuple(OpenedRound(f"{k}" * 64, (B, C)) for k in range(6)), (B, C))
ENTERED = Entered(frozenset({b"01234567"}), (((A, B, C),),), None, {A: "a"}, frozenset())


@pytest.mark.parametrize("kind", LINES)
def test_every_line_is_one_digest_at_the_next_number(path: Path, kind: str) -> None:
    """Whatever rounds it speaks of: else a head jumps, and peers take the ledger for restored."""
    with Ledger.create(path) as ledger:
        ledger.add_row(replace(ROW, records=frozenset({b"01234567"})))
        for _ in range(3):
            ledger.approve(Approval("9" * 64, "r", "m", 2, ()))
        before = ledger.head
        LINES[kind](ledger)
        lines = len(path.read_text().splitlines())
        assert (before.length + 1, ledger.head.length) == (lines, lines)
        assert ledger.holds(before)
        after = ledger.head
    with Ledger.open(path) as ledger:
        assert ledger.head == after
        assert ledger.holds(before)
        assert [*ledger._digests] == [*range(1, lines + 1)]


def test_an_attested_line_that_is_gone_is_found(path: Path) -> None:
    with Ledger.create(path) as ledger:
        ledger.add_row(ROW)
        ledger.add_attested(ATTESTED)
        signed = ledger.head
        ledger.add_total(Total(ROW.plan, 12))
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:-2]))
    with Ledger.open(path) as ledger:
        assert not ledger.holds(signed)
    path.write_text("".join([*kept[:-2], kept[-1]]))
    with pytest.raises(LedgerError, match=f"line {len(kept) - 1} does not follow"):
        Ledger.open(path)


def test_consent_and_limit_of_an_approval_are_kept(path: Path) -> None:
    about = ("1" * 64, "2" * 64, "3" * 64, 3, ("weights",))
    given = Approval(*about, Version("4" * 64, "5" * 64), ("a",), "site", 2.5)
    bare = Approval("5" * 64, "2" * 64, "3" * 64, 3, ())
    with Ledger.create(path) as ledger:
        ledger.approve(given)
        ledger.approve(bare)
    with Ledger.open(path) as ledger:
        assert ledger.approvals == {given.plan: given, bare.plan: bare}
    assert (bare.part, bare.unit, bare.limit) == (None, "none", None)


def test_no_message_names_a_command_that_does_not_exist(path: Path) -> None:
    with pytest.raises(LedgerError) as missing:
        Ledger.open(path)
    path.write_bytes(b"{}\n")
    with pytest.raises(LedgerError) as damaged:
        Ledger.open(path)
    for error in (missing, damaged):
        assert "recover" not in str(error.value)
        assert "newest backup" in str(error.value)
