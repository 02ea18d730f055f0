"""Keys of a plan that change nothing beside the others: named, so that nobody relies on them.

A plan may hold `training.proximal: 0.1` without `local_algorithm: fedprox`. It is a sound plan, and
a reader would think that the pull is there. `without_effect` names each such key that was set to
another value than its default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from fedshield.plan.data import SourcePlan
from fedshield.plan.schema import Plan
from fedshield.plan.sections import BUILT_IN


def without_effect(plan: Plan) -> list[str]:
    """One sentence for each key with a value of its own that changes nothing in this plan."""
    return [
        f"{key} has no effect: {why}"
        for section, why in _idle(plan)
        for key in _set_keys(plan, section)
    ] + [f"{key} has no effect: {why}" for key, why in _idle_of_sources(plan)]


def without_effect_at_sites(plan: Plan) -> list[str]:
    """The same for what is set here and is each site's own to say, in its policy."""
    of_policy = "each site's policy says"
    sentences = [
        f"{key} has no effect at the sites: {of_policy} {what}"
        for section, what in (
            (("speed", "device"), "what trains (device)"),
            (("model", "revision", "config"), "where its model is (model_path)"),
        )
        for key in _set_keys(plan, section)
    ]
    return sentences + [
        f"data.sites.{name}.heldout_source has no effect at the sites: {of_policy} where rows to "
        "measure on are (heldout_path; the last rows of data_path where it is left out)"
        for name, source in plan.data.sites.items()
        if source.heldout_source is not None
    ]


def without_effect_in_process(plan: Plan) -> list[str]:
    """The same for a run whose sites are all in one process."""
    deadlines = ("setup_deadline_s", "work_deadline_s", "message_deadline_s")
    return [
        f"{key} has no effect: all sites are in one process, and no message is waited for"
        for key in _set_keys(plan, ("speed", *deadlines))
    ]


def _idle(plan: Plan) -> Iterator[tuple[tuple[str, ...], str]]:
    """A section with those of its keys that change nothing, and why."""
    training, pruning, rules = plan.training, plan.pruning, plan.aggregation
    if training.local_algorithm != "fedprox":
        why = f"training.local_algorithm is {training.local_algorithm}, and only fedprox pulls"
        yield ("training", "proximal"), why
    if training.lr_schedule == "constant":
        yield ("training", "min_learning_rate"), "training.lr_schedule is constant"
    if rules.optimizer in ("fedavg", "fedadagrad"):
        yield ("aggregation", "momentum"), f"{rules.optimizer} has no momentum"
    if rules.optimizer in ("fedavg", "fedavgm", "fedadagrad"):
        why = f"{rules.optimizer} has no decaying second moment"
        yield ("aggregation", "second_momentum"), why
    if rules.optimizer in ("fedavg", "fedavgm"):
        yield ("aggregation", "epsilon"), f"{rules.optimizer} divides by nothing"
    shape = ("mask", "ranking", "explore", "initial_rate", "target_rate")
    if pruning.method == "none":
        yield ("pruning", *shape, "start_round", "target_round"), "pruning.method is none"
    elif pruning.mask == "local":
        yield ("pruning", "ranking", "explore"), "pruning.mask is local"
    if not plan.scheme.traits.on_grid:
        why = f"scheme.name is {plan.scheme.name}, and only ckks rounds to a grid"
        yield ("encoding", "grid_bits"), why
    if not plan.scheme.traits.one_time_keys:
        why = f"scheme.name is {plan.scheme.name}, and only rlwe packs bits"
        yield ("encoding", "bits", "headroom"), why
    if not plan.scheme.traits.encrypted and pruning.method == "none":
        why = "nothing is left out of an update: scheme.name is plain, pruning.method none"
        yield ("encoding", "error_feedback"), why
    if plan.scheme.weights == "equal":
        yield ("scheme", "max_weight"), "scheme.weights is equal"
    if not plan.evaluation.prompts:
        yield ("evaluation", "max_new_tokens"), "evaluation.prompts is empty"
    if plan.data.split != "dirichlet":
        yield ("data", "dirichlet_alpha"), f"data.split is {plan.data.split}"
    if plan.data.sites and all(source.heldout_rows for source in plan.data.sites.values()):
        yield ("data", "heldout_rows"), "each site has heldout_rows of its own"
    if plan.model.name in BUILT_IN:
        why = f"{plan.model.name} is built in"
        yield ("model", "revision", "config"), why
    elif plan.resolve(plan.model.name).is_dir():
        yield ("model", "revision", "config"), "model.name is a folder, which has its own"


def _set_keys(plan: Plan, section: tuple[str, ...]) -> Iterator[str]:
    name, *keys = section
    values: Any = getattr(plan, name)
    for key in keys:
        if getattr(values, key) != type(values).model_fields[key].default:
            yield f"{name}.{key}"


def _idle_of_sources(plan: Plan) -> Iterator[tuple[str, str]]:
    sources = [(f"data.sites.{name}", source) for name, source in plan.data.sites.items()]
    sources += [(f"data.pool.{at}", source) for at, source in enumerate(plan.data.pool)]
    for key, source in sources:
        if source.split != SourcePlan.model_fields["split"].default and not _has_splits(source):
            yield f"{key}.split", f"{PurePosixPath(source.source).name} is no hub set"


def _has_splits(source: SourcePlan) -> bool:
    return any(
        place is not None and place.startswith("hub:")
        for place in (source.source, source.heldout_source)
    )
