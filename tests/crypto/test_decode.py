"""Sums of shares of which some are wrong: opened right, with exactly the wrong ones named, up to
floor((m - T) / 2) of m; and what is and is not found beyond that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto import decode, shamir, shares
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE
from fedshield.crypto.shamir import PRIME
from fedshield.errors import CryptoError
from reference.reed_solomon import search

Q = PRIMES[42]
VECTORS = Path(__file__).parents[1] / "vectors" / "shamir.json"
RESIDUES = (5, Q - 1, 0)
Answers = dict[int, shares.Share]


def secret(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-42, 43, RING_DEGREE)


KEY_SUM = secret(1) + secret(2)


def shape_of(threshold: int, holders: int) -> shares.ShareShape:
    return shares.ShareShape(threshold, holders, len(RESIDUES), Q)


def answers(threshold: int, holders: int) -> Answers:
    """Of every holder, to the sum of two dealers."""
    shape = shape_of(threshold, holders)
    dealt = [
        shares.deal(secret(number), residues, shape, hashlib.sha256(bytes([number])).digest())
        for number, residues in ((1, RESIDUES), (2, (0, 0, 0)))
    ]
    return {holder: shares.add([one[holder] for one in dealt], shape) for holder in range(holders)}


# -- lies -------------------------------------------------------------------------------------


def moved(share: shares.Share, element: int, by: int) -> shares.Share:
    key = share.key.copy()
    key[element] = (int(key[element]) + by) % PRIME
    return replace(share, key=key)


def random_key(share: shares.Share, draw: np.random.Generator) -> shares.Share:
    key = draw.integers(0, PRIME, share.key.size).astype(np.uint64)
    return replace(share, key=key)


def one_element(share: shares.Share, draw: np.random.Generator) -> shares.Share:
    return moved(share, int(draw.integers(share.key.size)), int(draw.integers(1, PRIME)))


def one_residue(share: shares.Share, draw: np.random.Generator) -> shares.Share:
    residues = list(share.residues)
    slot = int(draw.integers(len(residues)))
    residues[slot] = (residues[slot] + int(draw.integers(1, Q))) % Q
    return replace(share, residues=tuple(residues))


def both(share: shares.Share, draw: np.random.Generator) -> shares.Share:
    return random_key(one_residue(share, draw), draw)


def zeros(share: shares.Share, draw: np.random.Generator) -> shares.Share:
    return shares.Share(np.zeros_like(share.key), (0,) * len(share.residues))


LIES = (random_key, one_element, one_residue, both, zeros)
#: Of which no two make a sum of their own, as zeros do.
APART = (random_key, one_element, both)


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, list[int], list[int], list[Any], int]:
    """T, K, who answers, whose order is who lies first, the lies, a seed."""
    holders = draw(st.integers(3, 12))
    threshold = draw(st.integers(1, holders))
    count = draw(st.integers(threshold, holders))
    order = list(draw(st.permutations(range(holders))))[:count]
    lies = draw(st.lists(st.sampled_from(LIES), min_size=count, max_size=count))
    return threshold, holders, sorted(order), order, lies, draw(st.integers(0, 2**32))


def right(key_sum: np.ndarray) -> bool:
    """What the ciphertext says of a sum of keys."""
    return bool(np.array_equal(key_sum, KEY_SUM))


def check(opened: shares.OpenedShares, liars: set[int] | frozenset[int]) -> None:
    np.testing.assert_array_equal(opened.key_sum, KEY_SUM)
    assert opened.residues == RESIDUES
    assert opened.wrong == liars


@settings(deadline=None, max_examples=150)
@given(case=cases(), checked=st.booleans())
def test_as_many_wrong_answers_as_can_be_told(case: Any, checked: bool) -> None:
    threshold, holders, answering, order, lies, seed = case
    given_ = {holder: one for holder, one in answers(threshold, holders).items()
              if holder in answering}  # fmt: skip
    draw = np.random.default_rng(seed)
    liars = order[: int(draw.integers((len(order) - threshold) // 2 + 1))]
    for holder, lie in zip(liars, lies, strict=False):
        given_[holder] = lie(given_[holder], draw)
    shape = shape_of(threshold, holders)
    check(shares.open_sum(given_, shape, 2, right if checked else None), set(liars))


@settings(deadline=None, max_examples=100)
@given(case=cases(), lie=st.sampled_from(APART), checked=st.booleans())
def test_more_wrong_keys_than_can_be_told(case: Any, lie: Any, checked: bool) -> None:
    """Of holders that did not agree on a lie: refused, never opened wrong, if there is anything to
    compare. Where the ciphertext can be asked and T answers are right, the sum is opened."""
    threshold, holders, answering, order, _, seed = case
    radius = (len(order) - threshold) // 2
    if len(order) == threshold:
        return
    given_ = {holder: answers(threshold, holders)[holder] for holder in answering}
    draw = np.random.default_rng(seed)
    count = int(draw.integers(radius + 1, len(order)))
    for holder in order[:count]:
        given_[holder] = lie(given_[holder], draw)
    shape = shape_of(threshold, holders)
    if checked and len(order) - count >= threshold:
        opened = shares.open_sum(given_, shape, 2, right)
        check(opened, set(order[:count]))
        return
    with pytest.raises(CryptoError) as caught:
        shares.open_sum(given_, shape, 2, right if checked else None)
    assert caught.value.code in ("key-sum", "residual")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_residues_against_a_search(data: st.DataObject) -> None:
    """Whatever comes: right, wrong at some places, or without any sense."""
    holders = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=7, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    count = data.draw(st.integers(1, 3))
    elements = st.integers(0, Q - 1)
    rows = [
        data.draw(st.lists(elements, min_size=threshold, max_size=threshold)) for _ in range(count)
    ]
    columns = {
        holder: tuple(
            sum(one * pow(holder + 1, power, Q) for power, one in enumerate(row)) % Q
            for row in rows
        )
        for holder in holders
    }
    for holder in data.draw(st.sets(st.sampled_from(holders))):
        columns[holder] = tuple(data.draw(st.lists(elements, min_size=count, max_size=count)))
    expected = search(columns, threshold, Q)
    if expected is not None:
        assert decode.open_residues(columns, Q, threshold) == expected
        return
    with pytest.raises(CryptoError, match="do not fit the others") as caught:
        decode.open_residues(columns, Q, threshold)
    assert caught.value.code == "key-sum"


# -- with little to spare ---------------------------------------------------------------------


def test_with_none_to_spare_whatever_comes_is_taken() -> None:
    """m = T. A lie that keeps the coefficients in range opens another sum, and nobody is named:
    that is for the ciphertext and the tags to find."""
    given_ = {holder: answers(2, 4)[holder] for holder in (0, 2)}
    given_[0] = moved(given_[0], 7, 2)  # weight 3/2 at 0
    opened = shares.open_sum(given_, shape_of(2, 4), 2, right)
    assert opened.wrong == frozenset()
    np.testing.assert_array_equal(np.flatnonzero(opened.key_sum - KEY_SUM), [21])
    given_ = {holder: answers(2, 4)[holder] for holder in (0, 2)}
    given_[2] = replace(given_[2], residues=(0, 0, 0))
    opened = shares.open_sum(given_, shape_of(2, 4), 2, right)
    assert opened.residues != RESIDUES
    assert opened.wrong == frozenset()


@pytest.mark.parametrize("liar", range(3))
@pytest.mark.parametrize("lie", LIES)
def test_with_one_to_spare_a_lie_is_seen(lie: Callable[..., shares.Share], liar: int) -> None:
    """m = T + 1: how many, not whose; a wrong key is told by the ciphertext, residues are not."""
    given_ = answers(2, 3)
    given_[liar] = lie(given_[liar], np.random.default_rng(1))
    shape = shape_of(2, 3)
    part = "residues" if lie is one_residue else "keys"
    text = rf"at least 1 of 3 answers do not fit the others \({part}\); where 2 open .*, 0 wrong"
    with pytest.raises(CryptoError, match=text):
        shares.open_sum(given_, shape, 2)
    if lie is one_residue:
        with pytest.raises(CryptoError, match=text):
            shares.open_sum(given_, shape, 2, right)
    else:
        check(shares.open_sum(given_, shape, 2, right), {liar})


def test_who_lied_about_the_key_is_left_out_of_the_residues() -> None:
    """So one wrong key and one wrong residue are told where two wrong keys would not be."""
    given_ = answers(2, 5)
    given_[4] = random_key(given_[4], np.random.default_rng(1))
    given_[0] = one_residue(given_[0], np.random.default_rng(2))
    check(shares.open_sum(given_, shape_of(2, 5), 2), {0, 4})
    given_ = {holder: given_[holder] for holder in (0, 1, 2, 4)}
    with pytest.raises(CryptoError, match=r"at least 1 of 3 .* \(residues\)"):
        shares.open_sum(given_, shape_of(2, 5), 2, right)


@pytest.mark.parametrize(("count", "found"), [(0, True), (4, True), (5, False)])
def test_more_answers_than_are_tried(count: int, found: bool) -> None:
    """Thirteen: the radius is all there is, also where the ciphertext can be asked."""
    given_ = answers(5, 13)
    for holder in range(count):
        given_[holder] = random_key(given_[holder], np.random.default_rng(holder))
    shape = shape_of(5, 13)
    if found:
        check(shares.open_sum(given_, shape, 2, right), set(range(count)))
        return
    with pytest.raises(CryptoError, match=r"at least 5 of 13 .* 4 wrong of 13 can be told"):
        shares.open_sum(given_, shape, 2, right)


def test_too_few_answers() -> None:
    given_ = {1: answers(3, 4)[1], 2: answers(3, 4)[2]}
    with pytest.raises(CryptoError, match="expected 3 shares, got 2"):
        shares.open_sum(given_, shape_of(3, 4), 2)
    with pytest.raises(CryptoError, match="expected 3 shares, got 2"):
        decode.open_residues({1: (1,), 2: (2,)}, Q, 3)


# -- those who agree on a lie -----------------------------------------------------------------


def framed(given_: Answers, liars: tuple[int, ...], honest: int, part: str) -> Answers:
    """The liars move the sum to one of their own, which `honest` (one of T = 2) lies on as well."""
    changed = dict(given_)
    for liar in liars:
        # Adds 2 (x - x0) / -x0, a line through zero at the honest holder and two at zero.
        x, x0 = liar + 1, honest + 1
        if part == "key":
            by = 2 * (x - x0) * pow(-x0, -1, PRIME) % PRIME
            changed[liar] = moved(changed[liar], 7, by)
        else:
            by = 2 * (x - x0) * pow(-x0, -1, Q) % Q
            first, *rest = changed[liar].residues
            changed[liar] = replace(changed[liar], residues=((first + by) % Q, *rest))
    return changed


def test_two_who_agree_can_frame_a_third() -> None:
    """Four answers, T = 2, two wrong: one more than is told. A wrong key opens, with the right
    answer named, where the ciphertext is not asked; else the right sum is found all the same."""
    given_ = framed(answers(2, 4), (2, 3), 0, "key")
    shape = shape_of(2, 4)
    opened = shares.open_sum(given_, shape, 2)
    assert opened.wrong == {1}
    np.testing.assert_array_equal(np.flatnonzero(opened.key_sum - KEY_SUM), [21])
    check(shares.open_sum(given_, shape, 2, right), {2, 3})
    with pytest.raises(CryptoError, match="0 choices of 2 of them") as caught:
        shares.open_sum(given_, shape, 2, lambda _: False)
    assert caught.value.code == "residual"
    with pytest.raises(CryptoError, match=r"the 3 answers do not fit .* 3 choices of 2"):
        shares.open_sum({one: given_[one] for one in (0, 1, 2)}, shape, 2, lambda _: True)


def test_two_who_agree_on_residues_are_not_found_here() -> None:
    """The tags are for that, unless those two have their key: then nothing is."""
    given_ = framed(answers(2, 4), (2, 3), 0, "residues")
    opened = shares.open_sum(given_, shape_of(2, 4), 2, right)
    np.testing.assert_array_equal(opened.key_sum, KEY_SUM)
    assert opened.wrong == {1}
    assert opened.residues == ((RESIDUES[0] + 2) % Q, *RESIDUES[1:])


def through_zero(holders: tuple[int, ...], at_zero: int, x: int, prime: int) -> int:
    """At x, the polynomial of least degree that is zero at these holders and `at_zero` at zero."""
    found = at_zero
    for holder in holders:
        found = found * (x - holder - 1) * pow(-holder - 1, -1, prime) % prime
    return found


def agreed(given_: Answers, liars: tuple[int, ...], honest: tuple[int, ...], part: str) -> Answers:
    """The liars move the sum by 2, to one that `honest` (T - 1 of them) lie on as well."""
    changed = dict(given_)
    for liar in liars:
        if part == "key":
            by = through_zero(honest, 2, liar + 1, PRIME)
            changed[liar] = moved(changed[liar], 7, by)
        else:
            by = through_zero(honest, 2, liar + 1, Q)
            first, *rest = changed[liar].residues
            changed[liar] = replace(changed[liar], residues=((first + by) % Q, *rest))
    return changed


@pytest.mark.parametrize("part", ["key", "residues"])
def test_who_may_collude_is_refused_and_not_mended(part: str) -> None:
    """Seven sites, c = 2, T = 3, of which five answer and the two lie: with two to spare one wrong
    answer could be mended, or two be refused. Mending lets the two frame a third."""
    shape = shape_of(3, 7)
    given_ = agreed(answers(3, 7), (5, 6), (0, 1), part)
    five = {holder: given_[holder] for holder in (0, 1, 2, 5, 6)}
    opened = shares.open_sum(five, shape, 2)
    assert opened.wrong == {2}
    assert (opened.residues == RESIDUES) == (part == "key")
    for fits in (None, right):
        if part == "key" and fits:
            check(shares.open_sum(five, shape, 2, fits, colluding=2), {5, 6})
            continue
        with pytest.raises(CryptoError, match=r"at least 1 of 5 .* 0 wrong of 5 can be told"):
            shares.open_sum(five, shape, 2, fits, colluding=2)
    # All seven answer: the two are mended, as K >= 3c + 1.
    for fits in (None, right):
        check(shares.open_sum(given_, shape, 2, fits, colluding=2), {5, 6})


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_c_colluders_never_have_a_wrong_sum_opened(data: st.DataObject) -> None:
    """Whatever c holders agree on, as long as c answers are to spare: right, or refused. Where all
    answer, T = c + 1 and K >= 3c + 1: right."""
    holders = data.draw(st.integers(4, 10))
    c = data.draw(st.integers(1, (holders - 1) // 2))
    threshold = data.draw(st.integers(c + 1, holders - c))
    count = data.draw(st.integers(threshold + c, holders))
    order = data.draw(st.permutations(range(holders)))[:count]
    liars, honest = tuple(order[:c]), tuple(order[c : c + threshold - 1])
    given_ = {holder: answers(threshold, holders)[holder] for holder in order}
    for part in data.draw(st.sampled_from([("key",), ("residues",), ("key", "residues")])):
        given_ = agreed(given_, liars, honest, part)
    shape = shape_of(threshold, holders)
    fits = data.draw(st.sampled_from([None, right]))
    try:
        opened = shares.open_sum(given_, shape, 2, fits, colluding=c)
    except CryptoError:
        assert not (count == holders >= 3 * c + 1 and threshold == c + 1)
        return
    check(opened, set(liars))


def test_with_fewer_to_spare_than_may_collude_all_must_agree() -> None:
    """And if they do, there is nothing to see: as with exactly T."""
    given_ = answers(3, 7)
    four = {holder: given_[holder] for holder in (0, 1, 5, 6)}
    check(shares.open_sum(four, shape_of(3, 7), 2, right, colluding=2), set())
    lying = agreed(given_, (5, 6), (0, 1), "residues")
    four = {holder: lying[holder] for holder in four}
    assert shares.open_sum(four, shape_of(3, 7), 2, right, colluding=2).residues != RESIDUES
    five = {**four, 2: lying[2]}
    with pytest.raises(CryptoError, match="do not fit the others"):
        shares.open_sum(five, shape_of(3, 7), 2, right, colluding=2)


def test_a_wrong_answer_that_the_combinations_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """What chance does with 2^-62: every answer is compared, so the sum is refused, not wrong."""
    fixed = bytes(32)
    monkeypatch.setattr("fedshield.crypto.decode.os.urandom", lambda _: fixed)
    factors = [
        decode.accepted(stream, shamir.elements(4), PRIME).tolist() for stream in decode._streams()
    ]
    # a, b, c at three elements that both combinations take to zero.
    (a1, b1, c1), (a2, b2, c2) = (row[:3] for row in factors)
    by = (b1 * c2 - c1 * b2, c1 * a2 - a1 * c2, a1 * b2 - b1 * a2)
    given_ = answers(2, 4)
    for element, change in enumerate(by):
        given_[3] = moved(given_[3], element, change % PRIME)
    with pytest.raises(CryptoError, match="holder 3 does not fit the others"):
        shares.open_sum(given_, shape_of(2, 4), 2)
    monkeypatch.undo()
    check(shares.open_sum(given_, shape_of(2, 4), 2), {3})


def test_two_wrong_answers_of_which_each_combination_sees_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Together they are more than can be told."""
    monkeypatch.setattr("fedshield.crypto.decode.os.urandom", bytes)
    factors = [
        decode.accepted(stream, shamir.elements(4), PRIME).tolist() for stream in decode._streams()
    ]
    given_ = answers(2, 4)
    for holder, (first, second, *_) in zip((1, 2), factors, strict=True):
        given_[holder] = moved(moved(given_[holder], 0, second), 1, -first)
    with pytest.raises(CryptoError, match=r"at least 2 of 4 .* 1 wrong of 4 can be told"):
        shares.open_sum(given_, shape_of(2, 4), 2)
    check(shares.open_sum(given_, shape_of(2, 4), 2, right), {1, 2})


