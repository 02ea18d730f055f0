"""Whether a base model with its adapter can be trained, tried on one row before anything is.

One pass forward and back with a random adapter, whose values are put back: ids inside the
embeddings, a finite loss, a gradient for every adapter tensor, and no answer that sees what comes
after it. Nothing random of the run is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from fedshield.errors import ModelError
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.model.chat import Tokens, tokenise
from fedshield.model.locate import first_line
from fedshield.model.turns import turn_end_ids, turn_end_text
from fedshield.notes import library_words
from fedshield.types import AdapterState

#: Tokens of the row that is tried, where rows are longer.
LONGEST = 64
#: How far a later token may move an earlier logit, in standard deviations of the logits: kernels of
#: 16 bits and of quantised layers round differently for other contents of a batch.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
#: Width of the random adapter's values: small beside the weights, not lost in 16 bits.
PROBE_SCALE = 0.02


def check_model(base: BaseModel, host: AdapterHost, rows: Sequence[Tokens] = ()) -> tuple[str, ...]:
    """Notes on a base with its adapter that can be trained. The template must be settled.

    Args:
        rows: all tokenised rows that the model will see; where there are none, a short chat is
            tried. Their ids are checked, the shortest is passed through the model.

    Raises:
        ModelError: for ids outside the embeddings, a loss or gradient that is not finite, adapter
            tensors without a gradient, and a model that sees later tokens.
    """
    check_ids(base, rows)
    row = _row_to_try(base, rows)
    own = host.read()
    devices = [base.device] if base.device.startswith("cuda") else []
    with library_words() as words, torch.random.fork_rng(devices=devices):
        try:
            host.write(_probe(host, own))
            zero = _check_gradients(base, host, row)
            _check_causality(base, host, row)
        finally:
            host.write(AdapterState(own, host.spec))
            host.trainable()
    notes = [f"transformers: {word}" for word in words]
    return (*notes, *zero, *_about_ends(base), *_odd_ends(base))


def check_ids(base: BaseModel, rows: Iterable[Tokens]) -> None:
    """Raises `ModelError` for a row with a token that the embeddings have no row for."""
    size = int(base.model.get_input_embeddings().weight.shape[0])
    output = base.model.get_output_embeddings()
    if output is not None:
        size = min(size, int(output.weight.shape[0]))
    largest = max((max(row.input_ids, default=0) for row in rows), default=0)
    if largest >= size:
        token = base.tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"model.name {base.name}: expected token ids below {size} (rows of its embeddings), "
            f"got {largest} ({token}) from its tokenizer, which knows {len(base.tokenizer)} "
            "tokens; use the model's own tokenizer, or resize the embeddings and save the model "
            "again"
        )


def _row_to_try(base: BaseModel, rows: Sequence[Tokens]) -> Tokens:
    """The shortest row that asks and answers; a short chat where there is none. Cut so that it
    costs little."""
    fit = [row for row in rows if len(row.input_ids) >= 4]
    if fit:
        row = min(fit, key=lambda row: (len(row.input_ids), row.input_ids))
    else:
        chat = [
            {"role": "user", "content": "How many beds are there?"},
            {"role": "assistant", "content": "There are 12 beds."},
        ]
        row = tokenise(base.tokenizer, chat, LONGEST)
        check_ids(base, [row])
    return Tokens(row.input_ids[:LONGEST], row.input_ids[:LONGEST], 0)


def _probe(host: AdapterHost, own: np.ndarray[Any, np.dtype[np.float32]]) -> AdapterState:
    """Random values for every tensor: with LoRA's B at zero, A would get no gradient."""
    generator = np.random.Generator(np.random.Philox(0))
    values = generator.normal(0.0, PROBE_SCALE, own.size).astype(np.float32)
    return AdapterState(values, host.spec)


def _check_gradients(base: BaseModel, host: AdapterHost, row: Tokens) -> tuple[str, ...]:
    """A note on tensors whose gradient is exactly zero on this row."""
    model = host.model
    parameters = host.trainable()
    model.train()  # some layers take another way then
    ids = torch.tensor([row.input_ids], device=base.device)
    try:
        try:
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
            if torch.isfinite(loss):
                loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a model's own code makes of a layer with an adapter
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise
            raise ModelError(
                f"model.name {base.name}: expected a pass forward and back of one row, got "
                f"{first_line(error)}; choose another model or other adapter.targets"
            ) from None
        if not torch.isfinite(loss):
            raise ModelError(
                f"model.name {base.name}: expected a finite loss of one row, got {float(loss)} in "
                f"{base.precision}; {_cure(base)}"
            )
        return _judge(base, host, parameters)
    finally:
        model.eval()
        for parameter in parameters:
            parameter.grad = None


