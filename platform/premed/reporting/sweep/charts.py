"""Charts of a sweep, as SVG in memory: slice plots, learning curves, Pareto fronts, importances.

Finished trials are blue, the best one or the Pareto front is red, stopped trials are grey.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from premed.data.figures import COLOURS, FAINT, INK, short
from premed.reporting.charts import WIDTH, Drawing, label_ends, new_figure, style_axes, svg
from premed.reporting.sweep.analysis import SlicePlot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DONE, BEST = COLOURS[4], COLOURS[5]
ACROSS = 3  # panels in a row
MOST_LABELS = 16  # learning curves that are labelled at their end; more labels would overlap
MOST_CHARACTERS = 36  # of the labels of categories in a panel that are not rotated


class LearningCurve(NamedTuple):
    """The best score so far of one trial after each validation. state: done, stopped, running, failed or waiting."""

    number: int
    state: str
    x: Sequence[int]
    values: Sequence[float]


class ParetoPlot(NamedTuple):
    """The first metric (y) over another one (x). numbers: the trials' own; mode: of the other metric."""

    name: str
    mode: str
    x: Sequence[float]
    y: Sequence[float]
    numbers: Sequence[int]


def slice_plots(plots: Sequence[SlicePlot], names: Mapping[str, str], ylabel: str, best: Sequence[int]) -> Drawing:
    """A panel for each field, a point for each trial; a line through the means if the field is categorical."""
    rotated = max((len(label) for plot in plots if _is_rotated(plot) for label in map(_tick, plot.labels)), default=0)
    figure, panels = _panels(len(plots), 2.15, 0.55 + 0.06 * rotated)
    scores = [point.score for plot in plots for point in plot.points]
    for axes, plot in zip(panels, plots, strict=True):
        _set_scale(axes, plot)
        x = np.array([point.x for point in plot.points]) + (_offsets(plot) if plot.scale == "categorical" else 0.0)
        for at, point in zip(x, plot.points, strict=True):
            is_best = point.number in best
            colour = FAINT if point.is_stopped else BEST if is_best else DONE
            axes.plot(at, point.score, "o", markersize=5, markerfacecolor="none" if point.is_stopped else colour,
                      markeredgecolor=colour, alpha=1.0 if is_best else 0.7, zorder=4 if is_best else 3)  # fmt: skip
        if means := [(i, mean) for i, mean in enumerate(plot.means) if np.isfinite(mean)]:
            axes.plot(*zip(*means, strict=True), color=INK, linewidth=1.0, alpha=0.6, zorder=2)
            axes.plot(*zip(*means, strict=True), "_", color=INK, markersize=16, markeredgewidth=1.6, zorder=2)
        style_axes(axes, names[plot.field], ylabel if axes in panels[::ACROSS] else "")
        axes.set_ylim(*_with_margin(scores))
        axes.tick_params(axis="y", labelleft=axes in panels[::ACROSS])
    return svg(figure)


