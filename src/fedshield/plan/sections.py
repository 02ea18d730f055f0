"""The sections of a plan, but for its data (`plan.data`) and its privacy (`plan.privacy`).

Each checks itself; what depends on several of them is checked by the whole plan (`plan.schema`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedshield.errors import InvalidKey
from fedshield.plan.data import MAX_SITES, PositiveInt, Section
from fedshield.plan.quorum import Membership, OpenTo, Server
from fedshield.types import Exchange

#: As a target: all linear layers but the output's.
ALL_LINEAR = "all-linear"
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
#: Which factors of an adapter are trained (`adapter.train`).
TrainedFactors = Literal["ab", "b", "alternate", "share-a", "core"]
#: Base models that every installation has under the same name.
SMOLLM2, TINY_LLAMA = "smollm2-135m", "tiny-llama"
BUILT_IN = (SMOLLM2, TINY_LLAMA)


class ModelPlan(Section):
    """The frozen base model: a hub name, a local folder, or a built-in name."""

    name: Annotated[str, Field(min_length=1)] = SMOLLM2
    revision: str | None = None
    quantization: Literal["none", "8bit", "4bit"] = "none"
    config: str | None = Field(
        default=None,
        description="config.json to estimate costs from when the weights are not here",
    )
    chat_template: Literal["auto", "fallback"] = "auto"


class AdapterPlan(Section):
    """LoRA. Defaults are the paper's."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    dropout: Rate = 0.05
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")
    train: TrainedFactors = "ab"
    factors: Literal["svd", "gradient"] = "svd"
    exchange: Exchange = "delta"

    @field_validator("targets", mode="before")
    @classmethod
    def _every_layer(cls, value: Any) -> Any:
        if value == ALL_LINEAR:
            return (ALL_LINEAR,)
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> AdapterPlan:
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise InvalidKey(
                "targets", list(self.targets), f"{ALL_LINEAR} alone, or layers by name"
            )
        if self.factors != "svd" and self.train != "core":
            raise InvalidKey(
                "factors",
                self.factors,
                f"svd when train is {self.train}: only core has frozen factors to choose",
            )
        return self


class TrainingPlan(Section):
    """One site's local training in one round. Defaults are the paper's."""

    steps: PositiveInt = 10
    batch_size: PositiveInt = 16
    gradient_accumulation: PositiveInt = 1
    max_length: Annotated[int, Field(ge=8, lt=2**31)] = 512
    learning_rate: Annotated[float, Field(gt=0, le=1e3)] = 5e-5
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    local_algorithm: Literal["plain", "fedprox", "scaffold"] = "plain"
    proximal: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TrainingPlan:
        if self.min_learning_rate > self.learning_rate:
            raise InvalidKey(
                "min_learning_rate",
                self.min_learning_rate,
                f"at most learning_rate ({self.learning_rate})",
            )
        return self


class PruningPlan(Section):
    """Magnitude pruning with the paper's clamped ramp over the rounds.

    `shared` masks are found by every site from what all have; only kept coordinates travel.
    `local` masks are each site's own, and zeros travel like the rest (the paper).

    Without `start_round` and `target_round` the paper's proportions are used: the ramp starts
    after a fifth of the rounds and reaches the target rate in the last one.
    """

    method: Literal["magnitude", "none"] = "magnitude"
    mask: Literal["shared", "local"] = "shared"
    ranking: Literal["tensor", "global"] = "tensor"
    explore: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    initial_rate: Rate = 0.2
    target_rate: Rate = 0.5
    start_round: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    target_round: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> PruningPlan:
        if self.target_rate < self.initial_rate:
            raise InvalidKey(
                "target_rate", self.target_rate, f"at least initial_rate ({self.initial_rate})"
            )
        start, target = self.start_round, self.target_round
        if start is not None and target is not None and target < start:
            raise InvalidKey("target_round", target, f"at least start_round ({start})")
        return self


class AggregationPlan(Section):
    """What every site does with the opened mean update; the coordinator does not see it.

    Sources: FedAvg (McMahan et al., AISTATS 2017); FedAvgM (Hsu et al., arXiv 1909.06335);
    FedAdagrad, FedAdam, FedYogi (Reddi et al., ICLR 2021).
    """

    optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = "fedavg"
    learning_rate: Annotated[float, Field(gt=0, le=1e3)] = 1.0
    momentum: Rate = 0.9
    second_momentum: Rate = 0.99
    epsilon: Annotated[float, Field(gt=0, le=1.0)] = 1e-3


