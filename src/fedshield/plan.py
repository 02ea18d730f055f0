"""The plan: one YAML file that says everything about a run, checked before anything is loaded.

Sections that change what is computed or protected (`model`, `adapter`, `data`, `training`,
`pruning`, `encoding`, `scheme`, ...) are under the plan's hash, which is bound into every
message. `speed` and `output` change neither, may differ between machines, and are not.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from fedshield.errors import PlanError
from fedshield.types import Exchange

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,30}$"
MAX_SITES = 64
PositiveInt = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelPlan(_Section):
    """The frozen base model: a hub name, a local folder, or a built-in name."""

    name: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    revision: str | None = None
    quantization: Literal["none", "8bit", "4bit"] = "none"
    config: str | None = Field(
        default=None,
        description="config.json to estimate costs from when the weights are not here",
    )
    chat_template: Literal["auto", "fallback"] = "auto"


class AdapterPlan(_Section):
    """LoRA. Defaults are the paper's."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64.0
    dropout: Rate = 0.05
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("q_proj", "v_proj")
    train: Literal["ab"] = "ab"
    exchange: Exchange = "parameters"


class ColumnsPlan(_Section):
    """Names of the columns that hold each part of an example, where the usual ones differ."""

    prompt: str | None = None
    input: str | None = None
    response: str | None = None
    messages: str | None = None
    system: str | None = None


class SourcePlan(_Section):
    """Where rows come from: `sample:NAME`, `hub:OWNER/NAME`, or a .jsonl/.csv/.parquet file."""

    source: Annotated[str, Field(min_length=1)]
    split: str = "train"
    rows: PositiveInt | None = None
    heldout_source: str | None = None
    heldout_rows: PositiveInt | None = None
    columns: ColumnsPlan | None = None


SiteName = Annotated[str, Field(pattern=SITE_NAME)]


class DataPlan(_Section):
    """Which site trains on what."""

    split: Literal["by-site", "iid", "dirichlet"] = "by-site"
    sites: dict[SiteName, SourcePlan] = Field(default_factory=dict)
    pool: tuple[SourcePlan, ...] = ()
    num_sites: Annotated[int, Field(ge=1, le=MAX_SITES)] | None = None
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.5
    dirichlet_column: str | None = None
    heldout_rows: PositiveInt = 32
    on_bad_row: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _consistent(self) -> DataPlan:
        if self.split == "by-site":
            if not self.sites:
                raise ValueError("sites|{}|at least one site with a source when split is by-site")
            if self.pool or self.num_sites is not None:
                key = "pool" if self.pool else "num_sites"
                raise ValueError(f"{key}|set|no {key} when split is by-site (give each site a source)")
        else:
            if self.sites:
                raise ValueError(f"sites|set|no sites when split is {self.split} (use pool, num_sites)")
            if not self.pool:
                raise ValueError(f"pool|()|at least one source when split is {self.split}")
            if self.num_sites is None:
                raise ValueError(f"num_sites|None|a number of sites when split is {self.split}")
        if len(self.sites) > MAX_SITES:
            raise ValueError(f"sites|{len(self.sites)} sites|at most {MAX_SITES} sites")
        return self

    def site_names(self) -> tuple[str, ...]:
        if self.split == "by-site":
            return tuple(sorted(self.sites))
        width = len(str(self.num_sites))
        return tuple(f"site-{k + 1:0{width}d}" for k in range(self.num_sites or 0))


class TrainingPlan(_Section):
    """One site's local training in one round. Defaults are the paper's."""

    steps: PositiveInt = 10
    batch_size: PositiveInt = 16
    gradient_accumulation: PositiveInt = 1
    max_length: Annotated[int, Field(ge=8)] = 512
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TrainingPlan:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate|{self.min_learning_rate}|at most learning_rate "
                f"({self.learning_rate})"
            )
        return self


class PruningPlan(_Section):
    """Magnitude pruning per tensor, with the paper's clamped ramp over the rounds.

    Without `start_round` and `target_round` the paper's proportions are used: the ramp starts
    after a fifth of the rounds and reaches the target rate in the last one.
    """

    method: Literal["magnitude", "none"] = "magnitude"
    mask: Literal["local"] = "local"
    initial_rate: Rate = 0.2
    target_rate: Rate = 0.5
    start_round: Annotated[int, Field(ge=0)] | None = None
    target_round: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> PruningPlan:
        if self.target_rate < self.initial_rate:
            raise ValueError(
                f"target_rate|{self.target_rate}|at least initial_rate ({self.initial_rate})"
            )
        start, target = self.start_round, self.target_round
        if start is not None and target is not None and target < start:
            raise ValueError(f"target_round|{target}|at least start_round ({start})")
        return self


