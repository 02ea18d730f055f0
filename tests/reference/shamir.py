"""Shamir's sharing as polynomials in Python's integers, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedshield.crypto import shamir
from fedshield.crypto.rlwe import sampling

Ints = np.ndarray[Any, Any]
P = shamir.PRIME


def value(coefficients: list[int], at: int, prime: int) -> int:
    """The polynomial, the constant term first, at one place."""
    return sum(one * pow(at, power, prime) for power, one in enumerate(coefficients)) % prime


def weight(x: int, place: int, places: list[int], prime: int) -> int:
    """What the value at `place` counts for at x: Lagrange, written out."""
    found = 1
    for other in places:
        if other != place:
            found = found * (x - other) * pow(place - other, -1, prime) % prime
    return found


def through(points: list[tuple[int, int]], x: int, prime: int) -> int:
    """The value at x of the polynomial of least degree through these points."""
    places = [place for place, _ in points]
    return sum(y * weight(x, place, places, prime) for place, y in points) % prime


def packed(secret: Ints) -> Ints:
    """A key as field elements: three lanes of ten bits each, the last element's filled up."""
    lanes = np.append(secret, [0] * (-len(secret) % 3)).astype(object).reshape(-1, 3)
    elements: Ints = (lanes[:, 0] + lanes[:, 1] * 2**10 + lanes[:, 2] * 2**20) % P
    return elements


def residue_polynomials(residues: Ints, threshold: int, seed: bytes, q: int) -> Ints:
    """The sharing of residues mod q: (threshold, number of them) coefficients."""
    rows = [residues]
    for degree in range(1, threshold):
        stream = sampling.Stream(seed, "shamir residues", degree)
        rows.append(sampling.accepted(stream, residues.size, q).astype(object))
    return np.stack(rows)


def polynomials(secret: Ints, threshold: int, seed: bytes) -> Ints:
    """The sharing of a key: (threshold, 1366) coefficients."""
    rows = [packed(secret)]
    rows += [
        shamir._uniform(seed, degree, rows[0].size).astype(object) for degree in range(1, threshold)
    ]
    return np.stack([row.astype(object) for row in rows])


def at(coefficients: Ints, x: int, prime: int = P) -> Ints:
    total = np.zeros(coefficients.shape[1], dtype=object)
    for row in coefficients[::-1]:
        total = (total * x + row) % prime
    return total


def rank(rows: Ints) -> int:
    """Of a matrix over the field of the shares."""
    rows, found = rows % P, 0
    for column in range(rows.shape[1]):
        pivots = np.flatnonzero(rows[found:, column])
        if not pivots.size:
            continue
        pivot = found + int(pivots[0])
        rows[[found, pivot]] = rows[[pivot, found]]
        rows[found] = rows[found] * pow(int(rows[found, column]), -1, P) % P
        below = rows[found + 1 :]
        below -= below[:, column : column + 1] * rows[found] % P
        rows[found + 1 :] = below % P
        found += 1
        if found == rows.shape[0]:
            break
    return found
