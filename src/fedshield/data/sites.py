"""Each site's training and held-out examples: split, tokenised once, everything counted.

Splits: one source per site, whose last rows are held out; a pool dealt out evenly (IID); a pool
dealt out by a Dirichlet distribution over a label (Hsu et al., arXiv 1909.06335). All from the
plan's seed.

A row that spells one of the tokenizer's control tokens is a bad row: in the chat it would not be
text but a command, such as the end of a turn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedshield import interrupt
from fedshield.data.rows import Row, Rows, read
from fedshield.errors import DataError
from fedshield.model.chat import Tokens, tokenise
from fedshield.plan import Plan
from fedshield.plan_data import SourcePlan
from fedshield.seeds import derive

DIRICHLET_TRIES = 100


@dataclass(frozen=True)
class SiteData:
    """One site's examples, and what became of every row that is not among them.

    `skipped_rows`: malformed, empty or with a control token; `duplicate_rows`: training rows
    equal to a held-out row; `no_response_rows`: nothing of the answer is left within max_length;
    `truncated_rows`, `truncated_tokens`: cut at max_length. `notes`: what else of the source was
    not used or not as it stands, one sentence each.
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


@dataclass(frozen=True)
class _Share:
    key: str
    source: str
    train: Sequence[Row]
    heldout: Sequence[Row]
    skipped: int
    first_skipped: str


def load_sites(
    plan: Plan,
    tokenizer: Any,
    say: Callable[[str], None] = lambda _: None,
    only: str | None = None,
) -> dict[str, SiteData]:
    """Every site's data, by name, or that of one site: no other site's source is opened then,
    but for a pool's, which all sites share. Raises `DataError`."""
    marks = control_tokens(tokenizer)
    names = plan.data.site_names() if only is None else (only,)
    if plan.data.split == "by-site":
        shares = _by_site(plan, marks, names)
    else:
        shares = _pooled(plan, marks)
    sites: dict[str, SiteData] = {}
    for name in sorted(names):
        interrupt.check()
        say(f"tokenising {name}")
        sites[name] = _tokenised(plan, shares[name], tokenizer)
    return sites


# -- reading -------------------------------------------------------------------------------


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Finds any text that the tokenizer takes for one of its special tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = {*tokenizer.all_special_tokens, *added} - {""}
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _read(
    plan: Plan,
    source: str,
    settings: SourcePlan,
    key: str,
    marks: re.Pattern[str],
    label_column: str | None = None,
) -> Rows:
    """All rows of a source that are usable with this tokenizer. Raises `DataError`."""
    rule = plan.data.on_bad_row
    found = read(plan, source, settings, key=key, on_bad_row=rule, label_column=label_column)
    good: list[Row] = []
    skipped, first = found.skipped, found.first_skipped
    for row in found.rows:
        mark = next((hit for _, content in row.messages if (hit := marks.search(content))), None)
        if mark is None:
            good.append(row)
            continue
        bad = f"{row.where}: expected text without control tokens, got the tokenizer's {mark[0]}"
        if rule == "refuse":
            raise DataError(f"{bad}; mend the row, or set data.on_bad_row: skip")
        skipped += 1
        first = first or bad
    if not good:
        raise DataError(f"{key}: expected rows, got {skipped} unusable ones ({first}); mend them")
    return Rows(tuple(good), skipped, first)


# -- splitting -----------------------------------------------------------------------------


def _by_site(plan: Plan, marks: re.Pattern[str], names: Sequence[str]) -> dict[str, _Share]:
    shares: dict[str, _Share] = {}
    for name in names:
        settings = plan.data.sites[name]
        key = f"data.sites.{name}"
        found = _read(plan, settings.source, settings, f"{key}.source", marks)
        wanted = settings.heldout_rows or plan.data.heldout_rows
        if settings.heldout_source is not None:
            other = _read(plan, settings.heldout_source, settings, f"{key}.heldout_source", marks)
            train, heldout = found.rows, other.rows[:wanted]
            skipped, first = (
                found.skipped + other.skipped,
                found.first_skipped or other.first_skipped,
            )
        else:
            _enough(len(found.rows), wanted, key)
            train, heldout = found.rows[:-wanted], found.rows[-wanted:]
            skipped, first = found.skipped, found.first_skipped
        shares[name] = _Share(key, settings.source, train[: settings.rows], heldout, skipped, first)
    return shares


