"""Membership inference on the released adapter: was this row trained on?

Five signals for a row, each higher where a model was trained on it:
`loss` (Yeom et al., CSF 2018); `base`: the loss under the base model less that under the adapter
(reference attack with the pre-trained model, Carlini et al., USENIX Security 2021); `min-k`: the
mean of the 20 % least likely tokens (Shi et al., arXiv 2310.16789); `zlib`: loss in bits that zlib
needs for the text (Carlini et al., 2021); `shadow`: the loss under adapters trained by the same
plan without the row, less that under the released one (Watson et al., arXiv 2111.08440; the
offline form of LiRA, Carlini et al., arXiv 2112.03570, without its variances, for which there
are too few).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedshield.audit.stats import Measure, auc_measure, tpr_at_fpr
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.model.chat import Tokens
from fedshield.types import AdapterState, Float64

MIN_K = 0.2
SIGNALS = ("loss", "base", "min-k", "zlib", "shadow")


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Log-likelihoods of one row's response tokens, float64, (num_response,), and the bytes that
    zlib needs for the response."""

    tokens: Float64 = field(repr=False)
    zlib_bytes: int

    @property
    def mean(self) -> float:
        """Negative log-likelihood per token."""
        return -float(self.tokens.mean())

    @property
    def least(self) -> float:
        """The mean log-likelihood of the least likely tokens."""
        count = max(1, round(MIN_K * self.tokens.size))
        return float(np.sort(self.tokens)[:count].mean())


def row_losses(
    base: BaseModel,
    host: AdapterHost,
    state: AdapterState,
    rows: Sequence[Tokens],
    batch_size: int = 8,
) -> list[RowLosses]:
    """Of each row under the base model with this adapter, in the order of `rows`."""
    host.write(state)
    model: Any = host.model
    model.eval()
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids))
    found: dict[int, RowLosses] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        width = max(len(rows[place].input_ids) for place in places)
        ids = torch.full((len(places), width), base.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(places), width), dtype=torch.long)
        for line, place in enumerate(places):
            length = len(rows[place].input_ids)
            ids[line, :length] = torch.tensor(rows[place].input_ids)
            mask[line, :length] = 1
        with torch.inference_mode():
            logits = model(
                input_ids=ids.to(base.device), attention_mask=mask.to(base.device), use_cache=False
            ).logits
        for line, place in enumerate(places):
            labels = torch.tensor(rows[place].labels)
            wanted = (labels != -100).nonzero().flatten()
            wanted = wanted[wanted > 0]
            likely = torch.log_softmax(logits[line, wanted - 1].float(), dim=-1)
            tokens = likely.gather(1, labels[wanted].to(base.device)[:, None])[:, 0]
            text = base.tokenizer.decode(labels[wanted].tolist())
            found[place] = RowLosses(
                tokens.double().cpu().numpy(), len(zlib.compress(text.encode("utf-8", "replace")))
            )
    return [found[place] for place in range(len(rows))]


def signals(
    released: Sequence[RowLosses],
    untrained: Sequence[RowLosses],
    shadow: Sequence[float] | None = None,
) -> dict[str, Float64]:
    """Signal -> float64, (rows,). `untrained`: the same rows under the base model; `shadow`: their
    mean losses under adapters that were trained without them."""
    found = {
        "loss": [-one.mean for one in released],
        "base": [ref.mean - one.mean for one, ref in zip(released, untrained, strict=True)],
        "min-k": [one.least for one in released],
        "zlib": [float(one.tokens.sum()) / one.zlib_bytes for one in released],
    }
    if shadow is not None:
        found["shadow"] = [ref - one.mean for one, ref in zip(released, shadow, strict=True)]
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


@dataclass(frozen=True)
class Membership:
    """How well one signal tells members from others."""

    signal: str
    auc: Measure
    tpr_at_1_percent: Measure


def told_apart(
    members: Mapping[str, Float64], others: Mapping[str, Float64]
) -> tuple[Membership, ...]:
    """Each signal on rows that were trained on and rows that were not."""
    return tuple(
        Membership(
            name, auc_measure(members[name], others[name]), tpr_at_fpr(members[name], others[name])
        )
        for name in members
    )
