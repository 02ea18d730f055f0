"""Bytes of a run's messages, counted in a dry run: a real coordinator over sites that are dummies.

What is sent to whom, how often and in which phase is the coordinator's own doing, so that a message
or a field that it gains is counted without a change to this file. Arithmetic is left for three
things only: how long a share of a key is, what blocks hold, and that a further block of a sum costs
as much as the second. Without it a sum of 64 sites is 150 MB of shares to sign and hash, and one of
the paper's adapter 8 GB of blocks.

The bytes are true; only the lengths of a CKKS ciphertext and key are measured means (the compressor
makes single ones up to half a percent shorter; means of many hold to parts in ten thousand). `rlwe`
and `plain` are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from fedshield.cost.dummies import Counts, DummySites, NoAdder
from fedshield.plan.schema import Plan
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.wire.envelope import SIGNATURE_BYTES
from fedshield.site.ciphers import share_shape
from fedshield.site.schemes import parameters_of, scheme_of
from fedshield.types import Layout

#: Messages of an upload that are sent in a dry run; the bytes of further ones are reckoned.
SENT_BLOCKS = 2


class Bytes(NamedTuple):
    """Of signed messages, of all sites together."""

    up: int
    down: int


class Shape(NamedTuple):
    """What the bytes of a sum depend on. `num_blocks`: messages that an upload travels in;
    `uploaded`, `summed`: bytes of all of them, and of the aggregate's; `share_bytes`: of a share of
    one site's key, 0 where keys are not shared out."""

    num_blocks: int
    uploaded: int
    summed: int
    share_bytes: int


def shape_of(plan: Plan, layout: Layout) -> Shape:
    """Of a sum of this layout. Raises `PlanError` for a packing that does not sum exactly."""
    sizes, share_bytes = scheme_of(plan).block_sizes(layout), 0
    if plan.scheme.traits.one_time_keys:
        share_bytes = share_shape(parameters_of(plan), layout, plan.rules()).num_bytes
    uploaded, summed = sum(size for size, _ in sizes), sum(size for _, size in sizes)
    return Shape(len(sizes), uploaded, summed, share_bytes)


class DryRun:
    """A session of a plan, opened and closed, with the rounds that tell the bytes of all others.

    Args:
        plan: whose sites, quorums and weights the session is of.
        shapes: of all the rounds that are asked for.

    Raises:
        PlanError: the plan's packing does not sum exactly.
    """

    def __init__(self, plan: Plan, shapes: Collection[Shape]) -> None:
        weights = shape_of(plan, scheme_of(plan).weights_layout())
        if plan.scheme.weights != "private":
            weights = Shape(0, 0, 0, 0)  # they are not summed
        self._num_sites = len(plan.data.site_names())
        self._sites = DummySites(plan, weights.num_blocks)
        coordinator = Coordinator(
            plan,
            self._sites.roster,
            self._sites,
            sign=lambda _: bytes(SIGNATURE_BYTES),  # nobody checks it
            adder_of=lambda *_: NoAdder(),
        )
        session = self._counted(coordinator.start)
        self._rounds: dict[int, Counts] = {}
        for number, num_blocks in enumerate(_sent(shapes), start=1):
            self._sites.num_blocks = num_blocks
            self._rounds[num_blocks] = self._counted(coordinator.round, number)
        session += self._counted(coordinator.finish)
        #: Of opening and closing the session.
        self.setup = self._bytes(session, weights)

    def round(self, shape: Shape) -> Bytes:
        """Of one round. Raises `KeyError` for a shape that was not asked for."""
        more = max(0, shape.num_blocks - SENT_BLOCKS)
        counts = self._rounds[shape.num_blocks - more]
        if more:
            counts = counts + more * (counts - self._rounds[SENT_BLOCKS - 1])
        return self._bytes(counts, shape)

    def _bytes(self, counts: Counts, shape: Shape) -> Bytes:
        """With what dummies leave out. Every site hands over its blocks, and takes the sum's."""
        up, down = (int(way) for way in counts @ (1, shape.share_bytes))
        sites = self._num_sites
        return Bytes(up + sites * shape.uploaded, down + sites * shape.summed)

    def _counted(self, act: Callable[..., object], *args: int) -> Counts:
        """What crosses while the coordinator acts."""
        before = self._sites.crossed
        act(*args)
        crossed: Counts = self._sites.crossed - before
        return crossed


def _sent(shapes: Collection[Shape]) -> list[int]:
    """How many blocks the uploads have that are sent, to know the bytes of all."""
    numbers = {shape.num_blocks for shape in shapes}
    sent = {min(number, SENT_BLOCKS) for number in numbers}
    if max(numbers) > SENT_BLOCKS:
        sent.add(SENT_BLOCKS - 1)
    return sorted(sent)
