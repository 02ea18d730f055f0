"""A site that crashes at any write and any send, and comes back with its journal: at most one
upload, vote and answer leaves in a session, round and phase, and from one model it votes for one
set."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hand import (
    FOUR,
    KINDS,
    REST,
    SITE,
    Hand,
    PowerCut,
    Watched,
    at_most_once,
    body_of,
    failing,
    nothing_installed,
    standing,
    started,
)

from fedshield.errors import FedShieldError, ProtocolError, RoundFailed
from fedshield.protocol.wire import messages
from fedshield.protocol.wire.envelope import Binding

STEPS = (
    "prepare", "work", "fetch-shares", "fetch", "hold", "announce", "quorum", "deliver", "open",
    "install",
)  # fmt: skip


def back(ours: Any) -> Any:
    """The site again, from its disk."""
    store = ours.stores[SITE]
    number = max(store.saved, default=0)
    state, memory = store.saved.get(number), store.memories.get(number)
    ours.participants[SITE] = ours.participant(SITE, ours.roster, state, number, memory)
    return ours.participants[SITE]


def cut_at_write(ours: Any, kind: str, when: str) -> None:
    """The power goes as the journal's line of this kind is written: before it, in the middle of
    it, or when it is on the disk but nothing else has happened."""
    journal = ours.participants[SITE]._journal
    append = journal._append

    def cut(line: dict[str, object]) -> None:
        if line["kind"] != kind:
            append(line)
            return
        if when == "torn":
            with journal._path.open("ab") as file:
                file.write(b'{"base": "round 00')
        elif when == "after":
            append(line)
        raise PowerCut

    journal._append = cut


WRITES = [("write", kind, when) for kind in KINDS.values() for when in ("before", "torn", "after")]
SENDS = [("send", method, when) for method in STEPS for when in ("before", "after")]
#: Crashes after which the vote is on record, sent or not.
VOTED = {("write", "vote", "after"), ("send", "announce", "after")}
VOTED |= {("write", "answer", when) for when in ("before", "torn", "after")}
VOTED |= {("send", m, w) for m in STEPS[6:] for w in ("before", "after")}


@pytest.mark.parametrize(("where", "what", "when"), WRITES + SENDS)
def test_a_crash(federation: Any, where: str, what: str, when: str) -> None:
    ours = started(federation)
    left: list[tuple[bytes, str, bytes]] = []
    first = Watched(ours, left, (what, when) if where == "send" else None)
    if where == "write":
        cut_at_write(ours, what, when)
    with pytest.raises(PowerCut):
        first.whole()
    first.cut = None
    opened = (what, when) == ("install", "after")
    site = back(ours)
    assert site.completed_rounds == int(opened)

    # In the same session: whatever it was told before, and what would come next, is refused.
    stood = standing(ours, SITE)
    rest: list[tuple[messages.Message, Binding]] = [
        (messages.Prepare(), first.session),
        (messages.Fetch(0), first.binding),
        (messages.FetchShares(), first.binding),
        (messages.Quorum({}), first.binding),
        (messages.Evaluate(), first.binding),
    ]
    for command, binding in first.commands + rest:
        code, _ = first.refused(SITE, command, binding)
        assert code in ("context", "scheme", "repeated")
    assert standing(ours, SITE) == stood
    if opened:
        # It is a round ahead, and stays there.
        ours.coordinator = ours.another_coordinator()
        ours.coordinator.start()
        assert ours.coordinator.lost == {SITE: "invite: round"}
        with pytest.raises(RoundFailed, match=r"clinic must be back first$"):
            ours.coordinator.round(1)
        at_most_once(left)
        return

    # In a new session: bound if it has voted, whether its vote has left or not.
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    second = Watched(ours, left).prepare().work().collect().hold()
    bound = tuple(sorted(body_of(second.keys[SITE])["bound"]))
    assert bound == (FOUR if (where, what, when) in VOTED else ())
    if bound:
        code, text = second.refused(SITE, second.announcement(REST))
        assert (code, "was voted for from this model" in text) == ("repeated", True)
    assert bound or "vote" not in {kind for _, kind, _ in left}
    second.finish(FOUR if bound else REST)
    at_most_once(left)
    assert ours.state()
    assert {one.completed_rounds for one in ours.participants.values()} == {1}


def test_a_crash_while_the_model_is_kept(federation: Any) -> None:
    """The sum was opened, and the store fails: the site is where it was, and does not ask for the
    sum again in another form."""
    ours = started(federation)
    keep = ours.stores[SITE].save

    def fail(*_: Any) -> None:
        raise PowerCut

    ours.stores[SITE].save = fail
    with pytest.raises(PowerCut):
        Watched(ours, []).whole()
    ours.stores[SITE].save = keep
    assert back(ours).completed_rounds == 0
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    hand = Hand(ours).ready()
    assert hand.refused(SITE, hand.announcement(REST))[0] == "repeated"
    hand.finish()
    assert ours.state()


@pytest.mark.parametrize("method", [*STEPS, "evaluate"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_others_go_on_and_the_site_comes_back(federation: Any, method: str, when: str) -> None:
    """With an honest coordinator: they complete the round or fail it together, and a new session
    takes the site in again if it stands where the others stand."""
    ours = started(federation)
    network = failing(ours)
    ours.coordinator.start()
    network.moments = {SITE: (method, when)}
    ours.coordinator.round(1)
    site = back(ours)
    ahead = method == "evaluate" or (method, when) == ("install", "after")
    assert site.completed_rounds == int(ahead)
    failing(ours)
    ours.coordinator.start()
    assert ours.coordinator.lost == ({} if ahead else {SITE: "invite: round"})
    outcome = ours.coordinator.round(2)
    assert outcome.contributors == (FOUR if ahead else REST)


def test_a_line_is_on_the_disk_before_the_message_leaves(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    ours = started(federation)
    path = ours.participants[SITE]._journal._path
    there = path.stat().st_ino

    def fsync(handle: int) -> None:
        """The ledger beside it is synced too."""
        if os.fstat(handle).st_ino == there:
            synced.append(path.stat().st_size)

    monkeypatch.setattr("fedshield.protocol.journal.os.fsync", fsync)
    hand = Watched(ours, [])
    for step, kind in (
        (hand.prepare, ""),
        (hand.work, "upload"),
        (hand.collect, ""),
        (hand.hold, ""),
        (lambda: hand.vote_on(FOUR, [SITE]), "vote"),
    ):
        synced.clear()
        lines = path.read_bytes().count(b"\n")
        step()
        after = path.read_bytes()
        assert after.count(b"\n") == lines + bool(kind)
        assert (
            f'"kind": "{kind}"'.encode() in (after.splitlines() or [b'"kind": ""'])[-1] or not kind
        )
        assert (len(after) in synced) == bool(kind)


# -- a disk that fails ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_disk_that_does_not_take_the_line(
    federation: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Then the message does not leave; and the site never sends two."""
    ours = started(federation)
    left: list[tuple[bytes, str, bytes]] = []
    hand = Watched(ours, left)
    append = ours.participants[SITE]._journal._append

    def full(line: dict[str, object]) -> None:
        if line["kind"] == kind:
            monkeypatch.setattr("fedshield.protocol.journal.os.fsync", fails)
        append(line)

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    ours.participants[SITE]._journal._append = full
    with nothing_installed(ours), pytest.raises(ProtocolError, match="No space left"):
        hand.whole()
    monkeypatch.undo()
    ours.participants[SITE]._journal._append = append
    assert kind not in {one for _, one, _ in left}
    if kind == "vote":
        # Nobody has heard of that vote, but the site cannot tell what its journal holds: it
        # says nothing more, and what a restart finds there binds it.
        assert hand.refused(SITE, hand.announcement(REST))[0] == "journal"
        with suppress(FedShieldError):
            back(ours)
            ours.coordinator = ours.another_coordinator()
            ours.coordinator.start()
            second = Watched(ours, left).ready()
            assert second.refused(SITE, second.announcement(REST))[0] == "repeated"
    at_most_once(left)


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a bit": lambda lines: [lines[0].replace(b"0", b"1", 1), *lines[1:]],
    "a line less": lambda lines: lines[1:],
    "a line twice": lambda lines: [lines[0], *lines],
    "another order": lambda lines: [lines[1], lines[0], *lines[2:]],
    "junk": lambda lines: [*lines, b"\xff\xfe"],
    "nothing but junk": lambda lines: [b"{}"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unreadable_journal_and_the_site_leaves(federation: Any, damage: str) -> None:
    """It cannot tell what it has sent; the others go on without it."""
    ours = started(federation)
    ours.coordinator.round(1)
    path = ours.participants[SITE]._journal._path
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    path.write_bytes(b"".join(line + b"\n" for line in DAMAGE[damage](lines)))
    with pytest.raises(ProtocolError, match=r"^journal: clinic.jsonl: damaged"):
        back(ours)
    failing(ours, {SITE: ("invite", "before")})
    ours.coordinator.start()
    assert ours.coordinator.round(2).contributors == REST


def test_a_journal_that_cannot_be_read(federation: Any) -> None:
    ours = started(federation)
    path = ours.participants[SITE]._journal._path
    path.unlink()
    path.mkdir()
    with pytest.raises(ProtocolError, match=r"^journal: clinic.jsonl: cannot be read or made"):
        back(ours)
