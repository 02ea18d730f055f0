"""What an audit found: numbers with their party, scheme and assumption; nothing without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedshield.audit.stats import Measure

ATTACKS = ("tokens", "properties", "membership", "canaries")


@dataclass(frozen=True)
class Setting:
    """What an attack was tried under: a scheme, with the plan's pruning or without. `changes`: to
    the plan."""

    key: str
    words: str
    changes: Mapping[str, Any] = field(default_factory=dict)


#: Before protection, pruning and noise each alone, and each scheme that encrypts.
SETTINGS = (
    Setting(
        "plain",
        "no protection",
        {"scheme.name": "plain", "pruning.method": "none", "privacy": {}},
    ),
    Setting("pruned", "pruning alone, in the clear", {"scheme.name": "plain", "privacy": {}}),
    Setting(
        "noised",
        "differential privacy alone, in the clear",
        {"scheme.name": "plain", "pruning.method": "none"},
    ),
    Setting("ckks", "ckks", {"scheme.name": "ckks"}),
    Setting("rlwe", "rlwe", {"scheme.name": "rlwe"}),
)


def in_words(prunes: bool, private: bool) -> dict[str, str]:
    """Setting -> its name in a report. `prunes`, `private`: whether the plan prunes, and has
    differential privacy."""
    before = [*(["pruning"] if prunes else []), *(["differential privacy"] if private else [])]
    encrypted = f"{', '.join(before)} and " if before else ""
    return {
        one.key: (encrypted if one.key in ("ckks", "rlwe") else "") + one.words for one in SETTINGS
    } | {"any": "any scheme"}


@dataclass(frozen=True)
class Finding:
    """One number. `party`: who attacked; `what`: what the number is of; `note`: what a reader
    must know to read it rightly, '' for nothing."""

    attack: str
    setting: str
    party: str
    what: str
    measure: Measure
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"measure": asdict(self.measure)}


@dataclass(frozen=True)
class Audit:
    """A whole audit. `skipped`: attack -> why it was not made; `privacy`: epsilon, delta and what
    goes with them, as a run's summary has them; empty without differential privacy. `history`: what
    is known of how the audited run went, one sentence each; empty for a plan. `notes`: what of
    the model and the data was not used, or not as it stands."""

    name: str
    plan_sha256: str
    run_scheme: str
    model: Mapping[str, Any]
    sites: tuple[str, ...]
    colluding: int
    threshold: int
    rounds: int
    settings: Mapping[str, Any]
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    history: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found = asdict(self) | {"findings": [one.to_json() for one in self.findings]}
        return found | {"format": "fedshield privacy report 1"}
