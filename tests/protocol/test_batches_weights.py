"""Membership batches: what a site puts into a sum is the same, whichever batches are in it."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hand import failing, record, restart

from fedshield.crypto.rlwe.params import choose
from fedshield.errors import ProtocolError, RoundFailed
from fedshield.plan.quorum import resolve
from fedshield.privacy import distributed_gaussian
from fedshield.protocol.wire import messages
from fedshield.site.schemes import parameters_of

BATCHES = {"membership": "batches", "max_colluding": 1}
UNIT_SITE = {"unit": "site", "clip_norm": 1.0, "noise_multiplier": 4.0}


@pytest.fixture(params=["equal", "private", "public"])
def nine(request: pytest.FixtureRequest, federation: Any) -> Any:
    """Three batches of three, in a first session with everyone."""
    nine = federation("rlwe", sites=9, weights=request.param, rules=BATCHES)
    nine.coordinator.start()
    return nine


def allowed(ours: Any) -> list[tuple[str, ...]]:
    """Every set of whole batches, the smallest first."""
    batches = ours.roster.batches
    return [
        tuple(sorted(name for batch in some for name in batch))
        for size in range(1, len(batches) + 1)
        for some in combinations(batches, size)
    ]


def encoded_over(ours: Any, present: tuple[str, ...]) -> dict[str, Any]:
    """What each would send in round 1, made anew in a session of these sites."""
    for name in ours.names:
        ours.stores[name].contribution = None  # else what was encoded first is sent again
    failing(ours, {name: ("invite", "before") for name in ours.names if name not in present})
    ours.coordinator.start()
    assert tuple(ours.coordinator.active) == present
    session = ours.coordinator._session
    ours.binding = type(session)(session.context, 1, "round")
    made = {}
    for name in present:
        ours.send(name, messages.Prepare())
        ours.send(name, messages.Train())
        made[name] = ours.participants[name]._trained
        assert made[name] is not None
    return made


def test_what_a_site_encodes_does_not_depend_on_who_is_in_the_sum(nine: Any) -> None:
    """Weight, clip, steps and rounding: the same integers in every allowed set, so that sums over
    sets are rows of one matrix and rule R1's proof holds."""
    first: dict[str, str] = {}
    sums: dict[tuple[str, ...], Any] = {}
    for present in allowed(nine):
        made = encoded_over(nine, present)
        for name, encoded in made.items():
            assert encoded.sha256() == first.setdefault(name, encoded.sha256()), (name, present)
        sums[present] = sum(encoded.digits.astype(np.int64) for encoded in made.values())
    assert len(first) == 9
    # No combination of sums is anything but one of the batches' own sums.
    one, two, three = nine.roster.batches
    both = sums[tuple(sorted(one + two))]
    np.testing.assert_array_equal(6 * both - 6 * sums[one] - 6 * sums[two], np.zeros_like(both))
    np.testing.assert_array_equal(sums[tuple(nine.names)], sums[one] + sums[two] + sums[three])


@pytest.mark.parametrize("headroom", [True, False])
def test_the_combination_of_means_that_showed_one_site_shows_nothing(
    federation: Any, headroom: bool
) -> None:
    """6 mean(AB) - 3 mean(A) - 3 mean(B) is zero. With weights and limits of the sum's own sites
    it was what the limits cut off in each set, that is a site alone where one update is large."""
    six = federation(
        "rlwe",
        sites=6,
        weights="equal",
        rules=BATCHES,
        encoding={"bits": 2 if headroom else 8, "headroom": headroom},
    )
    six.coordinator.start()
    sums = {}
    for present in allowed(six):
        made = encoded_over(six, present)
        weight = sum(encoded.reserved[1] for encoded in made.values()) * 2.0**-30
        assert weight == pytest.approx(len(present) / 6, abs=1e-8)
        sums[len(present), present[0]] = (
            sum(encoded.digits.astype(np.float64) for encoded in made.values()) / weight
        )
    a, b = (batch[0] for batch in six.roster.batches)
    left = 6 * sums[6, a] - 3 * sums[3, a] - 3 * sums[3, b]
    # One unit in the weight's last place, of digits up to M.
    most = 12 * parameters_of(six.plan).max_digit * 6 * 2.0**-30
    assert np.abs(left).max() <= most
    assert all(np.abs(one).max() > 0 for one in sums.values())


