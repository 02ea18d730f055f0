"""What other choices of a plan would send: `fedshield plan` shows them beside the plan's own.

One row for each way to train and each width of a value, everything else as in the plan: its
targets, rank, masks and sites. Bytes are counted as those of the plan itself (`messages`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from fedshield.cost.estimate import spec_of
from fedshield.cost.messages import DryRun, Shape, shape_of
from fedshield.errors import FedShieldError, ModelError
from fedshield.plan.schema import Plan
from fedshield.plan.sections import AdapterPlan
from fedshield.site.schemes import scheme_of
from fedshield.site.settings import exchange_schedule
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


class _Option(NamedTuple):
    """A plan that can be. `turns`: shape of a round -> how many rounds have it; `values`: sent in
    the last round."""

    plan: Plan
    turns: Mapping[Shape, int]
    values: int


def choices(plan: Plan) -> Iterator[Choice]:
    """Those that can be: a packing that does not fit the sites, or a rank that does not fit the
    layers, has no row. Under `rlwe`, whatever the plan's scheme, with its default quorums."""
    paper = paper_bytes(_paper_values(plan))
    options = list(_options(plan))
    if not options:
        return
    # All have the same sites and quorums, so one session tells the bytes of each.
    dry_run = DryRun(options[0].plan, {shape for option in options for shape in option.turns})
    site_rounds = plan.rounds * len(plan.data.site_names())
    for option in options:
        total = sum(times * dry_run.round(shape).up for shape, times in option.turns.items())
        adapter, encoding, sent = option.plan.adapter, option.plan.encoding, total / site_rounds
        ratio = None if paper is None else paper / sent
        yield Choice(
            adapter.train, encoding.bits, encoding.headroom, option.values, round(sent), ratio
        )


def _options(plan: Plan) -> Iterator[_Option]:
    for train in TRAIN:
        try:
            changed = _changed(plan, adapter={"train": train}, scheme=None)
            _, spec = spec_of(changed)
        except FedShieldError:
            continue
        schedule = exchange_schedule(changed)
        counts = Counter(num_sent(schedule, spec, at) for at in range(1, changed.rounds + 1))
        for bits in BITS:
            try:
                encoding = {"bits": bits, "headroom": bits < HEADROOM_BELOW}
                option = _changed(changed, encoding=encoding)
                turns = Counter[Shape]()
                for count, times in counts.items():
                    turns[shape_of(option, scheme_of(option).update_layout(count))] += times
            except FedShieldError:
                continue
            values = num_sent(schedule, spec, changed.rounds)
            yield _Option(option, turns, values)


def _paper_values(plan: Plan) -> int | None:
    """Trained values of the paper's adapter on the plan's base model (`reference.paper_values`),
    without its modules; None where it has not the targets."""
    adapter = AdapterPlan(rank=RANK, targets=TARGETS)
    try:
        _, spec = spec_of(plan.model_copy(update={"adapter": adapter}).with_base_dir(plan.base_dir))
    except ModelError:
        return None
    return spec.num_values


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
