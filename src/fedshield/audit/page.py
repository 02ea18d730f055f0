"""The privacy report: `privacy.json`, and the same as one self-contained `privacy.html`.

The page is a function of the audit alone: no clock, no script, nothing loaded.
"""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedshield.audit import statements
from fedshield.audit.findings import Audit, Finding, in_words
from fedshield.audit.verdicts import verdicts
from fedshield.errors import RunFolderError

JSON_NAME, PAGE_NAME = "privacy.json", "privacy.html"
TITLES = {
    "opening": "Opening single updates",
    "tokens": "Tokens of the training text from updates",
    "properties": "Which silo, from an update",
    "membership": "Membership of a row, from the released adapter",
    "canaries": "Planted secrets, from the released adapter",
}
#: Attacks on what crosses in rounds that are run again.
OF_MESSAGES = ("opening", "tokens", "properties")
HEADS = ("Setting", "Party", "What", "Value", "95 % interval", "Chance", "Trials", "Note")
SOURCES = (
    "DAGER: Petrov et al., arXiv 2405.15586 (token recovery by span check, layer by layer)",
    "LAMP: Balunovic et al., arXiv 2202.08827 (a language model for the order of tokens)",
    "Davies and Eldar, arXiv 1004.4529 (rank-aware pursuit)",
    "Melis et al., arXiv 1805.04049; Ganju et al., CCS 2018 (property inference)",
    "Yeom et al., CSF 2018; Carlini et al., USENIX Security 2021; Shi et al., arXiv 2310.16789; "
    "Watson et al., arXiv 2111.08440; Carlini et al., arXiv 2112.03570 (membership)",
    "Carlini et al., USENIX Security 2019 (canaries, exposure)",
    "Clopper and Pearson 1934; Wilson 1927; Efron 1979 (intervals)",
)


def write(audit: Audit, out: Path) -> tuple[Path, Path]:
    """Both files into the folder `out`, which is made if it is not there. Raises
    `RunFolderError` for a place that cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in (
            (JSON_NAME, json.dumps(audit.to_json(), indent=1, ensure_ascii=False) + "\n"),
            (PAGE_NAME, render(audit)),
        ):
            scratch = out / f".{name}.{os.getpid()}.tmp"
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(out / name)
    except OSError as error:
        raise RunFolderError(
            f"{out}: expected a folder to write to, but {error.strerror}; choose another --out"
        ) from None
    return out / JSON_NAME, out / PAGE_NAME


def render(audit: Audit) -> str:
    """The whole page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("fedshield.audit").joinpath("template.html.j2").read_text("utf-8")
    return environment.from_string(source).render(view(audit)) + "\n"


def view(audit: Audit) -> dict[str, Any]:
    """Everything the template shows, in words."""
    note = audit.model.get("note")
    return {
        "audit": audit,
        "model": f"{audit.model['name']}{f' ({note})' if note else ''}",
        "facts": [
            ("Plan, sha256", audit.plan_sha256),
            ("Base model, sha256", str(audit.model["sha256"])),
            ("Sites", ", ".join(audit.sites)),
            ("Scheme of the plan", audit.run_scheme),
            (
                "Rounds whose updates were attacked",
                f"{audit.rounds} of {audit.settings['planned_rounds']}",
            ),
            *((key.replace("_", " "), _plain(value)) for key, value in audit.settings.items()
              if key != "planned_rounds"),
            ("Differential privacy", statements.privacy_line(audit)),
            ("FedShield", audit.version),
        ],
        "scheme": audit.run_scheme,
        "verdicts": verdicts(audit),
        "rounds_attacked": any(one.attack in OF_MESSAGES for one in audit.findings),
        "rounds_run": _rounds_run(audit),
        "learns": statements.who_learns_what(audit),
        "reading": list(statements.how_to_read(audit)),
        "heads": HEADS,
        "tables": [
            (TITLES[attack], _rows(audit, attack))
            for attack in TITLES
            if any(one.attack == attack for one in audit.findings)
        ],
        "unprotected": list(statements.not_protected(audit)),
        "skipped": sorted(audit.skipped.items()),
        "sources": SOURCES,
    }  # fmt: skip


def _rounds_run(audit: Audit) -> str:
    """'The first 2 of this plan's 4 rounds were run'."""
    planned = int(audit.settings["planned_rounds"])
    if planned == 1:
        return "This plan's one round was run"
    if audit.rounds >= planned:
        return f"All {planned} rounds of this plan were run"
    if audit.rounds == 1:
        return f"The first round of this plan's {planned} rounds was run"
    return f"The first {audit.rounds} of this plan's {planned} rounds were run"


def _rows(audit: Audit, attack: str) -> list[tuple[str, ...]]:
    titles = in_words(audit.settings.get("pruning", ["none"])[0] != "none", bool(audit.privacy))
    return [_row(one, titles) for one in audit.findings if one.attack == attack]


def _row(one: Finding, titles: dict[str, str]) -> tuple[str, ...]:
    measure = one.measure
    return (
        titles[one.setting],
        one.party,
        one.what,
        f"{measure.value:.3f}",
        f"{measure.low:.3f} to {measure.high:.3f}",
        "" if measure.chance is None else f"{measure.chance:.3f}",
        f"{measure.num_trials:,}",
        one.note,
    )


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
