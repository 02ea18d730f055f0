"""Heads that others tell a site whose ledger was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.ledger.entries import Recovered
from fedshield.ledger.file import Ledger
from fedshield.ledger.heads import GAP, MAX_LINES, Head
from fedshield.protocol.statements import sign_head
from fedshield.recovery.letters import Answer, RecoveryError
from fedshield.recovery.told_heads import OwnHeads, heads_of_others, next_line, own_heads

OLD, KEY, B_KEY, C_KEY = (SigningKey(bytes([number]) * 32) for number in range(4))
A, B, C = OLD.public.hex(), B_KEY.public.hex(), C_KEY.public.hex()
SITES = {
    A: ("alpha", (OLD.public, KEY.public)),
    B: ("beta", (B_KEY.public,)),
    C: ("gamma", (C_KEY.public,)),
}
X, Y = "e" * 64, "f" * 64


def head(length: int, key: SigningKey, digest: str = X) -> bytes:
    return sign_head(Head(length, digest), key.sign)


def told(teller: str = B, own: bytes = b"", **heads: bytes) -> Answer:
    names = {"a": A, "b": B, "c": C}
    by_site = {names[name]: one for name, one in heads.items()}
    return Answer(bytes(32), teller, A, own, by_site, (), ())


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "older") as ledger:
        yield ledger


def test_the_ledger_goes_on_beyond_all_that_was_signed(older: Ledger) -> None:
    answers = [told(B, a=head(9, OLD)), told(C, a=head(7, KEY))]
    own = own_heads(older, answers, SITES)
    assert (own.lines, own.shown) == ({B: 9, C: 7}, False)
    assert next_line(older, own, SITES) == 9 + GAP
    # What nobody signed is none.
    nothing = own_heads(older, [told(B, a=head(9, B_KEY)), told(C, a=b"x")], SITES)
    assert nothing == OwnHeads({}, {}, False)
    assert next_line(older, nothing, SITES) == 1 + GAP
    whole = own_heads(older, [told(B, a=sign_head(older.head, KEY.sign))], SITES)
    assert (whole.lines, whole.shown) == ({B: 1}, True)


def test_a_copy_of_another_ledger_is_refused(older: Ledger) -> None:
    with pytest.raises(RecoveryError, match=r"signed to beta \(line 1\), got another one"):
        own_heads(older, [told(B, a=head(1, KEY))], SITES)
    # With a stolen key of before anything can be signed.
    assert own_heads(older, [told(B, a=head(1, OLD))], SITES).lines == {B: 1}


def test_a_head_that_was_lost_before_is_no_other_ledgers(tmp_path: Path, older: Ledger) -> None:
    """The copy is of a ledger that was rebuilt once, and who told of the lost one then has seen
    nothing of it since."""
    first = Recovered(1000, 1, "ab", {B: 7}, (), "2026-11-28")
    lines = (tmp_path / "older").read_bytes()
    rest: tuple[Any, ...] = ([], [], {}, {}, lambda: None)
    with Ledger.rebuild(tmp_path / "again", lines, first, *rest) as again:
        assert own_heads(again, [told(B, a=head(7, KEY))], SITES).lines == {B: 7}
        # A later one than it told of, and another's, are not known to be lost.
        for teller, line in ((B, 8), (C, 7)):
            with pytest.raises(RecoveryError, match="got another one; give the right copy"):
                own_heads(again, [told(teller, a=head(line, KEY))], SITES)


@pytest.mark.parametrize(("key", "which"), [(OLD, "an earlier key"), (KEY, "the key of today")])
def test_a_head_that_no_ledger_can_pass_is_forgotten_first(
    older: Ledger, key: SigningKey, which: str
) -> None:
    """Who told of it is named, and the key that signed it. A ledger that could pass it by a line
    would soon be full."""
    most = MAX_LINES - 2 * GAP

    def line_after(length: int) -> int:
        answers = [told(B, a=head(length, key)), told(C, a=head(7, KEY))]
        return next_line(older, own_heads(older, answers, SITES), SITES)

    assert line_after(most) == MAX_LINES - GAP
    named = rf"from beta, signed with {which} \({key.public.hex()[:16]}\): a stolen key"
    for length in (most + 1, MAX_LINES):
        with pytest.raises(RecoveryError, match=rf"{named}.*site ledger forget NAME"):
            line_after(length)


def test_the_highest_heads_are_remembered(older: Ledger) -> None:
    now = head(9, B_KEY)
    known: dict[str, Any] = {B: (Head(5, X), b"of before")}
    answers = [told(B, now), told(C, head(4, C_KEY), b=head(9, B_KEY))]
    found = heads_of_others(answers, (known, {}), SITES)
    assert found == {B: (Head(9, X), now), C: (Head(4, X), head(4, C_KEY))}
    # A site that has no ledger yet, and of which nobody remembers one.
    assert heads_of_others([told(B)], ({},), SITES) == {}


@pytest.mark.parametrize(
    ("answers", "known", "why"),
    [
        # Rolled back since this site saw it, or since another did.
        ([told(B, head(4, B_KEY))], {B: (Head(5, X), b"")}, "from line 5, as this site remembers"),
        ([told(B, head(5, B_KEY, Y))], {B: (Head(5, X), b"")}, "from line 5, as this site"),
        (
            [told(B, head(4, B_KEY)), told(C, head(1, C_KEY), b=head(6, B_KEY))],
            {},
            "ledger of beta that goes on from line 6, as gamma remembers it",
        ),
        ([told(B)], {B: (Head(5, X), b"")}, "got an earlier one or none"),
        (
            [
                told(B, head(9, B_KEY)),
                told(C, head(1, C_KEY), b=head(6, B_KEY)),
                told(B, head(9, B_KEY), b=b""),
            ],
            {B: (Head(6, Y), b"")},
            r"two of one length \(line 6\)",
        ),
        ([told(B, head(4, C_KEY))], {}, "signed with its key of today, got something else"),
    ],
)
def test_a_site_that_was_rolled_back_is_found(
    answers: list[Answer], known: dict[str, Any], why: str
) -> None:
    with pytest.raises(RecoveryError, match=why):
        heads_of_others(answers, (known,), SITES)
