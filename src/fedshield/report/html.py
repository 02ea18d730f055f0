"""The run folder in, one self-contained `report.html` out.

The page is a function of the run folder alone: no clock, no network, no path of this machine, so
writing it twice gives the same bytes. Three steps: read the files, prepare the view (every number
already in words), render. What a run did not record says so; nothing is guessed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedshield.errors import RunFolderError
from fedshield.report import figures, protection, units

REPORT_NAME = "report.html"
PHASES = {
    "train": "local training at the sites",
    "prune": "choosing which values to leave out",
    "encode": "clipping, rounding and packing",
    "encrypt": "encrypting at the sites",
    "aggregate": "adding up at the coordinator",
    "open": "opening the sum",
    "evaluate": "held-out loss at the sites",
}
# The scheme 'plain' has the same phases, but nothing in them may be called encryption.
PLAIN_PHASES = {"encrypt": "writing updates as readable bytes", "open": "reading the sum"}
GUARDING = {
    "encode": "encoding",
    "encrypt": "encrypting",
    "aggregate": "adding",
    "open": "opening",
}
TRAINED = {"ab": "both matrices, A and B", "b": "B only, A is frozen", "a": "A only, B is frozen"}

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
        return tuple(str(site) for site in _list(self.summary.get("sites")))

    @property
    def rounds(self) -> int:
        return int(units.number(self.summary.get("rounds")) or 0)

    @property
    def planned(self) -> int:
        return int(units.number(self.summary.get("rounds_planned")) or self.rounds)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder from the files there, and return its path."""
    run_dir = Path(run_dir)
    page = render(read_run(run_dir))
    target = run_dir / REPORT_NAME
    scratch = run_dir / f".{REPORT_NAME}.{os.getpid()}.tmp"
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(page)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


# Reading ---------------------------------------------------------------------------------------


def read_run(run_dir: Path) -> Run:
    """The files of a run folder, checked for their outer shape."""
    summary = _parse(_text(run_dir / "summary.json"), "summary.json")
    if not isinstance(summary, dict):
        raise RunFolderError("summary.json: expected one object; write the run's summary again")
    answers_path = run_dir / "answers.json"
    answers = _parse(_text(answers_path), "answers.json") if answers_path.is_file() else []
    if not isinstance(answers, list):
        raise RunFolderError("answers.json: expected a list; run `fedshield generate` again")
    rows = _metrics(_text(run_dir / "metrics.jsonl"))
    run = Run(
        summary=summary,
        metrics=(),
        unfinished_rows=0,
        plan_text=_text(run_dir / "plan.yaml"),
        answers=tuple(answer for answer in answers if isinstance(answer, dict)),
    )
    done: dict[tuple[int, str], Row] = {}
    unfinished = 0
    for row in rows:
        at = units.number(row.get("round"))
        if at is None or not 1 <= at <= run.rounds:
            unfinished += 1
            continue
        # A round that was repeated after a restart has two rows: the later one counts.
        done[int(at), str(row.get("site"))] = row
    ordered = tuple(done[key] for key in sorted(done))
    return Run(run.summary, ordered, unfinished, run.plan_text, run.answers)


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


