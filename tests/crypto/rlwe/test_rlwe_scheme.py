"""Encrypt, add, open: the sum is the integer sum, whatever the sites, bits and lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlwe_round import CONTEXT, TAG_SEED, Round, extreme_round, key, layout_for

from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RING_DEGREE, choose
from fedshield.crypto.rlwe.sampling import Matrix, Residues
from fedshield.crypto.rlwe.scheme import (
    Encryption,
    OneTimeKey,
    derive_seed,
    message_digest,
    one_time_key,
    residual_limit,
)
from fedshield.errors import CryptoError


@settings(deadline=None, max_examples=60)
@given(
    sites=st.integers(1, 64),
    bits=st.integers(2, 16),
    headroom=st.booleans(),
    length=st.one_of(st.integers(0, 3), st.integers(1, 50_000)),
    dropped=st.integers(0, 63),
    reserved=st.lists(st.integers(1, 36), max_size=5).map(tuple),
    seed=st.integers(0, 2**32),
)
def test_the_opened_sum_is_the_integer_sum(
    sites: int, bits: int, headroom: bool, length: int, dropped: int,
    reserved: tuple[int, ...], seed: int,
) -> None:  # fmt: skip
    try:
        layout = layout_for(sites, bits, length, headroom=headroom, reserved=reserved)
    except CryptoError:
        assert headroom or bits <= 3  # too many sites for the range
        return
    staying = list(range(sites))[dropped % sites :]
    this = extreme_round(layout, staying, seed)
    this.check(this.open(this.aggregate()))


@pytest.mark.parametrize(("sites", "bits"), [(3, 16), (2, 12), (5, 8)])
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_one_block_one_group_one_chunk_and_their_neighbours(
    sites: int, bits: int, edge: int
) -> None:
    p = choose(sites, bits, 10**7)
    chunk = RlweLayout(p, 0, ()).blocks_per_chunk
    for blocks in (1, 8, 9, chunk, chunk + 8):
        # The values that leave exactly no padding, and one more or less.
        length = blocks * RING_DEGREE * p.digits + edge
        layout = RlweLayout(p, length, (16, 31))
        assert layout.num_blocks == blocks + (edge == 1)
        this = extreme_round(layout, range(sites), length)
        this.check(this.open(this.aggregate()))


@pytest.mark.slow
def test_ten_million_values() -> None:
    layout = layout_for(3, 16, 10_000_000)
    this = extreme_round(layout, range(3), 1)
    this.check(this.open(this.aggregate()))


@pytest.mark.parametrize("staying", [[0], [1, 4], [0, 2, 4], [0, 1, 2, 3]])
def test_a_dropout_leaves_the_exact_sum_of_the_others(staying: list[int]) -> None:
    layout = layout_for(5, 12, 10_000)
    this = extreme_round(layout, staying, 2)
    this.check(this.open(this.aggregate()))


@settings(deadline=None, max_examples=8)
@given(
    case=st.sampled_from([(3, 16, False), (16, 12, False), (2, 4, True), (3, 8, False)]),
    blocks=st.integers(0, 17),
    seed=st.integers(0, 2**32),
)
def test_numba_and_numpy_make_the_same_bytes_and_the_same_sum(
    case: tuple[int, int, bool], blocks: int, seed: int
) -> None:
    sites, bits, headroom = case
    length = blocks * 4096 + seed % 4096
    layout = layout_for(sites, bits, length, headroom=headroom)
    fast = extreme_round(layout, range(sites), seed)
    slow = Round(layout, fast.vectors, fast.reserved, fast=False)
    chunks = fast.aggregate()
    assert chunks == slow.aggregate()
    opened = [one.open(chunks) for one in (fast, slow)]
    fast.check(opened[0])
    fast.check(opened[1])
    assert opened[0].mean_squares == pytest.approx(opened[1].mean_squares)


@pytest.mark.parametrize("bits", [8, 16])
def test_residues_drawn_again_are_used_by_both_sides(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residues of q or more come once in some million groups; here in every one."""
    layout = layout_for(3, bits, 70_000)
    this = extreme_round(layout, range(3), bits)
    usual = this.aggregate()
    real, repair, repaired = Matrix.next_group, Matrix.repair, []

    def with_large(self: Matrix) -> Residues:
        found = real(self)
        for place in (3, 32_767):
            found.low[place], found.middle[place] = 2**32 - 1, 2**16 - 1
            found.high[place : place + 1] = 255
        return found

    def counted(self: Matrix) -> None:
        repaired.append(self)
        repair(self)

    monkeypatch.setattr(Matrix, "next_group", with_large)
    monkeypatch.setattr(Matrix, "repair", counted)
    chunks = this.aggregate()
    assert chunks != usual
    this.check(this.open(chunks))
    groups = -(-layout.num_blocks // 8)
    # An aggregate of three, three times for their tags, one opening.
    assert len(repaired) == 7 * groups
    slow = Round(layout, this.vectors, this.reserved, fast=False)
    assert slow.aggregate() == chunks


def test_the_residual_is_what_was_computed() -> None:
    for sites, bits in ((2, 8), (3, 16), (16, 12), (64, 16)):
        layout = layout_for(sites, bits, 30_000)
        p = layout.parameters
        for staying in (sites, sites // 2):
            this = extreme_round(layout, range(staying), bits)
            for found in this.open(this.aggregate()).mean_squares:
                assert found == pytest.approx(residual_limit(staying, p) / 2, rel=0.15)
        # A wrong key's residue is uniform over delta: it must be told apart.
        assert p.delta**2 / 12 > residual_limit(sites, p)


def test_a_ciphertext_looks_uniform_and_the_key_is_not_in_repr() -> None:
    """Not a proof: a smoke test that neither message nor key shapes the bytes."""
    layout = layout_for(3, 12, 200_000)
    p = layout.parameters
    for value in (0, p.max_digit):
        values = np.full(200_000, value, dtype=np.int16)
        made = Encryption(values, (0,) * 4, key(0), CONTEXT, layout, TAG_SEED)
        raw = b"".join(made.chunks())
        counts = np.bincount(np.frombuffer(raw, dtype=np.uint8), minlength=256)
        expected = len(raw) / 256
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert chi_squared < 255 + 6 * (2 * 255) ** 0.5
    assert key(0).seed.hex() not in repr(key(0))
    assert "seed" not in repr(key(0))


# -- keys ----------------------------------------------------------------------------------

VALUES = np.arange(10, dtype=np.int16)


def seed_of(**changes: object) -> bytes:
    given: dict[str, object] = {
        "random": b"r" * 32, "values": VALUES, "reserved": (1, 2), "context": b"c" * 32,
        "layout_sha256": b"l" * 32, "site_secret": b"s" * 32,
    }  # fmt: skip
    return derive_seed(**(given | changes))  # type: ignore[arg-type]


def test_a_cloned_machine_uses_another_key_for_another_message() -> None:
    """With the very same random bytes, anything else that differs changes the seed."""
    other = VALUES.copy()
    other[3] += 1
    seeds = [
        seed_of(),
        seed_of(random=b"R" * 32),
        seed_of(values=other),
        seed_of(values=VALUES[:-1]),
        seed_of(reserved=(1, 3)),
        seed_of(reserved=(1, 2, 0)),
        seed_of(context=b"C" * 32),
        seed_of(layout_sha256=b"L" * 32),
        seed_of(site_secret=b"S" * 32),
    ]
    assert len(set(seeds)) == len(seeds)
    assert seed_of() == seed_of()


def test_no_two_keys_are_the_same() -> None:
    keys = [one_time_key(VALUES, (), CONTEXT, b"l" * 32, b"s" * 32) for _ in range(5)]
    assert len({one.seed for one in keys}) == 5
    assert all(isinstance(one, OneTimeKey) and len(one.seed) == 32 for one in keys)
    secret = keys[0].secret()
    assert secret.shape == (RING_DEGREE,)
    assert secret.dtype == np.int64
    assert 10 <= int(np.abs(secret).max()) <= 42


def test_the_operating_system_gives_the_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return b"r" * size

    monkeypatch.setattr("fedshield.crypto.rlwe.scheme.os.urandom", urandom)
    found = one_time_key(VALUES, (1, 2), b"c" * 32, b"l" * 32, b"s" * 32)
    assert (asked, found.seed) == ([32], seed_of())


def test_too_little_randomness_is_refused() -> None:
    for changes in ({"random": b"r" * 31}, {"site_secret": b"s" * 31}):
        with pytest.raises(CryptoError, match="site secret"):
            seed_of(**changes)


def test_the_digest_is_of_the_numbers_and_not_of_how_they_are_kept() -> None:
    for same in (VALUES.copy(), VALUES.astype(">i2"), VALUES.astype(np.int64), VALUES[::1]):
        assert message_digest(same, (5,)) == message_digest(VALUES, (5,))
    assert message_digest(VALUES[::2], ()) == message_digest(VALUES[::2].copy(), ())
    assert message_digest(VALUES, ()) != message_digest(VALUES, (0,))


@pytest.mark.parametrize("edge", [2**7, 2**15, 2**31])
def test_the_digest_tells_numbers_apart_that_differ_by_what_a_narrow_type_drops(edge: int) -> None:
    digests = set()
    for last in (edge - 1, edge, -edge, -edge - 1):
        digests.add(message_digest(np.array([0, last], dtype=np.int64), ()))
    assert len(digests) == 4
    # A long vector, in pieces, with the one wide number in the last.
    long = np.zeros(200_000, dtype=np.int64)
    before = message_digest(long, ())
    long[-1] = edge
    assert message_digest(long, ()) != before
