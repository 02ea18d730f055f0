"""A site's journal: what left once cannot leave otherwise, also after a crash."""

from __future__ import annotations

import errno
import hashlib
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

SESSION, OTHER_SESSION = bytes(range(32)), bytes(32)
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
    """A session's weights and the first round, as a site goes through them."""
    journal = Journal(path)
    for number, phase, base in ((0, "weights", "weights 00ff"), (1, "round", BASE)):
        journal.upload(SESSION, number, phase, DIGEST)
        journal.vote(SESSION, number, phase, DIGEST, base, ["hospital", "bank"])
        journal.answer(SESSION, number, phase, DIGEST)
    return journal


def record(
    journal: Journal, kind: str, session: bytes, number: int, phase: str, what: bytes
) -> None:
    if kind == "vote":
        journal.vote(session, number, phase, what, f"{phase} {number}", ["bank", "hospital"])
    else:
        getattr(journal, kind)(session, number, phase, what)


KINDS = pytest.mark.parametrize("kind", ["upload", "vote", "answer"])


@KINDS
@pytest.mark.parametrize("reopen", [False, True])
def test_one_upload_vote_and_answer_per_session_round_and_phase(
    path: Path, kind: str, reopen: bool
) -> None:
    journal = Journal(path)
    for number, phase in ((0, "weights"), (1, "round")):
        record(journal, kind, SESSION, number, phase, DIGEST)
    if reopen:
        journal = Journal(path)
    before = path.read_bytes()
    record(journal, kind, SESSION, 1, "round", DIGEST)  # the same bytes again
    assert path.read_bytes() == before
    for number, phase in ((1, "round"), (0, "weights")):
        act = partial(record, journal, kind, SESSION, number, phase, OTHER_DIGEST)
        assert code_of(act) == "repeated"
    assert path.read_bytes() == before
    record(journal, kind, SESSION, 1, "round", DIGEST)  # a refusal forgets nothing
    # another session, round, phase or kind is another one
    record(journal, kind, OTHER_SESSION, 1, "round", OTHER_DIGEST)
    record(journal, kind, SESSION, 2, "round", OTHER_DIGEST)
    record(journal, kind, SESSION, 1, "weights", OTHER_DIGEST)
    for other in {"upload", "vote", "answer"} - {kind}:
        record(journal, other, SESSION, 1, "round", OTHER_DIGEST)
    again = Journal(path)
    assert code_of(lambda: record(again, kind, OTHER_SESSION, 1, "round", DIGEST)) == "repeated"


def vote(journal: Journal, base: str, contributors: list[str], session: bytes) -> None:
    journal.vote(session, 1, "round", DIGEST, base, contributors)


@pytest.mark.parametrize("reopen", [False, True])
def test_one_set_per_base_for_ever(path: Path, reopen: bool) -> None:
    """Also in other sessions, and whether or not the round was opened: the vote binds."""
    journal = filled(path)
    if reopen:
        journal = Journal(path)
    assert journal.bound(BASE) == ("bank", "hospital")
    assert journal.bound("round 0100") == ()
    before = path.read_bytes()
    for other in (["bank"], ["bank", "clinic"], ["bank", "clinic", "hospital"], []):
        for session in (SESSION, OTHER_SESSION):
            assert code_of(partial(vote, journal, BASE, other, session)) == "repeated"
    assert path.read_bytes() == before
    assert journal.bound(BASE) == ("bank", "hospital")
    vote(journal, BASE, ["bank", "hospital"], OTHER_SESSION)  # in whatever order
    vote(journal, "round 0100", ["clinic", "bank"], b"third")
    again = Journal(path)
    assert again.bound("round 0100") == ("bank", "clinic")
    assert code_of(partial(vote, again, "round 0100", ["bank"], b"fourth")) == "repeated"


def test_a_refused_vote_binds_to_nothing(path: Path) -> None:
    """Another vote in the same round: neither its digest nor its set is taken."""
    journal = filled(path)
    again = partial(journal.vote, SESSION, 1, "round", OTHER_DIGEST, "round 0100", ["bank"])
    assert code_of(again) == "repeated"
    assert journal.bound("round 0100") == Journal(path).bound("round 0100") == ()


