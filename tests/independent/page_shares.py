"""docs/protocol.md, section 7: shares of a one-time key and what wrong answers do, from the page
alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from page_streams import DEGREE, Packing, Stream, num_tags, packs_a_chunk
from page_wire import Refused

Array = NDArray[Any]
FIELD, MAX_KEY = 2**31 - 1, 42
#: Whether a sum of keys is the one that the blocks were made under; None where nothing tells.
Fits = Callable[[Array], bool] | None


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


# -- shares --------------------------------------------------------------------------------------


def deal(secret: Array, residues: Sequence[int], shape: Shape, share_seed: bytes) -> list[bytes]:
    """The share of each holder, in the order of the roster."""
    width, bits = shape.lanes
    padded = np.zeros(shape.elements * width, dtype=np.int64)
    padded[:DEGREE] = secret
    packed = (padded.reshape(-1, width) << (bits * np.arange(width))).sum(axis=1) % FIELD
    elements = _dealt(packed, shape, FIELD, share_seed)
    others = _dealt(np.array(residues, dtype=np.int64), shape, shape.packing.q, share_seed)
    return [
        one.astype("<u4").tobytes() + two.astype("<u8").tobytes()
        for one, two in zip(elements, others, strict=True)
    ]


def _dealt(values: Array, shape: Shape, modulus: int, share_seed: bytes) -> list[Array]:
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
    """64-bit words cut to 31 bits, all ones passed over."""
    taken = np.zeros(0, dtype=np.int64)
    while taken.size < count:
        words = stream.numbers("<u8", count - taken.size) & np.uint64(FIELD)
        taken = np.concatenate([taken, words[words != FIELD].astype(np.int64)])
    return taken


def read_share(data: bytes, shape: Shape) -> tuple[Array, Array]:
    cut = 4 * shape.elements
    if len(data) != cut + 8 * shape.residues:
        raise Refused("share: of another length")
    elements = np.frombuffer(data[:cut], dtype="<u4").astype(np.int64)
    residues = np.frombuffer(data[cut:], dtype="<u8")
    if elements.max() >= FIELD or residues.max() >= shape.packing.q:
        raise Refused("share: out of range")
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
        raise Refused("share: too few answers")
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
        raise Refused("key-sum: residues that do not fit")
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
        raise Refused("residual: keys that do not fit" if fits else "key-sum")
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
