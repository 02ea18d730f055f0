"""Streams and what is drawn from them."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.params import PRIMES
from fedshield.crypto.rlwe.sampling import GROUP, Matrix, Stream

BOTH = pytest.mark.parametrize("fast", [True, False], ids=["numba", "numpy"])


def test_a_stream_is_counter_mode_from_two() -> None:
    """Through a mode that other implementations have: the GCM cipher is only a faster way."""
    seed = b"s" * 32
    key = hashlib.sha256(
        b"fedshield stream 2" + struct.pack(">I", 5) + b"label" + seed + struct.pack(">Q", 7)
    ).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR((2).to_bytes(16, "big"))).encryptor()
    expected = cipher.update(bytes(1_000_000))
    stream, out = Stream(seed, "label", 7), np.empty(999_992, dtype=np.uint8)
    assert stream.words(1).tobytes() == expected[:8]
    stream.fill(out)  # longer than the zeros at hand
    assert out.tobytes() == expected[8:]


def test_streams_differ_by_seed_label_and_index() -> None:
    streams = {
        bytes(Stream(seed, label, index).words(4).tobytes())
        for seed in (b"a" * 32, b"b" * 32)
        for label in ("matrix", "error")
        for index in (0, 1)
    }
    assert len(streams) == 8


@BOTH
def test_errors_have_the_moments_they_should(fast: bool) -> None:
    count = 400_000
    errors = sampling.binomial(b"s" * 32, "error", count, fast)
    assert 20 <= int(np.abs(errors).max()) <= 42
    assert abs(float(errors.mean())) < 4 * (21 / count) ** 0.5
    assert float(errors.var()) == pytest.approx(21, rel=0.02)
    assert float((errors.astype(float) ** 4).mean()) == pytest.approx(
        3 * 21**2 - 2 * 21**2 / 84, rel=0.03
    )  # the fourth moment of 84 fair coins
    halves = errors.reshape(2, -1)
    assert abs(float(np.corrcoef(halves)[0, 1])) < 5 / (count / 2) ** 0.5


@BOTH
def test_errors_reach_both_ends(fast: bool) -> None:
    from fedshield.crypto.rlwe.arithmetic import arithmetic

    out = np.empty(4, dtype=np.int64)
    words = np.array([0, 2**64 - 1, 2**64 - 1, 1], dtype=np.uint64)
    halves = np.array([0, 2**16 - 1, 0, 1], dtype=np.uint16)
    nibbles = np.array([0xF0, 0x1F], dtype=np.uint8)  # integers 0 and 2; 1 and 3
    arithmetic(fast).binomial(words, halves, nibbles, out)
    assert out.tolist() == [-42, 42, 64 + 4 - 42, 3 - 42]


@pytest.mark.parametrize("q", PRIMES.values())
def test_residues_are_uniform_and_groups_differ(q: int) -> None:
    matrix = Matrix(b"c" * 32, q)
    first, second = (matrix.next_group().joined() for _ in range(2))
    for found in (first, second):
        assert found.size == GROUP
        assert 0 <= int(found.min()) <= int(found.max()) < 1 << q.bit_length()
        counts = np.histogram(found, 64, (0, 1 << q.bit_length()))[0]
        assert float(((counts - GROUP / 64) ** 2 / (GROUP / 64)).sum()) < 63 + 6 * 126**0.5
    assert not (first == second).any()


@pytest.mark.parametrize("q", [PRIMES[43], PRIMES[48], PRIMES[50]])
def test_residues_that_are_too_large_are_drawn_again(
    q: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Matrix(b"x" * 32, q).next_group().joined()
    matrix = Matrix(b"x" * 32, q)
    found = matrix.next_group()
    places = [5, 17, GROUP - 1]
    for place in places:  # all ones: at least q
        found.low[place], found.middle[place] = 2**32 - 1, 2**16 - 1
        if found.high.size:
            found.high[place] = 255
    assert int(found.joined().max()) >= q
    matrix.repair()
    mended = found.joined()
    others = np.delete(np.arange(GROUP), places)
    np.testing.assert_array_equal(mended[others], plain[others])
    again = sampling.accepted(Stream(b"x" * 32, "matrix-again", 0), 3, q)
    np.testing.assert_array_equal(mended[places], again)


def test_words_that_are_too_large_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    q = PRIMES[43]
    plain = sampling.accepted(Stream(b"x" * 32, "tag", 0), 10, q)
    real, calls = Stream.words, []

    def with_large(self: Stream, count: int) -> np.ndarray:
        words = real(self, count).copy()
        if not calls:
            words[:3] = np.uint64(2**64 - 1)
        calls.append(count)
        return words

    monkeypatch.setattr(Stream, "words", with_large)
    found = sampling.accepted(Stream(b"x" * 32, "tag", 0), 10, q)
    np.testing.assert_array_equal(found[:7], plain[3:])
    assert calls == [10, 3]
