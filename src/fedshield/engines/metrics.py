"""metrics.jsonl: what each site measured in a round, as its operator may see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedshield.engines.local_sites import Traffic
from fedshield.protocol.coordinator import RoundOutcome
from fedshield.protocol.local import SiteRound
from fedshield.protocol.participant import Participant
from fedshield.summary import PHASES

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
    rows = []
    for name, record in sorted(seen.items()):
        wall_s = {phase: round(record.wall_s.get(phase, 0.0), 6) for phase in SITE_PHASES}
        wall_s["aggregate"] = round(outcome.aggregate_s / len(seen), 6)
        rows.append(
            {
                "round": outcome.round_number,
                "site": name,
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
                "sites_in_round": len(seen),
                "mean_train_loss": _or_none(record.mean_train_loss),
                "upload_bytes": up.get(name, 0),
                "download_bytes": down.get(name, 0),
                "adapter_sha256": participants[name].state.sha256(),
                "wall_s": {phase: wall_s[phase] for phase in PHASES},
                "round_s": round(round_s, 6),
            }
        )
    return rows


def _or_none(value: float) -> float | None:
    """NaN, which JSON has no word for, as null."""
    return None if math.isnan(value) else value
