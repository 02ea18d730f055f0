from __future__ import annotations

from fedshield.protocol.muster import attesting, muster

BATCHES = (("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i"))


def stands(**rounds: int) -> dict[str, int]:
    """a, d and g stand for their batch."""
    return {
        name: rounds[first]
        for first, batch in zip("adg", BATCHES, strict=True)
        if first in rounds
        for name in batch
    }


def test_all_who_are_there_with_their_batch() -> None:
    assert muster(BATCHES, stands(a=2, d=2, g=2), 1).present == tuple("abcdefghi")
    away = stands(a=2, d=2, g=2)
    del away["e"]
    found = muster(BATCHES, away, 1)
    assert found.present == tuple("abcghi")
    assert found.out == dict.fromkeys("df", "its batch (d, e, f) sits out until e is back")


def test_who_is_behind_is_in_the_session() -> None:
    found = muster(BATCHES, stands(a=5, d=3, g=0), 1)
    assert (found.present, found.out) == (tuple("abcdefghi"), {})


def test_c_sites_that_say_that_they_are_ahead_are_not_believed() -> None:
    rounds = stands(a=5, d=5, g=5)
    rounds["a"] = 9
    found = muster(BATCHES, rounds, 1)
    assert found.present == tuple("defghi")
    assert set(found.out) == set("abc")
    assert "a stands at a round that too few others have" in found.out["b"]
    rounds["d"] = 9
    assert muster(BATCHES, rounds, 1).present == tuple("abcdefghi")
    # Another sits out with the first, and then the second has no company.
    rounds["d"] = 8
    assert muster(BATCHES, rounds, 1).present == tuple("ghi")


def test_a_round_that_was_begun_is_repeated_by_who_began_it() -> None:
    found = muster(BATCHES, stands(a=2, d=2, g=0), 1, only="abcdef")
    assert found.present == tuple("abcdef")
    assert set(found.out) == set("ghi")


def test_the_largest_group_attests() -> None:
    said = {"a": (3, b"x"), "b": (3, b"y"), "c": (3, b"y"), "d": (2, b"y"), "e": (2, b"y")}
    assert attesting(said, 3) == ("b", "c")
    assert attesting(said, 4) == ()
