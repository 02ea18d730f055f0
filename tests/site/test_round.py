"""A site's adapter in rounds: error feedback, what sites agree on, sums that are refused; shared
masks, control variates and what a site keeps to itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import FakeWork, MemoryStore
from fedshield.errors import CryptoError, RoundFailed
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol import participant_sum
from fedshield.seeds import SiteRandomness
from fedshield.site.ciphers import Cipher, OneTimeKeys
from fedshield.site.round import LEAST_WEIGHT, SiteModel, first_memory
from fedshield.site.schemes import parameters_of
from fedshield.types import (
    AdapterSpec,
    AdapterState,
    AdapterUpdate,
    EncodedIntegers,
    OpenedSum,
    SiteMemory,
    TensorSpec,
)
from fedshield.update import encode_integers
from fedshield.update.prune import rate_at

NAMES = ("bank", "clinic", "hospital")
WEIGHTS = {"bank": 0.2, "clinic": 0.5, "hospital": 0.3}
SPEC = AdapterSpec((TensorSpec("a", (9, 4)), TensorSpec("b", (5, 5))), "00" * 32, 2.0)
ROUNDS = 6
ALL = set(NAMES)
DRAWN = {name: SiteRandomness.of_demonstration(42, name) for name in NAMES}

Values = np.ndarray[Any, Any]


def admitted(_: Any) -> None:
    """A ledger that takes every update."""


@dataclass
class Wandering(FakeWork):
    """Training that moves towards a place of the site's own, with noise; `reach` of it."""

    num_examples: int = 1234
    loss: float = 1.5
    reach: float = 0.2

    def values(self, state: AdapterState, round_number: int) -> Values:
        rng = np.random.default_rng([len(self.site), ord(self.site[0]), round_number])
        moved = self.reach * (rng.standard_normal(SPEC.num_values) + 0.5)
        return (state.values + moved).astype(np.float32)


def take(
    model: SiteModel, opened: OpenedSum, number: int, weight: float, contributors: Any
) -> None:
    """Open a sum and take what it gives, as a certificate of all sites lets a site do."""
    _, install = model.opened(opened, number, weight, contributors)
    install()


@dataclass
class House:
    """Three sites with the weights above, and the sums between them without any encryption."""

    plan: Plan
    models: dict[str, SiteModel]
    works: dict[str, Wandering]
    disks: dict[str, MemoryStore]
    cipher: OneTimeKeys
    sent: dict[str, Values]
    updates: dict[str, Values]

    def round(self, number: int, contributors: set[str], takers: set[str] = ALL) -> OpenedSum:
        """Everyone trains; the sum over `contributors` is taken. What each has sent and what
        its training gave (both before weighting) is added up."""
        before = self.models["bank"].state.values
        parts: dict[str, EncodedIntegers] = {}
        for name, model in self.models.items():
            encoded = model.contribution(number, self.cipher, WEIGHTS[name], "", admitted)
            assert isinstance(encoded, EncodedIntegers)
            parts[name] = encoded
            values = self.works[name].sent[-1]
            if self.plan.adapter.exchange == "delta":
                values = values - before
            if name in contributors or self.plan.adapter.exchange == "delta":
                self.updates[name] += values
            if name in contributors:
                self.sent[name] += self.decoded(encoded, WEIGHTS[name])
        opened = self.opened({name: parts[name] for name in contributors})
        for name in takers:
            take(self.models[name], opened, number, WEIGHTS[name], tuple(sorted(contributors)))
        return opened

    def decoded(self, encoded: EncodedIntegers, weight: float) -> Values:
        """A site's digits as what they stand for, in float64."""
        model = self.models["bank"]
        values = encoded.digits.astype(np.float64)
        for part, bound in model.parts():
            values[part] *= bound / (weight * self.cipher.parameters.max_digit)
        selection = model.selection()
        found = np.zeros(SPEC.num_values)
        found[selection.indices] = values[: selection.size]
        return found

    def opened(self, parts: dict[str, EncodedIntegers]) -> OpenedSum:
        total = np.sum([p.digits.astype(np.int64) for p in parts.values()], axis=0)
        reserved = tuple(map(sum, zip(*(p.reserved for p in parts.values()), strict=True)))
        return encode_integers.decode_sum(
            total,
            reserved,
            next(iter(parts.values())).layout,
            len(parts),
            self.models["bank"].parts(),
            self.cipher.parameters.max_digit,
        )


MakeHouse = Callable[..., House]


