"""Shamir's sharing: T shares give the sum, fewer are consistent with anything."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto import shamir
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.errors import CryptoError

VECTORS = Path(__file__).parents[1] / "vectors" / "shamir.json"


def seed(number: int) -> bytes:
    return hashlib.sha256(b"test share" + number.to_bytes(4, "big")).digest()


def secret(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-42, 43, RING_DEGREE)


def packed_of(values: np.ndarray, holders: int) -> np.ndarray:
    """A secret as field elements: lanes low first, the last element filled up with zeros."""
    bits, count = shamir.lanes(holders)
    padded = np.append(values, np.zeros(-values.size % count, dtype=np.int64)).reshape(-1, count)
    weights = [1 << (bits * lane) for lane in range(count)]
    return ((padded * weights).sum(axis=1) % shamir.PRIME).astype(np.uint64)


#: A number of sites of each packing.
packings = pytest.mark.parametrize("holders", [5, 13])


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_threshold_of_shares_opens_the_sum(data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 20))
    threshold = data.draw(st.integers(1, holders))
    dealers = data.draw(st.integers(1, 6))
    dealt = [shamir.share(secret(d), threshold, holders, seed(d)) for d in range(dealers)]
    sums = {h: shamir.add_shares([shares[h] for shares in dealt]) for h in range(holders)}
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    found = shamir.reconstruct({h: sums[h] for h in chosen}, threshold, dealers, holders)
    np.testing.assert_array_equal(found, sum(secret(d) for d in range(dealers)))
    np.testing.assert_array_equal(shamir.reconstruct(sums, threshold, dealers, holders), found)


@pytest.mark.parametrize(("threshold", "holders"), [(1, 4), (2, 5), (3, 6), (4, 6), (6, 6)])
def test_every_set_of_threshold_holders_opens(threshold: int, holders: int) -> None:
    """None left out, and each with one share more as well."""
    shares = dict(enumerate(shamir.share(secret(1), threshold, holders, seed(1))))
    for size in (threshold, min(threshold + 1, holders)):
        for chosen in combinations(range(holders), size):
            found = shamir.reconstruct({h: shares[h] for h in chosen}, threshold, 1, holders)
            np.testing.assert_array_equal(found, secret(1))


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_many_holders(data: st.DataObject) -> None:
    """Up to the 390 sites that a lane holds."""
    holders = data.draw(st.integers(50, 390))
    threshold = data.draw(st.integers(2, 12))
    shares = shamir.share(secret(3), threshold, holders, seed(3))
    assert len(shares) == holders
    chosen = data.draw(
        st.lists(st.integers(0, holders - 1), min_size=threshold, max_size=threshold, unique=True)
    )
    found = shamir.reconstruct({h: shares[h] for h in chosen}, threshold, 1, holders)
    np.testing.assert_array_equal(found, secret(3))


def test_what_each_number_of_sites_is_packed_in() -> None:
    assert [shamir.lanes(n) for n in (1, 2, 12)] == [(10, 3)] * 3
    assert [shamir.lanes(n) for n in (13, 390)] == [(15, 2)] * 2
    for n in range(1, 391):
        bits, count = shamir.lanes(n)
        assert 2 * 42 * n + 1 < 2**bits
        assert 2 ** (bits * count) < shamir.PRIME
        assert shamir.elements(n) == -(-RING_DEGREE // count)
        assert shamir.share_bytes(n) == 4 * shamir.elements(n)
    assert (shamir.share_bytes(3), shamir.share_bytes(13)) == (5464, 8192)
    with pytest.raises(CryptoError, match="at most 390 sites"):
        shamir.lanes(391)


@pytest.mark.parametrize("low", [-42, 0, 42])
@pytest.mark.parametrize("high", [-42, 0, 42])
@pytest.mark.parametrize("num_sites", [12, 13, 390])
def test_the_lanes_hold_the_largest_sum(low: int, high: int, num_sites: int) -> None:
    """Of the largest roster of each packing: every site deals, two of them answer."""
    _, count = shamir.lanes(num_sites)
    extreme = np.full(RING_DEGREE, low)
    extreme[1::count] = high
    two = [shamir.share(extreme, 2, num_sites, seed(d))[:2] for d in range(3)]
    dealt = [two[d % 3] for d in range(num_sites)]
    sums = {h: shamir.add_shares([shares[h] for shares in dealt]) for h in (0, 1)}
    found = shamir.reconstruct(sums, 2, num_sites, num_sites)
    np.testing.assert_array_equal(found, num_sites * extreme)


@pytest.mark.parametrize("num_sites", [12, 390])
def test_every_corner_of_the_lanes_is_told_apart(num_sites: int) -> None:
    """Packing is one to one for sums of up to so many keys: all corners, and next to them."""
    edge = 42 * num_sites
    _, count = shamir.lanes(num_sites)
    near = [sign * (edge - less) for sign in (-1, 1) for less in (0, 1)] + [-1, 0, 1]
    corners = np.array(list(product(near, repeat=count)))
    values = np.zeros(RING_DEGREE, dtype=np.int64)
    values[: corners.size] = corners.reshape(-1)
    packed = packed_of(values, num_sites)
    assert len(set(packed[: len(corners)].tolist())) == len(corners)
    np.testing.assert_array_equal(shamir._unpack(packed, num_sites)[:RING_DEGREE], values)


def test_what_follows_the_last_coefficient_must_be_zero() -> None:
    """4096 is no multiple of three: the last element has two lanes over, and a dealer whose
    shares put anything there is refused."""
    for over in ([0, 1], [1, 0], [-1, 42]):
        packed = packed_of(np.append(secret(1), over), 3)
        assert packed.size == shamir.elements(3)
        with pytest.raises(CryptoError, match="zeros after the last"):
            shamir.reconstruct({1: packed}, 1, 1, 3)
    good = packed_of(secret(1), 3)
    np.testing.assert_array_equal(shamir.reconstruct({1: good}, 1, 1, 3), secret(1))


@packings
def test_a_sum_beyond_its_keys_is_refused(holders: int) -> None:
    """A coefficient of 43 after one key, of 85 after two; 42 and 84 are taken."""
    for dealers in (1, 2):
        top = np.full(RING_DEGREE, 42)
        dealt = [shamir.share(top, 2, holders, seed(d)) for d in range(dealers)]
        sums = {h: shamir.add_shares([shares[h] for shares in dealt]) for h in (0, 2)}
        found = shamir.reconstruct(sums, 2, dealers, holders)
        np.testing.assert_array_equal(found, dealers * top)
        over = {h: one.copy() for h, one in sums.items()}
        for h in over:  # one more in the lowest lane of one element, at every holder
            over[h][5] = (over[h][5] + np.uint64(1)) % np.uint64(shamir.PRIME)
        with pytest.raises(CryptoError, match="larger"):
            shamir.reconstruct(over, 2, dealers, holders)


# -- secrecy --------------------------------------------------------------------------------


@packings
def test_fewer_shares_fit_every_secret(holders: int) -> None:
    """The algebra of secrecy: for T - 1 shares and any secret whatever there are shares of the
    others that make it so."""
    shares = shamir.share(secret(1), 3, holders, seed(1))
    for known in combinations(range(5), 2):
        third = next(h for h in range(5) if h not in known)
        for guess in (secret(2), np.zeros(RING_DEGREE, dtype=np.int64)):
            packed = packed_of(guess, holders)
            # The polynomial through (0, guess) and the two shares known, read off at the third.
            points = {-1: packed} | {h: shares[h] for h in known}
            forged = {h: shares[h] for h in known}
            forged[third] = shamir._interpolate(points, [-1, *known], third + 1)
            np.testing.assert_array_equal(shamir.reconstruct(forged, 3, 1, holders), guess)


@packings
@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_fewer_shares_are_uniform_whatever_the_secret(
    threshold: int, holders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, over a small field: all polynomials dealt side by side, one to an element. Any
    T - 1 holders see every tuple of shares equally often, and T see only the secret's."""
    prime = {2: 43, 3: 31, 4: 11}[threshold]
    monkeypatch.setattr(shamir, "PRIME", prime)
    monkeypatch.setattr(shamir, "_P", np.uint64(prime))
    all_polynomials = np.array(list(product(range(prime), repeat=threshold - 1)), dtype=np.uint64)
    count = len(all_polynomials)
    # Whole elements only: the last one's lanes are not all full.
    assert count < shamir.elements(holders)

    def drawn(_: bytes, degree: int, size: int) -> np.ndarray:
        assert size == shamir.elements(holders)
        found = np.zeros(size, dtype=np.uint64)
        found[:count] = all_polynomials[:, degree - 1]
        return found

    monkeypatch.setattr(shamir, "_uniform", drawn)
    bits, lanes = shamir.lanes(holders)
    for constant in (0, 1, -7, 42):
        shares = shamir.share(np.full(RING_DEGREE, constant), threshold, holders, seed(0))
        for chosen in combinations(range(5), threshold - 1):
            seen = list(zip(*(shares[h][:count].tolist() for h in chosen), strict=True))
            assert len(set(seen)) == len(seen) == prime ** (threshold - 1)
        packed = sum(constant << (bits * lane) for lane in range(lanes)) % prime
        for chosen in combinations(range(5), threshold):
            found = shamir._interpolate(dict(enumerate(shares)), list(chosen), 0)
            assert set(found[:count].tolist()) == {packed}


