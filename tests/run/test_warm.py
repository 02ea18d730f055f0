"""After `compile_kernels` a round compiles nothing more."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import numpy as np
from fedshield.crypto.rlwe import kernels, transform
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.run.warm import compile_kernels

def compiled():
    return {
        (module.__name__, name): len(one.signatures)
        for module in (kernels, transform)
        for name, one in vars(module).items()
        if hasattr(one, "signatures")
    }

compile_kernels(rlwe_parameters(3, 16, False))
before = compiled()
assert sum(before.values()) > 3, before
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.scheme import Encryption, OneTimeKey, open_sum

p = rlwe_parameters(3, 16, False)
layout = RlweLayout(p, 50_000, (1, 31, 31))
key, context = OneTimeKey(b"k" * 32), bytes(32)
made = Encryption(np.ones(50_000, np.int16), (1, 2, 3), key, context, layout, context)
adder = RlweAdder(p)
chunks = [adder.result(adder.add(None, chunk)) for chunk in made.chunks()]
opened = open_sum(chunks, key.secret(), made.residues(), 1, context, layout, context)
assert opened.values.tolist() == [1] * 50_000
assert compiled() == before
"""


def test_a_round_compiles_nothing_more() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=600)