def bank(ours: House, state: AdapterState, memory: SiteMemory) -> SiteModel:
    """The bank's model after round 3."""
    drawn = DRAWN["bank"]
    return SiteModel(
        "bank",
        ours.plan,
        Wandering("bank"),
        MemoryStore(),
        state,
        3,
        memory,
        None,
        randomness=drawn,
    )


@pytest.fixture
def house(tmp_path: Path) -> MakeHouse:
    """`house({'encoding': {'bits': 8}}, reach=0.3)`."""

    def make(
        changes: dict[str, Any] | None = None, spec: AdapterSpec = SPEC, **works: Any
    ) -> House:
        raw: dict[str, Any] = {
            "rounds": ROUNDS,
            "data": {
                "sites": {name: {"source": "sample:finance"} for name in NAMES},
                "min_examples": 1000,
            },
            "pruning": {"method": "none"},
            "training": {"learning_rate": 0.1, "steps": 10, "lr_schedule": "constant"},
            "scheme": {"name": "rlwe"},
            "encoding": {"bits": 8},
        }
        raw |= changes or {}
        if raw["pruning"].get("mask") == "local":  # then a unit is protected, by rule R9
            raw["adapter"] = {**raw.get("adapter", {}), "dropout": 0.0}
            raw["privacy"] = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 100.0}
        plan = parse_plan(raw, base_dir=tmp_path)
        cipher = OneTimeKeys(parameters_of(plan), bytes(32), bytes(32))
        values = np.random.default_rng(1).standard_normal(SPEC.num_values).astype(np.float32)
        state = AdapterState(values, spec)
        tasks = {name: Wandering(name, **works) for name in NAMES}
        disks = {name: MemoryStore() for name in NAMES}
        models = {
            name: SiteModel(
                name, plan, tasks[name], disks[name], state, 0, None, None, randomness=DRAWN[name]
            )
            for name in NAMES
        }
        zeros = {name: np.zeros(SPEC.num_values) for name in NAMES}
        more = {name: np.zeros(SPEC.num_values) for name in NAMES}
        return House(plan, models, tasks, disks, cipher, zeros, more)

    return make


# -- error feedback ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [6, 8, 16])
@pytest.mark.parametrize(
    "pruning",
    [
        None,
        {"initial_rate": 0.5, "target_rate": 0.75, "mask": "local"},
        {"initial_rate": 0.5, "target_rate": 0.75},
        {"initial_rate": 0.5, "target_rate": 0.75, "ranking": "global", "explore": 0.0},
    ],
    ids=["dense", "local", "shared", "shared by rank over all"],
)
def test_nothing_of_a_delta_is_lost(
    house: MakeHouse, bits: int, pruning: dict[str, Any] | None
) -> None:
    """What a site sent over the rounds and what it keeps is the sum of what it trained: rounded,
    clipped and pruned values come later, none goes away."""
    changes: dict[str, Any] = {"encoding": {"bits": bits}}
    if pruning:
        changes["pruning"] = {"method": "magnitude", "start_round": 0, **pruning}
    ours = house(changes, reach=0.8)  # beyond the clip of one now and then
    clipped = 0
    for number in range(1, ROUNDS + 1):
        ours.round(number, ALL)
        clipped += sum(model.record.clipped_values for model in ours.models.values())
        for name, model in ours.models.items():
            kept = model.memory.residual
            np.testing.assert_allclose(
                ours.sent[name] + kept, ours.updates[name], atol=number * 2e-6
            )
            assert kept.any()
            record = model.record
            assert record.pruning_rate == rate_at(ours.plan.pruning, ours.plan.rounds, number)
            assert (record.pruned_values > 0) == (pruning is not None)
    assert clipped > 0


def test_without_feedback_what_is_left_out_is_gone(house: MakeHouse) -> None:
    ours = house({"encoding": {"bits": 6, "error_feedback": False}}, reach=0.8)
    for number in range(1, ROUNDS + 1):
        ours.round(number, ALL)
        for model in ours.models.values():
            assert not model.memory.residual.any()
    for name in NAMES:
        assert np.abs(ours.sent[name] - ours.updates[name]).max() > 0.1


def test_feedback_brings_the_mean_closer(house: MakeHouse) -> None:
    """With coarse digits, the sum over rounds follows what was trained, within what the last
    round leaves; without, it drifts off."""
    distances = {}
    for feedback in (True, False):
        ours = house({"encoding": {"bits": 6, "error_feedback": feedback}}, reach=0.1)
        for number in range(1, ROUNDS + 1):
            ours.round(number, ALL)
        distances[feedback] = max(
            float(np.square(ours.sent[name] - ours.updates[name]).mean()) for name in NAMES
        )
    assert distances[True] < 0.5 * distances[False]


