"""What the sites' data are read by, besides the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedshield.plan.data import DataPlan


@dataclass(frozen=True)
class DataSetup:
    """Which rows a run has, and how they become examples.

    `data`: sources and split; `base_dir`: what relative paths of sources start from; `seed`: the
    run's, by which a pool is dealt out; `max_length`: tokens after which an example is cut;
    `one_text_a_row`: a row is one text, whatever the chat template does, for whoever counts rows;
    `min_rows`: the fewest rows with loss that a site takes part with (rule R6).
    """

    data: DataPlan
    base_dir: Path
    seed: int
    max_length: int
    one_text_a_row: bool
    min_rows: int
