"""Who opens what: the numbers that come out are the ones that went in, or nothing comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedshield.audit.attacks import openings

PRUNED = {
    "pruning.method": "magnitude", "pruning.initial_rate": 0.25, "pruning.target_rate": 0.5,
    "pruning.start_round": 1, "pruning.target_round": 2,
}  # fmt: skip


def agrees(seen: openings.Seen, found: Any, atol: float) -> None:
    """The update is the one that the site sent, where it travelled."""
    (site,) = seen.sites
    sent = found.recording.sites[site].sent[seen.round_number]
    assert np.abs(sent).max() > 1e-3
    np.testing.assert_allclose(np.where(seen.known, sent, 0), seen.values, atol=atol)


@pytest.mark.parametrize("changes", [{}, PRUNED, PRUNED | {"pruning.mask": "local"}])
def test_the_server_reads_every_update_in_the_clear(staged: Any, changes: dict[str, Any]) -> None:
    found = staged(**changes)
    opening = openings.by_server(found.recording.server, found.plan, found.scene.start(found.plan))
    assert len(opening.seen) == 6
    assert all(one.opened for one in opening.seen)
    for one in opening.seen:
        agrees(one, found, 1e-6)
    if changes:
        assert 0.4 < 1 - opening.seen[-1].known.mean() < 0.6


def test_parameters_in_place_of_differences_are_read_too(staged: Any) -> None:
    found = staged(**{"adapter.exchange": "parameters"})
    start = found.scene.start(found.plan)
    first = openings.by_server(found.recording.server, found.plan, start).seen[0]
    sent = found.recording.sites["bank"].sent[1]
    np.testing.assert_allclose(first.values, sent - start.values, atol=1e-6)


@pytest.mark.parametrize("scheme", ["ckks", "rlwe"])
def test_the_server_alone_opens_nothing_encrypted(staged: Any, scheme: str) -> None:
    found = staged(**{"scheme.name": scheme})
    start = found.scene.start(found.plan)
    opening = openings.by_server(found.recording.server, found.plan, start)
    assert not any(one.opened for one in opening.seen)
    for one in opening.seen:
        sent = found.recording.sites[one.sites[0]].sent[one.round_number]
        assert abs(np.corrcoef(one.values, sent)[0, 1]) < 0.05


def test_one_site_with_the_server_opens_every_update_under_ckks(staged: Any) -> None:
    found = staged(**{"scheme.name": "ckks"} | PRUNED)
    view = found.recording.coalition(["school"])
    opening = openings.by_coalition(view, found.plan, found.recording.roster)
    assert opening.refused == ()
    assert {one.sites for one in opening.seen} == {("bank",), ("hospital",)}
    assert len(opening.seen) == 4
    for one in opening.seen:
        agrees(one, found, 1e-5)


def test_c_sites_with_the_server_open_nothing_under_rlwe(staged: Any) -> None:
    found = staged(**{"scheme.name": "rlwe"})
    rules = found.plan.rules()
    assert (rules.max_colluding, rules.threshold) == (1, 2)
    for name in found.plan.data.site_names():
        view = found.recording.coalition([name])
        opening = openings.by_coalition(view, found.plan, found.recording.roster)
        assert opening.seen == ()
        assert len(opening.refused) == 4
        assert set(opening.refused) == {"shamir: expected 2 shares, got 1"}
        left = openings.left_closed(view, found.scene.start(found.plan))
        assert len(left) == 4
        assert not any(one.opened or name in one.sites for one in left)


def test_more_than_c_sites_with_the_server_open_the_rest_under_rlwe(staged: Any) -> None:
    """The control: the same attack, with shares enough."""
    found = staged(**{"scheme.name": "rlwe"})
    view = found.recording.coalition(["bank", "school"])
    opening = openings.by_coalition(view, found.plan, found.recording.roster)
    assert [one.sites for one in opening.seen] == [("hospital",)] * 2
    for one in opening.seen:
        agrees(one, found, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scheme.name": "ckks"},
        {"scheme.name": "rlwe"},
        *(
            {"aggregation.optimizer": name, "aggregation.learning_rate": rate}
            for name, rate in (
                ("fedavg", 0.5), ("fedavgm", 0.5), ("fedadam", 0.02), ("fedyogi", 0.02),
                ("fedadagrad", 0.02),
            )
        ),
    ],
)  # fmt: skip
def test_any_site_has_the_mean_of_the_others(staged: Any, changes: dict[str, Any]) -> None:
    """Under every scheme, and whatever the federated optimiser makes of the mean."""
    found = staged(**changes)
    sites = found.recording.sites
    seen = openings.of_the_others((sites["bank"],), found.plan)
    assert [one.round_number for one in seen] == [1, 2]
    for one in openings.of_all(sites["bank"], found.plan):
        assert one.sites == ("bank", "hospital", "school")
        mean = sum(
            site.weights[one.round_number] * site.sent[one.round_number] for site in sites.values()
        )
        np.testing.assert_allclose(one.values, mean, atol=2e-4)
    for one in seen:
        assert one.sites == ("hospital", "school")
        weights = [sites[name].weights[one.round_number] for name in one.sites]
        parts = [sites[name].sent[one.round_number] for name in one.sites]
        mean = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
        np.testing.assert_allclose(one.values, mean, atol=2e-4)
        assert np.abs(mean).max() > 5e-3
