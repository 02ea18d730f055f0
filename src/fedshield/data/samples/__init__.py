"""The built-in sample silos: small files of instruction and response, one domain each.

They are for trying FedShield out without any data of one's own. NOTICE.md, beside this file, says
where the text is from and under which licences it ships.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from fedshield.errors import DataError

SAMPLES: dict[str, str] = {
    "medical": "definitions of illnesses, drugs, body parts and procedures (WordNet)",
    "finance": "definitions from money, business and trade (WordNet)",
    "maths": "short school exercises and their answers (mathematics-dataset)",
    "code": "what functions and classes of the Python standard library do (docstrings)",
}


def path(name: str) -> Path:
    """The gzipped JSON-lines file of the sample called `name`."""
    if name not in SAMPLES:
        near = difflib.get_close_matches(name.lower(), SAMPLES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise DataError(f"no sample is called {name!r}: expected one of {', '.join(SAMPLES)}{hint}")
    return Path(str(resources.files(__name__) / f"{name}.jsonl.gz"))
