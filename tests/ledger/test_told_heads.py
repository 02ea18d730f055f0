"""Heads that others tell a site whose ledger was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedshield.crypto.keys import SigningKey
from fedshield.ledger.file import Ledger
from fedshield.ledger.heads import GAP, MAX_LINES, Head
from fedshield.ledger.recovery import Answer, RecoveryError
from fedshield.ledger.told_heads import heads_of_others, next_line, own_heads
from fedshield.protocol.statements import sign_head

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
    lengths, shown = own_heads(older, answers, SITES)
    assert (lengths, shown) == ({B: 9, C: 7}, False)
    assert next_line(older, lengths, SITES) == 9 + GAP
    assert next_line(older, {}, SITES) == 1 + GAP
    # What nobody signed is none.
    assert own_heads(older, [told(B, a=head(9, B_KEY)), told(C, a=b"x")], SITES) == ({}, False)
    whole = sign_head(older.head, KEY.sign)
    assert own_heads(older, [told(B, a=whole)], SITES) == ({B: 1}, True)


def test_a_copy_of_another_ledger_is_refused(older: Ledger) -> None:
    with pytest.raises(RecoveryError, match=r"signed to beta \(line 1\), got another one"):
        own_heads(older, [told(B, a=head(1, KEY))], SITES)
    # With a stolen key of before anything can be signed.
    assert own_heads(older, [told(B, a=head(1, OLD))], SITES) == ({B: 1}, False)


def test_a_head_that_no_ledger_can_pass_is_forgotten_first(older: Ledger) -> None:
    with pytest.raises(RecoveryError, match=r"from beta: a stolen key .*site ledger forget NAME"):
        next_line(older, {B: MAX_LINES, C: 7}, SITES)


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
