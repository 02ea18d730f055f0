"""The ring's tables of roots.

Order of transformed values: the bit-reversed order of Cooley-Tukey with merged psi (Longa and
Naehrig, CANS 2016): position i holds the value at psi^(2 * bitreverse(i) + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import RING_DEGREE

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


def _bit_reversed(count: int) -> list[int]:
    bits = count.bit_length() - 1
    return [int(format(i, f"0{bits}b")[::-1], 2) for i in range(count)]


def primitive_root(q: int, order: int) -> int:
    """The smallest g^((q-1)/order), g = 2, 3, ..., that has exactly this order (a power of 2).

    >>> primitive_root(17, 4)
    13
    """
    for g in range(2, 1000):
        root = pow(g, (q - 1) // order, q)
        if pow(root, order // 2, q) == q - 1:
            return root
    raise ValueError(f"no root of order {order} mod {q}")


def centred(x: Int64, q: int) -> Int64:
    """Residues in [0, q), moved to (-q/2, q/2).

    >>> centred(np.arange(5), 5).tolist()
    [0, 1, 2, -2, -1]
    """
    return np.where(x > q // 2, x - q, x)


@dataclass(frozen=True)
class Ring:
    """Z_q[X]/(X^N + 1): powers of psi and of 1/psi in bit-reversed order, and 1/N."""

    q: int
    roots: Int64
    inverse_roots: Int64
    n_inverse: int


@lru_cache(maxsize=16)
def ring(q: int) -> Ring:
    """The ring of a prime, its tables made once."""
    psi = primitive_root(q, 2 * RING_DEGREE)
    inverse = pow(psi, q - 2, q)
    powers, inverses = [1], [1]
    for _ in range(RING_DEGREE - 1):
        powers.append(powers[-1] * psi % q)
        inverses.append(inverses[-1] * inverse % q)
    order = _bit_reversed(RING_DEGREE)
    return Ring(
        q,
        np.array([powers[i] for i in order], dtype=np.int64),
        np.array([inverses[i] for i in order], dtype=np.int64),
        pow(RING_DEGREE, q - 2, q),
    )
