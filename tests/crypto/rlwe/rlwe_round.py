"""One round of rlwe without a protocol, for the tests in this folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedshield.crypto import shamir
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import choose
from fedshield.crypto.rlwe.scheme import Encryption, OneTimeKey, Opened, open_sum

CONTEXT = bytes(range(32))
TAG_SEED = bytes(range(100, 132))
RESERVED_BITS = (16, 30, 30, 31)


def key(site: int) -> OneTimeKey:
    return OneTimeKey(hashlib.sha256(b"test key" + site.to_bytes(2, "big")).digest())


def layout_for(
    sites: int,
    bits: int,
    num_values: int,
    *,
    headroom: bool = False,
    reserved: tuple[int, ...] = RESERVED_BITS,
) -> RlweLayout:
    return RlweLayout(choose(sites, bits, num_values, headroom=headroom), num_values, reserved)


def add(uploads: Sequence[Iterable[bytes]], layout: RlweLayout, fast: bool = True) -> list[bytes]:
    """The server's work: chunks of the aggregate."""
    adder = RlweAdder(layout.parameters, fast=fast)
    summed = []
    for index, chunks in enumerate(zip(*uploads, strict=True)):
        total: object | None = None
        for chunk in chunks:
            assert len(chunk) == layout.chunk_bytes(index)
            total = adder.add(total, chunk)
        summed.append(adder.result(total))
        assert len(summed[-1]) == layout.sum_chunk_bytes(index)
    return summed


@dataclass
class Round:
    """Vectors and reserved integers of the sites of one opened set, by roster index."""

    layout: RlweLayout
    vectors: dict[int, np.ndarray]
    reserved: dict[int, tuple[int, ...]]
    fast: bool = True

    def encryption(self, site: int, tag_seed: bytes = TAG_SEED) -> Encryption:
        return Encryption(
            self.vectors[site], self.reserved[site], key(site), CONTEXT, self.layout, tag_seed,
            fast=self.fast,
        )  # fmt: skip

    def upload(self, site: int) -> list[bytes]:
        return list(self.encryption(site).chunks())

    def residues(self, site: int, tag_seed: bytes = TAG_SEED) -> tuple[int, ...]:
        made = self.encryption(site, tag_seed)
        assert sum(1 for _ in made.chunks()) == self.layout.num_chunks
        found = made.residues()
        assert len(found) == self.layout.num_residues
        return found

    def residue_sum(self) -> tuple[int, ...]:
        """What the shares of all sites open to."""
        return self.summed([self.residues(site) for site in self.vectors])

    def summed(self, residues: Sequence[Sequence[int]]) -> tuple[int, ...]:
        return shamir.add_residues(residues, self.layout.parameters.q)

    def uploads(self) -> dict[int, list[bytes]]:
        return {site: self.upload(site) for site in self.vectors}

    def key_sum(self) -> np.ndarray:
        total = np.zeros(4096, dtype=np.int64)
        for site in self.vectors:
            total += key(site).secret(self.fast)
        return total

    def aggregate(self) -> list[bytes]:
        return add(list(self.uploads().values()), self.layout, self.fast)

    def open(self, chunks: Iterable[bytes], **changes: object) -> Opened:
        given: dict[str, object] = {
            "key_sum": self.key_sum(), "residues": self.residue_sum(),
            "num_contributors": len(self.vectors), "context": CONTEXT, "layout": self.layout,
            "tag_seed": TAG_SEED, "fast": self.fast,
        }  # fmt: skip
        return open_sum(chunks, **(given | changes))  # type: ignore[arg-type]

    def check(self, opened: Opened) -> None:
        expected = np.zeros(self.layout.num_values, dtype=np.int64)
        for vector in self.vectors.values():
            expected += vector
        np.testing.assert_array_equal(opened.values, expected)
        assert opened.values.dtype == np.int64
        assert opened.reserved == tuple(map(sum, zip(*self.reserved.values(), strict=True)))
        assert len(opened.mean_squares) == self.layout.num_blocks


def extreme_round(layout: RlweLayout, sites: Iterable[int], seed: int, fast: bool = True) -> Round:
    """A round whose honest sum reaches both ends, in values and reserved integers, and is
    random elsewhere."""
    rng = np.random.default_rng(seed)
    p, length, sites = layout.parameters, layout.num_values, list(sites)
    limit = p.max_digit // p.num_sites
    dtype = rng.choice([t for t in (np.int16, np.int32, np.int64) if limit <= np.iinfo(t).max])
    vectors, reserved = {}, {}
    for place, site in enumerate(sites):
        values = rng.integers(-limit, limit + 1, length).astype(dtype)
        values[: length // 3] = limit
        values[length // 3 : length // 2] = -limit
        values[-1:] = limit if length % 2 else -limit
        vectors[site] = values
        reserved[site] = tuple(
            ((1 << bits) - 1, 0, int(rng.integers(2**62)) % (1 << bits))[
                (slot + (seed % 2) * place) % 3
            ]
            for slot, bits in enumerate(layout.reserved_bits)
        )
    return Round(layout, vectors, reserved, fast)
