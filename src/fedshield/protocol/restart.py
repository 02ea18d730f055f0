"""What comes before a session: where each site stands, and from which round each begins.

The coordinator asks (`stand`), and hands every site the signed answers of all (`restart`). From
these each site works out by itself where it begins; the coordinator chooses only whose answers are
there. Each site takes its own last answer only, and at `begin` all must have begun from the same
ones, so none is an old one of an honest site's (docs/protocol.md, section 10).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from fedshield.errors import ProtocolError
from fedshield.plan.quorum import Rules
from fedshield.protocol.contexts import least_sites, read_signed
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding, Sign

RESTART = "restart"
ASK_BYTES = 16
NONCE_BYTES = 32
DIGEST_BYTES = 32
#: Rounds that a site may say it keeps: its last two, the beginning, and room for more.
MAX_ROUNDS = 16
_ROUND_BYTES = 8

_M = TypeVar("_M", bound=messages.Message)


def unasked() -> Binding:
    """Of a `stand`, which brings what the rest is bound to."""
    return Binding(bytes(32), 0, RESTART)


def restart_binding(plan_sha256: str, roster: Roster, ask: bytes) -> Binding:
    """Of the answers to one `stand` and of what follows from them: plan, roster, and the 16 bytes
    that the coordinator drew."""
    parts = bytes.fromhex(plan_sha256), roster.sha256(), ask
    return Binding(envelope.run_context(RESTART, *parts), 0, RESTART)


@dataclass(frozen=True)
class Standing:
    """Where a site stands. `rounds`: completed rounds whose adapter it keeps, 0 with them;
    `base_model`: SHA-256 of its base model, 32 bytes."""

    rounds: frozenset[int]
    base_model: bytes

    def to_message(self, nonce: bytes) -> messages.Standing:
        numbers = tuple(number.to_bytes(_ROUND_BYTES, "big") for number in sorted(self.rounds))
        return messages.Standing(nonce, numbers, self.base_model)

    @classmethod
    def from_message(cls, message: messages.Standing) -> Standing:
        """Raises `ProtocolError` ('malformed') for what no site of ours says."""
        given = message.rounds
        if len(message.nonce) != NONCE_BYTES:
            raise ProtocolError("malformed", f"standing: expected a nonce of {NONCE_BYTES} bytes")
        sized = all(len(raw) == _ROUND_BYTES for raw in given)
        if not (sized and given and len(given) <= MAX_ROUNDS and list(given) == sorted(set(given))):
            raise ProtocolError(
                "malformed", f"standing: expected 1 to {MAX_ROUNDS} rounds in order"
            )
        if len(message.base_model) != DIGEST_BYTES:
            raise ProtocolError("malformed", "standing: expected a SHA-256 of the base model")
        numbers = frozenset(int.from_bytes(raw, "big") for raw in given)
        return cls(numbers, message.base_model)


def alike(standings: Mapping[str, Standing]) -> dict[str, Standing]:
    """Those with the base model that most have; of two that as many have, the greater digest's."""
    digests = [standing.base_model for standing in standings.values()]
    common = max(digests, key=lambda digest: (digests.count(digest), digest), default=b"")
    return {site: one for site, one in standings.items() if one.base_model == common}


def begins_at(rules: Rules, standings: Mapping[str, Standing]) -> dict[str, int]:
    """The round that each site begins from: the last one that enough sites keep. With membership
    batches a site that was away begins from its own last one before, and takes the model in the
    session. Empty if no round is kept by enough; a site that keeps none of use is left out."""
    least = least_sites(rules)
    common = [
        number
        for number in frozenset().union(*(one.rounds for one in standings.values()))
        if sum(number in one.rounds for one in standings.values()) >= least
    ]
    if not common:
        return {}
    last = max(common)
    if rules.membership != "batches":
        return {site: last for site, one in standings.items() if last in one.rounds}
    earlier = {
        site: [number for number in one.rounds if number <= last] for site, one in standings.items()
    }
    return {site: max(numbers) for site, numbers in earlier.items() if numbers}


