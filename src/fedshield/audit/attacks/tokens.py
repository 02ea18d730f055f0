"""Tokens of the training text from one update.

Two readings of the same mixtures (`dictionary.py`):

- `span`: how much of a token's vector lies in the row space of the update. DAGER's check (Petrov et
  al., arXiv 2405.15586), exact while the batch has fewer different tokens than the update has
  dimensions (rank times the number of q, k and v layers), a score beyond.
- `pursue`: with more tokens than dimensions the right tokens are still the sparse explanation of
  all rows at once. Found greedily, each next token by its part in the space of what is left over,
  orthogonal to those found: rank-aware order recursive matching pursuit (Davies and Eldar, IEEE
  Trans. Information Theory 2012, arXiv 1004.4529), which begins as the span check.

An optimiser that is not linear in the gradient (AdamW) leaves the rows near that space only:
measured in docs/audit.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedshield.audit.attacks.dictionary import Mixture
from fedshield.types import Float32, Float64

#: Singular values below this, of the largest, are float32's noise.
RANK_TOLERANCE = 1e-4
#: A pursuit ends when so little of the rows is left over, in the mean square of all.
LEFT_OVER = 1e-8
#: With less than this left over the tokens found explain the update: what remains is rounding.
EXPLAINED = 1e-4
#: Tokens that are looked at between two looks at all of them, and turns between those.
SCREEN, REFRESH = 6000, 24
#: An atom of which less than this is left after the others is theirs already.
_SPENT = 1e-3


@dataclass(frozen=True, eq=False)
class Recovered:
    """`tokens`: the attack's answer, surest first; `scores`: float64, (vocabulary,), how far each
    token looks to be in the text; `complete`: whether those tokens explain the whole update, so
    that the attack knows its own success; `dimensions`: of the space that was looked into;
    `left`: the share of the update, in the mean square, that they do not explain."""

    tokens: tuple[int, ...]
    scores: Float64 = field(repr=False)
    complete: bool
    dimensions: int
    left: float = 1.0


def recover(mixtures: Sequence[Mixture], most: int) -> Recovered:
    """Tokens of the text behind an update; at most `most` of them (an attacker knows the batch
    size and the longest row from the plan). No mixture, no token."""
    if not mixtures:
        return Recovered((), np.zeros(0), False, 0)
    spaces = [_space(mixture.rows) for mixture in mixtures]
    dimensions = sum(len(space) for space in spaces)
    if all(len(s) == m.atoms.shape[1] for s, m in zip(spaces, mixtures, strict=True)):
        # The rows span everything: all that is left is which directions they favour.
        scores = np.mean([_energy(mixture) for mixture in mixtures], axis=0)
        best = np.argsort(-scores, kind="stable")[:most]
        return Recovered(tuple(best.tolist()), scores, False, dimensions)
    scores = np.mean(
        [_inside(space, mixture) for space, mixture in zip(spaces, mixtures, strict=True)], axis=0
    )
    found, left = pursue(mixtures, most)
    # What was pursued comes first, in that order; the rest by the span alone (at most 1).
    scores[list(found)] = 2.0 - np.arange(len(found)) / (len(found) + 1)
    return Recovered(found, scores, left < EXPLAINED, dimensions, left)


def pursue(mixtures: Sequence[Mixture], most: int) -> tuple[tuple[int, ...], float]:
    """The tokens that explain the rows of all mixtures together, in the order found, and the share
    of the rows that is left over: 1 where anything would have explained them."""
    searches = [_Search.begin(mixture) for mixture in mixtures]
    found: list[int] = []
    screened = np.arange(mixtures[0].atoms.shape[0])
    for turn in range(most):
        alive = [search for search in searches if not search.done]
        if not alive:
            break
        if turn % REFRESH == 0:
            # All tokens from time to time, in between only those that look likeliest: a vocabulary
            # is long, and tokens of the text rank high from the beginning.
            everything = np.arange(mixtures[0].atoms.shape[0])
            score = np.mean([search.scores(everything) for search in alive], axis=0)
            screened = np.argsort(-score, kind="stable")[:SCREEN]
        score = np.mean([search.scores(screened) for search in alive], axis=0)
        score[np.isin(screened, found)] = -1.0
        token = int(screened[score.argmax()])
        if score.max() < np.mean([search.rest.unrelated() for search in alive]):
            break
        found.append(token)
        for search in searches:
            search.explain(token)
    # As many atoms as dimensions explain anything.
    few = len(found) < min(mixture.atoms.shape[1] for mixture in mixtures)
    return tuple(found), max(search.left for search in searches) if few else 1.0


@dataclass(frozen=True, eq=False)
class Remainder:
    """What is left over of rows once some vectors are taken out of them.

    `rows`: float64, (k, width); `used`: float64, (number, width), an orthonormal basis of those
    vectors; `top`: the largest singular value that the rows had, against which noise is told.
    """

    rows: Float64 = field(repr=False)
    used: Float64 = field(repr=False)
    top: float

    @classmethod
    def of(cls, rows: Float64) -> Remainder:
        return cls(rows, np.zeros((0, rows.shape[1])), float(np.linalg.norm(rows, 2)))

    @cached_property
    def space(self) -> Float64:
        """An orthonormal basis, (dimensions, width), of what the rows still span."""
        return _space(self.rows, self.top)

    def share(self, vectors: Float32, norms: Float64 | None = None) -> Float64:
        """Of each vector's part that is not used yet, the share within the space: (number,).
        `norms`: the vectors' squared lengths, where they are known."""
        if norms is None:
            norms = np.square(vectors).sum(axis=1).astype(np.float64)
        part = np.square(vectors @ self.space.astype(np.float32).T).sum(axis=1)
        spent = np.square(vectors @ self.used.T.astype(np.float32)).sum(axis=1)
        share: Float64 = part.astype(np.float64) / np.maximum(norms - spent, _SPENT * norms)
        return share

    def without(self, vector: Float64) -> Remainder:
        """A vector's direction taken out; the same where nothing of it was left."""
        rest = vector - self.used.T @ (self.used @ vector)
        size = float(np.linalg.norm(rest))
        if size * size <= 1e-9 * float(vector @ vector):
            return self
        rest /= size
        rows = self.rows - np.outer(self.rows @ rest, rest)
        return Remainder(rows, np.vstack([self.used, rest]), self.top)

    def unrelated(self) -> float:
        """A share that vectors with nothing to do with the rows do not reach: five deviations over
        the mean share of a random direction in the space, but never more than a half."""
        size: int = self.rows.shape[1] - len(self.used)
        inside = min(len(self.space), size)
        mean = inside / size
        return min(0.5, mean + 5 * math.sqrt(2 * mean * (1 - mean) / (size + 2)))