class EncodingPlan(Section):
    """How values become numbers that can be encrypted and summed."""

    grid_bits: Annotated[int, Field(ge=19, le=22)] = Field(
        default=22, description="ckks: values are rounded to multiples of 2^-grid_bits"
    )
    bits: Annotated[int, Field(ge=2, le=16)] = Field(
        default=16, description="rlwe: bits of a value; the sites share its range by weight"
    )
    headroom: bool = Field(
        default=False, description="rlwe: `bits` for each site, and room in the sum for all"
    )
    error_feedback: bool = Field(
        default=True, description="what a round leaves out is added to the site's next update"
    )


@dataclass(frozen=True)
class SchemeTraits:
    """What sets one scheme apart from the others. Whoever treats schemes differently asks this,
    not the scheme's name: a new scheme is a new row of `SCHEMES`.

    `parameter_sets`: the named sets it has, the default first; `encrypted`: the coordinator cannot
    read an update; `one_time_keys`: each sum has keys of its own, which are opened by shares, so
    quorums apply and values are packed as integers of `encoding.bits`; `on_grid`: values are
    rounded to `encoding.grid_bits`.
    """

    parameter_sets: tuple[str, ...] = ()
    encrypted: bool = True
    one_time_keys: bool = False
    on_grid: bool = False

    @property
    def shared_key(self) -> bool:
        """Whether every site holds the one key of the run, which opens any single update."""
        return self.encrypted and not self.one_time_keys


SCHEMES: dict[str, SchemeTraits] = {
    "rlwe": SchemeTraits(one_time_keys=True),
    "ckks": SchemeTraits(("lean", "paper"), on_grid=True),
    "plain": SchemeTraits(encrypted=False),
}
#: Keys of `scheme` that only rlwe has.
RLWE_KEYS = (
    *("max_colluding", "threshold", "votes", "min_cohort"),
    *("server", "open_to", "membership"),
)


def traits_of(name: str) -> SchemeTraits:
    """Of a scheme that a plan or a run's summary names; of one that is not known, none.

    >>> traits_of("plain").encrypted
    False
    """
    return SCHEMES.get(name, SchemeTraits())


class SchemePlan(Section):
    """Privacy: how updates are protected on the way, and what the coordinator may learn."""

    name: Literal["rlwe", "ckks", "plain"] = "rlwe"
    parameters: str | None = None
    weights: Literal["private", "public", "equal"] = "private"
    max_weight: Annotated[float, Field(gt=0, lt=1)] = 0.75
    max_colluding: Annotated[int, Field(ge=0, lt=MAX_SITES)] | None = None
    threshold: Annotated[int, Field(ge=1, le=MAX_SITES)] | None = None
    votes: Annotated[int, Field(ge=0, le=MAX_SITES)] | None = None
    min_cohort: Annotated[int, Field(ge=2, le=MAX_SITES)] | None = None
    server: Server = "malicious"
    open_to: OpenTo = "peers"
    membership: Membership = "fixed"

    @model_validator(mode="after")
    def _consistent(self) -> SchemePlan:
        known = self.traits.parameter_sets
        if self.parameters is not None and self.parameters not in known:
            allowed = f"one of {', '.join(known)}" if known else "no parameters"
            raise InvalidKey(
                "parameters", repr(self.parameters), f"{allowed} when scheme.name is {self.name}"
            )
        if not self.traits.one_time_keys:
            for key in RLWE_KEYS:
                value = getattr(self, key)
                if value != type(self).model_fields[key].default:
                    raise InvalidKey(
                        key,
                        f"{value!r}",
                        f"none when scheme.name is {self.name}: only rlwe has a threshold, the "
                        "others open the whole roster's sum under one key",
                    )
        return self

    @property
    def traits(self) -> SchemeTraits:
        return SCHEMES[self.name]

    @property
    def parameter_set(self) -> str:
        """The named set in force: the one asked for, else the scheme's first; '' for none."""
        known = self.traits.parameter_sets
        return self.parameters or (known[0] if known else "")


class EvaluationPlan(Section):
    """What is measured and asked of the model; prompts appear in the report."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 48


class SpeedPlan(Section):
    """Settings that change how fast a run is, never what it computes or protects."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    eval_batch_size: PositiveInt = 8
    memory_check: bool = True
    # Between machines: what is not back by then counts as lost.
    setup_deadline_s: Annotated[int, Field(ge=1, le=7200)] = 900
    work_deadline_s: Annotated[int, Field(ge=1, le=7200)] = 1800
    message_deadline_s: Annotated[int, Field(ge=1, le=7200)] = 120


class OutputPlan(Section):
    """Where the run folder goes. `--out` wins over it."""

    dir: str | None = None
