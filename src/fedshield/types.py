"""The values that flow through one round, in the order in which they come about.

    AdapterState -> AdapterUpdate -> PrunedUpdate (+ Mask) -> EncodedUpdate (+ Layout)
      -> EncryptedUpdate (`site.ciphers`) -> OpenedSum -> AdapterState'

All are frozen. Arrays are made read-only when a value is built, so that a step can only hand
on something new; values with arrays compare by identity. The coordinator sees the blocks of
encrypted updates and their sum, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

Exchange = Literal["parameters", "delta"]


def _frozen(array: NDArray[np.generic], dtype: type[np.generic], length: int, what: str) -> None:
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError(
            f"{what}: expected {np.dtype(dtype).name} of shape ({length},), "
            f"got {array.dtype} of shape {array.shape}"
        )
    array.flags.writeable = False


@dataclass(frozen=True)
class TensorSpec:
    """One adapter tensor: its name in PEFT's state dict and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class AdapterSpec:
    """How a flat vector of adapter values is cut into named tensors, and which base model
    they belong to. `tensors` are in the order in which they lie in the vector."""

    tensors: tuple[TensorSpec, ...]
    base_model_sha256: str
    scaling: float

    @property
    def num_values(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def slices(self) -> dict[str, slice]:
        """Name of each tensor -> its place in the flat vector."""
        places: dict[str, slice] = {}
        offset = 0
        for tensor in self.tensors:
            places[tensor.name] = slice(offset, offset + tensor.size)
            offset += tensor.size
        return places

    def layers(self) -> list[str]:
        """The last parts of the names of the layers that have an adapter (`q_proj`), in order."""
        return sorted({t.name.partition(".lora_")[0].rpartition(".")[2] for t in self.tensors})

    def sha256(self) -> str:
        text = json.dumps(
            [[t.name, list(t.shape)] for t in self.tensors]
            + [self.base_model_sha256, repr(self.scaling)]
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class AdapterState:
    """The global adapter. `values`: float32, shape (spec.num_values,)."""

    values: Float32 = field(repr=False)
    spec: AdapterSpec = field(repr=False)

    def __post_init__(self) -> None:
        _frozen(self.values, np.float32, self.spec.num_values, "AdapterState.values")

    def sha256(self) -> str:
        """Digest of the spec and of the values as little-endian float32."""
        digest = hashlib.sha256(bytes.fromhex(self.spec.sha256()))
        digest.update(self.values.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class AdapterUpdate:
    """A site's adapter after local training. `values`: float32, shape (num_values,), the
    trained parameters; `start` is the global adapter that training began from."""

    values: Float32 = field(repr=False)
    start: AdapterState = field(repr=False)
    num_examples: int

    def __post_init__(self) -> None:
        _frozen(self.values, np.float32, self.start.spec.num_values, "AdapterUpdate.values")


@dataclass(frozen=True, eq=False)
class Mask:
    """Kept coordinates. `kept`: bool, shape (num_values,); `rate`: the share pruned."""

    kept: Bool = field(repr=False)
    rate: float

    def __post_init__(self) -> None:
        _frozen(self.kept, np.bool_, self.kept.shape[0], "Mask.kept")

    @property
    def num_pruned(self) -> int:
        return int(self.kept.size - np.count_nonzero(self.kept))


@dataclass(frozen=True, eq=False)
class Selection:
    """The coordinates that travel in one round, the same at every site and hidden from the
    coordinator. `indices`: int64, ascending, of the flat vector of `spec.num_values`."""

    indices: NDArray[np.int64] = field(repr=False)
    spec: AdapterSpec = field(repr=False)

    def __post_init__(self) -> None:
        _frozen(self.indices, np.int64, self.indices.shape[0], "Selection.indices")
        steps = np.diff(self.indices)
        inside = not self.indices.size or (
            self.indices[0] >= 0 and self.indices[-1] < self.spec.num_values
        )
        if not inside or (steps.size and int(steps.min()) < 1):
            raise ValueError("Selection.indices: expected ascending places in the vector")

    @property
    def size(self) -> int:
        return int(self.indices.size)

    def parts(self) -> list[tuple[int, slice]]:
        """(place of a tensor in the spec, its slice of the selected values), where it has any."""
        found: list[tuple[int, slice]] = []
        for number, place in enumerate(self.spec.slices().values()):
            low, high = np.searchsorted(self.indices, (place.start, place.stop))
            if high > low:
                found.append((number, slice(int(low), int(high))))
        return found

    def sha256(self) -> str:
        """Digest of the spec and of which coordinates."""
        digest = hashlib.sha256(bytes.fromhex(self.spec.sha256()))
        digest.update(self.indices.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class PrunedUpdate:
    """What a site contributes, pruned coordinates set to zero.

    `values`: float32, shape (num_values,). With exchange 'parameters' (the paper) they are the
    pruned parameters themselves; with 'delta', the pruned difference from the global adapter.

    `left_out`: what was pruned and the site keeps for its next update, same shape; zeros where
    nothing is kept back.
    """

    values: Float32 = field(repr=False)
    mask: Mask
    exchange: Exchange
    left_out: Float32 = field(repr=False)

    def __post_init__(self) -> None:
        _frozen(self.values, np.float32, self.mask.kept.shape[0], "PrunedUpdate.values")
        _frozen(self.left_out, np.float32, self.mask.kept.shape[0], "PrunedUpdate.left_out")


@dataclass(frozen=True)
class Layout:
    """Where each coordinate travels: the adapter values first, then reserved slots by name.

    The digest is bound into every upload (as a keyed tag), so that vectors laid out
    differently can never be added.
    """

    spec_sha256: str
    num_values: int
    reserved: tuple[str, ...]
    values_per_block: int
    number_format: str

    @property
    def num_slots(self) -> int:
        return self.num_values + len(self.reserved)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_slots // self.values_per_block)

    def sha256(self) -> bytes:
        text = json.dumps(
            [
                "fedshield layout 1",
                self.spec_sha256,
                self.num_values,
                list(self.reserved),
                self.values_per_block,
                self.number_format,
            ]
        )
        return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, eq=False)
class EncodedUpdate:
    """Numbers ready to be encrypted. `slots`: float64, shape (layout.num_slots,), weighted by
    the site's share and, for an encrypting scheme, whole multiples of the layout's grid."""

    slots: Float64 = field(repr=False)
    layout: Layout
    num_clipped: int
    #: What a scheme with integers leaves out, see `EncodedIntegers`; here nothing.
    residual: Float32 | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _frozen(self.slots, np.float64, self.layout.num_slots, "EncodedUpdate.slots")

    def sha256(self) -> str:
        """H(m): of what is encrypted and where it lies, hex."""
        digest = hashlib.sha256(b"fedshield encoded slots 1" + self.layout.sha256())
        digest.update(self.slots.astype("<f8", copy=False).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class EncodedIntegers:
    """Small integers ready to be encrypted and summed exactly.

    `digits`: int16 or int32, shape (layout.num_values,), the site's weighted values in steps of
    each tensor's clip; `reserved`: a non-negative integer for each reserved slot; `residual`:
    float32, shape (layout.num_values,), what clipping and rounding left out, before weighting.
    """

    digits: NDArray[np.signedinteger] = field(repr=False)
    reserved: tuple[int, ...]
    layout: Layout
    num_clipped: int
    residual: Float32 = field(repr=False)

    def __post_init__(self) -> None:
        if self.digits.shape != (self.layout.num_values,):
            raise ValueError(f"EncodedIntegers.digits: got shape {self.digits.shape}")
        self.digits.flags.writeable = False
        _frozen(self.residual, np.float32, self.layout.num_values, "EncodedIntegers.residual")

    def sha256(self) -> str:
        """H(m): of what is encrypted and where it lies, hex."""
        digest = hashlib.sha256(b"fedshield encoded integers 1" + self.layout.sha256())
        digest.update(self.digits.astype("<i8").tobytes())
        digest.update(np.asarray(self.reserved, dtype="<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SiteMemory:
    """What a site carries from round to round beside the adapter.

    `residual`: float32, (num_values,), everything left out so far (pruned, clipped, rounded): the
    site's own. `shared`: name -> float32 vector, from public state and therefore the same at
    every site (`clip`: the largest magnitude of each tensor's contribution in the next round;
    scores of coordinates; moments of the server's optimiser). `own`: the site's other vectors
    (its personal part of the adapter, its control variate).
    """

    residual: Float32 = field(repr=False)
    shared: Mapping[str, Float32] = field(repr=False)
    own: Mapping[str, Float32] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _frozen(self.residual, np.float32, self.residual.shape[0], "SiteMemory.residual")
        for name, vector in (*self.shared.items(), *self.own.items()):
            _frozen(vector, np.float32, vector.shape[0], f"SiteMemory {name}")

    @property
    def clip(self) -> Float32:
        return self.shared["clip"]

    def shared_sha256(self) -> bytes:
        """Digest of what must be alike at all sites."""
        digest = hashlib.sha256(b"fedshield shared memory 1")
        for name, vector in sorted(self.shared.items()):
            digest.update(name.encode() + b"\0" + vector.size.to_bytes(8, "big"))
            digest.update(vector.astype("<f4", copy=False).tobytes())
        return digest.digest()


@dataclass(frozen=True, eq=False)
class OpenedSum:
    """What the sites open: the sum over the contributors, and nothing about any one of them.

    `values`: float64, shape (layout.num_values,); `reserved`: name -> sum.
    """

    values: Float64 = field(repr=False)
    reserved: Mapping[str, float]
    layout: Layout

    def __post_init__(self) -> None:
        _frozen(self.values, np.float64, self.layout.num_values, "OpenedSum.values")
