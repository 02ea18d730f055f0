"""The noise in plain Python, slowly, to compare with.

`table_draw` is the sampler of fedshield.privacy.discrete_gaussian value by value, on the same
words: equal integers. `exact_draw` is another way to the same distribution, without any table or
float (Canonne, Kamath, Steinke, arXiv 2004.00010, by a discrete Laplace and rational coins): equal
frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from fedshield.privacy.discrete_gaussian import PASS, DiscreteGaussian

#: A uniform whole number below the argument.
Below = Callable[[int], int]
#: The next so many 64-bit words.
Words = Callable[[int], list[int]]

_ONE = 1 << 128


def table_draw(distribution: DiscreteGaussian, count: int, words: Words) -> list[int]:
    """As `DiscreteGaussian.draw`."""
    width, cumulative = distribution.width, _cumulative(distribution)
    undecided = {edge >> 64 for edge in cumulative}
    found: list[int] = []
    while len(found) < count:
        size = min(PASS, count - len(found))
        chosen, places, keeps = words(size), words(size), words(size)
        cells = []
        for word in chosen:
            # The lower half of a word is drawn where the upper does not decide.
            low = 0
            if word in undecided:
                (low,) = words(1)
            cells.append(next(a for a, edge in enumerate(cumulative) if (word << 64) | low < edge))
        for cell, place, keep in zip(cells, places, keeps, strict=True):
            first = cell * width
            value = first + place % width
            odds = distribution.relative(first, value)
            if Fraction(keep, 1 << 64) >= Fraction(odds) or (place >> 63 and value == 0):
                continue
            found.append(-value if place >> 63 else value)
    return found


def _cumulative(distribution: DiscreteGaussian) -> list[int]:
    weights = [
        Fraction(distribution.relative(0, a * distribution.width))
        for a in range(distribution.num_cells)
    ]
    total, running, sums = sum(weights), Fraction(0), []
    for weight in weights[:-1]:
        running += weight
        sums.append(int(running / total * _ONE))
    return [*sums, _ONE]


def exact_draw(variance: Fraction, below: Below) -> int:
    """One value with probability proportional to exp(-x^2 / (2 variance))."""
    scale = math.isqrt(variance.numerator // variance.denominator) + 1
    while True:
        value = _laplace(scale, below)
        away = abs(value) - variance / scale
        if _coin_exp(away * away / (2 * variance), below):
            return value


def _laplace(scale: int, below: Below) -> int:
    """Probability proportional to exp(-|x| / scale)."""
    while True:
        rest = below(scale)
        if not _coin_exp(Fraction(rest, scale), below):
            continue
        whole = 0
        while _coin_exp(Fraction(1), below):
            whole += 1
        value, negative = rest + scale * whole, below(2)
        if value or not negative:
            return -value if negative else value


def _coin_exp(gamma: Fraction, below: Below) -> bool:
    """True with probability exp(-gamma): a product of coins of exp(-1) and one of less."""
    while gamma > 1:
        if not _coin_small(Fraction(1), below):
            return False
        gamma -= 1
    return _coin_small(gamma, below)


def _coin_small(gamma: Fraction, below: Below) -> bool:
    """exp(-gamma) for gamma up to 1: the length of a run of coins of gamma / k is even."""
    run = 1
    while below(gamma.denominator * run) < gamma.numerator:
        run += 1
    return run % 2 == 1
