"""Shares of a key and of the residues that go with it: dealt, summed and opened together."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto import shamir, shares
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE
from fedshield.errors import CryptoError
from reference.shamir import through

Q = PRIMES[42]
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "shamir.json").read_text()
)
SHAPE = shares.ShareShape(threshold=3, num_holders=5, num_residues=2, modulus=Q)


def seed(number: int) -> bytes:
    return hashlib.sha256(b"test residues" + number.to_bytes(4, "big")).digest()


def secret(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-42, 43, RING_DEGREE)


def dealt(number: int, residues: tuple[int, ...], shape: shares.ShareShape) -> list[shares.Share]:
    return shares.deal(secret(number), residues, shape, seed(number))


@settings(deadline=None, max_examples=60)
@given(
    holders=st.integers(1, 70),
    threshold=st.integers(1, 70),
    dealers=st.integers(1, 9),
    q=st.sampled_from(list(PRIMES.values())),
    data=st.data(),
)
def test_any_threshold_of_holders_open_the_sum_mod_q(
    holders: int, threshold: int, dealers: int, q: int, data: st.DataObject
) -> None:
    threshold = min(threshold, holders)
    values = data.draw(
        st.lists(
            st.lists(st.integers(0, q - 1), min_size=3, max_size=3),
            min_size=dealers,
            max_size=dealers,
        )
    )
    each = [
        shamir.share_residues(row, q, threshold, holders, seed(number))
        for number, row in enumerate(values)
    ]
    summed = [shamir.add_residues([one[holder] for one in each], q) for holder in range(holders)]
    chosen = data.draw(st.permutations(range(holders)))[: max(threshold, holders // 2)]
    found = shamir.reconstruct_residues({one: summed[one] for one in chosen}, q, threshold)
    assert found == tuple(sum(column) % q for column in zip(*values, strict=True))


def test_a_share_is_a_point_of_a_polynomial_written_out() -> None:
    """The formula in Python's integers: degree T - 1, the value at 0."""
    values, t = (5, Q - 1), 4
    found = shamir.share_residues(values, Q, t, 7, seed(1))
    for slot, value in enumerate(values):
        points = [(x + 1, found[x][slot]) for x in range(t)]
        for x in range(8):
            total = 0
            for at, y in points:
                weight = 1
                for other, _ in points:
                    if other != at:
                        weight = weight * (x - other) * pow(at - other, -1, Q) % Q
                total = (total + weight * y) % Q
            assert total == (value if x == 0 else found[x - 1][slot])


def test_too_few_shares_say_nothing() -> None:
    """Exactly: for any other value there are other coefficients under which T - 1 holders hold
    the same. So with the shares fixed, every value of the residue is as likely as every other."""
    t, holders = 3, 5
    found = shamir.share_residues((1234,), Q, t, holders, seed(2))
    for chosen in itertools.combinations(range(holders), t - 1):
        for other in (0, 1, Q - 1, 1 << 41):
            points = {0: other, **{holder + 1: found[holder][0] for holder in chosen}}
            # There is one polynomial of degree T - 1 through them, whatever `other` is: it gives
            # the chosen holders their shares and another secret.
            shares_of_it = [through(list(points.items()), x, Q) for x in range(1, holders + 1)]
            assert all(shares_of_it[one] == found[one][0] for one in chosen)
            opened = shamir.reconstruct_residues(
                {one: (share,) for one, share in enumerate(shares_of_it)}, Q, t
            )
            assert opened == (other,)
        with pytest.raises(CryptoError, match="expected 3 shares, got 2"):
            shamir.reconstruct_residues({one: found[one] for one in chosen}, Q, t)


def test_the_coefficients_are_uniform_and_depend_on_the_seed() -> None:
    rows = [shamir.share_residues((0,), Q, 2, 2, seed(number))[0][0] for number in range(2000)]
    assert len(set(rows)) == 2000  # 2000 of 2^42
    assert abs(np.mean(rows) / Q - 0.5) < 4 / (12 * 2000) ** 0.5
    assert shamir.share_residues((7,), Q, 2, 3, seed(1)) == shamir.share_residues(
        (7,), Q, 2, 3, seed(1)
    )


