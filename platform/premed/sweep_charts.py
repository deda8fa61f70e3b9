"""Charts of a sweep, as SVG in memory: scores against fields, learning curves, one metric against others, importances.

Trials that are done are blue, the best or the front is red, what was stopped is grey.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from premed.charts import WIDTH, dress, label_ends, sheet, svg
from premed.data.figures import COLOURS, FAINT, INK, short
from premed.findings import Against

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DONE, BEST = COLOURS[4], COLOURS[5]
ACROSS = 3  # panels beside each other


class Curve(NamedTuple):
    """The best so far of one trial after each validation. state: done, stopped, running, failed or waiting."""

    number: int
    state: str
    x: Sequence[int]
    values: Sequence[float]


class Rivals(NamedTuple):
    """A second metric of the trials, against which the first is weighed. front: which numbers nobody beats."""

    name: str
    mode: str
    x: Sequence[float]
    y: Sequence[float]
    numbers: Sequence[int]


def panels(shown: Sequence[Against], names: Mapping[str, str], ylabel: str, best: Sequence[int]) -> bytes:
    """One panel per field: a point per trial; where a field's values are words, a line through their means."""
    lying = max((len(tick) for each in shown if _lie(each) for tick in map(_tick, each.labels)), default=0)
    figure, axes = _panels(len(shown), 2.15, 0.55 + 0.06 * lying)
    scores = [point.score for each in shown for point in each.points]
    for axis, each in zip(axes, shown, strict=True):
        _place(axis, each)
        x = np.array([point.x for point in each.points]) + (_aside(each) if each.scale == "words" else 0.0)
        for place, point in zip(x, each.points, strict=True):
            colour = FAINT if point.stopped else BEST if point.number in best else DONE
            face = "none" if point.stopped else colour
            axis.plot(place, point.score, "o", markersize=5, markerfacecolor=face, markeredgecolor=colour,
                      alpha=1.0 if point.number in best else 0.7, zorder=4 if point.number in best else 3)  # fmt: skip
        if known := [(i, mean) for i, mean in enumerate(each.means) if np.isfinite(mean)]:
            axis.plot(*zip(*known, strict=True), color=INK, linewidth=1.0, alpha=0.6, zorder=2)
            axis.plot(*zip(*known, strict=True), "_", color=INK, markersize=16, markeredgewidth=1.6, zorder=2)
        dress(axis, names[each.field], ylabel if axis in axes[::ACROSS] else "")
        axis.set_ylim(*_aired(scores))
        axis.tick_params(axis="y", labelleft=axis in axes[::ACROSS])
    return svg(figure)


def curves(lines: Sequence[Curve], best: Sequence[int], ylabel: str) -> bytes:
    """The best so far over validations; each trial's number stands where its line ends."""
    from matplotlib.ticker import MaxNLocator

    figure = sheet((WIDTH, 3.4))
    axes, ends = figure.add_axes((0.085, 0.15, 0.8, 0.81)), []
    for line in lines:
        colour = BEST if line.number in best else DONE if line.state == "done" else FAINT
        ended = line.state in ("stopped", "failed")
        axes.plot(line.x, line.values, color=colour, linewidth=2.0 if line.number in best else 1.1,
                  linestyle=(0, (4, 2)) if line.state == "running" else "-", alpha=0.75 if ended else 0.9,
                  marker="o" if len(line.x) == 1 or ended else None, markersize=3,
                  markevery=[-1], zorder=4 if line.number in best else 2 if ended else 3)  # fmt: skip
        if line.state != "done":
            axes.annotate(str(line.number), (line.x[-1], line.values[-1]), (3, -2), textcoords="offset points",
                          fontsize=7, color=FAINT)  # fmt: skip
        else:
            ends.append((line.values[-1], f"trial {line.number}", colour))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    dress(axes, "validation", ylabel)
    if len(ends) > 16:  # they would stand on each other
        ends = [end for end in ends if end[2] == BEST]
    label_ends(axes, ends)
    return svg(figure)


