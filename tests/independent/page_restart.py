"""docs/protocol.md, section 10: what comes before a session, from the page alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

from page_wire import NONCE, NOTHING, Binding, Refused, encode, hashed, sha256, unseal

ASK, DIGEST = 16, 32


class Restart:
    """`keys`: of every site; `least`: max(T, Q, min_cohort); `keeps`: the rounds that this site
    keeps now."""

    def __init__(
        self,
        name: str,
        plan_sha256: bytes,
        roster: bytes,
        keys: Mapping[str, bytes],
        least: int,
        base_model: bytes,
        keeps: Callable[[], list[int]],
    ) -> None:
        self._name, self._plan_sha256, self._roster = name, plan_sha256, roster
        self._keys, self._least, self._base, self._keeps = keys, least, base_model, keeps
        self.binding = Binding(NOTHING, 0, "restart")
        #: Its own last answer as it was sent, and the digest of those that it began from.
        self.own, self.digest = b"", b""

    def bound(self, method: str) -> Binding:
        return Binding(NOTHING, 0, "restart") if method == "stand" else self.binding

    def stand(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if len(body["ask"]) != ASK:
            raise Refused("size")
        context = hashed("restart", self._plan_sha256, sha256(self._roster), body["ask"])
        self.binding = Binding(context, 0, "restart")
        rounds = [struct.pack(">Q", number) for number in self._keeps()]
        return "standing", {"nonce": os.urandom(NONCE), "base_model": self._base, "rounds": rounds}

    def compare(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        said = self._read(body["standings"])
        mine = sum(one["base_model"] == self._base for one in said.values())
        if 2 * mine <= len(said):
            raise Refused("refused: another base model than most")
        return "done", {}

    def restart(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        said = self._read(body["standings"])
        if any(one["base_model"] != self._base for one in said.values()):
            raise Refused("disagree")
        kept = {site: set(map(_number, one["rounds"])) for site, one in said.items()}
        enough = [
            number
            for number in set().union(*kept.values())
            if sum(number in rounds for rounds in kept.values()) >= self._least
        ]
        if not enough or max(enough) not in self._keeps():
            raise Refused("round")
        self.own, self.digest = b"", sha256(encode(dict(body["standings"])))
        return "done", {}

    def _read(self, standings: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
        said = {
            site: unseal(data, "standing", self.binding, site, self._keys[site])
            for site, data in standings.items()
        }
        for one in said.values():
            rounds = one["rounds"]
            sized = {len(raw) for raw in rounds} == {8} and len(one["base_model"]) == DIGEST
            if (
                len(one["nonce"]) != NONCE
                or not sized
                or rounds != sorted(set(rounds))
                or len(rounds) > 16
            ):
                raise Refused("malformed")
        if not self.own:
            raise Refused("repeated: not asked, or begun")
        if standings.get(self._name) != self.own:
            raise Refused("disagree: my standing was replaced")
        return said


def _number(raw: bytes) -> int:
    (number,) = struct.unpack(">Q", raw)
    return int(number)
