"""Factors of a `core` adapter from the mean gradient on public text (`adapter.factors: gradient`).

The gradient G (out x in) of the mean loss with respect to a base weight says where a first step
of full fine-tuning would go; U and V are its leading singular vectors. Source: LoRA-SB (arXiv
2411.19557); federated: Fed-SB (arXiv 2502.15436), which takes it from private data with noise.
Here it is a public rule of base model, plan and package: nothing is sent, nothing can leak. R
still starts at zero: a start at the gradient's own R would move the model on public text.

No G is ever held: it is a sum over tokens of (gradient at the output) (input)^T, so a pass over
the rows gives any product of it. Passes find its range by a random sketch and then its part in
that range (Halko, Martinsson, Tropp, arXiv 0909.4061). Sums are float64; activations and their
gradients are in the base's precision, and so differ in their last bits between kinds of machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedshield.data.public import public_rows
from fedshield.errors import ModelError
from fedshield.model.adapter import target_layers
from fedshield.model.base import BaseModel
from fedshield.model.chat import Tokens
from fedshield.model.check import check_ids
from fedshield.model.lora_xs import Factors, check_rank, with_signs
from fedshield.model.loss import can_cut_logits, loss_sum
from fedshield.plan.schema import Plan
from fedshield.seeds import derive

#: Columns of the sketch beyond the rank.
OVERSAMPLING = 8
#: Each makes the sketch's range closer to G's by two passes more.
POWER_ITERATIONS = 1
PASSES = 2 * (1 + POWER_ITERATIONS)

#: Takes a layer's name, its input (tokens, in) and the gradient at its output (tokens, out).
Take = Callable[[str, torch.Tensor, torch.Tensor], None]


def public_factors(
    plan: Plan, base: BaseModel, say: Callable[[str], None] = lambda _: None
) -> Factors | None:
    """What `AdapterHost` is given for this plan: factors by layer for `gradient`, else None. The
    tokenizer's template is settled. Raises `ModelError` and `DataError`."""
    if plan.adapter.factors != "gradient":
        return None
    say("finding the adapter's factors on the built-in samples")
    rows = public_rows(base.tokenizer, plan.seed, plan.training.max_length)
    check_ids(base, rows)
    return gradient_factors(plan, base.model, rows, base.pad_token_id, base.device)


def gradient_factors(
    plan: Plan, model: Any, rows: Sequence[Tokens], pad_token: int, device: str
) -> Factors:
    """U (out, rank) and V (in, rank) of each target layer of a base model without adapters,
    float64, orthonormal, largest singular value first, signs as in `lora_xs.factors`. Raises
    `ModelError` for a rank that a layer is too small for and for gradients that are not finite."""
    rank = plan.adapter.rank
    layers = target_layers(model, plan.adapter)
    ordered = sorted(rows, key=lambda tokens: len(tokens.input_ids))
    size = plan.training.batch_size
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    # (in, width): what G is multiplied by from the right.
    right: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        out_size, in_size = _sizes(layer)
        check_rank(name, out_size, in_size, rank)
        width = min(rank + OVERSAMPLING, out_size, in_size)
        seed = derive(plan.seed, "factors", name)
        normal = np.random.Generator(np.random.Philox(seed)).standard_normal((in_size, width))
        right[name] = torch.from_numpy(normal).to(device)
    model.eval()
    for turn in range(1 + POWER_ITERATIONS):
        sketch = _products(model, layers, batches, pad_token, device, right, left=False)
        basis = {name: torch.linalg.qr(product)[0] for name, product in sketch.items()}
        part = _products(model, layers, batches, pad_token, device, basis, left=True)
        if turn < POWER_ITERATIONS:
            right = {name: torch.linalg.qr(product.T)[0] for name, product in part.items()}
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, product in part.items():
        if not torch.isfinite(product).all():
            raise ModelError(
                f"adapter.factors gradient: expected finite gradients of {name} on the built-in "
                "samples, got others; set training.precision: fp32, or use factors svd"
            )
        within, _, vectors = torch.linalg.svd(product, full_matrices=False)
        found[name] = with_signs(basis[name] @ within[:, :rank], vectors[:rank].T)
    return found


def _products(
    model: Any,
    layers: dict[str, Any],
    batches: Sequence[Sequence[Tokens]],
    pad_token: int,
    device: str,
    factors: dict[str, torch.Tensor],
    *,
    left: bool,
) -> dict[str, torch.Tensor]:
    """One pass: G F (out, width) of each layer's F (in, width), or with `left` F^T G (width, in)
    of F (out, width); float64."""
    sums: dict[str, torch.Tensor] = {}
    for name, factor in factors.items():
        out_size, in_size = _sizes(layers[name])
        width = factor.shape[1]
        sums[name] = factor.new_zeros((width, in_size) if left else (out_size, width))

    def take(name: str, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        x, g = inputs.to(torch.float64), gradient.to(torch.float64)
        # Never (out, in): one side is made narrow first.
        if left:
            sums[name] += (g @ factors[name]).T @ x
        else:
            sums[name] += g.T @ (x @ factors[name])

    cut_logits = can_cut_logits(model)
    num_tokens = sum(tokens.num_response for batch in batches for tokens in batch)
    # The plain form of attention: the fast ones' gradients need not repeat bit for bit on a GPU.
    with _watched(model, layers, take), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            loss = loss_sum(model, batch, pad_token, device, cut_logits) / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
    return sums


@contextmanager
def _watched(model: Any, layers: dict[str, Any], take: Take) -> Iterator[None]:
    """While it lasts, every backward pass through the frozen model shows `take` what makes up
    the layers' gradients."""

    def begin(module: Any, arguments: Any, output: torch.Tensor) -> None:
        output.requires_grad_(True)  # else nothing of a frozen model would have a gradient

    def watch(name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def forward(module: Any, arguments: Any, output: torch.Tensor) -> None:
            inputs = arguments[0].detach().flatten(0, -2)
            output.register_hook(
                lambda gradient: take(name, inputs, gradient.flatten(0, -2))  # type: ignore[no-untyped-call]
            )

        return forward

    handles = [model.get_input_embeddings().register_forward_hook(begin)]
    handles += [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sizes(layer: Any) -> tuple[int, int]:
    """(out, in) of a linear layer; GPT-2's keeps its weight as (in, out)."""
    if isinstance(layer, torch.nn.Linear):
        return layer.out_features, layer.in_features
    in_size, out_size = layer.weight.shape
    return int(out_size), int(in_size)