@dataclass(eq=False)
class _Search:
    """One mixture's pursuit."""

    mixture: Mixture
    rest: Remainder
    norms: Float64

    @classmethod
    def begin(cls, mixture: Mixture) -> _Search:
        norms = np.square(mixture.atoms).sum(axis=1).astype(np.float64)
        return cls(mixture, Remainder.of(mixture.rows), norms)

    @property
    def left(self) -> float:
        """The share of the rows, in the mean square, that is left over."""
        return float(np.square(self.rest.rows).sum() / np.square(self.mixture.rows).sum())

    @property
    def done(self) -> bool:
        """Nothing is left over above the noise."""
        return self.left <= LEFT_OVER or not len(self.rest.space)

    def scores(self, places: NDArray[np.intp]) -> Float64:
        return self.rest.share(self.mixture.atoms[places], self.norms[places])

    def explain(self, token: int) -> None:
        """Take an atom's direction out of what is left over."""
        self.rest = self.rest.without(self.mixture.atoms[token].astype(np.float64))


def _space(rows: Float64, top: float | None = None) -> Float64:
    """An orthonormal basis, (dimensions, width), of what the rows span above the noise."""
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    least = RANK_TOLERANCE * (values[0] if top is None else top)
    kept: Float64 = basis[values > max(least, 0.0)]
    return kept


def _inside(space: Float64, mixture: Mixture) -> Float64:
    """The share of each atom that lies in the space."""
    part = np.square(mixture.atoms @ space.T.astype(np.float32)).sum(axis=1)
    share: Float64 = part.astype(np.float64) / np.square(mixture.atoms).sum(axis=1)
    return share


def _energy(mixture: Mixture) -> Float64:
    """How much of the rows each atom's direction, away from the mean of all, holds."""
    away = mixture.atoms - mixture.atoms.mean(axis=0)
    part = np.square(away @ mixture.rows.T.astype(np.float32)).sum(axis=1)
    share: Float64 = part.astype(np.float64) / np.square(away).sum(axis=1)
    return share / float(np.square(mixture.rows).sum())


# -- how much of a text that is --------------------------------------------------------------


def rouge(wanted: Sequence[int], got: Sequence[int], size: int) -> float:
    """ROUGE-N recall (Lin, 2004) over tokens: the share of the wanted text's runs of `size`
    tokens, counted with repeats, that are in what was recovered. 0 for texts without any."""
    runs = [
        Counter(tuple(text[at : at + size]) for at in range(len(text) - size + 1))
        for text in (wanted, got)
    ]
    total = runs[0].total()
    return (runs[0] & runs[1]).total() / total if total else 0.0
