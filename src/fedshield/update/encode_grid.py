"""From float updates to numbers that can be summed, and from the opened sum to the next adapter.

Each site scales by its share of the examples, so the coordinator only adds. The share itself
travels in a reserved slot: the mean is taken over what was really summed.
"""

from __future__ import annotations

import math

import numpy as np

from fedshield.crypto.scheme import SchemeParameters
from fedshield.errors import CryptoError
from fedshield.types import EncodedUpdate, Float32, Float64, Layout, OpenedSum

WEIGHT = "weight"
#: A count of examples is carried as base-1024 digits, each divided by 1024: small enough for
#: every scheme's grid and exactly summable over 64 sites.
COUNT_DIGITS = 3
COUNT_BASE = 1024


def round_count(num_examples: int) -> int:
    """A count rounded to two significant digits, so that it tells less about the site."""
    if num_examples < 100:
        return num_examples
    step = 10 ** (int(math.log10(num_examples)) - 1)
    return int(round(num_examples / step) * step)


def update_layout(
    sha256: str, num_values: int, parameters: SchemeParameters, number_format: str
) -> Layout:
    """`sha256`: of what travels (`Selection.sha256`)."""
    return Layout(
        spec_sha256=sha256,
        num_values=num_values,
        reserved=(WEIGHT,),
        values_per_block=parameters.values_per_block,
        number_format=number_format,
    )


def weights_layout(parameters: SchemeParameters, number_format: str) -> Layout:
    return Layout(
        spec_sha256="weights",
        num_values=COUNT_DIGITS,
        reserved=(),
        values_per_block=parameters.values_per_block,
        number_format=number_format,
    )


def encode_update(
    values: Float32,
    weight: float,
    layout: Layout,
    *,
    grid_bits: int | None,
    slot_limit: float,
) -> EncodedUpdate:
    """Weighted slots: `values` (float32, those that travel) times `weight`, then the weight.

    With `grid_bits`, every slot is rounded to a multiple of 2^-grid_bits (to nearest). Values
    beyond +-slot_limit are clipped and counted; a value that is not a number is refused
    (`CryptoError`), because nothing after this step could tell.
    """
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise CryptoError("update: expected finite values, got NaN or infinity; training diverged")
    slots = np.concatenate([wide * weight, [weight]])
    clipped = int(np.count_nonzero(np.abs(slots) > slot_limit))
    if clipped:
        slots = np.clip(slots, -slot_limit, slot_limit)
    return EncodedUpdate(_to_grid(slots, grid_bits), layout, clipped)


def encode_count(num_examples: int, layout: Layout) -> EncodedUpdate:
    """The site's example count, as digits. All are multiples of 2^-10: on every grid used."""
    if not 0 < num_examples < COUNT_BASE**COUNT_DIGITS:
        raise ValueError(f"expected 1 to {COUNT_BASE**COUNT_DIGITS - 1} examples")
    digits = [
        (num_examples // COUNT_BASE**place) % COUNT_BASE / COUNT_BASE
        for place in range(COUNT_DIGITS)
    ]
    return EncodedUpdate(np.asarray(digits, dtype=np.float64), layout, 0)


def decode_count(opened: OpenedSum, num_sites: int) -> int:
    """The total of the counts. Raises `CryptoError` for digits that no sum of counts has."""
    scaled = np.rint(opened.values * COUNT_BASE)
    if scaled.min() < 0 or scaled.max() > num_sites * (COUNT_BASE - 1):
        raise CryptoError("weights: expected a sum of example counts, got something else")
    return int(sum(int(digit) * COUNT_BASE**place for place, digit in enumerate(scaled)))


def decode_sum(slots: Float64, layout: Layout) -> OpenedSum:
    reserved = dict(zip(layout.reserved, slots[layout.num_values :].tolist(), strict=True))
    return OpenedSum(slots[: layout.num_values].copy(), reserved, layout)


def mean_of(
    opened: OpenedSum, least_weight: float | None = None, most_weight: float = 1.0
) -> Float64:
    """The weighted mean over the contributors: float64, (layout.num_values,).

    The total weight must be one, within what a grid rounds; or, where sites may be missing, in
    [least_weight, most_weight], within 2^-20. Else, or if the mean is not finite, the sum is not
    one of this round's, and `CryptoError` ('weight') is raised.
    """
    total = opened.reserved[WEIGHT]
    low, high = (1 - 2.0**-14, 1 + 2.0**-14)
    if least_weight is not None:
        low, high = least_weight - 2.0**-20, most_weight + 2.0**-20
    if not low <= total <= high:
        raise CryptoError(
            f"sum: expected a total weight of {low:.4g} to {high:.4g}, got {total:.6g}", "weight"
        )
    mean: Float64 = opened.values / total
    if not np.abs(mean).max(initial=0) <= np.finfo(np.float32).max:
        raise CryptoError(
            "sum: expected a mean that float32 holds, got NaN or larger values", "weight"
        )
    return mean


def _to_grid(slots: Float64, grid_bits: int | None) -> Float64:
    if grid_bits is None:
        return slots
    grid = 2.0**-grid_bits
    rounded: Float64 = np.rint(slots / grid) * grid
    return rounded