def learning_curves(curves: Sequence[LearningCurve], best: Sequence[int], ylabel: str) -> Drawing:
    """The best score so far over validations; each trial's number stands at the end of its line."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure((WIDTH, 3.4))
    axes, ends = figure.add_axes((0.085, 0.15, 0.8, 0.81)), []
    for curve in curves:
        is_best, has_ended_early = curve.number in best, curve.state in ("stopped", "failed")
        colour = BEST if is_best else DONE if curve.state == "done" else FAINT
        axes.plot(curve.x, curve.values, color=colour, linewidth=2.0 if is_best else 1.1,
                  linestyle=(0, (4, 2)) if curve.state == "running" else "-", alpha=0.75 if has_ended_early else 0.9,
                  marker="o" if len(curve.x) == 1 or has_ended_early else None, markersize=3,
                  markevery=[-1], zorder=4 if is_best else 2 if has_ended_early else 3)  # fmt: skip
        if curve.state != "done":
            axes.annotate(str(curve.number), (curve.x[-1], curve.values[-1]), (3, -2), textcoords="offset points",
                          fontsize=7, color=FAINT)  # fmt: skip
        else:
            ends.append((curve.values[-1], f"trial {curve.number}", colour))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    style_axes(axes, "validation", ylabel)
    label_ends(axes, ends if len(ends) <= MOST_LABELS else [end for end in ends if end[2] == BEST])
    return svg(figure)


def pareto_plots(plots: Sequence[ParetoPlot], ylabel: str, front: Sequence[int]) -> Drawing:
    """The first metric over each other one. With two metrics in all, a stepped line is the Pareto front."""
    figure, panels = _panels(len(plots), 2.9, 0.5, across=2)
    for axes, plot in zip(panels, plots, strict=True):
        points = dict(zip(plot.numbers, zip(plot.x, plot.y, strict=True), strict=True))
        for number, (x, y) in points.items():
            on_front = number in front
            colour = BEST if on_front else DONE
            axes.plot(x, y, "o", color=colour, markersize=6, alpha=1.0 if on_front else 0.6, zorder=3)
            if on_front:
                axes.annotate(str(number), (x, y), (5, 4), textcoords="offset points", fontsize=8, color=BEST)
        steps = sorted(points[number] for number in front if number in points)
        if len(plots) == 1 and len(steps) > 1:
            axes.step(*zip(*steps, strict=True), where="post" if plot.mode == "min" else "pre", color=BEST,
                      linewidth=1.0, alpha=0.6, zorder=2)  # fmt: skip
        axes.margins(0.08)
        style_axes(axes, plot.name, ylabel if axes in panels[::2] else "")
    return svg(figure)


def importances(shares: Mapping[str, float]) -> Drawing:
    """A bar for each field, the most important on top."""
    names = sorted(shares, key=lambda name: shares[name])
    height = 0.15 + 0.28 * len(names)
    width, left = WIDTH * 0.75, 0.2 + 0.08 * max(len(short(name, 30)) for name in names)
    figure = new_figure((width, height))
    axes = figure.add_axes((left / width, 0.06 / height, 0.9 - left / width, 1 - 0.1 / height))
    axes.barh(range(len(names)), [shares[name] for name in names], height=0.62, color=DONE)
    for i, name in enumerate(names):
        axes.text(max(shares[name], 0) + 0.01, i, f"{shares[name]:.0%}", fontsize=9, color=INK, va="center")
        axes.text(-0.015, i, short(name, 30), fontsize=9, color=INK, va="center", ha="right", parse_math=False)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.5))
    axes.set_axis_off()
    return svg(figure)


def _panels(num: int, height: float, below: float, across: int = ACROSS) -> "tuple[Figure, list[Axes]]":
    """`num` axes, `across` of them in a row; their height and the room `below` each are in inches."""
    rows, left, gap = -(-num // across), 0.75, 0.3
    size = WIDTH, rows * (height + below)
    figure = new_figure(size)
    width = (WIDTH - left - gap * across) / across
    corners = [
        (left + (i % across) * (width + gap), size[1] - (i // across + 1) * (height + below)) for i in range(num)
    ]
    return figure, [
        figure.add_axes((x / WIDTH, (y + below) / size[1], width / WIDTH, (height - 0.1) / size[1])) for x, y in corners
    ]


def _set_scale(axes: "Axes", plot: SlicePlot) -> None:
    if plot.scale == "log":
        from matplotlib.ticker import FuncFormatter, LogLocator

        axes.set_xscale("log")
        x = [point.x for point in plot.points]
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if max(x) > 300 * min(x) else (1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:.3g}"))
        axes.minorticks_off()
    if plot.scale != "categorical":
        return
    axes.set_xlim(-0.6, max(len(plot.labels), 1) - 0.4)
    axes.set_xticks(range(len(plot.labels)), [_tick(label) for label in plot.labels], parse_math=False)
    if _is_rotated(plot):
        axes.tick_params(axis="x", rotation=90)


def _is_rotated(plot: SlicePlot) -> bool:
    """True if the labels are too many or too long to stand beside each other."""
    return sum(len(_tick(label)) + 1 for label in plot.labels) > MOST_CHARACTERS


def _offsets(plot: SlicePlot) -> np.ndarray:
    """How far each point is moved aside within its category, by its order, so that points do not hide each other."""
    x = np.array([point.x for point in plot.points])
    order = np.array([np.sum(x[:i] == category) for i, category in enumerate(x)])
    counts = np.array([np.sum(x == category) for category in x])
    return 0.28 * ((order + 0.5) / counts - 0.5) if len(x) else x


def _with_margin(scores: Sequence[float]) -> tuple[float, float]:
    margin = 0.08 * (max(scores) - min(scores)) or 0.01
    return min(scores) - margin, max(scores) + margin


def _tick(label: str) -> str:
    return short(label, 16)
