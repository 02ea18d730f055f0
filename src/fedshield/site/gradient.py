"""Where a step's gradient comes from: one small interface behind the one training loop.

`Backprop` is the usual one; `privacy.dp_sgd.PrivateGradient` protects each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from fedshield.model.chat import Tokens
from fedshield.model.loss import loss_sum


class Gradient(Protocol):
    """One step's gradient after another, of one site in one round.

    `may_drop_out`: whether the model trains with dropout; `must_be_finite`: whether a loss that is
    not ends the round (where rows are protected, one without a finite gradient counts as zeros).
    """

    may_drop_out: bool
    must_be_finite: bool

    def step(self) -> float | None:
        """Leave the gradient in `.grad` of the trained parameters. Returns the mean loss of the
        rows; None where there were none."""


class Backprop:
    """The gradient of the mean loss over all response tokens of the next batches.

    Args:
        model: the base model with its adapter.
        batches: what the round trains on, in its order.
        accumulation: batches of one step.
        of_loss: padding token, device, whether logits can be cut (`model.loss.loss_sum`).
        took: called with the rows of each pass, before it.
    """

    may_drop_out = True
    must_be_finite = True

    def __init__(
        self,
        model: Any,
        batches: Iterator[list[Tokens]],
        accumulation: int,
        of_loss: tuple[int, str, bool],
        took: Callable[[Sequence[Tokens]], None],
    ) -> None:
        self._model, self._batches, self._accumulation = model, batches, accumulation
        self._of_loss, self._took = of_loss, took

    def step(self) -> float:
        batches = [next(self._batches) for _ in range(self._accumulation)]
        num_tokens = sum(tokens.num_response for batch in batches for tokens in batch)
        total = 0.0
        for batch in batches:
            self._took(batch)
            loss = loss_sum(self._model, batch, *self._of_loss) / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total
