"""A party's figures in Prometheus' text format, for the textfile collector of its node exporter.

Written whole after every round into the party's run folder (`metrics.prom`). Sizes, times and
counts, and at a site its own losses: no value of a model, no data. Nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedshield.disk import write_atomic
from fedshield.run.progress import Progress
from fedshield.run.summary import PHASES

FILE = "metrics.prom"
#: Metric -> its type and what it is.
METRICS = {
    "fedshield_rounds_completed": ("gauge", "The last round that was completed."),
    "fedshield_round": ("gauge", "The round that this party is in."),
    "fedshield_phase": ("gauge", "1 for what this party does in it."),
    "fedshield_left_seconds": ("gauge", "An estimate of the seconds that the run still takes."),
    "fedshield_train_loss": ("gauge", "This site's own training loss of the last round."),
    "fedshield_heldout_loss": ("gauge", "This site's own held-out loss after the last round."),
    "fedshield_upload_bytes_total": ("counter", "Bytes of signed messages that this site sent."),
    "fedshield_download_bytes_total": ("counter", "Bytes of signed messages that it received."),
    "fedshield_phase_seconds_total": ("counter", "Seconds that this site spent, by phase."),
    "fedshield_round_seconds": ("gauge", "Seconds of the last round, all sites."),
    "fedshield_sites_lost": ("gauge", "Sites that were lost in this run."),
    "fedshield_run_ended": ("gauge", "1 once the run is finished or failed, by how."),
}
#: Metric -> the key of a round's row.
LOSSES = {"fedshield_train_loss": "train_loss", "fedshield_heldout_loss": "heldout_loss_after"}
Sample = tuple[str, Mapping[str, str], float]


def of_site(
    run: str, site: str, rows: Sequence[Mapping[str, Any]], standing: Progress | None = None
) -> list[Sample]:
    """From what a site measured (`site_process.ROWS`) and where it stands."""
    labels = {"run": run, "party": site}
    rounds = [row for row in rows if row["round"]]
    found: list[Sample] = [
        (
            "fedshield_rounds_completed",
            labels,
            max((row["round"] for row in rounds), default=0),
        ),
        ("fedshield_upload_bytes_total", labels, sum(row["upload_bytes"] for row in rows)),
        ("fedshield_download_bytes_total", labels, sum(row["download_bytes"] for row in rows)),
    ]
    for phase in PHASES:
        spent = sum(row["wall_s"][phase] for row in rounds)
        found.append(("fedshield_phase_seconds_total", labels | {"phase": phase}, spent))
    for metric, key in LOSSES.items():
        if rounds and rounds[-1][key] is not None:
            found.append((metric, labels, rounds[-1][key]))
    return found + _of_progress(labels, standing)


def _of_progress(labels: Mapping[str, str], standing: Progress | None) -> list[Sample]:
    if standing is None:
        return []
    samples: list[Sample] = [
        ("fedshield_round", labels, standing.round_number),
        ("fedshield_phase", {**labels, "phase": standing.phase}, 1.0),
    ]
    if standing.left_s is not None:
        samples.append(("fedshield_left_seconds", labels, standing.left_s))
    return samples


def of_coordinator(
    run: str, entries: Sequence[Mapping[str, Any]], standing: Progress | None = None
) -> list[Sample]:
    """From the coordinator's log (`flare.conduct`) and where it stands."""
    labels = {"run": run, "party": "coordinator"}
    rounds = [entry for entry in entries if "aggregate_s" in entry]
    lost = {site for entry in entries for site in entry.get("lost", {})}
    found: list[Sample] = [
        ("fedshield_rounds_completed", labels, rounds[-1]["round"] if rounds else 0),
        ("fedshield_sites_lost", labels, len(lost)),
    ]
    if rounds:
        found.append(("fedshield_round_seconds", labels, rounds[-1]["round_s"]))
    last = entries[-1].get("status") if entries else None
    for how in ("finished", "failed"):
        found.append(("fedshield_run_ended", labels | {"how": how}, float(last == how)))
    return found + _of_progress(labels, standing)


def write(folder: Path, samples: Sequence[Sample]) -> None:
    write_atomic(folder / FILE, text(samples))


def text(samples: Sequence[Sample]) -> str:
    """The exposition format: every metric once, with its help, its type and its samples."""
    lines = []
    for name, (kind, told) in METRICS.items():
        mine = [sample for sample in samples if sample[0] == name]
        if not mine:
            continue
        lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
        for _, labels, value in mine:
            pairs = ",".join(f'{key}="{_quoted(label)}"' for key, label in labels.items())
            lines.append(f"{name}{{{pairs}}} {value:.10g}")
    return "\n".join(lines) + "\n"


def _quoted(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
