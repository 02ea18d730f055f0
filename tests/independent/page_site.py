"""A site of a run, from docs/protocol.md alone: plain Python, numpy and `cryptography`. It knows
scheme `rlwe`, opened to peers, membership `fixed`, weights `private` and `equal`, and no
`privacy.unit`. What it puts in is no training's (page_model)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from page_adapter import Spec
from page_learning import counted, num_sites
from page_memory import Journal, Ledger
from page_model import Model
from page_restart import Restart
from page_seal import CIPHERTEXT, check_keys, new_key, receiving, sending
from page_sum_of_site import Me, Rules, Sum, tag
from page_wire import (
    NONCE,
    NOTHING,
    Binding,
    Refused,
    decode,
    seal,
    session_context,
    setup_context,
    sha256,
    unseal,
)


class IndependentSite:
    """`seed`, `secret`: of its key file, 32 bytes each; `plan`: canonical JSON; `roster`: encoded;
    `rows`: how many it has; `base_model`: SHA-256. `handle` is its only door."""

    def __init__(
        self,
        name: str,
        seed: bytes,
        secret: bytes,
        plan: bytes,
        roster: bytes,
        spec: Spec,
        rows: int,
        base_model: bytes,
        folder: Path,
    ) -> None:
        self.name, self._plan_bytes, self._roster_bytes = name, plan, roster
        self.plan = json.loads(plan)
        _, sites, self._coordinator, rules, charter, _, sealing = decode(roster)
        key = Ed25519PrivateKey.from_private_bytes(seed)
        rows_digest = sha256(b"rows of " + name.encode())
        ledger = Ledger(folder / "ledger.jsonl", name, key, rows_digest, rows_digest)
        journal = Journal(folder / "journal.jsonl")
        self._me = Me(name, key, secret, sites, Rules(*rules), journal, ledger)
        self._check_rules(sealing)
        self._charter = charter.hex() or "demonstration"
        ledger.approve(sha256(plan).hex(), self._charter, self.plan["rounds"])
        honest = self._me.rules.sites - self._me.rules.colluding
        self.count = counted(self.plan, rows, honest)
        self.model = Model(name, self.plan, spec, self._me.rules.threshold, folder)
        self._plan_sha256 = sha256(plan)
        self._session: Binding | None = None
        self._binding = Binding(NOTHING, 0, "setup")
        least = self._me.rules.least_sites
        self._before = Restart(
            name, self._plan_sha256, roster, sites, least, base_model, lambda: [self.completed]
        )
        self._commands: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
            "stand": self._before.stand,
            "compare": self._before.compare,
            "restart": self._before.restart,
            "invite": self._invite,
            "begin": self._begin,
            "make-key": self._make_key,
            "take-key": self._take_key,
            "prepare": self._prepare,
            "work": self._work,
            "fetch": self._fetch,
            "fetch-shares": lambda _: ("shares", {"boxes": self._sum().boxes}),
            "hold": lambda body: ("held", self._sum().hold(body["uploads"], body["shares"])),
            "announce": lambda body: (
                "vote",
                self._sum().announce(body["uploads"], body["block_digests"]),
            ),
            "quorum": lambda body: (
                "answer",
                self._sum().quorum(body["votes"], body["unheard"]),
            ),
            "deliver": lambda body: ("done", self._sum().deliver(body["index"], body["block"])),
            "open": self._open,
            "install": self._install,
            "evaluate": lambda _: ("done", {}),
            "may-go-on": lambda _: ("goes-on", {"room": 1}),
            "finish": self._finish,
        }

    def _check_rules(self, sealing: int) -> None:
        plan, rules, k = self.plan["scheme"], self._me.rules, num_sites(self.plan)
        c = max(1, (k - 1) // 3) if plan["max_colluding"] is None else plan["max_colluding"]
        threshold = max(2, c + 1) if plan["threshold"] is None else plan["threshold"]
        votes = max(threshold, c + 2) if plan["votes"] is None else plan["votes"]
        wanted = Rules(k, c, threshold, votes, k, "malicious", "fixed")
        if rules != wanted or sealing != 2 or len(self._me.keys) != k:
            raise Refused("context: the roster's quorums are not the plan's")

    def digest(self) -> str:
        """Of the adapter."""
        return self.model.digest().hex()

    @property
    def completed(self) -> int:
        return self.model.standing.completed

    def handle(self, method: str, data: bytes) -> bytes:
        """The signed reply to a signed command."""
        bound = Binding(NOTHING, 0, "setup") if method == "invite" else self._binding
        if method == "prepare":
            bound = self._next_sum()
        before = method in ("stand", "compare", "restart")
        if before:
            bound = self._before.bound(method)
        body = unseal(data, method, bound, "coordinator", self._coordinator)
        kind, reply = self._commands[method](body)
        answer = self._before.binding if before else self._binding
        sealed = seal(kind, answer, self.name, reply, self._me.key)
        if method == "stand":
            self._before.own = sealed
        return sealed

    # -- opening a session -----------------------------------------------------------------------

    def _invite(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if body["plan"] != self._plan_bytes or body["roster"] != self._roster_bytes:
            raise Refused("context: not this site's plan and roster")
        self._session, self._current, self._group_key = None, None, b""
        self._total, self._taken, self._receipt = 0, None, b""
        self._run_key, ledger = new_key(self._me.secret), self._me.ledger
        self._join = {
            "nonce": os.urandom(NONCE),
            "run_key": self._run_key.public,
            "completed_rounds": self.completed,
            "num_examples": 0,
            "version": ledger.version,
            "head": ledger.statement(),
            "heads": dict(ledger.peers),
            "restart": self._before.digest,
            "follows_from": 0,
        }
        context = setup_context(self._plan_sha256, self._roster_bytes, body["session"])
        self._binding = Binding(context, 0, "setup")
        return "join", self._join

    def _begin(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        keys = self._me.keys
        joins = {
            site: unseal(data, "join", self._binding, site, keys[site])
            for site, data in body["joins"].items()
        }
        if len(joins) < self._me.rules.least_sites:
            raise Refused("cohort")
        if joins.get(self.name) != self._join:
            raise Refused("disagree: my join was replaced")
        if {len(join["version"]) for join in joins.values()} != {64}:
            raise Refused("size")
        if {join["restart"] for join in joins.values()} != {self._before.digest}:
            raise Refused("round: from other standings")
        if {join["completed_rounds"] for join in joins.values()} != {self.completed}:
            raise Refused("round")
        if len({join["nonce"] for join in joins.values()}) != len(joins):
            raise Refused("repeated")
        check_keys({site: join["run_key"] for site, join in joins.items()})
        self._me.ledger.compare(self.name, joins, keys)
        self._joins = joins
        context = session_context(self._binding.context, joins)
        self._session = self._binding = Binding(context, 0, "setup")
        self._weight = 1 / len(joins) if self.plan["scheme"]["weights"] == "equal" else 0.0
        return "ready", {"context": context}

    def _make_key(self, _: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if self.name != min(self._joins) or self._group_key:
            raise Refused("repeated")
        self._group_key, boxes = os.urandom(32), {}
        for peer, join in self._joins.items():
            if peer == self.name:
                continue
            names, context = (self.name, peer), self._binding.context
            channel, ciphertext = sending(self._run_key, names, join["run_key"], context)
            box = channel.seal(self._group_key, "run keys", b"", os.urandom(32))
            boxed = {"receiver": peer, "key_id": bytes(16), "box": ciphertext + box}
            boxes[peer] = seal("key-box", self._binding, self.name, boxed, self._me.key)
        return "key-offer", {"public": b"", "boxes": boxes}

    def _take_key(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        maker = min(self._joins)
        found = unseal(body["box"], "key-box", self._binding, maker, self._me.keys[maker])
        if self._group_key or found["receiver"] != self.name or found["key_id"] != bytes(16):
            raise Refused("repeated: or another site's keys")
        names, box = (maker, self.name), found["box"]
        public, context = self._joins[maker]["run_key"], self._binding.context
        channel = receiving(self._run_key, names, public, context, box[:CIPHERTEXT])
        self._group_key = channel.open(box[CIPHERTEXT:], "run keys", b"")
        if len(self._group_key) != 32:
            raise Refused("disagree")
        return "done", {}

    # -- sums ------------------------------------------------------------------------------------

    def _next_sum(self) -> Binding:
        if self._session is None or not self._group_key or self._current is not None:
            raise Refused("repeated: no sum can begin now")
        weighing = self.plan["scheme"]["weights"] == "private" and not self._total
        number, phase = (0, "weights") if weighing else (self.completed + 1, "round")
        return Binding(self._session.context, number, phase)

    def _prepare(self, _: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self._binding = of = self._next_sum()
        base = f"weights {of.context.hex()}" if of.phase == "weights" else f"round {self.digest()}"
        agreed = self.model.agreed() + self._total.to_bytes(8, "big")
        self._current = Sum(self._me, self._group_key, of, agreed, base)
        return "round-key", self._current.prepare()

    def _sum(self) -> Sum:
        if self._current is None:
            raise Refused("repeated: in no sum")
        return self._current

    def _work(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        current = self._sum()
        sites = current.begin(body["round_keys"])
        self._binding, number = current.binding, current.binding.round_number
        weighing = current.binding.phase == "weights"
        work = self.model.count(self.count) if weighing else self.model.update(self._weight)
        if not set(sites) <= set(self._joins):
            raise Refused("not-in-set")
        row = {
            "kind": "row",
            "plan": self._plan_sha256.hex(),
            "phase": current.binding.phase,
            "round": number,
            "base": "" if weighing else self.model.standing_digest(self.model.standing),
            "sites": sites,
            "content": work.digest(),
            "versions": {site: self._joins[site]["version"].hex() for site in sites},
        }
        self._me.ledger.enter(row, self._charter, sorted(self._me.keys), self.model.first)
        return "upload", current.work(work)

    def _fetch(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "block", {"index": body["index"], "data": self._sum().chunks[body["index"]]}

    # -- opening and taking ----------------------------------------------------------------------

    def _open(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        current, self._current = self._sum(), None
        sums, reserved = current.open(body["answers"], body["tags"])
        if reserved[0] != len(current.contributors):
            raise Refused("weight: another number of contributors")
        of = current.binding
        if of.phase == "weights":
            if reserved[1] < self.count:
                raise Refused("weight: less than this site's own")
            result, taken = sha256(reserved[1].to_bytes(8, "big")).hex(), reserved[1]
        else:
            taken = self.model.next(sums, reserved, self._weight)
            result = self.model.standing_digest(taken)
        # What was signed for before stands; this one is taken by others' receipts, or not at all.
        self._taken, self._result, self._signed = taken, result, False
        self._receipt = tag(self._group_key, "receipt tag", of, result.encode())
        self._me.ledger.sign_receipt(self._sum_key(), result)
        self._signed = True
        return "receipt", {"model_tag": self._receipt, "head": self._me.ledger.statement()}

    def _sum_key(self) -> str:
        return f"{self._plan_sha256.hex()} {self._binding.phase} {self._binding.round_number}"

    def _certificate(self, receipts: Mapping[str, bytes]) -> None:
        if self.name in receipts and not self._signed:
            raise Refused("disagree: a receipt that this site did not sign")
        for site, data in receipts.items():
            receipt = unseal(data, "receipt", self._binding, site, self._me.keys[site])
            if receipt["model_tag"] != self._receipt:
                raise Refused(f"disagree: {site} opened another model")
            if site != self.name:
                self._me.ledger.see(site, receipt["head"], self._me.keys[site])
        if len(receipts) < self._me.rules.certificate:
            raise Refused("disagree: no certificate")

    def _install(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if self._taken is None:
            raise Refused("repeated: nothing to take")
        self._certificate(body["receipts"])
        if not self._signed:
            self._me.ledger.certify(self._sum_key(), self._result)
        if self._binding.phase == "weights":
            self._total = self._taken
            self._weight = self.count / self._total
        else:
            self.model.take(self._taken)
        self._taken = None
        return "done", {}

    def _finish(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if self._receipt:
            self._certificate(body["receipts"])
        self._session, self._group_key = None, b""
        return "done", {}
