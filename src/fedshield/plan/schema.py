"""The plan: one YAML file that says everything about a run, checked before anything is loaded.

Sections that change what is computed or protected (`model`, `adapter`, `data`, `training`,
`pruning`, `encoding`, `scheme`, `privacy`, ...) are under the plan's hash, which is bound into
every message. `speed` and `output` change neither, may differ between machines, and are not.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, PrivateAttr, model_validator

from fedshield.errors import InvalidKey, PlanError
from fedshield.plan import paths
from fedshield.plan.data import DataPlan, Section, without_later_keys
from fedshield.plan.privacy import PrivacyPlan, refuse_unsound
from fedshield.plan.quorum import Rules, default_colluding, resolve
from fedshield.plan.sections import (
    BUILT_IN,
    AdapterPlan,
    AggregationPlan,
    EncodingPlan,
    EvaluationPlan,
    ModelPlan,
    OutputPlan,
    PruningPlan,
    SchemePlan,
    SpeedPlan,
    TrainingPlan,
)

#: Numbers such as 1e-4, which YAML 1.1 takes for text; a plan is read and written as YAML 1.2.
YAML_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


class Plan(Section):
    """A run, whole. `plan.load` reads one from a file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 200
    model: ModelPlan = ModelPlan()
    adapter: AdapterPlan = AdapterPlan()
    data: DataPlan
    training: TrainingPlan = TrainingPlan()
    pruning: PruningPlan = PruningPlan()
    aggregation: AggregationPlan = AggregationPlan()
    encoding: EncodingPlan = EncodingPlan()
    scheme: SchemePlan = SchemePlan()
    privacy: PrivacyPlan = PrivacyPlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    speed: SpeedPlan = SpeedPlan()
    output: OutputPlan = OutputPlan()

    _base_dir: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.pruning.method != "none":
            for key in ("start_round", "target_round"):
                value = getattr(self.pruning, key)
                if value is not None and value > self.rounds:
                    raise InvalidKey(f"pruning.{key}", value, f"at most rounds ({self.rounds})")
        rules = self.aggregation
        if self.adapter.exchange == "parameters" and (
            rules.optimizer != "fedavg" or rules.learning_rate != 1.0
        ):
            raise InvalidKey(
                "aggregation.optimizer",
                rules.optimizer,
                "fedavg with learning_rate 1 when adapter.exchange is parameters (the "
                "others need differences)",
            )
        if self.training.local_algorithm == "scaffold" and (
            self.training.optimizer != "sgd" or self.adapter.exchange != "delta"
        ):
            raise InvalidKey(
                "training.local_algorithm",
                "scaffold",
                "optimizer sgd and exchange delta with scaffold (its control variates are "
                "mean gradients)",
            )
        if self.training.local_algorithm == "scaffold" and self.scheme.membership == "open":
            raise InvalidKey(
                "training.local_algorithm",
                "scaffold",
                "plain or fedprox with membership open (who is in a sum is not known "
                "before it, and control variates are means over all sites)",
            )
        refuse_unsound(self.privacy, self.scheme, self.adapter, self.training)
        num_sites = len(self.data.site_names())
        if self.scheme.traits.encrypted and num_sites < 2:
            key = "sites" if self.data.split == "by-site" else "num_sites"
            raise InvalidKey(
                f"data.{key}",
                "1 site",
                f"at least 2 sites to sum over when scheme is {self.scheme.name}",
            )
        try:
            self.rules()
        except PlanError as error:
            raise InvalidKey(error.key, error.got, error.expected, error.fix) from None
        honest, most = self.honest_sites(), Fraction(str(self.scheme.max_weight))
        if self.scheme.weights != "equal" and honest > 1 and most * honest < 1:
            raise InvalidKey(
                "scheme.max_weight",
                self.scheme.max_weight,
                f"at least 1/{honest}, which each of the {honest} honest sites has at equal "
                "weights",
            )
        if (
            (self.scheme.name, self.privacy.unit) == ("rlwe", "none")
            and self.pruning.method != "none"
            and self.pruning.mask == "local"
        ):
            # Who is in a coordinate's sum would differ by coordinate and round, and the rules
            # across sums are about whole updates.
            raise InvalidKey(
                "pruning.mask",
                "local",
                "shared with scheme rlwe, unless privacy.unit protects what a single "
                "site's values show (rule R9)",
            )
        if self.model.quantization != "none" and self.model.name in BUILT_IN:
            raise InvalidKey(
                "model.quantization",
                self.model.quantization,
                f"none for the built-in {self.model.name}",
            )
        return self

    def rules(self) -> Rules:
        """Who may open what. Without a threshold, only the whole roster's sum is opened."""
        num_sites, scheme = len(self.data.site_names()), self.scheme
        if not scheme.traits.one_time_keys:
            return Rules(num_sites, 0, 0, num_sites, num_sites)
        return resolve(
            num_sites,
            max_colluding=scheme.max_colluding,
            threshold=scheme.threshold,
            votes=scheme.votes,
            min_cohort=scheme.min_cohort,
            server=scheme.server,
            membership=scheme.membership,
        )

    def honest_sites(self) -> int:
        """Honest sites of the smallest sum that the plan allows, or of the smallest difference of
        sums (a batch's). A scheme without a threshold has no c of its own; what `rlwe` would take
        is taken, so that it weights sites alike."""
        rules = self.rules()
        if self.scheme.traits.one_time_keys:
            return rules.least_apart - rules.max_colluding
        return rules.num_sites - default_colluding(rules.num_sites)

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths in the plan start from."""
        return self._base_dir

    def with_base_dir(self, base_dir: Path) -> Plan:
        plan = self.model_copy()
        plan._base_dir = base_dir
        return plan

    def resolve(self, path: str) -> Path:
        """A path of the plan, made absolute. Raises `PlanError` if it cannot be one."""
        return paths.resolve(path, self._base_dir)

    def canonical(self) -> bytes:
        """Canonical JSON of what is agreed between the parties: all but speed and output, and
        privacy where there is none."""
        left_out = {"speed", "output"} | ({"privacy"} if self.privacy.unit == "none" else set())
        agreed = self.model_dump(mode="json", exclude=left_out)
        agreed["data"] = without_later_keys(agreed["data"])
        if self.scheme.max_weight == SchemePlan.model_fields["max_weight"].default:
            del agreed["scheme"]["max_weight"]  # came later
        return json.dumps(agreed, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def sha256(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()

    def to_yaml(self) -> str:
        """The plan with every default written out, as it is run."""
        return yaml.dump(
            self.model_dump(mode="json"),
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=100,
        )


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes a text which reads as a number in YAML 1.2, and one with any kind of
    line end, so that each comes back as it was."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if data.splitlines() == [data] else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_implicit_resolver(*YAML_FLOAT)
_Dumper.add_representer(str, _Dumper.represent_str)


# -- schedules that the plan defines ---------------------------------------------------------


def learning_rate(training: TrainingPlan, rounds: int, round_number: int) -> float:
    """The learning rate of a round: cosine over rounds from the first rate to the least
    (FedShield-LLM, arXiv 2506.05640, training set-up), or constant.

    Args:
        training: the rates and their schedule.
        rounds: of the whole run.
        round_number: 1 to `rounds`.

    Returns:
        The rate of the local optimiser's steps.
    """
    if training.lr_schedule == "constant":
        return training.learning_rate
    span = training.learning_rate - training.min_learning_rate
    progress = (round_number - 1) / rounds
    return training.min_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * progress))
