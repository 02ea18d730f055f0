"""Compile the arithmetic of `rlwe` before the first round: seconds, once; then it is cached."""

from __future__ import annotations

import numpy as np

from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.crypto.rlwe.scheme import Encryption, OneTimeKey, open_sum
from fedshield.update.quantise import Digits as Values
from fedshield.update.quantise import quantise


def compile_kernels(parameters: RlweParameters) -> None:
    """One sum of nothing, under a key that is never used for anything else."""
    context = bytes(32)
    digits: Values = np.zeros(1, dtype=np.int16)
    if parameters.max_digit >= 2**15:
        digits = np.zeros(1, dtype=np.int32)
    quantise(np.zeros(1, np.float32), 1.0, 1, 0, out=digits, residual=np.zeros(1, np.float32))
    layout, key = RlweLayout(parameters, 1, ()), OneTimeKey(bytes(32))
    made = Encryption(digits, (), key, context, layout, context)
    (chunk,) = made.chunks()
    adder = RlweAdder(parameters)
    summed = adder.result(adder.add(None, chunk))
    open_sum([summed], key.secret(), made.residues(), 1, context, layout, context)
