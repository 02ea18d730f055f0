"""Rule R6: who has too few rows, and how much one site can weigh at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshield.data.sites import load_sites
from fedshield.errors import DataError, PlanError
from fedshield.model.builtin import tiny
from fedshield.plan import floors
from fedshield.plan.effect import without_effect
from fedshield.plan.floors import (
    cap_note,
    counted,
    floor,
    in_words,
    min_examples,
    most_counted,
)
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.run import local
from fedshield.run.settings import data_setup
from fedshield.update.encode_grid import round_count


def plan_of(
    num_sites: int = 3,
    least: int | None = None,
    scheme: dict[str, Any] | None = None,
    **more: Any,
) -> Plan:
    sites = {f"site-{k:02d}": {"source": "sample:finance", "rows": 40} for k in range(num_sites)}
    raw = {
        "model": {"name": "tiny-llama"},
        "data": {"sites": sites, "heldout_rows": 4, "min_examples": least},
        "training": {"max_length": 400},
        "scheme": scheme or {},
    } | more
    return parse_plan(raw, base_dir=Path())


# -- the floor -------------------------------------------------------------------------------


def too_few(plan: Plan, num_examples: int) -> str | None:
    return floors.too_few(plan.data, floor(plan), "bank", num_examples)


def test_the_least_is_the_plans_or_one_steps() -> None:
    assert min_examples(plan_of(least=7)) == 7
    assert min_examples(plan_of()) == 16
    training = {"batch_size": 6, "gradient_accumulation": 4}
    assert min_examples(plan_of(training=training)) == 24


def test_where_nothing_is_hidden_few_rows_are_refused_if_the_plan_says_so() -> None:
    plain = {"name": "plain"}
    assert floor(plan_of(scheme=plain)) == 1
    assert floor(plan_of(scheme=plain, least=7)) == 7
    assert "at least 1 rows at every site, each" in in_words(plan_of(scheme=plain))


def test_a_site_below_the_floor_is_refused_by_whoever_loads_its_rows(tmp_path: Path) -> None:
    for least, refused in ((40, False), (41, True)):
        plan = plan_of(least=least)
        if not refused:
            assert len(load_sites(data_setup(plan), tiny.tokenizer())) == 3
            continue
        with pytest.raises(DataError) as caught:
            load_sites(data_setup(plan), tiny.tokenizer(), only="site-01")
        assert str(caught.value) == (
            "data.min_examples: expected at least 41 rows with loss at site-01, got 40; it cannot "
            "take part (rule R6): add rows, or agree on a plan with a lower one"
        )
        # Weights that do not count rows need the floor all the same.
        equal = plan_of(least=least, scheme={"weights": "equal"})
        with pytest.raises(DataError, match="rule R6"):
            load_sites(data_setup(equal), tiny.tokenizer())
    # Before there is a run folder, or a message.
    with pytest.raises(DataError, match="rule R6"):
        local.run(plan_of(least=41), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_without_loss_do_not_count(tmp_path: Path) -> None:
    """After all filtering and cutting: what is left of an answer decides."""
    whole = plan_of(least=40)
    assert len(load_sites(data_setup(whole), tiny.tokenizer())["site-00"].train) == 40
    short = plan_of(least=40, training={"max_length": 80})
    with pytest.raises(DataError, match=r"at least 40 rows with loss at site-00, got 24;"):
        load_sites(data_setup(short), tiny.tokenizer())


# -- the cap -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_sites", "least", "scheme", "most"),
    [
        (3, 100, {}, 300),  # c = 1: one other honest site
        (3, 100, {"max_weight": 0.9}, 900),
        (3, 100, {"max_colluding": 0}, 600),
        (3, 100, {"max_colluding": 0, "membership": "open"}, 300),  # a sum may be over two of them
        (4, 100, {}, 600),
        (4, 100, {"membership": "open"}, 300),  # a sum may be over three of them
        (2, 100, {"max_colluding": 0}, 300),
        (2, 100, {"name": "plain"}, 300),
        (3, 100, {"name": "ckks"}, 300),  # as rlwe by default
        (3, 65, {}, 190),  # 195, rounded down
        (3, 109, {}, 300),  # others may tell 100
        (3, 7, {"max_weight": 0.6}, 10),
        (3, 100, {"weights": "equal"}, None),
        (1, 100, {"name": "plain"}, None),
    ],
)
def test_the_most_that_a_site_counts_for(
    num_sites: int, least: int, scheme: dict[str, Any], most: int | None
) -> None:
    more: dict[str, Any] = {}
    if scheme.get("membership") == "open":
        privacy = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0}
        more = {"privacy": privacy, "adapter": {"dropout": 0.0}}
    assert most_counted(plan_of(num_sites, least, scheme, **more)) == most


@given(
    num_sites=st.integers(3, 16),
    least=st.integers(1, 3000),
    weight=st.integers(50, 95),
    rows=st.data(),
)
def test_no_site_weighs_more_than_max_weight_of_the_honest_ones(
    num_sites: int, least: int, weight: int, rows: Any
) -> None:
    """Whatever the honest sites have, and whoever is missing: their rows as they are told."""
    plan = plan_of(num_sites, least, {"max_weight": weight / 100})
    rules = plan.rules()
    honest = rules.min_cohort - rules.max_colluding
    counts = rows.draw(st.lists(st.integers(least, 50 * least), min_size=honest, max_size=honest))
    told = [round_count(counted(plan, count)) for count in counts]
    assert max(told) <= sum(told) * weight / 100 + 1e-9 * sum(told)


def test_the_rosters_cap_and_the_plans_are_both_kept() -> None:
    plan = plan_of(least=100)
    assert [counted(plan, 1000, cap) for cap in (None, 200, 900)] == [300, 200, 300]
    assert counted(plan, 120, 200) == 120
    assert counted(plan_of(least=100, scheme={"weights": "equal"}), 1000, 200) == 200


@pytest.mark.parametrize(
    ("num_sites", "scheme", "honest"),
    [(3, {"max_weight": 0.49}, 2), (4, {"max_weight": 0.33, "min_cohort": 4}, 3)],
)
def test_a_weight_that_equal_sites_would_exceed_is_refused(
    num_sites: int, scheme: dict[str, Any], honest: int
) -> None:
    with pytest.raises(PlanError, match=rf"scheme.max_weight: expected at least 1/{honest}, which"):
        plan_of(num_sites, 100, scheme)
    assert most_counted(plan_of(num_sites, 100, scheme | {"weights": "equal"})) is None
    good = plan_of(num_sites, 100, scheme | {"max_weight": round(1 / honest + 0.005, 2)})
    assert (most_counted(good) or 0) >= 100


def test_max_weight_has_no_effect_on_equal_weights() -> None:
    scheme = {"weights": "equal", "max_weight": 0.6}
    assert "scheme.max_weight has no effect: scheme.weights is equal" in without_effect(
        plan_of(scheme=scheme)
    )
    assert not [
        line for line in without_effect(plan_of(scheme={"max_weight": 0.6})) if "max_weight" in line
    ]


# -- words, and the hash ---------------------------------------------------------------------


def test_what_is_told() -> None:
    plan, unset = plan_of(least=100), plan_of()
    assert too_few(plan, 100) is None
    assert cap_note(plan, "bank", 300) is None
    assert cap_note(plan, "bank", 1000) == (
        "bank: 1,000 rows to train on count as 300 (rule R6: at least 100 rows at every site, and "
        "scheme.max_weight 0.75; if every site has more, raise data.min_examples)"
    )
    assert cap_note(plan, "bank", 1000, 200) == (
        "bank: 1,000 rows to train on count as 200 (the roster's max_examples)"
    )
    assert cap_note(plan_of(least=100, scheme={"weights": "equal"}), "bank", 1000, 200) is None
    since = "one step's, since data.min_examples is not set"
    assert since in (cap_note(unset, "bank", 1000) or "")
    assert since in (too_few(unset, 3) or "")
    assert in_words(plan) == (
        "by rows, private; at least 100 rows at every site, each counts for at most 300 (rule R6)"
    )
    assert in_words(plan_of(scheme={"weights": "equal"})) == (
        f"equal; at least 16 rows at every site, {since}"
    )


def test_plans_that_set_neither_keep_their_hash() -> None:
    plan = plan_of()
    assert b"min_examples" not in plan.canonical()
    assert b"max_weight" not in plan.canonical()
    assert plan_of(scheme={"max_weight": 0.75}).sha256() == plan.sha256()
    hashes = {plan_of(least=least).sha256() for least in (None, 15, 16)}
    hashes |= {plan_of(scheme={"max_weight": 0.8}).sha256()}
    assert len(hashes) == 4
