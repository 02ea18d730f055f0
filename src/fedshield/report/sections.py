"""The three sections of the report that have a figure: loss, bytes, time.

Each function takes the run and gives what the template shows, every number already in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from fedshield.report import facts, figures, units
from fedshield.report.folder import Row, Run, mapping, mean_of, total_of

PHASES = {
    "train": "local training at the sites",
    "prune": "choosing which values to leave out",
    "encode": "clipping, rounding and packing",
    "encrypt": "encrypting at the sites",
    "aggregate": "adding up at the coordinator",
    "open": "opening the sum",
    "evaluate": "held-out loss at the sites",
}
GUARDING = {
    "encode": "encoding",
    "encrypt": "encrypting",
    "aggregate": "adding",
    "open": "opening",
}
# The scheme 'plain' has the same phases, but nothing in them may be called encryption.
PLAIN_PHASES = {
    "encrypt": "writing updates as readable bytes, not encrypted",
    "open": "reading the sum",
}
PLAIN_GUARDING = {"encrypt": "writing", "open": "reading"}


def _both(
    draw: Callable[..., str | None], *arguments: Any, ident: str, alt: str, **options: Any
) -> dict[str, Markup] | None:
    """A figure drawn for a wide page and for a phone. None where there is nothing to draw."""
    pair: dict[str, Markup] = {}
    for name, inches in (("wide", figures.WIDE_INCHES), ("narrow", figures.NARROW_INCHES)):
        svg = draw(*arguments, ident=f"{ident}-{name}", alt=alt, inches=inches, **options)
        if svg is None:
            return None
        pair[name] = Markup(svg)  # matplotlib escapes the text it was given
    return pair


def loss_section(run: Run) -> Row:
    """Curves by round, and each site before and after. Round 0 is the base model."""
    initial, final = (
        mapping(run.summary.get(f"{when}_heldout_loss")) for when in ("initial", "final")
    )
    first, last = mapping(initial.get("sites")), mapping(final.get("sites"))
    by_site = {(int(row["round"]), str(row.get("site"))): row for row in run.metrics}
    steps = tuple(range(run.rounds + 1))

    def point(site: str, at: int) -> float:
        value = (
            first.get(site) if at == 0 else by_site.get((at, site), {}).get("heldout_loss_after")
        )
        known = units.number(value)
        return math.nan if known is None else known

    known = facts.of_summary(run.summary)
    shown = (known.own_site,) if known.own_site else run.sites
    curves = [figures.Curve(site, steps, tuple(point(site, at) for at in steps)) for site in shown]
    mean = None
    if len(curves) > 1:
        across = tuple(mean_of(curve.losses[at] for curve in curves) for at in steps)
        mean = figures.Curve("mean", steps, across)
    rows = [
        _loss_row(site, first.get(site), last.get(site), mapping(run.summary.get("data")).get(site))
        for site in shown
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
        "worse": _worse([row["site"] for row in rows if row["worse"]], len(rows)),
        "heldout_rows": units.count(total_of(row["heldout"] for row in rows)),
        "kept_out": "this site" if known.own_site else "each site",
        "adapter": "each site's own adapter" if known.train == "share-a" else "the shared adapter",
    }


def _worse(sites: Sequence[str], num_sites: int) -> str:
    """Where the loss rose: by name while that reads well, else by number."""
    if not sites:
        return ""
    if len(sites) <= 6:
        return f"The loss rose at: {', '.join(sites)}."
    return f"The loss rose at {len(sites)} of {num_sites} sites, marked with a plus in the table."


def _loss_row(site: str, before: Any, after: Any, data: Any) -> Row:
    start, end = units.number(before), units.number(after)
    difference = None if start is None or end is None else end - start
    relative = units.ABSENT
    if difference is not None and start:
        relative = f"{units.signed(100 * difference / start, '.1f')}{units.SPACE}%"
    heldout = mapping(data).get("heldout_rows")
    return {
        "site": site,
        "before": units.loss(before),
        "after": units.loss(after),
        "difference": units.signed(difference),
        "relative": relative,
        "worse": difference is not None and difference >= 0.0005,
        "heldout": heldout,
        "heldout_words": units.count(heldout),
    }


def bytes_section(run: Run) -> Row:
    """What a site uploads in a round: this run, plain float32, the paper's scheme."""
    summary = run.summary
    known = facts.of_summary(summary)
    turns = len(run.metrics) or run.rounds * (1 if known.own_site else len(run.sites))
    values = units.number(summary.get("trainable_values"))
    plain = units.number(summary.get("plaintext_float32_upload_bytes"))
    kinds = (
        ("This run", summary.get("upload_bytes")),
        ("Plain float32", plain),
        ("The paper's, counted", summary.get("paper_scheme_upload_bytes")),
    )
    rows, bars = [], []
    for label, total in kinds:
        size = units.number(total)
        if size is None and label.startswith("The paper's"):
            continue  # the base model has not the layers of the paper's adapter
        each = size / turns if size is not None and turns else None
        against = units.ratio(size, plain).removesuffix(" of") if label != "Plain float32" else "–"
        rows.append(
            {
                "label": label,
                "each": units.human_bytes(each),
                "total": units.human_bytes(size),
                "per_value": f"{units.significant(each / values)}{units.SPACE}B"
                if each is not None and values and not label.startswith("The paper's")
                else "–"
                if label.startswith("The paper's")
                else units.ABSENT,
                "against": against,
            }
        )
        if each is not None:
            text = units.human_bytes(each)
            if label != "Plain float32" and plain:
                text += f", {against} float32" if "times" in against else f", {against} of float32"
            bars.append(figures.Bar(label, each, text))
    alt = "Upload of one site in one round, mean. " + "; ".join(
        f"{bar.label}: {bar.text}" for bar in bars
    )
    return {
        "figure": _both(figures.byte_bars, bars, ident="bytes", alt=alt),
        "rows": rows,
        "trend": _upload_trend(run, known),
        "who": "This site" if known.own_site else "The sites",
        "all": "This site, all rounds" if known.own_site else "All sites, all rounds",
        "whose": f"What this site ({known.own_site}) uploads in one round"
        if known.own_site
        else "What one site uploads in one round",
        "download": units.human_bytes(summary.get("download_bytes")),
        "num_values": units.count(values),
    }


