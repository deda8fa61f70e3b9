"""The contents of the tables of a comparison's page, and the colours of its arms in tables and charts."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup

from premed.data.figures import COLOURS, FAINT, LINES
from premed.reporting import charts
from premed.reporting.comparison.result import (
    ArmResult,
    BlockResult,
    ClassEstimate,
    ReliabilityPoint,
    RunResult,
    TaskResult,
)
from premed.reporting.comparison.terminal import calibration_row
from premed.reporting.formatting import NAMES, mean_std, number, percent, span
from premed.reporting.reliability import Panel, reliability


class Section:
    """The arms with one head on one task. ui: the address of MLflow's UI, for links; None where it is not known."""

    def __init__(self, task: TaskResult, block: BlockResult, ui: str | None):
        self.task, self.block, self.ui = task, block, ui and ui.rstrip("/")
        self.arms = block.rows
        self.score = task.score
        self.title = NAMES.get(self.score, self.score)
        self.largest = block.largest_fraction
        self.baseline = next((arm.label for arm in self.largest if arm.is_baseline), None)
        self.num_runs = sum(len(arm.runs) for arm in self.arms)

    @cached_property
    def colours(self) -> dict[str, str]:
        """By label; the baseline is grey."""
        bases = [arm.label for arm in self.arms if arm.is_baseline]
        others = dict.fromkeys(arm.label for arm in self.arms if arm.label not in bases)
        return {label: COLOURS[LINES[i % len(LINES)]] for i, label in enumerate(others)} | dict.fromkeys(bases, FAINT)

    @cached_property
    def fractions(self) -> list[float]:
        """The label fractions, the largest first."""
        return sorted({arm.label_fraction for arm in self.arms}, reverse=True)

    def at(self, fraction: float) -> list[ArmResult]:
        return [arm for arm in self.arms if arm.label_fraction == fraction]

    def is_first(self, arm: ArmResult) -> bool:
        """Whether it is the first arm of its label fraction."""
        return arm is self.at(arm.label_fraction)[0]

    def address(self, run: RunResult, run_id: str) -> str | None:
        """The page in MLflow's UI of a run, or of one of its stages; None where the UI's address is not known."""
        return self.ui and f"{self.ui}/#/experiments/{run.experiment_id}/runs/{run_id}"


# ---- scores


class ScoreRow(NamedTuple):
    """An arm, and the bars of its interval and of its difference's."""

    arm: ArmResult
    bar: Markup
    difference_bar: Markup


class ScoresView(NamedTuple):
    """One score of all arms."""

    name: str
    title: str
    note: str
    """After the title: which way is better, if that is not up."""
    is_main: bool
    """The task's own score, which has p-values and verdicts."""
    axis: Markup
    """Of the intervals' bars; empty if nothing is known."""
    has_differences: bool
    difference_axis: Markup
    """Of the differences' bars."""
    rows: Sequence[ScoreRow]
    has_constant: bool
    """Whether the score of a constant answer is in the bars."""


def score_table(section: Section, name: str) -> ScoresView:
    is_main, arms = name == section.score, section.arms
    scores = [arm.scores[name] for arm in arms]
    constants = [arm.constant for arm in arms] if is_main else []
    scale = charts.bar_span([x for score in scores for x in (score.mean, *score.interval)], constants)
    differences = [score.difference for score in scores if score.difference]
    reach = charts.bar_span(
        [x for each in differences for x in (each.value, *each.interval)], [0.0] if differences else []
    )
    rows = []
    for arm, score in zip(arms, scores, strict=True):
        colour, bar, difference_bar = section.colours[arm.label], Markup(), Markup()
        if scale:
            bar = charts.interval_bar(score.mean, score.interval, scale, colour, [arm.constant] if is_main else [])
        if reach and (difference := score.difference):
            difference_bar = charts.interval_bar(difference.value, difference.interval, reach, colour, [0.0])
        rows.append(ScoreRow(arm, bar, difference_bar))
    return ScoresView(
        name=name,
        title=NAMES.get(name, name),
        note="" if scores[0].higher_is_better else ": lower is better",
        is_main=is_main,
        axis=charts.bar_axis(scale) if scale else Markup(),
        has_differences=bool(differences),
        difference_axis=charts.bar_axis(reach, signed=True) if reach else Markup(),
        rows=rows,
        has_constant=any(map(math.isfinite, constants)),
    )


# ---- classes


class ClassCell(NamedTuple):
    """A class's mean, deviation and interval, and whether its difference to the baseline is clear."""

    text: str
    interval: str
    mark: str
    """▲ or ▼, above or below the baseline; "" where the difference is not clear."""
    direction: str
    """up: better than the baseline; down: worse."""


