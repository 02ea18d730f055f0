"""Write the known answers of rlwe and Shamir to tests/vectors, from the numpy reference path.

    python scripts/make_vectors.py

Run it only when the format changes on purpose: a change of these files is a change of protocol.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from fedshield.crypto import shamir
from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE, choose
from fedshield.crypto.rlwe.ring import ring
from fedshield.crypto.rlwe.scheme import OneTimeKey, encrypt

OUT = Path(__file__).parents[1] / "tests" / "vectors"
SEED = bytes(range(32))


def main() -> None:
    uniform = []
    for q in (PRIMES[42], PRIMES[50]):
        found = sampling.uniform(SEED, "matrix", 3, 2, q, fast=False)[1]
        uniform.append(
            {"seed": SEED.hex(), "label": "matrix", "index": 3, "q": q,
             "first": found[:4].tolist(), "last": found[-4:].tolist()}
        )  # fmt: skip
    errors = sampling.binomial(SEED, "error", 5, 2, fast=False)[1]
    binomial = [
        {"seed": SEED.hex(), "label": "error", "index": 5, "first": errors[:16].tolist(),
         "sum": int(errors.sum())}
    ]  # fmt: skip
    transform = []
    for q in PRIMES.values():
        here = ring(q, fast=False)
        x = np.zeros(RING_DEGREE, dtype=np.int64)
        x[0], x[1], x[4095] = 1, 2, q - 3
        transform.append(
            {"q": q, "root": int(here.roots[2048]), "input": [[0, 1], [1, 2], [4095, q - 3]],
             "first": here.forward(x)[:4].tolist()}
        )  # fmt: skip
    encrypted = []
    for sites, bits, headroom in ((3, 16, False), (3, 8, False), (16, 12, False), (3, 4, True)):
        p = choose(sites, bits, 10_000, headroom=headroom)
        values = np.arange(10_000, dtype=np.int64) % 7 - 3
        blocks = list(encrypt(values, OneTimeKey(SEED), SEED[::-1], p, fast=False))
        encrypted.append(
            {"sites": sites, "bits": bits, "headroom": headroom, "num_values": 10_000,
             "parameters": [p.q, p.radix, p.digits, p.delta, p.dropped],
             "seed": SEED.hex(), "context": SEED[::-1].hex(),
             "first_bytes": blocks[0][:16].hex(),
             "sha256": [hashlib.sha256(block).hexdigest() for block in blocks]}
        )  # fmt: skip
    write(
        "rlwe.json",
        {"uniform": uniform, "binomial": binomial, "transform": transform, "encrypt": encrypted},
    )
    shares = []
    values = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
    for threshold, holders in ((2, 3), (3, 5)):
        dealt = shamir.share(values, threshold, holders, SEED)
        shares.append(
            {"threshold": threshold, "holders": holders, "seed": SEED.hex(),
             "first": [s[:3].tolist() for s in dealt],
             "sha256": [hashlib.sha256(shamir.to_bytes(s)).hexdigest() for s in dealt]}
        )  # fmt: skip
    write("shamir.json", shares)


def write(name: str, value: object) -> None:
    OUT.mkdir(exist_ok=True)
    (OUT / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    print(OUT / name)


if __name__ == "__main__":
    main()
