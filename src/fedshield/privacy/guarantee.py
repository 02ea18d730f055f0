"""What a plan promises a unit, at one site: the mechanism, and epsilon by rounds.

A round counts when a site's upload is journalled, before it leaves: also when the sum failed
afterwards, since whoever holds the pieces may have opened it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.errors import CryptoError, PlanError
from fedshield.plan.data import DataPlan
from fedshield.plan.privacy import PrivacyPlan
from fedshield.plan.quorum import Rules
from fedshield.plan.sections import EncodingPlan, TrainingPlan
from fedshield.privacy import accounting, distributed_gaussian
from fedshield.privacy.accounting import Release
from fedshield.privacy.discrete_gaussian import DISTANCE_BITS
from fedshield.privacy.distributed_gaussian import SiteMechanism
from fedshield.types import AdapterSpec
from fedshield.update.prune import ExchangeSchedule, num_sent

#: What 'the same but for one unit' means. Counts and who takes part are public in it.
NEIGHBOURS = {
    "example": "one training row replaced by a row without any effect",
    "site": "one site's updates replaced by zeros in every round",
}
EXAMPLE_MECHANISM = "DP-SGD on the adapter, Poisson sampling, discrete Gaussian"


@dataclass(frozen=True)
class ReleaseSettings:
    """What a site's rounds release, as far as the guarantee depends on it.

    `schedule`: the rounds, and the values of each; `training`: steps of a round and rows of a step;
    `encoding`, `rules`: the packing of the noised integers and who adds noise, where the unit is a
    site.
    """

    schedule: ExchangeSchedule
    training: TrainingPlan
    encoding: EncodingPlan
    rules: Rules

    @property
    def rounds(self) -> int:
        return self.schedule.rounds


@dataclass(frozen=True)
class Terms:
    """`release`: what a round costs; `site`: the mechanism where the unit is a site.
    `noise_multiplier`: in force, asked for or solved."""

    unit: str
    mechanism: str
    clip_norm: float
    noise_multiplier: float
    delta: float
    limit: float | None
    release: Release
    site: SiteMechanism | None = None

    def epsilon(self, rounds: int) -> float:
        """After so many uploads."""
        return accounting.epsilon(self.release, rounds, self.delta)

    def allows(self, rounds: int) -> bool:
        """Whether so many uploads stay within the plan's limit."""
        return self.limit is None or self.epsilon(rounds) <= self.limit

    def rounds_allowed(self, rounds: int) -> int:
        """How many of so many stay within the limit; at least one does."""
        if self.allows(rounds):
            return rounds
        low, high = 1, rounds
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.allows(middle) else (low, middle)
        return low


@dataclass(frozen=True)
class Earlier:
    """What other plans released of the same records. `curve`: their Renyi curves added up, at
    `accounting.WHOLE_ORDERS`; empty where there were none, None where one protected no such unit;
    `distance`: as of `Release`, in all."""

    curve: tuple[float, ...] | None = ()
    distance: float = 0.0


@dataclass(frozen=True)
class Spent:
    """What a site's records have spent: `uploads`, the rounds of this plan that left it, each
    counted once however often it was repeated; `earlier`: the other plans'."""

    terms: Terms
    uploads: int
    earlier: Earlier = Earlier()

    @property
    def epsilon(self) -> float:
        """Of this plan's rounds alone."""
        return self.terms.epsilon(self.uploads)

    def epsilon_after(self, more: int) -> float | None:
        """Over all plans, after so many more rounds of this one; None for infinite."""
        rounds, earlier = self.uploads + more, self.earlier
        if earlier.curve is None:
            return None
        if not earlier.curve:
            found = self.terms.epsilon(rounds)
        else:
            orders = accounting.WHOLE_ORDERS
            own = self.terms.release.rdp(rounds, orders).tolist() if rounds else [0.0] * len(orders)
            curve = [before + now for before, now in zip(earlier.curve, own, strict=True)]
            away = earlier.distance + rounds * self.terms.release.distance
            found = accounting.epsilon_of(curve, orders, away, self.terms.delta)
        return found if math.isfinite(found) else None

    @property
    def exhausted(self) -> bool:
        """Whether the next round would exceed the limit."""
        limit, after = self.terms.limit, self.epsilon_after(1)
        return limit is not None and (after is None or after > limit)


