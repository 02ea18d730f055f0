"""What other choices of a plan would send: `fedshield plan` shows them beside the plan's own.

One row for each way to train and each width of a value, everything else as in the plan: its
targets, rank, masks and sites. Bytes are counted as in cost.py, on messages of the true shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from fedshield.cost import Sizes
from fedshield.cost.estimate import spec_of
from fedshield.errors import FedShieldError, ModelError
from fedshield.plan.schema import Plan
from fedshield.plan.sections import AdapterPlan
from fedshield.site.schemes import parameters_of, scheme_of
from fedshield.site.settings import exchange_schedule
from fedshield.types import AdapterSpec
from fedshield.update.paper_baseline import RANK, TARGETS, paper_bytes
from fedshield.update.prune import num_sent

#: Widths that are shown, and below which each site gets its own range (headroom).
BITS = (16, 8, 4, 3, 2)
HEADROOM_BELOW = 8
TRAIN: tuple[str, ...] = get_args(AdapterPlan.model_fields["train"].annotation)


@dataclass(frozen=True)
class Choice:
    """`values`: sent in the last round; `upload_bytes`: of one site and round, mean over rounds,
    whole messages with shares; `of_paper`: how many times more the paper's adapter would send
    (`reference.DEFINITION`), None where the model has not its targets."""

    train: str
    bits: int
    headroom: bool
    values: int
    upload_bytes: int
    of_paper: float | None


def choices(plan: Plan) -> Iterator[Choice]:
    """Those that can be: a packing that does not fit the sites, or a rank that does not fit the
    layers, has no row. Under `rlwe`, whatever the plan's scheme, with its default quorums."""
    paper = paper_bytes(_paper_values(plan))
    for train in TRAIN:
        try:
            changed = _changed(plan, adapter={"train": train}, scheme=None)
            _, spec = spec_of(changed)
        except FedShieldError:
            continue
        for bits in BITS:
            headroom = bits < HEADROOM_BELOW
            try:
                one = _changed(changed, encoding={"bits": bits, "headroom": headroom})
                parameters_of(one)
                sent = _mean_upload(one, spec)
            except FedShieldError:
                continue
            values = num_sent(exchange_schedule(one), spec, one.rounds)
            ratio = None if paper is None else paper / sent
            yield Choice(train, bits, headroom, values, round(sent), ratio)


def _paper_values(plan: Plan) -> int | None:
    """Trained values of the paper's adapter on the plan's base model (`reference.paper_values`),
    without its modules; None where it has not the targets."""
    adapter = AdapterPlan(rank=RANK, targets=TARGETS)
    try:
        _, spec = spec_of(plan.model_copy(update={"adapter": adapter}).with_base_dir(plan.base_dir))
    except ModelError:
        return None
    return spec.num_values


def _mean_upload(plan: Plan, spec: AdapterSpec) -> float:
    sizes, sites = Sizes(plan), len(plan.data.site_names())
    schedule, scheme = exchange_schedule(plan), scheme_of(plan)
    turns = Counter(num_sent(schedule, spec, at) for at in range(1, plan.rounds + 1))
    total = sum(
        times * sizes.summed(scheme.update_layout(count))[0] for count, times in turns.items()
    )
    return total / (plan.rounds * sites)


def _changed(plan: Plan, **sections: dict[str, Any] | None) -> Plan:
    """The plan with some keys changed, checked again; a section that is None has its defaults."""
    raw = plan.model_dump()
    raw["privacy"] = {}  # bytes do not depend on it, and it does not go with every choice
    raw["pruning"]["mask"] = "shared"  # what `rlwe` has without it (rule R9)
    for name, changes in sections.items():
        raw[name] = {} if changes is None else raw[name] | changes
    if raw["adapter"]["train"] != "core":
        raw["adapter"]["factors"] = "svd"
    try:
        return Plan.model_validate(raw).with_base_dir(plan.base_dir)
    except ValueError as error:
        raise FedShieldError(str(error)) from None
