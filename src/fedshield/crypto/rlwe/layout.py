"""Where everything lies: values, reserved integers and keyed tags in blocks, blocks in chunks.

The coefficient vector holds, in this order: the values, D to a coefficient; the reserved
integers (counts, weights, metrics), cut into small digits, one to a coefficient; the tags, cut
the same way; zeros up to a whole number of blocks of 4096. Everything here is public and follows
from the parameters and two lengths, so that all parties compute the same.
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
MAX_RESERVED_BITS = 64


def blocks_per_chunk(parameters: RlweParameters) -> int:
    """As many blocks as fit one message, uploaded or summed: a multiple of 8, at least 8."""
    block_bytes = RING_DEGREE * parameters.sum_word_bits // 8
    return max(LANES, BLOCK_BYTES // block_bytes // LANES * LANES)


@dataclass(frozen=True)
class RlweLayout:
    """`num_values` digits and one non-negative integer of at most reserved_bits[i] bits for each
    reserved slot. Raises `CryptoError` where the parameters leave no room for them."""

    parameters: RlweParameters
    num_values: int
    reserved_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_values < 0 or any(
            not 1 <= bits <= MAX_RESERVED_BITS for bits in self.reserved_bits
        ):
            raise CryptoError(
                f"rlwe layout: expected values and reserved slots of 1 to {MAX_RESERVED_BITS} "
                f"bits, got {self.num_values} and {self.reserved_bits}"
            )
        if self.slot_bits < 1:
            raise CryptoError(
                f"rlwe layout: {self.parameters.name} has no room for reserved slots; use more bits"
            )
        most = self.parameters.num_coefficients
        if self.num_blocks * RING_DEGREE > most or self.num_blocks > MAX_BLOCKS:
            raise CryptoError(
                f"rlwe layout: expected at most {min(most, MAX_BLOCKS * RING_DEGREE)} "
                f"coefficients, got {self.num_blocks * RING_DEGREE}; choose the parameters for "
                "this length"
            )

    # -- coefficients ----------------------------------------------------------------------

    @cached_property
    def slot_bits(self) -> int:
        """Bits of a digit of a reserved integer or tag: num_sites of them still fit half of
        the range of a coefficient."""
        p = self.parameters
        largest: int = (p.radix**p.digits - 1) // 2
        return (largest // p.num_sites).bit_length() - 1

    @property
    def value_coefficients(self) -> int:
        return -(-self.num_values // self.parameters.digits)

    @cached_property
    def reserved_digits(self) -> tuple[int, ...]:
        """Coefficients of each reserved integer."""
        return tuple(-(-bits // self.slot_bits) for bits in self.reserved_bits)

    @property
    def tag_digits(self) -> int:
        """Coefficients of one tag, a residue mod q."""
        q_bits = self.parameters.q.bit_length()
        return -(-q_bits // self.slot_bits)

    @cached_property
    def num_tags(self) -> int:
        """Least k with ((J + 1)/q)^k <= 2^-64 over J blocks, the tags' own among them."""
        q, k = self.parameters.q, 1
        while (self._blocks_with(k) + 1) ** k << TAG_BITS > q**k:
            k += 1
        return k

    @property
    def tag_start(self) -> int:
        """Place of the first tag coefficient."""
        return self.value_coefficients + sum(self.reserved_digits)

    @property
    def tag_coefficients(self) -> int:
        return self.num_tags * self.tag_digits

    @property
    def num_coefficients(self) -> int:
        """Without the padding."""
        return self.tag_start + self.tag_coefficients

    @property
    def num_blocks(self) -> int:
        return self._blocks_with(self.num_tags)

    def _blocks_with(self, tags: int) -> int:
        return -(-(self.tag_start + tags * self.tag_digits) // RING_DEGREE)

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
