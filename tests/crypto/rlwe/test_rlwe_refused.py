"""What is wrong is refused, each by its own guard and code, and nothing is returned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rlwe_round import CONTEXT, TAG_SEED, Round, add, extreme_round, key, layout_for

from fedshield.crypto.rlwe import scheme
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.rlwe.reference import unpack_words
from fedshield.errors import CryptoError

LENGTH = 300_000


@pytest.fixture(scope="module")
def this() -> Round:
    return extreme_round(layout_for(3, 16, LENGTH), range(3), 4)


@pytest.fixture(scope="module")
def chunks(this: Round) -> list[bytes]:
    found = this.aggregate()
    this.check(this.open(found))
    return found


def changed(chunk: bytes, change: Callable[[np.ndarray], None]) -> bytes:
    raw = np.frombuffer(chunk, dtype=np.uint8).copy()
    change(raw)
    return raw.tobytes()


def refusal(this: Round, chunks: list[bytes], **changes: object) -> str:
    with pytest.raises(CryptoError) as caught:
        this.open(chunks, **changes)
    return caught.value.code


def test_a_wrong_key(this: Round, chunks: list[bytes]) -> None:
    right = this.key_sum()
    assert refusal(this, chunks, key_sum=right + np.eye(1, RING_DEGREE, dtype=np.int64)[0]) == (
        "residual"
    )
    other = right - key(2).secret() + key(3).secret()
    assert refusal(this, chunks, key_sum=other) == "residual"
    two = right - key(2).secret()
    assert refusal(this, chunks, key_sum=two) == "residual"
    # The words of three sites are more than two can make, or the residue tells.
    assert refusal(this, chunks, key_sum=two, num_contributors=2) in ("crypto", "residual")


@pytest.mark.parametrize("contributors", [1, 2, 3])
def test_a_key_sum_out_of_range(this: Round, chunks: list[bytes], contributors: int) -> None:
    for value in (42 * contributors + 1, -42 * contributors - 1, -(2**63)):
        wrong = np.zeros(RING_DEGREE, dtype=np.int64)
        wrong[77] = value
        assert refusal(this, chunks, key_sum=wrong, num_contributors=contributors) == "key-sum"
    assert refusal(this, chunks, key_sum=np.zeros(4095, dtype=np.int64)) == "key-sum"
    assert refusal(this, chunks, key_sum=np.zeros(RING_DEGREE)) == "key-sum"


def test_a_wrong_context(this: Round, chunks: list[bytes]) -> None:
    assert refusal(this, chunks, context=bytes(32)) == "residual"


def test_a_wrong_number_of_sites(this: Round, chunks: list[bytes]) -> None:
    for number in (0, 4):
        assert refusal(this, chunks, num_contributors=number) == "crypto"
    # Two instead of three: the middle is wrong by half a dropped word, the key sum may be in
    # range: words above two sites' most, or the residue, tell.
    assert refusal(this, chunks, num_contributors=2) in ("crypto", "key-sum", "residual")


def test_a_wrong_tag_seed(this: Round, chunks: list[bytes]) -> None:
    assert refusal(this, chunks, tag_seed=bytes(32)) == "tag"
    assert refusal(this, chunks, tag_seed=bytes(31)) == "crypto"


def test_flipped_bits(this: Round, chunks: list[bytes]) -> None:
    """A bit of about half delta in every word of a block is seen in the residue; so small a
    change that it rounds away does no harm; every other one is seen somewhere."""
    p = this.layout.parameters
    half_delta = (p.delta >> p.dropped).bit_length() - 2
    words = unpack_words(np.frombuffer(chunks[0], dtype="<u8"), p.sum_word_bits)
    for bit, codes in ((half_delta, {"residual"}), (p.sum_word_bits - 1, {"crypto", "tag"})):
        for places in (slice(0, RING_DEGREE), slice(5, 6)):
            if bit == half_delta and places.start:
                continue  # one coefficient does not move the mean of 4096
            wrong = words.copy()
            wrong[places] ^= 1 << bit
            out = np.empty(len(chunks[0]) // 8, dtype="<u8")
            arithmetic(True).pack_words(wrong, p.sum_word_bits, out)
            assert refusal(this, [out.tobytes(), *chunks[1:]]) in codes
    assert refusal(this, [changed(chunks[0], flip_some), *chunks[1:]]) in (
        "residual", "crypto", "tag",
    )  # fmt: skip


def flip_some(raw: np.ndarray) -> None:
    raw[::5] ^= 32


def test_a_word_that_three_sites_cannot_make(this: Round, chunks: list[bytes]) -> None:
    p = this.layout.parameters
    assert 3 * ((1 << p.word_bits) - 1) < (1 << p.sum_word_bits) - 1  # so it can be told
    assert refusal(this, [changed(chunks[0], lambda raw: raw.fill(255)), *chunks[1:]]) == "crypto"


def test_blocks_and_chunks_out_of_place(this: Round, chunks: list[bytes]) -> None:
    size = this.layout.sum_chunk_bytes(0) // this.layout.chunk_blocks(0)
    first = chunks[0]
    swapped = first[size : 2 * size] + first[:size] + first[2 * size :]
    assert refusal(this, [swapped, *chunks[1:]]) == "residual"
    for wrong in ([], chunks[:-1], [*chunks, chunks[-1]], [first[:-8], *chunks[1:]],
                  [first + bytes(8), *chunks[1:]]):  # fmt: skip
        assert refusal(this, wrong) == "crypto"


def test_two_chunks_in_the_wrong_order() -> None:
    layout = layout_for(2, 16, 2 * 1_900_000)
    assert layout.num_chunks >= 3
    this = extreme_round(layout, range(2), 1)
    chunks = this.aggregate()
    assert refusal(this, [chunks[1], chunks[0], *chunks[2:]]) == "residual"


def test_a_site_left_out_or_twice(this: Round) -> None:
    uploads = this.uploads()
    left_out = add([uploads[0], uploads[1]], this.layout)
    twice = add([uploads[0], uploads[1], uploads[1]], this.layout)
    assert refusal(this, left_out) == "residual"
    assert refusal(this, twice) == "residual"


def test_a_reserved_integer_that_no_site_may_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that breaks its own checks: two of 4 bits cannot make 31 or less than zero."""
    layout = layout_for(2, 16, 100, reserved=(4,))
    zeros = np.zeros(100, dtype=np.int16)
    with monkeypatch.context() as patch:
        patch.setattr(scheme, "_check_message", lambda *_: None)
        for sent, caught in (((16, 15), True), ((15, 15), False), ((31, 0), True)):
            this = Round(layout, {0: zeros, 1: zeros}, {0: (sent[0],), 1: (sent[1],)})
            chunks = this.aggregate()
            if caught:
                assert refusal(this, chunks) == "crypto"
            else:
                assert this.open(chunks).reserved == (30,)
        below = Round(layout, {0: zeros, 1: zeros}, {0: (-5,), 1: (1,)})
        assert refusal(below, below.aggregate()) == "crypto"


