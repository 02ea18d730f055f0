"""What a run will cost, before it runs: bytes, memory and time, without the weights.

Bytes are counted on real messages with dummy contents, the same ones that will cross; only the
length of a CKKS ciphertext is a measured mean (the compressor makes single ones up to half a
percent shorter; means of many hold to parts in ten thousand); `rlwe` and `plain` are exact.
Memory and seconds are estimates; their rules are beside the numbers.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from fedshield.crypto.scheme import BLOCK_BYTES, parameters
from fedshield.crypto.seal import OVERHEAD_BYTES
from fedshield.data import samples
from fedshield.data.public import ROWS_OF_EACH
from fedshield.model.adapter import empty_spec
from fedshield.model.base import empty_model, resolve_device, resolve_precision
from fedshield.plan import Plan
from fedshield.privacy.terms import forecast
from fedshield.protocol import envelope, messages
from fedshield.protocol.ciphers import (
    SchemeFacts,
    block_sizes,
    facts,
    parameters_of,
    share_shape,
    update_layout,
    weights_layout,
)
from fedshield.protocol.envelope import Binding
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.prune import num_sent
from fedshield.types import AdapterSpec, Layout

#: Share of peak matrix speed that a training step reaches (measured on SmolLM2-135M, CPU).
EFFICIENCY = 0.45
#: Seconds to start, and per training step of a model too small to keep the machine busy.
START_S, CALL_S = 3.0, 0.02
#: Python, torch, transformers and TenSEAL before any model is loaded.
PROCESS_BYTES = 650_000_000
#: Seconds per value, one core: encrypting, adding one upload, opening.
_CRYPTO_S = {
    ("ckks", "paper"): (2.0e-6, 4.5e-7, 6.0e-7),
    ("ckks", "lean"): (1.1e-6, 1.7e-7, 3.7e-7),
    ("rlwe", ""): (2.5e-8, 3.0e-9, 2.5e-8),
}


@dataclass(frozen=True)
class Cost:
    """`fedshield plan --json` prints these fields. Bytes are whole signed messages.

    `upload_bytes_per_site_round`: by round, of one site on the mean; `setup_*`: opening and
    closing the session, all sites together; totals: all sites, all rounds, set-up included.
    `privacy`: epsilon at the run's end, see `privacy.terms.forecast`.
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
    estimated_s: float
    device: str
    precision: str
    plan_sha256: str
    privacy: dict[str, Any] | None = None

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
    scheme = facts(plan)
    sizes = Sizes(plan)
    names = plan.data.site_names()
    counts = [num_sent(plan, spec, at + 1) for at in range(plan.rounds)]
    by_count = {count: sizes.summed(update_layout(plan, count)) for count in sorted(set(counts))}
    ups = [by_count[count][0] for count in counts]
    downs = [by_count[count][1] for count in counts]
    setup_up, setup_down = sizes.setup(weights_layout(plan))
    return Cost(
        name=plan.name,
        sites=len(names),
        rounds=plan.rounds,
        scheme=plan.scheme.name,
        scheme_parameters=scheme.parameters,
        security_bits=scheme.security_bits,
        quorums=plan.rules().in_words() if plan.scheme.name == "rlwe" else "",
        base_model_values=base_values,
        trainable_values=spec.num_values,
        exchanged_values=counts,
        upload_bytes_per_site_round=[round(up / len(names)) for up in ups],
        download_bytes_per_site_round=[round(down / len(names)) for down in downs],
        setup_upload_bytes=setup_up,
        setup_download_bytes=setup_down,
        total_upload_bytes=sum(ups) + setup_up,
        total_download_bytes=sum(downs) + setup_down,
        plaintext_float32_upload_bytes=4 * spec.num_values * len(names) * plan.rounds,
        peak_memory_bytes=_peak_memory(plan, config, base_values, spec, scheme, precision),
        estimated_s=round(_seconds(plan, base_values, spec, device, precision), 1),
        device=device,
        precision=precision,
        plan_sha256=plan.sha256(),
        privacy=forecast(plan, spec),
    )


