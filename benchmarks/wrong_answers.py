"""What it costs a site to open a sum of which some answers are wrong: milliseconds of CPU and
bytes.

    python benchmarks/wrong_answers.py

All K answer and T = c + 1, with c as by default. `right`: no answer is wrong; `told`: the keys of
floor((K - T) / 2) holders are random; `one more`: of one holder more, so that the sums of keys that
T answers give are tried on the sum's first blocks (up to 12 answers; for more it is refused).
Opening the blocks themselves comes on top and is in `fedshield bench crypto`. Bytes are those that
the answers take in one site's `open`, and what of them the signed tags are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fedshield.crypto import shamir, shares
from fedshield.crypto.rlwe import scheme
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import choose
from fedshield.crypto.seal import OVERHEAD_BYTES
from fedshield.errors import CryptoError
from fedshield.protocol.wire import envelope, messages
from fedshield.protocol.wire.envelope import Binding

SITES = (3, 8, 16, 64)
NUM_VALUES = 8192
#: Contributors, weight and loss, as a round sends them.
RESERVED_BITS, RESERVED = (1, 31, 31), (1, 1 << 29, 12345)
CONTEXT = TAG_SEED = bytes(range(32))


def median_ms(work: Callable[[], Any], seconds: float) -> float:
    """CPU time, which other work on the machine moves less than the clock."""
    work()  # once unmeasured: tables and caches
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        started = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - started))
    return statistics.median(times)


def row(num_sites: int, seconds: float) -> dict[str, Any]:
    threshold = max(1, (num_sites - 1) // 3) + 1
    layout = RlweLayout(choose(num_sites, 16, NUM_VALUES), NUM_VALUES, RESERVED_BITS)
    shape = shares.ShareShape(threshold, num_sites, layout.num_residues, layout.parameters.q)
    values = np.ones(NUM_VALUES, dtype=np.int16)
    adder, total = RlweAdder(layout.parameters), None
    held: list[list[shares.Share]] = []
    for site in range(num_sites):
        key = scheme.OneTimeKey(site.to_bytes(32, "big"))
        made = scheme.Encryption(values, RESERVED, key, CONTEXT, layout, TAG_SEED)
        for chunk in made.chunks():
            total = adder.add(total, chunk)
        held.append(shares.deal(key.secret(), made.residues(), shape, key.seed))
    blocks = [adder.result(total)]
    right = {
        holder: shares.add([dealt[holder] for dealt in held], shape) for holder in range(num_sites)
    }

    def fits(key_sum: Any) -> bool:
        return scheme.key_fits(blocks, key_sum, num_sites, CONTEXT, layout)

    def opening(num_wrong: int) -> float:
        draw = np.random.default_rng(1)
        answers = dict(right)
        for holder in draw.permutation(num_sites)[:num_wrong].tolist():
            key = draw.integers(0, shamir.PRIME, right[holder].key.size).astype(np.uint64)
            answers[holder] = replace(right[holder], key=key)

        def once() -> None:
            try:
                shares.open_sum(answers, shape, num_sites, fits)
            except CryptoError:
                assert num_wrong > told

        return median_ms(once, seconds)

    told = (num_sites - threshold) // 2
    name = "site-name"
    tag = envelope.seal(
        "answer-tag", Binding(bytes(32), 1, "round"), name,
        messages.AnswerTag(bytes(32)).to_body(), lambda _: bytes(64),
    )  # fmt: skip
    return {
        "sites": num_sites,
        "threshold": threshold,
        "told": told,
        "right_ms": opening(0),
        "told_ms": opening(told) if told else None,
        "one_more_ms": opening(told + 1),
        "answers_bytes": (num_sites - 1) * (shape.num_bytes + OVERHEAD_BYTES + len(tag)),
        "tags_bytes": (num_sites - 1) * len(tag),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [row(sites, given.seconds) for sites in given.sites]
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print("sites   T  told  right ms  told ms  one more ms  answers, bytes  of them tags")
    for one in rows:
        told = "-" if one["told_ms"] is None else f"{one['told_ms']:.1f}"
        print(
            f"{one['sites']:>5} {one['threshold']:>3} {one['told']:>5} {one['right_ms']:>9.1f} "
            f"{told:>8} {one['one_more_ms']:>12.1f} {one['answers_bytes']:>15,} "
            f"{one['tags_bytes']:>13,}"
        )


if __name__ == "__main__":
    main()