def test_a_share_that_does_not_fit_the_others() -> None:
    found = dict(enumerate(shamir.share_residues((9, 8), Q, 2, 4, seed(3))))
    assert shamir.reconstruct_residues(found, Q, 2) == (9, 8)
    found[3] = (found[3][0], (found[3][1] + 1) % Q)
    with pytest.raises(CryptoError, match="holder 3 does not fit"):
        shamir.reconstruct_residues(found, Q, 2)


@pytest.mark.parametrize("wrong", [(Q,), (-1,), (0, 2**63)])
def test_residues_out_of_range_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(CryptoError, match="residues below"):
        shamir.share_residues(wrong, Q, 2, 3, seed(1))


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3)])
def test_thresholds_out_of_range_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(CryptoError, match="1 <= threshold <= holders"):
        shamir.share_residues((1,), Q, threshold, holders, seed(1))


def test_key_and_residues_are_opened_together() -> None:
    residues = {number: (number, Q - 1 - number) for number in range(4)}
    each = {number: dealt(number, row, SHAPE) for number, row in residues.items()}
    summed = {
        holder: shares.add([one[holder] for one in each.values()], SHAPE) for holder in range(5)
    }
    for chosen in itertools.combinations(range(5), 3):
        found = shares.open_sum({one: summed[one] for one in chosen}, SHAPE, 4)
        np.testing.assert_array_equal(found.key_sum, sum(map(secret, range(4))))
        assert found.residues == (6, (4 * (Q - 1) - 6) % Q)


@pytest.mark.parametrize("part", ["key", "residues"])
def test_a_change_of_either_part_is_found_where_there_are_more_than_needed(part: str) -> None:
    given = dict(enumerate(dealt(1, (3, 4), SHAPE)[:4]))
    shares.open_sum(given, SHAPE, 1)
    key = given[2].key.copy()
    key[9] = (key[9] + np.uint64(1)) % np.uint64(shamir.PRIME)
    changed = {"key": replace(given[2], key=key), "residues": replace(given[2], residues=(1, 2))}
    with pytest.raises(
        CryptoError, match="at least 1 of 4 answers do not fit the others"
    ) as caught:
        shares.open_sum(given | {2: changed[part]}, SHAPE, 1)
    assert caught.value.code == "key-sum"


def test_bytes_and_back() -> None:
    for one in dealt(1, (0, Q - 1), SHAPE):
        raw = shares.to_bytes(one)
        assert len(raw) == SHAPE.num_bytes == shamir.share_bytes(5) + 16
        again = shares.from_bytes(raw, SHAPE)
        np.testing.assert_array_equal(again.key, one.key)
        assert again.residues == one.residues


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw[:-1], "expected 5480 bytes, got 5479"),
        (lambda raw: raw + b"\0", "got 5481"),
        (lambda raw: raw[:-8] + Q.to_bytes(8, "little"), "residues below"),
        (lambda raw: raw[:-8] + b"\xff" * 8, "residues below"),
        (lambda raw: b"\xff\xff\xff\x7f" + raw[4:], "elements below"),
    ],
)
def test_bytes_that_are_no_share_are_refused(change: Any, match: str) -> None:
    with pytest.raises(CryptoError, match=match):
        shares.from_bytes(change(shares.to_bytes(dealt(1, (0, 1), SHAPE)[0])), SHAPE)


def test_the_number_of_residues_is_the_shapes() -> None:
    with pytest.raises(CryptoError, match="expected 2 residues, got 3"):
        dealt(1, (1, 2, 3), SHAPE)


def test_nothing_secret_is_in_repr() -> None:
    one = dealt(1, (12345, 54321), SHAPE)[0]
    opened = shares.open_sum(dict(enumerate(dealt(1, (12345, 54321), SHAPE))), SHAPE, 1)
    assert repr(one) == "Share()"
    assert repr(opened) == "OpenedShares(wrong=frozenset())"


def test_known_answers() -> None:
    for case in VECTORS["residues"]:
        shape = shares.ShareShape(
            case["threshold"], case["holders"], len(case["values"]), case["q"]
        )
        values = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
        found = shares.deal(values, case["values"], shape, bytes.fromhex(case["seed"]))
        assert [list(one.residues) for one in found] == case["shares"]
        assert [hashlib.sha256(shares.to_bytes(one)).hexdigest() for one in found] == case["sha256"]
