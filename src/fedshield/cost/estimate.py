"""The cost of a plan, and what would stop its run. No weights are read.

Bytes are counted in a dry run of the protocol (`messages`). Memory and seconds are estimates;
their rules are beside the numbers (`memory`, `time`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedshield.cost import inputs, machine, memory, time
from fedshield.cost.messages import DryRun, shape_of
from fedshield.errors import UserError
from fedshield.model import shapes
from fedshield.model.adapter import empty_spec
from fedshield.model.base import empty_model, resolve_device, resolve_precision
from fedshield.model.locate import given_config
from fedshield.model.shapes import ModelShape
from fedshield.plan.schema import Plan
from fedshield.privacy.guarantee import forecast
from fedshield.site.schemes import scheme_of
from fedshield.site.settings import exchange_schedule, release_settings
from fedshield.types import AdapterSpec
from fedshield.update.prune import num_sent


@dataclass(frozen=True)
class Cost:
    """`fedshield plan --json` prints these fields. Bytes are whole signed messages.

    `upload_bytes_per_site_round`: by round, of one site on the mean; `setup_*`: opening and
    closing the session, all sites together; totals: all sites, all rounds, set-up included.
    `privacy`: epsilon at the run's end, see `privacy.guarantee.forecast`. `time_basis`: where the
    seconds come from; `batch_tokens`: the longest row that memory is counted for.
    """

    name: str
    sites: int
    rounds: int
    scheme: str
    scheme_parameters: str
    security_bits: int | None
    quorums: str
    base_model_values: int
    trainable_values: int
    exchanged_values: list[int]
    upload_bytes_per_site_round: list[int]
    download_bytes_per_site_round: list[int]
    setup_upload_bytes: int
    setup_download_bytes: int
    total_upload_bytes: int
    total_download_bytes: int
    plaintext_float32_upload_bytes: int
    peak_memory_bytes: int
    batch_tokens: int
    estimated_s: float
    time_basis: str
    device: str
    precision: str
    plan_sha256: str
    privacy: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outlook:
    """A plan's cost, None where it cannot be known; `problems`: what would stop the run, a line
    each; `notes`: what was not looked at, every number that was assumed, and whose rows count for
    less than they are."""

    cost: Cost | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


#: Gives the seconds of a plan's parts, from the rough ones and from what turns another plan's
#: rough ones out.
PaceOf = Callable[[time.Pace, Callable[[Plan], time.Pace]], time.Pace]


def spec_of(plan: Plan) -> tuple[ModelShape, AdapterSpec]:
    """Of the base model, and of the adapter on it. Raises `ModelError` if the model's config or
    the adapter's targets do not fit."""
    shape = shapes.shape_of(plan.model, plan.base_dir)
    spec = None if shape is None else shape.adapter_spec(plan.adapter)
    if shape is not None and spec is not None:
        return shape, spec
    # Not certain, or an error that is told best where the modules are.
    model = empty_model(plan.model, plan.base_dir)
    shape = shapes.from_modules(model)
    return shape, empty_spec(model, plan.adapter)


def estimate(plan: Plan) -> Cost:
    """The cost of `plan` on this machine, without a look at its data. Raises `ModelError` if the
    model's config or the adapter's targets do not fit, `DataError` for a sample that there is
    none of."""
    inputs.check_samples(plan)
    shape, spec = spec_of(plan)
    return _cost(plan, shape, spec, (), {}, None)


def look_ahead(plan: Plan, *, elsewhere: bool = False, pace: PaceOf | None = None) -> Outlook:
    """The cost of `plan` here, and everything known that would stop its run, in one pass.
    `elsewhere`: the run is not on this machine: data files and memory are not looked for here.
    `pace`: by default the rough rule's."""
    known = inputs.look(plan, elsewhere=elsewhere)
    problems = [*known.problems, *inputs.floor_problems(plan, known.rows)]
    notes = [*known.notes, *inputs.cap_notes(plan, known.rows)]
    cost = None
    try:
        shape, spec = spec_of(plan)
        problems += _lines(inputs.length_problem(plan, shape))
        problems += _lines(inputs.weight_problem(plan, known.rows))
        notes += _assumptions(plan, shape, known)
        # With a config beside the plan the weights are elsewhere, and so is the run.
        if given_config(plan.model, plan.base_dir) is not None:
            notes.append("memory is not looked for: with model.config the model is elsewhere")
        elif not elsewhere:
            longest = _longest(plan, known.lengths)
            problems += _lines(_refused(plan, shape, spec, longest))
            if plan.speed.memory_check and _available(resolve_device(plan.speed.device)) is None:
                notes.append("memory is not looked for: this system does not say what is free")
        cost = _cost(plan, shape, spec, known.lengths, known.rows, None if problems else pace)
    except UserError as error:
        return Outlook(None, (*problems, str(error)), tuple(notes))
    return Outlook(cost, tuple(problems), tuple(notes))


