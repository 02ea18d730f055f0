"""The run folder in, one self-contained `report.html` out.

The page is a function of the run folder alone: no clock, no network, no path of this machine, so
writing it twice gives the same bytes. Three steps: read the files, prepare the view (every number
already in words), render. What a run did not record says so; nothing is guessed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedshield.report import protection, units
from fedshield.report.folder import Row, Run, mapping, mean_of, read_run, sequence, total_of, words
from fedshield.report.sections import bytes_section, loss_section, time_section

REPORT_NAME = "report.html"
TRAINED = {"ab": "both matrices, A and B", "b": "B only, A is frozen", "a": "A only, B is frozen"}


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder from the files there, and return its path."""
    run_dir = Path(run_dir)
    page = render(read_run(run_dir))
    target = run_dir / REPORT_NAME
    scratch = run_dir / f".{REPORT_NAME}.{os.getpid()}.tmp"
    try:
        with scratch.open("wb") as stream:
            # A lone surrogate in an answer or a name becomes a question mark, not an error.
            stream.write(page.encode("utf-8", "replace"))
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


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
        "name": words(run.summary.get("name")),
        "run": run,
        "protection": protection.describe(
            scheme,
            len(run.sites),
            quorums=str(run.summary.get("quorums_in_words") or ""),
            open_to=str(run.summary.get("open_to") or "peers"),
            privacy=mapping(run.summary.get("privacy")),
        ),
        "privacy": bool(run.summary.get("privacy")),
        "ended_early": str(run.summary.get("ended_early") or ""),
        "scheme": words(run.summary.get("scheme")),
        "scheme_parameters": words(run.summary.get("scheme_parameters")),
        "security": _security(scheme, run.summary.get("security_bits")),
        **_headline(run),
        "loss": loss_section(run),
        "bytes": bytes_section(run),
        "time": time_section(run),
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
    before = units.number(mapping(summary.get("initial_heldout_loss")).get("mean"))
    after = units.number(mapping(summary.get("final_heldout_loss")).get("mean"))
    plain, paper = (
        summary.get("plaintext_float32_upload_bytes"),
        summary.get("paper_scheme_upload_bytes"),
    )
    sent = summary.get("upload_bytes")
    num_sites = len(run.sites)
    sites = units.plural(num_sites, "site")
    named = f" ({', '.join(run.sites)})" if 0 < num_sites <= 4 else ""
    model = mapping(summary.get("model"))
    note = f" ({model['note']})" if model.get("note") else ""
    rounds = units.plural(run.rounds, "round")
    if run.rounds < run.planned:
        rounds = f"{run.rounds} of {run.planned} planned rounds"
    return {
        "incomplete": run.rounds < run.planned,
        "lead": (
            f"{sites}{named} fine-tuned {words(model.get('name'))}{note} "
            f"{'alone' if num_sites == 1 else 'together'} in {rounds}. "
            "Sites send adapter updates and counts, not training rows."
        ),
        "loss_before": units.loss(before) if before is not None or after is not None else "",
        "loss_after": units.loss(after),
        "loss_change": _change(before, after),
        "upload": units.human_bytes(sent),
        "upload_vs_plain": _beside(sent, plain, "plain float32", ""),
        "upload_vs_paper": _beside(sent, paper, "the paper's scheme", ", estimated"),
        "wall": units.human_seconds(summary.get("wall_s")),
        "wall_note": ", ".join(
            [
                rounds,
                sites,
                *(str(summary[key]) for key in ("device", "precision") if summary.get(key)),
            ]
        ),
    }


def _beside(sent: Any, other: Any, name: str, note: str) -> str:
    """'53 % of plain float32 (23.2 MB)'."""
    ratio = units.ratio(sent, other)
    size = units.human_bytes(other)
    return f"{name}: {size}" if ratio == units.ABSENT else f"{ratio} {name} ({size}{note})"


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


def _rounds(run: Run) -> list[Row]:
    return [_round(number, run.at(number)) for number in run.round_numbers]


def _round(number: int, rows: Sequence[Row]) -> Row:
    """One round: plain means over its sites, and totals where they are counts."""

    def mean(key: str) -> float:
        return mean_of(row.get(key) for row in rows)

    def total(key: str) -> str:
        return units.count(total_of(row.get(key) for row in rows))

    pruning = 100 * mean("pruning_rate")
    return {
        "round": number,
        "sites": len(rows),
        "examples": total("num_examples"),
        "rate": units.scientific(mean("learning_rate")),
        "pruning": f"{pruning:.0f}{units.SPACE}%" if math.isfinite(pruning) else units.ABSENT,
        "pruned": total("pruned_values"),
        "clipped": total("clipped_values"),
        "truncated": total("truncated_rows"),
        "train": units.loss(mean("train_loss")),
        "heldout": units.loss(mean("heldout_loss_after")),
        "upload": units.human_bytes(mean("upload_bytes")),
        "download": units.human_bytes(mean("download_bytes")),
        "epsilon": _epsilon(rows),
    }