def _map(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(value: Any) -> str:
    """A text value, or words for a missing one."""
    return units.ABSENT if value is None or value == "" else str(value)


# Rendering -------------------------------------------------------------------------------------


def render(run: Run) -> str:
    """The whole page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("fedshield.report").joinpath("template.html.j2").read_text("utf-8")
    return environment.from_string(source).render(view(run)) + "\n"


def view(run: Run) -> Row:
    """Everything the template shows, in words."""
    scheme = str(run.summary.get("scheme", ""))
    return {
        "name": _words(run.summary.get("name")),
        "run": run,
        "protection": protection.describe(scheme, len(run.sites)),
        "scheme": _words(run.summary.get("scheme")),
        "scheme_parameters": _words(run.summary.get("scheme_parameters")),
        "security": _security(scheme, run.summary.get("security_bits")),
        **_headline(run),
        "loss": _loss(run),
        "bytes": _bytes(run),
        "time": _time(run),
        "rounds": _rounds(run),
        "data": _data(run),
        "facts": _facts(run),
        "plan_text": run.plan_text,
        "answers": [
            {key: str(answer.get(key) or "") for key in ("prompt", "base", "tuned")}
            for answer in run.answers
        ],
    }


def _security(scheme: str, bits: Any) -> str:
    level = units.number(bits)
    if level is None:
        return "none" if scheme == "plain" else units.ABSENT
    return f"{level:.0f} bits, as rated for the parameter set"


def _headline(run: Run) -> Row:
    """The top of the page: what was done, in one sentence and four cards."""
    summary = run.summary
    before = units.number(_map(summary.get("initial_heldout_loss")).get("mean"))
    after = units.number(_map(summary.get("final_heldout_loss")).get("mean"))
    plain, paper = (
        summary.get("plaintext_float32_upload_bytes"),
        summary.get("paper_scheme_upload_bytes"),
    )
    sent = summary.get("upload_bytes")
    num_sites = len(run.sites)
    sites = f"{num_sites} site" + ("" if num_sites == 1 else "s")
    named = f" ({', '.join(run.sites)})" if 0 < num_sites <= 4 else ""
    model = _map(summary.get("model"))
    note = f" ({model['note']})" if model.get("note") else ""
    rounds = f"{run.rounds} round" + ("" if run.rounds == 1 else "s")
    if run.rounds < run.planned:
        rounds = f"{run.rounds} of {run.planned} planned rounds"
    return {
        "incomplete": run.rounds < run.planned,
        "lead": (
            f"{sites}{named} fine-tuned {_words(model.get('name'))}{note} "
            f"{'alone' if num_sites == 1 else 'together'} in {rounds}. "
            "Sites send adapter updates and counts, not training rows."
        ),
        "loss_before": units.loss(before),
        "loss_after": units.loss(after),
        "loss_change": _change(before, after),
        "upload": units.human_bytes(sent),
        "upload_vs_plain": f"{units.ratio(sent, plain)} plain float32 ({units.human_bytes(plain)})",
        "upload_vs_paper": (
            f"{units.ratio(sent, paper)} the paper's scheme ({units.human_bytes(paper)}, estimated)"
        ),
        "wall": units.human_seconds(summary.get("wall_s")),
        "wall_note": f"{rounds}, {sites}, on {_words(summary.get('device'))}"
        + (f" in {summary['precision']}" if summary.get("precision") else ""),
    }


def _change(before: float | None, after: float | None) -> str:
    """What happened to a loss, said plainly when it rose."""
    if before is None or after is None:
        return "change not recorded"
    difference = after - before
    if abs(difference) < 0.0005:
        return "unchanged"
    relative = (
        f" ({units.signed(100 * difference / before, '.0f')}{units.SPACE}%)" if before else ""
    )
    return f"{'lower' if difference < 0 else 'higher'} by {abs(difference):.3f}{relative}"


def _both(
    draw: Any, *arguments: Any, ident: str, alt: str, **options: Any
) -> dict[str, Markup] | None:
    """A figure drawn for a wide page and for a phone. None where there is nothing to draw."""
    pair: dict[str, Markup] = {}
    for name, inches in (("wide", figures.WIDE_INCHES), ("narrow", figures.NARROW_INCHES)):
        svg = draw(*arguments, ident=f"{ident}-{name}", alt=alt, inches=inches, **options)
        if svg is None:
            return None
        pair[name] = Markup(svg)  # noqa: S704 - matplotlib escapes the text it was given
    return pair


def _mean(values: Iterable[Any]) -> float:
    """The plain mean, NaN unless every value is a finite number."""
    numbers = [units.number(value) for value in values]
    known = [value for value in numbers if value is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else math.nan


def _total(values: Iterable[Any]) -> float | None:
    """The sum, None unless every value is a finite number and there is one."""
    total = [units.number(value) for value in values]
    known = [value for value in total if value is not None]
    return sum(known) if known and len(known) == len(total) else None


def _at(run: Run, at: int) -> list[Row]:
    return [row for row in run.metrics if int(row["round"]) == at]


def _loss(run: Run) -> Row:
    initial, final = (
        _map(run.summary.get(f"{when}_heldout_loss")) for when in ("initial", "final")
    )
    first, last = _map(initial.get("sites")), _map(final.get("sites"))
    by_site = {(int(row["round"]), str(row.get("site"))): row for row in run.metrics}
    steps = tuple(range(run.rounds + 1))

    def point(site: str, at: int) -> float:
        value = (
            first.get(site) if at == 0 else by_site.get((at, site), {}).get("heldout_loss_after")
        )
        known = units.number(value)
        return math.nan if known is None else known

    curves = [
        figures.Curve(site, steps, tuple(point(site, at) for at in steps)) for site in run.sites
    ]
    mean = None
    if len(curves) > 1:
        across = tuple(_mean(curve.losses[at] for curve in curves) for at in steps)
        mean = figures.Curve("mean", steps, across)
    rows = [
        _loss_row(site, first.get(site), last.get(site), _map(run.summary.get("data")).get(site))
        for site in run.sites
    ]
    summed_up = _loss_row("Mean", initial.get("mean"), final.get("mean"), None)
    missing = [curve.label for curve in curves if not any(map(math.isfinite, curve.losses))]
    alt = "Held-out loss by round. " + "; ".join(
        f"{row['site']}: {row['before']} to {row['after']}" for row in rows
    )
    return {
        "figure": _both(figures.loss_curves, curves, mean, ident="loss", alt=alt),
        "rows": rows,
        "mean": summed_up if len(rows) > 1 else None,
        "missing": missing,
        "worse": [row["site"] for row in rows if row["worse"]],
        "heldout_rows": units.count(_total(row["heldout"] for row in rows)),
    }


def _loss_row(site: str, before: Any, after: Any, data: Any) -> Row:
    start, end = units.number(before), units.number(after)
    known = start is not None and end is not None
    difference = end - start if start is not None and end is not None else None
    return {
        "site": site,
        "before": units.loss(before),
        "after": units.loss(after),
        "difference": units.signed(difference),
        "relative": f"{units.signed(100 * difference / start, '.1f')}{units.SPACE}%"
        if known and start and difference is not None
        else units.ABSENT,
        "worse": difference is not None and difference >= 0.0005,
        "heldout": _map(data).get("heldout_rows"),
        "heldout_words": units.count(_map(data).get("heldout_rows")),
    }


def _bytes(run: Run) -> Row:
    summary = run.summary
    turns = len(run.metrics) or run.rounds * len(run.sites)
    values = units.number(summary.get("trainable_values"))
    plain = units.number(summary.get("plaintext_float32_upload_bytes"))
    kinds = (
        ("This run", summary.get("upload_bytes")),
        ("Plain float32", plain),
        ("The paper's CKKS set, estimated", summary.get("paper_scheme_upload_bytes")),
    )
    rows, bars = [], []
    for label, total in kinds:
        size = units.number(total)
        each = size / turns if size is not None and turns else None
        against = units.ratio(size, plain).removesuffix(" of") if label != "Plain float32" else "–"
        rows.append(
            {
                "label": label,
                "each": units.human_bytes(each),
                "total": units.human_bytes(size),
                "per_value": f"{units.significant(each / values)}{units.SPACE}B"
                if each is not None and values
                else units.ABSENT,
                "against": against,
            }
        )
        if each is not None:
            text = units.human_bytes(each)
            if label != "Plain float32" and plain:
                text += f", {against} float32" if "times" in against else f", {against} of float32"
            bars.append(figures.Bar(label, each, text))
    uploads = {at: _mean(row.get("upload_bytes") for row in _at(run, at)) for at in _rounds_of(run)}
    known = [(at, size) for at, size in uploads.items() if math.isfinite(size)]
    trend = ""
    if len(known) > 1:
        low, high = min(known, key=lambda pair: pair[1]), max(known, key=lambda pair: pair[1])
        if high[1] - low[1] <= 0.005 * high[1]:
            trend = "Every round took about the same."
        else:
            trend = (
                f"By round the mean upload of a site ran from {units.human_bytes(low[1])} "
                f"(round {low[0]}) to {units.human_bytes(high[1])} (round {high[0]})."
            )
    in_rounds = _total(row.get("upload_bytes") for row in run.metrics)
    recorded = units.number(summary.get("upload_bytes"))
    if in_rounds is not None and recorded is not None and recorded > in_rounds:
        trend += (
            f" {units.human_bytes(recorded - in_rounds)} of the total belongs to no completed "
            "round."
        )
    alt = "Upload of one site in one round, mean. " + "; ".join(
        f"{bar.label}: {bar.text}" for bar in bars
    )
    return {
        "figure": _both(figures.byte_bars, bars, ident="bytes", alt=alt),
        "rows": rows,
        "trend": trend.strip(),
        "download": units.human_bytes(summary.get("download_bytes")),
        "num_values": units.count(values),
    }


def _time(run: Run) -> Row:
    recorded = _map(run.summary.get("phase_s"))
    names = [*(name for name in PHASES if name in recorded)]
    names += sorted(name for name in recorded if name not in PHASES)
    phases = [(str(name), max(0.0, units.number(recorded[name]) or 0.0)) for name in names]
    total = sum(seconds for _, seconds in phases)
    what = {**PHASES, **(PLAIN_PHASES if run.summary.get("scheme") == "plain" else {})}
    rows = [
        {
            "colour": index % 8,
            "phase": name,
            "what": what.get(name, ""),
            "seconds": units.human_seconds(recorded[name]),
            "share": units.percent(recorded[name], total),
        }
        for index, (name, _) in enumerate(phases)
    ]
    guarded = [(name, seconds) for name, seconds in phases if name in GUARDING and seconds > 0]
    guarded_seconds = sum(seconds for _, seconds in guarded)
    alt = "Time by phase, summed over the sites. " + "; ".join(
        f"{row['phase']}: {row['seconds']}, {row['share']}" for row in rows
    )
    return {
        "figure": _both(figures.phase_bar, phases, ident="time", alt=alt),
        "rows": rows,
        "total": units.human_seconds(total),
        "guarded": _sentence_list([GUARDING[name] for name, _ in guarded]),
        "guarded_share": units.percent(guarded_seconds, total),
        "guarded_seconds": units.human_seconds(guarded_seconds),
    }


def _sentence_list(words: Sequence[str]) -> str:
    """['encoding', 'adding', 'opening'] -> 'Encoding, adding and opening'."""
    text = " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)
    return text[:1].upper() + text[1:]


def _rounds_of(run: Run) -> Sequence[int]:
    return sorted({int(row["round"]) for row in run.metrics})


def _rounds(run: Run) -> list[Row]:
    """One row a round: plain means over its sites, and totals where they are counts."""
    rows = []
    for at in _rounds_of(run):
        sites = _at(run, at)

        def mean(key: str, sites: list[Row] = sites) -> float:
            return _mean(row.get(key) for row in sites)

        def total(key: str, sites: list[Row] = sites) -> str:
            return units.count(_total(row.get(key) for row in sites))

        rate = mean("learning_rate")
        pruning = mean("pruning_rate")
        rows.append(
            {
                "round": at,
                "sites": len(sites),
                "examples": total("num_examples"),
                "rate": f"{rate:.3g}".replace("-", units.MINUS)
                if math.isfinite(rate)
                else units.ABSENT,
                "pruning": f"{100 * pruning:.0f}{units.SPACE}%"
                if math.isfinite(pruning)
                else units.ABSENT,
                "pruned": total("pruned_values"),
                "clipped": total("clipped_values"),
                "truncated": total("truncated_rows"),
                "train": units.loss(mean("train_loss")),
                "heldout": units.loss(mean("heldout_loss_after")),
                "upload": units.human_bytes(mean("upload_bytes")),
                "download": units.human_bytes(mean("download_bytes")),
            }
        )
    return rows


def _data(run: Run) -> Row:
    keys = ("train_rows", "heldout_rows", "skipped_rows", "truncated_rows", "truncated_tokens")
    recorded = _map(run.summary.get("data"))
    sites = list(run.sites) + sorted(str(site) for site in recorded if site not in run.sites)
    rows = [
        {
            "site": site,
            "source": _words(_map(recorded.get(site)).get("source")),
            "counts": [units.count(_map(recorded.get(site)).get(key)) for key in keys],
        }
        for site in sites
    ]
    totals = {key: _total(_map(recorded.get(site)).get(key) for site in sites) for key in keys}
    skipped, cut, tokens = (
        totals[key] for key in ("skipped_rows", "truncated_rows", "truncated_tokens")
    )
    parts = [
        "Skipped rows: not recorded for every site."
        if skipped is None
        else "No row was skipped."
        if skipped == 0
        else f"{units.count(skipped)} row{'' if skipped == 1 else 's'} of the sites' files "
        f"{'was' if skipped == 1 else 'were'} skipped and not used.",
        "Truncated rows: not recorded for every site."
        if cut is None
        else "No row was truncated."
        if cut == 0
        else f"{units.count(cut)} row{'' if cut == 1 else 's'} "
        f"{'was' if cut == 1 else 'were'} longer than the plan's limit and cut; "
        + (
            "how many tokens were lost was not recorded."
            if tokens is None
            else f"{units.count(tokens)} token{'' if tokens == 1 else 's'} "
            f"{'was' if tokens == 1 else 'were'} lost."
        ),
    ]
    return {
        "rows": rows,
        "totals": [units.count(totals[key]) for key in keys] if len(rows) > 1 else None,
        "sentence": " ".join(parts),
    }


def _facts(run: Run) -> Mapping[str, list[tuple[str, str, bool]]]:
    """(term, words, whether it is code) in groups."""
    summary = run.summary
    model, adapter = _map(summary.get("model")), _map(summary.get("adapter"))
    note = f", {model['note']}" if model.get("note") else ""
    targets = ", ".join(map(str, _list(adapter.get("targets"))))
    trained = str(adapter.get("train", ""))
    resumed = int(units.number(summary.get("resumed")) or 0)
    return {
        "setting": [
            ("Base model", f"{_words(model.get('name'))}{note}", False),
            (
                "Adapter",
                f"LoRA, rank {units.count(adapter.get('rank'))}, "
                f"alpha {units.count(adapter.get('alpha'))}",
                False,
            ),
            ("Target modules", _words(targets), False),
            ("Trained", TRAINED.get(trained, _words(trained)), False),
            ("Trained values", units.count(summary.get("trainable_values")), False),
            (
                "Device, precision",
                ", ".join(_words(summary.get(key)) for key in ("device", "precision")),
                False,
            ),
            ("Started", _words(summary.get("started")), False),
            ("Finished", _words(summary.get("finished")), False),
            (
                "Resumed",
                "never" if resumed == 0 else f"{resumed} time{'' if resumed == 1 else 's'}",
                False,
            ),
        ],
        "hashes": [
            ("Plan, sha256", _words(summary.get("plan_sha256")), True),
            ("Adapter, sha256", _words(summary.get("adapter_sha256")), True),
            ("Base model, sha256", _words(model.get("sha256")), True),
        ],
        "versions": [
            (str(name), _words(version), True)
            for name, version in sorted(_map(summary.get("versions")).items())
        ],
    }