def test_nothing_of_whole_parameters_is_lost(house: MakeHouse) -> None:
    """Each round's parameters come with what the rounds before rounded off."""
    ours = house({"adapter": {"exchange": "parameters"}})
    for number in range(1, ROUNDS + 1):
        ours.round(number, ALL)
        for name, model in ours.models.items():
            kept = model.memory.residual
            np.testing.assert_allclose(
                ours.sent[name] + kept, ours.updates[name], atol=number * 1e-5
            )
            assert np.abs(kept).max() < model.memory.clip.max() * 0.5
            # They replace what was there: no optimiser has moments of them.
            assert not {"momentum", "second"} & model.memory.shared.keys()


def test_pruned_parameters_are_zeros_on_purpose(house: MakeHouse) -> None:
    """They are the paper's zeros, not something to be sent later."""
    pruning = {"initial_rate": 0.5, "target_rate": 0.5, "start_round": 0, "mask": "local"}
    ours = house({"adapter": {"exchange": "parameters"}, "pruning": pruning})
    for number in range(1, 4):
        ours.round(number, ALL)
        for model in ours.models.values():
            assert model._made is None
            assert model.record.pruned_values == 18 + 12
            residual = model.memory.residual
            assert np.count_nonzero(residual == 0) >= 30
            step = model.memory.clip.max() / (0.2 * ours.cipher.parameters.max_digit)
            assert np.abs(residual).max() < 4 * step


# -- not in the sum ----------------------------------------------------------------------------


def test_who_was_not_in_the_sum_puts_its_update_back(house: MakeHouse) -> None:
    """Whole, with what it carried already; and it sends it in the next round that it is in."""
    ours = house()
    ours.round(1, ALL)
    carried = ours.models["hospital"].memory.residual.astype(np.float64)
    before = ours.updates["hospital"].copy()
    ours.round(2, {"bank", "clinic"})
    model = ours.models["hospital"]
    trained = ours.updates["hospital"] - before
    np.testing.assert_allclose(model.memory.residual, carried + trained, atol=2e-6)
    assert model.completed_rounds == 2
    assert model.state.sha256() == ours.models["bank"].state.sha256()
    ours.round(3, ALL)
    for name in NAMES:
        kept = ours.models[name].memory.residual
        np.testing.assert_allclose(ours.sent[name] + kept, ours.updates[name], atol=6e-6)
    # The backlog was two rounds of training: nearly all of it is out now, clips permitting.
    assert np.abs(ours.models["hospital"].memory.residual).max() < np.abs(carried + trained).max()


@pytest.mark.parametrize("mask", ["shared", "local"])
def test_with_pruning_all_of_it_is_put_back(house: MakeHouse, mask: str) -> None:
    """Also what the mask would have left out."""
    pruning = {"initial_rate": 0.5, "target_rate": 0.5, "start_round": 0, "mask": mask}
    ours = house({"pruning": pruning})
    ours.round(1, {"bank", "clinic"})
    np.testing.assert_allclose(
        ours.models["hospital"].memory.residual, ours.updates["hospital"], atol=1e-6
    )


def test_whole_parameters_are_not_put_back(house: MakeHouse) -> None:
    """They would be added to the next ones: twice the model. Only what earlier rounds left of
    them stays."""
    ours = house({"adapter": {"exchange": "parameters"}})
    ours.round(1, ALL)
    kept = ours.models["hospital"].memory.residual.copy()
    assert kept.any()
    ours.round(2, {"bank", "clinic"})
    np.testing.assert_array_equal(ours.models["hospital"].memory.residual, kept)
    assert ours.models["bank"].memory.residual.any()


def test_without_feedback_nothing_is_put_back(house: MakeHouse) -> None:
    ours = house({"encoding": {"bits": 8, "error_feedback": False}})
    ours.round(1, {"bank", "clinic"})
    assert not ours.models["hospital"].memory.residual.any()


def test_a_site_that_sent_nothing_keeps_nothing_back(house: MakeHouse) -> None:
    """It takes the sum of the others: there is no update of its own to put back."""
    ours = house()
    model = ours.models["hospital"]
    parts = {}
    for name in ("bank", "clinic"):
        found = ours.models[name].contribution(1, ours.cipher, WEIGHTS[name], "", admitted)
        assert isinstance(found, EncodedIntegers)
        parts[name] = found
    take(model, ours.opened(parts), 1, WEIGHTS["hospital"], ("bank", "clinic"))
    assert not model.memory.residual.any()
    assert model.completed_rounds == 1


