"""A whole federation in memory: real participants and coordinator, numbers instead of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand import Hand, started

from fakes import FakeWork, MemoryStore, Wire, trained
from fedshield.crypto import plain
from fedshield.crypto import scheme as scheme_module
from fedshield.crypto.keys import SigningKey
from fedshield.crypto.rlwe import layout as rlwe_layout
from fedshield.errors import ProtocolError
from fedshield.ledger.file import Ledger
from fedshield.ledger.rows import record_hash
from fedshield.ledger.rules import Approval
from fedshield.plan.floors import min_examples
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.contexts import read_round_keys, round_context
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.journal import Journal
from fedshield.protocol.line import Line, Records, roster_digest, tallies
from fedshield.protocol.participant import Participant
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.seeds import SiteRandomness
from fedshield.site.interfaces import SiteRound
from fedshield.site.round import first_memory, standing_digest
from fedshield.types import AdapterSpec, AdapterState, SiteMemory, TensorSpec

NAMES = ("bank", "clinic", "hospital", "lab", "surgery", *(f"ward-{n:02d}" for n in range(11)))
COUNTS = {"bank": 41, "clinic": 1234, "hospital": 377, "lab": 9, "surgery": 2660}
COUNTS |= {name: 100 + 37 * n for n, name in enumerate(NAMES[5:])}
SPEC = AdapterSpec((TensorSpec("a", (30, 10)), TensorSpec("b", (10, 25))), "00" * 32, 2.0)
LARGE = AdapterSpec((TensorSpec("a", (60, 50)), TensorSpec("b", (40, 50))), "00" * 32, 2.0)
#: Three messages of rlwe, which never carry less than eight blocks of 4096 coefficients.
HUGE = AdapterSpec((TensorSpec("a", (300, 500)), TensorSpec("b", (10, 50))), "00" * 32, 2.0)
#: What membership open and local masks ask of a plan. Fake training adds no noise of its own.
EXAMPLE_LEVEL = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 100.0}


def initial_state(spec: AdapterSpec = SPEC) -> AdapterState:
    rng = np.random.default_rng(99)
    return AdapterState(rng.standard_normal(spec.num_values).astype(np.float32), spec)


def opened(data: bytes) -> tuple[str, Binding, str, Any]:
    """Kind, binding, sender and body of an envelope, whoever signed it."""
    value: Any = codec.decode(data[5 : -envelope.SIGNATURE_BYTES])
    kind, context, round_number, phase, sender, body = value
    return kind, Binding(context, round_number, phase), sender, body


class Federation:
    """Participants, their keys and a coordinator over a `Wire`."""

    opened = staticmethod(opened)
    trained = staticmethod(trained)

    def __init__(
        self, plan: Plan, folder: Path, num_examples: Mapping[str, int], spec: AdapterSpec
    ) -> None:
        self.plan = plan
        self.spec = spec
        self.folder = folder
        self.names = plan.data.site_names()
        self.keys = {name: SigningKey() for name in self.names}
        self.server = SigningKey()
        self.roster = Roster(
            {name: key.public for name, key in self.keys.items()},
            self.server.public,
            plan.rules(),
            demo=True,
        )
        self.works = {name: FakeWork(name, num_examples[name]) for name in self.names}
        self.stores = {name: MemoryStore() for name in self.names}
        self.seen: dict[str, SiteRound] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.participants = {name: self.participant(name, self.roster) for name in self.names}
        self.wire = Wire(self.participants)
        self.coordinator = self.another_coordinator()

    def participant(
        self,
        name: str,
        roster: Roster,
        state: AdapterState | None = None,
        completed: int = 0,
        memory: SiteMemory | None = None,
    ) -> Participant:
        first = initial_state(self.spec)
        return Participant(
            name=name,
            plan=self.plan,
            roster=roster,
            key=self.keys[name],
            work=self.works[name],
            store=self.stores[name],
            journal=Journal(self.folder / f"{name}.jsonl"),
            line=self.line(name, roster),
            start=standing_digest(first, first_memory(self.plan, first)),
            state=first if state is None else state,
            completed_rounds=completed,
            randomness=SiteRandomness.of_demonstration(self.plan.seed, name),
            memory=memory,
            observe=lambda record: self.seen.__setitem__(record.site, record),
        )

    def line(self, name: str, roster: Roster) -> Line:
        """The site's ledger, opened again, with the plan approved under this roster."""
        if name in self.ledgers:
            self.ledgers[name].close()
        path = self.folder / f"{name}.ledger"
        self.ledgers[name] = ledger = Ledger.open(path) if path.exists() else Ledger.create(path)
        approval = Approval(
            self.plan.sha256(),
            roster_digest(roster),
            "00" * 32,
            self.plan.rounds,
            tallies(self.plan),
        )
        if ledger.approvals.get(approval.plan) != approval:
            ledger.approve(approval)
        hashes = {record_hash(ledger.record_key, f"{name} {k}".encode()) for k in range(3)}
        part = hashlib.sha256(name.encode()).digest()
        # Fake work has fewer rows than rule R6 asks for.
        examples = max(self.works[name].num_examples, min_examples(self.plan))
        records = Records(frozenset(hashes), examples, part, part)
        return Line(ledger, name, self.plan, roster, "run", records)

    def head_of(self, name: str) -> bytes:
        """What the site would sign of its ledger now."""
        return self.participants[name]._line.heads.statement(self.keys[name].sign)

    def another_coordinator(self, key: SigningKey | None = None) -> Coordinator:
        return Coordinator(self.plan, self.roster, self.wire, (key or self.server).sign)

    def run(self, rounds: int) -> Federation:
        self.coordinator.start()
        for number in range(1, rounds + 1):
            self.coordinator.round(number)
        return self

    # -- acting as a coordinator that does not follow the protocol --------------------------

    def seal(self, message: messages.Message, binding: Binding | None = None) -> bytes:
        """`message` signed by the coordinator's key, for the session that it is in."""
        return envelope.seal(
            message.kind,
            binding or self.binding,
            COORDINATOR,
            message.to_body(),
            self.server.sign,
        )

    def send(
        self, site: str, message: messages.Message, binding: Binding | None = None
    ) -> tuple[str, Any]:
        """Kind and body of the site's reply to a well-signed command."""
        kind, _, _, body = opened(self.reply(site, message, binding))
        return kind, body

    def reply(self, site: str, message: messages.Message, binding: Binding | None = None) -> bytes:
        """The same, as the site signed it."""
        return self.participants[site].handle(message.kind, self.seal(message, binding))

    def refused(self, site: str, message: messages.Message, binding: Binding | None = None) -> str:
        """The code with which the site refuses a well-signed command."""
        return self.refused_bytes(site, message.kind, self.seal(message, binding))

    def refused_bytes(self, site: str, method: str, data: bytes) -> str:
        with pytest.raises(ProtocolError) as caught:
            self.participants[site].handle(method, data)
        return caught.value.code

    @property
    def binding(self) -> Binding:
        """What the coordinator's commands belong to at this moment."""
        return self.coordinator._calls.binding

    @binding.setter
    def binding(self, binding: Binding) -> None:
        self.coordinator._calls.binding = binding

    def prepare(self, round_number: int, phase: str = "round") -> dict[str, bytes]:
        """Every site's signed key for a sum that begins."""
        session = self.coordinator._session.context
        self.binding = Binding(session, round_number, phase)
        command = self.seal(messages.Prepare())
        return {name: one.handle("prepare", command) for name, one in self.participants.items()}

    def summing(self, round_keys: Mapping[str, bytes]) -> Binding:
        """What messages belong to once these round keys are known."""
        keys = read_round_keys(dict(round_keys), self.binding, self.roster, 1)
        return replace(self.binding, context=round_context(self.binding, keys))

    def work(self, round_number: int) -> dict[str, bytes]:
        """Have every site work on a round; the signed uploads."""
        keys = self.prepare(round_number)
        command = self.seal(messages.Work(keys))
        uploads = {name: one.handle("work", command) for name, one in self.participants.items()}
        self.binding = self.summing(keys)
        return uploads

    def blocks(self, site: str, upload: bytes) -> list[bytes]:
        """All blocks of a site's upload."""
        count = len(opened(upload)[3]["block_digests"])
        return [self.send(site, messages.Fetch(index))[1]["data"] for index in range(count)]

    # -- what holds afterwards ---------------------------------------------------------------

    def states(self) -> dict[str, str]:
        return {name: one.state.sha256() for name, one in self.participants.items()}

    def state(self) -> AdapterState:
        """The adapter that all sites hold."""
        assert len(set(self.states().values())) == 1
        return self.participants[self.names[0]].state


