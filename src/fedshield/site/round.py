"""A site's adapter and what it does with it in a round: train, prune, encode; take the sum.

Between rounds a site keeps the global adapter, what its own updates left out (error feedback) and
the public clip of each tensor; the three are saved together.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from fedshield.errors import CryptoError, ProtocolError
from fedshield.plan import floors
from fedshield.plan.schema import Plan, learning_rate
from fedshield.privacy import distributed_gaussian
from fedshield.privacy.discrete_gaussian import fresh_stream
from fedshield.privacy.guarantee import Terms
from fedshield.seeds import SiteRandomness
from fedshield.site import scaffold
from fedshield.site.ciphers import Cipher, Encoded, Parts, WeightedUpdate
from fedshield.site.interfaces import Contribution, LocalWork, Sent, SiteRound, Store
from fedshield.site.settings import clip_rule, exchange_schedule, privacy_terms
from fedshield.types import (
    AdapterState,
    AdapterUpdate,
    EncodedIntegers,
    EncodedUpdate,
    Float32,
    Float64,
    Layout,
    OpenedSum,
    PrunedUpdate,
    Selection,
    SiteMemory,
)
from fedshield.update import encode_grid, encode_integers, prune, server_optimizer

#: A sum whose contributors weigh less than this in all is not taken.
LEAST_WEIGHT = 0.25

CLIP, SCORE, PERSONAL = "clip", "score", "personal"


def first_memory(plan: Plan, state: AdapterState) -> SiteMemory:
    """Before round 1: nothing left out, clips from how far training can reach."""
    size = state.spec.num_values
    shared = {CLIP: encode_integers.first_clip(clip_rule(plan), state)}
    own: dict[str, Float32] = {}
    if plan.training.local_algorithm == "scaffold":
        more, own = scaffold.first_memory(state.spec, plan.training.max_grad_norm)
        shared |= more
    return SiteMemory(np.zeros(size, dtype=np.float32), shared, own)


def personal(plan: Plan, state: AdapterState, memory: SiteMemory) -> AdapterState:
    """The global adapter with a site's own part in it (`share-a`); else the global one."""
    own = memory.own.get(PERSONAL)
    if own is None:
        return state
    places = prune.own_places(plan.adapter.train, state.spec)
    return AdapterState(np.where(places, own, state.values), state.spec)


def counted(plan: Plan, num_examples: int, cap: int | None) -> int:
    """What so many rows count for: at most the plan's and the roster's cap, and rounded to two
    significant digits, as others hear it."""
    return encode_grid.round_count(floors.counted(plan, num_examples, cap))


def standing_digest(state: AdapterState, memory: SiteMemory) -> str:
    """Digest of an adapter and of what all sites derived from earlier sums, hex."""
    agreed = bytes.fromhex(state.sha256()) + memory.shared_sha256()
    return hashlib.sha256(b"fedshield standing 1" + agreed).hexdigest()


def _encoded_again(kept: Contribution, layout: Layout) -> Encoded:
    """What was encoded before. Raises `CryptoError` if it was laid out for another selection."""
    try:
        if kept.residual is None or not kept.reserved:
            return EncodedUpdate(kept.encoded, layout, kept.num_clipped, kept.residual)
        return EncodedIntegers(kept.encoded, kept.reserved, layout, kept.num_clipped, kept.residual)
    except ValueError as error:
        raise CryptoError(f"the kept contribution does not fit this round: {error}") from None


@dataclass(frozen=True, eq=False)
class _Made:
    """This round's contribution, until its sum is opened."""

    update: AdapterUpdate
    pruned: PrunedUpdate
    selection: Selection
    values: Float32
    residual: Float32 | None


