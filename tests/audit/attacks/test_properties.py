"""Which silo, and in what mix, from updates of known silos and known mixes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from audit_kit import SITES, make

from fedshield.audit import replay
from fedshield.audit.attacks import openings, properties

MANY = {"training.steps": 6, "training.batch_size": 8, "rounds": 1}


@pytest.fixture(scope="module")
def kinds(staged: Any) -> Any:
    found = staged(**MANY)
    start = found.scene.start(found.plan)
    text = {name: data.heldout for name, data in found.scene.data.items()}
    return found, start, properties.learn(found.scene, found.plan, start, 1, text)


def test_the_silo_of_an_update_in_the_clear_is_named(kinds: Any) -> None:
    """A guess names one of three; on this small model hospital and bank are alike, and which of
    them an update points to goes with the rows that were drawn."""
    found, start, learnt = kinds
    seen = openings.by_server(found.recording.server, found.plan, start).seen
    assert [one.sites[0] for one in seen] == list(SITES)
    named = [properties.which(one, learnt) for one in seen]
    assert sum(name == site for name, site in zip(named, SITES, strict=True)) >= 2
    for one in seen:
        guess = properties.mix(one, learnt)
        assert sum(guess.values()) == pytest.approx(1)
        assert properties.distance(guess, {one.sites[0]: 1.0}) < 0.6


def test_a_mix_of_updates_is_taken_apart(kinds: Any) -> None:
    """Seven parts to three of two silos' real updates; shares are of the update, so of response
    tokens, not of rows."""
    found, start, learnt = kinds
    by_site = {
        one.sites[0]: one
        for one in openings.by_server(found.recording.server, found.plan, start).seen
    }
    school, hospital = (
        one.values / np.linalg.norm(one.values) for one in (by_site["school"], by_site["hospital"])
    )
    mixed = replace(by_site["school"], values=(0.7 * school + 0.3 * hospital).astype(np.float32))
    shares = properties.mix(mixed, learnt)
    assert max(shares, key=lambda kind: shares[kind]) == "school"
    assert properties.distance(shares, {"school": 0.7, "hospital": 0.3}) < properties.distance(
        shares, {"school": 0.3, "hospital": 0.7}
    )
    exact = replace(
        mixed,
        values=(
            0.6 * learnt.direction("bank", np.ones(mixed.values.size))
            + 0.4 * learnt.direction("school", np.ones(mixed.values.size))
        ).astype(np.float32),
    )
    assert properties.mix(exact, learnt) == pytest.approx(
        {"bank": 0.6, "hospital": 0.0, "school": 0.4}, abs=1e-3
    )


def test_bytes_that_do_not_open_name_no_silo(kinds: Any, staged: Any) -> None:
    _, start, learnt = kinds
    found = staged(**MANY | {"scheme.name": "rlwe"})
    seen = openings.by_server(found.recording.server, found.plan, start).seen
    alike = [
        abs(float(learnt.direction(kind, np.ones(one.values.size)) @ one.values))
        / float(np.linalg.norm(one.values))
        for one in seen
        for kind in SITES
    ]
    assert max(alike) < 0.15


def test_distance_is_total_variation() -> None:
    assert properties.distance({"a": 1.0}, {"a": 0.25, "b": 0.75}) == 0.75
    assert properties.distance({"a": 1.0}, {"a": 1.0}) == 0


def test_learning_does_not_touch_the_plans_own_rows(kinds: Any) -> None:
    found, _, _ = kinds
    again = replay.record(make(**MANY), found.scene)
    assert again.released.state.sha256() == found.recording.released.state.sha256()