def rivals(shown: Sequence[Rivals], name: str, front: Sequence[int]) -> bytes:
    """The first metric over each other one. Of two in all, a line of steps is what the front can be had for."""
    figure, axes = _panels(len(shown), 2.9, 0.5, across=2)
    for axis, each in zip(axes, shown, strict=True):
        held = dict(zip(each.numbers, zip(each.x, each.y, strict=True), strict=True))
        for number, (x, y) in held.items():
            colour = BEST if number in front else DONE
            axis.plot(x, y, "o", color=colour, markersize=6, alpha=1.0 if number in front else 0.6, zorder=3)
            if number in front:
                axis.annotate(str(number), (x, y), (5, 4), textcoords="offset points", fontsize=8, color=BEST)
        steps = sorted(held[number] for number in front if number in held)
        if len(shown) == 1 and len(steps) > 1:
            axis.step(*zip(*steps, strict=True), where="post" if each.mode == "min" else "pre", color=BEST,
                      linewidth=1.0, alpha=0.6, zorder=2)  # fmt: skip
        axis.margins(0.08)
        dress(axis, each.name, name if axis in axes[::2] else "")
    return svg(figure)


def importances(shares: Mapping[str, float]) -> bytes:
    """A bar for each field, the most important on top."""
    names = sorted(shares, key=lambda name: shares[name])
    height = 0.15 + 0.28 * len(names)
    wide, left = WIDTH * 0.75, 0.2 + 0.08 * max(len(short(name, 30)) for name in names)
    figure = sheet((wide, height))
    axes = figure.add_axes((left / wide, 0.06 / height, 0.9 - left / wide, 1 - 0.1 / height))
    axes.barh(range(len(names)), [shares[name] for name in names], height=0.62, color=DONE)
    for i, name in enumerate(names):
        axes.text(max(shares[name], 0) + 0.01, i, f"{shares[name]:.0%}", fontsize=9, color=INK, va="center")
        axes.text(-0.015, i, short(name, 30), fontsize=9, color=INK, va="center", ha="right", parse_math=False)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.5))
    axes.set_axis_off()
    return svg(figure)


def _panels(num: int, height: float, below: float, across: int = ACROSS) -> "tuple[Figure, list[Axes]]":
    """`num` axes, `across` of them beside each other; heights and the room `below` each in inches."""
    rows, left, gap = -(-num // across), 0.75, 0.3
    size = WIDTH, rows * (height + below)
    figure = sheet(size)
    width = (WIDTH - left - gap * across) / across
    places = [(left + (i % across) * (width + gap), size[1] - (i // across + 1) * (height + below)) for i in range(num)]
    return figure, [
        figure.add_axes((x / WIDTH, (y + below) / size[1], width / WIDTH, (height - 0.1) / size[1])) for x, y in places
    ]


def _place(axis: "Axes", shown: Against) -> None:
    """The scale of a field."""
    if shown.scale == "log":
        from matplotlib.ticker import FuncFormatter, LogLocator

        axis.set_xscale("log")
        x = [point.x for point in shown.points]
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if max(x) > 300 * min(x) else (1.0, 3.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:.3g}"))
        axis.minorticks_off()
    if shown.scale != "words":
        return
    axis.set_xlim(-0.6, max(len(shown.labels), 1) - 0.4)
    axis.set_xticks(range(len(shown.labels)), [_tick(label) for label in shown.labels], parse_math=False)
    if _lie(shown):
        axis.tick_params(axis="x", rotation=90)


def _lie(shown: Against) -> bool:
    """Whether labels are too many or too long to stand beside each other."""
    return sum(len(_tick(label)) + 1 for label in shown.labels) > 36


def _aside(shown: Against) -> np.ndarray:
    """How far each point stands beside its place, so that equal ones are seen: by their order, not by chance."""
    at = np.array([point.x for point in shown.points])
    order = np.array([np.sum(at[:i] == x) for i, x in enumerate(at)])
    among = np.array([np.sum(at == x) for x in at])
    return 0.28 * ((order + 0.5) / among - 0.5) if len(at) else at


def _aired(scores: Sequence[float]) -> tuple[float, float]:
    air = 0.08 * (max(scores) - min(scores)) or 0.01
    return min(scores) - air, max(scores) + air


def _tick(label: str) -> str:
    return short(label, 16)