class SiteModel:
    """The adapter of one site. `record` is what the site measured in the current round; `terms`:
    what is promised of its data, None where nothing is; `randomness`: what its rounding is drawn
    from. Raises `PlanError` where a promise cannot be kept."""

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
        *,
        randomness: SiteRandomness,
    ) -> None:
        self.state = state
        self.memory = memory or first_memory(plan, state)
        self.completed_rounds = completed_rounds
        self.record = SiteRound(completed_rounds, name)
        self._name = name
        self._plan = plan
        self._schedule = exchange_schedule(plan)
        self._clip_rule = clip_rule(plan)
        self._work = work
        self._store = store
        self._heldout_loss = heldout_loss
        self._example_cap = example_cap
        self._randomness = randomness
        self.terms: Terms | None = privacy_terms(plan, state.spec, work.num_examples)
        self._made: _Made | None = None
        self._selected: Selection | None = None

    @property
    def num_examples(self) -> int:
        """Capped and rounded to two significant digits, as it is told to others."""
        return counted(self._plan, self._work.num_examples, self._example_cap)

    def begin(self) -> None:
        """A session begins: nothing was measured of a round in it."""
        self.record = SiteRound(self.completed_rounds, self._name)

    def agreed(self) -> bytes:
        """What must be alike at all sites before a round: the adapter, and what they derived
        from earlier sums (clips, scores, moments)."""
        return bytes.fromhex(self.state.sha256()) + self.memory.shared_sha256()

    def standing(self) -> str:
        """Digest of what the next round starts from, alike at all sites, hex: the result that the
        last one is signed for."""
        return standing_digest(self.state, self.memory)

    def selection(self) -> Selection:
        """The coordinates that travel in the next round: ranked once a round."""
        if self._selected is None:
            score = self.memory.shared.get(SCORE)
            number = self.completed_rounds + 1
            self._selected = prune.select(self._schedule, self.state.spec, score, number)
        return self._selected

    def parts(self) -> Parts:
        """Slices of the values that travel in the next round, and the clip of each."""
        selection = self.selection()
        if self.terms is not None and self.terms.site is not None:
            return self.terms.site.parts(selection.size)
        clips = self.memory.shared[CLIP]
        parts = [(part, float(clips[number])) for number, part in selection.parts()]
        return parts + scaffold.parts(self.memory, selection)

    def check_kept(self, round_number: int, weight: float, made_of: str) -> None:
        """Of a round that was entered before (R4). Raises `ProtocolError` ('rule') where what is
        kept was made for another round, start or weight, or of other records: it is sent again as
        it is, or not at all, and nothing may take its place."""
        kept = self._store.kept()
        if kept is None:
            return
        if kept.round_number > round_number:
            raise ProtocolError(
                "rule",
                f"R4: round {round_number} was entered before, and what was sent then is not kept "
                f"any more: round {kept.round_number} was begun since; restore this site's run "
                "folder to where the run stood, or agree on another plan",
            )
        same = self._plan.scheme.membership != "open"
        wanted = (round_number, self.standing(), weight if same else kept.weight)
        if (kept.round_number, kept.base, kept.weight) != wanted:
            raise ProtocolError(
                "rule",
                f"R4: round {round_number} was tried before from another start, or with another "
                "weight; go on where the run stands, with fedshield submit --resume",
            )
        if kept.made_of != made_of:
            raise ProtocolError(
                "rule",
                f"R4: round {round_number} was tried before from other records or another base "
                "model of this site, and what was sent then is all that may be sent; put them back",
            )

    def contribution(
        self,
        round_number: int,
        cipher: Cipher,
        weight: float,
        made_of: str,
        admit: Callable[[Encoded], None],
    ) -> Encoded:
        """Train, prune, encode; or what was encoded before, where this round was tried from the
        same start and is `made_of` the same records and base model. `admit` raises for an
        update that its sum would not take, before anything takes the place of what is kept.
        Raises `CryptoError` for values that cannot be encoded."""
        self.record = SiteRound(round_number, self._name)
        base = self.standing()
        kept = self._store.kept()
        wanted = (round_number, base, made_of)
        if kept is not None and (kept.round_number, kept.base, kept.made_of) != wanted:
            kept = None
        start = personal(self._plan, self.state, self.memory)
        with self.timed("train"):
            if kept is not None:
                update = AdapterUpdate(kept.trained, start, kept.num_examples)
                train_loss = kept.train_loss
            else:
                correction = scaffold.correction(self.memory)
                update, train_loss = self._work.train(start, round_number, correction)
        with self.timed("prune"):
            made = self._prepared(update, round_number)
        with self.timed("encode"):
            pruned, selection, values = made.pruned, made.selection, made.values
            layout = cipher.update_layout(selection.sha256(), values.size)
            if kept is not None and kept.weight == weight:
                encoded = _encoded_again(kept, layout)
                self.record = replace(self.record, clip_factor=kept.clip_factor)
            else:
                encoded = self._encode(values, layout, round_number, cipher, weight, train_loss)
        self._made = replace(made, residual=encoded.residual)
        admit(encoded)
        if kept is None or kept.weight != weight:
            self._store.keep(
                Contribution(
                    round_number,
                    base,
                    weight,
                    update.values,
                    encoded.slots if isinstance(encoded, EncodedUpdate) else encoded.digits,
                    () if isinstance(encoded, EncodedUpdate) else encoded.reserved,
                    encoded.num_clipped,
                    encoded.residual,
                    train_loss,
                    update.num_examples,
                    self.record.clip_factor,
                    made_of,
                )
            )
        self.record = replace(
            self.record,
            train_loss=train_loss,
            num_examples=update.num_examples,
            learning_rate=self._learning_rate(round_number),
            pruning_rate=pruned.mask.rate,
            pruned_values=prune.num_pruned(
                pruned.mask, self._plan.adapter.train, self.state.spec, round_number
            ),
            clipped_values=encoded.num_clipped,
        )
        return encoded

    def _prepared(
        self, update: AdapterUpdate, round_number: int, residual: Float32 | None = None
    ) -> _Made:
        """What of an update travels in a round, and what it leaves out."""
        selection = self.selection()
        carried = self.memory.residual if self._plan.encoding.error_feedback else None
        pruned = prune.prune(
            update,
            self._schedule,
            round_number,
            selection,
            exchange=self._plan.adapter.exchange,
            error_feedback=self._plan.encoding.error_feedback,
            carried=carried,
        )
        values = pruned.values[selection.indices]
        distance = self._plan.training.steps * self._learning_rate(round_number)
        change = scaffold.change(self.memory, update, distance)
        if change is not None:
            values = np.concatenate([values, change[selection.indices]])
        return _Made(update, pruned, selection, values, residual)

    def sent(self) -> Sent:
        """What of this round's update travels, before it is weighted: what a site's operator could
        read in this process."""
        assert self._made is not None
        values = np.array(self._made.pruned.values)
        if self._made.residual is not None:  # clipped and rounded off before it was encrypted
            selection = self._made.selection
            values[selection.indices] -= self._made.residual[: selection.size]
        return Sent(values, self.selection(), self.parts())

    def content_sha256(self, encoded: Encoded) -> str:
        """H(m) of rule R4, hex: of the encoded integers. With membership open, where another set
        gives this site another weight, of the trained values that they are made of."""
        if self._plan.scheme.membership != "open" or self._made is None:
            return encoded.sha256()
        values = self._made.update.values.astype("<f4", copy=False).tobytes()
        return hashlib.sha256(b"fedshield trained 1" + values).hexdigest()

    def _encode(
        self,
        values: Float32,
        layout: Layout,
        round_number: int,
        cipher: Cipher,
        weight: float,
        train_loss: float,
    ) -> Encoded:
        seed = self.rounding_seed(round_number)
        if self.terms is None or self.terms.site is None:
            # A loss is not noised: where a unit is protected, it is not told.
            told = train_loss if self.terms is None else 0.0
            update = WeightedUpdate(values, self.parts(), weight, told, seed)
            return cipher.encode_update(update, layout)
        mechanism = self.terms.site
        bounded = distributed_gaussian.bound(
            values, mechanism.scale(weight), mechanism.sensitivity, seed
        )
        about = f"{self._name} {round_number} {self.state.sha256()}".encode()
        stream = fresh_stream("site noise", about + bounded.digits.tobytes())
        self.record = replace(self.record, clip_factor=bounded.factor)
        return distributed_gaussian.encode_noised(bounded, mechanism, layout, weight, stream)

    def rounding_seed(self, round_number: int) -> int:
        """Of this round's stochastic rounding, from the adapter that it starts from: the site's
        own, and the same when the round is made again."""
        return self._randomness.seed("rounding", round_number, self.state.sha256())

    def _learning_rate(self, round_number: int) -> float:
        return learning_rate(self._plan.training, self._plan.rounds, round_number)

    def opened(
        self,
        opened: OpenedSum,
        round_number: int,
        weight: float,
        contributors: tuple[str, ...],
    ) -> tuple[str, Callable[[], None]]:
        """What the opened sum makes of the adapter: the result's digest, and what takes and keeps
        it. `weight`: this site's own. Raises `CryptoError` if it is not a mean of this round's."""
        in_set = self._name in contributors
        low, high = self._weights_of(weight, contributors)
        mean, selection = encode_grid.mean_of(opened, low, high), self.selection()
        state, moments = self._stepped(selection, mean[: selection.size])
        change = opened.values[selection.size :]
        shared = (
            self._next_shared(state, selection, mean[: selection.size], change, round_number)
            | moments.to_shared()
        )
        memory = SiteMemory(self._left_over(in_set), shared, self._next_own(selection, in_set))
        loss = opened.reserved.get(encode_integers.LOSS)
        if self.terms is not None:
            loss = None
        record = replace(
            self.record,
            contributors=contributors,
            mean_train_loss=(
                float("nan") if loss is None else loss / opened.reserved[encode_grid.WEIGHT]
            ),
        )

        def install() -> None:
            # Kept first: a site never stands at a round that it could not load again.
            self._store.save(round_number, state, memory)
            self.state, self.memory, self.completed_rounds = state, memory, round_number
            self._made = self._selected = None
            self.record = record

        return standing_digest(state, memory), install

    def _stepped(
        self, selection: Selection, mean: Float64
    ) -> tuple[AdapterState, server_optimizer.Moments]:
        """The adapter after a mean of what travelled, and what the optimiser keeps of it."""
        if self._plan.adapter.exchange == "parameters":
            adapter = server_optimizer.replaced(self.state, selection, mean)
            return adapter, server_optimizer.Moments()
        moments = server_optimizer.Moments.from_shared(self.memory.shared)
        return server_optimizer.step(self._plan.aggregation, self.state, selection, mean, moments)

    def _weights_of(
        self, weight: float, contributors: tuple[str, ...]
    ) -> tuple[float | None, float]:
        """The least and the most that contributors weigh in all; None for all sites, exactly."""
        rules = self._plan.rules()
        if not self._plan.scheme.traits.one_time_keys:
            return None, 1.0
        if rules.membership != "batches":
            return max(LEAST_WEIGHT, weight if self._name in contributors else 0.0), 1.0
        if self._plan.scheme.weights == "equal":
            share = len(contributors) / rules.num_sites
            return share, share
        everyone = len(contributors) == rules.num_sites
        return (1.0 if everyone else weight), 1.0

    def own_after(self, round_number: int) -> SiteMemory:
        """What is this site's own after a round whose sum it is in and did not open: what was sent
        is not carried on again. Raises `ProtocolError` ('ledger') where what was sent is lost."""
        kept = self._store.kept()
        if kept is None or (kept.round_number, kept.base) != (round_number, self.standing()):
            raise ProtocolError(
                "ledger",
                f"expected what this site sent in round {round_number}, found none: it cannot tell "
                "what is left over of it; restore the run folder",
            )
        start = personal(self._plan, self.state, self.memory)
        update = AdapterUpdate(kept.trained, start, kept.num_examples)
        self._made = self._prepared(update, round_number, kept.residual)
        return SiteMemory(self._left_over(True), {}, self._next_own(self.selection(), True))

    def take(
        self,
        state: AdapterState,
        shared: Mapping[str, Float32],
        completed_rounds: int,
        own: SiteMemory | None = None,
    ) -> None:
        """Stand where the others do, after rounds that this site did not open: the adapter, and
        what all derived from the sums. What is this site's own stays as it was, or becomes that
        of `own` (`own_after`)."""
        memory = replace(own or self.memory, shared=shared)
        self._store.save(completed_rounds, state, memory)
        self.state, self.memory, self.completed_rounds = state, memory, completed_rounds
        self._made = self._selected = None

    def _next_shared(
        self,
        state: AdapterState,
        selection: Selection,
        values: Float64,
        change: Float64,
        round_number: int,
    ) -> dict[str, Float32]:
        """What every site derives alike from this sum, for the next."""
        plan, old = self._plan, self.memory.shared
        new = {
            CLIP: encode_integers.next_clip(
                self._clip_rule, old[CLIP], self.state, state, selection, values, round_number + 1
            )
        }
        if plan.pruning.mask == "shared" and plan.pruning.method != "none":
            moved = values
            if plan.adapter.exchange == "parameters":
                moved = values - self.state.values[selection.indices]
            new[SCORE] = prune.next_score(old.get(SCORE), selection, moved)
        return new | scaffold.next_shared(old, selection, change)

    def _next_own(self, selection: Selection, in_set: bool) -> dict[str, Float32]:
        own, made = dict(self.memory.own), self._made
        if made is None:
            return own
        if self._plan.adapter.train == "share-a":
            places = prune.own_places(self._plan.adapter.train, self.state.spec)
            own[PERSONAL] = np.where(places, made.update.values, np.float32(0))
        if in_set:
            sent = made.values[selection.size :]
            if made.residual is not None:
                sent = sent - made.residual[selection.size :]
            own |= scaffold.next_own(own, selection, sent)
        return own

    def _left_over(self, in_set: bool) -> Float32:
        """What this site has not got into the sum: for its next update."""
        made = self._made
        if made is None or not self._plan.encoding.error_feedback:
            return np.zeros_like(self.memory.residual)
        if in_set:
            left = made.pruned.left_out.copy()
            if made.residual is not None:
                left[made.selection.indices] += made.residual[: made.selection.size]
            return left
        # Not in the sum: the whole update is put back. Whole parameters cannot be, only
        # what earlier rounds left of them.
        if made.pruned.exchange == "delta":
            return made.pruned.values + made.pruned.left_out
        return self.memory.residual.copy()

    def evaluate(self) -> SiteRound:
        """Measure the adapter on the site's held-out rows; the round's record, whole."""
        with self.timed("evaluate"):
            loss = self._work.evaluate(personal(self._plan, self.state, self.memory))
        before = loss if self._heldout_loss is None else self._heldout_loss
        self._heldout_loss = loss
        return replace(self.record, heldout_loss_before=before, heldout_loss_after=loss)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = self.record.wall_s.get(phase, 0.0) + time.perf_counter() - start
        self.record.wall_s[phase] = spent
