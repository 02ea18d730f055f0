"""Rates, areas and their intervals: every number of an audit is one `Measure`.

Rates get the exact interval of Clopper and Pearson (Biometrika 1934), or Wilson's (JASA 1927) where
one of small mean width is wanted; areas under the ROC curve and means get a percentile bootstrap
(Efron 1979), resampled within each class, from a fixed seed. All of them are scipy's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest, bootstrap, rankdata

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
    """The exact interval of a rate.

    >>> rate = clopper_pearson(0, 10)
    >>> rate.value, rate.low, round(rate.high, 4)
    (0.0, 0.0, 0.3085)

    Args:
        hits: how many trials succeeded.
        trials: how many there were.
        chance: the rate that guessing gives, None where it has none.

    Returns:
        The rate with its interval at `CONFIDENCE`.

    Raises:
        ValueError: unless 0 <= hits <= trials and trials > 0.
    """
    return _rate(hits, trials, chance, "exact")


def wilson(hits: int, trials: int, chance: float | None = None) -> Measure:
    """Wilson's score interval of a rate. Args, Returns and Raises as of `clopper_pearson`.

    >>> rate = wilson(15, 50)
    >>> round(rate.low, 4), round(rate.high, 4)
    (0.191, 0.4375)
    """
    return _rate(hits, trials, chance, "wilson")


def _rate(
    hits: int, trials: int, chance: float | None, method: Literal["exact", "wilson"]
) -> Measure:
    _check(hits, trials)
    interval = binomtest(hits, trials).proportion_ci(CONFIDENCE, method)
    return Measure(hits / trials, float(interval.low), float(interval.high), trials, chance)


def auc(inside: Float64, outside: Float64) -> float:
    """The chance that one of `inside` scores above one of `outside`, ties by half. Both float64,
    one dimension, not empty.

    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    n, m = inside.size, outside.size
    # The statistic of Mann and Whitney, over all pairs.
    ranks = rankdata(np.concatenate([inside, outside]))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def auc_measure(inside: Float64, outside: Float64) -> Measure:
    """`auc` with its bootstrap interval; chance is 0.5. Raises `ValueError` for an empty class."""
    _check(0, min(inside.size, outside.size))
    # Batches of one: the draws of the two classes alternate.
    low, high = _bootstrapped((inside, outside), auc, batch=1)
    return Measure(auc(inside, outside), low, high, inside.size + outside.size, 0.5)


def tpr_at_fpr(inside: Float64, outside: Float64, fpr: float = 0.01) -> Measure:
    """The share of `inside` above a threshold that few of `outside` pass, with the exact interval.
    The threshold is from the same scores, whose own chance the interval leaves out.

    >>> tpr_at_fpr(np.array([1.5, 0.5]), np.array([0.0, 1.0])).value
    0.5

    Args:
        inside: scores of the one class: float64, one dimension, not empty.
        outside: scores of the other: float64, one dimension, not empty.
        fpr: the share of `outside` that may pass: at most floor(fpr * size), which is none of them
            where they are fewer than 1 / fpr.

    Returns:
        The share, whose chance is `fpr`.

    Raises:
        ValueError: where a class is empty.
    """
    _check(0, min(inside.size, outside.size))
    allowed = int(fpr * outside.size)
    threshold = np.sort(outside)[::-1][allowed]
    return clopper_pearson(int(np.count_nonzero(inside > threshold)), inside.size, fpr)


def mean_measure(values: Sequence[float], chance: float | None = None) -> Measure:
    """A mean with its bootstrap interval. Raises `ValueError` for no values."""
    array = np.asarray(values, dtype=np.float64)
    _check(0, array.size)
    low, high = _bootstrapped((array,), np.mean, batch=RESAMPLES)
    return Measure(float(array.mean()), low, high, array.size, chance)


def _bootstrapped(
    classes: Sequence[Float64], statistic: Callable[..., float], batch: int
) -> tuple[float, float]:
    """The ends of the percentile interval. `batch`: resamples of a class that are drawn before
    those of the next."""
    # A value alone stands twice: scipy wants two, and to both statistics it is the same.
    data = [np.repeat(values, 2) if values.size == 1 else values for values in classes]
    result = bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=batch,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _check(hits: int, trials: int) -> None:
    if trials < 1 or not 0 <= hits <= trials:
        raise ValueError(f"expected 0 to {trials} hits of at least one trial, got {hits}")
