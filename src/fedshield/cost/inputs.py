"""What the plan's data files say before a run: whether they are there, how many rows and how long.

Files of moderate size are read by the reader of the run itself, without a tokenizer: lengths are in
characters. Larger ones, and sets of the hub, are looked for and not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedshield.data import samples
from fedshield.data.files import is_data_file
from fedshield.data.remarks import Remarks
from fedshield.data.rows import Rows, read
from fedshield.errors import CryptoError, DataError
from fedshield.model.shapes import ModelShape
from fedshield.plan.data import SourcePlan
from fedshield.plan.floors import cap_note, counted, floor, too_few
from fedshield.plan.schema import Plan
from fedshield.site.schemes import parameters_of

#: Bytes of a file beyond which it is not read before a run.
LARGEST_READ = 8_000_000
#: A row may still be dropped as equal to a held-out one, or for an answer that is cut off: a
#: weight that is within this share of enough is left to the run, which knows it exactly.
_WEIGHT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Inputs:
    """`problems`: what would stop a run, a line each; `notes`: what was not looked at; `rows`:
    training rows of each site, None where not known; `lengths`: characters of the rows that were
    read, of all sites; `all_read`: whether every source was."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    rows: Mapping[str, int | None]
    lengths: tuple[int, ...]
    all_read: bool


def look(plan: Plan, *, elsewhere: bool = False) -> Inputs:
    """`elsewhere`: the data are at the sites, so that a file that is not here is no problem."""
    problems: list[str] = []
    notes: list[str] = []
    lengths: list[int] = []
    counts: dict[str, int | None] = {}
    for key, settings, source in _sources(plan):
        rows: Rows | None = None
        try:
            rows = _rows(plan, key, settings, source, elsewhere, notes)
        except DataError as error:
            problems.append(str(error))
        counts[key] = None if rows is None else len(rows.rows)
        if rows is not None:
            kept = rows.rows if settings.rows is None else rows.rows[: settings.rows]
            lengths += [sum(len(turn.content) for turn in row.turns) for row in kept]
    rows_of_sites, all_read = _site_rows(plan, counts), None not in counts.values()
    return Inputs(tuple(problems), tuple(notes), rows_of_sites, tuple(lengths), all_read)


def weight_problem(plan: Plan, rows: Mapping[str, int | None]) -> str | None:
    """Why the bits are too few for the sites' weights, which are their shares of all training rows;
    None where they suffice, or where a site's rows are not known."""
    if not plan.scheme.traits.one_time_keys or plan.scheme.weights == "equal":
        return None
    known = {name: counted(plan, count) for name, count in rows.items() if count is not None}
    total = sum(known.values())
    if len(known) < len(rows) or not total:
        return None
    packing = parameters_of(plan)
    smallest = min(known, key=lambda name: (known[name], name))
    try:
        packing.site_limit(known[smallest] / total * (1 + _WEIGHT_TOLERANCE))
    except CryptoError as error:
        return (
            f"encoding.bits: {smallest} counts for {known[smallest]} of {total} training rows; "
            f"{error}, or scheme.weights: equal"
        )
    return None


def floor_problems(plan: Plan, rows: Mapping[str, int | None]) -> list[str]:
    """Why sites have too few rows for rule R6, a line each. `rows`: at most so many; a run may drop
    some."""
    least = floor(plan)
    found = (
        too_few(plan.data, least, name, count) for name, count in rows.items() if count is not None
    )
    return [problem for problem in found if problem is not None]


def cap_notes(plan: Plan, rows: Mapping[str, int | None]) -> list[str]:
    """Whose rows count for less than they are, a line each."""
    found = (cap_note(plan, name, count) for name, count in rows.items() if count is not None)
    return [note for note in found if note is not None]


def length_problem(plan: Plan, shape: ModelShape) -> str | None:
    """Why the model cannot read rows as long as the plan's; None where it can."""
    longest = shape.max_positions
    if longest is None or plan.training.max_length <= longest:
        return None
    return (
        f"training.max_length: expected at most what {plan.model.name} reads ({longest} "
        f"tokens), got {plan.training.max_length}; lower it"
    )


def _sources(plan: Plan) -> Iterator[tuple[str, SourcePlan, str]]:
    """The plan's key, the settings and the source, held-out ones too."""
    for name, settings in plan.data.sites.items():
        yield f"data.sites.{name}.source", settings, settings.source
        if settings.heldout_source is not None:
            yield f"data.sites.{name}.heldout_source", settings, settings.heldout_source
    for index, settings in enumerate(plan.data.pool):
        yield f"data.pool.{index}.source", settings, settings.source


def _rows(
    plan: Plan, key: str, settings: SourcePlan, source: str, elsewhere: bool, notes: list[str]
) -> Rows | None:
    """None for what is not read, with a note why. Raises `DataError`."""
    if source.startswith("hub:"):
        notes.append(f"{key}: {source} is not looked for before a run")
        return None
    if not source.startswith("sample:"):
        path = plan.resolve(source)
        if elsewhere and not path.exists():
            notes.append(f"{key}: {source} is not here; the site checks its own")
            return None
        if path.is_file() and is_data_file(path) and path.stat().st_size > LARGEST_READ:
            notes.append(f"{key}: {source} is there and too large to be read before a run")
            return None
    remarks = Remarks(refuse=plan.data.unused == "refuse")
    rows = read(
        plan.base_dir,
        source,
        settings,
        key=key,
        on_bad_row="skip",
        label_column=plan.data.dirichlet_column,
        remarks=remarks,
    )
    if rows.skipped:
        # All are looked at, so that the length of the file is known; a run would stop at the first.
        if plan.data.on_bad_row == "refuse":
            raise DataError(
                f"{rows.first_skipped} ({rows.skipped:,} such rows); mend the row, or set "
                "data.on_bad_row: skip"
            )
        notes.append(
            f"{key}: bad rows left out (on_bad_row: skip): {rows.skipped:,}, the first "
            f"{rows.first_skipped}"
        )
    if not source.startswith("sample:"):  # whose columns every installation knows
        notes += [f"{key}: {sentence}" for sentence in remarks.sentences()]
    return rows


def _site_rows(plan: Plan, counts: Mapping[str, int | None]) -> dict[str, int | None]:
    names = plan.data.site_names()
    if plan.data.split != "by-site":
        parts = [
            _first(counts[f"data.pool.{index}.source"], settings.rows)
            for index, settings in enumerate(plan.data.pool)
        ]
        if plan.data.split == "dirichlet" or None in parts:
            return dict.fromkeys(names)
        total = sum(part for part in parts if part is not None)
        share = max(0, total // len(names) - plan.data.heldout_rows)
        return dict.fromkeys(names, share)
    rows: dict[str, int | None] = {}
    for name in names:
        settings = plan.data.sites[name]
        count = counts[f"data.sites.{name}.source"]
        if count is not None and settings.heldout_source is None:
            count = max(0, count - (settings.heldout_rows or plan.data.heldout_rows))
        rows[name] = _first(count, settings.rows)
    return rows


def _first(count: int | None, wanted: int | None) -> int | None:
    return count if count is None or wanted is None else min(count, wanted)


def check_samples(plan: Plan) -> None:
    """A misspelt sample is known without any data. Raises `DataError`."""
    for _, _, source in _sources(plan):
        if source.startswith("sample:"):
            samples.path(source.removeprefix("sample:"))
