"""What opened weights tell of two sites' counts: more than their total. No rule keeps it; what
SECURITY.md and docs/log.md say of it is true."""

from __future__ import annotations

import numpy as np

from fedshield.crypto.rlwe.params import choose
from fedshield.types import AdapterSpec, TensorSpec
from fedshield.update import encode_integers
from fedshield.update.encode_grid import round_count

ONE = AdapterSpec((TensorSpec("a", (1,)),), "00" * 32, 1.0)
PACKING = choose(3, 16, 10_000)
#: What the two honest sites count for; who looks knows their sum. What a colluder counts for in
#: each plan.
HONEST = (380, 1200)
CLAIMS = (410, 530, 670, 790, 910, 1300)


def weight(count: int, total: int) -> int:
    """The reserved integer that an upload carries."""
    layout = encode_integers.update_layout(ONE.sha256(), 1, PACKING)
    zero = np.zeros(1, dtype=np.float32)
    made = encode_integers.encode_update(
        zero, layout, [(slice(0, 1), 1.0)], count / total, 0.0, PACKING, 1
    )
    return made.reserved[1]


def test_weights_of_some_plans_tell_how_two_counts_split() -> None:
    """Each plan's weights are rounded to 2^-30 of another total, and the opened sum of two
    holds the sum of their roundings. Counts do not change on a line (R2); totals do, by the
    colluder's."""
    both = sum(HONEST)
    left = {
        (one, both - one)
        for one in range(1, both // 2 + 1)
        if round_count(one) == one and round_count(both - one) == both - one
    }
    assert len(left) == 27
    remaining = []
    for claim in CLAIMS:
        total = both + claim
        seen = sum(weight(count, total) for count in HONEST)
        left = {pair for pair in left if sum(weight(n, total) for n in pair) == seen}
        remaining.append(len(left))
        assert HONEST in left
    assert remaining == [23, 23, 16, 4, 2, 1]
