"""The picture of a plan: for each comparison the smallest difference it shows over pre-trainings and patients."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from premed.data.figures import FAINT, INK, short
from premed.errors import UserError
from premed.paths import writing
from premed.reporting import charts
from premed.reporting.formatting import NAMES, percent
from premed.reporting.sample_size.levels import level_at
from premed.reporting.sample_size.power import Design, layout, smallest_difference
from premed.reporting.sample_size.result import BlockPlan, ComparisonPlan, PlanResult
from premed.reporting.statistics import SEEDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS = (3, 4, 5, 6, 8, 10, 14, 20)
TIMES = {1: "#08519c", 2: "#4292c6", 4: "#9ecae1"}
"""The patients that there are, times these; and the line's colour."""
MOST = 6  # comparisons


def write(result: PlanResult, path: Path) -> None:
    """Writes the picture as SVG or PNG."""
    drawing = draw(result)
    with writing(f"--picture {path}"):
        path.write_bytes(drawing.png() if path.suffix == ".png" else drawing)


def draw(result: PlanResult) -> charts.Drawing:
    """A panel for each comparison. Raises UserError if they are more than MOST."""
    panels = [(block, plan) for block in result.blocks for plan in block.comparisons]
    if len(panels) > MOST:
        raise UserError(
            f"--picture: {len(panels)} comparisons, and a picture holds {MOST}; choose by --task or --where"
        )
    figure = charts.new_figure((charts.WIDTH, 2.9 * len(panels)))
    for i, (block, plan) in enumerate(panels):
        bottom = (len(panels) - 1 - i + 0.19) / len(panels)
        panel(figure.add_axes((0.085, bottom, 0.76, 0.69 / len(panels))), block, plan, result)
    return charts.svg(figure)


def panel(axes: "Axes", block: BlockPlan, plan: ComparisonPlan, result: PlanResult) -> None:
    """The smallest differences, on a logarithmic scale, and the one that is planned for as a line."""
    ends, numbers = [], plan.looks.planned if plan.looks else NUMBERS
    for times, colour in TIMES.items():
        values = [smallest(plan, num, times, result.power) for num in numbers]
        axes.plot(numbers, values, color=colour, linewidth=1.6, marker="o", markersize=3.5)
        if np.isfinite(values[-1]) and values[-1] > 0:
            ends.append((values[-1], f"{times * plan.now.patients:,} patients", colour))
    if np.isfinite(plan.planned) and plan.planned > 0:
        axes.axhline(plan.planned, color=FAINT, linestyle=(0, (5, 3)), linewidth=1.2)
        ends.append((plan.planned, "measured" if result.margin is None else "margin", FAINT))
    pretrained = plan.components.difference.is_pretrained
    x = "pre-trainings, each with its own fine-tuning" if pretrained else "fine-tuning seeds"
    x += ", at the planned looks" if plan.looks else ""
    charts.style_axes(axes, x, f"smallest difference, power {percent(result.power)}")
    axes.set_title(title(block, plan), fontsize=9, color=INK, loc="left", parse_math=False)
    axes.set_xticks(numbers)
    if not ends:
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [digit * 10.0**power for power in range(-8, 5) for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_ylim(low, high)
    span = np.log(high / low)
    at = [(low + (high - low) * np.log(value / low) / span, name, colour) for value, name, colour in ends]
    charts.label_ends(axes, at, apart=0.075)  # places names by their share of the height


def smallest(plan: ComparisonPlan, num: int, times: int, power: float) -> float:
    design = Design(max(num, SEEDS), 1, times * plan.now.patients)
    return smallest_difference(layout(plan.components, design), power, level_at(plan.looks, num))


def title(block: BlockPlan, plan: ComparisonPlan) -> str:
    if not block.head:
        return "from guesses"
    score = NAMES.get(block.score, block.score)
    words = f"{block.task}, head {block.head}: {plan.label} against {block.baseline}, {score}, "
    return short(f"{words}{percent(plan.label_fraction)} of the labels", 110)
