"""Charts as SVG in memory: interval bars for tables, scores by label fraction, pre-training losses, strips over cases.

Every line is labelled at its end. The same input gives the same bytes; text is drawn as outlines, so that a chart looks
the same wherever it is opened.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from premed.data.figures import FAINT, INK, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.8  # inches
MANY = 300  # positions of a strip; with more, its dots are small and rasterized, and the baseline is a line
NAMED = 30  # positions of a strip; more have no names


class Drawing(bytes):
    """A figure as SVG."""

    figure: "Figure"

    def png(self, dots_per_inch: int = 200) -> bytes:
        """The same figure as PNG, on white."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.figure.set_dpi(dots_per_inch)
        FigureCanvasAgg(self.figure).print_png(file := BytesIO(), metadata={"Software": None})
        return file.getvalue()


class Chart(NamedTuple):
    """A chart as pages show it."""

    title: str
    caption: str
    svg: Drawing


class Line(NamedTuple):
    """Values over x, sorted by x, and their intervals; NaN where there is none."""

    name: str
    colour: str
    x: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Strip(NamedTuple):
    """A value for each position (a case, a class); NaN where there is none."""

    name: str
    colour: str
    values: Sequence[float]


def label_fractions(lines: Sequence[Line], ylabel: str, sizes: Mapping[float, str] | None = None) -> Drawing:
    """Scores over the share of labels that was used, their intervals as bands.

    sizes: the images of each share, in words, where they are known.
    """
    figure, axes = axes_with_labels(WIDTH, 3.8)
    ends = []
    for line in lines:
        axes.plot(line.x, line.values, color=line.colour, linewidth=1.8, marker="o", markersize=4)
        if len(line.low):
            axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.08, linewidth=0)
            for edge in (line.low, line.high):
                axes.plot(line.x, edge, color=line.colour, linewidth=0.5, alpha=0.5)
        ends += _end(line)
    shares = sorted({x for line in lines for x in line.x})
    if shares[-1] > 3 * shares[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    words = [f"{100 * share:.4g} %\n{(sizes or {}).get(share, '')}".strip() for share in shares]
    axes.set_xticks(shares, words)
    style_axes(axes, "share of the labels used in fine-tuning", ylabel)
    axes.margins(x=0.02)
    label_ends(axes, ends)
    return svg(figure)


def pretraining_curves(lines: Sequence[Line], ylabel: str, gate: float | None = None, height: float = 3.4) -> Drawing:
    """Validation losses over steps. Lines with the same name are seeds, labelled once. gate: a horizontal line.

    height: in inches.
    """
    figure, axes = axes_with_labels(WIDTH, height)
    ends = {}
    for line in lines:
        axes.plot(line.x, line.values, color=line.colour, linewidth=1.4, marker="o" if len(line.x) == 1 else None)
        ends |= {name: (value, name, colour) for value, name, colour in _end(line)}
    last = list(ends.values())
    if gate is not None:
        axes.axhline(gate, color=FAINT, linestyle=(0, (5, 3)), linewidth=1.2)
        last.append((gate, "gate: no network", FAINT))
    axes.margins(x=0)
    style_axes(axes, "step", ylabel)
    label_ends(axes, last)
    return svg(figure)


def strip_plots(rows: Sequence[Strip], base: Strip | None, names: Sequence[str], xlabel: str, ylabel: str) -> Drawing:
    """A strip for each row over the same positions, with stems from the baseline's values to the row's.

    names: of the positions. A row is labelled at its end, with the number of positions where it is above the baseline.
    """
    are_named, many = len(names) <= NAMED, len(names) > MANY
    height, bottom = (
        max(1.05, 2.1 / len(rows)),
        0.4 + (0.05 * max(len(short(name, 24)) for name in names) if are_named else 0),
    )
    size = WIDTH, 0.1 + height * len(rows) + bottom
    figure, x = new_figure(size), np.arange(len(names))
    all_values = np.concatenate([np.asarray(row.values, float) for row in (*rows, *([base] if base else []))])
    low, high = np.nanmin(all_values), np.nanmax(all_values)
    for number, row in enumerate(rows):
        axes = figure.add_axes(
            (0.085, (bottom + (len(rows) - 1 - number) * height + 0.08) / size[1], 0.7, (height - 0.16) / size[1])
        )
        values, label = np.asarray(row.values, float), short(row.name, 28)
        if base is not None:
            baseline = np.asarray(base.values, float)
            if many:
                axes.plot(x, baseline, color=INK, linewidth=1.2, zorder=3)
            else:
                axes.vlines(x, baseline, values, color=row.colour, linewidth=1, alpha=0.55)
                axes.plot(x, baseline, ".", color=FAINT, markersize=4)
            both = np.isfinite(values) & np.isfinite(baseline)
            label += f"\nabove {base.name} in {int((values > baseline)[both].sum())} of {int(both.sum())}"
        axes.plot(x, values, ".", color=row.colour, markersize=2 if many else 6, rasterized=many)
        last = number == len(rows) - 1
        style_axes(axes, xlabel if last else "", ylabel if number == (len(rows) - 1) // 2 else "")
        axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1)))
        axes.set_xticks(x if are_named else [], [short(name, 24) for name in names] if are_named and last else None)
        axes.tick_params(axis="x", rotation=90, length=0, labelsize=7, labelbottom=last)
        axes.text(1.015, 0.5, label, transform=axes.transAxes, fontsize=8, color=row.colour, va="center",
                  parse_math=False)  # fmt: skip
    return svg(figure)


