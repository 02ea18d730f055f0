"""What each party sees in a run, taken down as it crosses, and no more than that.

`Tap` stands between the coordinator and the sites and notes every signed message. From the notes
each party's view is made: the server's are all messages, a site's are its own messages and what it
holds in memory, a coalition's are the views of its members, and a holder of the released adapter
has the adapter. Attacks are functions of a view and of public things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedshield.crypto.shares import Share
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.run_keys import RunKeys
from fedshield.protocol.transport import Replies, Sites
from fedshield.protocol.wire import codec, envelope
from fedshield.protocol.wire.envelope import Binding
from fedshield.site.ciphers import Parts
from fedshield.types import AdapterState, Float32, Selection

#: What an envelope has before and after its body.
_HEAD = len(envelope.MAGIC) + 1


@dataclass(frozen=True)
class Crossing:
    """One signed message: to `site` (`down`) or from it (`up`), under the command `method`."""

    site: str
    method: str
    direction: Literal["down", "up"]
    data: bytes = field(repr=False)

    def opened(self) -> tuple[Binding, Any]:
        """What it belongs to, and its body: what anyone reads who has the bytes."""
        message = codec.decode(self.data[_HEAD : -envelope.SIGNATURE_BYTES])
        assert isinstance(message, list)
        _, context, round_number, phase, _, body = message
        assert isinstance(context, bytes)
        assert isinstance(round_number, int)
        return Binding(context, round_number, str(phase)), body


class Tap:
    """`Sites` that notes what crosses."""

    def __init__(self, sites: Sites) -> None:
        self._sites = sites
        self.crossings: list[Crossing] = []

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        ok: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        for site, data in args.items():
            self.crossings.append(Crossing(site, method, "down", data))
            reply = self._sites.call(method, {site: data})
            ok |= reply.ok
            failed |= reply.failed
            if site in reply.ok:
                self.crossings.append(Crossing(site, method, "up", reply.ok[site]))
        return Replies(ok, failed)


@dataclass(frozen=True)
class Upload:
    """One site's upload in one round, as the server has it: opaque blocks."""

    site: str
    round_number: int
    context: bytes = field(repr=False)
    blocks: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class ServerView:
    """Every byte between coordinator and sites, in order."""

    crossings: tuple[Crossing, ...] = field(repr=False)

    def uploads(self) -> tuple[Upload, ...]:
        """The blocks that each site handed over in each round of training."""
        found: dict[tuple[int, str, bytes], list[bytes]] = {}
        for crossing in self.crossings:
            if (crossing.method, crossing.direction) == ("fetch", "up"):
                binding, body = crossing.opened()
                if binding.phase == ROUND:
                    key = (binding.round_number, crossing.site, binding.context)
                    found.setdefault(key, []).append(body["data"])
        return tuple(
            Upload(site, number, context, tuple(blocks))
            for (number, site, context), blocks in sorted(found.items())
        )

    def aggregates(self) -> dict[int, tuple[bytes, ...]]:
        """Round -> the blocks of the sum, as they went to the first site."""
        return _aggregates(self.crossings)


@dataclass(frozen=True, eq=False)
class SiteView:
    """What one site gets and holds.

    `states`: the global adapter after each round, 0 before the first; `sent`: round -> float32,
    (num_values,), its own pruned contribution, unweighted; `weights`: round -> its share of the
    examples; `selections` and `parts`: round -> the coordinates that travel, and the clips of
    them; `shares`: round -> dealer -> the share of its key that was dealt to this site; `momenta`:
    round -> float32, (num_values,), of the federated optimiser, none with `fedavg`.
    """

    site: str
    crossings: tuple[Crossing, ...] = field(repr=False)
    keys: RunKeys
    states: Mapping[int, AdapterState] = field(repr=False)
    sent: Mapping[int, Float32] = field(repr=False)
    weights: Mapping[int, float]
    selections: Mapping[int, Selection] = field(repr=False)
    parts: Mapping[int, Parts] = field(repr=False)
    shares: Mapping[int, Mapping[str, Share]] = field(repr=False)
    momenta: Mapping[int, Float32] = field(repr=False)


@dataclass(frozen=True, eq=False)
class CoalitionView:
    """The server together with some sites."""

    server: ServerView
    sites: tuple[SiteView, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(view.site for view in self.sites)


@dataclass(frozen=True, eq=False)
class AdapterView:
    """A holder of the released adapter: the adapter alone."""

    state: AdapterState = field(repr=False)


def _aggregates(crossings: Sequence[Crossing]) -> dict[int, tuple[bytes, ...]]:
    found: dict[int, dict[int, bytes]] = {}
    for crossing in crossings:
        if (crossing.method, crossing.direction) == ("deliver", "down"):
            binding, body = crossing.opened()
            if binding.phase == ROUND:
                blocks = found.setdefault(binding.round_number, {})
                blocks.setdefault(body["index"], body["block"])
    return {
        number: tuple(blocks[index] for index in sorted(blocks)) for number, blocks in found.items()
    }
