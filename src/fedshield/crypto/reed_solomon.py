"""Which values of a Reed-Solomon word are wrong: Gao's decoder, in Python's exact integers.

The values of a polynomial of degree below T at m points are a codeword. Two codewords differ at
m - T + 1 points or more, so within floor((m - T) / 2) wrong values of a word there is at most one
codeword. Source: S. Gao, "A new algorithm for decoding Reed-Solomon codes", in Communications,
Information and Network Security, 2003.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Coefficients mod a prime, lowest first, without zeros at the end; () is zero.
Polynomial = tuple[int, ...]


class Code:
    """Polynomials of degree below `dimension` at `points`, which are distinct mod `prime`.
    `radius`: most wrong values that are told, floor((m - T) / 2) by default and at the most. A word
    with m - T - radius wrong values or fewer is never taken for another codeword.

    >>> Code((1, 2, 3, 4), 2, 31).wrong((5, 6, 0, 8))
    frozenset({2})
    """

    def __init__(
        self, points: Sequence[int], dimension: int, prime: int, radius: int | None = None
    ) -> None:
        self.points = tuple(points)
        self.dimension = dimension
        self.prime = prime
        most = (len(self.points) - dimension) // 2
        self.radius = most if radius is None else min(most, radius)
        whole: Polynomial = (1,)
        for point in self.points:
            whole = _product(whole, (-point % prime, 1), prime)
        self._whole = whole
        self._rows = [self._row(point) for point in self.points]

    def _row(self, point: int) -> list[int]:
        """The polynomial of degree below m that is 1 at `point` and 0 at the others."""
        quotient: list[int] = []
        carried = 0
        for coefficient in reversed(self._whole[1:]):
            carried = (coefficient + carried * point) % self.prime
            quotient.append(carried)
        quotient.reverse()
        scale = pow(_value(quotient, point, self.prime), -1, self.prime)
        return [coefficient * scale % self.prime for coefficient in quotient]

    def wrong(self, values: Sequence[int]) -> frozenset[int] | None:
        """Places (from 0) of the values, in [0, prime), that are off the one codeword within
        `radius` of them. None if there is no such codeword: then more than `radius` are wrong."""
        columns = zip(*self._rows, strict=True)
        through = _trimmed(
            [
                sum(value * one for value, one in zip(values, column, strict=True)) % self.prime
                for column in columns
            ]
        )
        if len(through) <= self.dimension:
            return frozenset()
        # Extended Euclid on the two, up to the middle: last = codeword * locator.
        before, last = self._whole, through
        locator_before: Polynomial = ()
        locator: Polynomial = (1,)
        while 2 * (len(last) - 1) >= len(self.points) + self.dimension:
            quotient, rest = _divided(before, last, self.prime)
            step = _product(quotient, locator, self.prime)
            before, last = last, rest
            locator_before, locator = locator, _difference(locator_before, step, self.prime)
        found, _ = _divided(last, locator, self.prime)
        if len(found) > self.dimension:
            return None
        wrong = frozenset(
            place
            for place, (point, value) in enumerate(zip(self.points, values, strict=True))
            if _value(found, point, self.prime) != value
        )
        return wrong if len(wrong) <= self.radius else None


def _trimmed(coefficients: Sequence[int]) -> Polynomial:
    size = len(coefficients)
    while size and not coefficients[size - 1]:
        size -= 1
    return tuple(coefficients[:size])


def _value(polynomial: Sequence[int], at: int, prime: int) -> int:
    found = 0
    for coefficient in reversed(polynomial):
        found = (found * at + coefficient) % prime
    return found


def _product(first: Polynomial, second: Polynomial, prime: int) -> Polynomial:
    if not first or not second:
        return ()
    found = [0] * (len(first) + len(second) - 1)
    for place, factor in enumerate(first):
        for other, coefficient in enumerate(second):
            found[place + other] = (found[place + other] + factor * coefficient) % prime
    return tuple(found)


def _difference(first: Polynomial, second: Polynomial, prime: int) -> Polynomial:
    size = max(len(first), len(second))
    padded = [(*one, *([0] * (size - len(one)))) for one in (first, second)]
    return _trimmed([(one - other) % prime for one, other in zip(*padded, strict=True)])


def _divided(
    dividend: Polynomial, divisor: Polynomial, prime: int
) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder. `divisor` is not zero."""
    rest = list(dividend)
    inverse = pow(divisor[-1], -1, prime)
    quotient = [0] * max(0, len(rest) - len(divisor) + 1)
    for place in reversed(range(len(quotient))):
        factor = rest[place + len(divisor) - 1] * inverse % prime
        quotient[place] = factor
        if factor:
            for other, coefficient in enumerate(divisor):
                rest[place + other] = (rest[place + other] - factor * coefficient) % prime
    return _trimmed(quotient), _trimmed(rest[: len(divisor) - 1])