def test_a_round_that_failed_leaves_what_was_carried(house: MakeHouse) -> None:
    """The update is made and never summed: the next try sends the same numbers, and does not train
    again."""
    ours = house()
    ours.round(1, ALL)
    model = ours.models["bank"]
    before = model.memory
    first = model.contribution(2, ours.cipher, WEIGHTS["bank"], "", admitted)
    assert model.memory is before
    again = model.contribution(2, ours.cipher, WEIGHTS["bank"], "", admitted)
    assert isinstance(first, EncodedIntegers)
    assert isinstance(again, EncodedIntegers)
    np.testing.assert_array_equal(first.digits, again.digits)
    assert len(ours.works["bank"].sent) == 2, "trained once in each round"
    ours.round(2, ALL)
    kept = model.memory.residual
    np.testing.assert_allclose(ours.sent["bank"] + kept, ours.updates["bank"], atol=4e-6)


# -- kept, and agreed on -----------------------------------------------------------------------


def test_memory_is_saved_with_the_state(house: MakeHouse) -> None:
    """In one call a round, what is in force; and a site built from it goes on alike."""
    ours = house()
    ours.round(1, ALL)
    ours.round(2, {"bank", "clinic"})
    for name, model in ours.models.items():
        disk = ours.disks[name]
        assert disk.order == [1, 2]
        state, memory = disk.saved[2], disk.memories[2]
        assert state is model.state
        assert memory is model.memory
        again = SiteModel(
            name,
            ours.plan,
            ours.works[name],
            MemoryStore(),
            state,
            2,
            memory,
            None,
            randomness=DRAWN[name],
        )
        assert again.agreed() == model.agreed()
        one = again.contribution(3, ours.cipher, WEIGHTS[name], "", admitted)
        other = model.contribution(3, ours.cipher, WEIGHTS[name], "", admitted)
        assert isinstance(one, EncodedIntegers)
        assert isinstance(other, EncodedIntegers)
        np.testing.assert_array_equal(one.digits, other.digits)
        np.testing.assert_array_equal(one.residual, other.residual)
        # Without what it carried it would go on otherwise.
        bare = SiteModel(
            name,
            ours.plan,
            ours.works[name],
            MemoryStore(),
            state,
            2,
            None,
            None,
            randomness=DRAWN[name],
        )
        forgot = bare.contribution(3, ours.cipher, WEIGHTS[name], "", admitted)
        assert isinstance(forgot, EncodedIntegers)
        assert (forgot.digits != other.digits).any()


def test_rounding_is_the_sites_own_and_repeats(house: MakeHouse) -> None:
    """Plan, seed, round and adapter do not tell it; with the site's secret they do."""
    ours = house()
    model = ours.models["bank"]

    def rounded(randomness: SiteRandomness, state: AdapterState, number: int = 1) -> bytes:
        other = SiteModel(
            "bank",
            ours.plan,
            Wandering("bank"),
            MemoryStore(),
            state,
            0,
            None,
            None,
            randomness=randomness,
        )
        work = other.contribution(number, ours.cipher, WEIGHTS["bank"], "", admitted)
        assert isinstance(work, EncodedIntegers)
        return work.digits.tobytes()

    moved = AdapterState(model.state.values + np.float32(1e-3), SPEC)
    site, plan = SiteRandomness.of_site(b"s" * 32, ours.plan.sha256()), ours.plan
    others = [SiteRandomness.of_demonstration(plan.seed, name) for name in NAMES]
    others += [SiteRandomness.of_site(b"t" * 32, plan.sha256())]
    others += [SiteRandomness.of_site(b"s" * 32, "00" * 32)]
    assert rounded(site, model.state) == rounded(site, model.state)
    assert rounded(site, model.state) not in [rounded(one, model.state) for one in others]
    again = SiteRandomness.of_site(b"s" * 32, ours.plan.sha256())
    assert rounded(again, model.state) == rounded(site, model.state)

    def seed(number: int, state: AdapterState) -> int:
        other = SiteModel(
            "bank", plan, Wandering("bank"), MemoryStore(), state, 0, None, None, randomness=site
        )
        return other.rounding_seed(number)

    assert len({seed(1, model.state), seed(2, model.state), seed(1, moved)}) == 3