class EncodingPlan(_Section):
    """How values become numbers that can be encrypted and summed."""

    grid_bits: Annotated[int, Field(ge=8, le=22)] = Field(
        default=22, description="ckks: values are rounded to multiples of 2^-grid_bits"
    )


SCHEME_PARAMETERS: dict[str, tuple[str, ...]] = {"plain": (), "ckks": ("lean", "paper")}


class SchemePlan(_Section):
    """Privacy: how updates are protected on the way, and what the coordinator may learn."""

    name: Literal["plain", "ckks"] = "ckks"
    parameters: str | None = None
    weights: Literal["private", "public", "equal"] = "private"

    @model_validator(mode="after")
    def _consistent(self) -> SchemePlan:
        known = SCHEME_PARAMETERS[self.name]
        if self.parameters is not None and self.parameters not in known:
            raise ValueError(
                f"parameters|{self.parameters}|"
                + (f"one of {', '.join(known)}" if known else "no parameters")
                + f" when scheme.name is {self.name}"
            )
        return self

    @property
    def parameter_set(self) -> str:
        """The named set in force: the one asked for, else the scheme's first; '' for none."""
        known = SCHEME_PARAMETERS[self.name]
        return self.parameters or (known[0] if known else "")


class EvaluationPlan(_Section):
    """What is measured and asked of the model; prompts appear in the report."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 48


class SpeedPlan(_Section):
    """Settings that change how fast a run is, never what it computes or protects."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: PositiveInt | None = None
    eval_batch_size: PositiveInt = 8


class OutputPlan(_Section):
    """Where the run folder goes. `--out` wins over it."""

    dir: str | None = None