@pytest.mark.parametrize("count", [1366, 2048])
def test_coefficients_are_uniform_field_elements(count: int) -> None:
    """In every 32nd part of the field, and none at or above the prime; those of two degrees, and
    of two seeds, are unrelated."""
    draws = [shamir._uniform(seed(d), degree, count) for d in range(8) for degree in (1, 2)]
    for found in draws:
        assert found.shape == (count,)
        assert int(found.max()) < shamir.PRIME
    parts = np.bincount((np.concatenate(draws) >> np.uint64(26)).astype(np.int64), minlength=32)
    expected = parts.sum() / 32
    chi_square = float(((parts - expected) ** 2 / expected).sum())
    assert 8 < chi_square < 70  # 31 degrees of freedom: outside with probability below 10^-4
    for one, other in combinations(draws, 2):
        assert np.count_nonzero(one == other) <= 2


def test_words_of_all_ones_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^31 - 1 is no field element: taken as 0 it would make zero twice as likely."""

    class Ones:
        def __init__(self, *_: object) -> None:
            self.drawn = 0

        def words(self, count: int) -> np.ndarray:
            found = np.arange(self.drawn, self.drawn + count, dtype=np.uint64)
            found[::3] |= np.uint64(2**31 - 1)
            self.drawn += count
            return found

    monkeypatch.setattr(shamir, "Stream", Ones)
    found = shamir._uniform(seed(1), 1, 2048)
    assert found.size == 2048
    assert not np.any(found == 0)
    assert int(found.max()) < shamir.PRIME


def test_the_seed_alone_decides() -> None:
    first, again = (shamir.share(secret(1), 3, 4, seed(1)) for _ in range(2))
    other = shamir.share(secret(1), 3, 4, seed(2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.count_nonzero(a == c) <= 2


# -- what does not fit ----------------------------------------------------------------------


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("more", [1, 2])
def test_any_share_beyond_the_threshold_must_fit(position: int, more: int) -> None:
    """Whoever's share is wrong, in the first, a middle or the last element."""
    shares = dict(enumerate(shamir.share(secret(1), 5 - more, 5, seed(1))))
    for element in (0, 1000, shamir.elements(5) - 1):
        wrong = dict(shares)
        wrong[position] = wrong[position].copy()
        wrong[position][element] = (wrong[position][element] + np.uint64(1)) % np.uint64(
            shamir.PRIME
        )
        with pytest.raises(CryptoError, match="does not fit"):
            shamir.reconstruct(wrong, 5 - more, 1, 5)


