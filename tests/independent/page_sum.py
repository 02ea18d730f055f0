"""docs/protocol.md, section 7: one sum under `rlwe`, from digits to shares and back, from the page
alone."""

from __future__ import annotations

import hmac
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from page_streams import (
    DEGREE,
    GROUP,
    Packing,
    Stream,
    binomial,
    coefficients,
    matrix,
    num_tags,
    pack,
    packs_a_chunk,
    tags,
    times,
    transformed,
    unpack,
)
from page_wire import LABELS, Refused

Array = NDArray[Any]
FIELD, MAX_KEY = 2**31 - 1, 42


class Shape(NamedTuple):
    """Of one sum: `values` that travel, and how many reserved integers."""

    packing: Packing
    values: int
    reserved: int
    sites: int
    threshold: int

    @property
    def stretch(self) -> int:
        """Coefficients before padding."""
        return -(-self.values // self.packing.digits)

    @property
    def packs(self) -> int:
        return -(-self.stretch // DEGREE)

    @property
    def residues(self) -> int:
        return self.reserved + num_tags(self.packing.q, self.packs)

    @property
    def elements(self) -> int:
        return 1366 if self.sites <= 12 else 2048

    @property
    def lanes(self) -> tuple[int, int]:
        """Coefficients to an element, bits of each."""
        return (3, 10) if self.sites <= 12 else (2, 15)

    def chunks(self) -> list[int]:
        """Packs of each message."""
        most = packs_a_chunk(self.packing)
        return [min(most, self.packs - at) for at in range(0, self.packs, most)]


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
        np.stack(blocks[at : at + GROUP], axis=1).reshape(-1)
        for at in range(0, len(blocks), GROUP)
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
        binomial(errors, GROUP * DEGREE)[: message.size - g * GROUP * DEGREE]
        for g in range(groups)
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


# -- shares --------------------------------------------------------------------------------------


def deal(secret: Array, residues: Sequence[int], shape: Shape, share_seed: bytes) -> list[bytes]:
    """The share of each holder, in the order of the roster."""
    width, bits = shape.lanes
    padded = np.zeros(shape.elements * width, dtype=np.int64)
    padded[:DEGREE] = secret
    packed = (padded.reshape(-1, width) << (bits * np.arange(width))).sum(axis=1) % FIELD
    elements = _dealt(packed, shape, FIELD, Stream(b"shamir", share_seed, 0), share_seed)
    small = np.array(residues, dtype=np.int64)
    others = _dealt(small, shape, shape.packing.q, None, share_seed)
    return [
        one.astype("<u4").tobytes() + two.astype("<u8").tobytes()
        for one, two in zip(elements, others, strict=True)
    ]


def _dealt(
    values: Array, shape: Shape, modulus: int, _: Any, share_seed: bytes
) -> list[Array]:
    rows = [values]
    for k in range(1, shape.threshold):
        if modulus == FIELD:
            rows.append(_elements(Stream(b"shamir", share_seed, k), values.size))
        else:
            stream = Stream(b"shamir residues", share_seed, k)
            rows.append(stream.residues(modulus, values.size))
    holders: list[Array] = []
    for x in range(1, shape.sites + 1):
        total = np.zeros(values.size, dtype=object)
        for row in reversed(rows):
            total = (total * x + row) % modulus
        holders.append(total.astype(np.int64))
    return holders


def _elements(stream: Stream, count: int) -> Array:
    """Words cut to 31 bits, all ones passed over."""
    taken: list[int] = []
    while len(taken) < count:
        word = int(stream.numbers("<u4", 1)[0]) & FIELD
        if word != FIELD:
            taken.append(word)
    return np.array(taken, dtype=np.int64)


def read_share(data: bytes, shape: Shape) -> tuple[Array, Array]:
    cut = 4 * shape.elements
    if len(data) != cut + 8 * shape.residues:
        raise Refused("a share of another length")
    elements = np.frombuffer(data[:cut], dtype="<u4").astype(np.int64)
    residues = np.frombuffer(data[cut:], dtype="<u8")
    if elements.max() >= FIELD or residues.max() >= shape.packing.q:
        raise Refused("a share out of range")
    return elements, residues.astype(np.int64)


def add_shares(shares: Sequence[bytes], shape: Shape) -> bytes:
    read = [read_share(share, shape) for share in shares]
    elements = sum(one for one, _ in read) % FIELD
    residues = sum(two for _, two in read) % shape.packing.q
    return bytes(elements.astype("<u4").tobytes() + residues.astype("<u8").tobytes())


# -- opening -------------------------------------------------------------------------------------


def _at(points: Mapping[int, Array], x: int, modulus: int) -> Array:
    """The polynomial through `points`, at x."""
    total = np.zeros(next(iter(points.values())).size, dtype=object)
    for i, values in points.items():
        factor = 1
        for j in points:
            if j != i:
                factor = factor * (x - j) * pow(i - j, -1, modulus) % modulus
        total = (total + values.astype(object) * factor) % modulus
    return total.astype(np.int64)


def _agreed(points: Mapping[int, Array], threshold: int, wrong: int, modulus: int) -> Any:
    """What all but `wrong` of the answers agree on, at 0, and who does not; None without such."""
    for some in itertools.combinations(sorted(points), threshold):
        chosen = {x: points[x] for x in some}
        off = [x for x in points if not np.array_equal(_at(chosen, x, modulus), points[x])]
        if len(off) <= wrong:
            return _at(chosen, 0, modulus), off
    return None


def open_keys(
    answers: Mapping[int, bytes], shape: Shape, colluding: int, number: int, fits: Any
) -> tuple[Array, Array]:
    """The sum of the keys and of the residues. `answers`: x -> share; `number`: contributors;
    `fits`: tells whether a sum of keys is the blocks', None where nothing does."""
    read = {x: read_share(data, shape) for x, data in answers.items()}
    keys = {x: one for x, (one, _) in read.items()}
    spare = len(answers) - shape.threshold
    if spare < 0:
        raise Refused("too few answers")
    most = spare // 2 if fits else max(0, min(spare // 2, spare - colluding))
    found = _agreed(keys, shape.threshold, most, FIELD)
    off: list[int] = []
    secret = None
    if found is not None:
        secret, off = _unpacked(found[0], shape, number), found[1]
        if off and fits and (secret is None or not fits(secret)):
            secret = None
    if secret is None:
        secret, off = _tried(keys, shape, number, fits)
    left = {x: two for x, (_, two) in read.items() if x not in off}
    spare = len(left) - shape.threshold
    residues = _agreed(
        left,
        shape.threshold,
        max(0, min(spare // 2, spare - colluding)),
        shape.packing.q,
    )
    if residues is None:
        raise Refused("residues that do not fit: key-sum")
    return secret, residues[0]


def _tried(
    keys: Mapping[int, Array], shape: Shape, number: int, fits: Any
) -> tuple[Array, list[int]]:
    """Step 2: the one sum of keys that fits the blocks."""
    passed: dict[bytes, tuple[Array, list[int]]] = {}
    if fits and len(keys) <= 12:
        for some in itertools.combinations(sorted(keys), shape.threshold):
            chosen = {x: keys[x] for x in some}
            secret = _unpacked(_at(chosen, 0, FIELD), shape, number)
            if secret is not None and fits(secret):
                off = [x for x in keys if not np.array_equal(_at(chosen, x, FIELD), keys[x])]
                passed[secret.tobytes()] = secret, off
    if len(passed) != 1:
        raise Refused("keys that do not fit: residual" if fits else "key-sum")
    return next(iter(passed.values()))


def _unpacked(elements: Array, shape: Shape, number: int) -> Array | None:
    """An element's lanes, signed; None where a coefficient is out of range."""
    width, bits = shape.lanes
    rest = np.where(elements > FIELD // 2, elements - FIELD, elements)
    lanes: list[Array] = []
    for _ in range(width):
        low = ((rest + (1 << bits - 1)) % (1 << bits)) - (1 << bits - 1)
        lanes.append(low)
        rest = (rest - low) >> bits
    flat = np.stack(lanes, axis=1).reshape(-1)
    good = not rest.any() and not flat[DEGREE:].any()
    return flat[:DEGREE] if good and np.abs(flat).max() <= MAX_KEY * number else None


def rest_of(
    chunks: Sequence[bytes], secret: Array, shape: Shape, context: bytes, number: int, packs: int
) -> tuple[Array, Array]:
    """Of the first `packs` packs: the opened coefficients, and v - delta m of each."""
    p = shape.packing
    data, size = b"".join(chunks), DEGREE * p.sum_bits // 8
    if len(data) != shape.packs * size:
        raise Refused("a sum of another length")
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
    p, rest, found = shape.packing, message[: shape.stretch].copy(), []
    for _ in range(p.digits):
        digit = ((rest + p.largest) % p.radix) - p.largest
        found.append(digit)
        rest = (rest - digit) // p.radix
    if rest.any() or message[shape.stretch :].any():
        raise Refused("a sum out of range")
    return np.concatenate(found)[: shape.values] if found else np.zeros(0, dtype=np.int64)


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
    assert math.isfinite(p.delta)
    return values_of(message, shape), reserved
