"""The coordinator's adder: integer sums of words, from public material only."""

from __future__ import annotations

import numpy as np

from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.layout import blocks_per_chunk
from fedshield.crypto.rlwe.params import RING_DEGREE, RlweParameters
from fedshield.crypto.rlwe.ring import Int64
from fedshield.errors import CryptoError


class _Total:
    """Words summed so far: (blocks * 4096,) int64."""

    def __init__(self, num_blocks: int) -> None:
        self.words: Int64 = np.zeros(num_blocks * RING_DEGREE, dtype=np.int64)
        self.num_added = 0


class RlweAdder:
    """Adds chunks of uploads, word by word (an `Adder`). The running total is changed in
    place."""

    def __init__(self, parameters: RlweParameters, *, fast: bool = True) -> None:
        self._parameters = parameters
        self._arithmetic = arithmetic(fast)

    def add(self, total: object | None, block: bytes) -> object:
        """The total with a site's chunk added. Raises `CryptoError` for a chunk that is not a
        whole number of blocks, too long or unlike the total's, and for one site too many."""
        p = self._parameters
        count, rest = divmod(len(block), p.bytes_per_block)
        most = blocks_per_chunk(p)
        if rest or not 1 <= count <= most:
            raise CryptoError(
                f"rlwe chunk: expected 1 to {most} blocks of {p.bytes_per_block} bytes, got "
                f"{len(block)} bytes"
            )
        if total is None:
            total = _Total(count)
        assert isinstance(total, _Total)
        if total.words.size != count * RING_DEGREE:
            raise CryptoError(
                f"rlwe chunk: expected {total.words.size // RING_DEGREE} blocks, got {count}"
            )
        if total.num_added >= p.num_sites:
            raise CryptoError(f"rlwe sum: expected at most {p.num_sites} chunks, got another")
        self._arithmetic.add_words(np.frombuffer(block, dtype="<u8"), p.word_bits, total.words)
        total.num_added += 1
        return total

    def result(self, total: object) -> bytes:
        """The sum's words, packed with `sum_word_bits` each."""
        assert isinstance(total, _Total)
        p = self._parameters
        if int(total.words.max()) >> p.sum_word_bits:
            raise CryptoError(f"rlwe sum: expected words of {p.sum_word_bits} bits, got wider ones")
        out = np.empty(total.words.size * p.sum_word_bits // 64, dtype="<u8")
        self._arithmetic.pack_words(total.words, p.sum_word_bits, out)
        return out.tobytes()
