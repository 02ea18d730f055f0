"""The protocol end to end: what the sites open is the weighted mean, and the same at every site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedshield.types import AdapterState

GRID = 2.0**-22


def two_digits(count: int) -> int:
    """A count to two significant digits, by way of its decimal text."""
    return int(float(f"{count:.2g}"))


def expected_weights(federation: Any, weights: str) -> dict[str, float]:
    counts = {
        name: 1 if weights == "equal" else two_digits(federation.works[name].num_examples)
        for name in federation.names
    }
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def pruned(values: np.ndarray[Any, Any], state: AdapterState, rate: float) -> np.ndarray[Any, Any]:
    """The floor(rate * size) smallest of each tensor set to zero, the first among equals first."""
    values = values.copy()
    for place in state.spec.slices().values():
        order = np.argsort(np.abs(values[place]), kind="stable")
        part = values[place]
        part[order[: int(rate * part.size)]] = 0
    return values


def check_mean(
    federation: Any,
    before: AdapterState,
    contributions: dict[str, np.ndarray[Any, Any]],
    weights: dict[str, float],
    base: np.ndarray[Any, Any] | float = 0.0,
) -> None:
    """All sites hold the weighted mean of `contributions` (+ `base`): with ckks, the very floats
    that exact arithmetic on the grid gives."""
    found = federation.state()
    assert found.sha256() != before.sha256()
    names = list(contributions)
    stacked = np.stack([contributions[name].astype(np.float64) for name in names])
    w = np.array([weights[name] for name in names])
    np.testing.assert_allclose(
        found.values, np.average(stacked, axis=0, weights=w) + base, atol=2e-6, rtol=0
    )
    if federation.plan.scheme.name == "ckks":
        summed = np.rint(stacked * w[:, None] / GRID).astype(np.int64).sum(axis=0) * GRID
        total = np.rint(w / GRID).astype(np.int64).sum() * GRID
        exact = (summed / total + base).astype(np.float32)
        assert found.values.tobytes() == exact.tobytes()


@pytest.mark.parametrize("sites", [2, 3, 5])
@pytest.mark.parametrize("weights", ["private", "public", "equal"])
@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_the_new_adapter_is_the_weighted_mean(
    federation: Any, scheme: str, weights: str, sites: int
) -> None:
    ours = federation(scheme, sites, weights)
    ours.coordinator.start()
    assert ours.coordinator.completed_rounds == 0
    expected = expected_weights(ours, weights)
    assert {name: one._weight for name, one in ours.participants.items()} == expected
    for number in (1, 2):
        before = ours.state()
        ours.coordinator.round(number)
        contributions = {name: ours.trained(name, before, number) for name in ours.names}
        check_mean(ours, before, contributions, expected)
        for name in ours.names:
            assert ours.participants[name].completed_rounds == number
            assert ours.stores[name].saved[number].sha256() == ours.state().sha256()
    ours.coordinator.finish()
    assert ours.coordinator.completed_rounds == 2


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
@pytest.mark.parametrize("exchange", ["parameters", "delta"])
def test_pruned_parameters_and_differences(federation: Any, scheme: str, exchange: str) -> None:
    ours = federation(
        scheme,
        adapter={"exchange": exchange},
        pruning={"initial_rate": 0.3, "target_rate": 0.3, "start_round": 1, "target_round": 1},
    )
    ours.coordinator.start()
    before = ours.state()
    ours.coordinator.round(1)
    base = before.values.astype(np.float64) if exchange == "delta" else 0.0
    contributions = {}
    for name in ours.names:
        values = ours.trained(name, before, 1)
        moved = values if exchange == "parameters" else values - before.values
        contributions[name] = pruned(moved, before, 0.3)
    check_mean(ours, before, contributions, dict.fromkeys(ours.names, 1 / 3), base)
    assert {record.pruned_values for record in ours.seen.values()} == {int(0.3 * 300) + 75}


def test_the_paper_set(federation: Any) -> None:
    ours = federation("ckks", 2, parameters="paper")
    ours.coordinator.start()
    before = ours.state()
    ours.coordinator.round(1)
    contributions = {name: ours.trained(name, before, 1) for name in ours.names}
    check_mean(ours, before, contributions, {"bank": 0.5, "clinic": 0.5})


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_an_adapter_of_several_blocks(three_blocks: Any, scheme: str) -> None:
    ours = three_blocks(scheme)
    ours.coordinator.start()
    before = ours.state()
    ours.coordinator.round(1)
    assert len(ours.wire.of("bank", "fetch")) == len(ours.wire.of("bank", "deliver")) == 3
    contributions = {name: ours.trained(name, before, 1) for name in ours.names}
    check_mean(ours, before, contributions, dict.fromkeys(ours.names, 1 / 3))


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
@pytest.mark.parametrize("weights", ["private", "equal"])
def test_receipts_are_equal_and_tell_nothing(federation: Any, scheme: str, weights: str) -> None:
    """A receipt is keyed: the coordinator cannot compare it with a model that it knows."""
    ours = federation(scheme, weights=weights).run(2)
    tags = []
    for site in ours.names:
        replies = [ours.opened(one.reply) for one in ours.wire.of(site, "open")]
        tags.append([body["model_tag"] for _, _, _, body in replies])
    assert tags[0] == tags[1] == tags[2]
    assert len(set(tags[0])) == len(tags[0]) == (3 if weights == "private" else 2)
    again = federation(scheme, weights=weights).run(2)
    other = [ours.opened(one.reply)[3]["model_tag"] for one in again.wire.of("bank", "open")]
    assert again.state().sha256() == ours.state().sha256()
    assert not set(other) & set(tags[0])


def test_tags_are_under_the_group_key(federation: Any) -> None:
    """Same context, same round, same model: another tag, if the group key is another one."""
    ours = federation("ckks").run(1)
    bank = ours.participants["bank"]
    tag = bank._tag(b"model", b"a model")
    assert tag == ours.participants["clinic"]._tag(b"model", b"a model")
    assert tag != bank._tag(b"model", b"another") != bank._tag(b"layout", b"a model") != tag
    bank._keys = replace(bank._keys, group_key=bytes(32))
    assert bank._tag(b"model", b"a model") != tag


def test_an_equal_plan_gives_an_equal_adapter_under_other_keys(federation: Any) -> None:
    """Keys, nonces and noise are fresh; the opened sums are exact, so the adapters are equal."""
    runs = [federation("ckks", weights="private").run(2) for _ in range(2)]
    assert runs[0].state().sha256() == runs[1].state().sha256()
    ids = {run.opened(run.wire.of("bank", "work")[-1].reply)[3]["key_id"].hex() for run in runs}
    assert len(ids) == 2


def test_private_counts_stay_private(federation: Any) -> None:
    """With private weights no join names a count; with public ones it names the rounded one."""
    for weights in ("private", "equal", "public"):
        ours = federation("ckks", weights=weights)
        ours.coordinator.start()
        joins = {
            name: ours.opened(ours.wire.of(name, "invite")[0].reply)[3]["num_examples"]
            for name in ours.names
        }
        counts = {name: two_digits(work.num_examples) for name, work in ours.works.items()}
        assert joins == (counts if weights == "public" else dict.fromkeys(ours.names, 0))


def test_the_coordinator_asks_each_site_for_each_block_once(three_blocks: Any) -> None:
    ours = three_blocks("ckks", weights="private").run(1)
    for site in ours.names:
        methods = [one.method for one in ours.wire.log if one.site == site]
        first = "make-key" if site == "bank" else "take-key"
        a_sum = ["work", "fetch", "announce", "deliver", "open"]
        a_sum_of_three = ["work", *["fetch"] * 3, "announce", *["deliver"] * 3, "open"]
        assert methods == [
            "invite", "begin", first, *a_sum, "evaluate", *a_sum_of_three, "evaluate"
        ]  # fmt: skip


def test_finishing_drops_the_keys(federation: Any) -> None:
    ours = federation("ckks").run(1)
    assert all(one._keys is not None for one in ours.participants.values())
    ours.coordinator.finish()
    for one in ours.participants.values():
        assert one._keys is None
        assert one._run_key is None
        assert one._upload is None


def test_a_second_session_goes_on_where_the_first_ended(federation: Any) -> None:
    """The same participants, a new coordinator, new keys: as if there had been one session."""
    straight = federation("ckks").run(4)
    ours = federation("ckks").run(2)
    ours.coordinator.finish()
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    assert ours.coordinator.completed_rounds == 2
    for number in (3, 4):
        ours.coordinator.round(number)
    assert ours.state().sha256() == straight.state().sha256()


def test_losses_stay_at_the_sites(federation: Any) -> None:
    ours = federation("plain").run(1)
    for name, record in ours.seen.items():
        after = float(np.abs(ours.state().values).mean())
        assert record.heldout_loss_after == after != record.heldout_loss_before
        assert ours.opened(ours.wire.of(name, "evaluate")[-1].reply)[3] == {}
