"""A consortium for hostile stories: real kits, a countersigned roster, default policies, real site
processes that train tiny-llama, a real coordinator. What is hostile is the test's.

The attacks were written against a version that remembered by run name; each is here with what it
ends in now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedshield.enrolment import KeyFile, SignedRoster
from fedshield.enrolment.lineage import Lineage
from fedshield.enrolment.terms import Allowed, Asked
from fedshield.errors import UserError
from fedshield.ledger.file import Ledger
from fedshield.plan.schema import Plan
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.restart import ASK_BYTES, unasked
from fedshield.protocol.roster import COORDINATOR
from fedshield.protocol.transport import Replies
from fedshield.protocol.wire import envelope, messages
from fedshield.run.admission import Reply
from fedshield.run.approval import propose
from fedshield.run.flare.kit import Kit
from fedshield.run.site import SiteProcess

SOURCES = {
    "alpha": "finance",
    "beta": "maths",
    "mallory": "finance",
    "victim": "medical",
    "late": "maths",
    "gamma": "maths",
    "delta": "medical",
}
NAMES = ("alpha", "beta", "mallory", "victim")


def raw_plan(names: Collection[str] = NAMES, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "trial",
        "seed": 7,
        "rounds": 4,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 4, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        "data": {
            "heldout_rows": 8,
            "sites": {name: {"source": f"sample:{SOURCES[name]}", "rows": 40} for name in names},
        },
        "training": {
            "steps": 2,
            "batch_size": 4,
            "max_length": 96,
            "learning_rate": 0.02,
            "precision": "fp32",
        },
        "scheme": {"name": "rlwe"},
        "speed": {"device": "cpu"},
    }
    return raw | changes


@dataclass
class Consortium:
    """`truth`: what the victim encoded, by (run, round); `opened`: what mallory opened."""

    root: Path
    names: tuple[str, ...] = NAMES
    asked: Asked = field(default_factory=Asked)
    allowed: Allowed = field(default_factory=Allowed)
    truth: dict[tuple[str, int], Any] = field(default_factory=dict)
    opened: dict[tuple[str, int], Any] = field(default_factory=dict)
    processes: list[SiteProcess] = field(default_factory=list)
    keys: dict[str, KeyFile] = field(default_factory=dict, repr=False)
    lineage: Lineage = field(default_factory=Lineage)

    def __post_init__(self) -> None:
        for name in (*self.names, "coordinator"):
            self.enrol(name)
        cards = tuple(self.keys[name].card() for name in self.names)
        coordinator = self.keys["coordinator"].card()
        self.put_in_force(
            SignedRoster(coordinator, cards, self.asked, self.allowed, lineage=self.lineage)
        )

    def enrol(self, name: str) -> KeyFile:
        """A key and a kit without a roster."""
        key = self.keys[name] = KeyFile.make(name)
        folder = self.root / name
        folder.mkdir(parents=True)
        (folder / f"{name}.key").write_text(key.to_text())
        (folder / f"{name}.key").chmod(0o600)
        if name in SOURCES:
            (folder / f"{name}.policy.yaml").write_text(
                f"data_path: sample:{SOURCES[name]}\nledger_path: {name}.ledger\n"
                "model_path: tiny-llama\ndevice: cpu\nweights: [private, equal, public]\n"
            )
        return key

    def put_in_force(self, roster: SignedRoster) -> SignedRoster:
        """Everyone confirms everyone, signs, and has it in the kit."""
        self.names = roster.names()
        for name in self.names:
            others = [other for other in self.names if other != name]
            roster = roster.countersigned(self.keys[name], others)
        for name in (*self.names, "coordinator"):
            (self.root / name / "roster.json").write_text(roster.to_text())
        return roster

    def roster(self) -> SignedRoster:
        return SignedRoster.read(self.root / "coordinator" / "roster.json")

    def exposes(self, *names: str) -> None:
        """Every operator of today's sites writes it into the policy."""
        for name in self.names:
            path = self.root / name / f"{name}.policy.yaml"
            path.write_text(f"{path.read_text()}exposes: [{', '.join(names)}]\n")

    def kit(self, name: str) -> Kit:
        return Kit(self.root / name, name)

    def plan(self, raw: Mapping[str, Any], name: str = "alpha") -> Plan:
        return self.kit(name).read_plan(json.dumps(raw))

    def approve(self, raw: Mapping[str, Any], *names: str, exposed: Collection[str] = ()) -> None:
        """What the operators of `names` (default: all) do at their terminals; those `exposed` let
        their updates be seen."""
        for name in names or self.names:
            kit = self.kit(name)
            path = kit.ledger_path()
            with Ledger.open(path) if path.exists() else Ledger.create(path) as ledger:
                plan = self.plan(raw, name)
                proposal = propose(kit, plan, ledger, exposed=name in exposed)
                ledger.approve(proposal.approval)

    def site(self, name: str, raw: Mapping[str, Any], run: str) -> SiteProcess:
        kit = self.kit(name)
        plan = self.plan(raw, name)
        process = SiteProcess(name, plan, kit.take_part(run, plan), kit, kit)
        self.processes.append(process)
        return process

    def ask(self, process: SiteProcess, raw: Mapping[str, Any]) -> Reply:
        """The coordinator asks a site where it stands."""
        return process.handle("stand", self.stand(raw))

    def stand(self, raw: Mapping[str, Any]) -> bytes:
        """A signed `stand`."""
        kit = self.kit("coordinator")
        sign = kit.admit(kit.read_plan(json.dumps(raw)), None).key.sign
        body = messages.Stand(bytes(ASK_BYTES)).to_body()
        return envelope.seal("stand", unasked(), COORDINATOR, body, sign)

    def session(
        self,
        raw: Mapping[str, Any],
        run: str,
        start: int = 0,
        absent: Collection[str] = (),
        spied: Callable[[dict[str, SiteProcess]], None] = lambda _: None,
    ) -> Session:
        """Sites that are asked where they stand, and stand at `start` whatever follows from that.
        Raises `Refused` where one does not."""
        sites: dict[str, SiteProcess] = {}
        for name in self.names:
            if name not in absent:
                try:
                    sites[name] = self.site(name, raw, run)
                except UserError as error:
                    self.close()
                    raise Refused(name, str(error)) from None
        for name, process in sites.items():
            reply = self.ask(process, raw)
            if not reply.code:
                reply = process._safely(partial(_stand_at, process, start))
            if reply.code:
                self.close()
                raise Refused(name, self.last_error(name, run))
        self._spy(sites, run)
        spied(sites)
        kit = self.kit("coordinator")
        plan = kit.read_plan(json.dumps(raw))
        party = kit.admit(plan, None)
        link = Link(sites, self)
        return Session(self, Coordinator(plan, party.roster, link, party.key.sign), sites, link)

    def _spy(self, sites: Mapping[str, SiteProcess], run: str) -> None:
        if "victim" in sites:
            model = participant(sites["victim"])._model
            encode = model.contribution

            def contribution(number: int, cipher: Any, weight: float, *more: Any) -> Any:
                encoded = encode(number, cipher, weight, *more)
                self.truth[run, number] = encoded.digits.astype(np.int64), weight
                return encoded

            model.contribution = contribution  # type: ignore[method-assign]
        mallory = sites.get("mallory")
        if mallory is not None:
            colluder = participant(mallory)
            take = colluder._model.opened

            def opened(found: Any, number: int, weight: float, who: tuple[str, ...]) -> Any:
                self.opened[run, number] = found.values.copy(), dict(found.reserved)
                return take(found, number, weight, who)

            colluder._model.opened = opened  # type: ignore[method-assign]

    def last_error(self, name: str, run: str) -> str:
        path = self.root / name / "runs" / run / "sites" / name / "error.log"
        return path.read_text().strip().splitlines()[-1]

    def close(self) -> None:
        """Every process ends."""
        for process in self.processes:
            process.ended()
        self.processes.clear()