@pytest.mark.parametrize("away", [(), (0,), (1, 2)])
def test_the_result_is_the_weighted_mean_of_the_sites_that_are_there(
    nine: Any, away: tuple[int, ...]
) -> None:
    """Against numpy, from the sites' trained values: within one step of rounding for each site."""
    missing = {name for place in away for name in nine.roster.batches[place]}
    present = tuple(name for name in nine.names if name not in missing)
    failing(nine, dict.fromkeys(missing, ("invite", "before")))
    nine.coordinator.start()
    site = nine.participants[present[0]]
    start = site.state
    before, clip = site.state.values.astype(np.float64), site.memory.clip
    made = record(nine, *present)
    assert nine.coordinator.round(1).contributors == present

    counts = {name: nine.participants[name]._model.num_examples for name in nine.names}
    if nine.plan.scheme.weights == "equal":
        counts = dict.fromkeys(nine.names, 1)
    step = np.zeros(before.size)
    for place, bound in zip(site.state.spec.slices().values(), clip.tolist(), strict=True):
        step[place] = bound / parameters_of(nine.plan).max_digit
    share = sum(counts[name] for name in present) / sum(counts.values())
    mean = sum(counts[name] * (nine.trained(name, start, 1) - before) for name in present) / sum(
        counts[name] for name in present
    )
    assert all(made[name, 1].num_clipped == 0 for name in present)
    for name in present:
        moved = nine.participants[name].state.values - before
        assert np.all(np.abs(moved - mean) <= len(present) * step / share + 1e-6)


# -- who is weighed, and when -----------------------------------------------------------------


@pytest.mark.parametrize("weights", ["private", "public"])
def test_no_batch_sits_out_before_all_were_weighed(federation: Any, weights: str) -> None:
    six = federation("rlwe", sites=6, weights=weights, rules=BATCHES)
    failing(six, {"surgery": ("invite", "before")})
    with pytest.raises(
        RoundFailed,
        match=r"^expected all sites once, to weigh them \(scheme.weights (private|public): each "
        r"weight is a share of all rows\), got none of lab, surgery, ward-00; have them back for "
        "the first session, or agree on scheme.weights: equal$",
    ):
        six.coordinator.start()
    assert "expected all sites in the session that weighs them" in str(six.wire.errors["bank"])
    assert not any(ledger.rows for ledger in six.ledgers.values())
    assert not any(ledger.totals for ledger in six.ledgers.values())


def test_equal_weights_need_no_first_session_of_all(federation: Any) -> None:
    six = federation("rlwe", sites=6, weights="equal", rules=BATCHES)
    failing(six, {"surgery": ("invite", "before")})
    six.run(1)
    assert six.participants["bank"]._weight == 1 / 6


def test_the_total_is_remembered_by_the_ledger(nine: Any) -> None:
    """Through a restart of everybody, and however often all are there again."""
    for name in nine.names:
        restart(nine, name)
    for _ in range(10):  # more often than a sum may be tried anew
        nine.coordinator = nine.another_coordinator()
        nine.coordinator.start()
    weights = {name: nine.participants[name]._weight for name in nine.names}
    assert sum(weights.values()) == pytest.approx(1)
    failing(nine, {"bank": ("invite", "before")})
    nine.coordinator.start()
    for name in nine.coordinator.active:
        assert nine.participants[name]._weight == weights[name]
    entered = [row for row in nine.ledgers["lab"].rows if row.phase == "weights"]
    assert len(entered) == (nine.plan.scheme.weights == "private")
    assert all(len(row.sites) == 9 for row in entered)