# -- encrypt -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reserved"),
    [
        (np.array([0, 32768, 0], dtype=np.int32), (0, 0)),
        (np.array([0, -32768, 0], dtype=np.int16), (0, 0)),
        (np.array([0, -(2**63), 0], dtype=np.int64), (0, 0)),
        (np.zeros(3), (0, 0)),
        (np.zeros(3, dtype=np.uint16), (0, 0)),
        (np.zeros(2, dtype=np.int16), (0, 0)),
        (np.zeros((1, 3), dtype=np.int16), (0, 0)),
        (np.zeros(3, dtype=np.int16), (0,)),
        (np.zeros(3, dtype=np.int16), (0, 0, 0)),
        (np.zeros(3, dtype=np.int16), (16, 0)),
        (np.zeros(3, dtype=np.int16), (0, -1)),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_chunk(
    values: np.ndarray, reserved: tuple[int, ...]
) -> None:
    layout = layout_for(3, 16, 3, reserved=(4, 40))
    with pytest.raises(CryptoError, match="rlwe"):
        scheme.Encryption(values, reserved, key(0), CONTEXT, layout, TAG_SEED)
    good = np.array([32767, -32767, 0], dtype=np.int16)
    made = scheme.Encryption(good, (15, 2**40 - 1), key(0), CONTEXT, layout, TAG_SEED)
    assert len(list(made.chunks())) == 1


# -- the adder -----------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["numba", "numpy"])
def test_the_adder_refuses_what_does_not_fit(fast: bool) -> None:
    this = extreme_round(layout_for(2, 12, 20_000), range(2), 1)
    p = this.layout.parameters
    (chunk,) = this.upload(0)
    adder = RlweAdder(p, fast=fast)
    total = adder.add(None, chunk)
    for wrong, match in (
        (b"", "1 to"), (chunk[:-1], "1 to"), (chunk + b"x", "1 to"),
        (chunk[: p.bytes_per_block], "expected 3 blocks, got 1"),
        (bytes(p.bytes_per_block * 500), "1 to"),
    ):  # fmt: skip
        with pytest.raises(CryptoError, match=match):
            adder.add(total, wrong)
    total = adder.add(total, chunk)
    with pytest.raises(CryptoError, match="at most 2"):
        adder.add(total, chunk)
    # A refused chunk left no trace.
    other = adder.add(adder.add(None, chunk), chunk)
    assert adder.result(total) == adder.result(other)


def test_words_that_are_too_wide_are_refused() -> None:
    this = extreme_round(layout_for(2, 12, 100), range(2), 1)
    adder = RlweAdder(this.layout.parameters)
    total = adder.add(None, this.upload(0)[0])
    total.words[5] = 1 << this.layout.parameters.sum_word_bits  # type: ignore[attr-defined]
    with pytest.raises(CryptoError, match="wider"):
        adder.result(total)


def test_the_adder_can_reach_no_key() -> None:
    """Neither directly nor through what it imports."""
    import subprocess
    import sys

    code = (
        "import sys, fedshield.crypto.rlwe.adder; from fedshield.crypto.rlwe.arithmetic import "
        "arithmetic; arithmetic(False); arithmetic(True); "
        "found = {'scheme', 'sampling', 'tag', 'products'} & "
        "{name.rsplit('.')[-1] for name in sys.modules if 'fedshield.crypto.rlwe' in name}; "
        "assert not found, found; assert 'cryptography' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
