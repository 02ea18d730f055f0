"""What a participant needs of its own house: work on its data, a place to keep its adapter, and
someone to tell what it measured. None of it crosses to another party."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from fedshield.types import AdapterState, AdapterUpdate, Float32, Selection, SiteMemory


@dataclass(frozen=True, eq=False)
class Sent:
    """What of a site's update travels in a round. `values`: float32, (num_values,), pruned, clipped
    and rounded, not weighted; `selection`: the coordinates that travel; `parts`: ranges of them
    that share a quantisation range, and how far it reaches."""

    values: Float32 = field(repr=False)
    selection: Selection = field(repr=False)
    parts: Sequence[tuple[slice, float]] = field(repr=False)


class LocalWork(Protocol):
    """What a site does with its own data."""

    num_examples: int

    def train(
        self, state: AdapterState, round_number: int, correction: Float32 | None = None
    ) -> tuple[AdapterUpdate, float]:
        """One local round from `state`: the update, and the mean training loss. `correction`:
        float32, (num_values,), added to every gradient (SCAFFOLD)."""

    def evaluate(self, state: AdapterState) -> float:
        """Mean loss per response token on the site's held-out rows."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """What a site is about to send in a round, kept so that a repetition sends the same numbers
    with the same noise, and opens nothing new (rule R4).

    `base`: digest of what the round started from; `weight`: what it is encoded with; `trained`:
    float32, (num_values,), the trained parameters; `encoded`: what is encrypted, as `Encoded` has
    it: its digits or slots; `reserved`: its reserved integers; `residual`: what rounding left,
    where the scheme has any; `made_of`: the version of the records and the base model that it was
    trained from (`Line.made_of`).
    """

    round_number: int
    base: str
    weight: float
    trained: Float32 = field(repr=False)
    encoded: NDArray[Any] = field(repr=False)
    reserved: tuple[int, ...]
    num_clipped: int
    residual: Float32 | None = field(repr=False)
    train_loss: float
    num_examples: int
    clip_factor: float
    made_of: str


class Store(Protocol):
    """Where a site keeps its global adapter between rounds."""

    def save(self, completed_rounds: int, state: AdapterState, memory: SiteMemory) -> None:
        """Keep both durably, all or nothing, and keep the round before as well."""

    def keep(self, contribution: Contribution) -> None:
        """Keep this contribution durably, instead of the last."""

    def kept(self) -> Contribution | None:
        """The contribution that is kept, if any."""


@dataclass(frozen=True)
class SiteRound:
    """What one site saw in one round. It stays with the site's operator."""

    round_number: int
    site: str
    train_loss: float = float("nan")
    heldout_loss_before: float = float("nan")
    heldout_loss_after: float = float("nan")
    num_examples: int = 0
    learning_rate: float = 0.0
    pruning_rate: float = 0.0
    pruned_values: int = 0
    clipped_values: int = 0
    #: What the whole update was multiplied by to fit the clip norm (`privacy.unit: site`).
    clip_factor: float = 1.0
    #: Spent so far, this round's upload with it; NaN where no unit is protected.
    epsilon: float = float("nan")
    #: Who is in the opened sum, and their weighted mean training loss if the scheme carries it.
    contributors: tuple[str, ...] = ()
    mean_train_loss: float = float("nan")
    #: Holder -> code of what was wrong with its answer to the last sum (`answers`).
    faulty_answers: Mapping[str, str] = field(default_factory=dict)
    wall_s: dict[str, float] = field(default_factory=dict)
