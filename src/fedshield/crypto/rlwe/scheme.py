"""Encrypt, open: integer vectors in, their exact sum out. The sites' half; it holds keys.

For block j: a_j is public, expanded from the round's context; c_j = a_j s + e_j + delta m_j.
Words c >> d travel, packed; the server adds words as integers (adder.py); who has S = sum of the
s_i takes a_j S away, restores the middle of what was dropped, and rounds to the nearest message.
With the parameters' rule the result is the exact sum, except with probability 2^-64; a sum that
is not is refused by its residue or its tag. Reserved integers and tags are handed back as
residues mod q, to be shared out and summed with the key.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.layout import LANES, RlweLayout
from fedshield.crypto.rlwe.params import ERROR_VARIANCE, ETA, RING_DEGREE, RlweParameters
from fedshield.crypto.rlwe.products import Products
from fedshield.crypto.rlwe.ring import Float64, Int64
from fedshield.crypto.rlwe.sampling import GROUP
from fedshield.crypto.rlwe.tag import Tagger
from fedshield.errors import CryptoError

Values = NDArray[np.int16] | NDArray[np.int32] | NDArray[np.int64]

SECRET, ERROR = "secret", "error"
#: Values that are hashed at a time.
_PIECE = 1 << 16


# -- keys ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneTimeKey:
    """A site's key for one vector in one context, drawn from `seed` (32 secret bytes)."""

    seed: bytes = field(repr=False)

    def secret(self, fast: bool = True) -> Int64:
        """s: (4096,) int64, magnitude at most 42. What is shared out, and summed."""
        return sampling.binomial(self.seed, SECRET, RING_DEGREE, fast)


def one_time_key(
    values: Values,
    reserved: Sequence[int],
    context: bytes,
    layout_sha256: bytes,
    site_secret: bytes,
) -> OneTimeKey:
    """A fresh key for exactly this vector. Message, context and layout go into the seed, so that
    even a cloned machine, whose random bytes repeat, never uses a key twice.

    Args:
        values: integers (n,) that are encrypted.
        reserved: non-negative integers beside them.
        context: 32 bytes that name run, round and phase.
        layout_sha256: 32 bytes.
        site_secret: at least 32 bytes that only this site has.

    Raises:
        CryptoError: for a site secret that is too short.
    """
    random = os.urandom(32)
    return OneTimeKey(derive_seed(random, values, reserved, context, layout_sha256, site_secret))


def derive_seed(
    random: bytes,
    values: Values,
    reserved: Sequence[int],
    context: bytes,
    layout_sha256: bytes,
    site_secret: bytes,
) -> bytes:
    """The seed from given randomness; for `one_time_key` and for known answers. HKDF-SHA256 of
    random | site_secret, without salt, over length-prefixed parts.

    Args:
        random: 32 bytes.
        values: integers (n,) that are encrypted.
        reserved: non-negative integers beside them.
        context: 32 bytes that name run, round and phase.
        layout_sha256: 32 bytes.
        site_secret: at least 32 bytes that only this site has.

    Returns:
        32 secret bytes.

    Raises:
        CryptoError: for randomness or a site secret of another length.
    """
    if len(random) != 32 or len(site_secret) < 32:
        raise CryptoError(
            f"one-time key: expected 32 random bytes and a site secret of 32 or more, got "
            f"{len(random)} and {len(site_secret)}"
        )
    info = b""
    for part in (
        b"fedshield rlwe seed 1",
        context,
        message_digest(values, reserved),
        layout_sha256,
    ):
        info += struct.pack(">I", len(part)) + part
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(random + site_secret)


def message_digest(values: Values, reserved: Sequence[int]) -> bytes:
    """SHA-256 of the numbers, whatever their type: over a label, bytes a value (1, 2, 4 or 8, the
    least that holds all), their count, the values (little-endian), the number of reserved
    integers and these (big-endian, 16 bytes each)."""
    most = max(int(values.max()), -int(values.min()) - 1, 0) if values.size else 0
    size = next(size for size in (1, 2, 4, 8) if most < 1 << (8 * size - 1))
    found = hashlib.sha256(b"fedshield rlwe message 1" + struct.pack(">BQ", size, values.size))
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        found.update(np.ascontiguousarray(piece, dtype=f"<i{size}").data)
    found.update(struct.pack(">I", len(reserved)))
    for one in reserved:
        found.update(int(one).to_bytes(16, "big"))
    return found.digest()