def test_a_disk_that_is_full_leaves_the_round_before(house: MakeHouse) -> None:
    ours = house()
    ours.round(1, ALL)
    model = ours.models["bank"]
    state, memory = model.state, model.memory
    ours.disks["bank"].full = True
    with pytest.raises(OSError, match="no space"):
        ours.round(2, ALL, takers={"bank"})
    assert (model.state, model.memory, model.completed_rounds) == (state, memory, 1)


def test_sites_agree_on_clips_whatever_they_keep(house: MakeHouse) -> None:
    """`agreed` is the adapter and the clips; never the residual, which is the site's own."""
    ours = house({"encoding": {"bits": 6}}, reach=0.8)
    for number in range(1, 4):
        ours.round(number, {"bank", "clinic"} if number == 2 else ALL)
        assert len({model.agreed() for model in ours.models.values()}) == 1
        assert len({model.memory.residual.tobytes() for model in ours.models.values()}) == 3
    model = ours.models["bank"]
    assert model.agreed().startswith(bytes.fromhex(model.state.sha256()))
    clip, residual = model.memory.clip, model.memory.residual
    ones, shared = np.ones(SPEC.num_values, np.float32), model.memory.shared
    for memory, alike in (
        (SiteMemory(ones, shared), True),
        (SiteMemory(residual, shared, {"personal": ones}), True),
        (SiteMemory(residual, {**shared, "clip": clip * np.float32(1 + 2**-22)}), False),
        (SiteMemory(residual, {**shared, "clip": clip[::-1].copy()}), False),
        (SiteMemory(residual, {**shared, "score": ones}), False),
        (SiteMemory(residual, {**shared, "momentum": ones}), False),
    ):
        other = bank(ours, model.state, memory)
        assert (other.agreed() == model.agreed()) == alike
    moved = AdapterState(model.state.values + np.float32(1e-3), SPEC)
    other = bank(ours, moved, model.memory)
    assert other.agreed() != model.agreed()


def test_a_site_with_other_clips_is_out_before_it_sends(federation: Any) -> None:
    """In a live federation: one whose clips differ would be laid out in other steps; the sites
    refuse to work with it, and no model moves."""
    ours = federation("rlwe", weights="equal").run(1)
    model = ours.participants["clinic"]._model
    shared = {**model.memory.shared, "clip": model.memory.clip * np.float32(2)}
    model.memory = SiteMemory(model.memory.residual, shared)
    before = ours.states()
    with pytest.raises(RoundFailed):
        ours.coordinator.round(2)
    codes = {one.code for one in ours.wire.log if one.method == "work" and one.code}
    assert codes == {"disagree"}
    assert ours.states() == before


def test_before_the_first_round(house: MakeHouse) -> None:
    ours = house()
    model = ours.models["bank"]
    memory = first_memory(ours.plan, model.state)
    assert not memory.residual.any()
    assert memory.clip.tolist() == [1.0, 1.0]
    assert model.memory.clip.tolist() == [1.0, 1.0]
    assert model.num_examples == 1200


@pytest.mark.parametrize(
    ("rows", "least", "cap", "told"),
    [
        (1234, 1000, None, 1200),
        (1234, 100, None, 300),  # rule R6: three times the least
        (1234, 100, 200, 200),  # the roster's cap
        (1234, 100, 900, 300),
        (1234, 65, None, 190),  # 195, in two digits and never more
        (99, 50, 98, 98),
    ],
)
def test_a_site_counts_for_the_least_of_its_rows_and_two_caps(
    house: MakeHouse, rows: int, least: int, cap: int | None, told: int
) -> None:
    ours = house()
    data = ours.plan.data.model_copy(update={"min_examples": least})
    plan, state = ours.plan.model_copy(update={"data": data}), ours.models["bank"].state
    work, drawn = Wandering("bank", rows), DRAWN["bank"]
    model = SiteModel(
        "bank", plan, work, MemoryStore(), state, 0, None, None, cap, randomness=drawn
    )
    assert model.num_examples == told


def test_clips_follow_the_sum_and_at_most_double(house: MakeHouse) -> None:
    ours = house(reach=50.0)
    clips = [ours.models["bank"].memory.clip]
    for number in range(1, 5):
        ours.round(number, ALL)
        clips.append(ours.models["bank"].memory.clip)
        assert ours.models["bank"].record.clipped_values > 0
    for before, after in pairwise(clips):
        assert (after <= 2 * before).all()
        assert (after > 1.9 * before).all()  # all were cut to the clip, in whole steps


# -- which sums are taken ----------------------------------------------------------------------


