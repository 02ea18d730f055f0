"""Where everything lies: values in blocks, blocks in chunks; reserved integers and tags in shares.

The coefficient vector holds the values, D to a coefficient, and zeros up to a whole number of
blocks of 4096. The reserved integers (counts, weights, metrics) and the keyed tags are residues
mod q that travel in the shares of the key: there they are summed mod q and nothing but the sum is
opened, where digits in coefficients would tell carries as well. Everything here is public and
follows from the parameters and two lengths, so that all parties compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedshield.crypto.rlwe.params import RING_DEGREE, RlweParameters
from fedshield.crypto.scheme import BLOCK_BYTES
from fedshield.errors import CryptoError

#: Blocks are transformed this many at a time; a chunk holds whole groups but for the last.
LANES = 8
#: A wrong sum passes the tags with probability at most 2^-TAG_BITS.
TAG_BITS = 64
#: The streams of randomness are good for this many blocks (64 GiB under one AES key).
MAX_BLOCKS = 1 << 20


def blocks_per_chunk(parameters: RlweParameters) -> int:
    """As many blocks as fit one message, uploaded or summed: a multiple of 8, at least 8."""
    block_bytes = RING_DEGREE * parameters.sum_word_bits // 8
    return max(LANES, BLOCK_BYTES // block_bytes // LANES * LANES)


@dataclass(frozen=True)
class RlweLayout:
    """`num_values` digits and one non-negative integer of at most reserved_bits[i] bits for each
    reserved slot. Raises `CryptoError` for more of either than can be summed."""

    parameters: RlweParameters
    num_values: int
    reserved_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_values < 0:
            raise CryptoError(f"rlwe layout: expected 0 or more values, got {self.num_values}")
        p = self.parameters
        if any(bits < 1 or p.num_sites * ((1 << bits) - 1) >= p.q for bits in self.reserved_bits):
            raise CryptoError(
                f"rlwe layout: expected reserved integers whose sum over {p.num_sites} sites stays "
                f"below 2^{p.q.bit_length()}, got {self.reserved_bits} bits"
            )
        most = self.parameters.num_coefficients
        if self.num_blocks * RING_DEGREE > most or self.num_blocks > MAX_BLOCKS:
            raise CryptoError(
                f"rlwe layout: expected at most {min(most, MAX_BLOCKS * RING_DEGREE)} "
                f"coefficients, got {self.num_blocks * RING_DEGREE}; choose the parameters for "
                "this length"
            )

    # -- coefficients ----------------------------------------------------------------------

    @property
    def num_coefficients(self) -> int:
        """Without the padding."""
        return -(-self.num_values // self.parameters.digits)

    @property
    def num_blocks(self) -> int:
        """None where only reserved integers are summed."""
        return -(-self.num_coefficients // RING_DEGREE)

    # -- residues in the shares ------------------------------------------------------------

    @cached_property
    def num_tags(self) -> int:
        """Least k with ((J + 1)/q)^k <= 2^-64 over J blocks."""
        q, k = self.parameters.q, 1
        while (self.num_blocks + 1) ** k << TAG_BITS > q**k:
            k += 1
        return k

    @property
    def num_residues(self) -> int:
        """Reserved integers and tags."""
        return len(self.reserved_bits) + self.num_tags

    # -- chunks ----------------------------------------------------------------------------

    @property
    def blocks_per_chunk(self) -> int:
        return blocks_per_chunk(self.parameters)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_blocks // self.blocks_per_chunk)

    def chunk_blocks(self, index: int) -> int:
        """Blocks of one chunk: the last may be shorter."""
        if not 0 <= index < self.num_chunks:
            raise CryptoError(f"rlwe layout: expected a chunk below {self.num_chunks}, got {index}")
        return min(self.blocks_per_chunk, self.num_blocks - index * self.blocks_per_chunk)

    def chunk_bytes(self, index: int) -> int:
        """Bytes of a chunk of an upload."""
        return self.chunk_blocks(index) * self.parameters.bytes_per_block

    def sum_chunk_bytes(self, index: int) -> int:
        """Bytes of a chunk of the aggregate."""
        return self.chunk_blocks(index) * RING_DEGREE * self.parameters.sum_word_bits // 8

    @property
    def upload_bytes(self) -> int:
        """Bytes of all chunks of one site."""
        return self.num_blocks * self.parameters.bytes_per_block