class Plan(_Section):
    """A run, whole. Build it with `load_plan` or `Plan.model_validate`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 200
    model: ModelPlan = ModelPlan()
    adapter: AdapterPlan = AdapterPlan()
    data: DataPlan
    training: TrainingPlan = TrainingPlan()
    pruning: PruningPlan = PruningPlan()
    encoding: EncodingPlan = EncodingPlan()
    scheme: SchemePlan = SchemePlan()
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
                    raise ValueError(f"pruning.{key}|{value}|at most rounds ({self.rounds})")
        if self.scheme.name == "ckks" and len(self.data.site_names()) < 2:
            raise ValueError("data.sites|1 site|at least 2 sites to sum over when scheme is ckks")
        if self.model.quantization != "none" and self.model.name in ("smollm2-135m", "tiny-llama"):
            raise ValueError(
                f"model.quantization|{self.model.quantization}|none for the built-in {self.model.name}"
            )
        return self

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths in the plan start from."""
        return self._base_dir

    def with_base_dir(self, base_dir: Path) -> Plan:
        plan = self.model_copy()
        plan._base_dir = base_dir
        return plan

    def resolve(self, path: str) -> Path:
        return (self._base_dir / Path(path).expanduser()).resolve()

    def canonical(self) -> bytes:
        """Canonical JSON of what is agreed between the parties: all but speed and output."""
        agreed = self.model_dump(mode="json", exclude={"speed", "output"})
        return json.dumps(agreed, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def sha256(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()

    def to_yaml(self) -> str:
        """The plan with every default written out, as it is run."""
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
        )


# -- reading -------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-4 as a number (YAML 1.2)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if not isinstance(key, str):
            raise PlanError(
                f"line {key_node.start_mark.line + 1}: expected a text key, got {key!r}; put it in quotes"
            )
        if key in seen:
            raise PlanError(
                f"line {key_node.start_mark.line + 1}: key '{key}' is given twice; keep one of them"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise PlanError(f"{where}{line}: expected YAML, but {problem}; mend the file") from None


def load_plan(path: Path, overrides: Sequence[str] = ()) -> tuple[Plan, list[str]]:
    """Read, override and check a plan.

    `overrides` are `key.path=value` texts, the value read as YAML. Returns the plan and notes
    to show the user. Raises `PlanError`.
    """
    if path.is_dir():
        raise PlanError(f"{path}: expected a plan file (YAML), got a folder; name the file in it")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(f"{path}: expected a plan file, found none; check the path") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path}: expected YAML text in UTF-8, got other bytes") from None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    raw = _parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        kind = "an empty file" if raw is None else type(raw).__name__
        raise PlanError(f"{path}: expected a mapping of plan keys, got {kind}; see examples/")
    notes = _apply_overrides(raw, overrides)
    return parse_plan(raw, base_dir=path.resolve().parent), notes


def parse_plan(raw: dict[str, Any], *, base_dir: Path) -> Plan:
    """Check a mapping as a plan. Raises `PlanError` with one line about the first problem."""
    try:
        # Through JSON, so that strict types mean the same for lists, tuples and YAML scalars.
        plan = Plan.model_validate_json(json.dumps(raw, allow_nan=True, default=str))
    except ValidationError as error:
        raise PlanError(_explain(error, raw)) from None
    return plan.with_base_dir(base_dir)


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    notes: list[str] = []
    paths: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PlanError(f"--set {text}: expected KEY=VALUE, as in --set training.steps=4")
        paths[key] = _parse_yaml(value, f"--set {key}")
    for key, value in paths.items():
        target: Any = raw
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[last] = value
    scheme = raw.get("scheme")
    if "scheme.name" in paths and "scheme.parameters" not in paths and isinstance(scheme, dict):
        old = scheme.get("parameters")
        if old is not None and old not in SCHEME_PARAMETERS.get(str(scheme.get("name")), ()):
            scheme["parameters"] = None
            notes.append(f"scheme.parameters={old} belongs to another scheme and was dropped")
    return notes


# -- explaining ----------------------------------------------------------------------------


def _explain(error: ValidationError, raw: dict[str, Any]) -> str:
    problems = error.errors(include_url=False)
    # An unknown key explains more than the missing one that it was meant to be.
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    loc = tuple(str(part) for part in first["loc"] if part != "[key]")
    key = ".".join(loc)
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key (value {_short(first['input'])}); {_nearest(loc)}{more}"
    if kind == "missing":
        return f"{key}: expected a value, got nothing; add the key{more}"
    if kind == "value_error":
        name, _, rest = str(context["error"]).partition("|")
        value, _, expected = rest.partition("|")
        full = ".".join([*loc, name]) if name else key
        return f"{full}: expected {expected}, got {value}{more}"
    if loc and loc[-1] and "[key]" in [str(part) for part in first["loc"]]:
        return (
            f"{'.'.join(loc[:-1])}: expected a site name of small letters, digits and dashes "
            f"(at most 31), got {_short(loc[-1])}; rename the site{more}"
        )
    return f"{key}: expected {_expected(kind, context, first['msg'])}, got {_short(first['input'])}{more}"


def _expected(kind: str, context: dict[str, Any], message: str) -> str:
    simple = {
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "some text",
        "model_type": "a mapping of keys",
        "model_attributes_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "tuple_type": "a list",
    }
    if kind in simple:
        return simple[kind]
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    bounds = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    if kind in bounds:
        limit = next(iter(context.values()))
        return f"a number {bounds[kind]} {limit}"
    if kind == "too_short":
        return f"at least {context['min_length']} entries"
    return message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for name, info in model.model_fields.items():
        yield (*prefix, name)
        for section in _sections(info.annotation):
            yield from _keys(section, (*prefix, name))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in get_args(annotation) for found in _sections(part)]


def _nearest(loc: tuple[str, ...]) -> str:
    level: list[type[BaseModel]] = [Plan]
    for part in loc[:-1]:
        found = [
            section
            for model in level
            if part in model.model_fields
            for section in _sections(model.model_fields[part].annotation)
        ]
        level = found or level  # a site name or list index stays on its section
    here = sorted({name for model in level for name in model.model_fields})
    close = difflib.get_close_matches(loc[-1], here, n=1, cutoff=0.6)
    if close:
        return f"did you mean {'.'.join([*loc[:-1], close[0]])}?"
    everywhere = {path[-1]: ".".join(path) for path in _keys(Plan)}
    close = difflib.get_close_matches(loc[-1], list(everywhere), n=1, cutoff=0.75)
    if close:
        return f"did you mean {everywhere[close[0]]}?"
    return f"expected one of {', '.join(here)}"


# -- schedules that the plan defines ---------------------------------------------------------


def learning_rate(plan: Plan, round_number: int) -> float:
    """The learning rate of round 1..rounds: cosine over rounds from the first rate to the
    least (FedShield-LLM, arXiv 2506.05640, training set-up), or constant."""
    training = plan.training
    if training.lr_schedule == "constant":
        return training.learning_rate
    span = training.learning_rate - training.min_learning_rate
    progress = (round_number - 1) / plan.rounds
    return training.min_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * progress))
