"""What of a plan the rooms before this one are given: each value is built from it in one place.

`update` and `privacy` know no plan, only the settings that they use.
"""

from __future__ import annotations

from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import ReleaseSettings, Terms, terms
from fedshield.types import AdapterSpec
from fedshield.update.encode_integers import ClipRule
from fedshield.update.prune import ExchangeSchedule


def exchange_schedule(plan: Plan) -> ExchangeSchedule:
    """What is trained and what travels, round by round."""
    return ExchangeSchedule(
        train=plan.adapter.train,
        pruning=plan.pruning,
        rounds=plan.rounds,
        seed=plan.seed,
        channels=2 if plan.training.local_algorithm == "scaffold" else 1,
    )


def clip_rule(plan: Plan) -> ClipRule:
    """What the clips of tensors follow from."""
    return ClipRule(
        exchange=plan.adapter.exchange,
        training=plan.training,
        encoding=plan.encoding,
        rounds=plan.rounds,
        num_sites=len(plan.data.site_names()),
    )


def release_settings(plan: Plan) -> ReleaseSettings:
    """What a round releases of a site, as far as its privacy depends on it."""
    return ReleaseSettings(
        schedule=exchange_schedule(plan),
        training=plan.training,
        encoding=plan.encoding,
        rules=plan.rules(),
    )


def privacy_terms(plan: Plan, spec: AdapterSpec, num_examples: int) -> Terms | None:
    """What the plan promises of a site with so many training rows (`privacy.guarantee.terms`)."""
    return terms(plan.privacy, release_settings(plan), spec, num_examples)