def interval_bar(
    value: float,
    interval: Sequence[float],
    span: tuple[float, float],
    colour: str,
    marks: Sequence[float] = (),
    width: int = 150,
) -> Markup:
    """An interval as inline SVG for a table: a bar, a dot at the value, faint lines at `marks`; empty if undefined.

    span: the values at the left and right edges, the same for all bars of a column.
    """
    if not np.isfinite(value):
        return Markup()
    height, extent = 18, (span[1] - span[0]) or 1.0

    def at(number: float) -> str:
        return f"{3 + (width - 6) * float(np.clip((number - span[0]) / extent, 0, 1)):.1f}"

    middle = height / 2
    parts = [
        f'<line x1="{at(mark)}" x2="{at(mark)}" y1="0" y2="{height}" stroke="{FAINT}" stroke-dasharray="2 2"/>'
        for mark in marks
        if np.isfinite(mark)
    ]
    if np.isfinite(interval).all():
        low, high = map(at, interval)
        parts.append(f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="3"/>')
    parts.append(f'<circle cx="{at(value)}" cy="{middle}" r="4" fill="{colour}"/>')
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg {size} aria-hidden="true">{"".join(parts)}</svg>')


def bar_axis(span: tuple[float, float], signed: bool = False, width: int = 150) -> Markup:
    """The axis of a column of interval bars, for its heading: ticks with their values. signed: of differences."""
    low, extent = span[0], (span[1] - span[0]) or 1.0
    parts = [f'<line x1="3" x2="{width - 3}" y1="17.5" y2="17.5" stroke="{FAINT}"/>']
    for tick, words in ticks(span, signed, width - 6):
        x = 3 + (width - 6) * (tick - low) / extent
        half = 3.2 * len(words)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="17.5" stroke="{FAINT}"/>')
        middle = min(max(x, half), width - half)  # within the cell
        parts.append(f'<text x="{middle:.1f}" y="11" text-anchor="middle">{words}</text>')
    return Markup(f'<svg class="axis" viewBox="0 0 {width} 18" width="{width}" height="18">{"".join(parts)}</svg>')


def ticks(span: tuple[float, float], signed: bool, width: float) -> list[tuple[float, str]]:
    """(value, in words) of round numbers within a span, as near to each other as their words allow at this width."""
    low, high = span
    finest = np.floor(np.log10(max(high - low, 1e-9))) - 1
    for exponent in (finest, finest + 1, finest + 2):
        for digits in (1, 2, 2.5, 5):
            step, decimals = digits * 10.0**exponent, max(0, int(digits == 2.5) - int(exponent))
            values = [step * i for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
            words = [f"{value + 0.0:{'+' if signed and value else ''}.{decimals}f}" for value in values]
            if width * step / (high - low or 1.0) >= 6.5 * max(map(len, words), default=0) + 10:
                return list(zip(values, words, strict=True))
    return []


def bar_span(numbers: Sequence[float], marks: Sequence[float] = ()) -> tuple[float, float] | None:
    """The span of a column of bars: all its numbers and marks, and a margin; None if none is finite."""
    finite = [number for number in (*numbers, *marks) if np.isfinite(number)]
    if not finite:
        return None
    margin = 0.04 * (max(finite) - min(finite)) or 0.01
    return min(finite) - margin, max(finite) + margin


def new_figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def axes_with_labels(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure, and axes that leave room for labels at their right."""
    figure, below = new_figure((width, height)), max(0.15, 0.5 / height)  # half an inch for ticks and their label
    return figure, figure.add_axes((0.085, below, 0.67, 0.96 - below))


def style_axes(axes: "Axes", xlabel: str, ylabel: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=9, color=INK, parse_math=False)
    axes.set_ylabel(ylabel, fontsize=9, color=INK, parse_math=False)


def _end(line: Line) -> list[tuple[float, str, str]]:
    """(last finite value, name, colour), for `label_ends`; empty if no value is finite."""
    finite = [value for value in line.values if np.isfinite(value)]
    return [(finite[-1], short(line.name, 32), line.colour)] if finite else []


def label_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]], apart: float = 0.06) -> None:
    """Writes each (value, name, colour) at the right of the axes, moved up or down where names would overlap."""
    low, high = axes.get_ylim()
    ends = sorted(ends)
    heights: list[float] = []
    for value, _, _ in ends:
        heights.append(max((value - low) / (high - low), heights[-1] + apart if heights else 0.0))
    ceiling = 1.02
    for i in reversed(range(len(heights))):  # names pushed above the axes come down again
        heights[i] = ceiling = min(heights[i], ceiling)
        ceiling -= apart
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axes.text(1.015, height, name, transform=axes.transAxes, fontsize=8, color=colour, va="center",
                  parse_math=False)  # fmt: skip


def svg(figure: "Figure") -> Drawing:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "premed", "svg.image_inline": True}):
        FigureCanvasSVG(figure).print_svg(file := BytesIO(), metadata=no_metadata)
    drawing = Drawing(file.getvalue())
    drawing.figure = figure
    return drawing
