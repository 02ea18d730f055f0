"""summary.json: a finished run in numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import resource
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import fedshield
from fedshield.data.sites import SiteData
from fedshield.model.base import BaseModel
from fedshield.plan.schema import Plan
from fedshield.site.schemes import scheme_of
from fedshield.site.settings import exchange_schedule
from fedshield.types import AdapterSpec, AdapterState
from fedshield.update.paper_baseline import paper_bytes, paper_values
from fedshield.update.prune import num_sent

LEARNING = ("train", "prune", "evaluate")
PHASES = ("train", "prune", "encode", "encrypt", "aggregate", "open", "evaluate")


def summarise(
    plan: Plan,
    base: BaseModel,
    data: Mapping[str, SiteData],
    adapter: AdapterState,
    rows: Sequence[dict[str, Any]],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """summary.json. Losses are means per response token; the mean over sites is unweighted, over
    those that measured both the beginning and the end. `state`: run.json's."""
    names = plan.data.site_names()
    num_rounds = max(row["round"] for row in rows)
    scheme = scheme_of(plan).facts
    num_values = adapter.spec.num_values
    own_site = str(state.get("figures_of", ""))
    paper = paper_bytes(paper_values(base.model))
    first, last = (
        {row["site"]: row[key] for row in rows if row["round"] == number}
        for number, key in ((1, "heldout_loss_before"), (num_rounds, "heldout_loss_after"))
    )
    # Of a site that was lost on the way one of the two is missing: a mean over others would be
    # compared with it.
    both = [site for site in first if site in last]

    def losses(sites: Mapping[str, float]) -> dict[str, Any]:
        mean = sum(sites[site] for site in both) / len(both) if both else None
        return {"sites": dict(sites), "mean": mean}

    # Everything in a round that is not learning: encoding, encryption, shares, signatures,
    # messages, journals, opening, storing.
    rounds_s = sum({row["round"]: row["round_s"] for row in rows}.values())
    learning_s = _learning_s(rows, parallel=state.get("engine") == "flare")
    upload = sum(row["upload_bytes"] for row in rows)
    download = sum(row["download_bytes"] for row in rows)
    return {
        "name": plan.name,
        "engine": state.get("engine", ""),
        "parties": state.get("parties", ""),
        "figures_of": own_site,
        "scheme": plan.scheme.name,
        "scheme_parameters": scheme.parameters,
        "security_bits": scheme.security_bits,
        "quorums": dataclasses.asdict(plan.rules()),
        "quorums_in_words": plan.rules().in_words() if plan.scheme.traits.one_time_keys else "",
        "open_to": plan.scheme.open_to,
        "bits": plan.encoding.bits if plan.scheme.traits.one_time_keys else None,
        "weights": plan.scheme.weights,
        "privacy": state.get("privacy"),
        "ended_early": state.get("ended_early", ""),
        "rounds": num_rounds,
        "rounds_planned": plan.rounds,
        "sites": list(names),
        "lost_sites": state.get("lost_sites", {}),
        "exposed": state.get("exposed", []),
        "exposed_noised": state.get("exposed_noised", []),
        "absent": _absent(names, rows, num_rounds, own_site),
        "fewest_in_a_sum": min((len(row["contributors"]) for row in rows), default=None),
        "model": {
            "name": portable(plan.model.name),
            "sha256": base.sha256,
            "note": base.note,
        },
        "adapter": {
            "rank": plan.adapter.rank,
            "alpha": plan.adapter.alpha,
            "targets": adapter.spec.layers(),
            "train": plan.adapter.train,
            "factors": plan.adapter.factors,
            "exchange": plan.adapter.exchange,
        },
        "trainable_values": num_values,
        "upload_bytes": upload + state["setup_upload_bytes"],
        "download_bytes": download + state["setup_download_bytes"],
        "setup_upload_bytes": state["setup_upload_bytes"],
        "setup_download_bytes": state["setup_download_bytes"],
        "update_bytes": update_bytes(plan, adapter.spec, rows),
        "plaintext_float32_upload_bytes": 4 * num_values * len(rows),
        "paper_scheme_upload_bytes": None if paper is None else paper * len(rows),
        "initial_heldout_loss": losses(first),
        "final_heldout_loss": losses(last),
        "mean_over": both,
        "wall_s": round(state["wall_s"], 3),
        "rounds_s": round(rounds_s, 3),
        # A site's own rounds are mostly waiting for the others, which is no protection's time.
        "protection_share": (
            round(1 - learning_s / rounds_s, 5) if rounds_s and not own_site else None
        ),
        "phase_s": {
            phase: round(sum(row["wall_s"][phase] for row in rows), 3)
            for phase in PHASES
            if not (own_site and phase == "aggregate")  # the coordinator's, unknown to a site
        },
        "peak_memory_bytes": _peak_memory(state, own_site),
        "clipped_values": sum(row["clipped_values"] for row in rows),
        "plan_sha256": plan.sha256(),
        "adapter_sha256": adapter.sha256(),
        "data": {
            site: rows_of.counts() | {"source": portable(rows_of.source)}
            for site, rows_of in data.items()
        },
        "notes": list(state.get("notes", ())),
        "versions": _versions(),
        "device": base.device,
        "precision": base.precision,
        "started": state["started"],
        "finished": state["finished"],
        "resumed": state["sessions"] - 1,
        "sessions": _sessions(state),
    }


