"""What a run will cost, before it runs: bytes, memory and time, without the weights.

Bytes are counted on real messages with dummy contents, the same ones that will cross; only the
length of a CKKS ciphertext is a measured mean (it varies by a few parts in ten thousand with
the compressor). Memory and seconds are estimates; their rules are beside the numbers.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from fedshield.crypto import framing
from fedshield.crypto.scheme import BLOCK_BYTES, SchemeParameters, parameters
from fedshield.crypto.seal import OVERHEAD_BYTES
from fedshield.data import samples
from fedshield.encode import update_layout, weights_layout
from fedshield.model.adapter import empty_spec
from fedshield.model.base import empty_model, resolve_device, resolve_precision
from fedshield.plan import Plan
from fedshield.protocol import envelope, messages
from fedshield.protocol.envelope import Binding
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.types import AdapterSpec, Layout

#: Share of peak matrix speed that a training step reaches (measured on SmolLM2-135M, CPU).
EFFICIENCY = 0.45
#: Seconds to start, and per training step of a model too small to keep the machine busy.
START_S, CALL_S = 3.0, 0.02
#: Python, torch, transformers and TenSEAL before any model is loaded.
PROCESS_BYTES = 650_000_000
#: Seconds per value, one core: TenSEAL encrypting, adding one upload, opening.
_CKKS_S = {"paper": (2.0e-6, 4.5e-7, 6.0e-7), "lean": (1.1e-6, 1.7e-7, 3.7e-7)}


@dataclass(frozen=True)
class Cost:
    """`fedshield plan --json` prints these fields. Bytes are whole signed messages.

    `upload_bytes_per_site_round`: by round, of one site; `setup_*`: opening and closing the
    session, all sites together; totals: all sites, all rounds, set-up included.
    """

    name: str
    sites: int
    rounds: int
    scheme: str
    scheme_parameters: str
    security_bits: int | None
    base_model_values: int
    trainable_values: int
    upload_bytes_per_site_round: list[int]
    download_bytes_per_site_round: list[int]
    setup_upload_bytes: int
    setup_download_bytes: int
    total_upload_bytes: int
    total_download_bytes: int
    plaintext_float32_upload_bytes: int
    peak_memory_bytes: int
    estimated_s: float
    device: str
    precision: str
    plan_sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(plan: Plan) -> Cost:
    """The cost of `plan` on this machine. Raises `ModelError` if the model's config or the
    adapter's targets do not fit, `DataError` for a sample that there is none of."""
    for source in (*plan.data.sites.values(), *plan.data.pool):
        for name in (source.source, source.heldout_source or ""):
            if name.startswith("sample:"):  # a misspelt sample is known without any data
                samples.path(name.removeprefix("sample:"))
    model = empty_model(plan)
    base_values = sum(parameter.numel() for parameter in model.parameters())
    config = model.config
    spec = empty_spec(model, plan.adapter)
    # A quantised base can be costed on a machine without CUDA: nothing is loaded.
    device = resolve_device(plan)
    precision = resolve_precision(plan, device)
    chosen = parameters(plan.scheme.name, plan.scheme.parameter_set)
    layout = update_layout(spec, chosen, "")
    messages_of = _Sizes(plan, chosen)
    up, down = messages_of.summed(layout)
    setup_up, setup_down = messages_of.setup()
    names = plan.data.site_names()
    # The first round carries the receipts of the weights phase, or none where there was none.
    first = messages_of.receipts_bytes("weights") if plan.scheme.weights == "private" else 0
    without = messages_of.receipts_bytes("round") - first
    up_rounds = [up] * plan.rounds
    down_rounds = [down - without if number == 0 else down for number in range(plan.rounds)]
    return Cost(
        name=plan.name,
        sites=len(names),
        rounds=plan.rounds,
        scheme=plan.scheme.name,
        scheme_parameters=plan.scheme.parameter_set,
        security_bits=chosen.security_bits,
        base_model_values=base_values,
        trainable_values=spec.num_values,
        upload_bytes_per_site_round=up_rounds,
        download_bytes_per_site_round=down_rounds,
        setup_upload_bytes=setup_up,
        setup_download_bytes=setup_down,
        total_upload_bytes=len(names) * sum(up_rounds) + setup_up,
        total_download_bytes=len(names) * sum(down_rounds) + setup_down,
        plaintext_float32_upload_bytes=4 * spec.num_values * len(names) * plan.rounds,
        peak_memory_bytes=_peak_memory(plan, config, base_values, spec, chosen, precision),
        estimated_s=round(_seconds(plan, base_values, spec, device, precision), 1),
        device=device,
        precision=precision,
        plan_sha256=plan.sha256(),
    )


