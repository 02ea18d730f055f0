"""Keyed tags: a linear checksum that only the holders of the group key can make.

    t = sum over blocks j of rho^j <v, m_j> mod q

with m_j the block's coefficients (the tags' own counted as zero), rho a random non-zero residue
and v a random vector, both drawn from a seed that the server does not have; k tags with
independent keys. The tag of a sum is the sum of the tags, so the opened tag must be the tag of
what was opened. A wrong sum passes with probability at most ((J + 1)/q)^k over J blocks: v
misses a difference with 1/q, and a polynomial of degree J in rho has at most J roots.
(Carter and Wegman, JCSS 1981, for the kind; design section 4.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RING_DEGREE
from fedshield.crypto.rlwe.ring import Float64, Int64, arithmetic
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
        for repetition in range(layout.num_tags):
            stream = Stream(tag_seed, "tag", repetition)
            rho = 0
            while rho == 0:
                rho = int(accepted(stream, 1, self._q)[0])
            self._rho.append(rho)
            rows.append(accepted(stream, RING_DEGREE, self._q))
        self._v: Int64 = np.stack(rows)
        self._prepared = self._arithmetic.prepare_tag(self._v, self._q)
        self._power = [1] * layout.num_tags
        self._tags = [0] * layout.num_tags

    def add(self, messages: Float64) -> None:
        """The next blocks' coefficients, tags' own set to zero: (blocks * 4096,), magnitudes
        below q/2."""
        found = np.empty((messages.size // RING_DEGREE, len(self._rho)), dtype=np.int64)
        self._arithmetic.inner_products(messages, self._prepared, self._q, found)
        for row in found.tolist():
            for r, product in enumerate(row):
                self._tags[r] = (self._tags[r] + self._power[r] * product) % self._q
                self._power[r] = self._power[r] * self._rho[r] % self._q

    def pairs(self) -> Iterator[tuple[int, list[int]]]:
        """(rho, v), one a repetition. Secret."""
        yield from zip(self._rho, self._v.tolist(), strict=True)

    def tags(self) -> list[int]:
        """Residues mod q, one a repetition, of the blocks so far: blocks of zeros change
        nothing."""
        return list(self._tags)


def digits(value: int, count: int, bits: int) -> list[int]:
    """A non-negative integer as `count` little-endian digits of `bits` bits."""
    return [(value >> (bits * place)) & ((1 << bits) - 1) for place in range(count)]


def joined(parts: Sequence[int], bits: int) -> int:
    """The integer of (sums of) such digits."""
    return sum(part << (bits * place) for place, part in enumerate(parts))
