"""Record the golden results anew: `python tests/golden/record.py`.

Only for a change that is meant to alter what plans give, and the commit says so.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import golden

RECORDED = Path(__file__).with_name("recorded.json")


def main() -> None:
    results = {}
    for name in golden.PLANS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = golden.of_run(name, Path(folder))
    recorded = {"arithmetic": golden.arithmetic(), "results": results}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
