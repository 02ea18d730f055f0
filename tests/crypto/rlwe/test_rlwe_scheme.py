"""Encrypt, add, open: the sum is exact or it is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto.rlwe.params import RING_DEGREE, RlweParameters, choose
from fedshield.crypto.rlwe.scheme import (
    Accumulator,
    OneTimeKey,
    encrypt,
    num_blocks,
    open_sum,
    residual_limit,
)
from fedshield.errors import CryptoError

VECTORS = Path(__file__).parents[2] / "vectors" / "rlwe.json"
CONTEXT = bytes(range(32))


def key(site: int) -> OneTimeKey:
    return OneTimeKey(hashlib.sha256(b"test key" + bytes([site])).digest())


def summed(vectors: list[np.ndarray], p: RlweParameters, fast: bool = True) -> list[bytes]:
    uploads = [
        list(encrypt(values, key(site), CONTEXT, p, fast=fast))
        for site, values in enumerate(vectors)
    ]
    blocks = []
    for parts in zip(*uploads, strict=True):
        total = Accumulator(p, fast)
        for part in parts:
            assert len(part) == p.bytes_per_block
            total.add(part)
        blocks.append(total.result())
    return blocks


def key_sum(sites: int) -> np.ndarray:
    return np.sum([key(site).secret() for site in range(sites)], axis=0)


def vectors_for(
    p: RlweParameters, sites: int, length: int, rng: np.random.Generator
) -> list[np.ndarray]:
    limit = p.max_digit // sites
    found = [rng.integers(-limit, limit + 1, length) for _ in range(sites)]
    for values in found:  # all at one extreme somewhere: the largest honest sum
        values[: length // 3] = limit
        values[length // 3 : length // 2] = -limit
    return found


@settings(deadline=None, max_examples=25)
@given(
    sites=st.integers(2, 64),
    bits=st.sampled_from([4, 8, 12, 16]),
    headroom=st.booleans(),
    length=st.one_of(st.integers(0, 3), st.integers(1, 50_000)),
    seed=st.integers(0, 2**32),
)
def test_the_opened_sum_is_the_integer_sum(
    sites: int, bits: int, headroom: bool, length: int, seed: int
) -> None:
    p = choose(sites, bits, max(1, length), headroom=headroom)
    vectors = vectors_for(p, sites, length, np.random.default_rng(seed))
    opened = open_sum(summed(vectors, p), key_sum(sites), length, sites, CONTEXT, p)
    np.testing.assert_array_equal(opened.values, np.sum(vectors, axis=0))
    assert len(opened.mean_squares) == num_blocks(length, p)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_one_block_and_its_neighbours(bits: int, edge: int) -> None:
    p = choose(3, bits, 10**6)
    for blocks in (1, 8, 9):
        length = blocks * p.values_per_block + edge
        vectors = vectors_for(p, 3, length, np.random.default_rng(length))
        opened = open_sum(summed(vectors, p), key_sum(3), length, 3, CONTEXT, p)
        np.testing.assert_array_equal(opened.values, np.sum(vectors, axis=0))


def test_a_dropout_leaves_the_exact_sum_of_the_others() -> None:
    p = choose(5, 12, 10_000)
    vectors = vectors_for(p, 5, 10_000, np.random.default_rng(2))
    staying = [0, 2, 4]
    totals = [Accumulator(p) for _ in range(num_blocks(10_000, p))]
    for site in staying:
        for total, block in zip(totals, encrypt(vectors[site], key(site), CONTEXT, p), strict=True):
            total.add(block)
    secrets = np.sum([key(site).secret() for site in staying], axis=0)
    blocks = [total.result() for total in totals]
    opened = open_sum(blocks, secrets, 10_000, 3, CONTEXT, p)
    np.testing.assert_array_equal(opened.values, sum(vectors[site] for site in staying))


def test_numba_and_numpy_make_the_same_bytes() -> None:
    p = choose(3, 12, 20_000)
    vectors = vectors_for(p, 3, 20_000, np.random.default_rng(3))
    assert summed(vectors, p) == summed(vectors, p, fast=False)
    blocks = summed(vectors, p)
    fast, slow = (
        open_sum(blocks, key_sum(3), 20_000, 3, CONTEXT, p, fast=fast) for fast in (True, False)
    )
    np.testing.assert_array_equal(fast.values, slow.values)
    assert fast.mean_squares == pytest.approx(slow.mean_squares)


def wrong(what: str) -> None:
    p = choose(3, 12, 20_000)
    vectors = vectors_for(p, 3, 20_000, np.random.default_rng(4))
    blocks, secrets, context = summed(vectors, p), key_sum(3), CONTEXT
    if what == "key":
        secrets = secrets + np.eye(1, RING_DEGREE, dtype=np.int64)[0]
    elif what == "another site's key":
        secrets = secrets - key(2).secret() + key(3).secret()
    elif what == "context":
        context = bytes(32)
    elif what == "order":
        blocks = [blocks[1], blocks[0]]
    elif what == "a flipped bit in every word":
        raw = np.frombuffer(blocks[0], dtype=np.uint8).copy()
        raw[::5] ^= 2  # words of 40 bits: 2^9 more or less in each, half of delta
        blocks[0] = raw.tobytes()
    elif what == "a missing block":
        blocks = blocks[:1]
    elif what == "a short block":
        blocks[0] = blocks[0][:-1]
    elif what == "a key sum out of range":
        secrets = secrets + 1000
    open_sum(blocks, secrets, 20_000, 3, context, p)


@pytest.mark.parametrize(
    "what",
    [
        "key",
        "another site's key",
        "context",
        "order",
        "a flipped bit in every word",
        "a missing block",
        "a short block",
        "a key sum out of range",
    ],
)
def test_what_is_wrong_is_refused(what: str) -> None:
    with pytest.raises(CryptoError):
        wrong(what)
    wrong("nothing")


def test_the_residual_is_what_was_computed() -> None:
    for sites, bits in ((2, 8), (3, 16), (16, 12), (64, 16)):
        p = choose(sites, bits, 30_000)
        vectors = vectors_for(p, sites, 30_000, np.random.default_rng(bits))
        opened = open_sum(summed(vectors, p), key_sum(sites), 30_000, sites, CONTEXT, p)
        for found in opened.mean_squares:
            assert found == pytest.approx(residual_limit(sites, p) / 2, rel=0.15)
        # A wrong key's residue is uniform over delta: it must be told apart.
        assert p.delta**2 / 12 > residual_limit(sites, p)


def test_values_beyond_the_range_and_blocks_beyond_the_sites_are_refused() -> None:
    p = choose(3, 12, 1000)
    with pytest.raises(CryptoError, match="digits"):
        list(encrypt(np.array([p.max_digit + 1]), key(0), CONTEXT, p))
    block = next(encrypt(np.array([1]), key(0), CONTEXT, p))
    total = Accumulator(p)
    for _ in range(3):
        total.add(block)
    with pytest.raises(CryptoError, match="at most 3"):
        total.add(block)
    with pytest.raises(CryptoError, match="bytes"):
        Accumulator(p).add(block[:-1])


def test_a_ciphertext_looks_uniform_and_the_key_is_not_in_repr() -> None:
    """Not a proof: a smoke test that neither message nor key shapes the bytes."""
    p = choose(3, 12, 200_000)
    zeros = b"".join(encrypt(np.zeros(200_000, dtype=np.int64), key(0), CONTEXT, p))
    ones = b"".join(encrypt(np.full(200_000, p.max_digit), key(0), CONTEXT, p))
    for raw in (zeros, ones):
        counts = np.bincount(np.frombuffer(raw, dtype=np.uint8), minlength=256)
        expected = len(raw) / 256
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert chi_squared < 255 + 6 * (2 * 255) ** 0.5
    assert key(0).seed.hex() not in repr(key(0))
    assert "seed" not in repr(key(0))


def test_known_answers() -> None:
    for case in json.loads(VECTORS.read_text())["encrypt"]:
        p = choose(case["sites"], case["bits"], case["num_values"], headroom=case["headroom"])
        assert [p.q, p.radix, p.digits, p.delta, p.dropped] == case["parameters"]
        values = np.arange(case["num_values"], dtype=np.int64) % 7 - 3
        blocks = list(
            encrypt(
                values, OneTimeKey(bytes.fromhex(case["seed"])), bytes.fromhex(case["context"]), p
            )
        )
        assert [hashlib.sha256(block).hexdigest() for block in blocks] == case["sha256"]
        assert blocks[0][:16].hex() == case["first_bytes"]