def most_values(schedule: ExchangeSchedule, spec: AdapterSpec) -> int:
    """Values of the largest round."""
    # What travels depends on the ramp, which only falls, and on odd or even.
    first_rounds = range(1, min(schedule.rounds, 2) + 1)
    return max(num_sent(schedule, spec, number) for number in first_rounds)


def terms(
    privacy: PrivacyPlan, settings: ReleaseSettings, spec: AdapterSpec, num_examples: int
) -> Terms | None:
    """The terms of a site; None where no unit is protected.

    Args:
        privacy: the unit, the clip norm, and the noise or the target.
        settings: what is released of the site.
        spec: the adapter's tensors.
        num_examples: the site's training rows.

    Raises:
        PlanError: the target or the limit cannot be met.
    """
    if privacy.unit == "none":
        return None
    assert privacy.clip_norm is not None
    delta = privacy.delta_in_force
    values = most_values(settings.schedule, spec)

    def release(multiplier: float) -> Release:
        if privacy.unit == "site":
            return _site_release(settings.rules, values, multiplier)
        return _example_release(settings.training, spec, num_examples, multiplier)

    multiplier = privacy.noise_multiplier
    if privacy.epsilon is not None:
        multiplier = accounting.least_multiplier(privacy.epsilon, delta, settings.rounds, release)
        if multiplier is None:
            raise PlanError(
                f"privacy.epsilon: expected one that {settings.rounds} rounds can keep to at delta "
                f"{delta:g}, got {privacy.epsilon:g}; raise it, or lower rounds"
            )
    assert multiplier is not None
    site = None
    if privacy.unit == "site":
        packing = packing_of(settings.encoding, settings.rules.num_sites)
        site = distributed_gaussian.mechanism(
            privacy.clip_norm, multiplier, settings.rules, packing, values
        )
    found = Terms(
        unit=privacy.unit,
        mechanism=distributed_gaussian.MECHANISM if site else EXAMPLE_MECHANISM,
        clip_norm=privacy.clip_norm,
        noise_multiplier=multiplier,
        delta=delta,
        limit=privacy.limit,
        release=site.release(values) if site else release(multiplier),
        site=site,
    )
    if not math.isfinite(found.epsilon(settings.rounds)):
        raise PlanError(
            f"privacy.noise_multiplier: expected one whose epsilon after {settings.rounds} rounds "
            f"can be stated at delta {delta:g} (up to 30 or so), got {multiplier:.3g}; raise it"
        )
    if not found.allows(1):
        raise PlanError(
            f"privacy.max_epsilon: expected at least {found.epsilon(1):.4g}, what one round "
            f"takes, got {found.limit:g}; raise it, or the noise"
        )
    return found


def packing_of(encoding: EncodingPlan, num_sites: int) -> RlweParameters:
    """The packing of `rlwe`. Raises `PlanError`."""
    try:
        return rlwe_parameters(num_sites, encoding.bits, encoding.headroom)
    except CryptoError as error:
        raise PlanError(f"encoding.bits: {error}") from None


def sampling_rate(training: TrainingPlan, num_examples: int) -> float:
    """The chance that a row is in a step: rows of a step on the mean over all rows."""
    rows = training.batch_size * training.gradient_accumulation
    return min(1.0, rows / num_examples)


def _example_release(
    training: TrainingPlan, spec: AdapterSpec, num_examples: int, multiplier: float
) -> Release:
    steps = training.steps
    return Release(
        multiplier,
        sampling_rate(training, num_examples),
        steps,
        distance=steps * spec.num_values * 2.0**-DISTANCE_BITS,
    )


