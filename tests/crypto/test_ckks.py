"""Scheme `ckks`: exact sums, noise far below half a grid step, keys that stay at the sites."""

from __future__ import annotations

import contextlib
import math
import random
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tenseal
from numpy.typing import NDArray

from fedshield.crypto import framing, received
from fedshield.crypto import scheme as scheme_module
from fedshield.crypto.adders import CkksAdder, adder
from fedshield.crypto.ckks import GRID_TOLERANCE, CkksScheme
from fedshield.crypto.scheme import CKKS, MODULUS_BITS, SCALE_BITS
from fedshield.errors import CryptoError
from fedshield.plan.sections import SCHEMES as PLAN_SCHEMES

SETS = ("lean", "paper")
GRID_BITS = 22
STEPS = 1 << GRID_BITS
SCHEMES = {name: CkksScheme.generate(name, GRID_BITS) for name in SETS}
SERIALIZE = {"save_public_key": True, "save_galois_keys": True, "save_relin_keys": True}


def steps(rng: np.random.Generator, length: int, limit: float) -> NDArray[np.int64]:
    """Whole grid steps: adapter-like values, the extremes +-limit, one step, and zeros."""
    values = np.rint(rng.standard_normal(length) * 0.05 * STEPS).astype(np.int64)
    most = int(limit * STEPS)
    extremes = np.array([most, -most, 1, -1, 0, most - 1, STEPS], dtype=np.int64)
    places = rng.permutation(length)[: extremes.size]
    values[places] = extremes[: places.size]
    return values


def encrypt(scheme: CkksScheme, numbers: NDArray[np.int64]) -> list[bytes]:
    return list(scheme.encrypt(numbers.astype(np.float64) / STEPS))


def add(scheme: CkksScheme, uploads: Sequence[list[bytes]]) -> list[bytes]:
    adding = CkksAdder(scheme.parameters, scheme.public)
    blocks = []
    for column in zip(*uploads, strict=True):
        total: object | None = None
        for block in column:
            total = adding.add(total, block)
        blocks.append(adding.result(total))
    return blocks


def raw_values(scheme: CkksScheme, block: bytes) -> NDArray[np.float64]:
    """The decryption of a block's first ciphertext, before it is rounded."""
    raw = framing.unpack(block, scheme.parameters)[0]
    return np.array(received.vector(scheme._context, raw, scheme.parameters).decrypt())


# -- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("num_sites", [1, 2, 3, 16])
def test_the_opened_sum_is_the_integer_sum(name: str, num_sites: int) -> None:
    """With the clip that a participant applies, and over more than one ciphertext."""
    scheme = SCHEMES[name]
    length = scheme.parameters.values_per_ciphertext + 1
    limit = scheme.parameters.sum_limit / (2 * num_sites)
    numbers = [steps(np.random.default_rng(k), length, limit) for k in range(num_sites)]
    blocks = add(scheme, [encrypt(scheme, one) for one in numbers])
    opened = scheme.open(blocks, length)
    expected = np.sum(numbers, axis=0).astype(np.float64) / STEPS
    assert opened.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("which", ["1", "slots - 1", "slots", "slots + 1", "block", "block + 1"])