def _upload_trend(run: Run, known: facts.Facts) -> str:
    """How the upload moved over the rounds, and what no round accounts for."""
    uploads = {
        at: mean_of(row.get("upload_bytes") for row in run.at(at)) for at in run.round_numbers
    }
    sizes = [(at, size) for at, size in uploads.items() if math.isfinite(size)]
    trend = ""
    if len(sizes) > 1:
        low, high = min(sizes, key=lambda pair: pair[1]), max(sizes, key=lambda pair: pair[1])
        if high[1] - low[1] <= 0.005 * high[1]:
            trend = "Every round took about the same."
        else:
            trend = (
                f"By round the mean upload of a site ran from {units.human_bytes(low[1])} "
                f"(round {low[0]}) to {units.human_bytes(high[1])} (round {high[0]})."
            )
    in_rounds = total_of(row.get("upload_bytes") for row in run.metrics)
    recorded = units.number(run.summary.get("upload_bytes"))
    if in_rounds is not None and recorded is not None and recorded > in_rounds:
        trend += (
            f" Of the total, {units.human_bytes(recorded - in_rounds)} is not among the uploads "
            "recorded for completed rounds."
        )
    if known.resumed:
        trend += " What was sent in rounds that a resume repeated is not counted."
    if known.lost_sites:
        trend += " What a site sent in the round in which it was lost is not counted."
    return trend.strip()


def time_section(run: Run) -> Row:
    """Seconds by phase, summed over the sites, and what the protection took of them."""
    recorded = mapping(run.summary.get("phase_s"))
    names = [*(name for name in PHASES if name in recorded)]
    names += sorted(name for name in recorded if name not in PHASES)
    phases = [(str(name), max(0.0, units.number(recorded[name]) or 0.0)) for name in names]
    total = sum(seconds for _, seconds in phases)
    plain = run.summary.get("scheme") == "plain"
    what = {**PHASES, **(PLAIN_PHASES if plain else {})}
    doing = {**GUARDING, **(PLAIN_GUARDING if plain else {})}
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
    differ = "by waiting and writing."
    if run.summary.get("engine") != "inprocess":  # there sites take turns
        differ = f"where sites work at the same time, and {differ}"
    alt = "Time by phase. " + "; ".join(
        f"{row['phase']}: {row['seconds']}, {row['share']}" for row in rows
    )
    return {
        "figure": _both(figures.phase_bar, phases, ident="time", alt=alt),
        "rows": rows,
        "total": units.human_seconds(total),
        "differ": differ,
        "over": "this site's rounds" if run.summary.get("figures_of") else "sites and rounds",
        "guarded": _sentence_list([doing[name] for name, _ in guarded]),
        "guarded_share": units.percent(guarded_seconds, total),
        "guarded_seconds": units.human_seconds(guarded_seconds),
    }


def _sentence_list(words: Sequence[str]) -> str:
    """['encoding', 'adding', 'opening'] -> 'Encoding, adding and opening'."""
    text = " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)
    return text[:1].upper() + text[1:]
