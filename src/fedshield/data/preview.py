"""Rows of a site as the model will see them: the text, its tokens, what has loss, what is cut."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fedshield.data.setup import DataSetup
from fedshield.data.sites import SiteData, tokenised
from fedshield.data.split import shares
from fedshield.errors import DataError
from fedshield.model.chat import Passage, Tokens, encode

#: More than any row has, so that a row is tokenised whole.
_WHOLE = 2**31


@dataclass(frozen=True)
class Piece:
    """Text of neighbouring tokens that are alike: `loss`, whether the model learns to write it;
    `cut`, whether it lies beyond max_length and is not seen at all."""

    text: str
    loss: bool
    cut: bool


@dataclass(frozen=True)
class ShownRow:
    """One text that is trained on (or measured on). `where`: file and line of its row."""

    where: str
    part: str
    tokens: int
    tokens_with_loss: int
    tokens_cut: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Preview:
    """A site's data, and its first rows in full. Lengths are in tokens, before the cut."""

    data: SiteData
    tokens: int
    tokens_with_loss: int
    median_length: int
    longest: int
    max_length: int
    rows: tuple[ShownRow, ...]


def preview(setup: DataSetup, tokenizer: Any, site: str, num_rows: int) -> Preview:
    """The site's data as `load_sites` gives them, and some rows in full.

    Args:
        setup: which rows there are, and how they become examples.
        tokenizer: with its settled template.
        site: whose rows.
        num_rows: training rows that are shown, the first ones; with any, a held-out one too.

    Raises:
        DataError: there is no such site, or its data cannot be read.
    """
    names, max_length = setup.data.site_names(), setup.max_length
    if site not in names:
        raise DataError(f"--site: expected one of {', '.join(names)}, got {site!r}")
    share = shares(setup, tokenizer, (site,))[site]
    data = tokenised(share, tokenizer, max_length)
    used = [*data.train, *data.heldout]
    lengths = [len(tokens.input_ids) + tokens.num_dropped for tokens in used]
    held = {example.row.said for example in share.heldout}
    train = [example for example in share.train if example.row.said not in held]
    rows = [
        _shown(tokenizer, passage, example.row.where, part, max_length)
        for part, examples in (
            ("train", train[:num_rows]),
            ("heldout", share.heldout[: min(num_rows, 1)]),
        )
        for example in examples
        for passage in example.passages
    ]
    return Preview(
        data,
        tokens=sum(len(tokens.input_ids) for tokens in used),
        tokens_with_loss=sum(tokens.num_response for tokens in used),
        median_length=int(statistics.median_high(lengths)),
        longest=max(lengths),
        max_length=max_length,
        rows=tuple(rows),
    )


def _shown(tokenizer: Any, passage: Passage, where: str, part: str, max_length: int) -> ShownRow:
    whole = encode(tokenizer, passage, _WHOLE)
    seen = whole.labels[:max_length]
    return ShownRow(
        where,
        part,
        tokens=len(seen),
        tokens_with_loss=sum(label != -100 for label in seen),
        tokens_cut=max(0, len(whole.input_ids) - max_length),
        pieces=_pieces(tokenizer, passage.text, whole, max_length),
    )


def _pieces(tokenizer: Any, text: str, whole: Tokens, max_length: int) -> tuple[Piece, ...]:
    """The text cut where tokens change their kind. A token's text is what the tokenizer says that
    it stands for, so that the pieces together are the text."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends: Sequence[tuple[int, int]] = encoded["offset_mapping"]
    kinds = [(label != -100, place >= max_length) for place, label in enumerate(whole.labels)]
    pieces: list[Piece] = []
    begin = 0
    for (loss, cut), group in groupby(range(len(kinds)), key=lambda place: kinds[place]):
        end = max(ends[place][1] for place in group)
        if end > begin:
            pieces.append(Piece(text[begin:end], loss, cut))
            begin = end
    return tuple(pieces)
