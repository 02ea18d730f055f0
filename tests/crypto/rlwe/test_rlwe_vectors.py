"""Known answers, tests/vectors/rlwe.json, for other implementations: both paths give them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedshield.crypto.rlwe import sampling
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.arithmetic import arithmetic
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RING_DEGREE, choose
from fedshield.crypto.rlwe.ring import ring
from fedshield.crypto.rlwe.scheme import (
    Encryption,
    OneTimeKey,
    derive_seed,
    message_digest,
    open_sum,
)
from fedshield.crypto.rlwe.tag import Tagger

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "rlwe.json").read_text()
)
BOTH = pytest.mark.parametrize("fast", [True, False], ids=["numba", "numpy"])


def raw(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def test_streams() -> None:
    for case in VECTORS["stream"]:
        stream = sampling.Stream(raw(case, "seed"), case["label"], case["index"])
        assert stream.words(4).tolist() == case["first_words"]


def test_matrices() -> None:
    for case in VECTORS["matrix"]:
        matrix = sampling.Matrix(raw(case, "context"), case["q"])
        for _ in range(case["group"] + 1):
            residues = matrix.next_group()
        found = residues.joined()
        assert (found[:4].tolist(), found[-4:].tolist()) == (case["first"], case["last"])
        again = sampling.Stream(raw(case, "context"), "matrix-again", case["group"])
        assert sampling.accepted(again, 2, case["q"]).tolist() == case["again"]


@BOTH
def test_errors(fast: bool) -> None:
    for case in VECTORS["binomial"]:
        found = sampling.binomial(raw(case, "seed"), case["label"], case["count"], fast)
        assert (found[:16].tolist(), found[-16:].tolist()) == (case["first"], case["last"])
        assert int(found.sum()) == case["sum"]
    case = VECTORS["binomial"][0]
    assert OneTimeKey(raw(case, "seed")).secret(fast)[:16].tolist() == case["first"]


@BOTH
def test_transforms(fast: bool) -> None:
    for case in VECTORS["transform"]:
        here = ring(case["q"])
        assert int(here.roots[2048]) == case["root"]  # psi itself: 2048 is 1 reversed
        x = np.zeros(RING_DEGREE, dtype=np.int64)
        for place, value in case["input"]:
            x[place] = value
        arithmetic(fast).forward_transform(x, here)
        assert x[:4].tolist() == case["first"]


@BOTH
def test_packing(fast: bool) -> None:
    for case in VECTORS["pack"]:
        bits = case["bits"]
        words = np.arange(RING_DEGREE, dtype=np.int64) * 2654435761 % (1 << bits)
        out = np.empty(64 * bits, dtype="<u8")
        arithmetic(fast).pack_words(words, bits, out)
        assert out.tobytes()[:16] == raw(case, "first_bytes")
        assert hashlib.sha256(out.tobytes()).hexdigest() == case["sha256"]


@BOTH
def test_tags(fast: bool) -> None:
    for case in VECTORS["tag"]:
        p = choose(case["sites"], case["bits"], case["num_values"])
        layout = RlweLayout(p, case["num_values"], tuple(case["reserved_bits"]))
        tagger = Tagger(raw(case, "tag_seed"), layout, fast)
        tagger.add(np.arange(2 * RING_DEGREE) - 4000.0)
        assert [[rho, v[0], v[-1], *u] for rho, v, u in tagger.factors()] == case["keys"]
        assert list(tagger.tags(case["reserved"])) == case["tags"]


def test_seeds() -> None:
    for case in VECTORS["seed"]:
        values = np.arange(10).astype(case["dtype"])
        assert message_digest(values, case["reserved"]).hex() == case["message_sha256"]
        found = derive_seed(
            raw(case, "random"), values, case["reserved"], raw(case, "context"),
            raw(case, "layout_sha256"), raw(case, "site_secret"),
        )  # fmt: skip
        assert found.hex() == case["seed"]


@BOTH
@pytest.mark.parametrize("case", VECTORS["encrypt"], ids=lambda case: f"{case['bits']}bit")
def test_uploads_and_their_sum(case: dict[str, Any], fast: bool) -> None:
    p = choose(case["sites"], case["bits"], case["num_values"], headroom=case["headroom"])
    assert [p.q, p.radix, p.digits, p.delta, p.dropped] == case["parameters"]
    layout = RlweLayout(p, case["num_values"], tuple(case["reserved_bits"]))
    assert [layout.num_tags, layout.num_blocks, layout.blocks_per_chunk] == case["layout"]
    values = (np.arange(case["num_values"]) % 7 - 3).astype(np.int16)
    reserved = [(1 << bits) - 1 - j for j, bits in enumerate(layout.reserved_bits)]
    key, context, tag_seed = (
        OneTimeKey(raw(case, "seed")),
        raw(case, "context"),
        raw(case, "tag_seed"),
    )
    made = Encryption(values, reserved, key, context, layout, tag_seed, fast=fast)
    chunks = list(made.chunks())
    assert list(made.residues()) == case["residues"]
    assert [hashlib.sha256(chunk).hexdigest() for chunk in chunks] == case["sha256"]
    assert chunks[0][:16] == raw(case, "first_bytes")
    adder = RlweAdder(p, fast=fast)
    sums = [adder.result(adder.add(None, chunk)) for chunk in chunks]
    assert [hashlib.sha256(chunk).hexdigest() for chunk in sums] == case["sum_of_one_sha256"]
    opened = open_sum(
        sums, key.secret(fast), made.residues(), 1, context, layout, tag_seed, fast=fast
    )
    np.testing.assert_array_equal(opened.values, values)
    assert opened.reserved == tuple(reserved)