def _site_release(rules: Rules, values: int, multiplier: float) -> Release:
    """Before the steps are known, which depend on the noise: as one Gaussian. `values`: of the
    largest round."""
    honest = distributed_gaussian.honest_sites(rules)
    away = honest * values * 2.0**-DISTANCE_BITS
    # A little less than the mechanism's own for the parts that its steps decide.
    return Release(multiplier * (1 - 1e-6), distance=away)


# -- in words and numbers ------------------------------------------------------------------


def planned_rows(data: DataPlan) -> dict[str, int | None]:
    """Training rows of each site as far as the plan says, None where it does not: a file's are
    known when it is read, and a Dirichlet split's when it is drawn."""
    if data.split == "by-site":
        return {site: source.rows for site, source in sorted(data.sites.items())}
    names, counts = data.site_names(), [source.rows for source in data.pool]
    if data.split == "dirichlet" or None in counts:
        return dict.fromkeys(names)
    total = sum(count for count in counts if count is not None)
    return dict.fromkeys(names, max(1, total // len(names) - data.heldout_rows))


def forecast(
    privacy: PrivacyPlan,
    settings: ReleaseSettings,
    spec: AdapterSpec,
    data: DataPlan,
    counted: Mapping[str, int | None] | None = None,
) -> dict[str, Any] | None:
    """What `fedshield plan` says: epsilon after all rounds.

    Args:
        privacy: the unit, the clip norm, and the noise or the target.
        settings: what is released of a site.
        spec: the adapter's tensors.
        data: how many training rows sites have, as far as it says so.
        counted: training rows by site, where the data were read; they take the place of `data`'s.

    Returns:
        As `described`, and `rounds_within_limit`. Where the unit is an example, of the site with
        the fewest training rows, `rows`, and an epsilon of None where they are not known. None
        where no unit is protected.

    Raises:
        PlanError: the target or the limit cannot be met.
    """
    if privacy.unit == "none":
        return None
    rows = planned_rows(data) | {
        site: count for site, count in (counted or {}).items() if count is not None
    }
    known = [count for count in rows.values() if count is not None]
    least = min(known) if len(known) == len(rows) else None
    if privacy.unit == "example" and least is None:
        return {"unit": "example", "epsilon": None, "delta": privacy.delta_in_force,
                "mechanism": EXAMPLE_MECHANISM, "limit": privacy.limit}  # fmt: skip
    found = terms(privacy, settings, spec, least or 1)
    assert found is not None
    rounds = found.rounds_allowed(settings.rounds)
    more = {"rows": least} if privacy.unit == "example" else {}
    return described(found, rounds) | {"rounds_within_limit": rounds} | more


def described(found: Terms, uploads: int) -> dict[str, Any]:
    """As in summary.json."""
    more: dict[str, Any] = {}
    if found.site is not None:
        more = {"site": asdict(found.site)}
    else:
        more = {
            "sampling_rate": found.release.sampling_rate,
            "steps_per_round": found.release.steps,
        }
    return {
        "unit": found.unit,
        "epsilon": found.epsilon(uploads),
        "delta": found.delta,
        "mechanism": found.mechanism,
        "noise_multiplier": found.noise_multiplier,
        "clip_norm": found.clip_norm,
        "neighbours": NEIGHBOURS[found.unit],
        "limit": found.limit,
        "uploads": uploads,
        **more,
    }


def summarised(spent: Mapping[str, Spent]) -> dict[str, Any] | None:
    """The `privacy` of summary.json: of the site that has spent most, and each site's own."""
    if not spent:
        return None
    worst = max(spent.values(), key=lambda one: one.epsilon)
    each = {site: one.epsilon for site, one in sorted(spent.items())}
    return described(worst.terms, worst.uploads) | {"sites": each}
