"""The keyed tag: who lacks its key cannot change a sum unnoticed. The residue does not see these
changes: each is a ciphertext of another message under the right key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlwe_round import CONTEXT, TAG_SEED, Round, add, layout_for

from fedshield.crypto.rlwe import scheme
from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE
from fedshield.crypto.rlwe.reference import unpack_words
from fedshield.crypto.rlwe.scheme import Opened
from fedshield.crypto.rlwe.tag import Tagger
from fedshield.errors import CryptoError

LENGTH = 40_000


@pytest.fixture(scope="module")
def this() -> Round:
    """Values with room above and below, so that a change does not leave the range."""
    layout = layout_for(3, 16, LENGTH)
    rng = np.random.default_rng(8)
    vectors = {site: rng.integers(-500, 501, LENGTH).astype(np.int16) for site in range(3)}
    return Round(layout, vectors, dict.fromkeys(range(3), (300, 1 << 20, 77, 1 << 30)))


@pytest.fixture(scope="module")
def chunks(this: Round) -> list[bytes]:
    return this.aggregate()


def words_of(this: Round, chunks: list[bytes]) -> np.ndarray:
    bits = this.layout.parameters.sum_word_bits
    return unpack_words(np.frombuffer(b"".join(chunks), dtype="<u8"), bits)


def packed(this: Round, words: np.ndarray) -> list[bytes]:
    out = np.empty(words.size * this.layout.parameters.sum_word_bits // 64, dtype="<u8")
    arithmetic(True).pack_words(words, this.layout.parameters.sum_word_bits, out)
    return [out.tobytes()]


def shifted(this: Round, chunks: list[bytes], changes: dict[int, int]) -> list[bytes]:
    """The aggregate with delta * change added to some coefficients: what a server can do without
    any key. Words are delta * change / 2^d higher, rounded, which is one more rounding in the
    residue; those that would leave the range go around by q."""
    p, words = this.layout.parameters, words_of(this, chunks)
    most = len(this.vectors) * ((1 << p.word_bits) - 1)
    for place, change in changes.items():
        moved = int(words[place]) + round(change * p.delta / (1 << p.dropped))
        while not 0 <= moved <= most:
            moved += round((p.q if moved < 0 else -p.q) / (1 << p.dropped))
        words[place] = moved
    return packed(this, words)


def succeeds_but_for_the_tag(this: Round, chunks: list[bytes]) -> Opened:
    """What the attack gets when the check of tags is taken out: it shows that nothing else stops
    it. With the check it is refused, with code `tag`."""
    with pytest.raises(CryptoError) as caught:
        this.open(chunks)
    assert caught.value.code == "tag"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheme, "_fits", lambda *_: True)
        return this.open(chunks)


def test_an_honest_sum_passes(this: Round, chunks: list[bytes]) -> None:
    this.check(this.open(chunks))


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 2**20), change=st.integers(-1000, 1000).filter(bool))
def test_any_change_of_one_coefficient(place: int, change: int) -> None:
    """Of a value or the padding."""
    layout = layout_for(3, 16, LENGTH)
    vectors = {0: np.full(LENGTH, 9, dtype=np.int16), 1: np.full(LENGTH, -9, dtype=np.int16)}
    this = Round(layout, vectors, {0: (3, 1 << 20, 5, 6), 1: (4, 5, 1 << 20, 7)})
    # A quarter of the places in the padding.
    extra = layout.num_blocks * RING_DEGREE - layout.num_coefficients
    place = (
        layout.num_coefficients + (place // 4) % extra
        if place % 4 == 0
        else place % layout.num_coefficients
    )
    with pytest.raises(CryptoError) as caught:
        this.open(shifted(this, this.aggregate(), {place: change}))
    assert caught.value.code == "tag"


def test_without_the_tag_a_server_would_add_what_it_likes(this: Round, chunks: list[bytes]) -> None:
    radix, stride = this.layout.parameters.radix, this.layout.num_coefficients
    opened = succeeds_but_for_the_tag(this, shifted(this, chunks, {0: 5, 700: -3 * radix}))
    expected = sum(vector.astype(np.int64) for vector in this.vectors.values())
    expected[0] += 5
    expected[stride + 700] -= 3
    np.testing.assert_array_equal(opened.values, expected)


@pytest.mark.parametrize("slot", range(6))
def test_a_reserved_integer_or_tag_shifted(this: Round, chunks: list[bytes], slot: int) -> None:
    """Where answers cross in the clear (`open_to: server`), who relays them can shift what they
    open to: the total weight, say. The tag covers it."""
    right = this.residue_sum()
    assert len(right) == 6
    wrong = list(right)
    wrong[slot] = (wrong[slot] + 1) % this.layout.parameters.q
    with pytest.raises(CryptoError) as caught:
        this.open(chunks, residues=tuple(wrong))
    assert caught.value.code == "tag"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheme, "_fits", lambda *_: True)
        opened = this.open(chunks, residues=tuple(wrong))
    assert opened.reserved == tuple(wrong[:4])


def test_too_few_or_too_many_residues(this: Round, chunks: list[bytes]) -> None:
    right = this.residue_sum()
    for wrong in ((), right[:-1], (*right, 0)):
        with pytest.raises(CryptoError, match="expected 6 residues"):
            this.open(chunks, residues=wrong)


def test_a_change_of_all_coefficients(this: Round, chunks: list[bytes]) -> None:
    everywhere = dict.fromkeys(range(this.layout.num_blocks * RING_DEGREE), 1)
    with pytest.raises(CryptoError, match="tag"):
        this.open(shifted(this, chunks, everywhere))


def test_two_blocks_of_messages_exchanged(this: Round, chunks: list[bytes]) -> None:
    """Exchanging ciphertexts is seen in the residue; whoever knew the sums could exchange the
    messages under them by shifting, and that is for the tag."""
    p, stride = this.layout.parameters, this.layout.num_coefficients
    total = sum(vector.astype(np.int64) for vector in this.vectors.values())
    coefficients = np.zeros(2 * RING_DEGREE)
    arithmetic(True).pack_digits(total, stride, 0, p.radix, p.digits, coefficients)
    first, second = coefficients.astype(np.int64).reshape(2, -1)
    changes = dict(enumerate((second - first).tolist()))
    changes |= {RING_DEGREE + place: -change for place, change in changes.items()}
    opened = succeeds_but_for_the_tag(this, shifted(this, chunks, changes))
    np.testing.assert_array_equal(opened.values[:RING_DEGREE], total[RING_DEGREE:][:RING_DEGREE])


def test_a_sites_ciphertext_twice_or_left_out_with_a_colluding_key_sum(this: Round) -> None:
    """The residue stops this where the key sum is that of the sites. A key sum that fits, which
    the share holders would have to help with, opens it: the tag holds then too, because the sum
    is an honest one of other sites; the agreed set stops it (protocol). What the tag must stop
    is a sum whose values and tags come from different sites."""
    uploads = this.uploads()
    for used in ([0, 1, 1], [0, 1]):
        wrong = add([uploads[site] for site in used], this.layout)
        with pytest.raises(CryptoError) as caught:
            this.open(wrong)
        assert caught.value.code == "residual"


def test_a_sites_message_twice_or_left_out(this: Round, chunks: list[bytes]) -> None:
    """By shifting: a server that knows a site's values (it planted them) takes them out or puts
    them in again, in the values but not in the tag."""
    p = this.layout.parameters
    coefficients = np.zeros(this.layout.num_coefficients)
    arithmetic(True).pack_digits(
        this.vectors[1], coefficients.size, 0, p.radix, p.digits, coefficients
    )
    total = sum(vector.astype(np.int64) for vector in this.vectors.values())
    for sign in (1, -1):
        changes = dict(enumerate((sign * coefficients.astype(np.int64)).tolist()))
        opened = succeeds_but_for_the_tag(this, shifted(this, chunks, changes))
        np.testing.assert_array_equal(opened.values, total + sign * this.vectors[1])


def test_tags_of_sites_that_do_not_share_the_seed_are_refused(this: Round) -> None:
    """The ciphertexts are the same: the tags are not in them."""
    assert list(this.encryption(2, bytes(32)).chunks()) == this.upload(2)
    residues = this.summed([this.residues(0), this.residues(1), this.residues(2, bytes(32))])
    with pytest.raises(CryptoError) as caught:
        this.open(this.aggregate(), residues=residues)
    assert caught.value.code == "tag"


def test_tags_are_asked_for_when_all_was_tagged(this: Round) -> None:
    made = this.encryption(0)
    with pytest.raises(CryptoError, match="all chunks"):
        made.residues()
    assert len(list(made.chunks())) == this.layout.num_chunks
    assert made.residues() == this.residues(0)
    with pytest.raises(CryptoError, match="one pass"):
        list(made.chunks())
    assert repr(made) == f"Encryption({this.layout.parameters.name})"


def test_nothing_is_opened_of_tags_but_what_the_sum_gives_anyway(this: Round) -> None:
    """Two ways to make one sum: their tags are opened alike, bit for bit. As digits in
    coefficients they were not: sums of digits tell carries."""
    moved = np.arange(LENGTH) % 7 - 3
    other = Round(
        this.layout,
        {0: this.vectors[0] + moved, 1: this.vectors[1] - moved, 2: this.vectors[2]},
        {0: (310, 5, 77, 1), 1: (290, (1 << 21) - 5, 77, (1 << 31) - 1), 2: this.reserved[2]},
    )
    assert other.residues(0) != this.residues(0)
    assert other.residue_sum() == this.residue_sum()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), fast=st.booleans(), groups=st.booleans())
def test_the_tag_is_its_formula(seed: int, fast: bool, groups: bool) -> None:
    layout = layout_for(3, 16, 20_000)
    q = layout.parameters.q
    rng = np.random.default_rng(seed)
    messages = rng.integers(-(q // 2), q // 2 + 1, 3 * RING_DEGREE)
    tagger = Tagger(TAG_SEED, layout, fast)
    parts = (messages,) if groups else (messages[:RING_DEGREE], messages[RING_DEGREE:])
    for part in parts:
        tagger.add(part.astype(np.float64))
    expected, reserved = [], [int(one) for one in rng.integers(0, 2**16, 4)]
    for rho, v, u in tagger.factors():
        assert 0 < rho < q
        assert len(u) == 4
        blocks = messages.reshape(3, -1).tolist()
        expected.append(
            sum(
                pow(rho, j, q) * sum(int(a) * b for a, b in zip(v, block, strict=True))
                for j, block in enumerate(blocks)
            )
            + sum(a * b for a, b in zip(u, reserved, strict=True))
        )
    expected = [one % q for one in expected]
    assert tagger.tags(reserved) == tuple(expected)
    assert len(expected) == layout.num_tags == 2
    tagger.add(np.zeros(RING_DEGREE))
    assert tagger.tags(reserved) == tuple(expected)


def test_tags_are_linear_and_their_keys_differ() -> None:
    layout = layout_for(3, 16, 20_000)
    rng = np.random.default_rng(1)
    a, b = rng.integers(-(10**9), 10**9, (2, RING_DEGREE))
    found = []
    for one, reserved in ((a, (1, 2, 3, 4)), (b, (5, 0, 7, 9)), (a + b, (6, 2, 10, 13))):
        tagger = Tagger(TAG_SEED, layout)
        tagger.add(one.astype(np.float64))
        found.append(tagger.tags(reserved))
    q = layout.parameters.q
    assert tuple((x + y) % q for x, y in zip(found[0], found[1], strict=True)) == found[2]
    keys = list(Tagger(TAG_SEED, layout).factors()) + list(Tagger(CONTEXT, layout).factors())
    assert len({rho for rho, _, _ in keys}) == len({u[0] for _, _, u in keys}) == 4


def test_a_weak_tag_is_passed_as_often_as_computed() -> None:
    """The bound (J + 1)/q, at a q so small that it shows: schoolbook tags mod 97."""
    rng = np.random.default_rng(3)
    q, length, blocks, trials = 97, 8, 4, 40_000
    difference = rng.integers(-5, 6, (blocks, length))
    difference[0] = 1
    v = rng.integers(0, q, (trials, length))
    rho = rng.integers(1, q, trials)
    inner = v @ difference.T % q
    powers = np.stack([rho**j % q for j in range(blocks)], axis=1)
    passing = float(((inner * powers).sum(axis=1) % q == 0).mean())
    assert passing <= (blocks + 1) / q
    assert passing > 0.5 / q  # the test has power


def test_the_primes_make_two_tags_enough_for_every_adapter() -> None:
    assert PRIMES[50] ** 2 > (2**14 + 1) ** 2 << 64