def test_a_tally_over_some_batches_is_refused(federation: Any) -> None:
    """A coordinator asks for it in a session of fewer, and in one of all."""
    six = federation("rlwe", sites=6, weights="private", rules=BATCHES)
    six.coordinator.start()
    failing(six, {"surgery": ("invite", "before")})
    six.coordinator.start()
    session = six.coordinator._session
    six.binding = type(session)(session.context, 0, "weights")
    assert six.refused("bank", messages.Prepare()) == "round"
    line, row = six.participants["bank"]._line, six.ledgers["bank"].rows[0]
    versions = {name: row.versions[name] for name in six.roster.batches[0]}
    with pytest.raises(ProtocolError, match="R4: expected the set of sites of the first try"):
        line.check("weights", 0, "", row.content, versions, row.scale.count, "", None)


def test_another_total_than_the_first_is_refused(federation: Any) -> None:
    """A colluder claims another count in a later session. The honest sites' weights stay."""
    six = federation("rlwe", sites=6, weights="public", rules=BATCHES)
    six.run(1)
    before = {name: six.participants[name]._weight for name in six.names}
    six.works["ward-00"].num_examples += 500
    six.coordinator = six.another_coordinator()
    with pytest.raises(RoundFailed):
        six.coordinator.start()
    assert "R2: expected sites that count for 4,430 together" in str(six.wire.errors["bank"])
    # In a session without a batch nobody can tell, but for a claim above the total.
    six.works["ward-00"].num_examples += 5000
    failing(six, {"bank": ("invite", "before")})
    with pytest.raises(RoundFailed):
        six.coordinator.start()
    assert "R2: expected at most 4,430 rows in all" in str(six.wire.errors["lab"])
    assert {name: ledger.totals[six.plan.sha256()].total for name, ledger in six.ledgers.items()}
    six.works["ward-00"].num_examples = 100
    six.coordinator = six.another_coordinator()
    six.coordinator.start()
    assert {name: six.participants[name]._weight for name in six.names} == before


def test_nothing_is_written_of_a_plan_that_nobody_approved(federation: Any) -> None:
    six = federation("rlwe", sites=6, weights="public", rules=BATCHES)
    six.ledgers["bank"].approvals.clear()
    six.coordinator.start()
    assert six.coordinator.active == list(six.roster.batches[1])
    assert "R8: expected an approval of this plan" in str(six.wire.errors["bank"])
    assert not six.ledgers["bank"].totals


@pytest.mark.parametrize("by", [0.9, 1.1])
def test_the_weight_in_a_sum_is_that_of_its_sites(federation: Any, by: float) -> None:
    """With equal weights every site can tell. A colluder that says another is found out."""
    six = federation("rlwe", sites=6, weights="equal", rules=BATCHES)
    failing(six, {"surgery": ("invite", "before")})
    six.coordinator.start()
    model = six.participants["clinic"]._model
    encode = model.contribution

    def lying(*given: Any) -> Any:
        made = encode(*given)
        one, weight, loss = made.reserved
        return type(made)(
            made.digits, (one, round(weight * by), loss), made.layout, made.num_clipped,
            made.residual,
        )  # fmt: skip

    model.contribution = lying
    with pytest.raises(RoundFailed, match="weight"):
        six.coordinator.round(1)
    assert "expected a total weight of 0.5 to 0.5" in str(six.wire.errors["bank"])


