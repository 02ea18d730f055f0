"""Shamir's sharing: T shares give the sum, fewer are consistent with anything."""

from __future__ import annotations

import hashlib
import json
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


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_threshold_of_shares_opens_the_sum(data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 20))
    threshold = data.draw(st.integers(1, holders))
    dealers = data.draw(st.integers(1, 6))
    dealt = [shamir.share(secret(d), threshold, holders, seed(d)) for d in range(dealers)]
    sums = {h: shamir.add_shares([shares[h] for shares in dealt]) for h in range(holders)}
    chosen = data.draw(st.permutations(range(holders)))[:threshold]
    found = shamir.reconstruct({h: sums[h] for h in chosen}, threshold, dealers)
    np.testing.assert_array_equal(found, sum(secret(d) for d in range(dealers)))
    np.testing.assert_array_equal(shamir.reconstruct(sums, threshold, dealers), found)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_lanes_hold_the_largest_sum(sign: int) -> None:
    extreme = np.full(RING_DEGREE, 42 * sign)
    extreme[1::2] *= -1
    dealt = [shamir.share(extreme, 2, 2, seed(d)) for d in range(390)]
    sums = {h: shamir.add_shares([shares[h] for shares in dealt]) for h in (0, 1)}
    np.testing.assert_array_equal(shamir.reconstruct(sums, 2, 390), 390 * extreme)


def test_fewer_shares_fit_every_secret() -> None:
    """The algebra of secrecy: for T - 1 shares and any secret whatever there are shares of the
    others that make it so."""
    shares = shamir.share(secret(1), 3, 5, seed(1))
    for guess in (secret(2), np.zeros(RING_DEGREE, dtype=np.int64)):
        packed = ((guess[0::2] + (guess[1::2] << 15)) % shamir.PRIME).astype(np.uint64)
        # The polynomial through (0, guess) and the two shares known, read off at x = 3.
        known = {-1: packed, 0: shares[0], 1: shares[1]}
        third = shamir._interpolate(known, [-1, 0, 1], 3)
        forged = {0: shares[0], 1: shares[1], 2: third}
        np.testing.assert_array_equal(shamir.reconstruct(forged, 3, 1), guess)


def test_two_shares_say_nothing_about_which_secret(  # a statistical smoke test
) -> None:
    elements = shamir.share(np.zeros(RING_DEGREE, dtype=np.int64), 2, 3, seed(9))[0]
    mean = float(elements.mean()) / shamir.PRIME
    assert abs(mean - 0.5) < 5 * (1 / 12 / elements.size) ** 0.5


def test_a_wrong_extra_share_is_found() -> None:
    shares = dict(enumerate(shamir.share(secret(1), 2, 4, seed(1))))
    shares[3] = shares[3].copy()
    shares[3][17] = (shares[3][17] + np.uint64(1)) % np.uint64(shamir.PRIME)
    with pytest.raises(CryptoError, match="does not fit"):
        shamir.reconstruct(shares, 2, 1)
    with pytest.raises(CryptoError, match="expected 2 shares"):
        shamir.reconstruct({0: shares[0]}, 2, 1)
    with pytest.raises(CryptoError, match="larger"):
        shamir.reconstruct({0: shares[0], 3: shares[3]}, 2, 1)


def test_bytes_round_trip_and_are_checked() -> None:
    one = shamir.share(secret(1), 2, 3, seed(1))[1]
    raw = shamir.to_bytes(one)
    assert len(raw) == shamir.SHARE_BYTES == 8192
    np.testing.assert_array_equal(shamir.from_bytes(raw), one)
    with pytest.raises(CryptoError, match="bytes"):
        shamir.from_bytes(raw[:-1])
    with pytest.raises(CryptoError, match="below"):
        shamir.from_bytes(b"\xff\xff\xff\x7f" + raw[4:])


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (2, 391)])
def test_impossible_thresholds_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(CryptoError, match="threshold"):
        shamir.share(secret(1), threshold, holders, seed(1))


def test_a_secret_out_of_range_is_refused() -> None:
    with pytest.raises(CryptoError, match="coefficients"):
        shamir.share(np.full(RING_DEGREE, 43), 2, 3, seed(1))


def test_known_answers() -> None:
    for case in json.loads(VECTORS.read_text()):
        values = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
        shares = shamir.share(
            values, case["threshold"], case["holders"], bytes.fromhex(case["seed"])
        )
        assert [hashlib.sha256(shamir.to_bytes(s)).hexdigest() for s in shares] == case["sha256"]
        assert [s[:3].tolist() for s in shares] == case["first"]
