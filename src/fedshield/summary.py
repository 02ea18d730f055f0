"""summary.json: a finished run in numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import resource
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import fedshield
from fedshield.crypto.scheme import CKKS
from fedshield.data.sites import SiteData
from fedshield.model.base import BaseModel
from fedshield.plan import Plan
from fedshield.protocol.ciphers import block_sizes, facts, update_layout
from fedshield.prune import num_sent
from fedshield.types import AdapterSpec, AdapterState

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
    """summary.json. Losses are means per response token; the mean over sites is unweighted."""
    names = plan.data.site_names()
    num_rounds = max(row["round"] for row in rows)
    scheme = facts(plan)
    num_values = adapter.spec.num_values
    paper = CKKS["paper"]
    paper_ciphertexts = -(-num_values // paper.values_per_ciphertext)

    def losses(number: int, key: str) -> dict[str, Any]:
        sites = {row["site"]: row[key] for row in rows if row["round"] == number}
        return {"sites": sites, "mean": sum(sites.values()) / len(sites)}

    # Everything in a round that is not learning: encoding, encryption, shares, signatures,
    # messages, journals, opening, storing.
    rounds_s = sum({row["round"]: row["round_s"] for row in rows}.values())
    learning_s = _learning_s(rows, parallel=state.get("engine") == "flare")
    upload = sum(row["upload_bytes"] for row in rows)
    download = sum(row["download_bytes"] for row in rows)
    return {
        "name": plan.name,
        "scheme": plan.scheme.name,
        "scheme_parameters": scheme.parameters,
        "security_bits": scheme.security_bits,
        "quorums": dataclasses.asdict(plan.rules()),
        "quorums_in_words": plan.rules().in_words() if plan.scheme.name == "rlwe" else "",
        "open_to": plan.scheme.open_to,
        "bits": plan.encoding.bits if plan.scheme.name == "rlwe" else None,
        "weights": plan.scheme.weights,
        "privacy": state.get("privacy"),
        "ended_early": state.get("ended_early", ""),
        "rounds": num_rounds,
        "rounds_planned": plan.rounds,
        "sites": list(names),
        "lost_sites": state.get("lost_sites", {}),
        "model": {"name": base.name, "sha256": base.sha256, "note": base.note},
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
        "paper_scheme_upload_bytes": paper.ciphertext_bytes * paper_ciphertexts * len(rows),
        "initial_heldout_loss": losses(1, "heldout_loss_before"),
        "final_heldout_loss": losses(num_rounds, "heldout_loss_after"),
        "wall_s": round(state["wall_s"], 3),
        "rounds_s": round(rounds_s, 3),
        "protection_share": round(1 - learning_s / rounds_s, 5) if rounds_s else None,
        "phase_s": {phase: round(sum(row["wall_s"][phase] for row in rows), 3) for phase in PHASES},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "clipped_values": sum(row["clipped_values"] for row in rows),
        "plan_sha256": plan.sha256(),
        "adapter_sha256": adapter.sha256(),
        "data": {site: found.counts() for site, found in data.items()},
        "notes": list(state.get("notes", ())),
        "versions": _versions(),
        "device": base.device,
        "precision": base.precision,
        "started": state["started"],
        "finished": state["finished"],
        "resumed": state["sessions"] - 1,
    }


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
    turns = Counter(num_sent(plan, spec, row["round"]) for row in rows)
    return sum(
        times * sum(up for up, _ in block_sizes(plan, update_layout(plan, count)))
        for count, times in turns.items()
    )
