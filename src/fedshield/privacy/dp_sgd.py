"""A training row is the unit: DP-SGD on the adapter (Abadi et al., CCS 2016, arXiv 1607.00133).

Each step draws its rows by Poisson sampling, every row by itself and from randomness that nobody
else has, so that the accountant's assumption is true. A row's gradient on the adapter is taken
apart from the others' by hooks on the adapter's linear layers: for y = W x it is the sum over
tokens of dy x^T. It is cut to `clip_norm` over all trained tensors together, as whole numbers of
clip_norm / 2^20, towards zero, and its norm is counted in whole numbers; rows are summed, discrete
Gaussian noise is added, and the sum is divided by the expected number of rows, which tells nothing.

All that happens after that (optimiser, averaging, pruning, error feedback, encryption) only works
on what is private already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fedshield.crypto.rlwe.sampling import Stream
from fedshield.errors import ModelError
from fedshield.model.chat import Tokens
from fedshield.model.lora_xs import CoreB
from fedshield.model.loss import row_losses
from fedshield.privacy.discrete_gaussian import DiscreteGaussian, fresh_stream

#: A clip norm is this many steps.
SENSITIVITY = 1 << 20
#: Room for the rounding of norms and products in float32; the count in whole numbers decides.
_ROOM = 1 - 2.0**-12


@dataclass(frozen=True, eq=False)
class BoundedSum:
    """The sum of the gradients of some rows, in steps of clip_norm / 2^20, each row's of L2 norm at
    most 2^20 of them. `values`: int64, (num_values,), on the parameters' device."""

    values: torch.Tensor = field(repr=False)
    num_rows: int

    def __add__(self, other: BoundedSum) -> BoundedSum:
        return BoundedSum(self.values + other.values, self.num_rows + other.num_rows)


def bounded_sum(gradients: Sequence[torch.Tensor], clip_norm: float) -> BoundedSum:
    """`gradients`: for each parameter (rows, *its shape). A row whose gradient is not finite, or
    whose whole numbers are longer than they may be in spite of all, counts as zeros."""
    norms = _row_sums(gradient.double().square() for gradient in gradients).sqrt()
    factors = _ROOM * SENSITIVITY / torch.clamp(norms, min=clip_norm)
    factors = torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))

    def whole() -> Iterator[torch.Tensor]:
        # Made twice rather than kept: eight bytes for each value of each row.
        for gradient in gradients:
            finite = torch.nan_to_num(gradient.flatten(1).double(), 0.0, 0.0, 0.0)
            yield torch.trunc(finite * factors[:, None])

    # Below 2^53 in all: float64 counts exactly.
    kept = _row_sums(one.square() for one in whole()) <= float(SENSITIVITY) ** 2
    # So are sums of fewer than 2^32 rows.
    parts = [(one * kept[:, None]).sum(dim=0).long() for one in whole()]
    return BoundedSum(torch.cat(parts), int(norms.numel()))