class SiteRestart:
    """A site's side. `standing` loads what it takes to say where the site stands; `stand_at` has it
    stand at a round, and keep the digest of what that follows from; `told` is given the base models
    that all say they have."""

    METHODS: ClassVar[tuple[str, ...]] = ("stand", "compare", "restart")

    def __init__(
        self,
        name: str,
        plan_sha256: str,
        roster: Roster,
        sign: Sign,
        standing: Callable[[], Standing],
        stand_at: Callable[[int, bytes], None],
        told: Callable[[Mapping[str, bytes]], None],
    ) -> None:
        self._name = name
        self._plan_sha256 = plan_sha256
        self._roster = roster
        self._sign = sign
        self._standing = standing
        self._stand_at = stand_at
        self._told = told
        self._binding = unasked()
        # Its own last answer, until it began from it.
        self._own = b""

    def handle(self, method: str, data: bytes) -> bytes:
        """The signed reply to a signed command. Raises `ProtocolError`, and what the callbacks
        raise."""
        commands = (self._stand, self._compare, self._restart)
        reply = dict(zip(self.METHODS, commands, strict=True))[method](data)
        body = reply.to_body()
        sealed = envelope.seal(reply.kind, self._binding, self._name, body, self._sign)
        if method == "stand":
            self._own = sealed
        return sealed

    def _stand(self, data: bytes) -> messages.Message:
        # Its signature first: nothing is loaded for a stranger.
        command = self._read(messages.Stand, data, unasked())
        if len(command.ask) != ASK_BYTES:
            raise ProtocolError("size", f"stand: expected {ASK_BYTES} bytes to answer to")
        standing = self._standing()
        self._binding = restart_binding(self._plan_sha256, self._roster, command.ask)
        return standing.to_message(os.urandom(NONCE_BYTES))

    def _compare(self, data: bytes) -> messages.Message:
        standings = self._read_standings(self._read(messages.Compare, data).standings)
        self._told({site: one.base_model for site, one in standings.items()})
        return messages.Done()

    def _restart(self, data: bytes) -> messages.Message:
        command = self._read(messages.Restart, data)
        standings = self._read_standings(command.standings)
        base = {one.base_model for one in standings.values()}
        if len(base) > 1:
            raise ProtocolError("disagree", "restart: the sites have different base models")
        begins = begins_at(self._roster.rules, standings)
        if self._name not in begins:
            least = least_sites(self._roster.rules)
            raise ProtocolError(
                "round",
                f"restart: no round that {least} of {', '.join(sorted(standings))} keep is one "
                "that this site can begin from",
            )
        self._own = b""
        self._stand_at(begins[self._name], standings_digest(command.standings))
        return messages.Done()

    def _read(self, kind: type[_M], data: bytes, binding: Binding | None = None) -> _M:
        wanted = binding or self._binding
        body = envelope.unseal(data, kind.kind, wanted, COORDINATOR, self._roster.coordinator)
        return kind.from_body(body)

    def _read_standings(self, raw: Mapping[str, bytes]) -> dict[str, Standing]:
        found = read_standings(raw, self._binding, self._roster)
        if not self._own:
            raise ProtocolError("repeated", "this site was not asked where it stands, or began")
        if raw.get(self._name) != self._own:
            raise ProtocolError("disagree", "this site's own standing is missing, or was replaced")
        return found


def standings_digest(raw: Mapping[str, bytes]) -> bytes:
    """Of signed standings: 32 bytes."""
    return hashlib.sha256(codec.encode(dict(raw))).digest()


def read_standings(
    raw: Mapping[str, bytes], binding: Binding, roster: Roster
) -> dict[str, Standing]:
    """Each signed by its site. Raises `ProtocolError`."""
    return {
        site: Standing.from_message(read_signed(data, messages.Standing, binding, site, roster))
        for site, data in sorted(raw.items())
    }
