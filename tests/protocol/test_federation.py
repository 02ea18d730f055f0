"""The protocol end to end: what the sites open is the weighted mean, and the same at every site."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedshield.crypto import shamir
from fedshield.errors import ProtocolError
from fedshield.protocol.wire import messages
from reference.rounds import Rounds, expected_weights, two_digits

SCHEMES = pytest.mark.parametrize("scheme", ["plain", "ckks", "rlwe"])

Array = np.ndarray[Any, Any]


@SCHEMES
@pytest.mark.parametrize("weights", ["private", "public", "equal"])
@pytest.mark.parametrize("sites", [2, 3, 5])
def test_the_new_adapter_is_the_weighted_mean(
    federation: Any, scheme: str, weights: str, sites: int
) -> None:
    ours = federation(scheme, sites, weights)
    ours.coordinator.start()
    assert ours.coordinator.completed_rounds == 0
    expected = expected_weights(ours, weights)
    assert {name: one._weight for name, one in ours.participants.items()} == expected
    reference = Rounds(ours, expected)
    for number in (1, 2, 3):
        reference.round(number)
    ours.coordinator.finish()
    assert ours.coordinator.completed_rounds == 3
    assert ours.coordinator.lost == {}


@SCHEMES
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("exchange", ["parameters", "delta"])
def test_pruned_parameters_and_differences(
    federation: Any, scheme: str, exchange: str, feedback: bool
) -> None:
    """A pruned difference is sent with the next round's, unless that is off."""
    ours = federation(
        scheme,
        adapter={"exchange": exchange},
        pruning={
            "mask": "local",
            "initial_rate": 0.3,
            "target_rate": 0.3,
            "start_round": 1,
            "target_round": 1,
        },
        encoding={"error_feedback": feedback},
    )
    ours.coordinator.start()
    reference = Rounds(ours, dict.fromkeys(ours.names, 1 / 3))
    for number in (1, 2):
        reference.round(number, 0.3)
        assert {record.pruned_values for record in ours.seen.values()} == {int(0.3 * 300) + 75}
        for site in ours.participants.values():
            left = np.abs(site.memory.residual)
            if not feedback:
                assert not left.any()
            elif exchange == "delta":
                assert np.count_nonzero(left) > 160  # at least all that was pruned
            elif scheme == "rlwe":
                assert 0 < left.max() < 1e-3  # the rounding only
            else:
                assert not left.any()


@pytest.mark.parametrize(("bits", "headroom"), [(16, True), (8, False), (8, True), (4, True)])
def test_sums_of_few_bits_are_exact_too(federation: Any, bits: int, headroom: bool) -> None:
    ours = federation("rlwe", 4, "private", encoding={"bits": bits, "headroom": headroom})
    for work in ours.works.values():
        work.num_examples = 50  # the least weight must leave steps enough
    ours.works["lab"].num_examples = 70
    ours.coordinator.start()
    weights = expected_weights(ours, "private")
    reference, before = Rounds(ours, weights), ours.state()
    step = max(reference.clip) / reference.top
    reference.round(1)
    assert {record.clipped_values for record in ours.seen.values()} == {0}
    trained = [ours.trained(name, before, 1).astype(np.float64) for name in weights]
    mean = np.average(trained, axis=0, weights=list(weights.values()))
    off = np.abs(ours.state().values - mean)
    assert step / 100 < off.max() < 4 * step  # each of four sites is off by less than a step
    assert abs((ours.state().values - mean).mean()) < step / 4  # and, on the mean, by nothing
    for number in (2, 3):
        reference.round(number)


def test_a_value_beyond_its_clip_is_cut_counted_and_sent_later(federation: Any) -> None:
    training = {"learning_rate": 0.05, "steps": 10, "lr_schedule": "constant"}
    ours = federation("rlwe", training=training)
    ours.coordinator.start()
    assert [one.memory.clip.tolist() for one in ours.participants.values()] == [[0.5, 0.5]] * 3
    reference, before = Rounds(ours, dict.fromkeys(ours.names, 1 / 3)), ours.state()
    reference.round(1)
    for name, record in ours.seen.items():
        moved = np.abs(ours.trained(name, before, 1) - before.values)
        assert record.clipped_values == np.count_nonzero(moved > 0.5) > 0
        assert np.abs(reference.carried[name]).max() == pytest.approx(moved.max() - 0.5, abs=1e-4)
    for number in (2, 3):
        reference.round(number)


def test_the_paper_set(federation: Any) -> None:
    ours = federation("ckks", 2, parameters="paper")
    ours.coordinator.start()
    Rounds(ours, {"bank": 0.5, "clinic": 0.5}).round(1)


@SCHEMES
def test_an_adapter_of_several_blocks(three_blocks: Any, scheme: str) -> None:
    ours = three_blocks(scheme)
    ours.coordinator.start()
    Rounds(ours, dict.fromkeys(ours.names, 1 / 3)).round(1)
    for name in ours.names:
        assert len(ours.wire.of(name, "fetch")) == len(ours.wire.of(name, "deliver")) == 3


