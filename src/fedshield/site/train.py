"""One site's local work: a small, readable training loop over its tokenised rows.

The optimiser is new in every round, as in the paper; the place in the data goes on from where
the round before stopped. Everything random (which rows, their order, dropout) is derived from the
site's own secret, so a round repeats exactly on one machine, whatever ran before, and nobody else
can say how it went. Where a row is protected (`privacy.unit: example`), rows and noise are drawn
from the operating system's randomness and do not repeat.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fedshield import interrupt
from fedshield.data.sites import SiteData
from fedshield.errors import ModelError, RoundFailed
from fedshield.model.adapter import AdapterHost
from fedshield.model.chat import Tokens
from fedshield.model.loss import can_cut_logits, loss_sum
from fedshield.plan.schema import Plan, learning_rate
from fedshield.privacy.dp_sgd import PrivateGradient
from fedshield.privacy.guarantee import sampling_rate
from fedshield.seeds import SiteRandomness
from fedshield.site.gradient import Backprop, Gradient
from fedshield.site.settings import privacy_terms
from fedshield.types import AdapterState, AdapterUpdate, Float32
from fedshield.update.prune import trained_tensors

#: Called after every optimiser step with (step, steps, loss).
OnStep = Callable[[int, int, float], None]
#: Called with the round and the rows of every pass that moves the adapter, before it.
OnBatch = Callable[[int, Sequence[Tokens]], None]


class LocalTrainer:
    """A site's `LocalWork`, on a base model that it may share with other sites. `randomness`: the
    site's, of this run."""

    def __init__(
        self,
        site: str,
        plan: Plan,
        data: SiteData,
        host: AdapterHost,
        pad_token: int,
        device: str,
        randomness: SiteRandomness,
        on_step: OnStep = lambda *_: None,
        on_batch: OnBatch = lambda *_: None,
    ) -> None:
        self.num_examples = len(data.train)
        self._site = site
        self._plan = plan
        self._data = data
        self._host = host
        self._pad_token = pad_token
        self._device = device
        self._randomness = randomness
        self._on_step = on_step
        self._on_batch = on_batch
        self._can_cut_logits = can_cut_logits(host.model.get_base_model())
        if plan.training.gradient_checkpointing:
            _keep_no_activations(host.model)

    def train(
        self, state: AdapterState, round_number: int, correction: Float32 | None = None
    ) -> tuple[AdapterUpdate, float]:
        """`training.steps` optimiser steps from `state` on the tensors that the round trains.
        Returns the update and the mean loss over steps. `correction`: float32, (num_values,),
        added to every gradient (SCAFFOLD). Raises `RoundFailed` if the loss is not finite."""
        training, base = self._plan.training, state.sha256()
        self._host.write(state)
        model = self._host.model
        names = trained_tensors(self._plan.adapter.train, state.spec, round_number)
        parameters = self._host.trainable(names)
        pull = self._pull(state, names, parameters, correction)
        gradient = self._gradient(state, parameters, round_number)
        rate = learning_rate(training, self._plan.rounds, round_number)
        optimizer = self._optimizer(parameters, rate)
        losses: list[float] = []
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._randomness.seed("dropout", round_number, base))
            model.train(gradient.may_drop_out)
            try:
                for step in range(training.steps):
                    interrupt.check()
                    loss = gradient.step()
                    if loss is not None and gradient.must_be_finite and not np.isfinite(loss):
                        raise RoundFailed(
                            f"{self._site}: the loss became {loss} in step {step + 1} of round "
                            f"{round_number}; lower training.learning_rate"
                        )
                    pull()
                    if training.max_grad_norm is not None:
                        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    if loss is not None:
                        losses.append(loss)
                    self._on_step(step + 1, training.steps, losses[-1] if losses else math.nan)
            finally:
                optimizer.zero_grad(set_to_none=True)
                model.eval()
        update = AdapterUpdate(self._host.read(), state, self.num_examples)
        return update, float(np.mean(losses)) if losses else math.nan

    def _gradient(
        self, state: AdapterState, parameters: list[torch.nn.Parameter], round_number: int
    ) -> Gradient:
        """Where each step's gradient comes from: `privacy.unit` says."""
        of_loss = (self._pad_token, self._device, self._can_cut_logits)

        def took(batch: Sequence[Tokens]) -> None:
            self._on_batch(round_number, batch)

        if self._plan.privacy.unit != "example":
            batches = self._batches(round_number, state.sha256())
            accumulation = self._plan.training.gradient_accumulation
            return Backprop(self._host.model, batches, accumulation, of_loss, took)
        guarantee = privacy_terms(self._plan, state.spec, self.num_examples)
        assert guarantee is not None
        return PrivateGradient(
            self._host.model,
            parameters,
            self._data.train,
            clip_norm=guarantee.clip_norm,
            noise_multiplier=guarantee.noise_multiplier,
            rate=sampling_rate(self._plan.training, self.num_examples),
            batch_size=self._plan.training.batch_size,
            of_loss=of_loss,
            about=f"{self._site} {round_number} {state.sha256()}".encode(),
            took=took,
        )

    def _pull(
        self,
        state: AdapterState,
        names: Sequence[str],
        parameters: list[torch.nn.Parameter],
        correction: Float32 | None,
    ) -> Callable[[], None]:
        """What the local algorithm adds to gradients: FedProx (Li et al., MLSys 2020) pulls
        towards where the round began; SCAFFOLD (Karimireddy et al., ICML 2020) corrects for the
        site's drift."""
        places = state.spec.slices()
        training = self._plan.training
        strength = training.proximal if training.local_algorithm == "fedprox" else 0.0
        starts = [parameter.detach().clone() for parameter in parameters] if strength else []
        added: list[torch.Tensor] = []
        if correction is not None:
            added = [
                torch.tensor(correction[places[name]]).view(parameter.shape).to(parameter.device)
                for name, parameter in zip(names, parameters, strict=True)
            ]

        def pull() -> None:
            with torch.no_grad():
                for number, parameter in enumerate(parameters):
                    assert parameter.grad is not None
                    if starts:
                        parameter.grad.add_(parameter - starts[number], alpha=strength)
                    if added:
                        parameter.grad.add_(added[number])

        return pull

    def evaluate(self, state: AdapterState) -> float:
        """Mean negative log-likelihood per response token over the held-out rows."""
        self._host.write(state)
        self._host.model.eval()
        rows = sorted(self._data.heldout, key=lambda tokens: len(tokens.input_ids))
        size = self._plan.speed.eval_batch_size
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(rows), size):
                interrupt.check()
                total += float(self._loss_sum(rows[start : start + size]))
        return total / sum(tokens.num_response for tokens in rows)

    def _optimizer(
        self, parameters: list[torch.nn.Parameter], rate: float
    ) -> torch.optim.Optimizer:
        decay = self._plan.training.weight_decay
        if self._plan.training.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
        if self._plan.training.optimizer == "muon":
            # Steps as long as AdamW's usually are (arXiv 2502.16982): one rate serves both.
            return torch.optim.Muon(
                parameters, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)

    def _loss_sum(self, batch: Sequence[Tokens]) -> torch.Tensor:
        return loss_sum(
            self._host.model, batch, self._pad_token, self._device, self._can_cut_logits
        )

    def _batches(self, round_number: int, base: str) -> Iterator[list[Tokens]]:
        rows, size = self._data.train, self._plan.training.batch_size
        places = rows_of_round(self._plan, len(rows), self._randomness, round_number, base)
        for first in range(0, len(places), size):
            yield [rows[place] for place in places[first : first + size]]


