"""Where a run stands at one party, for whoever looks from outside: `progress.json` in its folder.

Rewritten at every message and not synced: nothing is resumed from it. It holds no loss and no
value of a model.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "progress.json"
#: Message -> what a site does when it has come.
PHASES = {
    "stand": "loading the model and the data",
    "open": "opening the sum",
    "compare": "comparing base models",
    "restart": "opening the session",
    "may-go-on": "checking the privacy budget",
    "invite": "joining",
    "begin": "joining",
    "make-key": "making the run's keys",
    "take-key": "taking the run's keys",
    "attest": "bringing sites up to date",
    "give-model": "bringing sites up to date",
    "take-model": "bringing sites up to date",
    "prepare": "preparing the round",
    "train": "training",
    "work": "training and encrypting",
    "fetch-shares": "passing key shares",
    "hold": "passing key shares",
    "fetch": "sending the update",
    "announce": "agreeing on the sum",
    "quorum": "agreeing on the sum",
    "deliver": "taking the sum",
    "evaluate": "evaluating",
    "finish": "finishing",
}


@dataclass(frozen=True)
class Progress:
    """`since`, `heard`: seconds since 1970, of the phase's begin and of the last message that came.
    `waiting`: at the coordinator, the sites that it waits for. `left_s`: an estimate, in seconds,
    of what the remaining rounds take."""

    round_number: int
    rounds: int
    phase: str
    since: float
    heard: float | None = None
    waiting: tuple[str, ...] = ()
    left_s: float | None = None


def write(folder: Path, progress: Progress) -> None:
    """Replace the file; a reader never sees half of it."""
    part = folder / f".{FILE}.part"
    part.write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")
    os.replace(part, folder / FILE)


def read(folder: Path) -> Progress | None:
    """None where no process has written any, or it cannot be read."""
    try:
        raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Progress(**raw | {"waiting": tuple(raw["waiting"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def seconds_left(round_seconds: list[float], rounds_left: int) -> float | None:
    """By the mean of the last five rounds; None before there is one."""
    recent = round_seconds[-5:]
    return sum(recent) / len(recent) * rounds_left if recent else None


def ago(since: float) -> str:
    """How long ago, in words that fit a line."""
    seconds = max(0, round(time.time() - since))
    return f"{seconds} s ago" if seconds < 120 else f"{seconds // 60} min ago"
