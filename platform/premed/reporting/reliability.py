"""The reliability diagram: the share of images that is positive over the probability that a network gave them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from premed.data.figures import FAINT, INK, short
from premed.reporting.charts import WIDTH, Drawing, new_figure, style_axes, svg

ACROSS = 3  # panels beside each other
SIDE, LEFT, BELOW, GAP = 2.15, 0.6, 0.5, 0.45  # inches

Curve = Sequence[tuple[float, float, float, float]]
"""(mean probability, share that is positive, low, high) of each bin; low and high NaN where there is no interval."""


class Panel(NamedTuple):
    """One arm: the curve of all its answers, thin ones (of its classes), and what stands above."""

    name: str
    words: str
    colour: str
    curve: Curve
    thin: Sequence[Curve] = ()


def reliability(panels: Sequence[Panel], xlabel: str, ylabel: str) -> Drawing:
    """A panel for each arm; on the dashed line, probabilities are right."""
    rows = math.ceil(len(panels) / ACROSS)
    height = rows * (SIDE + BELOW + GAP)
    figure = new_figure((WIDTH, height))
    for number, panel in enumerate(panels):
        row, column = divmod(number, ACROSS)
        left = LEFT + column * (SIDE + LEFT + 0.05)
        bottom = height - (row + 1) * (SIDE + BELOW + GAP) + BELOW
        axes = figure.add_axes((left / WIDTH, bottom / height, SIDE / WIDTH, SIDE / height))
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle=(0, (5, 3)), linewidth=1)
        for thin in panel.thin:
            axes.plot(*zip(*(point[:2] for point in thin), strict=True), color=panel.colour, linewidth=0.6, alpha=0.35)
        if panel.curve:
            x, y, low, high = map(list, zip(*panel.curve, strict=True))
            axes.vlines(x, low, high, color=panel.colour, linewidth=1, alpha=0.6)
            axes.plot(x, y, color=panel.colour, linewidth=1.6, marker="o", markersize=4, clip_on=False, zorder=4)
        style_axes(axes, xlabel, ylabel if column == 0 else "")
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.tick_params(labelleft=column == 0)
        axes.text(0, 1.1, short(panel.name, 34), transform=axes.transAxes, fontsize=9, color=panel.colour,
                  weight="bold", parse_math=False)  # fmt: skip
        axes.text(0, 1.03, panel.words, transform=axes.transAxes, fontsize=7, color=INK, parse_math=False)
    return svg(figure)
