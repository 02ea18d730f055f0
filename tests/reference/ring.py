"""Arithmetic of the ring Z_q[X]/(X^N + 1) in Python's integers, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedshield.crypto.rlwe.params import RING_DEGREE

Ints = np.ndarray[Any, Any]


def schoolbook(a: list[tuple[int, int]], b: np.ndarray, q: int) -> np.ndarray:
    """The product in Z_q[X]/(X^N + 1) of a sparse a (place, value) and b, in Python integers."""
    out = [0] * RING_DEGREE
    for place, value in a:
        for j, other in enumerate(b.tolist()):
            sign = -1 if place + j >= RING_DEGREE else 1
            out[(place + j) % RING_DEGREE] += sign * value * other
    return np.array([value % q for value in out], dtype=np.int64)


def transformed(x: Ints, q: int, roots: Ints) -> Ints:
    """The negacyclic transform of Python integers, natural to bit-reversed order."""
    x, width, groups = x % q, RING_DEGREE // 2, 1
    while width:
        pairs = x.reshape(groups, 2, width)
        right = pairs[:, 1] * roots[groups : 2 * groups, None] % q
        x = np.stack([pairs[:, 0] + right, pairs[:, 0] - right], axis=1).reshape(-1) % q
        width, groups = width // 2, groups * 2
    return x


def untransformed(x: Ints, q: int, roots: Ints) -> Ints:
    """The inverse of `transformed`."""
    width, groups = 1, RING_DEGREE // 2
    while groups:
        pairs = x.reshape(groups, 2, width)
        total = (pairs[:, 0] + pairs[:, 1]) % q
        right = (pairs[:, 0] - pairs[:, 1]) * roots[groups : 2 * groups, None] % q
        x = np.stack([total, right], axis=1).reshape(-1)
        width, groups = width * 2, groups // 2
    return x * pow(RING_DEGREE, -1, q) % q