def refused_memory(plan: Plan) -> str | None:
    """Why the run does not fit into this machine's memory with rows of max_length, in one line;
    None where it may, and where the plan has turned the check off. Raises as `spec_of`."""
    return _refused(plan, *spec_of(plan), plan.training.max_length)


def _refused(plan: Plan, shape: ModelShape, spec: AdapterSpec, row_tokens: int) -> str | None:
    if not plan.speed.memory_check:
        return None
    device = resolve_device(plan.speed.device)
    needed = _memory(
        plan,
        shape,
        spec,
        resolve_precision(plan.training.precision, plan.model.name, device),
        row_tokens,
    )
    return memory.refusal(plan, needed, _available(device))


def _available(device: str) -> machine.Memory | None:
    return machine.device_memory(device) or machine.memory()


def _assumptions(plan: Plan, shape: ModelShape, known: inputs.Inputs) -> Iterator[str]:
    """Every number of the estimate that nothing here says, a sentence each."""
    if shape.assumed:
        yield (
            f"{plan.model.name}: its config does not say all that memory and time depend on; "
            f"assumed: {', '.join(shape.assumed)}"
        )
    if shape.max_positions is None:
        yield (
            f"{plan.model.name}: its config does not say how long a text it reads; "
            f"training.max_length, {plan.training.max_length}, is assumed to be short enough"
        )
    yield time.assumed_lengths(plan, known.lengths, all_read=known.all_read)


def _lines(problem: str | None) -> list[str]:
    return [] if problem is None else [problem]


def _longest(plan: Plan, lengths: Sequence[int]) -> int:
    """Tokens of the longest row, or the most that it can have where none was read."""
    return int(max(time.row_tokens(plan, lengths))) if lengths else plan.training.max_length


def _memory(
    plan: Plan, shape: ModelShape, spec: AdapterSpec, precision: str, row_tokens: int
) -> memory.MemoryCost:
    return memory.memory_cost(plan, shape, spec, scheme_of(plan).facts, precision, row_tokens)


def _cost(
    plan: Plan,
    shape: ModelShape,
    spec: AdapterSpec,
    lengths: Sequence[int],
    rows: Mapping[str, int | None],
    pace: PaceOf | None,
) -> Cost:
    # A quantised base can be costed on a machine without CUDA: nothing is loaded.
    device = resolve_device(plan.speed.device)
    precision = resolve_precision(plan.training.precision, plan.model.name, device)
    scheme = scheme_of(plan)
    names = plan.data.site_names()
    schedule = exchange_schedule(plan)
    counts = [num_sent(schedule, spec, at + 1) for at in range(plan.rounds)]
    shapes = {count: shape_of(plan, scheme.update_layout(count)) for count in set(counts)}
    dry_run = DryRun(plan, shapes.values())
    ups, downs = zip(*(dry_run.round(shapes[count]) for count in counts), strict=True)
    setup_up, setup_down = dry_run.setup
    longest = _longest(plan, lengths)
    needed = _memory(plan, shape, spec, precision, longest)
    speed = machine.matrix_speed(device, precision)

    def rough(other: Plan) -> time.Pace:
        if other is plan:
            found = time.rough(plan, shape, spec, lengths, speed)
            return replace(found, basis=found.basis + machine.speed_assumed(device, precision))
        known = () if not lengths else inputs.look(other, elsewhere=True).lengths
        return time.rough(other, *spec_of(other), known, speed)

    seconds = rough(plan) if pace is None else pace(rough(plan), rough)
    return Cost(
        name=plan.name,
        sites=len(names),
        rounds=plan.rounds,
        scheme=plan.scheme.name,
        scheme_parameters=scheme.facts.parameters,
        security_bits=scheme.facts.security_bits,
        quorums=plan.rules().in_words() if plan.scheme.traits.one_time_keys else "",
        base_model_values=shape.values,
        trainable_values=spec.num_values,
        exchanged_values=counts,
        upload_bytes_per_site_round=[round(up / len(names)) for up in ups],
        download_bytes_per_site_round=[round(down / len(names)) for down in downs],
        setup_upload_bytes=setup_up,
        setup_download_bytes=setup_down,
        total_upload_bytes=sum(ups) + setup_up,
        total_download_bytes=sum(downs) + setup_down,
        plaintext_float32_upload_bytes=4 * spec.num_values * len(names) * plan.rounds,
        peak_memory_bytes=needed.peak(plan.training.batch_size, plan.speed.eval_batch_size),
        batch_tokens=longest,
        estimated_s=round(time.total_seconds(plan, seconds), 1),
        time_basis=seconds.basis,
        device=device,
        precision=precision,
        plan_sha256=plan.sha256(),
        privacy=forecast(plan.privacy, release_settings(plan), spec, plan.data, rows),
    )