@pytest.mark.parametrize(("keep", "kind"), [(4, "vote"), (5, "answer"), (3, "upload")])
def test_a_cut_last_line_is_dropped(path: Path, keep: int, kind: str) -> None:
    """For every place at which a crash may have cut it, the whole lines stay in force, and the
    one that was cut is as if it had never been: it had not been acted on."""
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    whole, cut = b"".join(lines[:keep]), lines[keep]
    assert json.loads(cut)["kind"] == kind
    for length in range(len(cut)):
        path.write_bytes(whole + cut[:length])
        journal = Journal(path)
        assert path.read_bytes() == whole, f"cut at {length}"
        first = partial(journal.upload, SESSION, 0, "weights", OTHER_DIGEST)
        assert code_of(first) == "repeated"
        if kind == "vote":
            journal.vote(SESSION, 1, "round", OTHER_DIGEST, BASE, ["bank"])
            assert Journal(path).bound(BASE) == ("bank",)
        else:
            getattr(journal, kind)(SESSION, 1, "round", OTHER_DIGEST)
        late = partial(record, Journal(path), kind, SESSION, 1, "round", DIGEST)
        assert code_of(late) == "repeated"


def test_any_other_damage_makes_the_site_leave(path: Path) -> None:
    filled(path)
    whole = path.read_bytes()
    rng = random.Random(1)
    for at in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        assert code_of(lambda: Journal(path)) == "journal", f"byte {at}"


def chained(last: bytes, fields: dict[str, object]) -> bytes:
    """A line that fits the chain: written by something that is no journal of this version."""
    before = json.loads(last)["check"]
    text = before + json.dumps(fields, sort_keys=True)
    check = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**fields, "check": check}).encode() + b"\n"


def test_lines_are_chained_as_the_protocol_says(path: Path) -> None:
    """Control: a line made by hand as docs/protocol.md, section 8 says is taken and in force."""
    filled(path)
    last = path.read_bytes().splitlines()[-1]
    fields = {"kind": "upload", "session": SESSION.hex(), "round": 2, "phase": "round"}
    with path.open("ab") as file:
        file.write(chained(last, {**fields, "digest": DIGEST.hex()}))
    act = partial(Journal(path).upload, SESSION, 2, "round", OTHER_DIGEST)
    assert code_of(act) == "repeated"


def test_missing_doubled_swapped_and_foreign_lines(path: Path) -> None:
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    foreign = path.with_name("other.jsonl")
    Journal(foreign).upload(OTHER_SESSION, 7, "round", DIGEST)
    unknown = {"kind": "open", "session": "00", "round": 1, "phase": "round", "digest": "00"}
    for wrong in (
        [*lines, chained(lines[-1], unknown)],
        [*lines, chained(lines[-1], {**unknown, "kind": "vote", "base": "b", "contributors": "x"})],
        [*lines, chained(lines[-1], {**unknown, "kind": "upload", "round": "x"})],
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
        {"kind", "session", "round", "phase", "digest", "check"},
        {"kind", "session", "round", "phase", "digest", "base", "contributors", "check"},
        {"kind", "session", "round", "phase", "digest", "check"},
    ] * 2
    assert [record["kind"] for record in records] == ["upload", "vote", "answer"] * 2
    assert records[4]["contributors"] == ["bank", "hospital"]


def test_every_record_is_synced_before_the_call_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the disk when `fsync` is called already holds the record, and `fsync` is called
    before `upload`, `vote` or `answer` returns. A new file's folder is synced too: a file without
    a name would be lost with the power."""
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
        lambda: journal.upload(SESSION, 1, "round", DIGEST),
        lambda: journal.vote(SESSION, 1, "round", DIGEST, BASE, ["bank"]),
        lambda: journal.answer(SESSION, 1, "round", DIGEST),
        lambda: journal.upload(SESSION, 2, "round", DIGEST),
    ):
        events.clear()
        act()
        assert events == [("file", path.read_bytes())]
        assert events[0][1].endswith(b"\n")
    events.clear()
    journal.upload(SESSION, 2, "round", DIGEST)  # nothing new, nothing to sync
    assert events == []


def test_a_failed_sync_is_not_taken_for_a_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(path)
    whole = path.read_bytes()

    def failing(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        for kind in ("upload", "vote", "answer"):
            with pytest.raises(ProtocolError, match="No space left") as caught:
                record(journal, kind, SESSION, 2, "round", DIGEST)
            assert caught.value.code == "journal"
            assert journal.bound("round 2") == ()
            # Whether the line is there is not known: nothing is written after it.
            act = partial(journal.upload, SESSION, 3, "round", OTHER_DIGEST)
            assert code_of(act) == "journal"
            broken.undo()
            path.write_bytes(whole)
            journal = Journal(path)
            broken.setattr(os, "fsync", failing)
