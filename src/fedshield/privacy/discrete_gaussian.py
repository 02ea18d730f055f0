"""Discrete Gaussian integers, exact but for a stated distance, many at a time.

Probability of x proportional to exp(-x^2 / (2 sigma^2)), x a whole number (Canonne, Kamath,
Steinke, NeurIPS 2020, arXiv 2004.00010). Floating-point Gaussians leave traces of what they were
added to in their last bits (Mironov, CCS 2012); integers do not.

How: |x| lies in a cell of `width` whole numbers. A cell is drawn from a table of 128-bit cumulative
weights, each the cell's largest probability times its width; then a place in it and a sign, all
equally likely; then x is kept with its probability over the cell's largest, and minus zero is not.
Comparisons are made on 64 bits, and on 128 where 64 do not decide, so no rounding of a float
decides anything. What is given up is the tail beyond `bound`.

`DISTANCE_BITS`: a value's distribution is within 2^-80 of the true one in total variation: tail
2^-81 (Chernoff, the discrete Gaussian being sub-Gaussian with sigma^2), table and comparisons
below 2^-110.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.sampling import Stream

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

DISTANCE_BITS = 80
#: Beyond this many deviations lie 2^-81 of all.
_TAIL = math.sqrt(2 * math.log(2) * (DISTANCE_BITS + 2))
#: Cells to a deviation, at least: few values are then refused.
_CELLS = 32
#: Candidates of one pass.
PASS = 1 << 16
#: A float64 comparison this close is made again on 128 bits.
_UNSURE = 2.0**-44
_EXACT = Context(prec=60)
LEAST_DEVIATION, MOST_DEVIATION = 0.05, 2.0**30


@dataclass(frozen=True)
class DiscreteGaussian:
    """The distribution. `deviation`: sigma, 0.05 to 2^30, taken as the exact number that the
    float64 is. For sigma above 1 the variance is sigma^2 but for less than 1e-6 of it."""

    deviation: float

    def __post_init__(self) -> None:
        if not LEAST_DEVIATION <= self.deviation <= MOST_DEVIATION:
            raise ValueError(
                f"discrete Gaussian: expected a deviation of {LEAST_DEVIATION} to "
                f"{MOST_DEVIATION:.0f}, got {self.deviation}"
            )

    @property
    def width(self) -> int:
        """Whole numbers in a cell: a power of two."""
        return 1 << max(0, math.frexp(self.deviation / _CELLS)[1] - 1)

    @property
    def num_cells(self) -> int:
        return math.ceil(_TAIL * self.deviation / self.width) + 1

    @property
    def bound(self) -> int:
        """The largest magnitude that is ever drawn."""
        return self.num_cells * self.width - 1

    def relative(self, smaller: int, larger: int) -> Decimal:
        """The probability of `larger` over that of `smaller`, to 60 digits."""
        # Both squares are whole numbers; sigma is the exact binary fraction.
        two_variances = _EXACT.multiply(2, _EXACT.power(Decimal(self.deviation), 2))
        return _EXACT.exp(_EXACT.divide(Decimal(smaller**2 - larger**2), two_variances))

    def draw(self, count: int, stream: Stream) -> Int64:
        """int64, (count,). `stream`: see `fresh_stream`; what is drawn is a function of it."""
        cells = _cells(self)
        found = np.empty(count, dtype=np.int64)
        have = 0
        while have < count:
            kept = self._pass(min(PASS, count - have), stream, cells)
            found[have : have + kept.size] = kept
            have += kept.size
        return found

    def _pass(self, count: int, stream: Stream, cells: _Cells) -> Int64:
        """Those of `count` candidates that were kept, in order."""
        choose, place, keep = (stream.words(count) for _ in range(3))
        cell = cells.find(choose, stream)
        # The lowest bits of a word are the place, its highest the sign.
        offset = (place & np.uint64(self.width - 1)).astype(np.int64)
        negative = (place >> np.uint64(63)).astype(np.bool_)
        first = cell * self.width
        magnitude = first + offset
        exponent = (offset * (2 * first + offset)).astype(np.float64)
        odds = np.exp(exponent * (-0.5 / self.deviation**2))
        margin = keep.astype(np.float64) * 2.0**-64 - odds
        kept = margin < 0
        for at in np.flatnonzero(np.abs(margin) < _UNSURE):
            word = (int(keep[at]) << 64) | int(stream.words(1)[0])
            odds_exactly = self.relative(int(first[at]), int(magnitude[at]))
            kept[at] = _EXACT.divide(Decimal(word), Decimal(1 << 128)) < odds_exactly
        kept &= ~(negative & (magnitude == 0))
        return np.where(negative, -magnitude, magnitude)[kept]


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cumulative weights: word < cumulative[a] for the first a is cell a. The last is 2^128."""

    cumulative: tuple[int, ...] = field(repr=False)
    high: UInt64 = field(repr=False)

    def find(self, words: UInt64, stream: Stream) -> Int64:
        """The cell of each of these upper halves; a lower half is drawn where it matters."""
        found = np.searchsorted(self.high, words, side="right").astype(np.int64)
        first = np.searchsorted(self.high, words, side="left")
        for at in np.flatnonzero(first != found):
            word = (int(words[at]) << 64) | int(stream.words(1)[0])
            here = int(first[at])
            while word >= self.cumulative[here]:
                here += 1
            found[at] = here
        return found


@lru_cache(maxsize=16)
def _cells(distribution: DiscreteGaussian) -> _Cells:
    weights = [
        distribution.relative(0, at * distribution.width) for at in range(distribution.num_cells)
    ]
    total, sums = Decimal(0), []
    for weight in weights:
        total = _EXACT.add(total, weight)
        sums.append(total)
    # Where one cell has nearly all, 60 digits may round it up to all.
    cumulative = [
        min(int(_EXACT.multiply(_EXACT.divide(one, total), Decimal(1 << 128))), (1 << 128) - 1)
        for one in sums[:-1]
    ]
    high = np.array([one >> 64 for one in cumulative], dtype=np.uint64)
    return _Cells((*cumulative, 1 << 128), high)


def fresh_stream(label: str, about: bytes) -> Stream:
    """A stream that nobody else can know: its seed is 32 bytes of the operating system's
    generator, bound to `about`, so that a machine that was cloned with equal randomness does not
    add the same noise to different contents."""
    seed = hmac.digest(
        os.urandom(32), b"fedshield noise 1" + hashlib.sha256(about).digest(), "sha256"
    )
    return Stream(seed, label, 0)
