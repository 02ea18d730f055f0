"""From a plan to what it promises, before and in a run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedshield.errors import PlanError
from fedshield.model.adapter import empty_spec
from fedshield.model.base import empty_model
from fedshield.plan.schema import Plan
from fedshield.privacy import guarantee
from fedshield.privacy.distributed_gaussian import SiteMechanism
from fedshield.privacy.guarantee import Spent, planned_rows, summarised
from fedshield.site.settings import exchange_schedule, release_settings
from fedshield.site.settings import privacy_terms as terms
from fedshield.types import AdapterSpec
from fedshield.update.prune import num_sent

SITE = {"unit": "site", "clip_norm": 0.5, "noise_multiplier": 1.0}
EXAMPLE = {"unit": "example", "clip_norm": 0.5, "noise_multiplier": 1.0}
RLWE = {"name": "rlwe", "weights": "equal", "max_colluding": 0}


def made(make_plan: Any, privacy: dict[str, Any], **changes: Any) -> tuple[Plan, AdapterSpec]:
    scheme = RLWE if privacy.get("unit") == "site" else {"name": "plain"}
    plan = make_plan({"privacy": privacy, "scheme": scheme, **changes})
    return plan, empty_spec(empty_model(plan.model, plan.base_dir), plan.adapter)


def forecast(
    plan: Plan, spec: AdapterSpec, counted: dict[str, int | None] | None = None
) -> dict[str, Any] | None:
    settings = release_settings(plan)
    return guarantee.forecast(plan.privacy, settings, spec, plan.data, counted)


def test_nothing_is_promised_without_a_unit(make_plan: Any) -> None:
    plan, spec = made(make_plan, {"unit": "none"})
    assert terms(plan, spec, 100) is None
    assert forecast(plan, spec) is None
    assert summarised({}) is None
    assert "privacy" not in plan.canonical().decode()


def test_an_example_depends_on_rows_and_steps(make_plan: Any) -> None:
    plan, spec = made(make_plan, EXAMPLE)
    few, many = terms(plan, spec, 16), terms(plan, spec, 1600)
    assert few is not None
    assert many is not None
    assert (few.release.sampling_rate, many.release.sampling_rate) == (4 / 16, 4 / 1600)
    assert few.release.steps == 3
    assert few.epsilon(4) > many.epsilon(4)
    found = forecast(plan, spec)
    assert found is not None
    assert found["epsilon"] == few.epsilon(4)
    assert (found["unit"], found["delta"], found["uploads"]) == ("example", 1e-5, 4)
    tiny = terms(plan, spec, 2)
    assert tiny is not None
    assert tiny.release.sampling_rate == 1.0


def test_rows_that_only_a_file_knows_leave_epsilon_open(make_plan: Any) -> None:
    plan, spec = made(make_plan, EXAMPLE, **{"data.sites": {"a": {"source": "a.jsonl"}}})
    found = forecast(plan, spec)
    assert found is not None
    assert found["epsilon"] is None
    assert planned_rows(plan.data) == {"a": None}
    pool = {"split": "iid", "num_sites": 4, "pool": [{"source": "sample:finance", "rows": 90}]}
    dealt, _ = made(make_plan, EXAMPLE, data=pool | {"heldout_rows": 4})
    assert set(planned_rows(dealt.data).values()) == {18}
    drawn, _ = made(make_plan, EXAMPLE, data=pool | {"split": "dirichlet", "heldout_rows": 4})
    assert set(planned_rows(drawn.data).values()) == {None}


def test_epsilon_is_of_the_rows_that_were_counted(make_plan: Any) -> None:
    """A plan's `rows` are the most that a source gives; fewer cost more."""
    plan, spec = made(make_plan, EXAMPLE)
    planned = forecast(plan, spec)
    counted = forecast(plan, spec, {"bank": 16, "hospital": 8})
    unknown = forecast(plan, spec, {"bank": 16, "hospital": None})
    few = terms(plan, spec, 8)
    assert planned is not None
    assert counted is not None
    assert few is not None
    assert (planned["rows"], counted["rows"]) == (16, 8)
    assert counted["epsilon"] == few.epsilon(4) > planned["epsilon"]
    assert unknown == planned


@pytest.mark.parametrize("unit", [SITE, EXAMPLE], ids=["site", "example"])
def test_a_target_is_kept_by_the_rounds_planned(make_plan: Any, unit: dict[str, Any]) -> None:
    privacy = {**unit, "noise_multiplier": None, "epsilon": 6.0, "delta": 1e-6}
    plan, spec = made(make_plan, privacy)
    found = terms(plan, spec, 16)
    assert found is not None
    assert 0.98 * 6.0 < found.epsilon(plan.rounds) <= 6.0
    assert found.limit == 6.0
    assert found.allows(plan.rounds)
    assert not found.allows(plan.rounds + 1)


def test_a_limit_ends_the_forecast(make_plan: Any) -> None:
    plan, spec = made(make_plan, SITE)
    free = terms(plan, spec, 16)
    assert free is not None
    limited, spec = made(make_plan, {**SITE, "max_epsilon": free.epsilon(2) + 0.01})
    found = forecast(limited, spec)
    assert found is not None
    assert (found["rounds_within_limit"], found["epsilon"]) == (2, free.epsilon(2))
    kept = terms(limited, spec, 16)
    assert kept is not None
    assert not Spent(kept, 1).exhausted
    assert Spent(kept, 2).exhausted
    assert Spent(kept, 0).epsilon == 0


def test_what_cannot_be_kept_is_refused_at_once(make_plan: Any) -> None:
    with pytest.raises(PlanError, match=r"privacy\.max_epsilon: expected at least"):
        terms(*made(make_plan, {**SITE, "max_epsilon": 0.1}), 16)
    with pytest.raises(PlanError, match=r"privacy\.noise_multiplier: expected one whose"):
        terms(*made(make_plan, {**SITE, "noise_multiplier": 0.1, "delta": 1e-15}), 16)
    with pytest.raises(PlanError, match=r"privacy\.epsilon: expected one that"):
        terms(*made(make_plan, {**SITE, "noise_multiplier": None, "epsilon": 0.01,
                                "delta": 1e-15}, rounds=100_000), 16)  # fmt: skip


def test_the_site_that_spent_most_is_the_summarys(make_plan: Any) -> None:
    plan, spec = made(make_plan, EXAMPLE)
    few, many = terms(plan, spec, 16), terms(plan, spec, 1600)
    assert few is not None
    assert many is not None
    found = summarised({"a": Spent(many, 4), "b": Spent(few, 3)})
    assert found is not None
    assert found["epsilon"] == few.epsilon(3)
    assert found["sites"] == {"a": many.epsilon(4), "b": few.epsilon(3)}
    assert {"unit", "epsilon", "delta", "mechanism", "noise_multiplier", "clip_norm"} <= set(found)


def test_the_largest_round_counts(make_plan: Any) -> None:
    """`alternate` sends B and A in turn, and masks only ever send less."""
    plan, spec = made(make_plan, SITE, **{"adapter.train": "alternate"})
    schedule = exchange_schedule(plan)
    assert guarantee.most_values(schedule, spec) == max(
        num_sent(schedule, spec, number) for number in range(1, plan.rounds + 1)
    )
    found = terms(plan, spec, 16)
    assert found is not None
    assert isinstance(found.site, SiteMechanism)
    assert math.isfinite(found.epsilon(4))
