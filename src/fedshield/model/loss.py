"""The loss of a batch of tokenised rows: of local training, of evaluating, of public text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from fedshield.model.chat import Tokens


def can_cut_logits(model: Any) -> bool:
    """Whether the base model can leave out the logits of a row's first tokens."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def loss_sum(
    model: Any, batch: Sequence[Tokens], pad_token: int, device: str, cut_logits: bool
) -> torch.Tensor:
    """Negative log-likelihood summed over the response tokens of the batch, a scalar. Every row
    has a response token."""
    logits, targets = _responses(model, batch, pad_token, device, cut_logits)
    wanted = targets != -100
    return torch.nn.functional.cross_entropy(
        logits[:, :-1][wanted].float(), targets[wanted], reduction="sum"
    )


def row_losses(
    model: Any, batch: Sequence[Tokens], pad_token: int, device: str, cut_logits: bool
) -> torch.Tensor:
    """Mean negative log-likelihood of each row's response tokens: (len(batch),)."""
    logits, targets = _responses(model, batch, pad_token, device, cut_logits)
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return each.sum(dim=1) / (targets != -100).sum(dim=1)


def _responses(
    model: Any, batch: Sequence[Tokens], pad_token: int, device: str, cut_logits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, places + 1, vocabulary), the last of no use, and targets (rows, places), -100
    where there is none."""
    width = max(len(tokens.input_ids) for tokens in batch)
    ids = torch.full((len(batch), width), pad_token, dtype=torch.long)
    labels = torch.full((len(batch), width), -100, dtype=torch.long)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for place, tokens in enumerate(batch):
        length = len(tokens.input_ids)
        ids[place, :length] = torch.tensor(tokens.input_ids)
        labels[place, :length] = torch.tensor(tokens.labels)
        mask[place, :length] = 1
    ids, labels, mask = (tensor.to(device) for tensor in (ids, labels, mask))
    # Logits over the vocabulary are the largest tensor of a small model's step: make them
    # from the batch's first answer on only, where the model can.
    first = int((labels != -100).any(dim=0).nonzero()[0])
    keep = {"logits_to_keep": width - first + 1} if cut_logits else {}
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
    targets = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    return logits, targets
