# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What the kernels are made of: exact products mod q in float64, bits counted, numbers cast.

Numbers are float64 holding integers below 2^53. A product mod q < 2^50 takes a few plain or
fused steps (Shoup's precomputed quotient, in floating point): h + l is the exact product, k the
rounded quotient, and (h - k q) + l the remainder, exact because each step's result is an integer
below 2^53.

Bounds: with |w| <= q/2 and |x| <= 4q, k is below 2^51, off by at most 1/2 + |x|/8q, so the
remainder's magnitude is at most (1/2 + |x|/8q) q, never more than q.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

# 1.5 * 2^52: adding and taking it away rounds to the nearest integer, for magnitudes to 2^51.
_ROUND = 6755399441055744.0
# 2^52: the low bits of its sum with an integer are that integer.
_BITS = 4503599627370496.0

#: Compiled at the first call, cached on disk.
jit: Any = numba.njit(cache=True, error_model="numpy", nogil=True)
inline: Any = numba.njit(cache=True, error_model="numpy", nogil=True, forceinline=True)


def _fma_intrinsic(_context, x, y, z):
    """x * y + z, rounded once."""

    def emit(_context, builder, _signature, args):
        return builder.fma(*args)

    double = types.float64
    return double(double, double, double), emit


def _ones_intrinsic(_context, x):
    """Bits set in a 64-bit word."""

    def emit(_context, builder, _signature, args):
        return builder.ctpop(*args)

    return types.uint64(types.uint64), emit


def _as_bits_intrinsic(_context, x):
    """The bits of a float64."""

    def emit(context, builder, _signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.uint64))

    return types.uint64(types.float64), emit


def _as_float_intrinsic(_context, x):
    """The float64 of these bits."""

    def emit(context, builder, _signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.uint64), emit


fma: Any = intrinsic(_fma_intrinsic)
ones_in: Any = intrinsic(_ones_intrinsic)
as_bits: Any = intrinsic(_as_bits_intrinsic)
as_float: Any = intrinsic(_as_float_intrinsic)


@inline
def to_float(x):
    """A uint64 below 2^52 as float64, without the conversion that only AVX-512 has."""
    return as_float(x | np.uint64(0x4330000000000000)) - _BITS


@inline
def to_int(x):
    """An integral float64 of magnitude up to 2^51 as int64."""
    return np.int64(as_bits(x + _ROUND)) - np.int64(0x4338000000000000)


@inline
def times(x, w, w_over_q, q):
    """x * w mod q, of magnitude at most (1/2 + |x|/8q) q; |x| <= 4q, |w| <= q/2."""
    high = x * w
    low = fma(x, w, -high)
    quotient = (x * w_over_q + _ROUND) - _ROUND
    return fma(-quotient, q, high) + low


@inline
def small(x, q, q_inverse):
    """The centred remainder of x mod q: exact for |x| < 2q, up to a unit or so beyond."""
    return fma(-((x * q_inverse + _ROUND) - _ROUND), q, x)


@inline
def to_float_signed(x):
    """An int64 of magnitude below 2^51 as float64."""
    return as_float(np.uint64(x + np.int64(0x4338000000000000))) - _ROUND


@inline
def cut(x, down):
    """The bits of an integral float64 in [0, 2^52), shifted down."""
    return (as_bits(x + _BITS) & np.uint64((1 << 52) - 1)) >> down
