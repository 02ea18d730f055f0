"""A run of three sites, one of which is the independent one; coordinator, channel and the other two
are FedShield's own."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import yaml
from page_adapter import spec_of
from page_site import IndependentSite
from page_wire import Refused

from fedshield.crypto.keys import SiteKey
from fedshield.data.sites import SiteData
from fedshield.errors import CryptoCode, ProtocolCode, ProtocolError
from fedshield.ledger.file import Ledger
from fedshield.model.adapter import AdapterHost, initial_state
from fedshield.model.base import BaseModel
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.journal import Journal
from fedshield.protocol.participant import Participant
from fedshield.protocol.restart import SiteRestart, Standing
from fedshield.protocol.roster import Roster
from fedshield.run.events import Quiet
from fedshield.run.flare.lineup import line_up
from fedshield.run.folder import SiteStore
from fedshield.run.ledgers import approval_of, line_of
from fedshield.run.local_sites import InProcessSites
from fedshield.run.parties import randomness_of
from fedshield.run.prepare import prepare
from fedshield.seeds import derive
from fedshield.site.round import first_memory, standing_digest
from fedshield.site.train import LocalTrainer

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
RUN, RANK = "run", 4
CODES = {*get_args(ProtocolCode), *get_args(CryptoCode), "internal"}


def plan_of(**changes: Any) -> Plan:
    """The quickstart's plan on a small model with few rows. `changes`: section__key."""
    raw = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    small = {
        "model__name": "tiny-llama",
        "adapter__rank": RANK,
        "adapter__alpha": 2 * RANK,
        "data__heldout_rows": 1,
        "data__min_examples": 8,
        "training__steps": 1,
        "training__batch_size": 2,
        "training__max_length": 160,
        "training__precision": "fp32",
        "evaluation__prompts": [],
        "rounds": 3,
        "speed": {"device": "cpu"},
    }
    for source in raw["data"]["sites"].values():
        source["rows"] = 12
    for key, value in (small | changes).items():
        *sections, last = key.split("__")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return parse_plan(raw, base_dir=QUICKSTART.parent)


@functools.cache
def _prepared(canonical: bytes) -> tuple[BaseModel, dict[str, SiteData], AdapterHost]:
    """Of a plan that has what is loaded for others as well."""
    return prepare(parse_plan(json.loads(canonical), base_dir=QUICKSTART.parent), Quiet())


def prepared(plan: Plan) -> tuple[BaseModel, dict[str, SiteData], AdapterHost]:
    """By adapter and sites, which is all that these plans load differently."""
    sites = {name: source.model_dump() for name, source in plan.data.sites.items()}
    like = plan_of(adapter=plan.adapter.model_dump(), data__sites=sites)
    return _prepared(like.canonical())


class Door:
    """What an engine does at a site's door: its refusals go on as codes."""

    def __init__(self, site: IndependentSite) -> None:
        self._site = site

    def handle(self, method: str, data: bytes) -> bytes:
        try:
            return self._site.handle(method, data)
        except Refused as error:
            if error.code not in CODES:
                raise
            text = str(error).partition(": ")[2]
            raise ProtocolError(cast(ProtocolCode, error.code), text) from None


class Whole:
    """One of FedShield's sites with what comes before its session."""

    def __init__(self, made: MixedRun, site: Participant) -> None:
        self._site = site
        base = bytes.fromhex(made.base.sha256)

        def stand_at(number: int, restart: bytes) -> None:
            assert number == site.completed_rounds
            site._restart = restart

        self._before = SiteRestart(
            site.name,
            made.plan.sha256(),
            made.roster,
            made.keys[site.name].sign,
            lambda: Standing(frozenset({0, site.completed_rounds}), base),
            stand_at,
            lambda _: None,
        )

    def handle(self, method: str, data: bytes) -> bytes:
        door = self._before if method in SiteRestart.METHODS else self._site
        return door.handle(method, data)


