"""What hides the messages: the products of the public a_j with a key, group by group."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.layout import LANES
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.rlwe.reference import multiply_mod
from fedshield.crypto.rlwe.ring import Float64, Int64, ring
from fedshield.crypto.rlwe.sampling import GROUP


class Products:
    """a_j s for one group of blocks after another, for a key (or sum of keys) s, (4096,)."""

    def __init__(self, secret: Int64, context: bytes, q: int, fast: bool) -> None:
        here = ring(q)
        self._kernels: Any = arithmetic(fast)
        self._q = q
        transformed = secret % q
        self._kernels.forward_transform(transformed, here)
        # The inverse transform's factor 1/N, once for all blocks.
        scaled = multiply_mod(transformed, here.n_inverse, q)
        self._prepared = self._kernels.prepare(scaled, here)
        self._matrix = sampling.Matrix(context, q)
        self._out = np.empty(GROUP, dtype=np.float64)

    def next_group(self, count: int) -> Float64:
        """(count * 4096,), congruent mod q to the products of `count` blocks, interleaved."""
        a = self._matrix.next_group()
        multiply = self._kernels.multiply_back
        if multiply(a.low, a.middle, a.high, a.mask, self._prepared, self._out) >= self._q:
            self._matrix.repair()
            multiply(a.low, a.middle, a.high, a.mask, self._prepared, self._out)
        if count == LANES:
            return self._out
        return np.ascontiguousarray(self._out.reshape(RING_DEGREE, LANES)[:, :count]).reshape(-1)
