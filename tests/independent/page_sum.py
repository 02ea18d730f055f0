"""docs/protocol.md, section 7: one sum under `rlwe`, encrypted and opened, from the page alone."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from page_shares import Shape, open_keys
from page_streams import (
    DEGREE,
    GROUP,
    Stream,
    binomial,
    coefficients,
    matrix,
    pack,
    tags,
    times,
    transformed,
    unpack,
)
from page_wire import LABELS, Refused

Array = NDArray[Any]


# -- encryption ----------------------------------------------------------------------------------


def message_of(digits: Array, shape: Shape) -> Array:
    """Digits as coefficients, padded."""
    message = np.zeros(shape.packs * DEGREE, dtype=np.int64)
    for place in range(shape.packing.digits):
        part = digits[place * shape.stretch : (place + 1) * shape.stretch].astype(np.int64)
        message[: part.size] += part * shape.packing.radix**place
    return message


def as_blocks(vector: Array) -> list[Array]:
    """A coefficient vector as ring elements."""
    blocks: list[Array] = []
    for at in range(0, vector.size, GROUP * DEGREE):
        stretch = vector[at : at + GROUP * DEGREE]
        width = stretch.size // DEGREE
        blocks += [stretch[k::width] for k in range(width)]
    return blocks


def as_vector(blocks: Sequence[Array]) -> Array:
    parts = [
        np.stack(blocks[at : at + GROUP], axis=1).reshape(-1) for at in range(0, len(blocks), GROUP)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


class Encrypted(NamedTuple):
    chunks: list[bytes]
    secret: Array
    residues: list[int]
    share_seed: bytes


def encrypt(
    digits: Array,
    reserved: Sequence[int],
    shape: Shape,
    context: bytes,
    group_key: bytes,
    seed: bytes,
) -> Encrypted:
    """`seed`: the one-time seed."""
    p, message = shape.packing, message_of(digits, shape)
    secret = binomial(Stream(b"secret", seed, 0), DEGREE)
    errors = Stream(b"error", seed, 0)
    groups = -(-shape.packs // GROUP)
    noise = [
        binomial(errors, GROUP * DEGREE)[: message.size - g * GROUP * DEGREE] for g in range(groups)
    ]
    masks = _masks(shape, context, secret)
    e = np.concatenate(noise) if noise else np.zeros(0, dtype=np.int64)
    words = ((masks + e + p.delta * message) % p.q) >> p.dropped
    reserved = [int(x) for x in reserved]
    found = tags(tag_seed(group_key, context), p.q, message, reserved)
    return Encrypted(
        _chunks(words, shape, p.word_bits),
        secret,
        [*reserved, *found],
        hmac.digest(seed, b"fedshield shares 2", "sha256"),
    )


def tag_seed(group_key: bytes, context: bytes) -> bytes:
    return hmac.digest(group_key, LABELS["tag"] + context, "sha256")


def _masks(shape: Shape, context: bytes, secret: Array, packs: int | None = None) -> Array:
    """a s, as a vector."""
    q = shape.packing.q
    there = transformed(secret, q)
    rows = matrix(context, q, shape.packs if packs is None else packs)
    return as_vector([coefficients(times(a, there, q), q) for a in rows])


def _chunks(words: Array, shape: Shape, bits: int) -> list[bytes]:
    packed = [pack(one, bits) for one in words.reshape(-1, DEGREE)]
    found, at = [], 0
    for width in shape.chunks():
        found.append(b"".join(packed[at : at + width]))
        at += width
    return found


# -- opening -------------------------------------------------------------------------------------


def rest_of(
    chunks: Sequence[bytes], secret: Array, shape: Shape, context: bytes, number: int, packs: int
) -> tuple[Array, Array]:
    """Of the first `packs` packs: the opened coefficients, and v - delta m of each."""
    p = shape.packing
    data, size = b"".join(chunks), DEGREE * p.sum_bits // 8
    if len(data) != shape.packs * size:
        raise Refused("crypto: a sum of another length")
    words = [unpack(data[size * j : size * (j + 1)], p.sum_bits) for j in range(packs)]
    y = np.concatenate(words) * 2**p.dropped + number * (2**p.dropped - 1) // 2
    v = (y - _masks(shape, context, secret, packs)) % p.q
    v = np.where(v > p.q // 2, v - p.q, v)
    message = (v + p.delta // 2) // p.delta
    return message, v - p.delta * message


def limit(shape: Shape, number: int) -> float:
    return 2 * number * (21 + (4**shape.packing.dropped - 1) / 12)


def quiet(rest: Array, shape: Shape, number: int) -> bool:
    """Whether what is left of each block is below the limit."""
    return all(
        float(np.mean(block.astype(np.float64) ** 2)) < limit(shape, number)
        for block in as_blocks(rest)
    )


def values_of(message: Array, shape: Shape) -> Array:
    """The digits' sums, by place."""
    p, rest = shape.packing, message[: shape.stretch]
    found: list[Array] = []
    for _ in range(p.digits):
        found.append((rest + p.largest) % p.radix - p.largest)
        rest = (rest - found[-1]) // p.radix
    return np.concatenate(found)[: shape.values]


def open_sum(
    chunks: Sequence[bytes],
    answers: Mapping[int, bytes],
    shape: Shape,
    context: bytes,
    group_key: bytes,
    number: int,
    colluding: int,
) -> tuple[Array, list[int]]:
    """The sums of the digits and of the reserved integers."""
    p = shape.packing
    first = min(shape.packs, GROUP)
    can_tell = shape.packs and limit(shape, number) < 0.75 * p.delta**2 / 12

    def fits(secret: Array) -> bool:
        _, rest = rest_of(chunks, secret, shape, context, number, first)
        return quiet(rest, shape, number)

    secret, residues = open_keys(answers, shape, colluding, number, fits if can_tell else None)
    message = np.zeros(0, dtype=np.int64)
    if shape.packs:
        message, rest = rest_of(chunks, secret, shape, context, number, shape.packs)
        if not quiet(rest, shape, number):
            raise Refused("residual")
    reserved = [int(x) for x in residues[: shape.reserved]]
    wanted = tags(tag_seed(group_key, context), p.q, message, reserved)
    if wanted != [int(x) for x in residues[shape.reserved :]]:
        raise Refused("tag")
    return values_of(message, shape), reserved
