"""Which rows each site trains on, and which it holds out.

Splits: one source per site, whose last rows are held out; a pool dealt out evenly (IID); a pool
dealt out by a Dirichlet distribution over a label (Hsu et al., arXiv 1909.06335). All from the
plan's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedshield.data.remarks import Remarks
from fedshield.data.rows import Rows, read, skip_or_refuse
from fedshield.data.setup import DataSetup
from fedshield.data.text_files import BadRow
from fedshield.data.usable import Example, Reader
from fedshield.errors import DataError
from fedshield.plan.data import SourcePlan
from fedshield.seeds import derive

DIRICHLET_TRIES = 100


@dataclass(frozen=True)
class Share:
    """One site's rows. `key`: of its source, for errors; `notes`: what of it is not used."""

    key: str
    source: str
    train: Sequence[Example]
    heldout: Sequence[Example]
    skipped: int
    first_skipped: str
    notes: tuple[str, ...]


class _Source:
    """Rows of one source, each looked at with the tokenizer when it is first asked for."""

    def __init__(
        self, rows: Rows, reader: Reader, on_bad_row: Literal["refuse", "skip"], key: str
    ) -> None:
        self.rows = rows.rows
        self._reader = reader
        self._rule = on_bad_row
        self._key = key
        self._skipped = rows.skipped
        self._first = rows.first_skipped
        self._examples: dict[int, Example | None] = {}
        self._bad: dict[int, str] = {}

    def example(self, place: int) -> Example | None:
        """The row there; None if it is unusable and skipped. Raises `DataError`."""
        if place not in self._examples:
            row, example = self.rows[place], None
            try:
                example = self._reader.example(row)
            except BadRow as bad:
                skip_or_refuse(row.where, bad, self._rule)
                self._bad[place] = f"{row.where}: {bad}"
            self._examples[place] = example
        return self._examples[place]

    def first(self, limit: int | None) -> dict[int, Example]:
        """The first `limit` usable rows (None: all), by place. Raises `DataError` for none."""
        return self._usable(range(len(self.rows)), limit)

    def last(self, limit: int) -> dict[int, Example]:
        """The last `limit` usable rows, by place in order."""
        return dict(sorted(self._usable(reversed(range(len(self.rows))), limit).items()))

    def _usable(self, places: Any, limit: int | None) -> dict[int, Example]:
        usable: dict[int, Example] = {}
        for place in places:
            if (example := self.example(place)) is not None:
                usable[place] = example
            if len(usable) == limit:
                break
        if not usable:
            raise DataError(
                f"{self._key}: expected rows, got {self.skipped} unusable ones "
                f"({self.first_skipped}); mend them"
            )
        return usable

    @property
    def skipped(self) -> int:
        return self._skipped + len(self._bad)

    @property
    def first_skipped(self) -> str:
        return self._first or (self._bad[min(self._bad)] if self._bad else "")


def shares(setup: DataSetup, tokenizer: Any, names: Sequence[str]) -> Mapping[str, Share]:
    """The rows of sites, by name.

    Args:
        setup: which rows there are, and how they become examples.
        tokenizer: with its settled template.
        names: of the sites that are wanted. Of a pool, which is read whole, all sites' are given.

    Raises:
        DataError: a source cannot be read, or has too few rows that can be used.
    """
    if setup.data.split == "by-site":
        return {name: _own(setup, tokenizer, name) for name in names}
    return _pooled(setup, tokenizer, min(names))


def _source(
    setup: DataSetup,
    source: str,
    settings: SourcePlan,
    key: str,
    reader: Reader,
    remarks: Remarks,
) -> _Source:
    rows = read(
        setup.base_dir,
        source,
        settings,
        key=key,
        on_bad_row=setup.data.on_bad_row,
        label_column=setup.data.dirichlet_column,
        remarks=remarks,
    )
    return _Source(rows, reader, setup.data.on_bad_row, key)


def _reader(setup: DataSetup, tokenizer: Any) -> tuple[Reader, Remarks]:
    remarks = Remarks(refuse=setup.data.unused == "refuse")
    return Reader(tokenizer, remarks, last_only=setup.one_text_a_row), remarks


# -- one source per site -------------------------------------------------------------------