def _stand_at(process: SiteProcess, start: int) -> bytes:
    process._stand_at(start, b"")
    return b""


@dataclass
class Session:
    consortium: Consortium
    coordinator: Coordinator
    sites: dict[str, SiteProcess]
    link: Link

    def run(self, first: int, last: int) -> Session:
        self.coordinator.start()
        for number in range(first, last + 1):
            self.coordinator.round(number)
        return self


class Refused(Exception):
    """A site refused, and what its operator reads."""

    def __init__(self, site: str, line: str) -> None:
        super().__init__(f"{site}: {line}")
        self.site, self.line = site, line


class Link:
    """What FLARE does: hand bytes to a site. `drop`: sites whose upload 'was lost'; `codes`: with
    which code each refused last."""

    def __init__(self, sites: Mapping[str, SiteProcess], consortium: Consortium) -> None:
        self._sites = sites
        self.drop: set[str] = set()
        self.codes: dict[str, str] = {}

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        ok: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        for name, data in args.items():
            if name not in self._sites or (method == "work" and name in self.drop):
                failed[name] = "deadline"
                continue
            reply = self._sites[name].handle(method, data)
            if reply.code:
                failed[name] = self.codes[name] = reply.code
            else:
                ok[name] = reply.data
        return Replies(ok, failed)


def participant(process: SiteProcess) -> Any:
    assert process._participant is not None
    return process._participant