class _Sizes:
    """Lengths of the messages of a run, found by sealing dummies of the same shape."""

    def __init__(self, plan: Plan, chosen: SchemeParameters) -> None:
        self._plan = plan
        self._chosen = chosen
        names = plan.data.site_names()
        self._names = names
        self._roster = Roster(dict.fromkeys(names, bytes(32)), bytes(32), demo=True)
        # Sites differ in the length of their names only; the mean name stands for all.
        self._mean_name = sum(map(len, names)) / len(names)

    def _up(self, message: messages.Message, phase: str) -> float:
        return self._sealed(message, "", phase) + self._mean_name

    def _down(self, message: messages.Message, phase: str) -> int:
        return self._sealed(message, COORDINATOR, phase)

    def _sealed(self, message: messages.Message, sender: str, phase: str) -> int:
        binding = Binding(bytes(32), 0, phase)
        sealed = envelope.seal(
            message.kind, binding, sender, message.to_body(), lambda _: bytes(64)
        )
        return len(sealed)

    def _block_sizes(self, layout: Layout) -> list[int]:
        sizes: list[int] = []
        left = layout.num_slots
        while left > 0:
            slots = min(left, layout.values_per_block)
            left -= slots
            if self._plan.scheme.name == "plain":
                sizes.append(4 * slots)
                continue
            count = -(-slots // self._chosen.values_per_ciphertext)
            sizes.append(len(framing.pack([b""] * count)) + count * self._chosen.ciphertext_bytes)
        return sizes

    def receipts_bytes(self, phase: str) -> int:
        """What the receipts of the last sum, made in `phase`, add to a `work` command."""
        receipt = messages.Receipt(bytes(32))
        filled = {
            name: bytes(int(self._up(receipt, phase) - self._mean_name) + len(name))
            for name in self._names
        }
        empty = self._down(messages.Work({}), "round")
        return self._down(messages.Work(filled), "round") - empty

    def summed(self, layout: Layout, phase: str = "round") -> tuple[int, int]:
        """Bytes up and down, for one site, of one sum over `layout`."""
        sizes = self._block_sizes(layout)
        digests = tuple(bytes(32) for _ in sizes)
        upload = messages.Upload(bytes(16), bytes(32), digests)
        uploads = {
            name: bytes(int(self._up(upload, phase) - self._mean_name) + len(name))
            for name in self._names
        }
        done = self._up(messages.Done(), phase)
        empty_block = self._up(messages.Block(0, b""), phase)
        up = self._up(upload, phase) + self._up(messages.Receipt(bytes(32)), phase)
        up += sum(empty_block + size + done for size in sizes) + done  # blocks, announce
        down = self._down(messages.Work({}), phase) + self._down(messages.Open(), phase)
        down += self._down(messages.Announce(uploads, digests), phase)
        fetch, deliver = messages.Fetch(0), messages.Deliver(0, b"")
        down += sum(self._down(fetch, phase) + self._down(deliver, phase) + s for s in sizes)
        if phase == "round":
            up += done  # evaluate
            down += self._down(messages.Evaluate(), phase) + self.receipts_bytes("round")
        return round(up), round(down)

    def setup(self) -> tuple[int, int]:
        """Bytes up and down of all sites together: opening and closing one session."""
        names, count = self._names, len(self._names)
        invite = messages.Invite(bytes(16), self._plan.canonical(), self._roster.encode())
        join = messages.Join(bytes(32), bytes(32), 0, 0)
        joins = {
            name: bytes(int(self._up(join, "setup") - self._mean_name) + len(name))
            for name in names
        }
        up = count * (self._up(join, "setup") + self._up(messages.Ready(bytes(32)), "setup"))
        down = count * (self._down(invite, "setup") + self._down(messages.Begin(joins), "setup"))
        secret = bytes(32 + self._chosen.secret_key_bytes + OVERHEAD_BYTES)
        maker, *others = names
        boxes = {
            name: bytes(self._sealed(messages.KeyBox(name, bytes(16), secret), maker, "setup"))
            for name in others
        }
        offer = messages.KeyOffer(bytes(self._chosen.public_key_bytes), boxes)
        up += self._up(offer, "setup") + (count - 1) * self._up(messages.Done(), "setup")
        down += self._down(messages.MakeKey(), "setup")
        down += sum(self._down(messages.TakeKey(box), "setup") for box in boxes.values())
        before = "setup"
        if self._plan.scheme.weights == "private":
            before = "weights"
            each_up, each_down = self.summed(weights_layout(self._chosen, ""), "weights")
            up, down = up + count * each_up, down + count * each_down
        up += count * (self._up(messages.Done(), before) + self._up(messages.Done(), "round"))
        down += count * (
            self._down(messages.Evaluate(), before)
            + self._down(messages.Finish({}), "round")
            + self.receipts_bytes("round")
        )
        return round(up), round(down)


def _peak_memory(
    plan: Plan,
    config: Any,
    base_values: int,
    spec: AdapterSpec,
    chosen: SchemeParameters,
    precision: str,
) -> int:
    """One process with all sites: base, adapter with gradients and AdamW's two moments, the
    activations of one step, every site's upload and the aggregate, and the host's own."""
    bytes_per_value = 2 if precision == "bfloat16" else 4
    base_bytes = {"8bit": 1.05, "4bit": 0.6}.get(plan.model.quantization, bytes_per_value)
    tokens = plan.training.batch_size * plan.training.max_length
    width = int(getattr(config, "hidden_size", 768))
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    layers = int(getattr(config, "num_hidden_layers", 12))
    vocabulary = int(getattr(config, "vocab_size", 32_000))
    kept_layers = 1 if plan.training.gradient_checkpointing else layers
    activations = tokens * kept_layers * (12 * width + 4 * inner) * bytes_per_value
    if plan.training.gradient_checkpointing:
        activations += tokens * layers * width * bytes_per_value
    logits = tokens * vocabulary * (bytes_per_value + 8)
    sites = len(plan.data.site_names())
    vectors = spec.num_values * (4 * 4 + (4 + 8 * 3) + 4 * sites)
    ciphertext = spec.num_values * chosen.bytes_per_value * (sites + 2) + 4 * BLOCK_BYTES
    return int(
        PROCESS_BYTES + base_values * base_bytes + activations + logits + vectors + ciphertext
    )


def _seconds(plan: Plan, base_values: int, spec: AdapterSpec, device: str, precision: str) -> float:
    """Multiply-adds of training and evaluating at this machine's measured matrix speed.

    Training a frozen base costs forward and backward through activations: about 4 operations
    a weight and token; evaluating, 2. Rows are taken to fill a third of max_length on the mean.
    """
    training, sites = plan.training, len(plan.data.site_names())
    tokens = training.max_length / 3
    trained = training.batch_size * training.gradient_accumulation * training.steps * tokens
    # Bounded: a plan's cost must be printed soon, also for many thousand rounds.
    evaluated = plan.data.heldout_rows * tokens
    operations = base_values * (4 * trained + 2 * evaluated) * sites * plan.rounds
    speed = _matrix_speed(device, precision) * EFFICIENCY
    calls = training.steps * training.gradient_accumulation * sites * plan.rounds
    crypto = 0.0
    if plan.scheme.name == "ckks":
        encrypt, add, opening = _CKKS_S[plan.scheme.parameter_set]
        crypto = spec.num_values * (encrypt + add + opening) * sites * plan.rounds
    return START_S + calls * CALL_S + operations / speed + crypto


def _matrix_speed(device: str, precision: str) -> float:
    """Operations a second of a square matrix product here: the best of a few short tries."""
    import torch

    size = 2048 if device.startswith("cuda") else 768
    left = torch.ones(size, size, dtype=getattr(torch, precision), device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((left @ left)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