def with_weight(opened: OpenedSum, weight: float) -> OpenedSum:
    return OpenedSum(
        opened.values.copy(), {**opened.reserved, encode_integers.WEIGHT: weight}, opened.layout
    )


@pytest.mark.parametrize(
    ("own", "in_set", "weight", "good"),
    [
        (0.5, True, 1.0, True),
        (0.5, True, 0.5, True),
        (0.5, True, 0.4999, False),  # less than its own alone
        (0.5, False, 0.5, True),
        (0.5, False, LEAST_WEIGHT, True),
        (0.5, False, LEAST_WEIGHT - 1e-4, False),
        (0.1, True, LEAST_WEIGHT, True),
        (0.1, True, LEAST_WEIGHT - 1e-4, False),
        (0.1, True, 0.1, False),
        (0.5, True, 1 + 2.0**-21, True),
        (0.5, True, 1 + 2.0**-13, False),
        (0.5, True, 2.0, False),
        (0.5, True, 0.0, False),
        (0.5, True, float("nan"), False),
    ],
)
def test_a_sum_must_weigh_what_a_round_can(
    house: MakeHouse, own: float, in_set: bool, weight: float, good: bool
) -> None:
    """Between its own weight or a quarter, whichever is more, and one; else nothing changes."""
    ours = house()
    parts = {}
    for name in NAMES:
        found = ours.models[name].contribution(1, ours.cipher, WEIGHTS[name], "", admitted)
        assert isinstance(found, EncodedIntegers)
        parts[name] = found
    opened = with_weight(ours.opened(parts), weight)
    model = ours.models["bank"]
    state, memory = model.state, model.memory
    contributors = ("bank", "clinic") if in_set else ("clinic", "hospital")
    if good:
        take(model, opened, 1, own, contributors)
        mean = opened.values / weight
        np.testing.assert_allclose(model.state.values, state.values + mean, atol=1e-5)
        assert model.completed_rounds == 1
        return
    with pytest.raises(CryptoError) as caught:
        take(model, opened, 1, own, contributors)
    assert caught.value.code == "weight"
    assert (model.state, model.memory, model.completed_rounds) == (state, memory, 0)
    assert ours.disks["bank"].order == []


def test_the_record_of_a_round(house: MakeHouse) -> None:
    """What the site's operator is told: who was in the sum and their mean loss, weighted."""
    ours = house()
    for name, loss in (("bank", 1.0), ("clinic", 3.0), ("hospital", 50.0)):
        ours.works[name].loss = loss
    ours.round(1, {"bank", "clinic"})
    for name, model in ours.models.items():
        record = model.evaluate()
        assert record.contributors == ("bank", "clinic")
        assert record.mean_train_loss == pytest.approx((0.2 * 1 + 0.5 * 3) / 0.7, abs=1e-5)
        assert record.train_loss == ours.works[name].loss
        assert record.num_examples == 1234
        assert record.heldout_loss_before == record.heldout_loss_after
    assert record.round_number == 1


def test_training_that_diverged_is_not_encoded(house: MakeHouse) -> None:
    ours = house()
    model = ours.models["bank"]
    memory = model.memory
    for reach, loss, text in ((np.inf, 1.0, "finite values"), (0.1, np.nan, "training loss")):
        ours.works["bank"].reach, ours.works["bank"].loss = reach, loss
        with pytest.raises(CryptoError, match=text):
            model.contribution(1, ours.cipher, 0.2, "", admitted)
    assert model.memory is memory


def test_a_weight_too_small_names_the_knob(house: MakeHouse) -> None:
    ours = house()
    cipher: Cipher = ours.cipher
    with pytest.raises(CryptoError, match="use more bits or headroom"):
        ours.models["bank"].contribution(1, cipher, 0.01, "", admitted)


# -- control variates --------------------------------------------------------------------------

SCAFFOLD = {
    "training": {
        "learning_rate": 0.1,
        "steps": 10,
        "lr_schedule": "constant",
        "optimizer": "sgd",
        "local_algorithm": "scaffold",
    },
    "encoding": {"bits": 16},
}


def mean_control(ours: House) -> Values:
    own = [WEIGHTS[name] * model.memory.own["control"] for name, model in ours.models.items()]
    mean: Values = np.sum(np.array(own, dtype=np.float64), axis=0)
    return mean


