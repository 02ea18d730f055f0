"""How long a run takes: its parts, each with the seconds that one of them takes.

    preparing + opening the session
      + sites x (rounds + 1) evaluations
      + sites x rounds x (steps + exchange)
      + answers + finishing

The seconds come from a trial (`run.trial`), from an earlier run (`of_run`), or from a rough
rule (`rough`): operations at this machine's measured speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedshield.data import samples
from fedshield.data.public import ROWS_OF_EACH
from fedshield.model.shapes import ModelShape
from fedshield.plan.schema import Plan
from fedshield.plan.sections import TINY_LLAMA
from fedshield.types import AdapterSpec

#: Share of the peak matrix speed that a step reaches (measured on SmolLM2-135M, CPU).
EFFICIENCY = 0.45
#: Seconds until the libraries are loaded; for a report and an adapter at the end; of a step of a
#: model too small to keep the machine busy; of a site's messages and files in a round.
START_S, FINISH_S, CALL_S, EXCHANGE_S = 3.0, 1.5, 0.02, 0.05
#: Seconds per value, one core: encrypting, adding one upload, decrypting.
_CRYPTO_S = {
    ("ckks", "paper"): (2.0e-6, 4.5e-7, 6.0e-7),
    ("ckks", "lean"): (1.1e-6, 1.7e-7, 3.7e-7),
    ("rlwe", ""): (2.5e-8, 3.0e-9, 2.5e-8),
}
#: Characters of a token, and tokens that a chat template adds to a row, of common tokenizers.
_CHARACTERS, _TEMPLATE_TOKENS = 4.0, 20
#: Rows are taken to fill this share of max_length where none was read.
_UNKNOWN_SHARE = 1 / 3
#: Operations of an eigendecomposition of an n x n matrix in float64, over n^3, in those of a
#: float32 matrix product at full speed (LAPACK reaches a fraction of it).
_EIGEN = 60.0
#: Passes over the public rows for `adapter.factors: gradient` (`site.gradient_factors.PASSES`,
#: which is not imported here: it brings torch with it).
GRADIENT_PASSES = 4


@dataclass(frozen=True)
class Pace:
    """Seconds of one of each part, and `basis`: where they are from. `step`: one optimiser step
    at one site; `evaluation`: of one site's held-out rows; `exchange`: what one site's round takes
    beside; `answer`: one prompt, by the base and the tuned model."""

    preparing: float
    session: float
    step: float
    evaluation: float
    exchange: float
    answer: float
    finishing: float
    basis: str


def total_seconds(plan: Plan, pace: Pace) -> float:
    """Of a whole run on one machine, all sites one after the other."""
    sites, rounds = len(plan.data.site_names()), plan.rounds
    return (
        pace.preparing
        + pace.session
        + sites * (rounds + 1) * pace.evaluation
        + sites * rounds * (plan.training.steps * pace.step + pace.exchange)
        + len(plan.evaluation.prompts) * pace.answer
        + pace.finishing
    )


def row_tokens(plan: Plan, lengths: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Tokens of each row, sorted, from its characters; cut at max_length."""
    longest = plan.training.max_length
    if not lengths:
        return np.asarray([longest * _UNKNOWN_SHARE])
    per_token = 1.0 if plan.model.name == TINY_LLAMA else _CHARACTERS
    tokens = np.asarray(lengths, dtype=np.float64) / per_token + _TEMPLATE_TOKENS
    return np.sort(np.minimum(tokens, longest))


def assumed_lengths(plan: Plan, lengths: Sequence[int], *, all_read: bool) -> str:
    """What is assumed of the rows' tokens before a run, one sentence. `all_read`: of every
    source."""
    longest = plan.training.max_length
    if not lengths:
        return (
            f"no row was read: memory is for rows of training.max_length, {longest} tokens, and "
            f"time for rows of {longest * _UNKNOWN_SHARE:.0f}"
        )
    each = "a character" if plan.model.name == TINY_LLAMA else f"{_CHARACTERS:.0f} characters"
    rest = "" if all_read else "; rows that were not read are taken to be as long as those"
    return (
        f"rows are read without a tokenizer: {each} a token and {_TEMPLATE_TOKENS} tokens for the "
        f"chat template are assumed{rest}"
    )


def padded_tokens(rows: np.ndarray[tuple[int], np.dtype[np.float64]], batch_size: int) -> float:
    """Tokens of a batch on the mean: each row is filled up to the longest of the batch."""
    ranks = np.arange(1, rows.size + 1) / rows.size
    chance = np.diff(ranks**batch_size, prepend=0.0)  # that this row is the longest
    return float(batch_size * (rows * chance).sum())