def portable(name: str) -> str:
    """A model's name or sources (', ' between them) for readers elsewhere: of a path that only this
    machine has, the last part. What is relative to the plan, a hub's name or built in stays."""
    return ", ".join(
        PurePath(part).name if part.startswith(("/", "~", "./", "../")) else part
        for part in name.split(", ")
    )


def _absent(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], num_rounds: int, own_site: str
) -> dict[str, list[int]]:
    """Site -> the rounds whose sum is without it, as those who opened it know; no empty lists. A
    site that has no figures of a round was not there itself."""
    summed = {row["round"]: row["contributors"] for row in rows}
    absent: dict[str, list[int]] = {}
    for number in range(1, num_rounds + 1):
        others = [site for site in names if site != own_site]
        for site in names if number in summed else [own_site] if own_site else []:
            if site not in summed.get(number, others):
                absent.setdefault(site, []).append(number)
    return absent


def _peak_memory(state: Mapping[str, Any], own_site: str) -> int | None:
    """Of this process in its last session; None where others did the work."""
    if state.get("engine") == "flare" and not own_site:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sessions(state: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each session of the run; the last one is about to end, with this summary."""
    log = [dict(entry) for entry in state.get("sessions_log", ())]
    if log:
        log[-1] |= {"ended": state["finished"], "how": "finished"}
    return log


def _learning_s(rows: Sequence[Mapping[str, Any]], *, parallel: bool) -> float:
    """Seconds of the rounds that go into learning: of all sites where they take turns, of the
    slowest site of each round where they work side by side."""
    spent: dict[int, list[float]] = {}
    for row in rows:
        here = sum(row["wall_s"][phase] for phase in LEARNING)
        spent.setdefault(row["round"], []).append(here)
    return sum(max(one) if parallel else sum(one) for one in spent.values())


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "tenseal", "numpy", "dp-accounting")
    return {
        "fedshield": fedshield.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def update_bytes(plan: Plan, spec: AdapterSpec, rows: Sequence[dict[str, Any]]) -> int:
    """Bytes of the blocks of all updates alone: no shares, no messages around them."""
    schedule, scheme = exchange_schedule(plan), scheme_of(plan)
    turns = Counter(num_sent(schedule, spec, row["round"]) for row in rows)
    return sum(
        times * sum(up for up, _ in scheme.block_sizes(scheme.update_layout(count)))
        for count, times in turns.items()
    )
