"""A party's figures in Prometheus' text format, for the textfile collector of its node exporter.

Written whole after every round into the party's run folder (`metrics.prom`). Sizes, times and
counts only: no loss, no value, no data. Nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedshield.runfolder import write_atomic
from fedshield.summary import PHASES

FILE = "metrics.prom"
#: Metric -> its type and what it is.
METRICS = {
    "fedshield_rounds_completed": ("gauge", "The last round that was completed."),
    "fedshield_upload_bytes_total": ("counter", "Bytes of signed messages that this site sent."),
    "fedshield_download_bytes_total": ("counter", "Bytes of signed messages that it received."),
    "fedshield_phase_seconds_total": ("counter", "Seconds that this site spent, by phase."),
    "fedshield_round_seconds": ("gauge", "Seconds of the last round, all sites."),
    "fedshield_sites_lost": ("gauge", "Sites that were lost in this run."),
    "fedshield_run_ended": ("gauge", "1 once the run is finished or failed, by how."),
}
Sample = tuple[str, Mapping[str, str], float]


def of_site(run: str, site: str, rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """From what a site measured (`site_process.ROWS`)."""
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
    return found


def of_coordinator(run: str, entries: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """From the coordinator's log (`flare.conduct`)."""
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
    return found


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
