"""Small plans, one for each way that a run can go, and what of their results must never change.

`of_run` gives a plan's golden record. Keys, noise and ciphertexts are fresh in each run, and the
adapter is the same all the same: training and rounding draw from the plan's seed, and sums are of
integers. Noise that is meant to be in the result (`privacy`) is drawn from fixed streams, here
alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml

from fedshield.crypto.rlwe.sampling import Stream
from fedshield.errors import RoundFailed
from fedshield.plan.load import parse_plan
from fedshield.privacy import dp_sgd
from fedshield.run import local
from fedshield.run.folder import RunFolder
from fedshield.site import round as site_round
from fedshield.site.train import LocalTrainer

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_LEVEL = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 0.8}
SITE_LEVEL = {"unit": "site", "clip_norm": 1.0, "noise_multiplier": 0.8}

#: Name -> changes of the plan, 'section.key'; and how the run goes ('', 'resumed', 'lost').
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "lora ab, rlwe": ({}, ""),
    "lora b, fedavgm": (
        {"adapter.train": "b", "aggregation": {"optimizer": "fedavgm", "learning_rate": 0.7}},
        "",
    ),
    "lora alternate, fedadam": (
        {
            "adapter.train": "alternate",
            "aggregation": {"optimizer": "fedadam", "learning_rate": 0.02},
        },
        "",
    ),
    "lora share-a, fedyogi": (
        {
            "adapter.train": "share-a",
            "aggregation": {"optimizer": "fedyogi", "learning_rate": 0.02},
        },
        "",
    ),
    "core, fedadagrad": (
        {
            "adapter.train": "core",
            "aggregation": {"optimizer": "fedadagrad", "learning_rate": 0.02},
        },
        "",
    ),
    "core, gradient factors": ({"adapter.train": "core", "adapter.factors": "gradient"}, ""),
    "core, muon, two bits": (
        {
            "adapter.train": "core",
            "training.optimizer": "muon",
            "training.learning_rate": 0.1,
            "encoding": {"bits": 2, "headroom": True},
            "pruning": {"method": "none"},
        },
        "",
    ),
    "delta exchange, error feedback": (
        {"adapter.exchange": "delta", "encoding": {"bits": 8, "error_feedback": True}},
        "",
    ),
    "scaffold": (
        {
            "adapter.exchange": "delta",
            "training.local_algorithm": "scaffold",
            "training.optimizer": "sgd",
            "training.learning_rate": 0.5,
        },
        "",
    ),
    "fedprox, global ranking": (
        {"training.local_algorithm": "fedprox", "pruning.ranking": "global"},
        "",
    ),
    "plain": ({"scheme": {"name": "plain"}}, ""),
    "ckks": ({"scheme": {"name": "ckks"}, "encoding": {}}, ""),
    "equal weights": ({"scheme.weights": "equal"}, ""),
    "private weights": ({"scheme.weights": "private"}, ""),
    "public weights": ({"scheme.weights": "public"}, ""),
    "open to the server": ({"scheme.open_to": "server"}, ""),
    "privacy of an example": (
        {"privacy": EXAMPLE_LEVEL, "adapter.dropout": 0.0, "adapter.exchange": "delta"},
        "",
    ),
    "privacy of a site": (
        {"privacy": SITE_LEVEL, "adapter.exchange": "delta", "scheme.weights": "equal"},
        "",
    ),
    "resumed": ({}, "resumed"),
    "a lost site": (
        {
            "privacy": EXAMPLE_LEVEL,
            "adapter.dropout": 0.0,
            "scheme.membership": "open",
            "data.sites.lab": {"source": "sample:code", "rows": 40},
        },
        "lost",
    ),
    "batches": (
        {
            "scheme.membership": "batches",
            "data.sites.clinic": {"source": "sample:maths", "rows": 40},
            "data.sites.lab": {"source": "sample:code", "rows": 40},
            "data.sites.ward": {"source": "sample:medical", "rows": 40},
        },
        "",
    ),
}


def plan_of(changes: dict[str, Any]) -> Any:
    raw = yaml.safe_load((EXAMPLES / "tiny.yaml").read_text())
    raw |= {"rounds": 2, "evaluation": {"prompts": []}}
    raw["data"] |= {"heldout_rows": 6, "min_examples": 14}
    for site in raw["data"]["sites"].values():
        site["rows"] = 40
    raw["training"] |= {"steps": 2, "batch_size": 4, "max_length": 96}
    for key, value in changes.items():
        *path, last = key.split(".")
        section = raw
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return parse_plan(raw, base_dir=EXAMPLES)


def of_run(name: str, folder: Path) -> dict[str, Any]:
    """Run the plan in `folder`; its adapter's SHA-256 and what stands for it on other machines."""
    changes, way = PLANS[name]
    plan, out = plan_of(changes), folder / "run"
    with _fixed_noise():
        if way == "resumed":
            _interrupted(plan, out)
            local.resume(out)
        elif way == "lost":
            with _failing("lab", 2):
                local.run(plan, out)
        else:
            local.run(plan, out)
    summary = json.loads((out / "summary.json").read_text())
    return {
        "plan_sha256": summary["plan_sha256"],
        "adapter_sha256": summary["adapter_sha256"],
        "final_heldout_loss": summary["final_heldout_loss"]["mean"],
        "lost_sites": sorted(summary["lost_sites"]),
    }


def arithmetic() -> str:
    """A digest of what this machine's float32 kernels give: where it is another, so are the last
    bits of every adapter, and hashes say nothing."""
    torch.manual_seed(1)
    layer = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.LayerNorm(256), torch.nn.Linear(256, 64)
    )
    batch = torch.randn(96, 64)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(batch), torch.arange(96) % 64)
        loss.backward()
        optimizer.step()
    found = b"".join(one.detach().numpy().tobytes() for one in layer.parameters())
    found += np.linalg.svd(layer[0].weight.detach().numpy())[1].tobytes()
    return hashlib.sha256(found).hexdigest()


@contextmanager
def _fixed_noise() -> Iterator[None]:
    """Streams of noise and of sampling that follow from what they are for, and nothing else."""

    def stream(label: str, about: bytes) -> Stream:
        return Stream(hashlib.sha256(b"golden" + about).digest(), label, 0)

    with (
        mock.patch.object(site_round, "fresh_stream", stream),
        mock.patch.object(dp_sgd, "fresh_stream", stream),
    ):
        yield


def _interrupted(plan: Any, out: Path) -> None:
    append: Callable[..., None] = RunFolder.append_metrics

    def stop(self: RunFolder, rows: Any) -> None:
        append(self, rows)
        raise KeyboardInterrupt

    with mock.patch.object(RunFolder, "append_metrics", stop):
        try:
            local.run(plan, out)
        except KeyboardInterrupt:
            return
    raise AssertionError("the run was not interrupted")


@contextmanager
def _failing(site: str, number: int) -> Iterator[None]:
    train = LocalTrainer.train

    def fail(self: Any, state: Any, round_number: int, *more: Any) -> Any:
        if self._site == site and round_number == number:
            raise RoundFailed("the disk is gone")
        return train(self, state, round_number, *more)

    with mock.patch.object(LocalTrainer, "train", fail):
        yield