def _own(setup: DataSetup, tokenizer: Any, name: str) -> Share:
    settings, key = setup.data.sites[name], f"data.sites.{name}"
    reader, remarks = _reader(setup, tokenizer)
    own = _source(setup, settings.source, settings, f"{key}.source", reader, remarks)
    wanted = settings.heldout_rows or setup.data.heldout_rows
    sources = [own]
    if settings.heldout_source is None:
        first = own.first(settings.rows)
        _enough(len(own.rows), wanted, key, sources)
        heldout = own.last(wanted)
        end = min(heldout)
    else:
        theirs = _source(
            setup, settings.heldout_source, settings, f"{key}.heldout_source", reader, remarks
        )
        sources.append(theirs)
        first, heldout, end = own.first(settings.rows), theirs.first(wanted), len(own.rows)
        _tell_heldout(len(heldout), wanted, len(theirs.rows), max(heldout) + 1, remarks)
    train = {place: example for place, example in first.items() if place < end}
    if not train:
        _enough(len(heldout), wanted, key, sources)
    further = end - max(train) - 1
    if settings.rows is not None and len(train) < settings.rows:
        remarks.say(
            f"{len(train):,} rows are there to train on, fewer than {key}.rows {settings.rows:,}"
        )
    elif settings.rows is not None and further:
        remarks.say(
            f"the first {len(train):,} rows are used, {further:,} further ones are not ({key}.rows)"
        )
    return Share(
        key,
        settings.source,
        tuple(train.values()),
        tuple(heldout.values()),
        sum(source.skipped for source in sources),
        next((source.first_skipped for source in sources if source.first_skipped), ""),
        remarks.sentences(),
    )


def _tell_heldout(used: int, wanted: int, rows: int, seen: int, remarks: Remarks) -> None:
    if rows > seen:
        remarks.say(
            f"the first {used:,} rows of heldout_source are used, {rows - seen:,} further ones "
            "are not (heldout_rows)"
        )
    elif used < wanted:
        remarks.say(f"heldout_source has {used:,} usable rows, fewer than heldout_rows {wanted:,}")


# -- dealing out a pool --------------------------------------------------------------------


def _pooled(setup: DataSetup, tokenizer: Any, told: str) -> dict[str, Share]:
    """Every site's share. `told`: the site with which is told what belongs to the pool."""
    data = setup.data
    reader, remarks = _reader(setup, tokenizer)
    sources: list[_Source] = []
    rows: list[Example] = []
    for index, settings in enumerate(data.pool):
        key = f"data.pool.{index}"
        source = _source(setup, settings.source, settings, f"{key}.source", reader, remarks)
        first = source.first(settings.rows)
        further = len(source.rows) - max(first) - 1
        if settings.rows is not None and len(first) < settings.rows:
            remarks.say(
                f"{settings.source} has {len(first):,} usable rows, fewer than {key}.rows "
                f"{settings.rows:,}"
            )
        elif settings.rows is not None and further:
            remarks.say(
                f"the first {len(first):,} rows of {settings.source} are used, {further:,} "
                f"further ones are not ({key}.rows)"
            )
        sources.append(source)
        rows += first.values()
    generator = np.random.Generator(np.random.Philox(derive(setup.seed, "split", data.split)))
    order = generator.permutation(len(rows))
    rows = [rows[index] for index in order]
    names = data.site_names()
    _enough(len(rows) // len(names), data.heldout_rows, "data.pool (for each site)", sources)
    if data.split == "iid":
        dealt = [rows[place :: len(names)] for place in range(len(names))]
    else:
        dealt = _dirichlet(rows, len(names), data.dirichlet_alpha, data.heldout_rows, generator)
    shown = ", ".join(settings.source for settings in data.pool)
    skipped = sum(source.skipped for source in sources)
    first_skipped = next((one.first_skipped for one in sources if one.first_skipped), "")
    return {
        name: Share(
            f"data.pool ({name})",
            f"{shown} ({data.split} {place + 1} of {len(names)})",
            mine[: -data.heldout_rows],
            mine[-data.heldout_rows :],
            # What is skipped or not used belongs to the pool: it is told once.
            skipped if name == told else 0,
            first_skipped if name == told else "",
            remarks.sentences() if name == told else (),
        )
        for place, (name, mine) in enumerate(zip(names, dealt, strict=True))
    }


def _dirichlet(
    rows: list[Example], num_sites: int, alpha: float, heldout: int, generator: np.random.Generator
) -> list[list[Example]]:
    by_label: dict[str, list[Example]] = {}
    for example in rows:
        by_label.setdefault(example.row.label, []).append(example)
    for _ in range(DIRICHLET_TRIES):
        dealt: list[list[Example]] = [[] for _ in range(num_sites)]
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


def _enough(available: int, heldout: int, key: str, sources: Sequence[_Source]) -> None:
    if available <= heldout:
        skipped = sum(source.skipped for source in sources)
        first = next((source.first_skipped for source in sources if source.first_skipped), "")
        raise DataError(
            f"{key}: expected more than {heldout} rows ({heldout} are held out), got {available}"
            + (f" and {skipped} unusable ones ({first}); mend them," if skipped else ";")
            + " add rows or lower data.heldout_rows"
        )
