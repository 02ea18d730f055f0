"""A dry run against sessions of real sites, message by message, and what it reckons itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from federation import MakeFederation, opened

from fedshield.cost import messages
from fedshield.cost.dummies import STAND_IN, DummySites, NoAdder
from fedshield.cost.messages import Bytes, DryRun, Shape, shape_of
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.coordinator import Coordinator
from fedshield.protocol.transport import Replies
from fedshield.protocol.wire.envelope import SIGNATURE_BYTES, Binding, seal
from fedshield.protocol.wire.messages import Deliver, Done, Evaluate, Fetch
from fedshield.site.schemes import scheme_of
from fedshield.types import Layout

ROUNDS = 2
CASES: dict[str, dict[str, Any]] = {
    "plain": {"scheme": "plain", "weights": "private"},
    "one site": {"scheme": "plain", "sites": 1},
    "public": {"scheme": "rlwe", "weights": "public"},
    "private": {"scheme": "rlwe", "weights": "private"},
    "equal": {"scheme": "rlwe", "weights": "equal"},
    "two sites": {"scheme": "rlwe", "sites": 2, "weights": "private"},
    "five sites, open": {"scheme": "rlwe", "sites": 5, "weights": "private"},
    "fixed": {"scheme": "rlwe", "sites": 4, "rules": {"membership": "fixed"}},
    "batches": {
        "scheme": "rlwe",
        "sites": 7,
        "weights": "private",
        "rules": {"membership": "batches", "max_colluding": 1},
    },
    "to the server": {"scheme": "rlwe", "sites": 4, "rules": {"open_to": "server"}},
    "semi-honest": {"scheme": "rlwe", "sites": 4, "rules": {"server": "semi-honest"}},
}


def no_key(_: bytes) -> bytes:
    """A signature that nobody checks."""
    return bytes(SIGNATURE_BYTES)


class Lengths:
    """`Sites` over dummies that notes the lengths that their messages have in a run: site, command,
    bytes of the command and of its reply. `layout`: of the sum that is under way."""

    def __init__(self, plan: Plan, sites: DummySites) -> None:
        self.log: list[tuple[str, str, int, int]] = []
        self.layout = scheme_of(plan).weights_layout()
        self._plan, self._sites = plan, sites

    def call(self, method: str, args: Mapping[str, bytes]) -> Replies:
        replies = self._sites.call(method, args)
        for site, command in args.items():
            down, up = self._length(command), self._length(replies.ok[site])
            if method in (Fetch.kind, Deliver.kind):
                index = opened(command)[3]["index"]
                uploaded, summed = scheme_of(self._plan).block_sizes(self.layout)[index]
                up += uploaded if method == Fetch.kind else 0
                down += summed if method == Deliver.kind else 0
            self.log.append((site, method, down, up))
        return replies

    def _length(self, message: bytes) -> int:
        share = bytes(shape_of(self._plan, self.layout).share_bytes)
        return len(message.replace(STAND_IN, share))


def lengths_of(plan: Plan, layout: Layout) -> list[tuple[str, str, int, int]]:
    sites = DummySites(plan, len(scheme_of(plan).block_sizes(scheme_of(plan).weights_layout())))
    noted = Lengths(plan, sites)
    coordinator = Coordinator(
        plan,
        sites.roster,
        noted,
        sign=no_key,
        adder_of=lambda *_: NoAdder(),
    )
    coordinator.start()
    noted.layout, sites.num_blocks = layout, len(scheme_of(plan).block_sizes(layout))
    for number in range(1, ROUNDS + 1):
        coordinator.round(number)
    coordinator.finish()
    return noted.log


def compare(make: MakeFederation, case: dict[str, Any]) -> None:
    real = make(**case).run(ROUNDS)
    real.coordinator.finish()
    crossed = [(one.site, one.method, len(one.command), len(one.reply)) for one in real.wire.log]
    layout = scheme_of(real.plan).update_layout(real.spec.num_values)
    assert lengths_of(real.plan, layout) == crossed
    # And what is made of them.
    shape = shape_of(real.plan, layout)
    dry_run = DryRun(real.plan, [shape])
    up, down = (ROUNDS * way for way in dry_run.round(shape))
    assert (dry_run.setup.up + up, dry_run.setup.down + down) == (
        sum(reply for *_, reply in crossed),
        sum(command for _, _, command, _ in crossed),
    )


@pytest.mark.parametrize("case", CASES)
def test_every_message_is_as_long_as_a_real_site_has_it(
    federation: MakeFederation, case: str
) -> None:
    compare(federation, CASES[case])


@pytest.mark.parametrize("scheme", ["plain", "rlwe"])
def test_every_message_of_several_blocks_too(three_blocks: MakeFederation, scheme: str) -> None:
    compare(three_blocks, {"scheme": scheme, "weights": "private"})


def plan_of(folder: Path, names: tuple[str, ...], **scheme: Any) -> Plan:
    return parse_plan(
        {
            "model": {"name": "tiny-llama"},
            "data": {"sites": {name: {"source": "sample:finance"} for name in names}},
            "scheme": scheme,
        },
        base_dir=folder,
    )


@pytest.mark.parametrize("scheme", ["plain", "rlwe"])
def test_further_blocks_cost_what_the_second_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """What is reckoned is what a dry run with all blocks counts."""
    plan = plan_of(tmp_path, ("a", "bank", "hospital", "z"), name=scheme)
    share_bytes = 1000 if scheme == "rlwe" else 0
    shapes = [Shape(number, 7000, 9000, share_bytes) for number in (1, 2, 3, 9)]
    dry_run = DryRun(plan, shapes)
    reckoned = [dry_run.round(shape) for shape in shapes]
    monkeypatch.setattr(messages, "SENT_BLOCKS", 9)
    whole = DryRun(plan, shapes)
    assert reckoned == [whole.round(shape) for shape in shapes]
    assert dry_run.setup == whole.setup


def test_longer_shares_and_blocks_are_counted_as_often_as_they_travel(tmp_path: Path) -> None:
    """A share goes up sealed and down sealed, and so does an answer, from each of four sites to the
    three others; a block goes up and down once a site."""
    plan = plan_of(tmp_path, ("a", "b", "c", "d"), name="rlwe")
    shapes = [Shape(1, 7000, 9000, 1000), Shape(1, 7010, 9200, 1001)]
    dry_run = DryRun(plan, shapes)
    before, after = (dry_run.round(shape) for shape in shapes)
    assert after == Bytes(before.up + 2 * 4 * 3 + 4 * 10, before.down + 2 * 4 * 3 + 4 * 200)


def test_a_message_that_the_coordinator_gains_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, shape = plan_of(tmp_path, ("a", "b", "c"), name="rlwe"), Shape(1, 7000, 9000, 1000)
    before = DryRun(plan, [shape]).round(shape)
    evaluate = Coordinator._evaluate

    def twice(self: Coordinator) -> None:
        evaluate(self)
        evaluate(self)

    monkeypatch.setattr(Coordinator, "_evaluate", twice)
    after = DryRun(plan, [shape]).round(shape)
    gained = [
        sum(
            len(seal(message.kind, Binding(bytes(32), 1, "round"), sender, {}, no_key))
            for sender in senders
        )
        for message, senders in ((Done, "abc"), (Evaluate, ["coordinator"] * 3))
    ]
    assert after == Bytes(before.up + gained[0], before.down + gained[1])
