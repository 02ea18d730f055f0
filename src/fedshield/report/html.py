"""The run folder in, one self-contained `report.html` out.

The page is a function of the run folder alone: no clock, no network, no path of this machine, so
writing it twice gives the same bytes. Three steps: read the files, prepare the view (every number
already in words), render. What a run did not record says so; nothing is guessed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedshield.report import facts, protection, units
from fedshield.report.facts import Facts
from fedshield.report.folder import (
    Row,
    Run,
    mapping,
    mean_of,
    read_run,
    sequence,
    total_of,
    words,
)
from fedshield.report.sections import bytes_section, loss_section, time_section
from fedshield.update.paper_baseline import DEFINITION

REPORT_NAME = "report.html"
ENGINES = {
    "inprocess": "one process for all sites, which take turns",
    "flare": "NVIDIA FLARE, each site in a process of its own",
}
DATA_HEADS = ("Training rows", "Held-out rows", "Skipped rows", "Truncated rows", "Tokens cut off")
TRAINED = {
    "ab": "both matrices, A and B",
    "b": "B only, A is frozen",
    "alternate": "A and B in turns, by round",
    "share-a": "A together, B at each site alone",
    "core": "a small core between frozen factors of the base model (LoRA-XS)",
}


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
    known = facts.of_summary(run.summary)
    return {
        "name": words(run.summary.get("name")),
        "run": run,
        "known": known,
        "who_ran": facts.who_ran(known),
        "whose_figures": facts.whose_figures(known),
        "lost": facts.lost_words(known),
        "sessions": facts.session_words(known),
        "protection": protection.describe(known),
        "who_is_described": protection.who_is_described(known),
        "privacy": bool(known.privacy),
        "paper": DEFINITION if run.summary.get("paper_scheme_upload_bytes") else "",
        "scheme": words(run.summary.get("scheme")),
        "scheme_parameters": words(run.summary.get("scheme_parameters")),
        "security": _security(scheme, run.summary.get("security_bits")),
        **_headline(run, known),
        "loss": loss_section(run),
        "bytes": bytes_section(run),
        "time": time_section(run),
        "rounds": _rounds(run),
        "data": _data(run),
        "facts": _facts(run, known),
        "plan_text": _shortened(run.plan_text),
        "answers": [_answer(answer) for answer in run.answers],
    }


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt's answers as text, and what is said below one that had not ended."""
    words = {key: str(answer.get(key) or "") for key in ("prompt", "base", "tuned")}
    limit, cut = answer.get("max_new_tokens"), answer.get("cut")
    names = cut if isinstance(cut, list) else []
    said = {name: f"cut at {limit} tokens" if name in names else "" for name in ("base", "tuned")}
    return {**words, "cut": said}


def _security(scheme: str, bits: Any) -> str:
    level = units.number(bits)
    if level is None:
        return "none" if scheme == "plain" else units.ABSENT
    return f"{level:.0f} bits, as rated for the parameter set"


def _shortened(plan_text: str) -> str:
    """The plan, its absolute paths cut to their last part: they are of one machine only."""
    return re.sub(r"(?<=[\s'\"])(?:~?/)(?:[^/\n'\"]+/)+(?=[^/\n'\"]+)", ".../", plan_text)


def _headline(run: Run, known: Facts) -> Row:
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
    rounds = units.plural(run.rounds, "round")
    if run.rounds < run.planned:
        rounds = f"{run.rounds} of {run.planned} planned rounds"
    return {
        "incomplete": known.incomplete,
        "lead": (
            f"{sites}{named} fine-tuned {known.model} "
            f"{'alone' if num_sites == 1 else 'together'} in {rounds}. "
            f"They sent {facts.sent_words(known)}, not training rows."
        ),
        "loss_of": f"Held-out loss, {facts.at_whom(known)}",
        "loss_over": _mean_over(run, known),
        "upload_of": (
            f"Uploaded by this site ({known.own_site})"
            if known.own_site
            else "Uploaded by all sites"
        ),
        "loss_before": units.loss(before) if before is not None or after is not None else "",
        "loss_after": units.loss(after),
        "loss_change": _change(before, after),
        "upload": units.human_bytes(sent),
        "upload_vs_plain": _beside(sent, plain, "plain float32", ""),
        "upload_vs_paper": _beside(sent, paper, "the paper's", ", counted"),
        "wall": units.human_seconds(summary.get("wall_s")),
        "wall_of": facts.time_words(known),
        "wall_note": ", ".join(
            [
                rounds,
                *([] if known.own_site else [sites]),
                *(str(summary[key]) for key in ("device", "precision") if summary.get(key)),
            ]
        ),
    }


def _mean_over(run: Run, known: Facts) -> str:
    """Whose losses the mean compares, where it is not all sites'."""
    compared = [str(site) for site in sequence(run.summary.get("mean_over"))]
    if known.own_site or not compared or len(compared) == len(run.sites):
        return ""
    return f"over {', '.join(compared)}: no other site measured both"


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
    own_site = run.summary.get("figures_of")
    known = [str(own_site)] if own_site else list(run.sites)
    names = known + sorted(str(site) for site in recorded if site not in known)
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
        "heads": DATA_HEADS,
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


def _facts(run: Run, known: Facts) -> Mapping[str, list[tuple[str, str, bool]]]:
    """(term, words, whether it is code) in groups."""
    summary = run.summary
    model, adapter = mapping(summary.get("model")), mapping(summary.get("adapter"))
    targets = ", ".join(map(str, sequence(adapter.get("targets"))))
    trained = str(adapter.get("train", ""))
    return {
        "setting": [
            ("Base model", known.model, False),
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
            ("Engine", words(ENGINES.get(known.engine, known.engine)), False),
            ("Started", words(summary.get("started")), False),
            ("Finished", words(summary.get("finished")), False),
            ("Resumed", facts.resumed_words(known), False),
            ("Sites lost or missing", " ".join(facts.lost_words(known)) or "none", False),
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
