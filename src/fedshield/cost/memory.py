"""How much memory a run takes, and the batch size that fits into what the machine has.

One process with all sites: the base, the adapter with gradients and the optimiser's two moments,
the activations of one step, every site's upload and the aggregate, and the libraries. Measured on
SmolLM2-135M (docs/log.md): a step's activations and logits are within a fifth of what is said here.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedshield.cost import machine
from fedshield.crypto.scheme import BLOCK_BYTES
from fedshield.errors import ModelError
from fedshield.model.shapes import ModelShape
from fedshield.plan.schema import Plan
from fedshield.site.schemes import SchemeFacts
from fedshield.types import AdapterSpec

#: Python, torch, transformers, numba and TenSEAL before any model is loaded.
PROCESS_BYTES = 650_000_000
#: The libraries' address space beyond what is resident; counts under `ulimit -v` only.
ADDRESS_BYTES = 600_000_000
#: Bytes of a token's logits, for each entry of the vocabulary: the logits, their float32 copy, the
#: log of the softmax, and in training the gradients of the first and of the last two.
_LOGITS_EVALUATED, _LOGITS_TRAINED = 12, 20
#: The estimate can be above what is used by a quarter; what is refused does not fit then either.
CERTAIN = 0.8
_QUANTISED_BYTES = {"8bit": 1.05, "4bit": 0.6}


@dataclass(frozen=True)
class MemoryCost:
    """Bytes. `loaded`: the libraries and the base; `vectors`: what else is held all the time, the
    adapter with all that belongs to it; `trained_row`, `evaluated_row`: what each row of a
    batch adds while it is trained or measured on; `assumed`: as of the shape."""

    loaded: int
    vectors: int
    trained_row: int
    evaluated_row: int
    assumed: tuple[str, ...] = ()

    def peak(self, batch_size: int, eval_batch_size: int) -> int:
        """While a batch of so many rows is trained or measured on, whichever takes more."""
        largest = max(batch_size * self.trained_row, eval_batch_size * self.evaluated_row)
        return self.loaded + self.vectors + largest


def memory_cost(
    plan: Plan,
    shape: ModelShape,
    spec: AdapterSpec,
    scheme: SchemeFacts,
    precision: str,
    row_tokens: int,
) -> MemoryCost:
    """What a run of `plan` holds. `row_tokens`: the longest row's."""
    value_bytes = 2 if precision == "bfloat16" else 4
    base_bytes = shape.values * _QUANTISED_BYTES.get(plan.model.quantization, value_bytes)
    a_layer = 12 * shape.width + 6 * shape.inner
    kept = a_layer * shape.layers
    if plan.training.gradient_checkpointing:
        kept = a_layer + shape.width * shape.layers
    trained = row_tokens * (kept * value_bytes + shape.vocabulary * _LOGITS_TRAINED)
    # A forward pass alone keeps the activations of one layer at a time.
    evaluated = row_tokens * (a_layer * value_bytes + shape.vocabulary * _LOGITS_EVALUATED)
    sites = len(plan.data.site_names())
    vectors = spec.num_values * (4 * 4 + (4 + 8 * 3) + 4 * sites)
    if plan.privacy.unit == "example":  # each row's gradient, and the largest tensor's in float64
        largest = max((tensor.size for tensor in spec.tensors), default=0)
        trained += 4 * spec.num_values + 16 * largest
    ciphertext = spec.num_values * scheme.bytes_per_value * (sites + 2) + 4 * BLOCK_BYTES
    loaded = PROCESS_BYTES + base_bytes
    vectors_bytes = int(vectors + ciphertext)
    return MemoryCost(int(loaded), vectors_bytes, int(trained), int(evaluated), shape.assumed)


def refusal(
    plan: Plan, cost: MemoryCost, available: machine.Memory | None, *, is_loaded: bool = False
) -> str | None:
    """Why a run cannot fit, with what would, in one line; None where it may fit, or where the
    system does not say what there is. `is_loaded`: libraries and base are in this process."""
    if available is None:
        return None
    training, speed = plan.training, plan.speed
    needed = cost.vectors
    if not is_loaded:
        needed += cost.loaded + (ADDRESS_BYTES if available.of_addresses else 0)
    room = available.free / CERTAIN - needed
    trained = training.batch_size * cost.trained_row
    evaluated = speed.eval_batch_size * cost.evaluated_row
    if room >= max(trained, evaluated):
        return None
    peak = needed + max(trained, evaluated)
    sure = max(0, available.free - needed)  # what is proposed fits by the whole estimate
    cures = []
    if trained > room:
        cures.append(_smaller_batch(plan, sure // cost.trained_row))
    if evaluated > room:
        fits = sure // cost.evaluated_row
        cures.append(
            f"speed.eval_batch_size: {fits}" if fits else "a smaller model or training.max_length"
        )
    more = " more" if is_loaded else ""
    # A number that the config does not say must not refuse a run unseen.
    assumed = f" (assumed: {', '.join(cost.assumed)})" if cost.assumed else ""
    return (
        f"training.batch_size: expected a run that fits into {available.free / 1e9:.1f} GB "
        f"({available.limit}), got one of about {peak / 1e9:.1f} GB{more} at a batch of "
        f"{training.batch_size}{assumed}; use {' and '.join(dict.fromkeys(cures))}"
    )


def _smaller_batch(plan: Plan, fits: int) -> str:
    training = plan.training
    if fits < 1:
        less = "a lower training.max_length"
        if not training.gradient_checkpointing and plan.privacy.unit != "example":
            less += " or training.gradient_checkpointing: true"
        return f"{less}: no batch fits, not even of 1 row"
    if plan.privacy.unit == "example":  # there batch_size is only what goes into one pass
        return f"training.batch_size: {fits}"
    times = -(-training.batch_size * training.gradient_accumulation // fits)
    return f"training.batch_size: {fits} with training.gradient_accumulation: {times}"


def refuse_too_large(plan: Plan, cost: MemoryCost, device: str) -> None:
    """Raises `ModelError` for a run that cannot fit, in the process that has loaded its base.
    `speed.memory_check: false` turns it off."""
    if not plan.speed.memory_check:
        return
    available = machine.device_memory(device) or machine.memory()
    line = refusal(plan, cost, available, is_loaded=True)
    if line is not None:
        raise ModelError(line)
