"""A whole site is the unit: noise goes into its integers before they are encrypted.

A site's weighted update is cut to an L2 norm, rounded to integers whose norm is *counted*, not
estimated, and gets discrete Gaussian noise. Only sums are ever opened (rlwe), so that each site
need add a share: `honest` sites together carry all of it (the distributed discrete Gaussian:
Kairouz, Liu, Steinke, ICML 2021, arXiv 2102.06387). `honest` is min_cohort (with membership
batches c + 2, the smallest batch) less those that may collude with the coordinator, and a site that
looks at the sum itself is one of them: it can take its own noise away.

Nothing can wrap: |integer| <= sensitivity, |noise| <= the sampler's bound, and both together
fit a site's part of a digit of the sum, whatever is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.crypto.rlwe.sampling import Stream
from fedshield.errors import CryptoError, PlanError
from fedshield.plan.quorum import Rules
from fedshield.privacy.accounting import Release
from fedshield.privacy.discrete_gaussian import DISTANCE_BITS, DiscreteGaussian
from fedshield.types import EncodedIntegers, Float32, Layout
from fedshield.update import encode_integers
from fedshield.update.quantise import quantise

Int64 = NDArray[np.int64]

#: Times that an update whose integers came out too long is made shorter and rounded again.
_TRIES = 8
MECHANISM = "distributed discrete Gaussian in the encrypted sum"


@dataclass(frozen=True)
class SiteMechanism:
    """`sensitivity`: most L2 norm of a site's integers, in steps of the sum; `deviation`: of one
    site's noise, in the same steps; `limit`: most magnitude of a noised integer."""

    clip_norm: float
    sensitivity: int
    deviation: float
    honest: int
    num_sites: int
    limit: int
    max_digit: int

    @property
    def noise(self) -> DiscreteGaussian:
        return DiscreteGaussian(self.deviation)

    @property
    def step(self) -> float:
        """What one unit is in the weighted sum, in which weights are shares of all sites: a site at
        equal weight moves it by at most clip_norm / num_sites in L2. With membership batches the
        sum is divided by the weight that is in it afterwards, and the noise in it with it."""
        return self.clip_norm / (self.sensitivity * self.num_sites)

    def scale(self, weight: float) -> float:
        """Steps of the sum for one unit of an update of this weight."""
        return weight / self.step

    def parts(self, num_values: int) -> Sequence[tuple[slice, float]]:
        """As `encode_integers` has them: one scale for all, so that norms mean something."""
        return [(slice(0, num_values), self.step * self.max_digit)]

    def release(self, num_values: int) -> Release:
        """What a round costs. The sum of `honest` discrete Gaussians is not one itself; the bound
        for it is of arXiv 2102.06387, Theorem 1, in its form (alpha/2)(S/(sqrt(n) sigma) +
        tau sqrt(d))^2, which is a Gaussian's with the multiplier that is given here."""
        tau = 10 * sum(
            math.exp(-2 * math.pi**2 * self.deviation**2 * k / (k + 1))
            for k in range(1, self.honest)
        )
        cost = self.sensitivity / (math.sqrt(self.honest) * self.deviation)
        cost += tau * math.sqrt(num_values)
        away = self.honest * num_values * 2.0**-DISTANCE_BITS
        # float64 rounds a few times on the way here; never in our favour.
        return Release(noise_multiplier=(1 - 1e-12) / cost, distance=away)


def honest_sites(rules: Rules) -> int:
    """Contributors whose noise nobody who looks at the sum can take away."""
    return rules.least_apart - max(1, rules.max_colluding)


def mechanism(
    clip_norm: float,
    noise_multiplier: float,
    rules: Rules,
    packing: RlweParameters,
    num_values: int,
) -> SiteMechanism:
    """The one with the finest steps that cannot overflow. `noise_multiplier`: deviation of the
    honest sites' summed noise over the sensitivity; `num_values`: most that a round sends.

    Raises `PlanError`, naming the knobs, where steps would be so coarse that rounding drowns the
    update: a squared sensitivity below the number of values.
    """
    honest, limit = honest_sites(rules), packing.site_limit(1.0 / rules.num_sites)
    if rules.num_sites * limit > packing.max_digit:
        raise CryptoError(f"{packing.name}: sums of {limit} at every site would not fit a digit")

    def made(sensitivity: int) -> SiteMechanism:
        deviation = noise_multiplier * sensitivity / math.sqrt(honest)
        return SiteMechanism(
            clip_norm, sensitivity, deviation, honest, rules.num_sites, limit, packing.max_digit
        )

    def fits(sensitivity: int) -> bool:
        return sensitivity + made(sensitivity).noise.bound <= limit

    # The bound for the sum of several discrete Gaussians asks for deviations of a half or more.
    widest = math.ceil(0.5 * math.sqrt(honest) / noise_multiplier)
    least = max(1, math.isqrt(max(0, num_values - 1)) + 1, widest)
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle and fits(middle) else (low, middle)
    if low < least:
        raise PlanError(
            f"privacy.noise_multiplier: expected room for at least {least} steps of an update of "
            f"{num_values} values beside the noise, got {low} at {noise_multiplier:.3g} with "
            f"{rules.num_sites} sites and {packing.bits} bits; use encoding.headroom, more "
            "encoding.bits, fewer values (adapter.train core, adapter.rank) or less noise"
        )
    return made(low)