# -- noise, and SCAFFOLD ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "colluding"), [(6, 1), (7, 1), (9, 1), (8, 2), (12, 4), (64, 21)]
)
def test_noise_of_whole_sites_holds_for_every_allowed_set(sites: int, colluding: int) -> None:
    """By the definition, not by the mechanism: a site's most influence on the mean of S sites is
    C / |S| in L2; the noise that is left in it, when the colluders (or one who looks) take theirs
    away, must be z times that for the smallest S as for the largest."""
    rules = resolve(sites, max_colluding=colluding, membership="batches")
    packing = choose(sites, 16, 10_000, headroom=True)
    z, clip = 2.0, 0.7
    made = distributed_gaussian.mechanism(clip, z, rules, packing, 500)
    for present in range(colluding + 2, sites + 1):
        weight = present / sites  # what is in the sum; the sum is divided by it
        step = clip / (made.sensitivity * sites)
        influence = made.sensitivity * step / weight
        assert influence == pytest.approx(clip / present)
        honest = present - max(1, colluding)
        noise = math.sqrt(honest) * made.deviation * step / weight
        assert noise >= z * influence * (1 - 1e-12)
        # A release of as many is what the ledger counts, or more.
        assert made.honest <= honest


@pytest.mark.parametrize("weights", ["equal", "public"])
def test_a_whole_site_is_cut_alike_in_every_set(federation: Any, weights: str) -> None:
    """To the plan's clip norm at equal weights: the bounded integers, before noise that is fresh
    in each, and the factor that they were cut by."""
    six = federation(
        "rlwe",
        sites=6,
        weights=weights,
        rules=BATCHES,
        privacy=UNIT_SITE,
        encoding={"bits": 16, "headroom": True},
    )
    six.coordinator.start()
    factors: dict[str, float] = {}
    for present in allowed(six):
        for name in encoded_over(six, present):
            factor = six.participants[name]._model.record.clip_factor
            assert factor == factors.setdefault(name, factor)
    assert min(factors.values()) < 1


def test_what_was_noised_is_sent_again_in_another_set(federation: Any) -> None:
    """A session over other sites draws no noise anew: the same integers, so one release."""
    six = federation(
        "rlwe", sites=6, weights="equal", rules=BATCHES, privacy=UNIT_SITE,
        encoding={"bits": 16, "headroom": True},
    )  # fmt: skip
    sites = failing(six)
    six.coordinator.start()
    made = record(six)
    sites.moments["clinic"] = ("train", "before")
    six.coordinator.round(1)
    first = six.stores["hospital"].contribution
    assert first is not None
    np.testing.assert_array_equal(made["lab", 1].digits, six.stores["lab"].contribution.encoded)
    assert six.works["lab"].trained_rounds == [1]


def test_scaffold_keeps_the_mean_of_all_sites_control_variates(federation: Any) -> None:
    """c moves by |S| / K times the mean change of the sites in the sum (Karimireddy et al., ICML
    2020, Algorithm 1), so that it stays the mean of every site's own, also of those away."""
    nine = federation(
        "rlwe",
        sites=9,
        weights="public",
        rules=BATCHES,
        training={
            "learning_rate": 0.5,
            "steps": 10,
            "lr_schedule": "constant",
            "optimizer": "sgd",
            "local_algorithm": "scaffold",
        },
    )
    for name in nine.names:
        train = nine.works[name].train
        nine.works[name].train = lambda state, number, correction, train=train: train(state, number)
    nine.coordinator.start()
    total = sum(nine.participants[name]._model.num_examples for name in nine.names)
    for number, away in ((1, ()), (2, (0,)), (3, (1,)), (4, ())):
        missing = {name for place in away for name in nine.roster.batches[place]}
        failing(nine, dict.fromkeys(missing, ("invite", "before")))
        nine.coordinator.start()
        assert len(nine.coordinator.round(number).contributors) == 9 - len(missing)
        here = next(name for name in nine.names if name not in missing)
        shared = nine.participants[here].memory.shared["control"]
        mean = sum(
            nine.participants[name]._model.num_examples
            / total
            * nine.participants[name].memory.own["control"].astype(np.float64)
            for name in nine.names
        )
        np.testing.assert_allclose(shared, mean, atol=2e-5)
        assert np.abs(shared).max() > 1e-3
