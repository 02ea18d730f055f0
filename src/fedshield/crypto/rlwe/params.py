"""Parameters of `rlwe`, computed from the sites, the bits and the length of a run.

Ring: R_q = Z_q[X]/(X^4096 + 1) with one prime q < 2^50, q = 1 mod 8192. Secrets and errors are
centred binomial with eta = 42 (variance 21). Digits are balanced, D to a coefficient, radix R
odd. The rules that make a sum exact are checked here, once, and ride on the object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedshield.errors import CryptoError

RING_DEGREE = 4096
ETA = 42
ERROR_VARIANCE = 21
#: The largest prime = 1 mod 8192 below each power of two, by its exponent.
PRIMES = {
    42: 4398046486529,
    43: 8796092858369,
    44: 17592186028033,
    46: 70368743669761,
    47: 140737488273409,
    48: 281474976694273,
    49: 562949953216513,
    50: 1125899906826241,
}
#: A round fails to open exactly with probability at most 2^-FAILURE_BITS.
FAILURE_BITS = 64
#: N = 4096 is in the 128-bit classical row up to 58 bits of modulus even with the error of an
#: opened sum (sigma/sqrt 2) in the 2024 guideline (ePrint 2024/463); every prime here is below.
SECURITY_BITS = 128
MIN_SITE_DIGIT = 4
MAX_SITES = 390


@dataclass(frozen=True)
class RlweParameters:
    """One packing. `bits`: of a site's value; `radix` R, `digits` D; `delta`: the scale of the
    message; `dropped`: low bits d that do not travel; `error_bound` B_e holds for every
    coefficient of the run except with probability 2^-64."""

    num_sites: int
    bits: int
    headroom: bool
    q: int
    radix: int
    digits: int
    delta: int
    dropped: int
    error_bound: int
    num_coefficients: int

    @property
    def name(self) -> str:
        kind = "headroom" if self.headroom else "shared"
        return f"n4096-q{self.q.bit_length()}-{self.bits}bit-{kind}-{self.num_sites}sites"

    @property
    def word_bits(self) -> int:
        """Bits of a coefficient in an upload."""
        return self.q.bit_length() - self.dropped

    @property
    def sum_word_bits(self) -> int:
        """Bits of a coefficient of the aggregate: sums of num_sites words."""
        return (self.num_sites * ((1 << self.word_bits) - 1)).bit_length()

    @property
    def max_digit(self) -> int:
        """Largest magnitude of a digit of the *sum*."""
        return (self.radix - 1) // 2

    @property
    def values_per_block(self) -> int:
        return RING_DEGREE * self.digits

    @property
    def bytes_per_block(self) -> int:
        return RING_DEGREE * self.word_bits // 8

    @property
    def bytes_per_value(self) -> float:
        return self.word_bits / (8 * self.digits)

    def site_limit(self, weight: float) -> int:
        """Largest magnitude that a site of this weight (its share of the sum, above 0 and at most
        1) may send: honest sums then never overflow.

        Without headroom floor(w M). With it the range holds every site's own `bits`, L = M / K
        steps each, and sites of unequal weight share it as 1 + floor(w (M - K)): L steps at equal
        weights, at least one at any weight, and at most K + (M - K) = M together. Raises
        `CryptoError` where the resolution would be lost: without headroom below 4 steps.
        """
        # The nudge undoes the rounding of weight: (1/49) * 49 is below one in float64.
        weight = min(weight, 1.0) * (1 + 2.0**-50)
        if self.headroom:
            return 1 + int(weight * (self.max_digit - self.num_sites))
        limit = int(weight * self.max_digit)
        if limit < MIN_SITE_DIGIT:
            raise CryptoError(
                f"rlwe: expected at least {MIN_SITE_DIGIT} steps for a weight of {weight:.4g} at "
                f"{self.bits} bits, got {limit}; use more bits or headroom"
            )
        return limit


def error_bound(num_sites: int, num_coefficients: int) -> int:
    """B_e: the sum of num_sites binomial errors stays below it in all coefficients, except with
    probability 2^-64. Sub-Gaussian tail with variance 21 a site, union bound, both signs.

    >>> error_bound(1, 1 << 40), error_bound(4, 1 << 40)
    (56, 111)
    """
    exponent = FAILURE_BITS + math.log2(max(1, num_coefficients)) + 1
    return math.ceil(math.sqrt(2 * math.log(2) * exponent) * math.sqrt(ERROR_VARIANCE * num_sites))


def choose(num_sites: int, bits: int, num_values: int, *, headroom: bool = False) -> RlweParameters:
    """The packing of least bytes a value that sums exactly.

    >>> choose(4, 8, 1 << 40).name
    'n4096-q46-8bit-shared-4sites'

    Args:
        num_sites: of the roster, 1 to MAX_SITES.
        bits: of a value, 2 to 24.
        num_values: coefficients of a run, for its probability of failure.
        headroom: every site has `bits` of its own and the sum has room for all; else the sites
            share the range by weight.

    Raises:
        CryptoError: when no prime fits; it names the knob.
    """
    if not 1 <= num_sites <= MAX_SITES or not 2 <= bits <= 24:
        raise CryptoError(
            f"rlwe: expected 1 to {MAX_SITES} sites and 2 to 24 bits, got {num_sites} and {bits}"
        )
    own = (1 << (bits - 1)) - 1
    radix = 2 * num_sites * own + 1 if headroom else 2 * own + 1
    num_coefficients = max(1, num_values) + 64 * RING_DEGREE  # reserved slots and padding too
    bound = error_bound(num_sites, num_coefficients)
    best: RlweParameters | None = None
    for q in PRIMES.values():
        for digits in range(1, 25):
            delta = q // radix**digits
            room = delta - 2 * bound - 2
            if room < 0:
                break
            # delta >= 2 B_e + K (2^d - 1) + 2
            dropped = (room // num_sites + 1).bit_length() - 1
            found = RlweParameters(
                num_sites, bits, headroom, q, radix, digits, delta, dropped, bound,
                num_coefficients,
            )  # fmt: skip
            if best is None or found.bytes_per_value < best.bytes_per_value:
                best = found
    if best is None:
        raise CryptoError(
            f"rlwe: {bits} bits with {num_sites} sites do not fit one prime below 2^50; "
            "use fewer bits"
        )
    check(best)
    return best


def check(parameters: RlweParameters) -> None:
    """The rules of exactness. Raises `CryptoError`; `choose` never returns what breaks them."""
    p = parameters
    noise = 2 * p.error_bound + p.num_sites * ((1 << p.dropped) - 1) + 2
    if p.q not in PRIMES.values() or (p.q - 1) % (2 * RING_DEGREE):
        raise CryptoError(f"rlwe: {p.q} is not one of the primes")
    if p.radix % 2 == 0 or p.delta < noise or p.delta * p.radix**p.digits > p.q:
        raise CryptoError(
            f"rlwe: {p.name} would not sum exactly (delta {p.delta}, noise {noise}); use fewer bits"
        )