def _pooled(plan: Plan, marks: re.Pattern[str]) -> dict[str, _Share]:
    data = plan.data
    found: list[Rows] = [
        _read(
            plan,
            settings.source,
            settings,
            f"data.pool.{index}.source",
            marks,
            label_column=data.dirichlet_column,
        )
        for index, settings in enumerate(data.pool)
    ]
    rows = [
        row
        for settings, part in zip(data.pool, found, strict=True)
        for row in part.rows[: settings.rows]
    ]
    generator = np.random.Generator(np.random.Philox(derive(plan.seed, "split", data.split)))
    order = generator.permutation(len(rows))
    rows = [rows[index] for index in order]
    names = data.site_names()
    _enough(len(rows) // len(names), data.heldout_rows, "data.pool (for each site)")
    if data.split == "iid":
        dealt = [rows[place :: len(names)] for place in range(len(names))]
    else:
        dealt = _dirichlet(rows, len(names), data.dirichlet_alpha, data.heldout_rows, generator)
    source = ", ".join(settings.source for settings in data.pool)
    skipped = sum(part.skipped for part in found)
    first = next((part.first_skipped for part in found if part.first_skipped), "")
    return {
        name: _Share(
            f"data.pool ({name})",
            f"{source} ({data.split} {place + 1} of {len(names)})",
            mine[: -data.heldout_rows],
            mine[-data.heldout_rows :],
            # Skipped rows belong to the pool: they are counted once, with the first site.
            skipped if place == 0 else 0,
            first if place == 0 else "",
        )
        for place, (name, mine) in enumerate(zip(names, dealt, strict=True))
    }


def _dirichlet(
    rows: list[Row], num_sites: int, alpha: float, heldout: int, generator: np.random.Generator
) -> list[list[Row]]:
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    for _ in range(DIRICHLET_TRIES):
        dealt: list[list[Row]] = [[] for _ in range(num_sites)]
        for label in sorted(by_label):
            mine = by_label[label]
            cuts = np.cumsum(generator.dirichlet([alpha] * num_sites))[:-1]
            bounds = [0, *(int(cut * len(mine)) for cut in cuts), len(mine)]
            for site in range(num_sites):
                dealt[site] += mine[bounds[site] : bounds[site + 1]]
        if min(len(part) for part in dealt) > heldout:
            for part in dealt:
                generator.shuffle(part)
            return dealt
    raise DataError(
        f"data.dirichlet_alpha: expected a split that leaves every site more than {heldout} rows, "
        f"found none in {DIRICHLET_TRIES} tries with {alpha}; raise it, or lower data.heldout_rows"
    )


def _enough(available: int, heldout: int, key: str) -> None:
    if available <= heldout:
        raise DataError(
            f"{key}: expected more than {heldout} rows ({heldout} are held out), got {available}; "
            "add rows or lower data.heldout_rows"
        )


# -- tokenising ----------------------------------------------------------------------------


def _tokenised(plan: Plan, share: _Share, tokenizer: Any) -> SiteData:
    held = {row.messages for row in share.heldout}
    train = [row for row in share.train if row.messages not in held]
    if not train:
        raise DataError(
            f"{share.key}: expected training rows other than the held-out ones, got only equal "
            f"ones ({len(share.train)}); add rows"
        )
    max_length = plan.training.max_length
    parts: dict[str, tuple[Tokens, ...]] = {}
    lost = cut_rows = cut_tokens = 0
    for part, rows in (("train", train), ("heldout", share.heldout)):
        all_tokens = [tokenise(tokenizer, row.as_messages(), max_length) for row in rows]
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
    )