def rows_of_round(
    plan: Plan, num_rows: int, randomness: SiteRandomness, round_number: int, base: str
) -> list[int]:
    """Places of the rows that a round takes, in its order.

    Which rows they are is the epoch's to say: each comes once an epoch, over rounds and whatever
    becomes of a round. In which order a round takes them goes with the adapter that it starts from.

    Args:
        num_rows: of the site, to train on.
        randomness: the site's, of this run.
        round_number: from 1.
        base: SHA-256 of the adapter that the round starts from, hex.
    """
    training = plan.training
    count = training.steps * training.gradient_accumulation * training.batch_size
    start = (round_number - 1) * count
    places: list[int] = []
    for epoch in range(start // num_rows, (start + count - 1) // num_rows + 1):
        first = epoch * num_rows
        order = randomness.permutation(num_rows, "rows", epoch)
        taken = order[max(start - first, 0) : start + count - first]
        again = randomness.permutation(len(taken), "order", round_number, base, epoch)
        places += taken[again].tolist()
    return places


def _keep_no_activations(model: Any) -> None:
    """Have the layers compute their activations a second time on the way back. Sites share the
    model, and transformers adds hooks at every call: once is enough. Raises `ModelError`."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return
    with warnings.catch_warnings():
        # transformers renames the method on its way to version 6.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        try:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            raise ModelError(
                "training.gradient_checkpointing: expected a model that can do it, got "
                f"{type(model.get_base_model()).__name__}; set it to false"
            ) from None
