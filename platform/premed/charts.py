"""Charts of a comparison, as SVG in memory: bars for tables, score against labels, pre-training, strips over cases.

Every line is named where it ends. The same input gives the same bytes; letters are drawn as outlines, so that a chart
looks the same wherever it is opened.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from premed.data.figures import FAINT, INK, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.8  # inches
MANY = 300  # places of a strip: of more, the dots are small, in pixels, and the baseline is a line
NAMED = 30  # places of a strip: more have no names


class Line(NamedTuple):
    """Values over x, in order of x, and their intervals; NaN where there is none."""

    name: str
    colour: str
    x: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Strip(NamedTuple):
    """One number per place (a case, a class); NaN where there is none."""

    name: str
    colour: str
    values: Sequence[float]


def fractions(lines: Sequence[Line], ylabel: str) -> bytes:
    """Scores against the share of labels that was used, with bands for their intervals."""
    figure, axes = canvas(WIDTH, 3.8)
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
    axes.set_xticks(shares, [f"{100 * share:.4g} %" for share in shares])
    dress(axes, "share of the labels used in fine-tuning", ylabel)
    axes.margins(x=0.02)
    label_ends(axes, ends)
    return svg(figure)


def pretraining(lines: Sequence[Line], ylabel: str, gate: float | None = None) -> bytes:
    """Validation losses over steps. Lines of one name are seeds and are named once. gate: a level to compare with."""
    figure, axes = canvas(WIDTH, 3.4)
    ends = {}
    for line in lines:
        axes.plot(line.x, line.values, color=line.colour, linewidth=1.4, marker="o" if len(line.x) == 1 else None)
        ends |= {name: (value, name, colour) for value, name, colour in _end(line)}
    last = list(ends.values())
    if gate is not None:
        axes.axhline(gate, color=FAINT, linestyle=(0, (5, 3)), linewidth=1.2)
        last.append((gate, "gate: no network", FAINT))
    axes.margins(x=0)
    dress(axes, "step", ylabel)
    label_ends(axes, last)
    return svg(figure)


def strips(rows: Sequence[Strip], base: Strip | None, places: Sequence[str], xlabel: str, ylabel: str) -> bytes:
    """One strip per row over the same places; a stem from what the baseline has there to what the row has.

    A row is named at its end, with the number of places where it is above the baseline.
    """
    named = len(places) <= NAMED
    height, bottom = 1.05, 0.4 + (0.05 * max(len(short(place, 24)) for place in places) if named else 0)
    size = WIDTH, 0.1 + height * len(rows) + bottom
    figure = sheet(size)
    x, many = np.arange(len(places)), len(places) > MANY
    everything = np.concatenate([np.asarray(row.values, float) for row in (*rows, *([base] if base else []))])
    low, high = np.nanmin(everything), np.nanmax(everything)
    for number, row in enumerate(rows):
        axes = figure.add_axes(
            (0.085, (bottom + (len(rows) - 1 - number) * height + 0.08) / size[1], 0.7, (height - 0.16) / size[1])
        )
        values, said = np.asarray(row.values, float), short(row.name, 28)
        if base is not None:
            other = np.asarray(base.values, float)
            if many:
                axes.plot(x, other, color=INK, linewidth=1.2, zorder=3)
            else:
                axes.vlines(x, other, values, color=row.colour, linewidth=1, alpha=0.55)
                axes.plot(x, other, ".", color=FAINT, markersize=4)
            both = np.isfinite(values) & np.isfinite(other)
            said += f"\nabove {base.name} in {int((values > other)[both].sum())} of {int(both.sum())}"
        axes.plot(x, values, ".", color=row.colour, markersize=2 if many else 6, rasterized=many)
        last = number == len(rows) - 1
        dress(axes, xlabel if last else "", ylabel if number == (len(rows) - 1) // 2 else "")
        axes.set(xlim=(-0.6, len(places) - 0.4), ylim=(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1)))
        axes.set_xticks(x if named else [], [short(place, 24) for place in places] if named and last else None)
        axes.tick_params(axis="x", rotation=90, length=0, labelsize=7, labelbottom=last)
        axes.text(1.015, 0.5, said, transform=axes.transAxes, fontsize=8, color=row.colour, va="center",
                  parse_math=False)  # fmt: skip
    return svg(figure)


def bar(
    value: float,
    interval: Sequence[float],
    span: tuple[float, float],
    colour: str,
    marks: Sequence[float] = (),
    width: int = 150,
) -> str:
    """An interval as inline SVG for a table: a thin bar, a dot at the value, faint lines at `marks`; "" of none.

    span: what the whole width stands for, the same down a column.
    """
    if not np.isfinite(value):
        return ""
    height, reach = 18, (span[1] - span[0]) or 1.0

    def at(number: float) -> str:
        return f"{3 + (width - 6) * float(np.clip((number - span[0]) / reach, 0, 1)):.1f}"

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
    return f'<svg width="{width}" height="{height}" aria-hidden="true">{"".join(parts)}</svg>'


def spanning(numbers: Sequence[float], marks: Sequence[float] = ()) -> tuple[float, float] | None:
    """What a column of bars stands for: all its numbers and marks, and a little air."""
    known = [number for number in (*numbers, *marks) if np.isfinite(number)]
    if not known:
        return None
    air = 0.04 * (max(known) - min(known)) or 0.01
    return min(known) - air, max(known) + air


def sheet(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure with room for names at its right."""
    figure = sheet((width, height))
    return figure, figure.add_axes((0.085, 0.15, 0.67, 0.81))


def dress(axes: "Axes", xlabel: str, ylabel: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=9, color=INK, parse_math=False)
    axes.set_ylabel(ylabel, fontsize=9, color=INK, parse_math=False)


def _end(line: Line) -> list[tuple[float, str, str]]:
    """Where a line's name goes: the last value that is known."""
    known = [value for value in line.values if np.isfinite(value)]
    return [(known[-1], short(line.name, 32), line.colour)] if known else []


def label_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]], apart: float = 0.06) -> None:
    """Names (value, name, colour) at the right of the axes, moved where they would lie on each other."""
    low, high = axes.get_ylim()
    ends = sorted(ends)
    heights: list[float] = []
    for value, _, _ in ends:
        heights.append(max((value - low) / (high - low), heights[-1] + apart if heights else 0.0))
    ceiling = 1.02
    for i in reversed(range(len(heights))):  # what was pushed out at the top comes down again
        heights[i] = ceiling = min(heights[i], ceiling)
        ceiling -= apart
    for height, (_, name, colour) in zip(heights, ends, strict=True):
        axes.text(1.015, height, name, transform=axes.transAxes, fontsize=8, color=colour, va="center",
                  parse_math=False)  # fmt: skip


def svg(figure: "Figure") -> bytes:
    from io import BytesIO

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    nobody = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "premed", "svg.image_inline": True}):
        FigureCanvasSVG(figure).print_svg(file := BytesIO(), metadata=nobody)
    return file.getvalue()
