"""A site's adapter and what it does with it in a round: train, prune, encode; take the sum.

Between rounds a site keeps the global adapter, what its own updates left out (error feedback) and
the public clip of each tensor; the three are saved together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fedshield import encode, encode_integers, prune
from fedshield.plan import Plan, learning_rate
from fedshield.protocol.ciphers import Cipher, Encoded
from fedshield.protocol.local import LocalWork, SiteRound, Store
from fedshield.types import AdapterState, Float32, OpenedSum, PrunedUpdate, SiteMemory

#: A sum whose contributors weigh less than this in all is not taken.
LEAST_WEIGHT = 0.25


def first_memory(plan: Plan, state: AdapterState) -> SiteMemory:
    """Before round 1: nothing left out, clips from how far training can reach."""
    zeros = np.zeros(state.spec.num_values, dtype=np.float32)
    return SiteMemory(zeros, encode_integers.first_clip(plan, state))


class SiteModel:
    """The adapter of one site. `record` is what the site measured in the current round."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        work: LocalWork,
        store: Store,
        state: AdapterState,
        completed_rounds: int,
        memory: SiteMemory | None,
        heldout_loss: float | None,
        example_cap: int | None = None,
    ) -> None:
        self.state = state
        self.memory = memory or first_memory(plan, state)
        self.completed_rounds = completed_rounds
        self.record = SiteRound(completed_rounds, name)
        self._name = name
        self._plan = plan
        self._work = work
        self._store = store
        self._heldout_loss = heldout_loss
        self._example_cap = example_cap
        self._made: tuple[PrunedUpdate, Encoded] | None = None

    @property
    def num_examples(self) -> int:
        """Capped and rounded to two significant digits, as it is told to others."""
        cap = self._example_cap or self._work.num_examples
        return encode.round_count(min(self._work.num_examples, cap))

    def agreed(self) -> bytes:
        """What must be alike at all sites before a round: the adapter and the clips."""
        clips = self.memory.clip.astype("<f4").tobytes()
        return bytes.fromhex(self.state.sha256()) + clips

    def contribution(self, round_number: int, cipher: Cipher, weight: float) -> Encoded:
        """Train, prune, encode. Raises `CryptoError` for values that cannot be encoded."""
        self.record = SiteRound(round_number, self._name)
        with self.timed("train"):
            update, train_loss = self._work.train(self.state, round_number)
        with self.timed("prune"):
            carried = self.memory.residual if self._plan.encoding.error_feedback else None
            pruned = prune.prune(update, self._plan, round_number, carried)
        with self.timed("encode"):
            encoded = cipher.encode_update(
                pruned,
                self.state.spec,
                weight,
                train_loss,
                self.memory.clip,
                encode_integers.rounding_seed(self._plan, self._name, round_number),
            )
        self._made = pruned, encoded
        self.record = replace(
            self.record,
            train_loss=train_loss,
            num_examples=update.num_examples,
            learning_rate=learning_rate(self._plan, round_number),
            pruning_rate=pruned.mask.rate,
            pruned_values=pruned.mask.num_pruned,
            clipped_values=encoded.num_clipped,
        )
        return encoded

    def take(
        self,
        opened: OpenedSum,
        round_number: int,
        weight: float,
        contributors: tuple[str, ...],
    ) -> None:
        """Make the opened sum the new adapter and keep it. `weight`: this site's own. Raises
        `CryptoError` if it is not a mean of this round's; nothing has changed then."""
        in_set = self._name in contributors
        least = None
        if self._plan.scheme.name == "rlwe":
            least = max(LEAST_WEIGHT, weight if in_set else 0.0)
        state = encode.apply_sum(self.state, opened, self._plan.adapter.exchange, least)
        clip = encode_integers.next_clip(
            self._plan, self.memory.clip, self.state, state, round_number + 1
        )
        memory = SiteMemory(self._left_over(in_set), clip)
        # Kept first: a site never stands at a round that it could not load again.
        self._store.save(round_number, state, memory)
        self.state, self.memory, self.completed_rounds = state, memory, round_number
        self._made = None
        loss = opened.reserved.get(encode_integers.LOSS)
        self.record = replace(
            self.record,
            contributors=contributors,
            mean_train_loss=(
                float("nan") if loss is None else loss / opened.reserved[encode.WEIGHT]
            ),
        )

    def _left_over(self, in_set: bool) -> Float32:
        """What this site has not got into the sum: for its next update."""
        if self._made is None or not self._plan.encoding.error_feedback:
            return np.zeros_like(self.memory.residual)
        pruned, encoded = self._made
        if in_set:
            return pruned.left_out + (0 if encoded.residual is None else encoded.residual)
        # Not in the sum: the whole update is put back. Whole parameters cannot be, only
        # what earlier rounds left of them.
        if pruned.exchange == "delta":
            return pruned.values + pruned.left_out
        return self.memory.residual.copy()

    def evaluate(self) -> SiteRound:
        """Measure the adapter on the site's held-out rows; the round's record, whole."""
        with self.timed("evaluate"):
            loss = self._work.evaluate(self.state)
        before = loss if self._heldout_loss is None else self._heldout_loss
        self._heldout_loss = loss
        return replace(self.record, heldout_loss_before=before, heldout_loss_after=loss)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = self.record.wall_s.get(phase, 0.0) + time.perf_counter() - start
        self.record.wall_s[phase] = spent
