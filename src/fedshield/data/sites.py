"""Each site's training and held-out examples, tokenised once, everything counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedshield import interrupt
from fedshield.data.setup import DataSetup
from fedshield.data.split import Share, shares
from fedshield.errors import DataError
from fedshield.model.chat import Tokens, date_in, encode
from fedshield.plan.floors import too_few


@dataclass(frozen=True)
class SiteData:
    """One site's examples, and what became of every row that is not among them.

    `skipped_rows`: malformed, empty, with a control token, or refused by the chat template;
    `duplicate_rows`: training rows equal to a held-out row; `no_response_rows`: nothing of the
    answer is left within max_length; `truncated_rows`, `truncated_tokens`: cut at max_length.
    `notes`: what else of the source was not used or not as it stands, one sentence each.
    `records`: SHA-256 digests by which the raw records of `train` are known again (`data.records`),
    each once, sorted; up to two of one record. They are for the site's own memory: they are not
    keyed, and whoever has them can try texts. They are never written, logged or sent.
    `sources`: digest of what the source holds for the rows of `train`, in whatever order, 32
    bytes. It does not change with what a plan reads of them.

    A conversation is one example, but where the chat template rewrites earlier answers: then each
    of those is one too.
    """

    source: str
    train: tuple[Tokens, ...] = field(repr=False)
    heldout: tuple[Tokens, ...] = field(repr=False)
    skipped_rows: int
    first_skipped: str
    duplicate_rows: int
    no_response_rows: int
    truncated_rows: int
    truncated_tokens: int
    records: tuple[bytes, ...] = field(repr=False)
    sources: bytes = field(repr=False)
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Digest of the tokenised rows, in order: the same data again, or not."""
        digest = hashlib.sha256(b"fedshield site data 1")
        for part in (self.train, self.heldout):
            digest.update(len(part).to_bytes(8, "big"))
            for tokens in part:
                row = np.asarray([*tokens.input_ids, -1, *tokens.labels, -2], dtype="<i4")
                digest.update(row.tobytes())
        return digest.hexdigest()

    def train_digest(self) -> bytes:
        """Digest of the training rows as the model reads them, in whatever order, 32 bytes."""
        rows = (
            hashlib.sha256(
                np.asarray([*row.input_ids, -1, *row.labels], dtype="<i4").tobytes()
            ).digest()
            for row in self.train
        )
        return hashlib.sha256(b"fedshield training rows 1" + b"".join(sorted(rows))).digest()

    def counts(self) -> dict[str, int | str]:
        return {
            "source": self.source,
            "train_rows": len(self.train),
            "heldout_rows": len(self.heldout),
            "skipped_rows": self.skipped_rows,
            "first_skipped": self.first_skipped,
            "duplicate_rows": self.duplicate_rows,
            "no_response_rows": self.no_response_rows,
            "truncated_rows": self.truncated_rows,
            "truncated_tokens": self.truncated_tokens,
        }


def load_sites(
    setup: DataSetup,
    tokenizer: Any,
    say: Callable[[str], None] = lambda _: None,
    only: str | None = None,
) -> dict[str, SiteData]:
    """Every site's data, by name.

    Args:
        setup: which rows there are, and how they become examples.
        tokenizer: with its settled template.
        say: told of each site.
        only: the one site that is wanted. No other site's source is opened then, but for a
            pool's, which all sites share.

    Raises:
        DataError: a source cannot be read; or a site has fewer rows than the plan's sites have
            (rule R6), and is not to be trained on.
    """
    names = setup.data.site_names() if only is None else (only,)
    all_shares = shares(setup, tokenizer, names)
    sites: dict[str, SiteData] = {}
    for name in sorted(names):
        interrupt.check()
        say(f"tokenising {name}")
        sites[name] = tokenised(all_shares[name], tokenizer, setup.max_length)
        if why := too_few(setup.data, setup.min_rows, name, len(sites[name].train)):
            raise DataError(why)
    return sites


def tokenised(share: Share, tokenizer: Any, max_length: int) -> SiteData:
    """The site's examples, cut after `max_length` tokens. Raises `DataError` where none is left."""
    held = {example.row.said for example in share.heldout}
    train = [example for example in share.train if example.row.said not in held]
    if not train:
        raise DataError(
            f"{share.key}: expected training rows other than the held-out ones, got only equal "
            f"ones ({len(share.train)}); add rows"
        )
    parts: dict[str, tuple[Tokens, ...]] = {}
    lost = cut_rows = cut_tokens = 0
    records: set[bytes] = set()
    sources: list[bytes] = []
    for part, examples in (("train", train), ("heldout", share.heldout)):
        all_tokens: list[Tokens] = []
        for example in examples:
            texts = [encode(tokenizer, passage, max_length) for passage in example.passages]
            all_tokens += texts
            # Held-out rows are in no sum: what is measured on them stays at the site, and nothing
            # is chosen by it. A row of which no answer is left is in none either.
            if part == "train" and any(tokens.num_response for tokens in texts):
                records.update(example.row.records())
                # Not of the conversation: a plan's columns change that, at every site.
                sources.append(example.row.source_digest)
        kept = tuple(tokens for tokens in all_tokens if tokens.num_response)
        lost += len(all_tokens) - len(kept)
        cut_rows += sum(tokens.num_dropped > 0 for tokens in all_tokens)
        cut_tokens += sum(tokens.num_dropped for tokens in all_tokens)
        if not kept:
            raise DataError(
                f"{share.key}: expected {part} rows with an answer within "
                f"training.max_length {max_length}, got none of {len(all_tokens)}; raise max_length"
            )
        parts[part] = kept
    return SiteData(
        source=share.source,
        train=parts["train"],
        heldout=parts["heldout"],
        skipped_rows=share.skipped,
        first_skipped=share.first_skipped,
        duplicate_rows=len(share.train) - len(train),
        no_response_rows=lost,
        truncated_rows=cut_rows,
        truncated_tokens=cut_tokens,
        records=tuple(sorted(records)),
        sources=hashlib.sha256(b"fedshield sources 1" + b"".join(sorted(sources))).digest(),
        notes=(*share.notes, *_date_note(tokenizer), *_length_note(tokenizer, max_length)),
    )


def _length_note(tokenizer: Any, max_length: int) -> tuple[str, ...]:
    longest = tokenizer.model_max_length
    if longest >= max_length:
        return ()
    return (
        f"the tokenizer's longest text is {longest:,} tokens (model_max_length), less than "
        f"training.max_length {max_length:,}, which is what holds",
    )


def _date_note(tokenizer: Any) -> tuple[str, ...]:
    date = date_in(tokenizer)
    if date is None:
        return ()
    return (
        f"the chat template writes a date into every text: {date}, the day on which the run began, "
        "also when it is resumed",
    )