MakeFederation = Callable[..., Federation]


@pytest.fixture
def federation(tmp_path: Path) -> MakeFederation:
    """`federation('ckks', sites=3, weights='equal', rules={'threshold': 4}, **plan changes)`;
    `rules`: more keys of the plan's scheme.

    Under rlwe, four sites or more may be lost (membership open, and so with privacy.unit example),
    unless `rules` says which membership, or the plan what its privacy is: what keeps two sets of
    one sum apart is tested by sets that differ."""
    made: list[Federation] = []

    def make(
        scheme: str = "ckks",
        sites: int = 3,
        weights: str = "equal",
        parameters: str | None = None,
        large: bool = False,
        rules: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Federation:
        names = NAMES[:sites]
        chosen: dict[str, Any] = {"name": scheme, "weights": weights, "parameters": parameters}
        if scheme == "rlwe" and sites == 2:
            chosen["max_colluding"] = 0  # two sites learn of each other from any sum
        given = dict(rules or {})
        if (
            scheme == "rlwe"
            and sites > 3
            and "membership" not in given
            and "privacy" not in changes
        ):
            given["membership"] = "open"
        masked = scheme == "rlwe" and changes.get("pruning", {}).get("mask") == "local"
        if given.get("membership") == "open" or masked:
            adapter = {"dropout": 0.0} | changes.get("adapter", {})
            changes = {"privacy": EXAMPLE_LEVEL, **changes, "adapter": adapter}
        raw: dict[str, Any] = {
            "rounds": 4,
            "data": {
                "sites": {name: {"source": "sample:finance"} for name in names},
                # Of no effect on fake work but by rule R6: that no count is cut.
                "min_examples": 5000,
            },
            "pruning": {"method": "none"},
            # Fake training moves values by about one: clips must reach as far.
            "training": {"learning_rate": 0.5, "steps": 10, "lr_schedule": "constant"},
            "scheme": chosen | given,
            **changes,
        }
        folder = tmp_path / f"federation-{len(made)}"
        plan = parse_plan(raw, base_dir=tmp_path)
        spec = SPEC if not large else HUGE if scheme == "rlwe" else LARGE
        made.append(Federation(plan, folder, COUNTS, spec))
        return made[-1]

    return make


@pytest.fixture
def three_blocks(federation: MakeFederation, monkeypatch: pytest.MonkeyPatch) -> MakeFederation:
    """Federations with an adapter that travels in three blocks."""
    monkeypatch.setattr(scheme_module, "BLOCK_BYTES", 8000)
    monkeypatch.setattr(rlwe_layout, "BLOCK_BYTES", 8000)
    monkeypatch.setattr(plain, "VALUES_PER_BLOCK", 2000)
    return partial(federation, large=True)


# -- thresholds ------------------------------------------------------------------------------


@pytest.fixture
def four(federation: Any) -> Hand:
    """Four sites, one of which may collude: T = Q = min_cohort = 3. Up to the announcement."""
    return Hand(started(federation)).ready()


@pytest.fixture
def five(federation: Any) -> Hand:
    """Five sites: T = Q = min_cohort = 4, c = 1."""
    return Hand(started(federation, 5)).ready()