def test_the_combinations_are_drawn_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[bytes] = []
    stream = decode.Stream

    def watched(seed: bytes, label: str, index: int) -> Any:
        seeds.append(seed)
        return stream(seed, label, index)

    monkeypatch.setattr(decode, "Stream", watched)
    for _ in range(3):
        shares.open_sum(answers(2, 4), shape_of(2, 4), 2)
    # Twice an opening, for keys and for residues, and two streams of each.
    assert len(seeds) == 12
    assert len(set(seeds)) == 6


# -- known answers ----------------------------------------------------------------------------


def test_known_answers() -> None:
    for case in json.loads(VECTORS.read_text())["answers"]:
        shape = shares.ShareShape(
            case["threshold"], case["holders"], len(case["residues"]), case["q"]
        )
        values = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
        dealt = shares.deal(values, case["residues"], shape, bytes.fromhex(case["seed"]))
        given_ = {holder: dealt[holder] for holder in case["answering"]}
        for holder, element, by in case["keys_changed"]:
            given_[holder] = moved(given_[holder], element, by)
        for holder, slot, by in case["residues_changed"]:
            changed = list(given_[holder].residues)
            changed[slot] = (changed[slot] + by) % case["q"]
            given_[holder] = replace(given_[holder], residues=tuple(changed))
        digests = [hashlib.sha256(shares.to_bytes(one)).hexdigest() for one in given_.values()]
        assert digests == case["sha256"]
        if case["wrong"] is None:
            with pytest.raises(CryptoError, match="do not fit the others"):
                shares.open_sum(given_, shape, 1)
            continue
        opened = shares.open_sum(given_, shape, 1)
        np.testing.assert_array_equal(opened.key_sum, values)
        assert list(opened.residues) == case["residues"]
        assert sorted(opened.wrong) == case["wrong"]
