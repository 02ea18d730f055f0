"""An audit from beginning to end: the plan's rounds under each setting, each party's attacks.

Attacks on updates (tokens, properties) look at the first rounds, which are run again under every
setting. Attacks on the released adapter (membership, canaries) need whole runs: whatever the
scheme, it is of the same rows, up to rounding and to their order within a round, so they are made
once, in the clear.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import fedshield
from fedshield.audit import after_release, on_updates
from fedshield.audit.effort import USUAL, Effort, changed
from fedshield.audit.findings import ATTACKS, SETTINGS, Audit, Finding, Setting
from fedshield.audit.replay import Scene, prepare, record
from fedshield.errors import ModelError, PlanError
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import Spent, summarised
from fedshield.run.prepare import run_notes
from fedshield.run.summary import portable
from fedshield.seeds import SiteRandomness
from fedshield.site.settings import privacy_terms
from fedshield.types import AdapterSpec, AdapterState


def audit(
    plan: Plan,
    attacks: Sequence[str] = ATTACKS,
    effort: Effort = USUAL,
    released: Callable[[AdapterSpec], AdapterState | None] = lambda _: None,
    rounds: int | None = None,
    privacy: dict[str, Any] | None = None,
    history: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
    date: datetime.date | None = None,
    site: str | None = None,
    drew: Mapping[str, SiteRandomness] = MappingProxyType({}),
) -> Audit:
    """Everything that `attacks` names, on the plan's own data. `released`: gives the adapter of a
    run, which completed so many `rounds`; without one the plan is run. `date`: the day on which
    the run began. `site`: the only one whose data are here, at an organisation after its run; what
    needs all sites' is then skipped, by name. `history`: what is known of how that run went;
    `drew`: what its sites' training drew from, where that is known here. Raises `PlanError` for an
    unknown attack."""
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown or not attacks:
        raise PlanError(
            f"--attacks: expected some of {', '.join(ATTACKS)}, got "
            f"{', '.join(unknown) or 'none'}; separate them by commas"
        )
    scene = prepare(plan, say, date, site)
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    left_out: dict[str, str] = {}
    if site is not None:
        attacks, effort = _alone(site, attacks, effort, skipped)
    settings = _settings(plan, left_out)
    if {"tokens", "properties"} & set(attacks):
        skipped |= left_out
        try:
            findings += _updates(plan, settings, scene, attacks, effort, skipped, say)
        except ModelError as error:
            skipped["tokens"] = str(error)
    if "membership" in attacks:
        findings += after_release.membership(
            plan, scene, effort, released(scene.host.spec), rounds, drew, skipped, say
        )
    if "canaries" in attacks:
        findings += after_release.canaries(plan, scene, effort, skipped, say)
    notes = run_notes(scene.base, scene.data, scene.host)
    summed = next((other for one, other in settings if one.key == "rlwe"), plan)
    rules = summed.rules()
    return Audit(
        name=plan.name,
        plan_sha256=plan.sha256(),
        run_scheme=plan.scheme.name,
        model={
            "name": portable(plan.model.name),
            "sha256": scene.base.sha256,
            "note": scene.base.note,
        },
        sites=plan.data.site_names(),
        colluding=rules.max_colluding,
        threshold=rules.threshold,
        rounds=min(effort.rounds, plan.rounds),
        settings={
            "optimizer": plan.training.optimizer,
            "steps": plan.training.steps,
            "batch_size": plan.training.batch_size,
            "rank": plan.adapter.rank,
            "targets": list(scene.host.spec.layers()),
            "train": plan.adapter.train,
            "pruning": [plan.pruning.method, plan.pruning.mask, plan.pruning.target_rate],
            "bits": plan.encoding.bits,
            "server": summed.scheme.server,
            "open_to": summed.scheme.open_to,
            "rows": [f"{name} {len(data.train)}" for name, data in scene.data.items()],
            "rows_held_out": [f"{name} {len(data.heldout)}" for name, data in scene.data.items()],
            "planned_rounds": plan.rounds,
        },
        findings=tuple(findings),
        skipped=skipped,
        privacy=privacy or _promised(plan, scene) or {},
        version=fedshield.__version__,
        history=tuple(history),
        notes=tuple(notes),
    )


def _alone(
    site: str, attacks: Sequence[str], effort: Effort, skipped: dict[str, str]
) -> tuple[Sequence[str], Effort]:
    """What one site can do by itself: tell its own rows from others by the released adapter."""
    why = f"it runs rounds again, which needs all sites' data; here are {site}'s only"
    skipped |= {name: why for name in attacks if name != "membership"}
    if "membership" in attacks and effort.shadows:
        skipped["membership by shadow adapters"] = why
    return [name for name in attacks if name == "membership"], replace(effort, shadows=False)


def _promised(plan: Plan, scene: Scene) -> dict[str, Any] | None:
    """Epsilon and delta after the plan's rounds, of the site that spends most."""
    spent: dict[str, Spent] = {}
    for name, data in scene.data.items():
        found = privacy_terms(plan, scene.host.spec, len(data.train))
        if found is not None:
            spent[name] = Spent(found, found.rounds_allowed(plan.rounds))
    return summarised(spent)


def _settings(plan: Plan, skipped: dict[str, str]) -> list[tuple[Setting, Plan]]:
    """What updates are attacked under, each with its plan; why not the others."""
    found: list[tuple[Setting, Plan]] = []
    unit = plan.privacy.unit
    for setting in SETTINGS:
        key = setting.key
        if key in ("ckks", "rlwe") and not summable(plan):
            skipped[key] = "one site: there is no sum to protect"
        elif key == "pruned" and plan.pruning.method == "none":
            skipped[key] = "the plan prunes nothing"
        elif key in ("noised", "ckks") and unit == "site":
            skipped[key] = "a site's noise is a share of what the encrypted sum needs: rlwe only"
        elif key != "noised" or unit == "example":
            try:
                found.append((setting, changed(plan, setting.changes)))
            except PlanError as error:  # of a scheme that is not the plan's
                skipped[key] = str(error)
    return found


def _updates(
    plan: Plan,
    settings: Sequence[tuple[Setting, Plan]],
    scene: Scene,
    attacks: Sequence[str],
    effort: Effort,
    skipped: dict[str, str],
    say: Callable[[str], None],
) -> list[Finding]:
    findings: list[Finding] = []
    attacker = on_updates.Attacker(plan, scene, attacks, skipped)
    for setting, other in settings:
        say(f"attacking updates: {setting.words}")
        recording = record(other, scene, effort.rounds, say)
        if setting.key == "plain" and "tokens" in attacks:
            findings += attacker.from_public_text(recording)
        findings += attacker.attack(setting, recording)
    return findings


def summable(plan: Plan) -> bool:
    """Whether a sum is over more than one site."""
    return len(plan.data.site_names()) > 1