@pytest.mark.parametrize("mask", ["none", "shared", "local"])
def test_the_shared_control_is_the_mean_of_the_sites_own(house: MakeHouse, mask: str) -> None:
    """Whoever is missing, whatever is pruned, clipped and rounded; and the correction that a site
    trains with is what the shared one has more than its own."""
    pruning = {"method": "none"}
    if mask != "none":
        pruning = {"mask": mask, "initial_rate": 0.5, "target_rate": 0.5}
    ours = house(SCAFFOLD | {"pruning": pruning})
    expected: dict[str, Values] = {name: np.zeros(SPEC.num_values) for name in NAMES}
    for number in range(1, ROUNDS + 1):
        ours.round(number, {"bank", "clinic"} if number in (2, 5) else ALL)
        for name, model in ours.models.items():
            np.testing.assert_array_equal(ours.works[name].corrections[-1], expected[name])
            expected[name] = model.memory.shared["control"] - model.memory.own["control"]
        shared = {model.memory.shared["control"].tobytes() for model in ours.models.values()}
        assert len(shared) == 1
        control = ours.models["bank"].memory.shared["control"]
        assert control.any()
        np.testing.assert_allclose(control, mean_control(ours), rtol=0, atol=3e-6)


def test_a_control_becomes_the_mean_gradient_of_the_round(house: MakeHouse) -> None:
    """Option II of the paper: c_i + (x - y_i) / (steps * rate) - c, and from the first round on
    the mean gradient itself, where it is sent whole."""
    ours = house(SCAFFOLD | {"pruning": {"method": "none"}})
    for number in (1, 2, 3):
        control = ours.models["bank"].memory.shared["control"].astype(np.float64)
        before = {name: model.memory.own["control"] for name, model in ours.models.items()}
        ours.round(number, ALL)
        for name, model in ours.models.items():
            work = ours.works[name]
            gradient = (work.starts[-1].astype(np.float64) - work.sent[-1]) / (10 * 0.1)
            expected = before[name] + gradient - control
            steps = 1.0 / (WEIGHTS[name] * ours.cipher.parameters.max_digit)
            np.testing.assert_allclose(model.memory.own["control"], expected, rtol=0, atol=steps)


def test_a_control_in_the_sum_moves_no_adapter(house: MakeHouse) -> None:
    """The same training with and without: the controls travel beside the differences."""
    plain = {**SCAFFOLD, "training": {**SCAFFOLD["training"], "local_algorithm": "plain"}}
    states = []
    for changes in (plain, SCAFFOLD):
        ours = house(changes)
        ours.round(1, ALL)
        states.append(ours.models["bank"].state.values)
    step = 1.0 / (0.2 * ours.cipher.parameters.max_digit)
    np.testing.assert_allclose(states[0], states[1], rtol=0, atol=3 * step)


# -- what stays at the site --------------------------------------------------------------------

FACTORS = AdapterSpec(
    (TensorSpec("q.lora_A.weight", (9, 4)), TensorSpec("q.lora_B.weight", (5, 5))), "00" * 32, 2.0
)
B = slice(36, 61)


@pytest.mark.parametrize("mask", ["none", "shared", "local"])
@pytest.mark.parametrize("exchange", ["delta", "parameters"])
def test_share_a_keeps_b_at_the_site(house: MakeHouse, mask: str, exchange: str) -> None:
    """No coordinate of B is selected, so none is in an upload; each site goes on from its own,
    and nobody's is in the adapter of all or in what is owed."""
    pruning = {"method": "none"} if mask == "none" else {"mask": mask, "initial_rate": 0.5}
    changes = {"adapter": {"train": "share-a", "exchange": exchange}, "pruning": pruning}
    ours = house(changes, spec=FACTORS)
    first = ours.models["bank"].state.values
    for number in range(1, 4):
        selection = ours.models["bank"].selection()
        assert int(selection.indices.max()) < B.start
        for name, model in ours.models.items():
            encoded = model.contribution(number, ours.cipher, WEIGHTS[name], "", admitted)
            assert isinstance(encoded, EncodedIntegers)
            assert encoded.digits.shape == (selection.size,)
            assert encoded.layout.num_values == selection.size
        ours.round(number, {"bank", "clinic"} if number == 2 else ALL)
        for name, model in ours.models.items():
            own = ours.works[name].sent[-1][B]
            np.testing.assert_array_equal(model.memory.own["personal"][B], own)
            np.testing.assert_array_equal(model.state.values[B], first[B])
            assert not model.memory.own["personal"][: B.start].any()
            assert not model.memory.residual[B].any()
            assert own.tobytes() not in b"".join(
                vector.tobytes() for vector in model.memory.shared.values()
            )
    assert len({model.memory.own["personal"].tobytes() for model in ours.models.values()}) == 3
    for name, model in ours.models.items():
        trained = ours.works[name].sent[-1]
        model.contribution(4, ours.cipher, WEIGHTS[name], "", admitted)
        start = ours.works[name].starts[-1]
        np.testing.assert_array_equal(start[B], trained[B])
        np.testing.assert_array_equal(start[: B.start], model.state.values[: B.start])


