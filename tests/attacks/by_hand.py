"""A round by hand under any scheme, and every command of it, for the hostile stories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hand import digests
from next_session import NEAR

from fedshield.protocol.wire import messages
from fedshield.protocol.wire.envelope import Binding

SCHEMES = ("plain", "ckks", "rlwe")
ZERO = Binding(bytes(32), 0, "setup")
VICTIM, COLLUDER = "clinic", "surgery"

each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


# -- a round -----------------------------------------------------------------------------------


def summed(federation: Any, uploads: dict[str, bytes], sites: list[str]) -> list[bytes]:
    """The blocks of the sum over `sites`, each as often as it is named."""
    adding = federation.coordinator._adder
    columns = zip(*(federation.blocks(site, uploads[site]) for site in sites), strict=True)
    blocks = []
    for column in columns:
        total: object | None = None
        for block in column:
            total = adding.add(total, block)
        blocks.append(adding.result(total))
    return blocks


def hold(federation: Any, uploads: dict[str, bytes]) -> None:
    """Pass every share on to its holder, where there are any."""
    if federation.plan.scheme.name != "rlwe":
        return
    dealt = {name: federation.send(name, messages.FetchShares())[1]["boxes"] for name in uploads}
    for holder in uploads:
        shares = {dealer: boxes[holder] for dealer, boxes in dealt.items() if dealer != holder}
        kind, body = federation.send(holder, messages.Hold(uploads, shares))
        assert (kind, body) == ("held", {"complaints": {}})


def vote(federation: Any, uploads: dict[str, bytes], blocks: list[bytes]) -> dict[str, bytes]:
    """Every site's signed vote for the sum over `uploads` in `blocks`."""
    announce = messages.Announce(uploads, digests(blocks))
    return {name: federation.reply(name, announce) for name in uploads}


def answer(federation: Any, votes: dict[str, bytes]) -> dict[str, Any]:
    """What every site answers to these votes."""
    return {name: federation.send(name, messages.Quorum(votes))[1] for name in votes}


def boxes_for(site: str, answers: dict[str, Any]) -> messages.Open:
    meant = {holder: one["boxes"][site] for holder, one in answers.items() if site in one["boxes"]}
    return messages.Open(meant, {holder: answers[holder]["tag"] for holder in meant})


def delivered(
    federation: Any, uploads: dict[str, bytes], blocks: list[bytes]
) -> dict[str, messages.Open]:
    """All of a round but for the last command, which is returned for each site."""
    hold(federation, uploads)
    answers = answer(federation, vote(federation, uploads, blocks))
    for site in uploads:
        for index, block in enumerate(blocks):
            federation.send(site, messages.Deliver(index, block))
    return {site: boxes_for(site, answers) for site in uploads}


def finish_round(federation: Any, uploads: dict[str, bytes]) -> None:
    """The rest of an honest round, to show that the session is alive and right."""
    before = federation.state()
    blocks = summed(federation, uploads, list(federation.names))
    receipts = {
        site: federation.reply(site, command)
        for site, command in delivered(federation, uploads, blocks).items()
    }
    assert {federation.opened(data)[0] for data in receipts.values()} == {"receipt"}
    for site in federation.names:
        assert federation.send(site, messages.Install(receipts))[0] == "done"
    contributions = [federation.trained(name, before, 1) for name in federation.names]
    near = NEAR[federation.plan.scheme.name]
    np.testing.assert_allclose(federation.state().values, np.mean(contributions, axis=0), atol=near)


@pytest.fixture(params=SCHEMES)
def begun(federation: Any, request: pytest.FixtureRequest) -> Any:
    """Three sites, equal weights, after `start`."""
    ours = federation(request.param)
    ours.coordinator.start()
    return ours


@pytest.fixture
def uploaded(begun: Any) -> tuple[Any, dict[str, bytes]]:
    """The same, with every site's upload of round 1."""
    return begun, begun.work(1)


# -- its commands ------------------------------------------------------------------------------

#: Every command but `invite`, with nothing in it.
COMMANDS: dict[str, messages.Message] = {
    one.kind: one
    for one in (
        messages.Begin({}),
        messages.MakeKey(),
        messages.TakeKey(b""),
        messages.Attest(),
        messages.GiveModel(0),
        messages.TakeModel("bank", b"", {}),
        messages.Prepare(),
        messages.Train(),
        messages.Work({}),
        messages.FetchShares(),
        messages.Hold({}, {}),
        messages.Fetch(0),
        messages.Announce({}, ()),
        messages.Quorum({}),
        messages.Deliver(0, b""),
        messages.Open({}, {}),
        messages.Install({}),
        messages.Evaluate(),
        messages.MayGoOn(),
        messages.Finish({}),
    )
}
#: Those of one sum, after its `prepare`.
OF_A_SUM = (
    *("work", "fetch-shares", "hold", "fetch"),
    *("announce", "quorum", "deliver", "open", "install"),
)
REPEATED = dict.fromkeys(OF_A_SUM, "repeated")


def all_commands(federation: Any) -> Iterator[tuple[messages.Message, Binding]]:
    """One of each command, as it would be right at some moment of the session."""
    invite = messages.Invite(b"session", federation.plan.canonical(), federation.roster.encode())
    yield invite, ZERO
    for message in COMMANDS.values():
        yield message, federation.binding


def codes(federation: Any, site: str, expected: dict[str, str]) -> None:
    """The codes with which `site` refuses the commands of a round that come too early."""
    found = {name: federation.refused(site, COMMANDS[name]) for name in expected}
    assert found == expected


def invited(federation: Any) -> dict[str, bytes]:
    """Every site's join, by hand."""
    plan, roster = federation.plan.canonical(), federation.roster.encode()
    invite = messages.Invite(b"one session", plan, roster)
    return {name: federation.reply(name, invite, ZERO) for name in federation.names}
