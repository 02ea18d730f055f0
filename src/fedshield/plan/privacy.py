"""The plan's part on differential privacy: what is protected, by how much noise, up to where.

Combinations whose guarantee would not hold are refused here; docs/privacy.md says why of each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedshield.errors import InvalidKey
from fedshield.plan.data import Section
from fedshield.plan.sections import AdapterPlan, SchemePlan, TrainingPlan

Unit = Literal["none", "example", "site"]
Positive = Annotated[float, Field(gt=0, le=1e6)]


class PrivacyPlan(Section):
    """Differential privacy. Nothing has a default that would set the strength of the guarantee
    but `delta`: what protects is chosen on purpose."""

    unit: Unit = "none"
    clip_norm: Positive | None = None
    noise_multiplier: Annotated[float, Field(ge=0.01, le=1000)] | None = None
    epsilon: Annotated[float, Field(ge=0.01, le=1000)] | None = None
    delta: Annotated[float, Field(ge=1e-15, le=0.01)] | None = None
    max_epsilon: Annotated[float, Field(gt=0, le=1e6)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> PrivacyPlan:
        if self.unit == "none":
            for key in ("clip_norm", "noise_multiplier", "epsilon", "delta", "max_epsilon"):
                value = getattr(self, key)
                if value is not None:
                    raise InvalidKey(
                        key,
                        value,
                        "none when privacy.unit is none: set unit to example or site, or nothing "
                        "is protected",
                    )
            return self
        if self.clip_norm is None:
            raise InvalidKey(
                "clip_norm",
                "none",
                f"the largest L2 norm of one {self.unit}'s "
                f"{('gradient' if self.unit == 'example' else 'update')} when privacy.unit "
                f"is {self.unit}",
            )
        if (self.noise_multiplier is None) == (self.epsilon is None):
            both = "none" if self.epsilon is None else "both"
            raise InvalidKey(
                "noise_multiplier", both, "noise_multiplier or epsilon, one of the two"
            )
        if self.epsilon is not None and self.max_epsilon not in (None, self.epsilon):
            raise InvalidKey(
                "max_epsilon", self.max_epsilon, "none beside privacy.epsilon, which is the limit"
            )
        return self

    @property
    def delta_in_force(self) -> float:
        return 1e-5 if self.delta is None else self.delta

    @property
    def limit(self) -> float | None:
        """No round is begun that would take epsilon beyond this; None for no limit."""
        return self.max_epsilon if self.epsilon is None else self.epsilon


def refuse_unsound(
    privacy: PrivacyPlan, scheme: SchemePlan, adapter: AdapterPlan, training: TrainingPlan
) -> None:
    """Raises `InvalidKey` for a plan whose unit would not be protected."""
    unit = privacy.unit
    if scheme.membership == "open" and unit != "example":
        raise InvalidKey(
            "scheme.membership",
            f"open with privacy.unit {unit}",
            "fixed unless privacy.unit is example: the difference of two sums over "
            "different sets can be one site's update, which must then protect each "
            "training row by itself",
        )
    if unit == "example" and training.gradient_checkpointing:
        raise InvalidKey(
            "training.gradient_checkpointing",
            "True",
            "false when privacy.unit is example: gradients of single rows are taken "
            "from kept activations",
        )
    if unit == "example" and adapter.dropout:
        raise InvalidKey(
            "adapter.dropout",
            adapter.dropout,
            "0 when privacy.unit is example: a row's presence would move what is "
            "dropped of the other rows, which no clip bounds",
        )
    if unit != "site":
        return
    if not scheme.traits.one_time_keys:
        raise InvalidKey(
            "scheme.name",
            scheme.name,
            "rlwe when privacy.unit is site: a site adds a share of the noise only, "
            "and elsewhere single updates can be read",
        )
    if scheme.weights == "private":
        raise InvalidKey(
            "scheme.weights",
            "private",
            "equal or public when privacy.unit is site: the sum of the counts is "
            "opened without noise",
        )
    if adapter.exchange != "delta":
        raise InvalidKey(
            "adapter.exchange",
            adapter.exchange,
            "delta when privacy.unit is site: whole parameters have no small norm to clip to",
        )
    if adapter.train == "share-a":
        raise InvalidKey(
            "adapter.train",
            "share-a",
            "another when privacy.unit is site: each site's B is trained without noise "
            "and is part of what it releases",
        )
    if training.local_algorithm == "scaffold":
        raise InvalidKey(
            "training.local_algorithm",
            "scaffold",
            "plain or fedprox when privacy.unit is site: control variates travel "
            "beside the update and are not within its clip",
        )