def rough(
    plan: Plan,
    shape: ModelShape,
    spec: AdapterSpec,
    lengths: Sequence[int],
    speed: float,
) -> Pace:
    """From counted operations: right within a small factor. `lengths`: characters of rows, as in
    `row_tokens`; `speed`: operations a second of a matrix product (`machine.matrix_speed`).

    Forward and backward passes through a frozen base are about 4 operations a weight and token,
    evaluating 2; the adapter's own passes are counted with their weights."""
    training, rows = plan.training, row_tokens(plan, lengths)
    heldout_rows = _heldout_rows(plan)
    weights = sum(out_size * in_size for out_size, in_size in shape.linear.values())
    layers = shape.targets(plan.adapter) or {}
    added = sum(plan.adapter.rank * (out_size + in_size) for out_size, in_size in layers.values())
    passes = 6 if training.gradient_checkpointing else 4
    step_tokens = training.gradient_accumulation * padded_tokens(rows, training.batch_size)
    # Rows are sorted before they are measured on: little is filled up.
    evaluated_tokens = heldout_rows * float(rows.mean())
    step = step_tokens * (passes * weights + 6 * added) / (speed * EFFICIENCY)
    evaluation = evaluated_tokens * 2 * (weights + added) / (speed * EFFICIENCY)
    preparing = START_S + shape.values * 4 / 1e9  # reading and hashing
    if plan.adapter.train == "core" and plan.adapter.factors == "svd":
        cubes = sum(float(min(size)) ** 3 for size in layers.values())
        preparing += _EIGEN * cubes / speed
    elif plan.adapter.factors == "gradient":
        public = GRADIENT_PASSES * ROWS_OF_EACH * len(samples.SAMPLES) * float(rows.mean())
        preparing += 4 * weights * public / (speed * EFFICIENCY)
    crypto = 0.0
    if plan.scheme.traits.encrypted:
        crypto = spec.num_values * sum(_CRYPTO_S[plan.scheme.name, plan.scheme.parameter_set])
    calls = CALL_S * training.gradient_accumulation
    # One token at a time: the weights are read from memory for each.
    token_s = shape.values * 4 / 8e9 + 0.0015 * shape.layers
    return Pace(
        preparing=preparing,
        session=0.5,
        step=step + calls,
        evaluation=evaluation + CALL_S * -(-heldout_rows // plan.speed.eval_batch_size),
        exchange=crypto + EXCHANGE_S,
        answer=2 * plan.evaluation.max_new_tokens * token_s,
        finishing=FINISH_S,
        basis="rough: counted operations at this machine's measured speed",
    )


def _heldout_rows(plan: Plan) -> float:
    """Of a site, on the mean."""
    default = plan.data.heldout_rows
    own = [settings.heldout_rows or default for settings in plan.data.sites.values()]
    return sum(own) / len(own) if own else default


def of_run(
    ran: Plan, state: dict[str, Any], summary: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> Pace:
    """The pace of a finished run of one session, from its plan, run.json, summary.json and
    metrics.jsonl."""
    count = len(rows)
    train, evaluate = (sum(row["wall_s"][phase] for row in rows) for phase in ("train", "evaluate"))
    rounds: dict[int, float] = {}
    for row in rows:
        rounds[row["round"]] = row["round_s"]
    whole = sum(rounds.values())
    first_evaluations = evaluate / count * len(summary["sites"])
    finishing = max(0.0, state["wall_s"] - summary["wall_s"])
    prompts = len(ran.evaluation.prompts)
    answers = float(state.get("answers_s", 0.0))
    return Pace(
        preparing=float(state["prepare_s"]) + START_S,
        session=max(0.0, summary["wall_s"] - whole - first_evaluations),
        step=train / count / ran.training.steps,
        evaluation=evaluate / count,
        exchange=max(0.0, whole - train - evaluate) / count,
        answer=answers / prompts if prompts else 0.0,
        finishing=max(0.0, finishing - answers),
        basis="",
    )


def scaled(pace: Pace, measured: Pace, wanted: Pace) -> Pace:
    """`pace` of one plan, carried over to another by the ratio of their rough paces (`measured` and
    `wanted`): an equal plan keeps it. What the first plan did not do is as in `wanted`."""

    def carried(part: str) -> float:
        before: float = getattr(measured, part)
        after: float = getattr(wanted, part)
        value: float = getattr(pace, part)
        return value * after / before if before and value else after

    parts = ("preparing", "session", "step", "evaluation", "exchange", "answer", "finishing")
    seconds: dict[str, Any] = {part: carried(part) for part in parts}
    return replace(pace, **seconds)