class ClassTable(NamedTuple):
    """The classes' means at one label fraction."""

    title: str
    is_open: bool
    arms: Sequence[ArmResult]
    rows: Sequence[tuple[str, tuple[int, int], Sequence[ClassCell]]]
    """A class, its numbers of cases and of positive ones, and a cell for each arm."""

    @property
    def has_marks(self) -> bool:
        return any(cell.mark for _, _, cells in self.rows for cell in cells)


def class_tables(section: Section, counts: Mapping[str, tuple[int, int]]) -> list[ClassTable]:
    """A table for each label fraction; that of the largest is open. None where there is one class.

    counts: for each class, how many cases there are of which it is known, and how many have it.
    """
    names = list(section.largest[0].scores[section.score].classes)
    if len(names) < 2:
        return []
    tables = []
    for fraction in section.fractions:
        arms = section.at(fraction)
        scores = [arm.scores[section.score] for arm in arms]
        rows = [
            (name, counts[name], [class_cell(each.classes[name], each.higher_is_better) for each in scores])
            for name in names
        ]
        tables.append(ClassTable(f"{percent(fraction)} of the labels", arms[0] in section.largest, arms, rows))
    return tables


def class_cell(estimate: ClassEstimate, higher_is_better: bool) -> ClassCell:
    text, interval = mean_std(estimate.mean, estimate.std), span(estimate.interval)
    if not (estimate.difference and estimate.is_clear):
        return ClassCell(text, interval, "", "")
    is_above = estimate.difference.value > 0
    return ClassCell(text, interval, "▲" if is_above else "▼", "up" if is_above == higher_is_better else "down")


# ---- calibration


class CalibrationView(NamedTuple):
    """The calibration errors of all arms, and of their classes at the largest share of the labels."""

    kind: str
    axis: Markup
    rows: Sequence[tuple[ArmResult, Sequence[str], Markup]]
    """An arm, its cells as `terminal.calibration_row` has them, and the bar of its interval."""
    arms: Sequence[ArmResult]
    classes: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    """A class, and (error, interval) of each of `arms`."""


def calibration_table(section: Section) -> CalibrationView | None:
    """None where no arm gives probabilities."""
    found = [arm.calibration for arm in section.arms if arm.calibration]
    if not found:
        return None
    scale = charts.bar_span([x for each in found for x in (each.value, *each.interval)], [0.0])
    rows = []
    for arm in section.arms:
        bar = Markup()
        if arm.calibration and scale:
            bar = charts.interval_bar(
                arm.calibration.value, arm.calibration.interval, scale, section.colours[arm.label], [0.0]
            )
        rows.append((arm, calibration_row(arm)[2:], bar))
    arms = [arm for arm in section.largest if arm.calibration]
    names = list(arms[0].calibration.classes) if arms and arms[0].calibration else []
    classes = [(name, [class_error(arm, name) for arm in arms]) for name in names if len(names) > 1]
    return CalibrationView(found[0].kind, charts.bar_axis(scale) if scale else Markup(), rows, arms, classes)


def class_error(arm: ArmResult, name: str) -> tuple[str, str]:
    error = arm.calibration.classes[name] if arm.calibration else None
    return (number(error.value), span(error.interval)) if error else ("not stored", "")


def reliability_chart(section: Section) -> charts.Chart | None:
    """A panel for each arm at the largest share of the labels; None where no arm has an interval."""
    known = [(arm, arm.calibration) for arm in section.largest if arm.calibration]
    shown = [(arm, found) for arm, found in known if math.isfinite(found.value)]  # of one patient it says nothing
    if not shown:
        return None
    panels = [
        Panel(
            arm.marked_label,
            f"ECE {number(found.value)} {span(found.interval)}",
            section.colours[arm.label],
            points(found.curve),
            [points(curve) for curve in found.class_curves.values() if curve and len(found.class_curves) > 1],
        )
        for arm, found in shown
    ]
    likeliest = shown[0][1].kind == "likeliest class"
    axes = ("probability", "share that is positive")
    if likeliest:
        axes = ("probability of the likeliest class", "share that is right")
    caption = f"On the dashed line, {100 * 0.7:.0f} % means right in 70 of 100. Bins of equal mass, all runs of an arm "
    caption += "together; bars: 95 % over patients" + ("; thin: each class." if panels[0].thin else ".")
    title = f"Reliability with {percent(section.largest[0].label_fraction)} of the labels"
    return charts.Chart(title, caption, reliability(panels, *axes))


def points(curve: Sequence[ReliabilityPoint]) -> list[tuple[float, float, float, float]]:
    return [(point.predicted, point.observed, *point.interval) for point in curve]
