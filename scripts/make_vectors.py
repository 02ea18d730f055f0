"""Write the known answers of rlwe and Shamir to tests/vectors, from the numpy reference path.

    python scripts/make_vectors.py

Run it only when the format changes on purpose: a change of these files is a change of protocol.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from fedshield.crypto import shamir, shares
from fedshield.crypto.rlwe import sampling, scheme
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import PRIMES, RING_DEGREE, choose
from fedshield.crypto.rlwe.reference import forward_transform, pack_words
from fedshield.crypto.rlwe.ring import ring
from fedshield.crypto.rlwe.tag import Tagger

OUT = Path(__file__).parents[1] / "tests" / "vectors"
SEED = bytes(range(32))
CONTEXT = SEED[::-1]
TAG_SEED = bytes(range(32, 64))


def main() -> None:
    write(
        "rlwe.json",
        {
            "stream": stream(),
            "matrix": matrix(),
            "binomial": binomial(),
            "transform": transform(),
            "pack": pack(),
            "tag": tag(),
            "seed": seed(),
            "encrypt": [encrypted(*case) for case in CASES],
        },
    )
    keys = []
    values = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
    for threshold, holders in ((2, 3), (3, 5), (2, 13)):
        dealt = shamir.share(values, threshold, holders, SEED)
        keys.append(
            {"threshold": threshold, "holders": holders, "seed": SEED.hex(),
             "first": [s[:3].tolist() for s in dealt],
             "sha256": [hashlib.sha256(shamir.to_bytes(s)).hexdigest() for s in dealt]}
        )  # fmt: skip
    write("shamir.json", {"keys": keys, "residues": residues(), "answers": answers()})


def residues() -> list[dict[str, Any]]:
    """Shares of residues, and whole shares of key and residues as bytes."""
    cases = []
    secret = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
    for threshold, holders, q in ((2, 3, PRIMES[42]), (3, 5, PRIMES[50])):
        values = [0, 1, q - 1, 1 << 40]
        shape = shares.ShareShape(threshold, holders, len(values), q)
        dealt = shares.deal(secret, values, shape, SEED)
        cases.append(
            {"threshold": threshold, "holders": holders, "seed": SEED.hex(), "q": q,
             "values": values, "shares": [list(one.residues) for one in dealt],
             "sha256": [hashlib.sha256(shares.to_bytes(one)).hexdigest() for one in dealt]}
        )  # fmt: skip
    return cases


#: T, holders, exponent of q, who answers, changes of keys (holder, element, by) and of residues
#: (holder, slot, by), and whose answers are wrong (None: more than can be told).
ANSWERS: tuple[tuple[Any, ...], ...] = (
    (2, 4, 42, [0, 1, 2, 3], [], [], []),
    (2, 4, 42, [0, 1, 2, 3], [(2, 0, 1)], [], [2]),
    (2, 4, 42, [0, 1, 2, 3], [], [(3, 1, 5)], [3]),
    (2, 4, 42, [0, 1, 3], [(3, 1365, 1)], [], None),
    (3, 7, 50, [0, 1, 2, 3, 4, 5, 6], [(0, 7, 1), (6, 9, 1 << 30)], [(0, 0, 1)], [0, 6]),
    (3, 7, 50, [0, 2, 3, 4, 5, 6], [(0, 7, 1)], [(5, 0, 1)], [0, 5]),
    (3, 7, 50, [0, 1, 2, 3, 4, 5, 6], [(0, 7, 1), (1, 7, 1), (2, 7, 1)], [], None),
    (5, 13, 46, [*range(13)], [(1, 0, 2), (4, 1, 3), (9, 2, 4), (12, 2047, 5)], [], [1, 4, 9, 12]),
)


def answers() -> list[dict[str, Any]]:
    """Shares of one dealer, of which some are changed."""
    secret = np.arange(RING_DEGREE, dtype=np.int64) % 85 - 42
    cases = []
    for threshold, holders, bits, answering, keys, rest, wrong in ANSWERS:
        q = PRIMES[bits]
        values = [0, q - 1, 1 << 40]
        shape = shares.ShareShape(threshold, holders, len(values), q)
        dealt = shares.deal(secret, values, shape, SEED)
        digests = []
        for holder in answering:
            key, changed = dealt[holder].key.copy(), list(dealt[holder].residues)
            for one, element, by in keys:
                if one == holder:
                    key[element] = (int(key[element]) + by) % shamir.PRIME
            for one, slot, by in rest:
                if one == holder:
                    changed[slot] = (changed[slot] + by) % q
            raw = shares.to_bytes(shares.Share(key, tuple(changed)))
            digests.append(hashlib.sha256(raw).hexdigest())
        cases.append(
            {"threshold": threshold, "holders": holders, "seed": SEED.hex(), "q": q,
             "residues": values, "answering": answering, "keys_changed": keys,
             "residues_changed": rest, "sha256": digests, "wrong": wrong}
        )  # fmt: skip
    return cases


def stream() -> list[dict[str, Any]]:
    found = sampling.Stream(SEED, "label", 5).words(4)
    return [{"seed": SEED.hex(), "label": "label", "index": 5, "first_words": found.tolist()}]


def matrix() -> list[dict[str, Any]]:
    """Residues of the second group: the first and last four, as numbers."""
    cases = []
    for q in (PRIMES[42], PRIMES[48], PRIMES[49], PRIMES[50]):
        drawn = sampling.Matrix(CONTEXT, q)
        drawn.next_group()
        found = drawn.next_group().joined()
        again = sampling.accepted(sampling.Stream(CONTEXT, "matrix-again", 1), 2, q)
        cases.append(
            {"context": CONTEXT.hex(), "q": q, "group": 1, "first": found[:4].tolist(),
             "last": found[-4:].tolist(), "again": again.tolist()}
        )  # fmt: skip
    return cases


def binomial() -> list[dict[str, Any]]:
    cases = []
    for label, count in (("secret", RING_DEGREE), ("error", sampling.GROUP)):
        found = sampling.binomial(SEED, label, count, fast=False)
        cases.append(
            {"seed": SEED.hex(), "label": label, "count": count, "first": found[:16].tolist(),
             "last": found[-16:].tolist(), "sum": int(found.sum())}
        )  # fmt: skip
    return cases


def transform() -> list[dict[str, Any]]:
    cases = []
    for q in PRIMES.values():
        x = np.zeros(RING_DEGREE, dtype=np.int64)
        x[0], x[1], x[4095] = 1, 2, q - 3
        forward_transform(x, ring(q))
        cases.append(
            {"q": q, "root": int(ring(q).roots[2048]), "input": [[0, 1], [1, 2], [4095, q - 3]],
             "first": x[:4].tolist()}
        )  # fmt: skip
    return cases


def pack() -> list[dict[str, Any]]:
    """Word c is (c * 2654435761) mod 2^bits."""
    cases = []
    for bits in (34, 39):
        words = np.arange(RING_DEGREE, dtype=np.int64) * 2654435761 % (1 << bits)
        out = np.empty(64 * bits, dtype="<u8")
        pack_words(words, bits, out)
        cases.append(
            {"bits": bits, "first_bytes": out.tobytes()[:16].hex(),
             "sha256": hashlib.sha256(out.tobytes()).hexdigest()}
        )  # fmt: skip
    return cases


def tag() -> list[dict[str, Any]]:
    """Two blocks whose coefficient c is c - 4000."""
    cases = []
    for sites, bits in ((3, 16), (3, 8)):
        layout, reserved = RlweLayout(choose(sites, bits, 20_000), 20_000, (16, 40)), [7, 1 << 39]
        tagger = Tagger(TAG_SEED, layout, fast=False)
        tagger.add(np.arange(2 * RING_DEGREE) - 4000.0)
        cases.append(
            {"sites": sites, "bits": bits, "num_values": 20_000, "reserved_bits": [16, 40],
             "reserved": reserved, "tag_seed": TAG_SEED.hex(), "q": layout.parameters.q,
             "keys": [[rho, v[0], v[-1], *u] for rho, v, u in tagger.factors()],
             "tags": list(tagger.tags(reserved))}
        )  # fmt: skip
    return cases


def seed() -> list[dict[str, Any]]:
    """Values are 0, 1, ..., 9."""
    cases = []
    for dtype in ("int16", "int32"):
        values, reserved = np.arange(10).astype(dtype), (7, 1 << 33)
        found = scheme.derive_seed(b"r" * 32, values, reserved, CONTEXT, b"l" * 32, b"s" * 32)
        cases.append(
            {"random": (b"r" * 32).hex(), "site_secret": (b"s" * 32).hex(),
             "context": CONTEXT.hex(), "layout_sha256": (b"l" * 32).hex(), "dtype": dtype,
             "reserved": list(reserved),
             "message_sha256": scheme.message_digest(values, reserved).hex(), "seed": found.hex()}
        )  # fmt: skip
    return cases


CASES = (
    (3, 16, False, 10_000, (1, 31, 31)),
    (3, 16, False, 80_000, (1, 31, 31)),
    (3, 8, False, 10_000, ()),
    (16, 12, False, 10_000, (38,)),
    (3, 4, True, 10_000, (16, 30)),
)


def encrypted(
    sites: int, bits: int, headroom: bool, num_values: int, reserved_bits: tuple[int, ...]
) -> dict[str, Any]:
    """Value i is i mod 7 less 3; reserved integer j is 2^bits - 1 - j."""
    p = choose(sites, bits, num_values, headroom=headroom)
    layout = RlweLayout(p, num_values, reserved_bits)
    values = (np.arange(num_values) % 7 - 3).astype(np.int16)
    reserved = [(1 << most) - 1 - j for j, most in enumerate(reserved_bits)]
    key = scheme.OneTimeKey(SEED)
    made = scheme.Encryption(values, reserved, key, CONTEXT, layout, TAG_SEED, fast=False)
    chunks = list(made.chunks())
    adder = RlweAdder(p, fast=False)
    sums = [adder.result(adder.add(None, chunk)) for chunk in chunks]
    return {
        "sites": sites, "bits": bits, "headroom": headroom, "num_values": num_values,
        "reserved_bits": list(reserved_bits),
        "parameters": [p.q, p.radix, p.digits, p.delta, p.dropped],
        "layout": [layout.num_tags, layout.num_blocks, layout.blocks_per_chunk],
        "residues": list(made.residues()),
        "seed": SEED.hex(), "context": CONTEXT.hex(), "tag_seed": TAG_SEED.hex(),
        "first_bytes": chunks[0][:16].hex(),
        "sha256": [hashlib.sha256(chunk).hexdigest() for chunk in chunks],
        "sum_of_one_sha256": [hashlib.sha256(chunk).hexdigest() for chunk in sums],
    }  # fmt: skip


def write(name: str, value: object) -> None:
    OUT.mkdir(exist_ok=True)
    (OUT / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    print(OUT / name)


if __name__ == "__main__":
    main()
