"""A site's journal: what left once cannot leave otherwise, also after a crash."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedshield.errors import ProtocolError
from fedshield.protocol.journal import Journal

CONTEXT, OTHER_CONTEXT = bytes(range(32)), bytes(32)
DIGEST, OTHER_DIGEST = b"\x01" * 32, b"\x02" * 32
BASE = "round 00ff"


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "bank.jsonl"


def filled(path: Path) -> Journal:
    journal = Journal(path)
    journal.upload(CONTEXT, 0, "weights", DIGEST)
    journal.open("weights 00ff", ["bank", "hospital"])
    journal.upload(CONTEXT, 1, "round", DIGEST)
    journal.open(BASE, ["hospital", "bank"])
    return journal


@pytest.mark.parametrize("reopen", [False, True])
def test_one_upload_per_context_round_and_phase(path: Path, reopen: bool) -> None:
    journal = filled(path)
    if reopen:
        journal = Journal(path)
    before = path.read_bytes()
    journal.upload(CONTEXT, 1, "round", DIGEST)  # the same bytes again
    assert path.read_bytes() == before
    assert code_of(lambda: journal.upload(CONTEXT, 1, "round", OTHER_DIGEST)) == "repeated"
    assert code_of(lambda: journal.upload(CONTEXT, 0, "weights", OTHER_DIGEST)) == "repeated"
    assert path.read_bytes() == before
    journal.upload(CONTEXT, 1, "round", DIGEST)  # a refusal forgets nothing
    # another context, round or phase is another upload
    journal.upload(OTHER_CONTEXT, 1, "round", OTHER_DIGEST)
    journal.upload(CONTEXT, 2, "round", OTHER_DIGEST)
    journal.upload(CONTEXT, 1, "weights", OTHER_DIGEST)
    again = Journal(path)
    assert code_of(lambda: again.upload(OTHER_CONTEXT, 1, "round", DIGEST)) == "repeated"


@pytest.mark.parametrize("reopen", [False, True])
def test_one_opened_set_per_base(path: Path, reopen: bool) -> None:
    journal = filled(path)
    if reopen:
        journal = Journal(path)
    before = path.read_bytes()
    journal.open(BASE, ["bank", "hospital"])  # in whatever order
    for other in (["bank"], ["bank", "clinic"], ["bank", "clinic", "hospital"], []):
        assert code_of(partial(journal.open, BASE, other)) == "repeated"
    assert path.read_bytes() == before
    journal.open("round 0100", ["bank", "clinic"])
    assert code_of(lambda: Journal(path).open("round 0100", ["bank"])) == "repeated"


def test_a_cut_last_line_is_dropped(path: Path) -> None:
    """For every place at which a crash may have cut it, the whole lines stay in force."""
    filled(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        assert path.read_bytes() == whole[:last], f"cut at {length}"
        assert code_of(partial(journal.upload, CONTEXT, 1, "round", OTHER_DIGEST)) == "repeated"
        journal.open(BASE, ["bank"])  # its record was cut: it had not been acted on
        assert code_of(lambda: Journal(path).open(BASE, ["bank", "hospital"])) == "repeated"


def test_any_other_damage_makes_the_site_leave(path: Path) -> None:
    filled(path)
    whole = path.read_bytes()
    rng = random.Random(1)
    for at in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        assert code_of(lambda: Journal(path)) == "journal", f"byte {at}"


def test_missing_doubled_swapped_and_foreign_lines(path: Path) -> None:
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    foreign = path.with_name("other.jsonl")
    Journal(foreign).upload(OTHER_CONTEXT, 7, "round", DIGEST)
    for wrong in (
        lines[1:],
        [lines[0], *lines[2:]],
        [*lines, lines[-1]],
        [lines[0], lines[0], *lines[1:]],
        [lines[1], lines[0], *lines[2:]],
        [*lines, foreign.read_bytes()],
        [*lines, b"\n"],
        [*lines, b"null\n"],
        [*lines, b"[]\n"],
        [*lines, b'"text"\n'],
        [*lines, b"{}\n"],
        [*lines, b"[" * 100_000 + b"\n"],
        [*lines, b"\xff\xfe\n"],
        [*lines, b"\x00" * 64 + b"\n"],
    ):
        path.write_bytes(b"".join(wrong))
        assert code_of(lambda: Journal(path)) == "journal"
    path.write_bytes(b"".join(lines))
    Journal(path)


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "bank.jsonl"
    folder.mkdir()
    assert code_of(lambda: Journal(folder)) == "journal"
    (tmp_path / "file").write_text("")
    assert code_of(lambda: Journal(tmp_path / "file" / "bank.jsonl")) == "journal"


def test_records_say_what_left_and_nothing_more(path: Path) -> None:
    filled(path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(record) for record in records] == [
        {"kind", "context", "round", "phase", "digest", "check"},
        {"kind", "base", "contributors", "check"},
    ] * 2
    assert records[3]["contributors"] == ["bank", "hospital"]


def test_every_record_is_synced_before_the_call_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the disk when `fsync` is called already holds the record, and `fsync` is called
    before `upload` or `open` returns. A new file's folder is synced too: a file without a name
    would be lost with the power."""
    events: list[tuple[str, bytes]] = []
    real = os.fsync

    def recording(descriptor: int) -> None:
        real(descriptor)
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("folder" if is_folder else "file", path.read_bytes()))

    monkeypatch.setattr(os, "fsync", recording)
    journal = Journal(path)
    assert events == [("folder", b"")]
    for act in (
        lambda: journal.upload(CONTEXT, 1, "round", DIGEST),
        lambda: journal.open(BASE, ["bank"]),
        lambda: journal.upload(CONTEXT, 2, "round", DIGEST),
    ):
        events.clear()
        act()
        assert events == [("file", path.read_bytes())]
        assert events[0][1].endswith(b"\n")
    events.clear()
    journal.upload(CONTEXT, 2, "round", DIGEST)  # nothing new, nothing to sync
    assert events == []


def test_a_failed_sync_is_not_taken_for_a_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(path)

    def failing(_: int) -> None:
        raise OSError("disk gone")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="disk gone"):
            journal.upload(CONTEXT, 2, "round", DIGEST)
    with pytest.raises(ProtocolError) as caught:
        journal.upload(CONTEXT, 1, "round", OTHER_DIGEST)
    assert caught.value.code == "repeated"