class MixedRun:
    """`other`: the independent site; `own`: the two others."""

    def __init__(self, plan: Plan, folder: Path, independent: str) -> None:
        self.plan, self.folder = plan, folder
        self.base, self.data, self.host = prepared(plan)
        names = plan.data.site_names()
        self.keys = {name: SiteKey() for name in names}
        self.server = SiteKey()
        public = {name: key.public for name, key in self.keys.items()}
        rules, charter = plan.rules(), os.urandom(32)
        chains = {name: (key,) for name, key in public.items()}
        self.roster = Roster(public, self.server.public, rules, False, charter, chains)
        first = initial_state(self.host.spec, derive(plan.seed, "adapter"))
        self.first = standing_digest(first, first_memory(plan, first))
        self._state = first
        self.ledgers: list[Ledger] = []
        self.own = {name: self._participant(name) for name in names if name != independent}
        self._name = independent
        (folder / independent).mkdir()
        self.start_again()

    def start_again(self) -> None:
        """The independent site's process anew, and a coordinator that knows nothing."""
        self.other = self._independent(self._name)
        own = {name: Whole(self, site) for name, site in self.own.items()}
        both: dict[str, Any] = {self._name: Door(self.other), **own}
        self.sites = InProcessSites(both)
        self.coordinator = Coordinator(self.plan, self.roster, self.sites, self.server.sign)

    def _independent(self, name: str) -> IndependentSite:
        layers = {
            layer.removeprefix("base_model.model."): module.base_layer.weight.detach().numpy()
            for layer, module in self.host.model.named_modules()
            if hasattr(module, "base_layer")
        }
        plan = self.plan.canonical()
        return IndependentSite(
            name,
            self.keys[name].to_bytes()[:32],
            self.keys[name].secret,
            plan,
            self.roster.encode(),
            spec_of(yaml.safe_load(plan), self.base.sha256, layers),
            12,
            bytes.fromhex(self.base.sha256),
            self.folder / name,
        )

    def _participant(self, name: str) -> Participant:
        folder = self.folder / name
        folder.mkdir()
        ledger = Ledger.create(folder / "ledger.jsonl")
        self.ledgers.append(ledger)
        ledger.approve(approval_of(self.plan, self.roster, self.base.sha256))
        randomness = randomness_of(self.plan, self.roster, name, self.keys[name])
        return Participant(
            name=name,
            plan=self.plan,
            roster=self.roster,
            key=self.keys[name],
            secret=self.keys[name].secret,
            work=LocalTrainer(
                name,
                self.plan,
                self.data[name],
                self.host,
                self.base.pad_token_id,
                self.base.device,
                randomness,
            ),
            store=SiteStore(folder / "kept"),
            journal=Journal(folder / "journal.jsonl"),
            line=line_of(ledger, name, self.plan, self.roster, RUN, self.data[name]),
            start=self.first,
            state=self._state,
            completed_rounds=0,
            randomness=randomness,
        )

    def run(self, rounds: int) -> None:
        """A session up to this round, from where all stand. Raises `RoundFailed`."""
        completed, lost = line_up(self.plan, self.roster, self.sites, self.server.sign)
        assert not lost
        self.coordinator.start()
        assert self.coordinator.completed_rounds == completed
        for number in range(self.coordinator.completed_rounds + 1, rounds + 1):
            self.coordinator.round(number)
        self.coordinator.finish()

    def digests(self) -> dict[str, str]:
        """Of every site's adapter."""
        found = {name: site.state.sha256() for name, site in self.own.items()}
        return found | {self.other.name: self.other.digest()}


@contextmanager
def mixed(plan: Plan, folder: Path, independent: str = "school") -> Iterator[MixedRun]:
    made = MixedRun(plan, folder, independent)
    try:
        yield made
    finally:
        for ledger in made.ledgers:
            ledger.close()


def moved(made: MixedRun) -> bool:
    """Whether the run changed the model."""
    return bool(np.any(made.other.model.standing.values))
