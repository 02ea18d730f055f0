"""Attacks on the released adapter: membership inference and canaries, over whole runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedshield.audit.attacks import canaries as secrets
from fedshield.audit.attacks import membership as inference
from fedshield.audit.effort import Effort, changed
from fedshield.audit.findings import Finding
from fedshield.audit.replay import Scene, record, trained_rows
from fedshield.data.sites import SiteData
from fedshield.model.chat import Tokens
from fedshield.plan.schema import Plan
from fedshield.seeds import SiteRandomness, derive
from fedshield.types import AdapterState, Float64

HOLDER = "holder of the released adapter"
#: What attacks on the released adapter are filed under: its rows are the same under every scheme.
ANY = "any"
Say = Callable[[str], None]


def in_the_clear(plan: Plan) -> Plan:
    """The plan without encryption: the fastest way to an adapter of the same rows, up to rounding
    and to their order within a round. Where the noise is added to the encrypted sum, the plan
    itself."""
    if plan.privacy.unit == "site":
        return plan
    return changed(plan, {"scheme.name": "plain"})


def membership(
    plan: Plan,
    scene: Scene,
    effort: Effort,
    released: AdapterState | None,
    rounds: int | None,
    drew: Mapping[str, SiteRandomness],
    skipped: dict[str, str],
    say: Say,
) -> list[Finding]:
    """AUC and TPR at 1 % FPR of each signal, on rows that were trained on and held-out rows.
    `rounds`: that the run of `released` completed; `drew`: what its sites' training drew from, of
    those of which it is known here."""
    if plan.adapter.train == "share-a":
        skipped["membership"] = "each site has an adapter of its own (share-a)"
        return []
    state, clear = released, in_the_clear(plan)
    if state is None:
        say("running the plan for membership inference")
        state = record(clear, scene, say=say).released.state
        rounds = None
        drew = {name: SiteRandomness.of_demonstration(plan.seed, name) for name in scene.data}
    members, others = _rows(plan, scene, drew, rounds)
    note = _unknown_rows(plan, scene, drew, rounds)
    found = _signals(plan, scene, effort, state, members, others, say)
    return [
        Finding("membership", ANY, HOLDER, f"{what}, {one.signal}", measure, note)
        for one in inference.told_apart(*found)
        for what, measure in (("AUC", one.auc), ("TPR at 1 % FPR", one.tpr_at_1_percent))
    ]


def _unknown_rows(
    plan: Plan, scene: Scene, drew: Mapping[str, SiteRandomness], rounds: int | None
) -> str:
    """What a reader must know where it is not known here which rows the run took; '' where it is,
    and where it took all."""
    training = plan.training
    count = training.steps * training.gradient_accumulation * training.batch_size
    taken = count * (plan.rounds if rounds is None else rounds)
    unknown = [
        name
        for name, data in scene.data.items()
        if name not in drew and plan.privacy.unit != "example" and taken < len(data.train)
    ]
    if not unknown:
        return ""
    return (
        f"which rows the run took is known to {', '.join(unknown)} alone: all rows there count as "
        "members, also those that were not taken, so the attack looks weaker than it is"
    )


def _rows(
    plan: Plan, scene: Scene, drew: Mapping[str, SiteRandomness], rounds: int | None
) -> tuple[list[Tokens], list[Tokens]]:
    """As many rows that were trained on as there are held-out ones, of each site."""
    members: list[Tokens] = []
    others: list[Tokens] = []
    for name, data in scene.data.items():
        used = trained_rows(plan, name, scene, drew.get(name), rounds)
        generator = np.random.default_rng(derive(plan.seed, "audit members", name))
        count = min(len(used), len(data.heldout))
        members += [used[int(at)] for at in generator.permutation(len(used))[:count]]
        others += list(data.heldout[:count])
    return members, others


def _signals(
    plan: Plan,
    scene: Scene,
    effort: Effort,
    state: AdapterState,
    members: Sequence[Tokens],
    others: Sequence[Tokens],
    say: Say,
) -> list[dict[str, Float64]]:
    base, host = scene.base, scene.host
    shadow: dict[Tokens, float] = {}
    if effort.shadows:
        shadow = _shadow_losses(plan, scene, [*members, *others], say)
    found = []
    for rows in (members, others):
        released = inference.row_losses(base, host, state, rows)
        untrained = inference.row_losses(base, host, scene.start(plan), rows)
        without = [shadow[row] for row in rows] if effort.shadows else None
        found.append(inference.signals(released, untrained, without))
    return found


def _shadow_losses(
    plan: Plan, scene: Scene, rows: Sequence[Tokens], say: Say
) -> dict[Tokens, float]:
    """Row -> its loss under an adapter trained by the same plan without it: two runs, each on one
    half of all rows of each site."""
    halves: list[dict[str, SiteData]] = [{}, {}]
    for name, data in scene.data.items():
        pool = list(dict.fromkeys([*data.train, *data.heldout]))
        generator = np.random.default_rng(derive(plan.seed, "audit shadow", name))
        order = generator.permutation(len(pool))
        for half in range(2):
            mine = tuple(pool[int(at)] for at in order[half::2])
            halves[half][name] = replace(data, train=mine)
    found: dict[Tokens, float] = {}
    for half in range(2):
        say(f"shadow run {half + 1} of 2")
        other = replace(scene, data=halves[half])
        state = record(in_the_clear(plan), other, say=say).released.state
        inside = {row for data in halves[half].values() for row in data.train}
        without = [row for row in dict.fromkeys(rows) if row not in inside]
        losses = inference.row_losses(scene.base, scene.host, state, without)
        found |= {row: one.mean for row, one in zip(without, losses, strict=True)}
    return found


def canaries(
    plan: Plan, scene: Scene, effort: Effort, skipped: dict[str, str], say: Say
) -> list[Finding]:
    """Exposure and extraction of secrets planted in a run of the plan; why not, in `skipped`."""
    invented = secrets.invent(plan, effort.canaries, effort.repeats)
    if why := secrets.unfit(scene, plan, invented):
        skipped["canaries"] = why
        return []
    staged = secrets.planted(scene, plan, invented)
    say("running the plan with canaries")
    state = record(in_the_clear(plan), staged, say=say).released.state
    found: list[Finding] = []
    for one in secrets.measure(staged, plan, state, invented, effort.references):
        times = f"secrets {one.repeats} times in a site's rows"
        note = f"at most {one.highest:.1f} bits could be measured"
        found.append(Finding("canaries", ANY, HOLDER, f"exposure, {times}", one.exposure, note))
        found.append(Finding("canaries", ANY, HOLDER, f"extracted, {times}", one.extracted))
    return found
