"""What the rooms `model` and `data` are given of a plan, each value built in one place."""

from __future__ import annotations

from collections.abc import Callable

from fedshield.data.setup import DataSetup
from fedshield.model.base import BaseModel, load
from fedshield.plan.floors import floor
from fedshield.plan.schema import Plan


def load_base(
    plan: Plan, say: Callable[[str], None] = lambda _: None, *, may_fetch: bool = True
) -> BaseModel:
    """The plan's base model (`model.base.load`). Raises `ModelError`."""
    return load(
        plan.model,
        plan.base_dir,
        device=plan.speed.device,
        precision=plan.training.precision,
        say=say,
        may_fetch=may_fetch,
    )


def data_setup(plan: Plan) -> DataSetup:
    """Which rows the plan's sites have, and how they become examples."""
    return DataSetup(
        data=plan.data,
        base_dir=plan.base_dir,
        seed=plan.seed,
        max_length=plan.training.max_length,
        one_text_a_row=plan.privacy.unit == "example",
        min_rows=floor(plan),
    )