# -- encrypt -------------------------------------------------------------------------------


class Encryption:
    """One vector under one key: `chunks()` once, in order, then `residues()`.

    `values`: (layout.num_values,) int16, int32 or int64, magnitude at most the site's share of
    `max_digit`. `reserved`: non-negative integers within layout.reserved_bits. `context`: 32
    bytes that name run, round and phase; the same key must never see two contexts or two
    vectors. `tag_seed`: 32 bytes that the sites share and the server does not have. Raises
    `CryptoError`, when it is made, for anything that does not fit.
    """

    def __init__(
        self,
        values: Values,
        reserved: Sequence[int],
        key: OneTimeKey,
        context: bytes,
        layout: RlweLayout,
        tag_seed: bytes,
        *,
        fast: bool = True,
    ) -> None:
        _check_message(values, reserved, layout)
        self._values, self._reserved = values, tuple(int(one) for one in reserved)
        self._key, self._context, self._layout, self._fast = key, context, layout, fast
        self._tagger = Tagger(tag_seed, layout, fast)
        self._made = -1

    def __repr__(self) -> str:
        return f"Encryption({self._layout.parameters.name})"

    def chunks(self) -> Iterator[bytes]:
        """What travels: layout.chunk_bytes(index) bytes each."""
        if self._made != -1:
            raise CryptoError("rlwe: expected one pass over the chunks of an upload, got another")
        self._made = 0
        layout, p, kernels = self._layout, self._layout.parameters, arithmetic(self._fast)
        products = Products(self._key.secret(self._fast), self._context, p.q, self._fast)
        noise = sampling.Noise(self._key.seed, ERROR)
        messages = np.empty(GROUP)
        size = RING_DEGREE * p.word_bits // 64
        buffer = np.empty(size * min(layout.num_blocks, layout.blocks_per_chunk), dtype="<u8")
        for index in range(layout.num_chunks):
            blocks = layout.chunk_blocks(index)
            first = index * layout.blocks_per_chunk
            out = buffer[: layout.chunk_bytes(index) // 8]
            for start in range(0, blocks, LANES):
                count = min(LANES, blocks - start)
                low = (first + start) * RING_DEGREE
                part = messages[: count * RING_DEGREE]
                kernels.pack_digits(
                    self._values, layout.num_coefficients, low, p.radix, p.digits, part
                )
                self._tagger.add(part)
                product = products.next_group(count)
                coins = noise.next_group()
                kernels.encrypt_blocks(
                    product, coins.words, coins.halves, coins.nibbles, part, p.delta, p.q,
                    p.dropped, p.word_bits, out[start * size : (start + count) * size],
                )  # fmt: skip
            self._made += 1
            yield out.tobytes()

    def residues(self) -> tuple[int, ...]:
        """The reserved integers and then the tags, mod q: secret, for the shares. Raises
        `CryptoError` before all chunks were made."""
        if max(self._made, 0) != self._layout.num_chunks:
            raise CryptoError("rlwe: expected all chunks to be made before the tags are asked for")
        return (*self._reserved, *self._tagger.tags(self._reserved))


def _check_message(values: Values, reserved: Sequence[int], layout: RlweLayout) -> None:
    p = layout.parameters
    if values.dtype not in (np.int16, np.int32, np.int64) or values.shape != (layout.num_values,):
        raise CryptoError(
            f"rlwe: expected {layout.num_values} int16, int32 or int64 values, got "
            f"{values.dtype} {values.shape}"
        )
    # Two passes without a copy; abs would overflow at the lowest integer.
    if values.size and not -p.max_digit <= int(values.min()) <= int(values.max()) <= p.max_digit:
        raise CryptoError(f"rlwe: expected digits up to {p.max_digit}, got larger ones")
    if len(reserved) != len(layout.reserved_bits) or any(
        one < 0 or one >> bits for one, bits in zip(reserved, layout.reserved_bits, strict=False)
    ):
        raise CryptoError(
            f"rlwe: expected reserved integers of {layout.reserved_bits} bits, got another "
            "number of them, or one that does not fit"
        )


# -- open ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """`values`: int64, (n,), the exact sum; `reserved`: the sums of the reserved integers.
    `mean_squares`: of what is left over, by block; near |U|(21 + (4^d - 1)/12) when key, block
    and bits are right, delta^2/12 when not."""

    values: Int64 = field(repr=False)
    reserved: tuple[int, ...]
    mean_squares: tuple[float, ...] = field(repr=False)


def residual_limit(num_contributors: int, parameters: RlweParameters) -> float:
    """A block's mean square of what is left over must stay below this. It tells a wrong key or
    block from the right one; a change by a multiple of delta leaves no trace here: that is for
    the tag to find."""
    rounding = ((1 << 2 * parameters.dropped) - 1) / 12
    return 2 * num_contributors * (ERROR_VARIANCE + rounding)


#: Under a wrong key what is left over is near uniform, with a mean square of delta^2/12 over a
#: block. Where the limit is below this part of that, 4096 coefficients tell the two apart.
TELLING = 0.75


def tells_keys(num_contributors: int, layout: RlweLayout) -> bool:
    """Whether `key_fits` can tell a wrong sum of keys: not where there are no blocks, nor where the
    limit is about what a wrong key leaves (two sites at 8 to 16 bits)."""
    p = layout.parameters
    limit = residual_limit(num_contributors, p)
    return layout.num_blocks > 0 and limit < TELLING * p.delta**2 / 12


def key_fits(
    chunks: Sequence[bytes],
    key_sum: Int64,
    num_contributors: int,
    context: bytes,
    layout: RlweLayout,
    *,
    fast: bool = True,
) -> bool:
    """Whether the first blocks of a sum (8 at the most) leave no more over under this key than
    under the right one. `open_sum` checks the rest.

    Args:
        chunks: the server's, as bytes of packed sums.
        key_sum: int64 (4096,), the sum of the sites' keys.
        num_contributors: sites of the sum.
        context: 32 bytes that name run, round and phase.
        layout: of the vector.
        fast: by compiled code; the answer is the same.

    Raises:
        CryptoError: for a chunk of a wrong length or words too large.
    """
    products = Products(key_sum, context, layout.parameters.q, fast)
    squares = np.zeros(layout.num_blocks)
    next(_messages(chunks, products, num_contributors, layout, squares, fast))
    first = squares[: min(LANES, layout.chunk_blocks(0))] / RING_DEGREE
    return bool((first < residual_limit(num_contributors, layout.parameters)).all())


def open_sum(
    chunks: Iterable[bytes],
    key_sum: Int64,
    residues: Sequence[int],
    num_contributors: int,
    context: bytes,
    layout: RlweLayout,
    tag_seed: bytes,
    *,
    fast: bool = True,
) -> Opened:
    """The sum of the vectors of `num_contributors` sites. Nothing is returned before all of it was
    checked.

    Args:
        chunks: the server's, as bytes of packed sums.
        key_sum: int64 (4096,), the sum of exactly these sites' keys.
        residues: the sum of their residues mod q, layout.num_residues of them.
        num_contributors: sites of the opened set, at most num_sites.
        context: 32 bytes that name run, round and phase.
        layout: of the vector.
        tag_seed: 32 bytes that the sites share and the server does not have.
        fast: by compiled code; the sum is the same.

    Raises:
        CryptoError: code `key-sum` if the sum of keys is out of range, `residual` if what is left
            over is too large in any block (wrong key, context, set, order or bits), `tag` if the
            opened vector does not fit its tags, `crypto` for chunks of wrong lengths or words too
            large.
    """
    p = layout.parameters
    if not 1 <= num_contributors <= p.num_sites:
        raise CryptoError(f"rlwe sum: expected 1 to {p.num_sites} sites, got {num_contributors}")
    if (
        key_sum.shape != (RING_DEGREE,)
        or key_sum.dtype != np.int64
        or not -ETA * num_contributors <= int(key_sum.min())
        or not int(key_sum.max()) <= ETA * num_contributors
    ):
        raise CryptoError(
            f"rlwe key sum: expected {RING_DEGREE} magnitudes up to {ETA * num_contributors}",
            "key-sum",
        )
    tagger = Tagger(tag_seed, layout, fast)
    products = Products(key_sum, context, p.q, fast)
    values = np.empty(layout.num_values, dtype=np.int64)
    squares = np.zeros(layout.num_blocks)
    for low, messages in _messages(chunks, products, num_contributors, layout, squares, fast):
        arithmetic(fast).unpack_digits(
            messages, layout.num_coefficients, low, p.radix, p.digits, values
        )
        tagger.add(messages)
    mean_squares = tuple((squares / RING_DEGREE).tolist())
    limit = residual_limit(num_contributors, p)
    for index, found in enumerate(mean_squares):
        if found >= limit:
            raise CryptoError(
                f"rlwe sum: block {index} leaves {found:.3g} where at most {limit:.3g} is "
                "expected (wrong key, context or bits)",
                "residual",
            )
    return Opened(values, _reserved(residues, tagger, num_contributors, layout), mean_squares)


def _reserved(
    residues: Sequence[int], tagger: Tagger, num_contributors: int, layout: RlweLayout
) -> tuple[int, ...]:
    """The sums of the reserved integers, after the tags were found to fit."""
    if len(residues) != layout.num_residues:
        raise CryptoError(
            f"rlwe sum: expected {layout.num_residues} residues, got {len(residues)}", "key-sum"
        )
    count = len(layout.reserved_bits)
    found, tags = tuple(residues[:count]), tuple(residues[count:])
    if not _fits(tagger.tags(found), tags):
        raise CryptoError("rlwe sum: the opened vector does not fit its tag", "tag")
    for one, bits in zip(found, layout.reserved_bits, strict=True):
        if not 0 <= one <= num_contributors * ((1 << bits) - 1):
            raise CryptoError("rlwe sum: a reserved integer is larger than the sites can make it")
    return found


def _fits(expected: tuple[int, ...], opened: tuple[int, ...]) -> bool:
    return expected == opened


def _messages(
    chunks: Iterable[bytes],
    products: Products,
    num_contributors: int,
    layout: RlweLayout,
    squares: Float64,
    fast: bool,
) -> Iterator[tuple[int, Float64]]:
    """Place and opened coefficients of one group after another; the latter valid until the
    next. Fills in `squares`, by block."""
    p = layout.parameters
    middle = num_contributors * ((1 << p.dropped) - 1) // 2
    most = num_contributors * ((1 << p.word_bits) - 1)
    size = RING_DEGREE * p.sum_word_bits // 64
    out = np.empty(GROUP)
    index = 0
    for index, chunk in enumerate(chunks, 1):
        expected = layout.sum_chunk_bytes(index - 1)
        if len(chunk) != expected:
            raise CryptoError(f"rlwe sum: expected a chunk of {expected} bytes, got {len(chunk)}")
        packed = np.frombuffer(chunk, dtype="<u8")
        first = (index - 1) * layout.blocks_per_chunk
        blocks = layout.chunk_blocks(index - 1)
        for start in range(0, blocks, LANES):
            count = min(LANES, blocks - start)
            part = out[: count * RING_DEGREE]
            largest = arithmetic(fast).open_blocks(
                packed[start * size : (start + count) * size], p.sum_word_bits,
                products.next_group(count), middle, p.dropped, p.delta, p.q, part,
                squares[first + start : first + start + count],
            )  # fmt: skip
            if largest > most:
                raise CryptoError("rlwe sum: a word is larger than the sites can make it")
            yield (first + start) * RING_DEGREE, part
    if index != layout.num_chunks:
        raise CryptoError(f"rlwe sum: expected {layout.num_chunks} chunks, got {index}")