def test_what_a_site_sends_with_share_a_does_not_hang_on_its_b(house: MakeHouse) -> None:
    sent = []
    for shift in (0.0, 3.0):
        ours = house({"adapter": {"train": "share-a"}}, spec=FACTORS)
        work, train = ours.works["bank"], ours.works["bank"].train

        def moved(*given: Any, train: Any = train, shift: float = shift) -> Any:
            update, loss = train(*given)
            values = update.values.copy()
            values[B] += np.float32(shift)
            return AdapterUpdate(values, update.start, update.num_examples), loss

        work.train = moved  # type: ignore[method-assign]
        encoded = ours.models["bank"].contribution(1, ours.cipher, 0.2, "", admitted)
        assert isinstance(encoded, EncodedIntegers)
        sent.append((encoded.digits.tobytes(), encoded.reserved, encoded.layout))
    assert sent[0] == sent[1]


# -- what the coordinator learns of a mask -----------------------------------------------------


def masked_run(federation: Any, shift: float) -> tuple[Any, list[Any]]:
    """Two rounds of one plan, where training differs by `shift`; the selection of each."""
    pruning = {"initial_rate": 0.8, "target_rate": 0.8, "start_round": 0}
    ours = federation("rlwe", pruning=pruning)
    for work in ours.works.values():
        train = work.train

        def moved(state: Any, round_number: int, correction: Any = None, train: Any = train) -> Any:
            update, loss = train(state, round_number)
            noise = np.random.default_rng(round_number).standard_normal(update.values.size)
            values = (update.values + shift * noise).astype(np.float32)
            return AdapterUpdate(values, state, update.num_examples), loss

        work.train = moved
    ours.coordinator.start()
    selections = []
    for number in (1, 2):
        found = [one._model.selection() for one in ours.participants.values()]
        assert len({one.sha256() for one in found}) == 1
        selections.append(found[0])
        ours.coordinator.round(number)
    return ours, selections


def test_uploads_tell_nothing_of_a_shared_mask(federation: Any) -> None:
    """Two runs of one plan whose masks differ, of one size: every message is as long in one as in
    the other, and the only thing in them that hangs on the mask is a tag under a key that the
    coordinator does not have."""
    (one, first), (other, second) = (masked_run(federation, shift) for shift in (0.0, 2.0))
    assert first[1].size == second[1].size < one.spec.num_values
    assert first[1].sha256() != second[1].sha256()
    lengths = [
        [(each.site, each.method, len(each.command), len(each.reply)) for each in ours.wire.log]
        for ours in (one, other)
    ]
    assert lengths[0] == lengths[1]
    tags = set()
    for ours, selections in ((one, first), (other, second)):
        crossed = b"".join(each.command + each.reply for each in ours.wire.log)
        uploads = [each for each in ours.wire.log if each.method == "work"][-len(ours.names) :]
        layout = ours.participants["bank"]._cipher.update_layout(
            selections[1].sha256(), selections[1].size
        )
        for each in uploads:
            _, binding, _, body = ours.opened(each.reply)
            group_key = ours.participants[each.site]._keys.group_key
            expected = participant_sum.tag(group_key, binding, b"layout", layout.sha256())
            assert body["layout_tag"] == expected
            assert group_key not in crossed
            tags.add(body["layout_tag"])
        # Neither a digest of the mask nor any run of its places, in any width.
        indices = selections[1].indices
        needles = [layout.sha256(), bytes.fromhex(selections[1].sha256())]
        for dtype in ("<i8", ">i8", "<i4", ">i4", "<i2", ">i2"):
            raw, width = indices.astype(dtype).tobytes(), np.dtype(dtype).itemsize
            needles += [raw[at : at + 8 * width] for at in range(0, len(raw) - 8 * width, width)]
        kept = np.zeros(ours.spec.num_values, dtype=np.uint8)
        kept[indices] = 1
        for order in ("big", "little"):
            raw = np.packbits(kept, bitorder=order).tobytes()
            needles += [raw[at : at + 16] for at in range(0, len(raw) - 16, 16)]
        assert kept.tobytes() not in crossed
        assert not [needle for needle in needles if needle in crossed]
    # One tag for all sites of a sum, and another in the other run.
    assert len(tags) == 2