def test_a_share_at_another_holders_place_is_found() -> None:
    shares = dict(enumerate(shamir.share(secret(1), 2, 3, seed(1))))
    with pytest.raises(CryptoError, match="does not fit"):
        shamir.reconstruct({0: shares[1], 1: shares[0], 2: shares[2]}, 2, 1, 3)


def test_shares_of_different_sums_do_not_mix() -> None:
    """Answers over U at some holders and over U without a site at others: refused, not opened."""
    dealt = [shamir.share(secret(d), 2, 4, seed(d)) for d in range(3)]
    whole = {h: shamir.add_shares([one[h] for one in dealt]) for h in (0, 1)}
    without = {h: shamir.add_shares([one[h] for one in dealt[1:]]) for h in (2, 3)}
    with pytest.raises(CryptoError, match="does not fit"):
        shamir.reconstruct(whole | without, 2, 3, 4)
    with pytest.raises(CryptoError, match="larger"):
        shamir.reconstruct({0: whole[0], 3: without[3]}, 2, 3, 4)


def test_a_wrong_extra_share_is_found() -> None:
    shares = dict(enumerate(shamir.share(secret(1), 2, 4, seed(1))))
    shares[3] = shares[3].copy()
    shares[3][17] = (shares[3][17] + np.uint64(1)) % np.uint64(shamir.PRIME)
    with pytest.raises(CryptoError, match="does not fit"):
        shamir.reconstruct(shares, 2, 1, 4)
    with pytest.raises(CryptoError, match="expected 2 shares"):
        shamir.reconstruct({0: shares[0]}, 2, 1, 4)
    with pytest.raises(CryptoError, match="larger"):
        shamir.reconstruct({0: shares[0], 3: shares[3]}, 2, 1, 4)


