"""Keyed tags: a linear checksum that only the holders of the group key can make.

    t = sum over blocks j of rho^j <v, m_j> + sum over reserved integers i of u_i x_i mod q

with m_j the block's coefficients, rho a random non-zero residue and v, u random vectors, all drawn
from a seed that the server does not have; k tags with independent keys. The tag of a sum is the
sum of the tags mod q, so the opened tag must be the tag of what was opened. A wrong sum passes
with probability at most ((J + 1)/q)^k over J blocks: u or v misses a difference with 1/q, and a
polynomial of degree J in rho has at most J roots. Tags are summed as residues in the shares of
the key, so that nothing of them is opened that does not follow from the sum.
(Carter and Wegman, JCSS 1981, for the kind; design section 4.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.rlwe.ring import Float64, Int64
from fedshield.crypto.rlwe.sampling import Stream, accepted
from fedshield.errors import CryptoError

TAG_SEED_BYTES = 32


class Tagger:
    """The tags of one vector, whose blocks come in order. `tag_seed`: 32 secret bytes that all
    sites of the round share."""

    def __init__(self, tag_seed: bytes, layout: RlweLayout, fast: bool = True) -> None:
        if len(tag_seed) != TAG_SEED_BYTES:
            raise CryptoError(f"tag seed: expected {TAG_SEED_BYTES} bytes, got {len(tag_seed)}")
        self._q = layout.parameters.q
        self._arithmetic = arithmetic(fast)
        self._rho, rows = [], []
        self._u: list[list[int]] = []
        for repetition in range(layout.num_tags):
            stream = Stream(tag_seed, "tag", repetition)
            rho = 0
            while rho == 0:
                rho = int(accepted(stream, 1, self._q)[0])
            self._rho.append(rho)
            rows.append(accepted(stream, RING_DEGREE, self._q))
            self._u.append(accepted(stream, len(layout.reserved_bits), self._q).tolist())
        self._v: Int64 = np.stack(rows)
        self._prepared = self._arithmetic.prepare_tag(self._v, self._q)
        self._power = [1] * layout.num_tags
        self._tags = [0] * layout.num_tags

    def add(self, messages: Float64) -> None:
        """The next blocks' coefficients: (blocks * 4096,), magnitudes below q/2."""
        found = np.empty((messages.size // RING_DEGREE, len(self._rho)), dtype=np.int64)
        self._arithmetic.inner_products(messages, self._prepared, self._q, found)
        for row in found.tolist():
            for r, product in enumerate(row):
                self._tags[r] = (self._tags[r] + self._power[r] * product) % self._q
                self._power[r] = self._power[r] * self._rho[r] % self._q

    def factors(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """(rho, v, u), one a repetition. Secret."""
        yield from zip(self._rho, self._v.tolist(), self._u, strict=True)

    def tags(self, reserved: Sequence[int]) -> tuple[int, ...]:
        """Residues mod q, one a repetition, of the blocks so far (blocks of zeros change nothing)
        and the reserved integers."""
        return tuple(
            (tag + sum(factor * one for factor, one in zip(row, reserved, strict=True))) % self._q
            for tag, row in zip(self._tags, self._u, strict=True)
        )