class Sizes:
    """Lengths of the messages of a run, found by sealing dummies of the same shape."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = plan.data.site_names()
        rules = plan.rules()
        keys = {name: at.to_bytes(32, "big") for at, name in enumerate(self._names)}
        self._roster = Roster(keys, b"\xff" * 32, rules, demo=True)
        self._shared = plan.scheme.name == "rlwe"

    def _size(self, message: messages.Message, phase: str, sender: str = COORDINATOR) -> int:
        binding = Binding(bytes(32), 0, phase)
        sealed = envelope.seal(
            message.kind, binding, sender, message.to_body(), lambda _: bytes(64)
        )
        return len(sealed)

    def _signed(self, message: messages.Message, phase: str) -> dict[str, bytes]:
        """This message of every site, as it is passed on."""
        return {name: bytes(self._size(message, phase, name)) for name in self._names}

    def summed(self, layout: Layout, phase: str = "round") -> tuple[int, int]:
        """Bytes up and down, of all sites together, of one sum over `layout`."""
        names, sizes = self._names, block_sizes(self._plan, layout)
        digests = tuple(bytes(32) for _ in sizes)
        share = b""
        if self._shared:
            shape = share_shape(parameters_of(self._plan), layout, self._plan.rules())
            share = bytes(shape.num_bytes)
        box = bytes(len(share) + OVERHEAD_BYTES)
        clear = self._plan.scheme.open_to == "server"
        round_key = messages.RoundKey(bytes(32), bytes(32), {})
        vote = messages.Vote(bytes(32), bytes(32))

        def others(name: str, value: bytes) -> dict[str, bytes]:
            found = {other: value for other in names if other != name}
            return found if self._shared else {}

        def upload(name: str) -> messages.Upload:
            return messages.Upload(bytes(16), bytes(32), digests, others(name, bytes(32)))

        uploads = {name: bytes(self._size(upload(name), phase, name)) for name in names}
        round_keys, votes = self._signed(round_key, phase), self._signed(vote, phase)
        up = down = 0
        for name in names:
            boxes = others(name, box)
            answer = messages.Answer({} if clear else boxes, share if clear else b"")
            answers = others(name, share if clear else box)
            replies: list[messages.Message] = [round_key, upload(name), vote, answer]
            commands: list[messages.Message] = [
                messages.Prepare(),
                messages.Work(round_keys),
                messages.Announce(uploads, digests),
                messages.Quorum(votes),
                messages.Open(answers),
            ]
            if self._shared:
                replies += [messages.Shares(boxes), messages.Held({})]
                commands += [messages.FetchShares(), messages.Hold(uploads, boxes)]
            replies += [messages.Receipt(bytes(32))]
            if phase == "round":
                replies += [messages.Done()]
                commands += [messages.Evaluate()]
            replies += [messages.Block(0, b""), messages.Done()] * len(sizes)
            commands += [messages.Fetch(0), messages.Deliver(0, b"")] * len(sizes)
            up += sum(self._size(reply, phase, name) for reply in replies)
            down += sum(self._size(command, phase) for command in commands)
        up += len(names) * sum(uploaded for uploaded, _ in sizes)
        down += len(names) * sum(summed for _, summed in sizes)
        return up, down

    def setup(self, weights: Layout) -> tuple[int, int]:
        """Bytes up and down of all sites together: opening and closing one session."""
        names, plan = self._names, self._plan
        invite = messages.Invite(bytes(16), plan.canonical(), self._roster.encode())
        join = messages.Join(bytes(32), bytes(32), 0, 0)
        begin = messages.Begin(self._signed(join, "setup"))
        secret_bytes = public_bytes = 0
        if plan.scheme.name == "ckks":
            chosen = parameters("ckks", plan.scheme.parameter_set)
            secret_bytes, public_bytes = chosen.secret_key_bytes, chosen.public_key_bytes
        secret = bytes(32 + secret_bytes + OVERHEAD_BYTES)
        maker, *others = names
        boxes = {
            name: bytes(self._size(messages.KeyBox(name, bytes(16), secret), "setup", maker))
            for name in others
        }
        up = self._size(messages.KeyOffer(bytes(public_bytes), boxes), "setup", maker)
        up += sum(self._size(messages.Done(), "setup", name) for name in others)
        down = self._size(messages.MakeKey(), "setup")
        down += sum(self._size(messages.TakeKey(box), "setup") for box in boxes.values())
        before = "setup"
        if plan.scheme.weights == "private":
            before = "weights"
            up_weights, down_weights = self.summed(weights, "weights")
            up, down = up + up_weights, down + down_weights
        finish = messages.Finish(self._signed(messages.Receipt(bytes(32)), "round"))
        for name in names:
            up += self._size(join, "setup", name)
            up += self._size(messages.Ready(bytes(32)), "setup", name)
            up += self._size(messages.Done(), before, name)
            up += self._size(messages.Done(), "round", name)
            down += self._size(invite, "setup") + self._size(begin, "setup")
            down += self._size(messages.Evaluate(), before) + self._size(finish, "round")
        return up, down


def _peak_memory(
    plan: Plan,
    config: Any,
    base_values: int,
    spec: AdapterSpec,
    scheme: SchemeFacts,
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
    if plan.privacy.unit == "example":  # each row's gradient, and the largest tensor's in float64
        rows = plan.training.batch_size
        largest = max((tensor.size for tensor in spec.tensors), default=0)
        vectors += rows * (4 * spec.num_values + 16 * largest)
    ciphertext = spec.num_values * scheme.bytes_per_value * (sites + 2) + 4 * BLOCK_BYTES
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
    if plan.adapter.factors == "gradient":
        from fedshield.model.gradient import PASSES

        operations += base_values * 4 * PASSES * ROWS_OF_EACH * len(samples.SAMPLES) * tokens
    speed = _matrix_speed(device, precision) * EFFICIENCY
    calls = training.steps * training.gradient_accumulation * sites * plan.rounds
    crypto = 0.0
    if plan.scheme.name != "plain":
        encrypt, add, opening = _CRYPTO_S[plan.scheme.name, plan.scheme.parameter_set]
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
