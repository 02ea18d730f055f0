"""The ring: tables of roots, and every kernel again in plain numpy.

`Ring(q, fast=False)` computes with numpy alone and gives the same results bit for bit; it is
the reference in tests and the path where numba is not wanted. Order of transformed values: the
bit-reversed order of Cooley-Tukey with merged psi (Longa and Naehrig, CANS 2016): position i
holds the value at psi^(2 * bitreverse(i) + 1).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.rlwe.params import RING_DEGREE

Int64 = NDArray[np.int64]
LANES = 8


def _bit_reversed(count: int) -> list[int]:
    bits = count.bit_length() - 1
    return [int(format(i, f"0{bits}b")[::-1], 2) for i in range(count)]


def primitive_root(q: int, order: int) -> int:
    """The smallest g^((q-1)/order), g = 2, 3, ..., that has exactly this order (a power of 2)."""
    for g in range(2, 1000):
        root = pow(g, (q - 1) // order, q)
        if pow(root, order // 2, q) == q - 1:
            return root
    raise ValueError(f"no root of order {order} mod {q}")


def multiply_mod(a: Int64, b: Int64 | int, q: int) -> Int64:
    """a * b mod q, elementwise, exact for q < 2^50, without floats: b in 13-bit pieces."""
    left = a.astype(np.uint64)
    right = np.asarray(b, dtype=np.uint64)
    modulus = np.uint64(q)
    total = np.zeros(np.broadcast(left, right).shape, dtype=np.uint64)
    for shift in (39, 26, 13, 0):
        piece = (right >> np.uint64(shift)) & np.uint64(0x1FFF)
        total = ((total << np.uint64(13)) + left * piece) % modulus
    return total.astype(np.int64)


class Ring:
    """Z_q[X]/(X^N + 1) with its roots. `fast`: numba kernels, else numpy."""

    def __init__(self, q: int, fast: bool = True) -> None:
        self.q = q
        self.fast = fast
        psi = primitive_root(q, 2 * RING_DEGREE)
        inverse = pow(psi, q - 2, q)
        powers, inverses = [1], [1]
        for _ in range(RING_DEGREE - 1):
            powers.append(powers[-1] * psi % q)
            inverses.append(inverses[-1] * inverse % q)
        order = _bit_reversed(RING_DEGREE)
        self.roots: Int64 = np.array([powers[i] for i in order], dtype=np.int64)
        self.inverse_roots: Int64 = np.array([inverses[i] for i in order], dtype=np.int64)
        self.n_inverse = pow(RING_DEGREE, q - 2, q)
        self._roots_over_q = self.roots / q
        self._inverse_roots_over_q = self.inverse_roots / q

    def forward(self, x: Int64) -> Int64:
        """Transform of one polynomial, (N,) in [0, q)."""
        x = np.ascontiguousarray(x, dtype=np.int64).copy()
        if self.fast:
            from fedshield.crypto.rlwe import kernels

            kernels.forward_transform(x, self.roots, self._roots_over_q, self.q)
            return x
        width, groups = RING_DEGREE // 2, 1
        while groups < RING_DEGREE:
            pairs = x.reshape(groups, 2, width)
            u = pairs[:, 0].copy()
            v = multiply_mod(pairs[:, 1], self.roots[groups : 2 * groups, None], self.q)
            pairs[:, 0] = (u + v) % self.q
            pairs[:, 1] = (u - v) % self.q
            width, groups = width // 2, groups * 2
        return x

    def multiply_back(self, a: Int64, w: Int64) -> Int64:
        """The inverse transforms of a[lane] * w, for a of shape (8, N) and w of shape (N,), both
        transformed. Returned interleaved, (N * 8,): index [coefficient * 8 + lane]."""
        out = np.empty(RING_DEGREE * LANES, dtype=np.int64)
        if self.fast:
            from fedshield.crypto.rlwe import kernels

            kernels.multiply(a, w, w / self.q, self.q, out)
            kernels.inverse_transform(
                out, self.inverse_roots, self._inverse_roots_over_q, self.q, self.n_inverse
            )
            return out
        x = multiply_mod(a, w[None, :], self.q)
        width, half = 1, RING_DEGREE // 2
        while half >= 1:
            pairs = x.reshape(LANES, half, 2, width)
            u, v = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
            roots = self.inverse_roots[half : 2 * half][None, :, None]
            pairs[:, :, 0] = (u + v) % self.q
            pairs[:, :, 1] = multiply_mod((u - v) % self.q, roots, self.q)
            width, half = width * 2, half // 2
        out[:] = multiply_mod(x, self.n_inverse, self.q).T.reshape(-1)
        return out

    # -- digits and words ------------------------------------------------------------------

    def pack_digits(self, values: Int64, radix: int, digits: int, num_coefficients: int) -> Int64:
        out = np.zeros(num_coefficients, dtype=np.int64)
        if self.fast:
            from fedshield.crypto.rlwe import kernels

            kernels.pack_digits(values, radix, digits, out)
            return out
        padded = np.zeros(num_coefficients * digits, dtype=np.int64)
        padded[: values.size] = values
        for k in reversed(range(digits)):
            out = out * radix + padded.reshape(-1, digits)[:, k]
        return out

    def unpack_digits(self, coefficients: Int64, radix: int, digits: int, num_values: int) -> Int64:
        out = np.empty(num_values, dtype=np.int64)
        if self.fast:
            from fedshield.crypto.rlwe import kernels

            kernels.unpack_digits(coefficients, radix, digits, out)
            return out
        half, rest = (radix - 1) // 2, coefficients.copy()
        table = np.empty((coefficients.size, digits), dtype=np.int64)
        for k in range(digits):
            quotient = (rest + half) // radix
            table[:, k] = rest - quotient * radix
            rest = quotient
        out[:] = table.reshape(-1)[:num_values]
        return out

    def pack_words(self, words: Int64, bits: int) -> bytes:
        """Bit stream of N words, lowest bits first; N * bits / 8 bytes."""
        if self.fast:
            from fedshield.crypto.rlwe import kernels

            out = np.zeros(-(-words.size * bits // 64), dtype="<u8")
            kernels.pack_words(words, bits, out)
            return out.tobytes()[: words.size * bits // 8]
        shifts = np.arange(bits, dtype=np.int64)
        stream = ((words[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1)
        return np.packbits(stream, bitorder="little").tobytes()

    def add_words(self, packed: bytes, bits: int, total: Int64) -> None:
        """Adds the words of `packed` into `total`, in place."""
        if self.fast:
            from fedshield.crypto.rlwe import kernels

            padded = packed + bytes(16 - len(packed) % 8)
            kernels.add_words(np.frombuffer(padded, dtype="<u8"), bits, total)
            return
        stream = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
        places = np.int64(1) << np.arange(bits, dtype=np.int64)
        total += stream[: total.size * bits].reshape(total.size, bits).astype(np.int64) @ places


@lru_cache(maxsize=16)
def ring(q: int, fast: bool = True) -> Ring:
    """The ring of a prime, its tables made once."""
    return Ring(q, fast)
