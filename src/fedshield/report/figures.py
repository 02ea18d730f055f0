"""The report's figures: matplotlib to inline SVG strings, the same bytes for the same numbers.

Colours are sentinels that become CSS variables, so that one SVG reads well in light and dark; text
stays text; ids carry the figure's name, because several figures share one page. Only matplotlib's
object API is used, never pyplot: no global figure, no backend.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

WIDE_INCHES = 9.6
NARROW_INCHES = 4.7
POINTS = 72
MAX_COLOURED = 6  # more sites than this share one quiet colour
MAX_LABELLED = 24  # more than this: only the lowest, the highest and the mean are named

_INK, _MUTED, _LINE, _ON, _QUIET = "#000001", "#000002", "#000003", "#000004", "#000005"
_SERIES = tuple(f"#00001{digit}" for digit in range(8))
_CSS = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--rule)",
    _ON: "var(--on-series)",
    _QUIET: "var(--quiet)",
    **{colour: f"var(--s{index})" for index, colour in enumerate(_SERIES)},
}
_RC: dict[Any, Any] = {
    "svg.hashsalt": "fedshield",
    "svg.fonttype": "none",
    "svg.id": None,
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Curve:
    """One line of the loss figure: a loss by round, NaN where none was recorded."""

    label: str
    rounds: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """One bar of the bytes figure: a length and the words above it."""

    label: str
    value: float
    text: str


@contextmanager
def _style() -> Iterator[None]:
    """Our settings on matplotlib's own defaults, whatever the user's matplotlibrc says. Labels
    are never parsed as mathematics: a site's name may hold dollar signs. A glyph that the
    measuring font lacks is the browser's to find, so it is no warning here."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


@_style()
def loss_curves(
    curves: Sequence[Curve], mean: Curve | None, *, ident: str, alt: str, inches: float
) -> str | None:
    """Held-out loss by round, one labelled line a site. None where nothing can be drawn."""
    shown = [curve for curve in curves if any(map(math.isfinite, curve.losses))]
    if not shown:
        return None
    crowded = len(shown) > MAX_COLOURED
    lines = [
        (curve, _QUIET if crowded else _SERIES[index], 1.1 if crowded else 2.0, "-")
        for index, curve in enumerate(shown)
    ]
    if mean is not None and not any(map(math.isfinite, mean.losses)):
        mean = None
    if mean is not None:
        style = (_SERIES[0], 2.4, "-") if crowded else (_MUTED, 1.3, (0, (4, 3)))
        lines.append((mean, *style))
    named = [curve for curve, *_ in lines]
    if len(shown) > MAX_LABELLED:
        ranked = sorted(shown, key=lambda curve: _last(curve)[1])
        named = [ranked[0], ranked[-1], *([mean] if mean is not None else [])]
    labels = {id(curve): f"{_short(curve.label)}  {_last(curve)[1]:.3f}" for curve in named}
    gap_points = 13.5
    reach = 28 if len(named) > MAX_COLOURED + 1 else 13  # how far a leader line runs
    height = max(3.3, ((len(named) + 4) * gap_points + 66) / POINTS)
    label_points = 5.9 * max(map(len, labels.values())) + reach + 3
    figure, axes = _canvas(inches, height, left=42, right=label_points, top=28, bottom=38)

    last_round = max(max(curve.rounds) for curve, *_ in lines)
    for curve, colour, width, dashes in lines:
        axes.plot(
            curve.rounds,
            curve.losses,
            color=colour,
            linewidth=width,
            linestyle=dashes,
            marker="o" if last_round <= 25 and not (crowded and colour == _QUIET) else None,
            markersize=4.2 if width >= 2 else 3,
            clip_on=False,
            solid_capstyle="round",
            zorder=3 if colour == _QUIET else 4,
        )
    # With a single point (a run that stopped before round 1) the axis still spans one round.
    axes.set_xlim(0, max(last_round, 1))
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    ticks = int((inches * POINTS - 42 - label_points) / 28)
    axes.xaxis.set_major_locator(MaxNLocator(min(10, ticks, max(last_round, 1)), integer=True))
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_MUTED, labelsize=9.5, pad=6)
    axes.set_xlabel("round (0 = base model)", color=_MUTED, fontsize=9.5, labelpad=6)
    figure.text(
        0,
        1 - 12 / (height * POINTS),
        "held-out loss, lower is better",
        color=_MUTED,
        fontsize=9.5,
    )
    _label_ends(axes, [line for line in lines if id(line[0]) in labels], labels, gap_points, reach)
    return _svg(figure, ident, alt)


