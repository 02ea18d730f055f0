"""`core` adapters: a trainable r x r matrix between frozen factors of each base weight.

The base weight W (out x in) has the truncated SVD U S V^T; the adapter adds scaling * U R V^T
with U (out x r) and V (in x r) orthonormal and frozen, and only R (r x r) is trained and sent.
U and V can also be those of a gradient on public text instead (`site/gradient_factors.py`).
Since all sites have the same U and V, the mean of the products is the product of the mean: exact.
As ordinary LoRA: A = V^T, B = U R. Source: LoRA-XS (arXiv 2405.17604); federated: Fed-SB (arXiv
2502.15436).

Every site computes the factors from the same base weights, in float64 and with a rule for signs;
a digest of them, rounded, is part of the adapter's spec, so that sites whose linear algebra gave
other factors find out instead of adding what does not belong together. The rounding hides what
float64 differs by between machines; it cannot hide what float32 gradients differ by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedshield.errors import ModelError

#: Factors are compared after rounding to this step: far above float64's differences between
#: machines, far below what would matter.
_DIGEST_STEP = 2.0**-10
#: What PEFT puts before the names of the base model's layers.
_PEFT_PREFIX = "base_model.model."

#: The base model's layer -> U (out, rank) and V (in, rank).
Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class CoreB(nn.Module):
    """Stands where LoRA's B is: x -> (x R^T) U^T. `core`: R, (rank, rank), trained; `basis`: U,
    (out, rank), frozen."""

    def __init__(self, basis: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("basis", basis, persistent=False)
        device = basis.device
        self.core = nn.Parameter(torch.zeros(rank, rank, dtype=torch.float32, device=device))

    @property
    def weight(self) -> torch.Tensor:
        """B = U R, (out, rank): what PEFT merges and exports."""
        basis: Any = self.basis
        return basis @ self.core  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        basis: Any = self.basis
        return nn.functional.linear(nn.functional.linear(x, self.core), basis)


def install(model: Any, rank: int, given: Factors | None = None) -> str:
    """Turn every LoRA layer of a PEFT model into a core layer. `given`: the factors of each; by
    default those of its weight. Returns a digest of the factors ('' on the meta device, where
    there are no weights). Raises `ModelError` for a rank that a layer is too small for."""
    digest = hashlib.sha256(b"fedshield core factors 1")
    meta = False
    for name, layer in sorted(model.named_modules()):
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        weight = layer.get_base_layer().weight
        a = layer.lora_A["default"].weight  # (rank, in)
        out_size, in_size = layer.out_features, layer.in_features
        check_rank(name, out_size, in_size, rank)
        if weight.device.type == "meta":
            meta = True
            layer.lora_B["default"] = CoreB(torch.empty(out_size, rank, device="meta"), rank)
        else:
            if given is not None:
                u, v = given[name.removeprefix(_PEFT_PREFIX)]
            elif weight.shape == (out_size, in_size):
                u, v = factors(weight, rank)
            else:
                raise ModelError(
                    f"adapter.train core: expected plain weights of {name}, (out, in), got "
                    f"{tuple(weight.shape)}; use an unquantised base of linear layers"
                )
            for one in (u, v):
                steps = torch.round(one / _DIGEST_STEP).to(torch.int16)
                digest.update(steps.cpu().numpy().astype("<i2").tobytes())
            a.data = v.T.to(a.dtype).contiguous()
            basis = u.to(device=a.device, dtype=torch.float32)
            layer.lora_B["default"] = CoreB(basis, rank)
        a.requires_grad_(False)
    return "" if meta else digest.hexdigest()


def check_rank(name: str, out_size: int, in_size: int, rank: int) -> None:
    """Raises `ModelError` if a layer has fewer singular vectors than the adapter wants."""
    if rank > min(out_size, in_size):
        raise ModelError(
            f"adapter.rank: expected at most {min(out_size, in_size)} for {name} with "
            f"adapter.train core, got {rank}; lower it, or leave that layer out"
        )


def factors(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """U (out, rank) and V (in, rank) of the largest singular values, float64, orthonormal; in
    each column of V the entry of largest magnitude is positive."""
    w = weight.detach().to(torch.float64)
    tall = w.shape[0] >= w.shape[1]
    gram = w.T @ w if tall else w @ w.T
    _, vectors = torch.linalg.eigh(gram)  # ascending
    short = vectors[:, -rank:].flip(1)
    long = w @ short if tall else w.T @ short
    # Orthonormal also where singular values are small or equal.
    long, triangle = torch.linalg.qr(long)
    long = long * torch.sign(torch.diagonal(triangle))
    return with_signs(*((long, short) if tall else (short, long)))


def with_signs(u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular vectors (columns) with the one choice that is left made by a rule: in each column
    of V the entry of largest magnitude is positive."""
    largest = v.abs().argmax(dim=0)
    signs = torch.sign(v[largest, torch.arange(v.shape[1], device=v.device)])
    return u * signs, v * signs
