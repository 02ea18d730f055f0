"""Reading a run folder: the files that a report is made from, checked for their outer shape.

What a run did not record stays absent; nothing is guessed. Rows of rounds that were never completed
are counted and left out, and the last line of a metrics file cut short by a kill is no error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedshield.errors import RunFolderError
from fedshield.report import units

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What was read from a run folder. `metrics` holds completed rounds only, one row a site."""

    summary: Row
    metrics: tuple[Row, ...]
    unfinished_rows: int
    plan_text: str
    answers: tuple[Row, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(str(site) for site in sequence(self.summary.get("sites")))

    @property
    def rounds(self) -> int:
        return int(units.number(self.summary.get("rounds")) or 0)

    @property
    def planned(self) -> int:
        return int(units.number(self.summary.get("rounds_planned")) or self.rounds)

    @property
    def round_numbers(self) -> list[int]:
        """The completed rounds that have metrics."""
        return sorted({int(row["round"]) for row in self.metrics})

    def at(self, number: int) -> list[Row]:
        """The rows of one round."""
        return [row for row in self.metrics if int(row["round"]) == number]


def read_run(run_dir: Path) -> Run:
    """The files of a run folder, checked for their outer shape."""
    summary = _parse(_text(run_dir / "summary.json"), "summary.json")
    if not isinstance(summary, dict):
        raise RunFolderError("summary.json: expected one object; write the run's summary again")
    answers_path = run_dir / "answers.json"
    answers = _parse(_text(answers_path), "answers.json") if answers_path.is_file() else []
    if not isinstance(answers, list):
        raise RunFolderError("answers.json: expected a list; run `fedshield generate` again")
    rounds = units.number(summary.get("rounds")) or 0
    done: dict[tuple[int, str], Row] = {}
    unfinished = 0
    for row in _metrics(_text(run_dir / "metrics.jsonl")):
        number = units.number(row.get("round"))
        if number is None or not 1 <= number <= rounds:
            unfinished += 1
        else:
            # A round that was repeated after a restart has two rows: the later one counts.
            done[int(number), str(row.get("site"))] = row
    return Run(
        summary=summary,
        metrics=tuple(done[key] for key in sorted(done)),
        unfinished_rows=unfinished,
        plan_text=_text(run_dir / "plan.yaml"),
        answers=tuple(answer for answer in answers if isinstance(answer, dict)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFolderError(
            f"{path.name}: not found; a report needs the folder of a run that wrote it"
        ) from None
    except UnicodeDecodeError:
        raise RunFolderError(f"{path.name}: expected UTF-8 text; restore the file") from None


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunFolderError(
            f"{name}: expected JSON, line {error.lineno} is not; restore the file"
        ) from None


def _metrics(text: str) -> list[Row]:
    """The rows of metrics.jsonl. A last line cut short by a kill is left out."""
    rows: list[Row] = []
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if index == len(lines) - 1:
                break
            raise RunFolderError(
                f"metrics.jsonl: expected one JSON object a line, line {index + 1} is not; "
                "restore the file"
            ) from None
        if isinstance(row, dict):
            rows.append(row)
    return rows


def mapping(value: Any) -> Row:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def words(value: Any) -> str:
    """A text value, or words for a missing one."""
    return units.ABSENT if value is None or value == "" else str(value)


def mean_of(values: Iterable[Any]) -> float:
    """The plain mean, NaN unless every value is a finite number."""
    numbers = [units.number(value) for value in values]
    known = [value for value in numbers if value is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else math.nan


def total_of(values: Iterable[Any]) -> float | None:
    """The sum, None unless every value is a finite number and there is one."""
    numbers = [units.number(value) for value in values]
    known = [value for value in numbers if value is not None]
    return sum(known) if known and len(known) == len(numbers) else None
