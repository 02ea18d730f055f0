"""A sum that is tried again sends what it sent, and nothing that a coordinator does loses it."""

from __future__ import annotations

from typing import Any

import pytest

from fedshield.errors import RoundFailed
from fedshield.protocol.contexts import ROUND
from fedshield.protocol.wire import messages


def tried(federation: Any, **more: Any) -> Any:
    """Round 2 was entered by all three sites, and its sum never opened."""
    ours = federation("rlwe", **more).run(1)
    ours.work(2)
    return ours


def again(ours: Any) -> Any:
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    return ours.coordinator


def test_a_repeated_round_sends_the_same_integers_and_trains_nothing(federation: Any) -> None:
    ours = tried(federation)
    kept = {name: store.contribution for name, store in ours.stores.items()}
    again(ours).round(2)
    assert {name: store.contribution for name, store in ours.stores.items()} == kept
    assert all(work.trained_rounds == [1, 2] for work in ours.works.values())


def test_another_public_count_does_not_replace_what_was_sent(federation: Any) -> None:
    """A colluder counts for more in the second try: the honest sites' weights would be others,
    and two weightings of the same numbers are two equations. Refused before anything is lost."""
    ours = tried(federation, weights="public")
    kept = ours.stores["bank"].contribution
    ours.works["hospital"].num_examples += 500
    with pytest.raises(RoundFailed):
        again(ours).round(2)
    assert "R4: round 2 was tried before" in str(ours.wire.errors["bank"])
    assert ours.stores["bank"].contribution is kept
    assert ours.works["bank"].trained_rounds == [1, 2]
    ours.works["hospital"].num_examples -= 500
    again(ours).round(2)
    assert ours.participants["bank"].completed_rounds == 2


def test_a_rewind_does_not_replace_what_was_sent(federation: Any) -> None:
    """All sites are had to open at round 0 again, where round 1 was entered and opened before."""
    ours = tried(federation)
    kept = ours.stores["bank"].contribution
    for name in ours.names:
        now = ours.participants[name]
        ours.participants[name] = ours.participant(name, ours.roster)
        ours.works[name].stood = now.state, now.memory
    with pytest.raises(RoundFailed):
        again(ours).round(1)
    assert "R4: round 1 was entered before, and what was sent then is not kept" in str(
        ours.wire.errors["bank"]
    )
    assert ours.stores["bank"].contribution is kept
    for name in ours.names:
        state, memory = ours.works[name].stood
        ours.participants[name] = ours.participant(name, ours.roster, state, 1, memory)
    again(ours).round(2)
    assert ours.participants["bank"].completed_rounds == 2


def test_every_site_sees_the_others_heads_before_it_votes(federation: Any) -> None:
    """With Q = c + 1 one honest vote opens a sum: what a site's ledger holds must be known to all
    before, or one that is restored right after would be known to nobody."""
    ours = federation("rlwe")
    ours.coordinator.start()
    uploads = ours.work(1)
    sent = {site: ours.opened(data)[3]["head"] for site, data in uploads.items()}
    for site in ours.names:
        assert sent[site] == ours.head_of(site)
    boxes: dict[str, Any] = {
        site: ours.send(site, messages.FetchShares())[1]["boxes"] for site in ours.names
    }
    for site in ours.names:
        theirs = {dealer: boxes[dealer][site] for dealer in ours.names if dealer != site}
        ours.send(site, messages.Hold(uploads, theirs))
        line = ours.participants[site]._line
        assert line.heads.statements() == {peer: sent[peer] for peer in ours.names if peer != site}
        assert ours.participants[site]._binding.phase == ROUND