def _judge(base: BaseModel, host: AdapterHost, parameters: Sequence[Any]) -> tuple[str, ...]:
    named = dict(zip((tensor.name for tensor in host.spec.tensors), parameters, strict=True))
    none = [name for name, parameter in named.items() if parameter.grad is None]
    # Of experts that are layers of their own, a row reaches those that it is routed to.
    unreached = [name for name in none if ".experts." not in name]
    if unreached or len(none) == len(named):
        layers = sorted({name.split(".")[-3] for name in unreached or none})
        raise ModelError(
            f"adapter.targets: expected layers of {base.name} that take part in its answers, got "
            f"{_layer(unreached[0] if unreached else none[0])} ({len(unreached or none)} of "
            f"{len(named)} tensors get no gradient); leave out {', '.join(layers)}"
        )
    odd = [
        name
        for name, parameter in named.items()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    if odd:
        raise ModelError(
            f"model.name {base.name}: expected finite gradients on one row, got others of "
            f"{_layer(odd[0])} ({len(odd)} of {len(named)} tensors); {_cure(base)}"
        )
    zero = [
        name
        for name, parameter in named.items()
        if parameter.grad is not None and not parameter.grad.any()
    ]
    if len(zero) == len(named):
        raise ModelError(
            f"model.name {base.name}: expected an adapter that moves its answers, got gradients "
            "that are all zero; use undamaged weights or other adapter.targets"
        )
    if not zero:
        return ()
    return (
        f"{len(zero)} of {len(named)} adapter tensors have a gradient of zero on the row that was "
        f"tried, the first of {_layer(zero[0])}",
    )


def _cure(base: BaseModel) -> str:
    return (
        "set training.precision: fp32" if base.precision != "float32" else "use undamaged weights"
    )


def _layer(tensor: str) -> str:
    return tensor.removeprefix("base_model.model.").rpartition(".lora_")[0] or tensor


def _check_causality(base: BaseModel, host: AdapterHost, row: Tokens) -> None:
    """Other tokens in the row's second half leave the logits of its first half as they are."""
    ids = torch.tensor([row.input_ids], device=base.device)
    half = ids.shape[1] // 2
    changed = ids.clone()
    # The row's first token in place of all; padding where that would change nothing.
    varied = bool((ids[0, half:] != ids[0, 0]).any())
    changed[0, half:] = ids[0, 0] if varied else base.pad_token_id
    with torch.inference_mode():
        first, second = (
            host.model(input_ids=each, attention_mask=torch.ones_like(each), use_cache=False)
            .logits[0, :half]
            .float()
            for each in (ids, changed)
        )
    tolerance = TOLERANCE[base.precision if not _quantised(base.model) else "bfloat16"]
    moved = float((first - second).abs().max())
    spread = float(first.std())
    if moved > tolerance * max(spread, 1e-6):
        raise ModelError(
            f"model.name {base.name}: expected a model that writes from left to right, got one "
            f"whose earlier predictions change with later tokens (by {moved:.2g}; "
            f"{type(base.model).__name__}); choose a causal language model"
        )


def _quantised(model: Any) -> bool:
    return getattr(model, "quantization_method", None) is not None


def _about_ends(base: BaseModel) -> tuple[str, ...]:
    """How an answer ends where the tokenizer has no usual way."""
    if base.tokenizer.eos_token_id is not None:
        return ()
    ends = turn_end_ids(base.tokenizer)
    if ends:
        shown = ", ".join(base.tokenizer.convert_ids_to_tokens(list(ends)))
        return (f"the tokenizer has no end-of-text token; answers end with the chat's {shown}",)
    text = turn_end_text(base.tokenizer)
    after = f"only the text {text!r} follows an answer" if text else "nothing follows an answer"
    return (
        f"the tokenizer has no end-of-text token and {after} in its chat template: generation "
        "stops at its limit of tokens",
    )


def _odd_ends(base: BaseModel) -> tuple[str, ...]:
    """A note on end tokens of the base's generation config that are ordinary text."""
    given = base.model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    added = {base.tokenizer.eos_token_id, *base.tokenizer.added_tokens_decoder}
    size = len(base.tokenizer)
    odd = [end for end in ends if end is not None and end < size and end not in added]
    if not odd:
        return ()
    shown = ", ".join(f"{end} ({base.tokenizer.decode([end])!r})" for end in odd)
    return (
        f"the base's generation settings end an answer at id {shown}, which is no special token of "
        "its tokenizer: answers may stop early",
    )
