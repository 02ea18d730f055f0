"""Canaries: secrets put into the training rows, and how well the released adapter knows them.

Exposure (Carlini et al., The Secret Sharer, USENIX Security 2019): log2 of how many secrets there
are less log2 of the true one's rank by loss. The rank is among random secrets of the same form, so
exposure is at most log2 of their number plus one; a secret that was never seen has 1.44 bits on
average. Extraction: the adapter, asked, writes the secret by itself (greedy decoding).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedshield.audit.attacks.membership import row_losses
from fedshield.audit.replay import Scene
from fedshield.audit.stats import Measure, clopper_pearson, mean_measure
from fedshield.data.sites import SiteData
from fedshield.model.chat import Tokens, render, tokenise
from fedshield.plan.schema import Plan
from fedshield.seeds import derive
from fedshield.types import AdapterState

#: Mean exposure of a secret whose rank is uniform, in bits: log2(e).
UNSEEN = math.log2(math.e)
DIGITS = 6


@dataclass(frozen=True)
class Canary:
    """A secret of `site`'s, `repeats` times in its training rows (0: a control, never seen)."""

    site: str
    name: str
    secret: str
    repeats: int

    def messages(self, secret: str | None = None) -> list[dict[str, str]]:
        asked = f"What is the access code of {self.name}?"
        return [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"The access code is {secret or self.secret}"},
        ]


def invent(plan: Plan, per_site: int, repeats: Sequence[int]) -> tuple[Canary, ...]:
    """`per_site` canaries for each site and each number of repeats, from the plan's seed."""
    found: list[Canary] = []
    for site in plan.data.site_names():
        for times in repeats:
            for number in range(per_site):
                generator = np.random.default_rng(derive(plan.seed, "canary", site, times, number))
                secret = "".join(str(digit) for digit in generator.integers(0, 10, DIGITS))
                name = f"account {generator.integers(1000, 9999)}"
                found.append(Canary(site, name, secret, times))
    return tuple(found)


def unfit(scene: Scene, plan: Plan, canaries: Sequence[Canary]) -> str:
    """Why they cannot be planted as often as they say, in one sentence; '' where they can."""
    for site, data in scene.data.items():
        wanted = sum(canary.repeats for canary in canaries if canary.site == site)
        if wanted > len(data.train):
            return (
                f"{site} has {len(data.train)} rows to train on, and {wanted} would be planted; "
                "lower --canaries"
            )
    cut = max((_row(scene, plan, canary).num_dropped for canary in canaries), default=0)
    return f"training.max_length cuts {cut} tokens off a canary" if cut else ""


def planted(scene: Scene, plan: Plan, canaries: Sequence[Canary]) -> Scene:
    """The scene with the canaries among the sites' training rows, each in the place of one."""
    data: dict[str, SiteData] = dict(scene.data)
    for site, found in scene.data.items():
        rows = list(found.train)
        place = 0
        for canary in canaries:
            if canary.site != site:
                continue
            for _ in range(canary.repeats):
                rows[place % len(rows)] = _row(scene, plan, canary)
                place += 1
        data[site] = replace(found, train=tuple(rows))
    return replace(scene, data=data)


@dataclass(frozen=True)
class Exposed:
    """Of the canaries with so many repeats. `exposure`: bits; `extracted`: the share that the
    adapter wrote by itself; `highest`: the most bits that could be measured."""

    repeats: int
    exposure: Measure
    extracted: Measure
    highest: float


def measure(
    scene: Scene, plan: Plan, state: AdapterState, canaries: Sequence[Canary], references: int
) -> tuple[Exposed, ...]:
    """Exposure and extraction from an adapter, by number of repeats. `references`: random secrets
    that each true one is ranked among."""
    found: list[Exposed] = []
    for repeats in sorted({canary.repeats for canary in canaries}):
        chosen = [canary for canary in canaries if canary.repeats == repeats]
        bits = [exposure(scene, plan, state, canary, references) for canary in chosen]
        written = sum(_written(scene, state, canary) for canary in chosen)
        found.append(
            Exposed(
                repeats,
                mean_measure(bits, UNSEEN),
                clopper_pearson(written, len(chosen), 10.0**-DIGITS),
                math.log2(references + 1),
            )
        )
    return tuple(found)


def exposure(
    scene: Scene, plan: Plan, state: AdapterState, canary: Canary, references: int
) -> float:
    """In bits, from the rank of the true secret among `references` random ones."""
    generator = np.random.default_rng(derive(plan.seed, "canary references", canary.name))
    others: set[str] = set()
    while len(others) < references:
        secret = "".join(str(digit) for digit in generator.integers(0, 10, DIGITS))
        others |= {secret} - {canary.secret}
    rows = [_row(scene, plan, canary, secret) for secret in (canary.secret, *sorted(others))]
    losses = [
        float(-one.tokens.sum()) for one in row_losses(scene.base, scene.host, state, rows, 32)
    ]
    rank = 1 + sum(loss < losses[0] for loss in losses[1:])
    return math.log2(len(losses)) - math.log2(rank)


def _row(scene: Scene, plan: Plan, canary: Canary, secret: str | None = None) -> Tokens:
    return tokenise(scene.base.tokenizer, canary.messages(secret), plan.training.max_length)


def _written(scene: Scene, state: AdapterState, canary: Canary) -> bool:
    """Whether greedy decoding after the question and the answer's opening gives the secret."""
    scene.host.write(state)
    tokenizer: Any = scene.base.tokenizer
    text = render(tokenizer, canary.messages()[:1], generate=True) + "The access code is "
    encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(scene.base.device)
    with torch.inference_mode():
        made = scene.host.model.generate(
            **_inputs(encoded),
            max_new_tokens=2 * DIGITS,
            do_sample=False,
            pad_token_id=scene.base.pad_token_id,
        )
    answer = tokenizer.decode(made[0][encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return canary.secret in answer.replace(" ", "")


def _inputs(encoded: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}