@SCHEMES
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


@SCHEMES
def test_tags_are_under_the_group_key(federation: Any, scheme: str) -> None:
    """Same context, same round, same model: another tag, if the group key is another one."""
    ours = federation(scheme).run(1)
    bank = ours.participants["bank"]
    tag = bank._tag(b"model", b"a model")
    assert tag == ours.participants["clinic"]._tag(b"model", b"a model")
    assert tag != bank._tag(b"model", b"another") != bank._tag(b"layout", b"a model") != tag
    bank._keys = replace(bank._keys, group_key=bytes(32))
    assert bank._tag(b"model", b"a model") != tag


@SCHEMES
def test_before_a_round_sites_tag_all_that_they_must_agree_on(federation: Any, scheme: str) -> None:
    """Adapter, clips, scores and weight total: one site with another of these is noticed before
    it works, and the coordinator cannot compare the tags with anything that it knows."""
    ours = federation(scheme, weights="private").run(1)
    keys = ours.prepare(2)
    found = {ours.opened(raw)[3]["model_tag"] for raw in keys.values()}
    assert len(found) == 1
    assert ours.opened(keys["bank"])[3]["bound"] == {}
    for change in ("clip", "score", "adapter", "weights"):
        ours = federation(scheme, weights="private").run(1)
        one = ours.participants["clinic"]
        memory, state = one.memory, one.state
        if change == "clip":
            clip = np.nextafter(memory.clip, np.float32(9))
            one._model.memory = replace(memory, shared={**memory.shared, "clip": clip})
        elif change == "score":
            score = np.zeros(state.spec.num_values, np.float32)
            one._model.memory = replace(memory, shared={**memory.shared, "score": score})
        elif change == "adapter":
            values = np.nextafter(state.values, np.float32(9))
            one._model.state = replace(state, values=values)
        else:
            one._weights_total += 1
        keys = ours.prepare(2)
        for site in ours.names:
            with pytest.raises(ProtocolError, match="starts from another model") as caught:
                ours.send(site, messages.Work(keys))
            assert caught.value.code == "disagree"
            assert ours.works[site].trained_rounds == [1], change


@SCHEMES
def test_an_equal_plan_gives_an_equal_adapter_under_other_keys(
    federation: Any, scheme: str
) -> None:
    """Keys, nonces and noise are fresh; the opened sums are exact, so the adapters are equal."""
    runs = [federation(scheme, weights="private").run(2) for _ in range(2)]
    assert runs[0].state().sha256() == runs[1].state().sha256()
    uploads = [run.opened(run.wire.of("bank", "work")[-1].reply)[3] for run in runs]
    assert len({upload["layout_tag"].hex() for upload in uploads}) == 2
    assert len({upload["key_id"].hex() for upload in uploads}) == (2 if scheme == "ckks" else 1)
    same = uploads[0]["block_digests"] == uploads[1]["block_digests"]
    assert same == (scheme == "plain")


@SCHEMES
def test_private_counts_stay_private(federation: Any, scheme: str) -> None:
    """With private weights no join names a count; with public ones it names the rounded one."""
    for weights in ("private", "equal", "public"):
        ours = federation(scheme, weights=weights)
        ours.coordinator.start()
        joins = {
            name: ours.opened(ours.wire.of(name, "invite")[0].reply)[3]["num_examples"]
            for name in ours.names
        }
        counts = {name: two_digits(work.num_examples) for name, work in ours.works.items()}
        assert joins == (counts if weights == "public" else dict.fromkeys(ours.names, 0))


@SCHEMES
def test_the_coordinator_asks_each_site_for_each_block_once(three_blocks: Any, scheme: str) -> None:
    ours = three_blocks(scheme, weights="private").run(1)
    ours.coordinator.finish()
    shares = ["fetch-shares", "hold"] if scheme == "rlwe" else []

    def a_sum(blocks: int) -> list[str]:
        votes = ["announce", "quorum"]
        fetched, delivered = ["fetch"] * blocks, ["deliver"] * blocks
        opening = [*delivered, "open", "install", "evaluate"]
        return ["prepare", "work", *shares, *fetched, *votes, *opening]

    for site in ours.names:
        methods = [one.method for one in ours.wire.log if one.site == site]
        first = "make-key" if site == "bank" else "take-key"
        # Under rlwe counts travel in the shares: there is no block to ask for.
        weighing = a_sum(0 if scheme == "rlwe" else 1)
        assert methods == ["invite", "begin", first, *weighing, *a_sum(3), "finish"]


@SCHEMES
def test_what_crosses_says_nothing_of_shares_where_there_are_none(
    federation: Any, scheme: str
) -> None:
    """With a shared key no share is dealt; with one-time keys each peer gets a box of its own."""
    ours = federation(scheme, sites=4).run(1)
    for site in ours.names:
        others = set(ours.names) - {site}
        upload = ours.opened(ours.wire.of(site, "work")[0].reply)[3]
        answer = ours.opened(ours.wire.of(site, "quorum")[0].reply)[3]
        dealt = others if scheme == "rlwe" else set()
        assert set(upload["share_digests"]) == set(answer["boxes"]) == dealt
        assert answer["share"] == b""
        opened = ours.opened(ours.wire.of(site, "open")[0].command)[3]
        assert set(opened["answers"]) == dealt
        if scheme == "rlwe":
            boxes = ours.opened(ours.wire.of(site, "fetch-shares")[0].reply)[3]["boxes"]
            for holder, box in boxes.items():
                assert hashlib.sha256(box).digest() == upload["share_digests"][holder]