def _label_ends(
    axes: Axes,
    lines: Sequence[tuple[Curve, str, float, object]],
    labels: Mapping[int, str],
    gap_points: float,
    reach: float,
) -> None:
    """Name each line at its right end; where ends are close, move the names apart."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    box = axes.get_position()
    figure = axes.figure
    points_high = box.height * figure.get_figheight() * POINTS  # type: ignore[union-attr]
    points_wide = box.width * figure.get_figwidth() * POINTS  # type: ignore[union-attr]
    ends = sorted(
        (((_last(line[0])[1] - low) / (high - low) * points_high, line) for line in lines),
        key=lambda end: (end[0], end[1][0].label),
    )
    for (where, (curve, colour, _, _)), place in zip(
        ends, spread([end[0] for end in ends], gap_points, points_high), strict=True
    ):
        start = (_last(curve)[0] - left) / (right - left)
        ended_early = start < 0.999
        if ended_early or abs(place - where) > 1.5:
            axes.plot(
                [start + 4 / points_wide, 1 + reach / points_wide],
                [where / points_high, place / points_high],
                transform=axes.transAxes,
                color=_QUIET,
                linewidth=0.6,
                linestyle=(0, (1, 4)) if ended_early else "-",
                clip_on=False,
                zorder=1,
            )
        axes.text(
            1 + (reach + 2) / points_wide,
            place / points_high,
            labels[id(curve)],
            transform=axes.transAxes,
            color=_INK if colour == _QUIET else colour,
            fontsize=9.5,
            va="center_baseline",
            clip_on=False,
        )


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Move ascending places apart to at least `gap`, as little as needed, and within 0..top
    where that can be done: clusters of touching labels sit around their mean."""
    clusters: list[tuple[float, int]] = []  # (centre, size)
    for place in places:
        centre, size = place, 1
        while clusters:
            other, members = clusters[-1]
            if centre - other >= gap * (members + size) / 2:
                break
            clusters.pop()
            centre = (other * members + centre * size) / (members + size)
            size += members
        clusters.append((centre, size))
    result: list[float] = []
    for centre, size in clusters:
        result.extend(centre + gap * (index - (size - 1) / 2) for index in range(size))
    for index in reversed(range(len(result))):
        ceiling = top if index == len(result) - 1 else result[index + 1] - gap
        result[index] = min(result[index], ceiling)
    for index in range(len(result)):
        floor = 0.0 if index == 0 else result[index - 1] + gap
        result[index] = max(result[index], floor)
    return result


@_style()
def byte_bars(bars: Sequence[Bar], *, ident: str, alt: str, inches: float) -> str | None:
    """Bars to one linear scale from zero, each under its own line of words."""
    longest = max((bar.value for bar in bars), default=0)
    if longest <= 0:
        return None
    row_points = 46
    height = len(bars) * row_points / POINTS
    figure, axes = _canvas(inches, height, left=0, right=0, top=0, bottom=0)
    axes.set_xlim(0, longest)
    axes.set_ylim(len(bars), 0)
    axes.axis("off")
    colours = (_SERIES[0], _QUIET, _SERIES[1])
    wide_points = inches * POINTS
    for index, bar in enumerate(bars):
        # A bar thinner than a hairline would vanish; 1.5 points is the least that prints.
        width = max(bar.value, longest * 1.5 / wide_points)
        colour = colours[index % len(colours)]
        axes.add_patch(Rectangle((0, index + 0.52), width, 0.3, color=colour, linewidth=0))
        axes.text(0, index + 0.38, bar.label, color=_INK, fontsize=10, va="baseline")
        axes.text(
            longest, index + 0.38, bar.text, color=_MUTED, fontsize=10, ha="right", va="baseline"
        )
    return _svg(figure, ident, alt)


@_style()
def phase_bar(
    phases: Sequence[tuple[str, float]], *, ident: str, alt: str, inches: float
) -> str | None:
    """One stacked horizontal bar. Wide parts carry their name; the table beside is the key."""
    total = sum(seconds for _, seconds in phases)
    if total <= 0:
        return None
    figure, axes = _canvas(inches, 46 / POINTS, left=0, right=0, top=0, bottom=0)
    axes.set_xlim(0, total)
    axes.set_ylim(0, 1)
    axes.axis("off")
    wide_points = inches * POINTS
    left = 0.0
    for index, (name, seconds) in enumerate(phases):
        if seconds > 0:
            gap = min(1.5 / wide_points * total, seconds / 3)
            axes.add_patch(
                Rectangle((left, 0), seconds - gap, 1, color=_SERIES[index % 8], linewidth=0)
            )
        text = f"{name} {100 * seconds / total:.0f} %"
        if seconds / total * wide_points > 6.4 * len(text) + 14:
            axes.text(
                left + 9 / wide_points * total,
                0.5,
                text,
                color=_ON,
                fontsize=10,
                va="center_baseline",
            )
        left += seconds
    return _svg(figure, ident, alt)


def _last(curve: Curve) -> tuple[int, float]:
    """The last round with a loss, and that loss."""
    pairs = zip(curve.rounds, curve.losses, strict=True)
    return [(at, loss) for at, loss in pairs if math.isfinite(loss)][-1]


def _short(label: str, limit: int = 18) -> str:
    """A label on one line that leaves room for the figure."""
    printable = "".join(sign if sign.isprintable() else " " for sign in label)
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _canvas(
    inches: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A transparent figure with one frameless axes; margins in points."""
    figure = Figure(figsize=(inches, height), dpi=POINTS)
    figure.patch.set_visible(False)
    wide, high = inches * POINTS, height * POINTS
    axes = figure.add_axes(
        (left / wide, bottom / high, (wide - left - right) / wide, (high - top - bottom) / high)
    )
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _svg(figure: Figure, ident: str, alt: str) -> str:
    """The figure as an <svg> element for a page: no prolog, metadata, namespace or fixed size."""
    stream = io.StringIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(stream, metadata=blank)  # type: ignore[no-untyped-call]
    text = stream.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{ident}-{found[1]}"' if found[1] in used else "",
        body,
    )
    body = body.replace('xlink:href="#', f'href="#{ident}-').replace("url(#", f"url(#{ident}-")
    for sentinel, css in _CSS.items():
        body = body.replace(sentinel, css)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg role="img" aria-label="{html.escape(alt)}" '
        f'viewBox="{box[1] if box else ""}" preserveAspectRatio="xMinYMin meet">{body}'
    )