@pytest.mark.parametrize(("holders", "size"), [(3, 5464), (12, 5464), (13, 8192), (390, 8192)])
def test_bytes_round_trip_and_are_checked(holders: int, size: int) -> None:
    one = shamir.share(secret(1), 2, holders, seed(1))[1]
    raw = shamir.to_bytes(one)
    assert len(raw) == shamir.share_bytes(holders) == size
    np.testing.assert_array_equal(shamir.from_bytes(raw, holders), one)
    for wrong in (raw[:-1], raw + b"\0", raw[:-4], b"", raw + bytes(8192 - 5464)):
        with pytest.raises(CryptoError, match="bytes"):
            shamir.from_bytes(wrong, holders)
    with pytest.raises(CryptoError, match="bytes"):  # packed for a roster of another size
        shamir.from_bytes(raw, 13 if holders <= 12 else 12)
    with pytest.raises(CryptoError, match="below"):
        shamir.from_bytes(b"\xff\xff\xff\x7f" + raw[4:], holders)


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (2, 391)])
def test_impossible_thresholds_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(CryptoError, match="threshold"):
        shamir.share(secret(1), threshold, holders, seed(1))


def test_a_secret_out_of_range_is_refused() -> None:
    with pytest.raises(CryptoError, match="coefficients"):
        shamir.share(np.full(RING_DEGREE, 43), 2, 3, seed(1))


def test_known_answers() -> None:
    for case in json.loads(VECTORS.read_text())["keys"]:
        values = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
        shares = shamir.share(
            values, case["threshold"], case["holders"], bytes.fromhex(case["seed"])
        )
        assert [hashlib.sha256(shamir.to_bytes(s)).hexdigest() for s in shares] == case["sha256"]
        assert [s[:3].tolist() for s in shares] == case["first"]