def test_a_plan_may_open_to_the_server(federation: Any) -> None:
    """The shares of the sum's key are then in the clear; what the sites take is the same."""
    ours = federation("rlwe", sites=4, rules={"open_to": "server"})
    ours.coordinator.start()
    reference = Rounds(ours, dict.fromkeys(ours.names, 1 / 4))
    for number in (1, 2):
        reference.round(number)
    for site in ours.names:
        answer = ours.opened(ours.wire.of(site, "quorum")[0].reply)[3]
        assert answer["boxes"] == {}
        # The key's, three reserved integers and two tags.
        assert len(answer["share"]) == shamir.share_bytes(4) + 5 * 8 == 5504


@SCHEMES
def test_finishing_drops_the_keys(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(1)
    for one in ours.participants.values():
        assert None not in (one._keys, one._cipher, one._run_key)
    ours.coordinator.finish()
    for one in ours.participants.values():
        assert (one._keys, one._cipher, one._run_key, one._sum) == (None,) * 4
        assert (one._peer_keys, one._weight, one._receipt_tag) == ({}, 0.0, b"")


@SCHEMES
def test_an_invite_drops_the_keys_and_an_unfinished_sum(federation: Any, scheme: str) -> None:
    ours = federation(scheme).run(1)
    before = {name: one._keys.group_key for name, one in ours.participants.items()}
    ours.work(2)
    assert all(one._sum is not None for one in ours.participants.values())
    ours.another_coordinator().start()
    for name, one in ours.participants.items():
        assert one._sum is None
        assert one._keys.group_key != before[name]


@SCHEMES
def test_a_sums_keys_go_with_it(federation: Any, scheme: str) -> None:
    ours = federation(scheme, weights="private").run(1)
    for one in ours.participants.values():
        assert one._keys is not None
        assert one._sum is None


@SCHEMES
def test_a_second_session_goes_on_where_the_first_ended(federation: Any, scheme: str) -> None:
    """The same participants, a new coordinator, new keys: as if there had been one session."""
    straight = federation(scheme).run(4)
    ours = federation(scheme).run(2)
    ours.coordinator.finish()
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    assert ours.coordinator.completed_rounds == 2
    for number in (3, 4):
        ours.coordinator.round(number)
    assert ours.state().sha256() == straight.state().sha256()


@SCHEMES
def test_sites_go_on_from_what_they_kept(federation: Any, scheme: str) -> None:
    """Adapter, residual and clip are all that a site needs of the past."""
    pruning = {"initial_rate": 0.3, "target_rate": 0.3, "start_round": 1, "target_round": 1}
    straight = federation(scheme, pruning=pruning).run(4)
    ours = federation(scheme, pruning=pruning).run(2)
    for name in ours.names:
        store = ours.stores[name]
        ours.participants[name] = ours.participant(
            name, ours.roster, store.saved[2], 2, store.memories[2]
        )
    ours.coordinator = ours.another_coordinator()
    ours.coordinator.start()
    for number in (3, 4):
        ours.coordinator.round(number)
    assert ours.state().sha256() == straight.state().sha256()


@SCHEMES
def test_losses_stay_at_the_sites(federation: Any, scheme: str) -> None:
    """With rlwe their weighted mean is in the sum; each site's own is nowhere."""
    ours = federation(scheme, weights="private").run(1)
    for name, record in ours.seen.items():
        after = float(np.abs(ours.state().values).mean())
        assert record.heldout_loss_after == after != record.heldout_loss_before
        assert ours.opened(ours.wire.of(name, "evaluate")[-1].reply)[3] == {}
        assert record.train_loss == 1.0
        if scheme == "rlwe":
            assert record.mean_train_loss == pytest.approx(1.0, abs=1e-5)
        else:
            assert np.isnan(record.mean_train_loss)


def test_the_mean_training_loss_is_weighted(federation: Any) -> None:
    ours = federation("rlwe", weights="private")
    losses = {"bank": 0.5, "clinic": 3.0, "hospital": 2000.0}  # over 1024 is cut
    for name, work in ours.works.items():
        real = work.train

        def train(
            state: Any,
            number: int,
            _: Any = None,
            real: Any = real,
            loss: float = losses[name],
        ) -> Any:
            return real(state, number)[0], loss

        work.train = train
    ours.run(1)
    weights = expected_weights(ours, "private")
    mean = sum(min(losses[name], 1024.0) * weights[name] for name in ours.names)
    for record in ours.seen.values():
        assert record.mean_train_loss == pytest.approx(mean, abs=1e-5)
