"""What a LoRA update of the first attention layer is made of: one vector for each token.

In a model of the Llama kind the input of layer 0's q, k and v is the normed embedding x of the
token, whatever its place. So the gradient of A, scaling * sum_t (B^T g_t) x_t^T, has rows in the
span of the x of the tokens in the batch, and that of B, scaling * sum_t g_t (A x_t)^T, in the span
of their A x (DAGER, arXiv 2405.15586; for full gradients Boenisch et al., arXiv 2112.02918, and
LAMP, arXiv 2202.08827). Of `core` adapters, the rows of R's gradient are in the span of V^T x.

At its beginning B is zero, and so is the gradient of A: the first step shows A x only, in as many
dimensions as the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedshield.audit.attacks.openings import Seen
from fedshield.errors import ModelError
from fedshield.model.base import BaseModel
from fedshield.types import AdapterSpec, Float32, Float64

#: Layers whose inputs are tokens, one by one.
FIRST = tuple(f"layers.0.self_attn.{name}." for name in ("q_proj", "k_proj", "v_proj"))
#: Directions in which a vocabulary varies less than this, of its largest, are not divided by.
_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Mixture:
    """`rows`: float64, (k, width), each a mixture of some of the `atoms`, float32, (vocabulary,
    width): one atom for each token. Both whitened by the atoms' covariance, so that what all tokens
    share does not count."""

    rows: Float64 = field(repr=False)
    atoms: Float32 = field(repr=False)


def token_inputs(base: BaseModel) -> Float32:
    """The input of layer 0's attention for every token of the vocabulary: float32,
    (vocabulary, width). Raises `ModelError` for a model of another kind."""
    model: Any = base.model
    model = getattr(model, "base_model", model)
    layers = next((m for _, m in model.named_modules() if hasattr(m, "embed_tokens")), None)
    first = None if layers is None else getattr(layers, "layers", [None])[0]
    norm = getattr(first, "input_layernorm", None)
    if layers is None or norm is None:
        raise ModelError(
            f"audit tokens: expected a model of the Llama kind, got {type(model).__name__}; leave "
            "this attack out with --attacks"
        )
    with torch.inference_mode():
        ids = torch.arange(layers.embed_tokens.num_embeddings, device=base.device)
        found: torch.Tensor = norm(layers.embed_tokens(ids))
    return found.float().cpu().numpy()


def mixtures(
    seen: Seen,
    spec: AdapterSpec,
    vocabulary: Vocabulary,
    frozen: Mapping[str, Float32] | None = None,
) -> list[Mixture]:
    """What layer 0's tensors of an update are mixtures of: A's rows together, as they are of the
    same atoms and have the most dimensions; where there are none B's (or R's), by layer.

    `frozen`: A's name -> A, float32, (rank, width), of a `core` adapter, whose A is public.
    """
    shared: list[Float32] = []
    single: list[Mixture] = []
    for name, values in _first_layers(seen, spec):
        if not values.any():
            continue
        if ".lora_A." in name:
            shared.append(values)
            continue
        a = _a_of(name, seen, spec, frozen or {})
        if a is not None:
            single.append(whiten(vocabulary.inputs @ a.T).mixture(values.astype(np.float64)))
    if shared:
        return [vocabulary.whitened.mixture(np.concatenate(shared).astype(np.float64))]
    return single


def _first_layers(seen: Seen, spec: AdapterSpec) -> Iterator[tuple[str, Float32]]:
    for tensor, place in zip(spec.tensors, spec.slices().values(), strict=True):
        if any(part in tensor.name for part in FIRST):
            yield tensor.name, seen.values[place].reshape(tensor.shape)


def _a_of(
    name: str, seen: Seen, spec: AdapterSpec, frozen: Mapping[str, Float32]
) -> Float32 | None:
    """The A, (rank, width), that belongs to a B or an R; None where the party does not know it."""
    of = f"{name.partition('.lora_B.')[0]}.lora_A.weight"
    if of in frozen:
        return frozen[of]
    place = spec.slices().get(of)
    if place is None or seen.start is None:
        return None
    shape = next(tensor.shape for tensor in spec.tensors if tensor.name == of)
    return seen.start.values[place].reshape(shape)


@dataclass(frozen=True, eq=False)
class Whitened:
    """`atoms`: float32, (vocabulary, width), in coordinates in which they vary alike in all
    directions; `scale`: float64, (width, width), which takes vectors there."""

    atoms: Float32 = field(repr=False)
    scale: Float64 = field(repr=False)

    def mixture(self, rows: Float64) -> Mixture:
        return Mixture(rows @ self.scale, self.atoms)


def whiten(atoms: Float32) -> Whitened:
    """By the inverse root of the atoms' covariance, its smallest directions held back."""
    centred = atoms - atoms.mean(axis=0)
    covariance = (centred.T @ centred).astype(np.float64) / atoms.shape[0]
    values, vectors = np.linalg.eigh(covariance)
    scale: Float64 = vectors / np.sqrt(np.maximum(values, _FLOOR * values[-1]))
    return Whitened((atoms @ scale.astype(np.float32)).astype(np.float32), scale)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The inputs of layer 0 for every token, float32, (vocabulary, width), also whitened."""

    inputs: Float32 = field(repr=False)
    whitened: Whitened = field(repr=False)

    @classmethod
    def of(cls, base: BaseModel) -> Vocabulary:
        inputs = token_inputs(base)
        return cls(inputs, whiten(inputs))

    @property
    def size(self) -> int:
        return int(self.inputs.shape[0])
