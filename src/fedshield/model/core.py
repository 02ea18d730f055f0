"""`core` adapters: a trainable r x r matrix between frozen factors of each base weight.

The base weight W (out x in) has the truncated SVD U S V^T; the adapter adds scaling * U R V^T
with U (out x r) and V (in x r) orthonormal and frozen, and only R (r x r) is trained and sent.
Since all sites have the same U and V, the mean of the products is the product of the mean: exact.
As ordinary LoRA: A = V^T, B = U R. Source: LoRA-XS (arXiv 2405.17604); federated: Fed-SB (arXiv
2502.15436).

Every site computes the factors from the same base weights, in float64 and with a rule for signs;
a digest of them, rounded, is part of the adapter's spec, so that sites whose linear algebra gave
other factors find out instead of adding what does not belong together.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from fedshield.errors import ModelError

#: Factors are compared after rounding to this step: far above float64's differences between
#: machines, far below what would matter.
_DIGEST_STEP = 2.0**-10


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


def install(model: Any, rank: int) -> str:
    """Turn every LoRA layer of a PEFT model into a core layer. Returns a digest of the factors
    ('' on the meta device, where there are no weights). Raises `ModelError` for a rank that a
    layer is too small for."""
    digest = hashlib.sha256(b"fedshield core factors 1")
    meta = False
    for name, layer in sorted(model.named_modules()):
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        weight = layer.get_base_layer().weight
        a = layer.lora_A["default"].weight  # (rank, in)
        out_size, in_size = layer.out_features, layer.in_features
        if rank > min(out_size, in_size):
            raise ModelError(
                f"adapter.rank: expected at most {min(out_size, in_size)} for {name} with "
                f"adapter.train core, got {rank}; lower it, or leave that layer out"
            )
        if weight.device.type == "meta":
            meta = True
            layer.lora_B["default"] = CoreB(torch.empty(out_size, rank, device="meta"), rank)
        else:
            if weight.shape != (out_size, in_size):
                raise ModelError(
                    f"adapter.train core: expected plain weights of {name}, (out, in), got "
                    f"{tuple(weight.shape)}; use an unquantised base of linear layers"
                )
            u, v = factors(weight, rank)
            for one in (u, v):
                steps = torch.round(one / _DIGEST_STEP).to(torch.int16)
                digest.update(steps.cpu().numpy().astype("<i2").tobytes())
            a.data = v.T.to(a.dtype).contiguous()
            basis = u.to(device=a.device, dtype=torch.float32)
            layer.lora_B["default"] = CoreB(basis, rank)
        a.requires_grad_(False)
    return "" if meta else digest.hexdigest()


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
    u, v = (long, short) if tall else (short, long)
    largest = v.abs().argmax(dim=0)
    signs = torch.sign(v[largest, torch.arange(rank, device=v.device)])
    return u * signs, v * signs


def core_of(b: np.ndarray[Any, Any], basis: torch.Tensor) -> np.ndarray[Any, Any]:
    """R from an exported B = U R: U^T B, float32."""
    u = basis.detach().cpu().numpy().astype(np.float64)
    found: np.ndarray[Any, Any] = (u.T @ b.astype(np.float64)).astype(np.float32)
    return found
