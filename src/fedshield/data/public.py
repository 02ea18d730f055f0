"""Text that every party has: rows of the built-in samples, drawn by the plan's seed.

For choices that all sites must make alike and that must tell nothing about anyone's data. No
source that the plan names is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedshield.data import samples
from fedshield.data.rows import read
from fedshield.data.usable import control_tokens
from fedshield.errors import DataError
from fedshield.model.chat import Tokens, tokenise
from fedshield.plan.data import SourcePlan
from fedshield.seeds import derive

#: Rows of each built-in sample.
ROWS_OF_EACH = 16


def public_rows(tokenizer: Any, seed: int, max_length: int) -> tuple[Tokens, ...]:
    """`ROWS_OF_EACH` rows of every built-in sample, tokenised like training rows. Passed over are
    rows with one of the tokenizer's control tokens, and those whose answer begins after
    `max_length`.

    Args:
        tokenizer: with its settled template.
        seed: the run's, by which they are drawn.
        max_length: `training.max_length`, tokens.

    Raises:
        DataError: a sample has no row left.
    """
    marks = control_tokens(tokenizer)
    chosen: list[Tokens] = []
    for name in sorted(samples.SAMPLES):
        source = f"sample:{name}"
        settings = SourcePlan(source=source)
        # A sample lies in the package: the folder of the plan does not matter.
        rows = read(Path(), source, settings, key="public text", on_bad_row="skip").rows
        generator = np.random.Generator(np.random.Philox(derive(seed, "public rows", name)))
        order = generator.permutation(len(rows))
        found: list[Tokens] = []
        for place in order:
            row = rows[int(place)]
            if any(marks.search(turn.content) for turn in row.turns):
                continue
            tokens = tokenise(tokenizer, row.as_messages(), max_length)
            if tokens.num_response:
                found.append(tokens)
            if len(found) == ROWS_OF_EACH:
                break
        if not found:
            raise DataError(
                f"{source}: expected rows with an answer within training.max_length "
                f"{max_length} for adapter.factors gradient, got none; raise "
                "max_length, or use factors svd"
            )
        chosen += found
    return tuple(chosen)