def test_every_length_around_a_boundary(name: str, which: str) -> None:
    scheme = SCHEMES[name]
    names = {
        "slots": scheme.parameters.values_per_ciphertext,
        "block": scheme.parameters.values_per_block,
    }
    base, _, change = which.partition(" ")
    length = names.get(base, 1) + int(change.replace(" ", "") or 0)
    rng = np.random.default_rng(length)
    numbers = [rng.integers(-STEPS, STEPS, length) for _ in range(2)]
    blocks = add(scheme, [encrypt(scheme, one) for one in numbers])
    assert len(blocks) == -(-length // scheme.parameters.values_per_block)
    opened = scheme.open(blocks, length)
    assert opened.tobytes() == ((numbers[0] + numbers[1]) / STEPS).tobytes()


@pytest.mark.parametrize("name", SETS)
def test_sums_up_to_the_limit_and_no_further(name: str) -> None:
    scheme = SCHEMES[name]
    most = int(scheme.parameters.sum_limit * STEPS)
    length = scheme.parameters.values_per_ciphertext
    for sign in (1, -1):
        almost = np.full(length, sign * (most - 1))
        half = encrypt(scheme, almost // 2), encrypt(scheme, almost - almost // 2)
        assert (scheme.open(add(scheme, half), length) * STEPS == almost).all()
        over = np.zeros(length, dtype=np.int64)
        over[3] = sign * most
        with pytest.raises(CryptoError, match="limit"):
            scheme.open(encrypt(scheme, over), length)


@pytest.mark.parametrize("grid_bits", [19, 22])
def test_the_grid_is_the_one_asked_for(grid_bits: int) -> None:
    scheme = CkksScheme.from_secret("lean", SCHEMES["lean"].secret(), grid_bits)
    assert str(grid_bits) in scheme.number_format
    exact = np.arange(-50, 50) / 2.0**grid_bits
    assert scheme.open(list(scheme.encrypt(exact)), 100).tobytes() == (exact + 0.0).tobytes()
    with pytest.raises(CryptoError, match="grid"):
        scheme.open(list(scheme.encrypt(exact + 0.5 / 2.0**grid_bits)), 100)


def test_zeros_open_as_positive_zeros() -> None:
    """Else the sign of a zero would be a bit of the noise, and two openings would differ."""
    opened = SCHEMES["lean"].open(encrypt(SCHEMES["lean"], np.zeros(500, dtype=np.int64)), 500)
    assert opened.tobytes() == bytes(8 * 500)


# -- noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_without_rounding_the_decryption_is_not_exact(name: str) -> None:
    """Why there is a grid: the raw decryption differs from what was encrypted, differently each
    time, by noise of the encryption (Li and Micciancio, EUROCRYPT 2021)."""
    scheme = SCHEMES[name]
    numbers = steps(np.random.default_rng(5), scheme.parameters.values_per_ciphertext, 1.0)
    one, other = (raw_values(scheme, encrypt(scheme, numbers)[0]) for _ in range(2))
    true = numbers / STEPS
    assert np.mean(one != true) > 0.99
    assert np.mean(one != other) > 0.99
    assert np.abs(one - true).max() < 0.05 / STEPS


@pytest.mark.parametrize("name", SETS)
def test_noise_margin(name: str) -> None:
    """At 16 sites no value is further than 0.15 of a step from the grid (0.25 is refused)."""
    scheme = SCHEMES[name]
    length = scheme.parameters.values_per_ciphertext
    for trial in range(3):
        rng = np.random.default_rng(trial)
        uploads = [encrypt(scheme, rng.integers(-STEPS, STEPS, length)) for _ in range(16)]
        found = raw_values(scheme, add(scheme, uploads)[0]) * STEPS
        assert np.abs(found - np.rint(found)).max() < 0.15 < GRID_TOLERANCE


@pytest.mark.parametrize("name", SETS)
def test_half_a_step_is_ten_deviations_in_the_worst_slot_of_64_sites(name: str) -> None:
    """Noise per slot, not over all of them: with public-key encryption it grows with the key's
    own value in a slot, up to three times the mean, and this fails for both sets."""
    scheme = SCHEMES[name]
    length = scheme.parameters.values_per_ciphertext
    zeros = np.zeros(length, dtype=np.int64)
    noise = np.array([raw_values(scheme, encrypt(scheme, zeros)[0]) for _ in range(48)]) * STEPS
    worst = np.sqrt(np.mean(noise**2, axis=0)).max()
    assert 10 * worst * math.sqrt(64) < 0.5
    # and it is noise indeed: there, centred, and different in every encryption
    assert noise.std() > 1e-5
    assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(noise.size)


# -- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_the_named_set_is_what_seal_uses(name: str) -> None:
    """Degree, the size of every prime of the modulus chain, and the scale, read back from SEAL."""
    scheme = SCHEMES[name]
    for context in (scheme._context, tenseal.context_from(scheme.public)):
        data = context.seal_context().data
        level = data.key_context_data()
        assert level.parms().poly_modulus_degree() == 2 * CKKS[name].values_per_ciphertext
        assert context.global_scale == 2.0**SCALE_BITS
        bits = []
        while level is not None:
            following = level.next_context_data()
            rest = following.total_coeff_modulus_bit_count() if following is not None else 0
            bits.append(level.total_coeff_modulus_bit_count() - rest)
            level = following
        assert tuple(reversed(bits)) == MODULUS_BITS[name]


def test_the_sets_are_within_the_security_tables() -> None:
    """HomomorphicEncryption.org, 128-bit classical, ternary secrets: log2 q at most."""
    table = {4096: 109, 8192: 218}
    assert set(CKKS) == set(PLAN_SCHEMES["ckks"].parameter_sets) == set(MODULUS_BITS)
    for name, chosen in CKKS.items():
        assert sum(MODULUS_BITS[name]) <= table[2 * chosen.values_per_ciphertext]
        assert chosen.security_bits == 128


@pytest.mark.parametrize("name", SETS)
def test_stated_sizes_are_measured_sizes(name: str) -> None:
    scheme = SCHEMES[name]
    chosen = scheme.parameters
    rng = np.random.default_rng(3)
    numbers = rng.integers(-STEPS, STEPS, 4 * chosen.values_per_ciphertext)
    (block,) = encrypt(scheme, numbers)
    fresh = [len(raw) for raw in framing.unpack(block, chosen)]
    assert np.mean(fresh) == pytest.approx(chosen.ciphertext_bytes, rel=0.01)
    (summed,) = add(scheme, [[block]] * 16)
    sums = [len(raw) for raw in framing.unpack(summed, chosen)]
    assert np.mean(sums) == pytest.approx(chosen.ciphertext_bytes, rel=0.01)
    assert len(scheme.public) == pytest.approx(chosen.public_key_bytes, rel=0.05)
    assert len(scheme.secret()) == pytest.approx(chosen.secret_key_bytes, rel=0.01)


# -- one key at all sites --------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_site_gets_the_same_key(name: str) -> None:
    maker = SCHEMES[name]
    sites = [CkksScheme.from_secret(name, maker.secret(), GRID_BITS) for _ in range(3)]
    again = CkksScheme.from_secret(name, sites[0].secret(), GRID_BITS)
    assert {site.key_id for site in (maker, *sites, again)} == {maker.key_id}
    assert {site.number_format for site in (maker, *sites)} == {maker.number_format}
    numbers = np.arange(-20, 20)
    blocks = add(maker, [encrypt(site, numbers) for site in (maker, *sites)])
    for site in (maker, *sites):
        assert (site.open(blocks, 40) * STEPS == 4 * numbers).all()


def test_every_run_has_another_key() -> None:
    keys = [CkksScheme.generate("lean", GRID_BITS) for _ in range(4)]
    assert len({key.key_id for key in keys}) == len({key.secret() for key in keys}) == 4


@pytest.mark.parametrize("name", SETS)
def test_the_wrong_key_opens_nothing(name: str) -> None:
    other = CkksScheme.generate(name, GRID_BITS)
    length = other.parameters.values_per_ciphertext
    blocks = encrypt(SCHEMES[name], np.zeros(length, dtype=np.int64))
    with pytest.raises(CryptoError, match=r"grid|limit"):
        other.open(blocks, length)


@pytest.mark.parametrize("name", SETS)
def test_sums_of_two_keys_open_with_neither(name: str) -> None:
    mine, other = SCHEMES[name], CkksScheme.generate(name, GRID_BITS)
    numbers = np.zeros(mine.parameters.values_per_ciphertext, dtype=np.int64)
    blocks = add(mine, [encrypt(mine, numbers), encrypt(other, numbers)])
    for scheme in (mine, other):
        with pytest.raises(CryptoError, match=r"grid|limit"):
            scheme.open(blocks, numbers.size)


def test_run_keys_that_do_not_fit_are_refused() -> None:
    lean, paper = SCHEMES["lean"], SCHEMES["paper"]
    for secret, why in (
        (b"", "parse"),
        (b"not a context", "parse"),
        (lean.secret()[:-1], "parse"),
        (lean.public, "public material only"),
        (paper.secret(), "of lean"),
        (tenseal.context(tenseal.SCHEME_TYPE.BFV, 4096, 1032193).serialize(), "parse"),
    ):
        with pytest.raises(CryptoError, match=why):
            CkksScheme.from_secret("lean", secret, GRID_BITS)


# -- the coordinator's half ------------------------------------------------------------------


def made(name: str, *, scale: float = 2.0**SCALE_BITS, extra: str = "", **kind: Any) -> Any:
    degree = 2 * CKKS[name].values_per_ciphertext
    bits = list(MODULUS_BITS[name])
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, -1, bits, **kind)
    context.global_scale = scale
    if extra:
        getattr(context, f"generate_{extra}_keys")()
    return context


@pytest.mark.parametrize("name", SETS)
def test_the_adder_refuses_secret_keys(name: str) -> None:
    with pytest.raises(CryptoError, match="secret"):
        CkksAdder(CKKS[name], SCHEMES[name].secret())
    with pytest.raises(CryptoError, match="secret"):
        CkksAdder(CKKS[name], made(name).serialize(save_secret_key=True, save_relin_keys=False))


@pytest.mark.parametrize("extra", ["galois", "relin"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_adder_refuses_keys_beyond_addition(extra: str, symmetric: bool) -> None:
    kinds = tenseal.ENCRYPTION_TYPE
    kind = kinds.SYMMETRIC if symmetric else kinds.ASYMMETRIC
    context = made("lean", extra=extra, encryption_type=kind)
    public = context.serialize(save_secret_key=False, **SERIALIZE)
    with pytest.raises(CryptoError, match="Galois"):
        CkksAdder(CKKS["lean"], public)


def test_the_adder_refuses_other_parameters() -> None:
    other_scale = made("lean", scale=2.0**30).serialize(save_secret_key=False)
    degree_and_bits = SCHEMES["paper"].public
    for public in (other_scale, degree_and_bits):
        with pytest.raises(CryptoError, match="expected degree"):
            CkksAdder(CKKS["lean"], public)


def test_the_adder_refuses_what_is_no_context() -> None:
    bfv = tenseal.context(tenseal.SCHEME_TYPE.BFV, 4096, 1032193).serialize()
    for public in (b"", b"x" * 80, SCHEMES["lean"].public[:-1], bfv):
        with pytest.raises(CryptoError, match="does not parse"):
            CkksAdder(CKKS["lean"], public)


def test_adder_by_name() -> None:
    for name in SETS:
        assert isinstance(adder("ckks", name, SCHEMES[name].public), CkksAdder)
    with pytest.raises(KeyError):
        adder("ckks", "other", SCHEMES["lean"].public)


@pytest.mark.parametrize("name", SETS)
def test_blocks_are_bounded_before_they_are_read(name: str) -> None:
    """A block of a little over four megabytes is the most that the coordinator looks at."""
    chosen = CKKS[name]
    limit = chosen.block_limit()
    assert scheme_module.BLOCK_BYTES * 0.9 < limit < scheme_module.BLOCK_BYTES * 1.3
    full = encrypt(SCHEMES[name], np.zeros(chosen.values_per_block, dtype=np.int64))
    assert len(full) == 1
    assert len(full[0]) <= limit
    adding = CkksAdder(chosen, SCHEMES[name].public)
    (ciphertext, *_) = framing.unpack(full[0], chosen)
    for block, why in (
        (framing.pack([bytes(limit - 5)]), f"expected 2 to {limit} bytes, got {limit + 1}"),
        (framing.pack([ciphertext] * (chosen.ciphertexts_per_block + 1)), "ciphertexts, got"),
        (framing.pack([]), "ciphertexts, got 0"),
        (b"", "bytes, got 0"),
    ):
        with pytest.raises(CryptoError, match=f"block: expected.*{why}|block: {why}"):
            adding.add(None, block)
        with pytest.raises(CryptoError, match=f"block: expected.*{why}|block: {why}"):
            SCHEMES[name].open([block], 10)


def test_uploads_of_different_lengths_are_not_added() -> None:
    lean = SCHEMES["lean"]
    slots = lean.parameters.values_per_ciphertext
    adding = CkksAdder(lean.parameters, lean.public)
    sizes = (slots, slots - 1, slots + 1, 2 * slots)
    blocks = {size: encrypt(lean, np.zeros(size, dtype=np.int64))[0] for size in sizes}
    for one in sizes:
        for other in sizes:
            if one == other:
                continue
            with pytest.raises(CryptoError, match=r"block: (expected|cannot be added)"):
                adding.add(adding.add(None, blocks[one]), blocks[other])


# -- damaged and hostile ciphertexts ---------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> CkksScheme:
    """`lean` cut into blocks of two ciphertexts."""
    monkeypatch.setattr(scheme_module, "BLOCK_BYTES", 2 * CKKS["lean"].ciphertext_bytes + 2000)
    return SCHEMES["lean"]


def test_missing_doubled_and_swapped_blocks(small_blocks: CkksScheme) -> None:
    per_block = small_blocks.parameters.values_per_block
    length = 2 * per_block + 100
    numbers = np.arange(length)
    first, second, last = encrypt(small_blocks, numbers)
    assert (small_blocks.open([first, second, last], length) * STEPS == numbers).all()
    for wrong in (
        [],
        [first],
        [first, second],
        [first, last],
        [second, last],
        [first, last, second],
        [last, first, second],
        [first, second, last, last],
        [first, first, second, last],
        [first, second, second],
    ):
        with pytest.raises(CryptoError, match="sum: expected"):
            small_blocks.open(wrong, length)
    for wrong_length in (length - 1, length + 1, length + per_block, 0):
        with pytest.raises(CryptoError, match="sum: expected"):
            small_blocks.open([first, second, last], wrong_length)


def test_full_blocks_in_another_order_are_for_the_protocol_to_notice(
    small_blocks: CkksScheme,
) -> None:
    """Nothing in a ciphertext says where it belongs: `open` cannot tell two full blocks apart.
    The announced digests and the turn of each block do (tests/protocol)."""
    per_block = small_blocks.parameters.values_per_block
    numbers = np.arange(2 * per_block)
    first, second = encrypt(small_blocks, numbers)
    opened = small_blocks.open([second, first], 2 * per_block) * STEPS
    assert (opened == np.roll(numbers, per_block)).all()


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def built(
    sizes: list[int], ciphertexts: list[bytes], scale: float = 2.0**SCALE_BITS, tail: bytes = b""
) -> bytes:
    """A TenSEAL vector as protobuf, claiming what it is told to."""
    packed = b"".join(varint(size) for size in sizes)
    raw = b"\x0a" + varint(len(packed)) + packed if sizes else b""
    raw += b"".join(b"\x12" + varint(len(one)) + one for one in ciphertexts)
    return raw + b"\x19" + struct.pack("<d", scale) + tail


def inner(vector: bytes) -> bytes:
    """SEAL's ciphertext out of a vector of 2048 values that TenSEAL wrote."""
    head = re.match(rb"\x0a\x02\x80\x10\x12[\x80-\xff]*[\x00-\x7f]", vector, re.DOTALL)
    assert head
    return vector[head.end() : -9]


LEAN_VECTOR = framing.unpack(
    encrypt(SCHEMES["lean"], np.arange(2048, dtype=np.int64))[0], CKKS["lean"]
)[0]
C = inner(LEAN_VECTOR)
HOSTILE = {
    "more values than slots": built([2049], [C]),
    "values far past the buffer": built([1 << 22], [C]),
    "2^40 values": built([1 << 40], [C]),
    "minus one values": built([2**64 - 1], [C]),
    "no values": built([0], [C]),
    "sizes that cancel out": built([2049, 2**64 - 1], [C]),
    "sizes past the buffer that cancel out": built([2**20, 2**64 - 2**20 + 2048], [C]),
    "two sizes, one ciphertext": built([1024, 1024], [C]),
    "no ciphertext": built([2048], []),
    "no size": built([], [C]),
    "two ciphertexts": built([2048], [C, C]),
    "two of each": built([1024, 1024], [C, C]),
    "another scale": built([2048], [C], 2.0**41),
    "scale zero": built([2048], [C], 0.0),
    "scale not a number": built([2048], [C], float("nan")),
    "fields after the last": built([2048], [C], tail=b"\x12" + varint(len(C)) + C),
    "a byte after the last": built([2048], [C], tail=b"\0"),
    "size in too many bytes": b"\x0a\x03\x80\x90\x00" + built([], [C]),
    "an empty ciphertext": built([2048], [b""]),
    "a ciphertext of zeros": built([2048], [bytes(len(C))]),
    "nothing": b"",
    "zeros": bytes(200),
    "a context": SCHEMES["lean"].public,
    "a cut one": LEAN_VECTOR[:-1],
    "a cut ciphertext": built([2048], [C[:-40]]),
}


def test_the_honest_vector_is_the_one_that_is_accepted() -> None:
    assert built([2048], [C]) == LEAN_VECTOR
    opened = SCHEMES["lean"].open([framing.pack([LEAN_VECTOR])], 2048)
    assert (opened * STEPS == np.arange(2048)).all()


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_vectors_are_refused_by_both_halves(raw: bytes) -> None:
    """Several of these make TenSEAL 0.3.18 read past its buffers, or end the process, if they
    reach it: the coordinator by way of a site, and the sites by way of the coordinator."""
    lean = SCHEMES["lean"]
    adding = CkksAdder(lean.parameters, lean.public)
    honest = adding.add(None, framing.pack([LEAN_VECTOR]))
    block = framing.pack([raw])
    with pytest.raises(CryptoError):
        adding.add(None, block)
    with pytest.raises(CryptoError):
        adding.add(honest, block)
    with pytest.raises(CryptoError):
        lean.open([block], 2048)


def test_ciphertexts_of_another_level_or_form_are_refused() -> None:
    """Mod-switched, multiplied (three polynomials) or rescaled ones are no sums."""
    paper = SCHEMES["paper"]
    context = tenseal.context_from(paper.secret())
    context.auto_relin = context.auto_mod_switch = False
    context.auto_rescale = False
    values = [1.0] * paper.parameters.values_per_ciphertext
    product = tenseal.ckks_vector(context, values) * tenseal.ckks_vector(context, values)
    context.auto_rescale = True
    rescaled = tenseal.ckks_vector(context, values) * 1.0
    for vector in (product, rescaled):
        block = framing.pack([vector.serialize()])
        with pytest.raises(CryptoError, match="expected"):
            paper.open([block], len(values))
        with pytest.raises(CryptoError, match="expected"):
            CkksAdder(CKKS["paper"], paper.public).add(None, block)


def test_damaged_blocks_open_to_nothing() -> None:
    """A flipped bit anywhere: refused by the frame, by SEAL, or because the noise is wrong."""
    lean = SCHEMES["lean"]
    adding = CkksAdder(lean.parameters, lean.public)
    (block,) = encrypt(lean, np.zeros(2 * 2048, dtype=np.int64))
    rng = random.Random(4)
    harmless = 0
    for trial in range(400):
        damaged = bytearray(block)
        at = rng.randrange(120) if trial % 2 else rng.randrange(len(block))
        damaged[at] ^= 1 << rng.randrange(8)
        with contextlib.suppress(CryptoError):
            adding.add(None, bytes(damaged))
        try:
            opened = lean.open([bytes(damaged)], 2 * 2048)
        except CryptoError:
            continue
        # SEAL's header has a few bits that it ignores: then nothing else has changed either.
        harmless += 1
        assert not opened.any()
    assert harmless < 20


def test_fuzzed_vectors_raise_nothing_but_crypto_errors() -> None:
    lean = SCHEMES["lean"]
    adding = CkksAdder(lean.parameters, lean.public)
    honest = adding.add(None, framing.pack([LEAN_VECTOR]))
    rng = random.Random(5)
    refused = 0
    for trial in range(600):
        mutated = bytearray(LEAN_VECTOR)
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(min(len(mutated), 90 if trial % 3 else len(mutated)))
            action = rng.randrange(3)
            if action == 0:
                mutated[at] = rng.randrange(256)
            elif action == 1:
                del mutated[at : at + rng.randrange(1, 100)]
            else:
                mutated[at:at] = rng.randbytes(rng.randrange(1, 40))
        block = framing.pack([bytes(mutated)])
        for act in (
            lambda block=block: adding.add(honest, block),
            lambda block=block: lean.open([block], 2048),
        ):
            try:
                act()
            except CryptoError:
                refused += 1
    assert refused > 1000


def test_framing_round_trip_and_fuzz() -> None:
    """`unpack` gives back what was packed, or raises `CryptoError`; never more than is there."""
    chosen = CKKS["lean"]
    parts = [b"", b"a", bytes(300), b"xyz"]
    packed = framing.pack(parts)
    assert framing.unpack(packed, chosen) == parts
    rng = random.Random(6)
    for _ in range(5000):
        mutated = bytearray(packed)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(min(len(mutated), rng.choice((12, len(mutated)))))
            action = rng.randrange(3)
            if action == 0:
                mutated[at] = rng.choice((0, 1, 255, rng.randrange(256)))
            elif action == 1 and len(mutated) > 8:
                del mutated[at : at + rng.randrange(1, 8)]
            else:
                mutated[at:at] = rng.randbytes(rng.randrange(1, 8))
        try:
            found = framing.unpack(bytes(mutated), chosen)
        except CryptoError:
            continue
        assert framing.pack(found) == mutated
    for length in range(len(packed)):
        with pytest.raises(CryptoError):
            framing.unpack(packed[:length], chosen)


# -- the public context ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_the_public_context_does_not_hold_the_secret_key(name: str) -> None:
    """Three ways to look, from the weakest to the strongest.

    1. SEAL says that there is no secret key, and decryption with it fails.
    2. The two serialisations share a head (the parameters) and a tail; between them lies what
       only the secret one has. No 32 bytes of that occur in the public one. This would miss a
       key that is compressed or encoded another way, hence
    3. the public context is the same bytes for every key, so it tells nothing about any; and it
       is shorter than a ternary secret of N coefficients can be written in (N log2(3) bits).
    """
    scheme = SCHEMES[name]
    secret, public = scheme.secret(), scheme.public

    context = tenseal.context_from(public)
    assert not context.has_secret_key()
    assert tenseal.context_from(secret).has_secret_key()
    block = encrypt(scheme, np.arange(10))[0]
    vector = tenseal.ckks_vector_from(context, framing.unpack(block, CKKS[name])[0])
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()
    with pytest.raises(ValueError, match="doesn't hold a Secret key"):
        context.secret_key()

    head = next(i for i, (a, b) in enumerate(zip(secret, public, strict=False)) if a != b)
    tails = zip(reversed(secret[head:]), reversed(public[head:]), strict=False)
    tail = next((i for i, (a, b) in enumerate(tails) if a != b), len(public) - head)
    only_secret = secret[head : len(secret) - tail]
    assert len(only_secret) > 0.9 * len(secret)
    assert len(set(only_secret)) == 256  # high entropy: this is the key and not padding
    windows = {only_secret[at : at + 32] for at in range(len(only_secret) - 31)}
    assert not windows & {public[at : at + 32] for at in range(len(public) - 31)}

    assert CkksScheme.generate(name, GRID_BITS).public == public
    degree = 2 * CKKS[name].values_per_ciphertext
    assert len(public) < degree * math.log2(3) / 8