@dataclass(frozen=True, eq=False)
class BoundedIntegers:
    """Integers of a site, and the L2 norm that they do not exceed: checked here, in integers.
    `digits`: int64, (n,). `factor`: what the update was multiplied by to fit, at most 1."""

    digits: Int64 = field(repr=False)
    residual: Float32 = field(repr=False)
    sensitivity: int
    factor: float

    def __post_init__(self) -> None:
        found = squared_norm(self.digits)
        if found > self.sensitivity**2:
            raise CryptoError(
                f"privacy: expected integers of squared norm up to {self.sensitivity**2}, got "
                f"{found}"
            )
        self.digits.flags.writeable = False


def squared_norm(digits: Int64) -> int:
    """Exact."""
    if digits.size and int(np.abs(digits).max()) >= 1 << 20:
        return sum(int(one) ** 2 for one in digits)
    # Squares below 2^40, fewer than 2^23 at a time.
    return sum(
        int(np.square(digits[at : at + (1 << 22)]).sum()) for at in range(0, digits.size, 1 << 22)
    )


def bound(values: Float32, scale: float, sensitivity: int, seed: int) -> BoundedIntegers:
    """values * scale as integers of L2 norm at most `sensitivity`, rounded at random from `seed`
    (not a secret: the bound holds for every rounding).

    A longer update is made shorter as a whole. Rounding lengthens: where the integers come out too
    long the update is shortened by that much and rounded again, at last towards zero, which
    lengthens nothing. `residual`: float32, (n,), what rounding left out; what the clip cut off is
    not in it. Raises `CryptoError` for values that are not finite.
    """
    wide = values.astype(np.float64)
    norm = float(np.sqrt(np.square(wide).sum())) * scale
    if not math.isfinite(norm):
        raise CryptoError("update: expected finite values, got NaN or infinity; training diverged")
    factor = min(1.0, sensitivity / norm) if norm else 1.0
    digits = np.zeros(values.size, dtype=np.int32)
    for _ in range(_TRIES):
        if factor * scale <= 0 or not math.isfinite(factor * scale):
            break
        quantise(values, factor * scale, sensitivity, seed, out=digits)
        found = squared_norm(digits.astype(np.int64))
        if found <= sensitivity**2:
            break
        extra = found - min(norm * factor, sensitivity) ** 2
        goal = math.sqrt(max(sensitivity**2 - extra, sensitivity**2 / 4))
        factor = min(factor * 0.99, goal / norm)
    else:
        digits = np.trunc(wide * (factor * scale)).astype(np.int32)
    residual = (wide * factor - digits / scale).astype(np.float32)
    return BoundedIntegers(digits.astype(np.int64), residual, sensitivity, factor)


def encode_noised(
    bounded: BoundedIntegers,
    mechanism: SiteMechanism,
    layout: Layout,
    weight: float,
    stream: Stream,
) -> EncodedIntegers:
    """The site's part of a sum: its bounded integers and its share of the noise. The reserved
    training loss is zero: a loss is not noised. Raises `CryptoError` for integers that were
    bounded for another mechanism."""
    if bounded.sensitivity != mechanism.sensitivity:
        raise CryptoError(
            f"privacy: expected integers bounded by {mechanism.sensitivity}, got "
            f"{bounded.sensitivity}"
        )
    noised = bounded.digits + mechanism.noise.draw(bounded.digits.size, stream)
    if noised.size and int(np.abs(noised).max()) > mechanism.limit:
        raise CryptoError(f"privacy: expected noised integers up to {mechanism.limit}, got larger")
    digits: NDArray[np.int16] | NDArray[np.int32] = noised.astype(np.int32)
    if mechanism.max_digit < 2**15:
        digits = noised.astype(np.int16)
    reserved = (1, round(weight / encode_integers.WEIGHT_STEP), 0)
    return EncodedIntegers(digits, reserved, layout, 0, bounded.residual)
