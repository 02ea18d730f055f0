"""Epsilon of what was released: Renyi accounting, by `dp_accounting`.

Only whole orders are used where rows are sampled: there the moment that the formula for the
Poisson-sampled Gaussian (Mironov, Talwar, Zhang, arXiv 1908.10530) is made of is the same number
for the discrete Gaussian, because a whole shift of a sum over all whole numbers changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WHOLE_ORDERS: tuple[float, ...] = (*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024)
#: Without sampling every order above one holds.
ALL_ORDERS: tuple[float, ...] = (
    *(1 + 1 / steps for steps in (50, 20, 10, 5, 4, 3)), *(1.5, 1.75, 2.5, 3.5, 4.5), *WHOLE_ORDERS
)  # fmt: skip


@dataclass(frozen=True)
class Release:
    """What one round releases of a unit. `noise_multiplier`: deviation of the noise over the
    largest L2 change that one unit makes; `sampling_rate`: the chance that a unit is in a step at
    all (Poisson), 1 where it always is; `steps`: of a round; `distance`: of a round's noise from
    the distribution that it stands for, in total variation."""

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1
    distance: float = 0.0

    def rdp(self, rounds: int, orders: Sequence[float]) -> NDArray[np.float64]:
        """Renyi divergence at each order after so many rounds: float64, (len(orders),)."""
        import dp_accounting
        from dp_accounting import rdp

        accountant = rdp.RdpAccountant(list(orders))
        event = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, event)
        accountant.compose(event, rounds * self.steps)
        return np.asarray(accountant.rdp, dtype=np.float64)

    @property
    def orders(self) -> tuple[float, ...]:
        return WHOLE_ORDERS if self.sampling_rate < 1 else ALL_ORDERS


@lru_cache(maxsize=4096)
def epsilon(release: Release, rounds: int, delta: float) -> float:
    """Epsilon at `delta` after `rounds`; infinite where `delta` is too small for the noise's own
    distance. Noise within d of its distribution gives (epsilon, delta + (1 + e^epsilon) d)."""
    if rounds == 0:
        return 0.0
    curve = release.rdp(rounds, release.orders)
    return epsilon_of(curve, release.orders, rounds * release.distance, delta)


def epsilon_of(
    curve: Sequence[float] | NDArray[np.float64],
    orders: Sequence[float],
    away: float,
    delta: float,
) -> float:
    """Epsilon at `delta` of a Renyi curve at these orders, of noise whose total variation from the
    distribution that it stands for is `away` in all."""
    from dp_accounting.rdp import compute_epsilon

    found = 0.0
    # The least epsilon that allows for the distance at that very epsilon, from below.
    for _ in range(50):
        left = delta - away * (1 + math.exp(min(found, 700.0)))
        if left <= 0:
            return math.inf
        needed = float(compute_epsilon(orders, np.asarray(curve), left)[0])
        if needed <= found * (1 + 1e-12):
            return found
        found = needed
    return math.inf


def least_multiplier(
    target: float, delta: float, rounds: int, release: Callable[[float], Release]
) -> float | None:
    """The least noise multiplier, to one in 2000, whose `release` stays within `target` over
    `rounds`; None if not even the largest does."""
    low, high = math.log(0.01), math.log(1000.0)

    def within(logarithm: float) -> bool:
        return epsilon(release(math.exp(logarithm)), rounds, delta) <= target

    if not within(high):
        return None
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return math.exp(high)
