"""The ring: numba and numpy agree, and both agree with schoolbook arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE
from fedshield.crypto.rlwe.ring import LANES, multiply_mod, ring

VECTORS = Path(__file__).parents[2] / "vectors" / "rlwe.json"


def schoolbook(a: list[tuple[int, int]], b: np.ndarray, q: int) -> np.ndarray:
    """The product in Z_q[X]/(X^N + 1) of a sparse a (place, value) and b, in Python integers."""
    out = [0] * RING_DEGREE
    for place, value in a:
        for j, other in enumerate(b.tolist()):
            sign = -1 if place + j >= RING_DEGREE else 1
            out[(place + j) % RING_DEGREE] += sign * value * other
    return np.array([value % q for value in out], dtype=np.int64)


@given(st.integers(0, 2**50 - 1), st.integers(0, 2**50 - 1))
def test_the_reference_product_is_exact(a: int, b: int) -> None:
    q = PRIMES[50]
    found = multiply_mod(np.array([a % q]), b % q, q)
    assert int(found[0]) == a * b % q


@pytest.mark.parametrize("q", PRIMES.values())
@pytest.mark.parametrize("fast", [True, False])
def test_the_transform_multiplies_polynomials(q: int, fast: bool) -> None:
    rng = np.random.default_rng(q)
    here = ring(q, fast)
    b = rng.integers(0, q, RING_DEGREE)
    places = [(0, q - 1), (1, 5), (2048, q // 2), (4095, int(rng.integers(q)))]
    a = np.zeros(RING_DEGREE, dtype=np.int64)
    for place, value in places:
        a[place] = value
    lanes = np.stack([here.forward(b)] * LANES)
    lanes[1:] = 0
    product = here.multiply_back(lanes, here.forward(a)).reshape(RING_DEGREE, LANES)
    np.testing.assert_array_equal(product[:, 0], schoolbook(places, b, q))
    assert not product[:, 1:].any()


@pytest.mark.parametrize("q", [PRIMES[42], PRIMES[50]])
def test_numba_and_numpy_are_equal_at_the_extremes(q: int) -> None:
    rng = np.random.default_rng(1)
    fast, slow = ring(q), ring(q, fast=False)
    for x in (
        np.zeros(RING_DEGREE, dtype=np.int64),
        np.full(RING_DEGREE, q - 1),
        rng.integers(0, q, RING_DEGREE),
    ):
        np.testing.assert_array_equal(fast.forward(x), slow.forward(x))
        lanes = np.stack([np.roll(x, k) for k in range(LANES)])
        for w in (np.full(RING_DEGREE, q - 1), rng.integers(0, q, RING_DEGREE)):
            np.testing.assert_array_equal(
                fast.multiply_back(lanes, w), slow.multiply_back(lanes, w)
            )


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 56),
    seed=st.integers(0, 2**32),
)
def test_words_pack_and_add_alike(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << bits, 64)
    words[0], words[-1] = (1 << bits) - 1, 0
    packed = [ring(PRIMES[42], fast).pack_words(words, bits) for fast in (True, False)]
    assert packed[0] == packed[1]
    assert len(packed[0]) == 64 * bits // 8
    assert int.from_bytes(packed[0], "little") == sum(
        int(word) << (bits * place) for place, word in enumerate(words)
    )
    for fast in (True, False):
        total = np.arange(64, dtype=np.int64)
        ring(PRIMES[42], fast).add_words(packed[0], bits, total)
        np.testing.assert_array_equal(total, words + np.arange(64))


@settings(deadline=None, max_examples=60)
@given(half=st.integers(1, 2**15), digits=st.integers(1, 12), data=st.data())
def test_balanced_digits_round_trip(half: int, digits: int, data: st.DataObject) -> None:
    radix = 2 * half + 1
    if radix**digits >= 2**50:
        return
    count = data.draw(st.integers(0, 3 * digits))
    values = np.array(
        data.draw(st.lists(st.integers(-half, half), min_size=count, max_size=count)),
        dtype=np.int64,
    )
    for fast in (True, False):
        here = ring(PRIMES[50], fast)
        packed = here.pack_digits(values, radix, digits, 4)
        assert int(np.abs(packed).max(initial=0)) <= (radix**digits - 1) // 2
        np.testing.assert_array_equal(
            here.unpack_digits(packed, radix, digits, values.size)[: values.size], values[:count]
        )


@pytest.mark.parametrize("fast", [True, False])
def test_samplers_have_the_moments_they_should(fast: bool) -> None:
    errors = np.concatenate(
        [sampling.binomial(b"s" * 32, "error", j, 8, fast).reshape(-1) for j in range(12)]
    )
    assert int(np.abs(errors).max()) <= 42
    assert abs(float(errors.mean())) < 4 * (21 / errors.size) ** 0.5
    assert float(errors.var()) == pytest.approx(21, rel=0.02)
    residues = sampling.uniform(b"s" * 32, "matrix", 0, 8, PRIMES[46], fast)
    assert 0 <= int(residues.min()) <= int(residues.max()) < PRIMES[46]
    assert float(residues.mean()) == pytest.approx(PRIMES[46] / 2, rel=0.03)


def test_streams_differ_by_seed_label_and_index() -> None:
    streams = {
        bytes(sampling.Stream(seed, label, index).words(4).tobytes())
        for seed in (b"a" * 32, b"b" * 32)
        for label in ("matrix", "error")
        for index in (0, 1)
    }
    assert len(streams) == 8


def test_rejected_words_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    q = PRIMES[43]
    real = sampling.Stream.words

    def with_large(self: sampling.Stream, count: int) -> np.ndarray:
        words = real(self, count).copy()
        words[:3] = np.uint64(2**64 - 1)  # all ones: at least q after the mask
        return words

    plain = sampling.uniform(b"x" * 32, "matrix", 7, 1, q)[0]
    monkeypatch.setattr(sampling.Stream, "words", with_large)
    for fast in (True, False):
        found = sampling.uniform(b"x" * 32, "matrix", 7, 1, q, fast)[0]
        np.testing.assert_array_equal(found[:-3], plain[3:])


@pytest.mark.parametrize("fast", [True, False])
def test_known_answers(fast: bool) -> None:
    """tests/vectors/rlwe.json, for other implementations: seeds in, first and last values out."""
    vectors = json.loads(VECTORS.read_text())
    for case in vectors["uniform"]:
        seed = bytes.fromhex(case["seed"])
        blocks = sampling.uniform(seed, case["label"], case["index"], 2, case["q"], fast)
        assert blocks[1, :4].tolist() == case["first"]
        assert blocks[1, -4:].tolist() == case["last"]
    for case in vectors["binomial"]:
        seed = bytes.fromhex(case["seed"])
        blocks = sampling.binomial(seed, case["label"], case["index"], 2, fast)
        assert blocks[1, :16].tolist() == case["first"]
        assert int(blocks[1].sum()) == case["sum"]
    for case in vectors["transform"]:
        here = ring(case["q"], fast)
        assert int(here.roots[2048]) == case["root"]  # psi itself: 2048 is 1 reversed
        x = np.zeros(RING_DEGREE, dtype=np.int64)
        for place, value in case["input"]:
            x[place] = value
        assert here.forward(x)[:4].tolist() == case["first"]


def test_importing_the_package_compiles_nothing() -> None:
    code = (
        "import sys, fedshield.crypto.rlwe.scheme as s; "
        "assert 'numba' not in sys.modules and 'fedshield.crypto.rlwe.kernels' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
