"""The arithmetic: kernels and reference agree, and both agree with schoolbook arithmetic."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE, choose
from fedshield.crypto.rlwe.reference import multiply_mod
from fedshield.crypto.rlwe.ring import ring
from fedshield.crypto.rlwe.sampling import GROUP, Residues
from reference.ring import schoolbook

BOTH = pytest.mark.parametrize("fast", [True, False], ids=["numba", "numpy"])


def residues(lanes: np.ndarray, q: int) -> Residues:
    """What Matrix would have drawn to get these: (8, N)."""
    flat = np.ascontiguousarray(lanes.T).reshape(-1)
    high = (flat >> 48).astype(np.uint8) if q >= 1 << 48 else np.empty(0, np.uint8)
    return Residues(
        (flat & 0xFFFFFFFF).astype(np.uint32), ((flat >> 32) & 0xFFFF).astype(np.uint16), high,
        (1 << q.bit_length()) - 1,
    )  # fmt: skip


def multiply_back(lanes: np.ndarray, w: np.ndarray, q: int, fast: bool) -> tuple[np.ndarray, int]:
    """N times the inverse transforms of lanes[k] * w, (8, N) in [0, q), and the largest."""
    work, out = arithmetic(fast), np.empty(GROUP)
    a = residues(lanes, q)
    largest = work.multiply_back(
        a.low, a.middle, a.high, a.mask, work.prepare(w, ring(q)), out
    )  # fmt: skip
    assert float(np.abs(out).max()) < q
    return out.reshape(RING_DEGREE, 8).T.astype(np.int64) % q, largest


def forward(x: np.ndarray, q: int, fast: bool) -> np.ndarray:
    x = x.copy()
    arithmetic(fast).forward_transform(x, ring(q))
    return x


@given(st.integers(0, 2**50 - 1), st.integers(0, 2**50 - 1))
def test_the_reference_product_is_exact(a: int, b: int) -> None:
    q = PRIMES[50]
    found = multiply_mod(np.array([a % q]), b % q, q)
    assert int(found[0]) == (a % q) * (b % q) % q


@pytest.mark.parametrize("q", PRIMES.values())
@BOTH
def test_the_transform_multiplies_polynomials(q: int, fast: bool) -> None:
    rng = np.random.default_rng(q)
    b = rng.integers(0, q, RING_DEGREE)
    places = [(0, q - 1), (1, 5), (2048, q // 2), (4095, int(rng.integers(q)))]
    a = np.zeros(RING_DEGREE, dtype=np.int64)
    for place, value in places:
        a[place] = value
    scaled = multiply_mod(forward(a, q, fast), ring(q).n_inverse, q)
    lanes = np.stack([forward(b, q, fast)] * 8)
    lanes[1:] = 0
    product, largest = multiply_back(lanes, scaled, q, fast)
    np.testing.assert_array_equal(product[0], schoolbook(places, b, q))
    assert not product[1:].any()
    assert largest == int(lanes.max())


@pytest.mark.parametrize("q", PRIMES.values())
def test_numba_and_numpy_are_equal_at_the_extremes(q: int) -> None:
    """All zero, all the largest and the middle residues, where signs and roundings turn."""
    rng = np.random.default_rng(1)
    inputs = [np.full(RING_DEGREE, value) for value in (0, 1, q - 1, q // 2, q // 2 + 1)]
    inputs += [np.where(np.arange(RING_DEGREE) % 2, q // 2, q // 2 + 1)]
    inputs += [rng.integers(0, q, RING_DEGREE)]
    for x in inputs:
        np.testing.assert_array_equal(forward(x, q, True), forward(x, q, False))
        lanes = np.stack([np.roll(x, k) for k in range(8)])
        for w in inputs[2:]:
            fast, slow = (multiply_back(lanes, w, q, fast)[0] for fast in (True, False))
            np.testing.assert_array_equal(fast, slow)
    # Sums that grow as fast as they can, for 2, 4, 8 and 16 terms, and then meet their negative.
    w = np.full(RING_DEGREE, 1)
    for period in range(0, 12, 4):
        blocks = [np.arange(RING_DEGREE) >> (period + shift) & 1 for shift in range(4)] * 2
        lanes = np.stack([np.where(one, q // 2, q // 2 + 1) for one in blocks])
        fast, slow = (multiply_back(lanes, w, q, fast)[0] for fast in (True, False))
        np.testing.assert_array_equal(fast, slow)


@BOTH
def test_the_largest_residue_is_reported(fast: bool) -> None:
    for q in (PRIMES[42], PRIMES[50]):
        lanes = np.zeros((8, RING_DEGREE), dtype=np.int64)
        lanes[5, 4000] = q + 3
        assert multiply_back(lanes, np.full(RING_DEGREE, 1), q, fast)[1] == q + 3


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(2, 59), blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_words_pack_and_add_alike(bits: int, blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << bits, blocks * RING_DEGREE)
    words[:64], words[-64:] = (1 << bits) - 1, 0
    packed = [np.full(blocks * 64 * bits, 2**64 - 1, dtype=np.uint64) for _ in range(2)]
    for fast, out in zip((True, False), packed, strict=True):
        arithmetic(fast).pack_words(words, bits, out)
    np.testing.assert_array_equal(packed[0], packed[1])
    # By the definition, in Python integers: 64 streams side by side, a word in each in turn.
    streams = packed[0].reshape(blocks, bits, 64)
    last = words.reshape(blocks, 64, 64)
    for stream in (0, 7, 63):
        number = int.from_bytes(streams[-1, :, stream].tobytes(), "little")
        assert number == sum(int(word) << (bits * i) for i, word in enumerate(last[-1, :, stream]))
    for fast in (True, False):
        total = np.arange(words.size, dtype=np.int64)
        arithmetic(fast).add_words(packed[0], bits, total)
        np.testing.assert_array_equal(total, words + np.arange(words.size))


@settings(deadline=None, max_examples=80)
@given(
    half=st.integers(1, 2**15),
    digits=st.integers(1, 12),
    dtype=st.sampled_from([np.int16, np.int32, np.int64]),
    stride=st.integers(0, 2500),
    missing=st.integers(0, 11),
    seed=st.integers(0, 2**32),
)
def test_balanced_digits_round_trip(
    half: int, digits: int, dtype: type, stride: int, missing: int, seed: int
) -> None:
    half = min(half, int(np.iinfo(dtype).max))
    radix = 2 * half + 1
    if radix**digits >= 2**50:
        return
    rng = np.random.default_rng(seed)
    values = rng.integers(-half, half + 1, max(0, stride * digits - missing)).astype(dtype)
    values[:: max(1, seed % 5)] = half if seed % 2 else -half
    planes = [values[k * stride : (k + 1) * stride].tolist() for k in range(digits)]
    planes = [plane + [0] * (stride + 100 - len(plane)) for plane in planes]
    expected = [
        sum(plane[c] * radix**k for k, plane in enumerate(planes)) for c in range(stride + 100)
    ]
    for fast in (True, False):
        back = np.full(values.size, 7, dtype=np.int64)
        for start in range(0, stride, 1100):
            packed = np.full(1100, 7.0)
            arithmetic(fast).pack_digits(values, stride, start, radix, digits, packed)
            assert packed.tolist() == (expected[start : start + 1100] + [0] * 1100)[:1100]
            arithmetic(fast).unpack_digits(packed, stride, start, radix, digits, back)
        np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(("radix", "digits"), [(103, 4), (49, 5), (253, 3), (3, 24), (65535, 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_digits_at_the_ends_of_their_range(radix: int, digits: int, sign: int) -> None:
    """There the quotient lies next to an integer, and k * R * (1/R) may be less than k."""
    half, stride = (radix - 1) // 2, 3000
    values = np.random.default_rng(radix).integers(-half, half + 1, stride * digits)
    values[:stride] = sign * half
    values[stride : stride + 1500] = sign * half
    for fast in (True, False):
        packed, back = np.empty(stride), np.empty(values.size, dtype=np.int64)
        arithmetic(fast).pack_digits(values, stride, 0, radix, digits, packed)
        arithmetic(fast).unpack_digits(packed, stride, 0, radix, digits, back)
        np.testing.assert_array_equal(back, values)


@settings(deadline=None, max_examples=20)
@given(q=st.sampled_from(list(PRIMES.values())), seed=st.integers(0, 2**32))
def test_inner_products_agree_with_python_integers(q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    messages = rng.integers(-(q // 2), q // 2 + 1, 2 * RING_DEGREE)
    messages[:300], messages[-300:] = q // 2, -(q // 2)
    v = rng.integers(0, q, (3, RING_DEGREE))
    v[:, :200] = q - 1
    v[:, -200:] = q // 2
    expected = [
        [sum(int(a) * int(b) for a, b in zip(block, row, strict=True)) % q for row in v.tolist()]
        for block in messages.reshape(2, -1).tolist()
    ]
    for fast in (True, False):
        work, out = arithmetic(fast), np.empty((2, 3), dtype=np.int64)
        work.inner_products(messages.astype(np.float64), work.prepare_tag(v, q), q, out)
        assert out.tolist() == expected


@pytest.mark.parametrize("case", [(3, 16, False), (3, 2, False), (5, 12, True), (6, 3, False)])
def test_opening_rounds_alike_where_two_messages_meet(case: tuple[int, int, bool]) -> None:
    """What is left is exactly half of delta, or one more or less: no honest sum comes near."""
    p = choose(case[0], case[1], 1000, headroom=case[2])
    rng = np.random.default_rng(1)
    half = (p.radix**p.digits - 1) // 2
    messages = rng.integers(-half + 1, half, GROUP)
    v = messages * p.delta - p.delta // 2 + rng.integers(-1, 2, GROUP)
    words = rng.integers(0, 1 << p.sum_word_bits, GROUP)
    product = ((words << p.dropped) + 7 - v) % p.q
    product = np.where(product > p.q // 2, product - p.q, product)
    stream = np.empty(GROUP * p.sum_word_bits // 64, dtype=np.uint64)
    arithmetic(True).pack_words(words, p.sum_word_bits, stream)
    for fast in (True, False):
        out, squares = np.empty(GROUP), np.empty(8)
        arithmetic(fast).open_blocks(
            stream, p.sum_word_bits, product.astype(np.float64), 7, p.dropped, p.delta, p.q, out,
            squares,
        )  # fmt: skip
        np.testing.assert_array_equal(out, (v + p.delta // 2) // p.delta)


@settings(deadline=None, max_examples=30)
@given(
    case=st.sampled_from([(3, 16, False), (3, 8, False), (23, 16, True), (64, 8, False)]),
    seed=st.integers(0, 2**32),
)
def test_encrypting_and_opening_agree_at_the_edges_of_rounding(
    case: tuple[int, int, bool], seed: int
) -> None:
    """Products next to 0 and q, messages next to both ends, words next to their largest: also
    what no honest sum reaches."""
    p = choose(case[0], case[1], 1000, headroom=case[2])
    rng = np.random.default_rng(seed)
    q, half = p.q, (p.radix**p.digits - 1) // 2
    near = rng.integers(-60, 61, GROUP)
    product = (rng.choice([0, q // 2, -(q // 2)], GROUP) + near) % q
    signed = np.where((product > q // 2) & (seed % 2 == 0), product - q, product)
    messages = np.clip(rng.choice([-half, 0, half], GROUP) + near, -half, half)
    words, halves = rng.integers(0, 2**64, GROUP, np.uint64), rng.integers(0, 2**16, GROUP)
    nibbles = rng.integers(0, 256, GROUP // 2)
    packed = []
    for fast in (True, False):
        out = np.empty(GROUP * p.word_bits // 64, dtype=np.uint64)
        arithmetic(fast).encrypt_blocks(
            signed.astype(np.float64), words, halves.astype(np.uint16), nibbles.astype(np.uint8),
            messages.astype(np.float64), p.delta, q, p.dropped, p.word_bits, out,
        )  # fmt: skip
        packed.append(out)
    np.testing.assert_array_equal(packed[0], packed[1])
    sums = rng.integers(0, 1 << p.sum_word_bits, GROUP)
    sums[::3] = (1 << p.sum_word_bits) - 1
    stream = np.empty(GROUP * p.sum_word_bits // 64, dtype=np.uint64)
    arithmetic(True).pack_words(sums, p.sum_word_bits, stream)
    found = []
    for fast in (True, False):
        out, squares = np.empty(GROUP), np.empty(8)
        largest = arithmetic(fast).open_blocks(
            stream, p.sum_word_bits, signed.astype(np.float64), 12345, p.dropped, p.delta, q, out,
            squares,
        )  # fmt: skip
        assert largest == (1 << p.sum_word_bits) - 1
        found.append((out, squares))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9)


def test_importing_the_package_compiles_nothing() -> None:
    code = (
        "import sys, fedshield.crypto.rlwe.scheme, fedshield.crypto.rlwe.adder, "
        "fedshield.update.quantise; "
        "assert 'numba' not in sys.modules and 'fedshield.crypto.rlwe.kernels' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
