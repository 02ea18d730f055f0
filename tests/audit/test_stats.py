"""Intervals and areas against known values."""

from __future__ import annotations

import numpy as np
import pytest

from fedshield.audit import stats


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Without a miss or a hit the ends are 0.025 ** (1 / 10) and one less that.
    [(0, 10, 0.0, 1 - 0.025**0.1), (10, 10, 0.025**0.1, 1.0), (3, 10, 0.06673951, 0.6524529)],
)
def test_clopper_pearson_is_the_exact_interval(
    hits: int, trials: int, low: float, high: float
) -> None:
    found = stats.clopper_pearson(hits, trials)
    assert found.value == hits / trials
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_wilsons_ends_are_as_far_from_the_rate_as_they_may_be() -> None:
    """Its ends are the rates p with |rate - p| = z sqrt(p (1 - p) / n)."""
    found = stats.wilson(15, 50)
    for end in (found.low, found.high):
        assert abs(0.3 - end) == pytest.approx(1.959964 * (end * (1 - end) / 50) ** 0.5, rel=1e-5)
    assert found.low < 0.3 < found.high


@pytest.mark.parametrize("rule", [stats.clopper_pearson, stats.wilson])
@pytest.mark.parametrize(("hits", "trials"), [(1, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(rule: object, hits: int, trials: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        rule(hits, trials)  # type: ignore[operator]


def test_auc_counts_pairs_and_ties_by_half() -> None:
    inside, outside = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert stats.auc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))
    assert stats.auc(np.ones(4), np.ones(3)) == 0.5


def test_the_intervals_of_auc_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        # P(X > Y) for unit normals one apart is Phi(1 / sqrt 2).
        found = stats.auc_measure(generator.normal(1, 1, 60), generator.normal(0, 1, 60))
        held += found.low <= 0.7602499 <= found.high
    assert held >= 51


def test_tpr_is_over_a_threshold_that_so_many_of_the_others_pass() -> None:
    outside = np.arange(100, dtype=np.float64)
    inside = np.array([98.5, 99.5, 98.0, 5.0])
    found = stats.tpr_at_fpr(inside, outside)
    # One of a hundred may pass: 99. The threshold is the next, 98.
    assert found.value == 0.5
    assert stats.tpr_at_fpr(inside, outside[:50]).value == 0.75


def test_at_chance_is_whether_the_interval_holds_chance() -> None:
    assert stats.clopper_pearson(5, 10, 0.5).at_chance
    assert not stats.clopper_pearson(10, 10, 0.5).at_chance
    assert not stats.clopper_pearson(5, 10).at_chance


@pytest.mark.parametrize(
    ("hits", "trials", "exact", "score"),
    # Newcombe, Statistics in Medicine 17 (1998), Table I: methods 5 and 3.
    [
        (81, 263, (0.2527, 0.3676), (0.2553, 0.3662)),
        (15, 148, (0.0578, 0.1617), (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1684), (0.0, 0.1611)),
        (1, 29, (0.0009, 0.1776), (0.0061, 0.1718)),
    ],
)
def test_intervals_of_rates_are_the_published_ones(
    hits: int, trials: int, exact: tuple[float, float], score: tuple[float, float]
) -> None:
    for rule, interval in ((stats.clopper_pearson, exact), (stats.wilson, score)):
        rate = rule(hits, trials)
        assert (round(rate.low, 4), round(rate.high, 4)) == interval


def test_the_area_is_the_published_one() -> None:
    """Hanley and McNeil, Radiology 143 (1982): ratings of 51 abnormal and 58 normal images."""
    ratings = np.arange(1.0, 6.0)
    abnormal = np.repeat(ratings, [3, 2, 2, 11, 33])
    normal = np.repeat(ratings, [33, 6, 6, 11, 2])
    assert round(stats.auc(abnormal, normal), 3) == 0.893


SQUARES, CUBES = np.arange(12.0) ** 2 % 17, np.arange(9.0) ** 3 % 13


def test_bootstraps_draw_as_they_always_did() -> None:
    """From before scipy resampled: published audits are repeated to the last digit."""
    area = stats.auc_measure(SQUARES, CUBES)
    assert (area.low, area.high) == pytest.approx(
        (0.42592592592592593, 0.8472222222222222), abs=1e-12
    )
    mean = stats.mean_measure(list(SQUARES))
    assert (mean.low, mean.high) == pytest.approx(
        (4.910416666666669, 11.335416666666665), abs=1e-12
    )


def test_a_value_alone_has_an_interval() -> None:
    mean = stats.mean_measure([3.0])
    assert (mean.value, mean.low, mean.high, mean.num_trials) == (3.0, 3.0, 3.0, 1)
    area = stats.auc_measure(np.array([5.0]), CUBES)
    assert area.low < area.value < area.high
    assert area.num_trials == 10


def test_nothing_has_no_interval() -> None:
    nothing = np.array([])
    for measure in (
        lambda: stats.mean_measure([]),
        lambda: stats.auc_measure(nothing, CUBES),
        lambda: stats.auc_measure(CUBES, nothing),
        lambda: stats.tpr_at_fpr(nothing, CUBES),
    ):
        with pytest.raises(ValueError, match="expected 0 to 0 hits"):
            measure()