def _epsilon(rows: Sequence[Row]) -> str:
    """Of the site that has spent most."""
    found = [value for row in rows if (value := units.number(row.get("epsilon"))) is not None]
    return f"{max(found):.3g}" if found else units.ABSENT


def _data(run: Run) -> Row:
    """Rows by site. What was skipped or truncated is said in words, also when it is nothing."""
    keys = ("train_rows", "heldout_rows", "skipped_rows", "truncated_rows", "truncated_tokens")
    recorded = mapping(run.summary.get("data"))
    names = list(run.sites) + sorted(str(site) for site in recorded if site not in run.sites)
    sites = {name: mapping(recorded.get(name)) for name in names}
    totals = [total_of(site.get(key) for site in sites.values()) for key in keys]
    _, _, skipped, cut, tokens = totals
    skipped_words = (
        "Skipped rows: not recorded for every site."
        if skipped is None
        else "No row was skipped."
        if skipped == 0
        else f"{_were(skipped, 'row')} skipped and not used."
    )
    for key, reason in (
        ("duplicate_rows", "dropped from training because a held-out row is the same"),
        ("no_response_rows", "dropped because nothing of the answer was left within the limit"),
    ):
        if dropped := total_of(site.get(key, 0) for site in sites.values()):
            skipped_words += f" {_were(dropped, 'row')} {reason}."
    if cut is None:
        cut_words = "Truncated rows: not recorded for every site."
    elif cut == 0:
        cut_words = "No row was truncated."
    else:
        lost = (
            "how many tokens were cut off was not recorded."
            if tokens is None
            else f"{_were(tokens, 'token')} cut off."
        )
        cut_words = f"{_were(cut, 'row')} longer than the plan's limit and truncated; {lost}"
    return {
        "rows": [
            {
                "site": name,
                "source": words(site.get("source")),
                "counts": [units.count(site.get(key)) for key in keys],
            }
            for name, site in sites.items()
        ],
        "totals": [units.count(total) for total in totals] if len(sites) > 1 else None,
        "sentence": f"{skipped_words} {cut_words}",
    }


def _were(amount: float, noun: str) -> str:
    """'No row was', '1 row was', '6 rows were'."""
    if amount == 0:
        return f"No {noun} was"
    return f"{units.plural(amount, noun)} {'was' if amount == 1 else 'were'}"


def _facts(run: Run) -> Mapping[str, list[tuple[str, str, bool]]]:
    """(term, words, whether it is code) in groups."""
    summary = run.summary
    model, adapter = mapping(summary.get("model")), mapping(summary.get("adapter"))
    note = f", {model['note']}" if model.get("note") else ""
    targets = ", ".join(map(str, sequence(adapter.get("targets"))))
    trained = str(adapter.get("train", ""))
    resumed = units.number(summary.get("resumed"))
    return {
        "setting": [
            ("Base model", f"{words(model.get('name'))}{note}", False),
            (
                "Adapter",
                f"LoRA, rank {units.count(adapter.get('rank'))}, "
                f"alpha {units.count(adapter.get('alpha'))}",
                False,
            ),
            ("Target modules", words(targets), False),
            ("Trained", TRAINED.get(trained, words(trained)), False),
            ("Trained values", units.count(summary.get("trainable_values")), False),
            ("Differential privacy", _privacy(mapping(summary.get("privacy"))), False),
            (
                "Device, precision",
                ", ".join(words(summary.get(key)) for key in ("device", "precision")),
                False,
            ),
            ("Started", words(summary.get("started")), False),
            ("Finished", words(summary.get("finished")), False),
            ("Resumed", _resumed(resumed), False),
            ("Lost sites", _lost(mapping(summary.get("lost_sites"))), False),
        ],
        "hashes": [
            ("Plan, sha256", words(summary.get("plan_sha256")), True),
            ("Adapter, sha256", words(summary.get("adapter_sha256")), True),
            ("Base model, sha256", words(model.get("sha256")), True),
        ],
        "versions": [
            (str(name), words(version), True)
            for name, version in sorted(mapping(summary.get("versions")).items())
        ],
    }


def _privacy(privacy: Mapping[str, Any]) -> str:
    if not privacy:
        return "none"
    noise, clip = (units.number(privacy.get(key)) for key in ("noise_multiplier", "clip_norm"))
    return (
        f"{protection.privacy_words(privacy)}; {words(privacy.get('mechanism'))}, noise multiplier "
        f"{units.ABSENT if noise is None else format(noise, '.3g')}, clip norm "
        f"{units.ABSENT if clip is None else format(clip, '.3g')}, "
        f"{units.count(privacy.get('uploads'))} uploads counted"
    )


def _lost(sites: Mapping[str, Any]) -> str:
    return "; ".join(f"{site}: {why}" for site, why in sorted(sites.items())) or "none"


def _resumed(times: float | None) -> str:
    if times is None:
        return units.ABSENT
    return "never" if times == 0 else units.plural(times, "time")
