"""Rates, areas and their intervals: every number of an audit is one `Measure`.

Rates get the exact interval of Clopper and Pearson (Biometrika 1934), or Wilson's (JASA 1927) where
one of small mean width is wanted; areas under the ROC curve and means get a percentile bootstrap
(Efron 1979), resampled within each class, from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedshield.types import Float64

CONFIDENCE = 0.95
RESAMPLES = 400


@dataclass(frozen=True)
class Measure:
    """A number with the interval that holds it at 95 % confidence, from `num_trials` trials.
    `chance`: what guessing gives, where guessing has a number."""

    value: float
    low: float
    high: float
    num_trials: int
    chance: float | None = None

    @property
    def at_chance(self) -> bool:
        """Whether guessing is within the interval."""
        return self.chance is not None and self.low <= self.chance <= self.high

    @property
    def beats_chance(self) -> bool:
        """Whether the whole interval is above what guessing gives."""
        return self.low > (self.chance or 0.0)


def clopper_pearson(hits: int, trials: int, chance: float | None = None) -> Measure:
    """The exact interval of a rate. Raises `ValueError` unless 0 <= hits <= trials, trials > 0."""
    _check(hits, trials)
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else _solve(lambda p: 1 - _below(hits - 1, trials, p), tail)
    high = 1.0 if hits == trials else _solve(lambda p: -_below(hits, trials, p), -tail)
    return Measure(hits / trials, low, high, trials, chance)


def wilson(hits: int, trials: int, chance: float | None = None) -> Measure:
    """Wilson's score interval of a rate. Raises `ValueError` like `clopper_pearson`."""
    _check(hits, trials)
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    p, wide = hits / trials, 1 + z * z / trials
    middle = (p + z * z / (2 * trials)) / wide
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / wide
    return Measure(p, max(0.0, middle - half), min(1.0, middle + half), trials, chance)


def auc(inside: Float64, outside: Float64) -> float:
    """The chance that one of `inside` scores above one of `outside`, ties by half. Both float64,
    not empty."""
    both = np.concatenate([inside, outside])
    order = np.sort(both)
    # The mean rank of equal scores, from how many lie below and at most at each.
    below = np.searchsorted(order, inside, side="left")
    upto = np.searchsorted(order, inside, side="right")
    ranks = (below + upto + 1) / 2
    n, m = inside.size, outside.size
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def auc_measure(inside: Float64, outside: Float64) -> Measure:
    """`auc` with its bootstrap interval; chance is 0.5."""
    _check(0, min(inside.size, outside.size))
    value = auc(inside, outside)
    draws = [auc(*pair) for pair in _resampled(inside, outside)]
    low, high = _percentiles(draws)
    return Measure(value, low, high, inside.size + outside.size, 0.5)


def tpr_at_fpr(inside: Float64, outside: Float64, fpr: float = 0.01) -> Measure:
    """The share of `inside` above a threshold that at most floor(fpr * size) of `outside` pass
    (none of them where they are fewer than 1 / fpr), with the exact interval. The threshold is
    from the same scores, whose own chance the interval leaves out."""
    _check(0, min(inside.size, outside.size))
    allowed = int(fpr * outside.size)
    threshold = np.sort(outside)[::-1][allowed]
    return clopper_pearson(int(np.count_nonzero(inside > threshold)), inside.size, fpr)


def mean_measure(values: Sequence[float], chance: float | None = None) -> Measure:
    """A mean with its bootstrap interval. Raises `ValueError` for no values."""
    array = np.asarray(values, dtype=np.float64)
    _check(0, array.size)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, array.size, (RESAMPLES, array.size))
    low, high = _percentiles(array[picks].mean(axis=1).tolist())
    return Measure(float(array.mean()), low, high, array.size, chance)


def _resampled(inside: Float64, outside: Float64) -> list[tuple[Float64, Float64]]:
    generator = np.random.default_rng(0)
    return [
        (
            inside[generator.integers(0, inside.size, inside.size)],
            outside[generator.integers(0, outside.size, outside.size)],
        )
        for _ in range(RESAMPLES)
    ]


def _percentiles(draws: Sequence[float]) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _below(hits: int, trials: int, p: float) -> float:
    """P(at most `hits` of `trials`) at rate p."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 1.0 if hits >= trials else 0.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(p)
        + (trials - k) * math.log1p(-p)
        for k in range(hits + 1)
    ]
    return min(1.0, math.fsum(math.exp(one) for one in logs))


def _solve(rising: Callable[[float], float], goal: float) -> float:
    """Where a function that rises over [0, 1] reaches `goal`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < goal:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _check(hits: int, trials: int) -> None:
    if trials < 1 or not 0 <= hits <= trials:
        raise ValueError(f"expected 0 to {trials} hits of at least one trial, got {hits}")
