"""Known answers of the noise, by the plain reference: tests/vectors/noise.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedshield.crypto.rlwe.sampling import Stream
from fedshield.privacy.discrete_gaussian import DiscreteGaussian

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from reference import discrete_gaussian  # noqa: E402

TARGET = TESTS / "vectors" / "noise.json"


def main() -> None:
    draws = []
    for number, deviation in enumerate((0.5, 1.0, 12.345, 901.5, 2.0**20)):
        found, seed = DiscreteGaussian(deviation), bytes([number]) * 32
        stream = Stream(seed, "vector", 0)
        values = discrete_gaussian.table_draw(
            found, 40, lambda n, s=stream: [int(w) for w in s.words(n)]
        )
        draws.append(
            {
                "deviation": deviation.hex(),
                "seed": seed.hex(),
                "label": "vector",
                "width": found.width,
                "num_cells": found.num_cells,
                "values": values,
            }
        )
    TARGET.write_text(json.dumps({"draws": draws}, indent=1) + "\n")
    print(TARGET)


if __name__ == "__main__":
    main()