def _row_sums(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Summed over all but the first dimension, and over the tensors: (rows,)."""
    return torch.stack([one.flatten(1).sum(dim=1) for one in tensors]).sum(dim=0)


def poisson_rows(num_rows: int, rate: float, stream: Stream) -> list[int]:
    """Each of so many rows with chance `rate`, to 64 bits, below rather than above."""
    if rate >= 1:
        return list(range(num_rows))
    words = stream.words(num_rows)
    return [int(at) for at in np.flatnonzero(words < np.uint64(int(rate * 2.0**64)))]


class PrivateGradient:
    """One step's noised gradient after another, of one site in one round.

    `parameters`: what is trained; `rate`: the sampling rate; `batch_size`: rows of one pass;
    `of_loss`: padding token, device, whether logits can be cut; `took`: called with the rows of
    each pass, before it.
    The model is in evaluation mode: with dropout, one row's presence would move what is dropped
    of the others, and the clip would not bound that. Raises `ModelError` for a parameter of a
    layer whose rows cannot be told apart.
    """

    may_drop_out = False
    must_be_finite = False

    def __init__(
        self,
        model: Any,
        parameters: Sequence[nn.Parameter],
        rows: Sequence[Tokens],
        *,
        clip_norm: float,
        noise_multiplier: float,
        rate: float,
        batch_size: int,
        of_loss: tuple[int, str, bool],
        about: bytes,
        took: Callable[[Sequence[Tokens]], None] = lambda _: None,
    ) -> None:
        self._took = took
        self._model, self._parameters, self._rows = model, list(parameters), rows
        self._clip_norm, self._rate, self._batch_size = clip_norm, rate, batch_size
        self._loss = of_loss
        self._noise = DiscreteGaussian(noise_multiplier * SENSITIVITY)
        self._sampling = fresh_stream("rows", about)
        self._noising = fresh_stream("example noise", about)
        self._layers = _layers_of(model, self._parameters)

    def step(self) -> float | None:
        """Put the noised mean gradient where the optimiser looks for it. Returns the mean loss of
        the rows that were drawn, which is not noised and stays at the site; None without rows."""
        drawn = poisson_rows(len(self._rows), self._rate, self._sampling)
        size = sum(parameter.numel() for parameter in self._parameters)
        total = BoundedSum(
            torch.zeros(size, dtype=torch.long, device=self._parameters[0].device), 0
        )
        losses = 0.0
        for start in range(0, len(drawn), self._batch_size):
            batch = [self._rows[at] for at in drawn[start : start + self._batch_size]]
            self._took(batch)
            found, loss = self._gradients(batch)
            total = total + bounded_sum(found, self._clip_norm)
            losses += loss
        noise = torch.from_numpy(self._noise.draw(size, self._noising)).to(total.values.device)
        expected = self._rate * len(self._rows)
        mean = (total.values + noise).double() * (self._clip_norm / (SENSITIVITY * expected))
        at = 0
        for parameter in self._parameters:
            part = mean[at : at + parameter.numel()].view(parameter.shape)
            parameter.grad = part.to(parameter.dtype)
            at += parameter.numel()
        return losses / len(drawn) if drawn else None

    def _gradients(self, batch: list[Tokens]) -> tuple[list[torch.Tensor], float]:
        """Each row's gradient of its own mean loss, for each parameter, and the summed loss."""
        found: dict[int, torch.Tensor] = {}
        with _caught(self._layers, len(batch), found):
            loss = row_losses(self._model, batch, *self._loss).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self._parameters:
            parameter.grad = None
            if id(parameter) not in found:
                raise ModelError(
                    "privacy.unit example: expected every trained tensor to be used in a pass, got "
                    f"one of shape {tuple(parameter.shape)} that was not; choose other "
                    "adapter.targets"
                )
        return [found[id(parameter)] for parameter in self._parameters], float(loss.detach())


def _layers_of(model: Any, parameters: Sequence[nn.Parameter]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    wanted = {id(parameter) for parameter in parameters}
    for name, module in model.named_modules():
        own = {id(one) for one in module.parameters(recurse=False)} & wanted
        if not own:
            continue
        if not isinstance(module, nn.Linear | CoreB):
            raise ModelError(
                f"privacy.unit example: expected linear adapter layers, got {name} "
                f"({type(module).__name__}); choose other adapter.targets"
            )
        layers.append(module)
        wanted -= own
    if wanted:
        raise ModelError(
            f"privacy.unit example: expected every trained tensor in a layer, got {len(wanted)} "
            "elsewhere; choose other adapter.targets"
        )
    return layers


@contextmanager
def _caught(
    layers: Sequence[nn.Module], num_rows: int, found: dict[int, torch.Tensor]
) -> Iterator[None]:
    """Within, a backward pass fills `found`: id of a parameter -> (rows, *its shape)."""

    def forward(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            return
        x = inputs[0].detach()
        if x.ndim != 3 or x.shape[0] != num_rows:
            raise ModelError(
                f"privacy.unit example: expected layers that see (rows, tokens, width) of "
                f"{num_rows} rows, got {tuple(x.shape)}; choose other adapter.targets"
            )

        def backward(gradient: torch.Tensor) -> None:
            above, weight = gradient, None
            if isinstance(module, CoreB):
                basis: Any = module.basis
                above, weight = gradient @ basis.to(gradient.dtype), module.core
            else:
                weight = module.weight
            each = above.float().transpose(1, 2) @ x.float()
            found[id(weight)] = found[id(weight)] + each if id(weight) in found else each

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    handles = [layer.register_forward_hook(forward) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
