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
from fedshield.model.base import BaseModel
from fedshield.model.chat import Tokens, use_template
from fedshield.plan.schema import Plan
from fedshield.protocol.coordinator import Coordinator, RoundOutcome
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant import Participant
from fedshield.protocol.roster import Roster
from fedshield.protocol.run_keys import RunKeys
from fedshield.run.ledgers import approval_of, line_of
from fedshield.run.local_sites import InProcessSites
from fedshield.run.parties import demonstration
from fedshield.run.prepare import run_notes
from fedshield.run.rounds import drive
from fedshield.run.settings import data_setup, load_base
from fedshield.seeds import SiteRandomness, derive
from fedshield.site.gradient_factors import public_factors
from fedshield.site.interfaces import Contribution, LocalWork, Sent
from fedshield.site.round import first_memory, standing_digest
from fedshield.site.settings import privacy_terms
from fedshield.site.train import LocalTrainer, rows_of_round
from fedshield.types import AdapterState, Float32, SiteMemory
from fedshield.update.server_optimizer import Moments


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
    base = load_base(plan, say)
    use_template(base.tokenizer, plan.model.chat_template, date)
    data = load_sites(data_setup(plan), base.tokenizer, say, only)
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
    seen = {name: _Seen(first) for name in plan.data.site_names()}
    participants: dict[str, Participant] = {}
    start = standing_digest(first, first_memory(plan, first))
    with (
        tempfile.TemporaryDirectory(prefix="fedshield-audit-") as folder,
        contextlib.ExitStack() as ledgers,
    ):
        for name in plan.data.site_names():
            path = Path(folder) / f"{name}.ledger"
            ledger = ledgers.enter_context(Ledger.create(path))
            ledger.approve(approval_of(plan, members.roster, scene.base.sha256))
            participants[name] = Participant(
                name=name,
                plan=plan,
                roster=members.roster,
                key=members.sites[name],
                secret=members.sites[name].secret,
                work=_trainer(plan, name, scene, truth),
                store=seen[name],
                journal=Journal(Path(folder) / f"{name}.jsonl"),
                line=line_of(ledger, name, plan, members.roster, "audit", scene.data[name]),
                start=start,
                state=first,
                completed_rounds=0,
                randomness=SiteRandomness.of_demonstration(plan.seed, name),
                inspector=seen[name],
            )
        tap = Tap(InProcessSites(participants))
        coordinator = Coordinator(plan, members.roster, tap, members.coordinator.sign)
        total = min(rounds or plan.rounds, plan.rounds)

        def over_budget() -> str:
            spent = [name for name, one in participants.items() if one.exhausted]
            return f"{', '.join(spent)} would exceed the plan's epsilon" if spent else ""

        telling = _Telling(plan.scheme.name, total, say)
        drive(coordinator, 0, total, over_budget, telling)
    crossings = tuple(tap.crossings)
    sites = {name: one.view(name, crossings) for name, one in seen.items()}
    released = AdapterView(next(iter(participants.values())).state)
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
    limited = privacy_terms(plan, scene.host.spec, len(rows))
    if rounds is None:
        rounds = plan.rounds if limited is None else limited.rounds_allowed(plan.rounds)
    taken = {
        place
        for number in range(1, rounds + 1)
        for place in rows_of_round(plan, len(rows), randomness, number, "")
    }
    return tuple(dict.fromkeys(rows[place] for place in sorted(taken)))


class _Telling:
    """Says each round that is done."""

    def __init__(self, scheme: str, total: int, say: Callable[[str], None]) -> None:
        self._scheme, self._total, self._say = scheme, total, say

    def set_up(self, lost: Mapping[str, str]) -> None:
        """Every site is in this process: none is lost."""

    def begin(self, number: int) -> None:
        """Told when it is done."""

    def end(self, outcome: RoundOutcome, round_s: float) -> None:
        self._say(f"{self._scheme}: round {outcome.round_number} of {self._total}")

    def end_early(self, why: str) -> None:
        self._say(f"{self._scheme}: ended {why}")


class _Seen:
    """What one site holds, taken down round by round: a participant's `Inspector`, and a store that
    keeps every round's adapter and the federated optimiser's momentum."""

    def __init__(self, first: AdapterState) -> None:
        self._keys: RunKeys | None = None
        self._sent: dict[int, Sent] = {}
        self._weights: dict[int, float] = {}
        self._shares: dict[int, Mapping[str, Share]] = {}
        self._states: dict[int, AdapterState] = {0: first}
        self._momenta: dict[int, Float32] = {}

    def took_keys(self, keys: RunKeys) -> None:
        self._keys = keys

    def contributed(self, round_number: int, weight: float, sent: Sent) -> None:
        self._sent[round_number], self._weights[round_number] = sent, weight

    def held(self, round_number: int, shares: Mapping[str, Share]) -> None:
        self._shares[round_number] = shares

    def save(self, completed_rounds: int, state: AdapterState, memory: SiteMemory) -> None:
        self._states[completed_rounds] = state
        momentum = Moments.from_shared(memory.shared).momentum
        if momentum is not None:
            self._momenta[completed_rounds] = momentum

    def keep(self, contribution: Contribution) -> None:
        """One process, one session: nothing is repeated."""

    def kept(self) -> Contribution | None:
        return None

    def view(self, name: str, crossings: Sequence[Crossing]) -> SiteView:
        assert self._keys is not None
        sent = self._sent.items()
        return SiteView(
            name,
            tuple(one for one in crossings if one.site == name),
            self._keys,
            self._states,
            {number: one.values for number, one in sent},
            self._weights,
            {number: one.selection for number, one in sent},
            {number: one.parts for number, one in sent},
            self._shares,
            self._momenta,
        )


def _trainer(
    plan: Plan, name: str, scene: Scene, truth: dict[tuple[str, int], tuple[Tokens, ...]]
) -> LocalWork:
    """A trainer that writes down which rows it took."""
    base, randomness = scene.base, SiteRandomness.of_demonstration(plan.seed, name)
    data, pad, device = scene.data[name], base.pad_token_id, base.device

    def took(round_number: int, batch: Sequence[Tokens]) -> None:
        key = (name, round_number)
        truth[key] = (*truth.get(key, ()), *batch)

    return _Unmeasured(name, plan, data, scene.host, pad, device, randomness, on_batch=took)


class _Unmeasured(LocalTrainer):
    """Losses on held-out rows are no part of any view."""

    def evaluate(self, state: AdapterState) -> float:
        return 0.0
