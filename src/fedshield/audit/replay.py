"""The stage: a plan's own rounds, run again in this process with every party's view taken down.

A run folder keeps no upload and no key, on purpose; so an audit runs the plan (or its first rounds)
again, with the real messages, keys and bytes. Training draws from the plan's seed, as in a
demonstration, and so repeats one exactly; keys are fresh. Whoever runs an audit needs what running
the plan needs: all sites' data in one place.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fedshield.audit.views import (
    AdapterView,
    CoalitionView,
    Crossing,
    ServerView,
    SiteView,
    Tap,
)
from fedshield.crypto.shares import Share
from fedshield.data.sites import SiteData, load_sites
from fedshield.ledger.file import Ledger
from fedshield.model.adapter import AdapterHost, initial_state
from fedshield.model.base import BaseModel, load
from fedshield.model.chat import Tokens, use_template
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import terms
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant import Participant
from fedshield.protocol.roster import Roster
from fedshield.protocol.run_keys import RunKeys
from fedshield.run.ledgers import approval_of, line_of
from fedshield.run.local_sites import InProcessSites
from fedshield.run.parties import demonstration
from fedshield.run.prepare import run_notes
from fedshield.seeds import SiteRandomness, derive
from fedshield.site.gradient_factors import public_factors
from fedshield.site.interfaces import Contribution
from fedshield.site.round import first_memory, standing_digest
from fedshield.site.schemes import Parts
from fedshield.site.train import LocalTrainer, rows_of_round
from fedshield.types import AdapterState, AdapterUpdate, Float32, Selection, SiteMemory
from fedshield.update.server_optimizer import MOMENTUM


@dataclass(frozen=True)
class Scene:
    """What is the same for every scheme: base model, data and adapter of a plan."""

    base: BaseModel
    data: Mapping[str, SiteData] = field(repr=False)
    host: AdapterHost = field(repr=False)

    def start(self, plan: Plan) -> AdapterState:
        return initial_state(self.host.spec, derive(plan.seed, "adapter"))


@dataclass(frozen=True)
class Truth:
    """What attacks are scored against and never get: (site, round) -> the rows of each step."""

    batches: Mapping[tuple[str, int], tuple[Tokens, ...]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Recording:
    """One run of a plan: the views, and apart from them the truth."""

    plan: Plan
    roster: Roster
    server: ServerView
    sites: Mapping[str, SiteView] = field(repr=False)
    released: AdapterView
    truth: Truth = field(repr=False)

    def coalition(self, names: Sequence[str]) -> CoalitionView:
        return CoalitionView(self.server, tuple(self.sites[name] for name in names))


def prepare(
    plan: Plan,
    say: Callable[[str], None] = lambda _: None,
    date: datetime.date | None = None,
    only: str | None = None,
) -> Scene:
    """Load what the plan names, of all sites or of `only` one. `date`: today's, for a chat template
    that writes it. Raises `UserError`s like a run."""
    if plan.speed.threads is not None:
        torch.set_num_threads(plan.speed.threads)
    say(f"loading {plan.model.name}")
    base = load(plan, say)
    use_template(base.tokenizer, plan.model.chat_template, date)
    data = load_sites(plan, base.tokenizer, say, only)
    given = public_factors(plan, base, say)
    host = AdapterHost(base.model, plan.adapter, base.sha256, given)
    for note in run_notes(base, data, host):
        say(f"note: {note}")
    return Scene(base, data, host)


def record(
    plan: Plan,
    scene: Scene,
    rounds: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Recording:
    """Run the plan's first `rounds` rounds (all by default) on the scene, and take down what
    every party sees. Like a run it ends before a round that would exceed the plan's epsilon, and
    raises `RoundFailed`."""
    members = demonstration(plan)
    first = scene.start(plan)
    truth: dict[tuple[str, int], tuple[Tokens, ...]] = {}
    watched: dict[str, _Watched] = {}
    start = standing_digest(first, first_memory(plan, first))
    with (
        tempfile.TemporaryDirectory(prefix="fedshield-audit-") as folder,
        contextlib.ExitStack() as ledgers,
    ):
        for name in plan.data.site_names():
            path = Path(folder) / f"{name}.ledger"
            ledger = ledgers.enter_context(Ledger.create(path))
            ledger.approve(approval_of(plan, members.roster, scene.base.sha256))
            watched[name] = _Watched(
                name=name,
                plan=plan,
                roster=members.roster,
                key=members.sites[name],
                secret=members.sites[name].secret,
                work=_trainer(plan, name, scene, truth),
                store=_Memory(first),
                journal=Journal(Path(folder) / f"{name}.jsonl"),
                line=line_of(ledger, name, plan, members.roster, "audit", scene.data[name]),
                start=start,
                state=first,
                completed_rounds=0,
                randomness=SiteRandomness.of_demonstration(plan.seed, name),
            )
        tap = Tap(InProcessSites(watched), lambda site, method: watched[site].note(method))
        coordinator = Coordinator(plan, members.roster, tap, members.coordinator.sign)
        coordinator.start()
        total = min(rounds or plan.rounds, plan.rounds)
        for number in range(1, total + 1):
            if any(one.exhausted for one in watched.values()):
                say(f"{plan.scheme.name}: no round {number}, which would exceed the plan's epsilon")
                break
            coordinator.round(number)
            say(f"{plan.scheme.name}: round {number} of {total}")
    crossings = tuple(tap.crossings)
    sites = {name: one.view(crossings) for name, one in watched.items()}
    released = AdapterView(next(iter(watched.values())).state)
    return Recording(plan, members.roster, ServerView(crossings), sites, released, Truth(truth))


def trained_rows(
    plan: Plan,
    name: str,
    scene: Scene,
    randomness: SiteRandomness | None,
    rounds: int | None = None,
) -> tuple[Tokens, ...]:
    """The different rows of a site that so many rounds (the plan's by default) really take; all of
    its rows where each is drawn by chance (`privacy.unit: example`), whose bound is about rows
    that could be. `randomness`: what the site's training drew from; None where that is not known
    here: then also all of its rows."""
    rows = scene.data[name].train
    if plan.privacy.unit == "example" or randomness is None:
        return tuple(dict.fromkeys(rows))
    limited = terms(plan, scene.host.spec, len(rows))
    if rounds is None:
        rounds = plan.rounds if limited is None else limited.rounds_allowed(plan.rounds)
    taken = {
        place
        for number in range(1, rounds + 1)
        for place in rows_of_round(plan, len(rows), randomness, number, "")
    }
    return tuple(dict.fromkeys(rows[place] for place in sorted(taken)))


class _Watched(Participant):
    """A participant whose memory is read after each message, as its operator could read it."""

    held_keys: RunKeys | None = None

    def note(self, method: str) -> None:
        if method in ("make-key", "take-key"):
            self.held_keys = self._keys
        if self._binding.phase != ROUND or self._sum is None:
            return
        number = self._binding.round_number
        if method == "work" and self._model._made is not None:
            made = self._model._made
            sent = np.array(made.pruned.values)
            if made.residual is not None:  # clipped and rounded off before it was encrypted
                sent[made.selection.indices] -= made.residual[: made.selection.size]
            self.sent[number] = sent
            self.weights[number] = self._weight
            self.selections[number] = self._model.selection()
            self.parts[number] = self._model.parts()
        if method == "hold":
            self.shares[number] = dict(self._sum._held)

    def _forget(self) -> None:
        super()._forget()
        self.sent: dict[int, Float32] = {}
        self.weights: dict[int, float] = {}
        self.selections: dict[int, Selection] = {}
        self.parts: dict[int, Parts] = {}
        self.shares: dict[int, dict[str, Share]] = {}

    def view(self, crossings: Sequence[Crossing]) -> SiteView:
        store = self._model._store
        assert isinstance(store, _Memory)
        assert self.held_keys is not None
        return SiteView(
            self.name,
            tuple(one for one in crossings if one.site == self.name),
            self.held_keys,
            store.states,
            self.sent,
            self.weights,
            self.selections,
            self.parts,
            self.shares,
            store.momenta,
        )


class _Memory:
    """A store that keeps every round's adapter, and the federated optimiser's momentum."""

    def __init__(self, first: AdapterState) -> None:
        self.states: dict[int, AdapterState] = {0: first}
        self.momenta: dict[int, Float32] = {}

    def save(self, completed_rounds: int, state: AdapterState, memory: SiteMemory) -> None:
        self.states[completed_rounds] = state
        if MOMENTUM in memory.shared:
            self.momenta[completed_rounds] = memory.shared[MOMENTUM]

    def keep(self, contribution: Contribution) -> None:
        """One process, one session: nothing is repeated."""

    def kept(self) -> Contribution | None:
        return None


def _trainer(
    plan: Plan, name: str, scene: Scene, truth: dict[tuple[str, int], tuple[Tokens, ...]]
) -> LocalTrainer:
    base = scene.base
    randomness = SiteRandomness.of_demonstration(plan.seed, name)
    data, pad, device = scene.data[name], base.pad_token_id, base.device
    return _Noted(name, plan, data, scene.host, pad, device, randomness, truth)


class _Noted(LocalTrainer):
    """A trainer that writes down which rows it took."""

    def __init__(
        self,
        site: str,
        plan: Plan,
        data: SiteData,
        host: AdapterHost,
        pad_token: int,
        device: str,
        randomness: SiteRandomness,
        truth: dict[tuple[str, int], tuple[Tokens, ...]],
    ) -> None:
        super().__init__(site, plan, data, host, pad_token, device, randomness)
        self._truth = truth
        self._now: int | None = None

    def train(
        self, state: AdapterState, round_number: int, correction: Float32 | None = None
    ) -> tuple[AdapterUpdate, float]:
        self._now = round_number
        try:
            return super().train(state, round_number, correction)
        finally:
            self._now = None

    def _took(self, batch: Sequence[Tokens]) -> None:
        assert self._now is not None
        key = (self._site, self._now)
        self._truth[key] = (*self._truth.get(key, ()), *batch)

    def evaluate(self, state: AdapterState) -> float:
        return 0.0  # losses on held-out rows are no part of any view
