"""metrics.jsonl: what each site measured in a round, as its operator may see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedshield.protocol.coordinator import RoundOutcome
from fedshield.protocol.participant import Participant
from fedshield.run.local_sites import Traffic
from fedshield.run.summary import PHASES
from fedshield.site.interfaces import SiteRound

SITE_PHASES = ("train", "prune", "encode", "encrypt", "open", "evaluate")


def round_rows(
    outcome: RoundOutcome,
    seen: Mapping[str, SiteRound],
    traffic: Traffic,
    participants: Mapping[str, Participant],
    round_s: float,
) -> list[dict[str, Any]]:
    """metrics.jsonl's rows of a round. The coordinator's adding time is shared out evenly;
    `round_s` is the whole round's, all sites one after the other, the same in each row."""
    up, down = traffic.take()
    rows = [
        site_row(
            record, up.get(name, 0), down.get(name, 0), participants[name].state.sha256(), round_s
        )
        for name, record in sorted(seen.items())
    ]
    return whole_round(rows, outcome.aggregate_s)


def site_row(
    record: SiteRound, upload_bytes: int, download_bytes: int, adapter_sha256: str, round_s: float
) -> dict[str, Any]:
    """A round as one site knows it."""
    wall_s = {phase: round(record.wall_s.get(phase, 0.0), 6) for phase in SITE_PHASES}
    wall_s["aggregate"] = 0.0
    return {
        "round": record.round_number,
        "site": record.site,
        "train_loss": _or_none(record.train_loss),
        "heldout_loss_before": record.heldout_loss_before,
        "heldout_loss_after": record.heldout_loss_after,
        "num_examples": record.num_examples,
        "learning_rate": record.learning_rate,
        "pruning_rate": record.pruning_rate,
        "pruned_values": record.pruned_values,
        "clipped_values": record.clipped_values,
        "clip_factor": round(record.clip_factor, 6),
        "epsilon": _or_none(record.epsilon),
        "contributors": list(record.contributors),
        "sites_in_round": 1,
        "mean_train_loss": _or_none(record.mean_train_loss),
        "faulty_answers": dict(record.faulty_answers),
        "upload_bytes": upload_bytes,
        "download_bytes": download_bytes,
        "adapter_sha256": adapter_sha256,
        "wall_s": {phase: wall_s[phase] for phase in PHASES},
        "round_s": round(round_s, 6),
    }


def whole_round(rows: list[dict[str, Any]], aggregate_s: float) -> list[dict[str, Any]]:
    """The rows of all sites of one round, told of each other and of the coordinator's time."""
    for row in rows:
        row["sites_in_round"] = len(rows)
        row["wall_s"]["aggregate"] = round(aggregate_s / len(rows), 6)
    return rows


def _or_none(value: float) -> float | None:
    """NaN, which JSON has no word for, as null."""
    return None if math.isnan(value) else value
